"""From webrtc-server to coturn: what the one gives to an admitted peer, the other accepts."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import NEW, OLD, TURN, environment_of, program
from turn_client import Refused


class Server:
    """The real webrtc-server, on loopback; coturn has a network of its own, and the test stands between them."""

    def __init__(self, folder: Path, secret_file: Path):
        self._process = subprocess.Popen(
            [program("webrtc-server"), "--listen", "127.0.0.1:0", "--store", "memory", "--json", "--turn-secret-file", secret_file,
             "--turn-urls", f"turn:{TURN}:3478?transport=udp,turns:{TURN}:443"],
            cwd=folder, env=environment_of(folder), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._http = json.loads(self._process.stdout.readline())["http"]
        user = self._post("/anonymous-signin", {})
        self._token = user["id_token"]
        self._room = self._post("/create-room", {})

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def ice_server(self, peer: str) -> dict:
        """What this peer is given."""
        host, port = self._http.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            key = base64.b64encode(os.urandom(16)).decode()
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                               f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
            stream = connection.makefile("rb")
            assert b" 101 " in stream.readline()
            while stream.readline().strip():
                pass
            register = {"type": "register", "peer_id": peer, "room_id": self._room["room_id"], "token": self._room["token"],
                        "id_token": self._token, "role": "client"}
            connection.sendall(_frame(json.dumps(register).encode()))
            answer = json.loads(_text(stream))
        assert answer["type"] == "registered_auth", answer
        [ice_server] = answer["ice_servers"]
        return ice_server

    def _post(self, path: str, body: dict) -> dict:
        headers = {"Content-Type": "application/json"}
        if path != "/anonymous-signin":
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._http + path, json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as response:
            return json.load(response)


def _frame(text: bytes) -> bytes:
    mask = os.urandom(4)
    length = bytes([0x80 | len(text)]) if len(text) < 126 else bytes([0x80 | 126]) + struct.pack("!H", len(text))
    return b"\x81" + length + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))


def _text(stream) -> bytes:
    kind, length = stream.read(2)
    assert kind == 0x81, kind
    return stream.read(struct.unpack("!H", stream.read(2))[0] if length == 126 else length)


@pytest.fixture()
def secret_file(lab):
    path = lab.folder / "secret"
    path.write_text(f"{OLD}\n")
    path.chmod(0o600)
    return path


@pytest.fixture()
def server(tmp_path, secret_file):
    server = Server(tmp_path, secret_file)
    yield server
    server.close()


def allocates(lab, ice_server: dict) -> bool:
    try:
        lab.client_with(ice_server["username"], ice_server["credential"]).allocate()
    except Refused as refused:
        assert refused.args[0] == 401
        return False
    return True


def test_coturn_accepts_what_the_server_makes(lab, server):
    lab.start_coturn()
    given = server.ice_server("client-1")
    expiry, peer = given["username"].split(":")
    assert peer == "client-1" and 590 <= int(expiry) - time.time() <= 601
    assert given["urls"] == [f"turn:{TURN}:3478?transport=udp", f"turns:{TURN}:443?transport=tcp"]
    assert allocates(lab, given)
    assert not allocates(lab, {**given, "username": f"{expiry}:client-2"})


def test_the_secret_is_changed_step_by_step_and_nobody_is_refused(lab, server, secret_file):
    lab.start_coturn()
    by_old = server.ice_server("a")
    assert allocates(lab, by_old)
    # 1: coturn learns the new one; 2: the server makes credentials with it; 3: the old one goes.
    secret_file.write_text(f"{OLD}\n{NEW}\n")
    lab.start_coturn()
    assert allocates(lab, by_old) and allocates(lab, server.ice_server("b"))
    secret_file.write_text(f"{NEW}\n{OLD}\n")
    by_new = server.ice_server("c")
    assert allocates(lab, by_old) and allocates(lab, by_new)
    secret_file.write_text(f"{NEW}\n")
    lab.start_coturn()
    assert allocates(lab, by_new) and allocates(lab, server.ice_server("d"))
    assert not allocates(lab, by_old)
