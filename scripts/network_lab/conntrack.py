#!/usr/bin/env python3
"""Flush the connection tracking of the network namespace that this runs in (the program `conntrack -F` without its package)."""

from __future__ import annotations

import os
import socket
import struct

NETLINK_NETFILTER = 12
CTNETLINK_DELETE = (1 << 8) | 2
"""NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_DELETE, of linux/netfilter/nfnetlink{,_conntrack}.h; without attributes it means everything."""
REQUEST_ACK = 1 | 4


def main() -> None:
    """Ask, and wait for the kernel's answer."""
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), CTNETLINK_DELETE, REQUEST_ACK, 1, 0) + body)
        error, = struct.unpack_from("=i", netlink.recv(4096), 16)
    if error:
        raise OSError(-error, os.strerror(-error))


if __name__ == "__main__":
    main()
