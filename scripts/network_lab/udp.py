#!/usr/bin/env python3
"""UDP sockets on a host of the lab, driven from outside: one JSON command a line on stdin, one JSON answer a line on stdout."""

from __future__ import annotations

import json
import select
import socket
import sys
import time

LONGEST = 2048


def main() -> None:
    """Obey until there are no more commands."""
    sockets: list[socket.socket] = []
    for line in sys.stdin:
        command = json.loads(line)
        answer: object = None
        if command["do"] == "open":
            family = socket.AF_INET6 if ":" in command["address"] else socket.AF_INET
            sockets.append(socket.socket(family, socket.SOCK_DGRAM))
            sockets[-1].bind((command["address"], command.get("port", 0)))
            answer = [len(sockets) - 1, sockets[-1].getsockname()[1]]
        elif command["do"] == "send":
            answer = send(sockets[command["socket"]], command["text"], tuple(command["to"]))
        elif command["do"] == "receive":
            answer = receive(sockets[command["socket"]], command["seconds"])
        print(json.dumps(answer), flush=True)


def send(via: socket.socket, text: str, to: tuple[str, int]) -> str | None:
    """Send; what the kernel says against it."""
    try:
        via.sendto(text.encode(), to)
    except OSError as error:
        return str(error)
    return None


def receive(via: socket.socket, seconds: float) -> list | None:
    """The next datagram and whom it came from; `None`: none came in time."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([via], [], [], left)[0]:
            try:
                data, sender = via.recvfrom(LONGEST)
            except ConnectionError:
                continue
            return [data.decode(errors="replace"), list(sender[:2])]
    return None


if __name__ == "__main__":
    main()
