"""A proxy in front of the signaling server whose clock is wrong: it moves the `Date` of every answer by some seconds.

`late.py PORT SERVER SERVER_PORT SECONDS`; one thread a connection, for the lab only.
"""

from __future__ import annotations

import email.utils
import re
import socket
import sys
import threading

DATE = re.compile(rb"(?im)^date: ([^\r\n]+)\r$")


def moved(match: re.Match, seconds: float) -> bytes:
    """The header, so much later."""
    then = email.utils.parsedate_to_datetime(match[1].decode()).timestamp() + seconds
    return b"date: " + email.utils.formatdate(then, usegmt=True).encode() + b"\r"


def carry(source: socket.socket, sink: socket.socket, seconds: float | None) -> None:
    """Bytes from one to the other until either has enough; heads of answers are short and come in one piece."""
    try:
        while data := source.recv(1 << 16):
            if seconds is not None and data.startswith(b"HTTP/"):
                data = DATE.sub(lambda match: moved(match, seconds), data, count=1)
            sink.sendall(data)
    except OSError:
        pass
    finally:
        for end in source, sink:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def main() -> None:
    """Until it is killed."""
    port, server, server_port, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    with socket.create_server(("", port)) as listening:
        while True:
            near, _ = listening.accept()
            far = socket.create_connection((server, server_port))
            threading.Thread(target=carry, args=(near, far, None), daemon=True).start()
            threading.Thread(target=carry, args=(far, near, seconds), daemon=True).start()


if __name__ == "__main__":
    main()
