#!/usr/bin/env python3
"""A folder's files through one TCP connection, as fast as Python's standard library can: what `scripts/bench` calls tcp.

`send ADDRESS PORT FOLDER` · `receive ADDRESS PORT FOLDER`, which takes one connection. The sender ends when the receiver
has said that it has written everything (into the page cache; nothing is checked or synced).
"""

import json
import os
import socket
import sys
from pathlib import Path


def send(address: str, port: int, folder: Path) -> None:
    """List of names and sizes as one line of JSON, then the files' bytes."""
    files = [(path, path.stat().st_size) for path in sorted(folder.iterdir())]
    with socket.create_connection((address, port)) as connection:
        connection.sendall(json.dumps([(path.name, size) for path, size in files]).encode() + b"\n")
        for path, size in files:
            with open(path, "rb") as file:
                sent = 0
                while sent < size:
                    sent += os.sendfile(connection.fileno(), file.fileno(), sent, size - sent)
        if connection.recv(1) != b"!":
            sys.exit("the receiver did not get everything")


def receive(address: str, port: int, folder: Path) -> None:
    """Take what `send` sends."""
    with socket.create_server((address, port)) as listener:
        connection = listener.accept()[0]
    with connection, connection.makefile("rb", buffering=1 << 20) as stream:
        buffer = memoryview(bytearray(1 << 20))
        for name, size in json.loads(stream.readline()):
            with open(folder / name, "xb", buffering=0) as file:
                while size:
                    length = stream.readinto(buffer[:min(size, len(buffer))])
                    if not length:
                        sys.exit("the sender went away")
                    file.write(buffer[:length])
                    size -= length
        connection.sendall(b"!")


if __name__ == "__main__":
    {"send": send, "receive": receive}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
