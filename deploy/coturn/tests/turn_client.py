"""A small TURN client (RFC 8656) for tests: it says exactly what it is told to, permitted or not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import socket
import ssl
import struct
import time

COOKIE = 0x2112A442
BINDING, ALLOCATE, REFRESH, SEND, DATA, PERMISSION, CHANNEL = 0x001, 0x003, 0x004, 0x016, 0x017, 0x008, 0x009
ERROR, SUCCESS = 0x110, 0x100
USERNAME, INTEGRITY, ERROR_CODE, CHANNEL_NUMBER, LIFETIME = 0x06, 0x08, 0x09, 0x0C, 0x0D
PEER, PAYLOAD, REALM, NONCE, RELAYED, FAMILY, TRANSPORT, MAPPED = 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x19, 0x20
PATIENCE = 10.0
"""After how many seconds without an answer a request fails."""


def credential(secret: str, username: str) -> str:
    """The password of the REST form."""
    return base64.b64encode(hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()).decode()


class Refused(Exception):
    """The server's error code, such as 403."""


class TurnClient:
    """One allocation, over "udp", "tcp" or "tls"."""

    def __init__(self, server: str, username: str, password: str, transport: str = "udp", port: int = 3478, ca: str | None = None):
        self._username, self._password, self._realm, self._nonce, self._key = username.encode(), password, None, None, None
        self._stream, self._waiting, self._buffer = transport != "udp", [], b""
        address = socket.getaddrinfo(server, port, type=socket.SOCK_STREAM if self._stream else socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(address[0], address[1])
        self._socket.settimeout(PATIENCE)
        self._socket.connect(address[4])
        if transport == "tls":
            self._socket = ssl.create_default_context(cafile=ca).wrap_socket(self._socket, server_hostname=server)

    def close(self) -> None:
        """Gives the allocation back, if there is one."""
        try:
            self.refresh(0)
        except (Refused, OSError):
            pass
        self._socket.close()

    def allocate(self, family: int = 4) -> tuple[str, int]:
        """The relayed address."""
        attributes = [(TRANSPORT, struct.pack("!B3x", 17)), (FAMILY, struct.pack("!B3x", 1 if family == 4 else 2))]
        answer, transaction = self._request(ALLOCATE, attributes)
        return _address(answer[RELAYED], transaction)

    def refresh(self, lifetime: int) -> int:
        """The lifetime that the allocation has now, in seconds."""
        answer, _ = self._request(REFRESH, [(LIFETIME, struct.pack("!I", lifetime))])
        return struct.unpack("!I", answer[LIFETIME])[0]

    def permit(self, ip: str) -> None:
        """Asks for a permission."""
        self._request(PERMISSION, lambda transaction: [(PEER, _xor(ip, 0, transaction))])

    def bind_channel(self, ip: str, port: int, number: int = 0x4000) -> None:
        """Asks for a channel."""
        channel = (CHANNEL_NUMBER, struct.pack("!HH", number, 0))
        self._request(CHANNEL, lambda transaction: [channel, (PEER, _xor(ip, port, transaction))])

    def send(self, ip: str, port: int, data: bytes) -> None:
        """Sends to a peer, whether there is a permission or not."""
        transaction = os.urandom(12)
        self._write(_message(SEND, transaction, [(PEER, _xor(ip, port, transaction)), (PAYLOAD, data)]))

    def receive(self, patience: float = PATIENCE) -> tuple[str, int, bytes] | None:
        """The next data of a peer; None when there is none for so long."""
        deadline = time.monotonic() + patience
        while not self._waiting:
            message = self._read(deadline)
            if message is None:
                return None
            self._keep(message)
        return self._waiting.pop(0)

    def binding(self) -> tuple[str, int]:
        """The address that the server sees: STUN, without any credential."""
        transaction = os.urandom(12)
        self._write(_message(BINDING, transaction, []))
        return _address(_attributes(self._answer(BINDING, transaction))[MAPPED], transaction)

    def _request(self, method: int, attributes) -> tuple[dict[int, bytes], bytes]:
        for _ in range(3):
            transaction = os.urandom(12)
            pairs = list(attributes(transaction) if callable(attributes) else attributes)
            if self._nonce is not None:
                pairs += [(USERNAME, self._username), (REALM, self._realm), (NONCE, self._nonce)]
            self._write(_message(method, transaction, pairs, self._key))
            message = self._answer(method, transaction)
            answer = _attributes(message)
            if message[0] & 0x01 == 0 or answer.get(ERROR_CODE) is None:
                return answer, transaction
            code = answer[ERROR_CODE][2] * 100 + answer[ERROR_CODE][3]
            # 401 without credentials tells realm and nonce; 438 tells a fresh nonce.
            if code == 438 or (code == 401 and self._nonce is None):
                self._realm, self._nonce = answer.get(REALM, self._realm), answer[NONCE]
                self._key = hashlib.md5(b":".join([self._username, self._realm, self._password.encode()])).digest()
                continue
            raise Refused(code)
        raise Refused(438)

    def _answer(self, method: int, transaction: bytes) -> bytes:
        deadline = time.monotonic() + PATIENCE
        while True:
            message = self._read(deadline)
            if message is None:
                raise TimeoutError(f"no answer to the request {method:#x}")
            kind = struct.unpack_from("!H", message)[0]
            if message[8:20] == transaction and kind in (method | SUCCESS, method | ERROR):
                return message
            self._keep(message)

    def _keep(self, message: bytes) -> None:
        kind, length = struct.unpack_from("!HH", message)
        if kind == DATA:
            attributes = _attributes(message)
            self._waiting.append((*_address(attributes[PEER], message[8:20]), attributes[PAYLOAD]))
        elif 0x4000 <= kind <= 0x4FFF:
            self._waiting.append((f"channel {kind:#x}", 0, message[4:4 + length]))

    def _write(self, message: bytes) -> None:
        self._socket.sendall(message)

    def _read(self, deadline: float) -> bytes | None:
        while True:
            if self._stream and len(self._buffer) >= 4:
                kind, length = struct.unpack_from("!HH", self._buffer)
                whole = 20 + length if kind < 0x4000 else (4 + length + 3) // 4 * 4
                if len(self._buffer) >= whole:
                    message, self._buffer = self._buffer[:whole], self._buffer[whole:]
                    return message
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except socket.timeout:
                return None
            if not self._stream:
                return data
            if not data:
                raise ConnectionError("the TURN server closed the connection")
            self._buffer += data


def _message(kind: int, transaction: bytes, attributes, key: bytes | None = None) -> bytes:
    body = b"".join(struct.pack("!HH", name, len(value)) + value + b"\0" * (-len(value) % 4) for name, value in attributes)
    if key is not None:
        head = struct.pack("!HHI", kind, len(body) + 24, COOKIE) + transaction
        body += struct.pack("!HH", INTEGRITY, 20) + hmac.new(key, head + body, hashlib.sha1).digest()
    return struct.pack("!HHI", kind, len(body), COOKIE) + transaction + body


def _attributes(message: bytes) -> dict[int, bytes]:
    found, at, end = {}, 20, 20 + struct.unpack_from("!H", message, 2)[0]
    while at + 4 <= end:
        name, length = struct.unpack_from("!HH", message, at)
        found.setdefault(name, message[at + 4:at + 4 + length])
        at += 4 + (length + 3) // 4 * 4
    return found


def _mask(transaction: bytes, length: int) -> bytes:
    return (struct.pack("!I", COOKIE) + transaction)[:length]


def _xor(ip: str, port: int, transaction: bytes) -> bytes:
    address = ipaddress.ip_address(ip)
    packed = bytes(a ^ b for a, b in zip(address.packed, _mask(transaction, len(address.packed))))
    return struct.pack("!xBH", 1 if address.version == 4 else 2, port ^ (COOKIE >> 16)) + packed


def _address(value: bytes, transaction: bytes) -> tuple[str, int]:
    port = struct.unpack_from("!H", value, 2)[0] ^ (COOKIE >> 16)
    packed = bytes(a ^ b for a, b in zip(value[4:], _mask(transaction, len(value) - 4)))
    return str(ipaddress.ip_address(packed)), port
