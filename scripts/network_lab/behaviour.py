"""What a NAT of the lab really does, found out with plain UDP sockets: the lab proves itself before it judges anybody.

RFC 4787's questions, asked as RFC 5780 asks them, but without a protocol: a socket behind the NAT sends to two addresses and two ports of one of them, which say
where they saw it; then they, and others that it never sent to, answer.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from network import Host, Internet, Nat
from space import LabError

PATIENCE = 5.0
"""Seconds within which a datagram that is not lost arrives."""
SILENCE = 0.3
"""Seconds after which one that has not come is taken for dropped, where others that were sent later have arrived."""
EXPECTED = {
    "full-cone": ("endpoint-independent", "endpoint-independent"),
    "address-restricted": ("endpoint-independent", "address-dependent"),
    "port-restricted": ("endpoint-independent", "address-and-port-dependent"),
    "symmetric": ("address-and-port-dependent", "address-and-port-dependent"),
}
"""Mapping and filtering of each kind."""

Address = tuple[str, int]


class Station:
    """UDP sockets on a host."""

    def __init__(self, host: Host):
        self.host = host
        self._process = subprocess.Popen([*host.prefix, sys.executable, str(Path(__file__).with_name("udp.py"))],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _ask(self, **command: object) -> Any:
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"the UDP station on {self.host.name} has ended")
        return json.loads(line)

    def open(self, address: str | None = None, port: int = 0) -> "Socket":
        """A socket on the host's address."""
        address = address or self.host.v4 or self.host.v6
        number, port = self._ask(do="open", address=address, port=port)
        return Socket(self, number, (address, port))

    def close(self) -> None:
        """No more commands; it ends."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __enter__(self) -> "Station":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclasses.dataclass
class Socket:
    """One of them, and its own address."""

    station: Station
    number: int
    address: Address

    def send(self, to: Address, text: str = "hello") -> None:
        """Send a datagram."""
        if complaint := self.station._ask(do="send", socket=self.number, to=list(to), text=text):
            raise LabError(f"{self.station.host.name} cannot send to {to}: {complaint}")

    def receive(self, seconds: float = PATIENCE) -> tuple[str, Address] | None:
        """The next datagram and its sender; `None`: none came."""
        got = self.station._ask(do="receive", socket=self.number, seconds=seconds)
        return (got[0], (got[1][0], got[1][1])) if got else None


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """A NAT in RFC 4787's terms."""

    mapping: str
    filtering: str


def seen(inner: Socket, outer: Socket) -> Address:
    """How the outer socket sees the inner one."""
    inner.send(outer.address)
    got = outer.receive()
    if not got:
        raise LabError(f"nothing came from {inner.station.host.name} to {outer.station.host.name}")
    return got[1]


def behaviour(host: Host, first: Host, second: Host) -> Behaviour:
    """Of whatever is between a host and two public ones."""
    with Station(host) as inside, Station(first) as one, Station(second) as two:
        a, b, c = one.open(), one.open(), two.open()
        x = inside.open()
        at_a, at_b, at_c = seen(x, a), seen(x, b), seen(x, c)
        if at_a == at_b == at_c:
            mapping = "endpoint-independent"
        else:
            mapping = "address-dependent" if at_a == at_b else "address-and-port-dependent"
        y = inside.open()
        outside = seen(y, a)
        b.send(outside, "same address, other port")
        c.send(outside, "other address")
        came = set()
        a.send(outside, "the one asked")
        while got := y.receive(PATIENCE if "the one asked" not in came else SILENCE):
            came.add(got[0])
        if "the one asked" not in came:
            raise LabError(f"an answer from {a.address} does not reach {host.name}")
        if "other address" in came:
            filtering = "endpoint-independent"
        else:
            filtering = "address-dependent" if "same address, other port" in came else "address-and-port-dependent"
        return Behaviour(mapping, filtering)


def hairpins(one: Host, other: Host, outside: Host) -> bool:
    """Whether two hosts behind one NAT reach each other by its outside address."""
    with Station(one) as first, Station(other) as second, Station(outside) as public:
        server = public.open()
        x, y = first.open(), second.open()
        at_x, at_y = seen(x, server), seen(y, server)
        # Either must have sent before the other gets in.
        x.send(at_y, "from x")
        y.send(at_x, "from y")
        x.send(at_y, "from x")
        got = y.receive(PATIENCE / 5)
        return got is not None and got[1] == at_x


def passes(host: Host, outside: Host) -> bool:
    """Whether a datagram of a host reaches a public one, and is answered."""
    with Station(host) as inside, Station(outside) as public:
        server, x = public.open(outside.v4 if host.v4 else outside.v6), inside.open()
        x.send(server.address)
        got = server.receive(PATIENCE / 5)
        if not got:
            return False
        server.send(got[1], "answer")
        return x.receive() is not None


def check(internet: Internet, kind: str, name: str = "check") -> Behaviour:
    """Build a NAT of a kind and find out what it is.

    Raises LabError when it is not what it should be.
    """
    nat = Nat(f"{name}-nat", kind, internet, "192.168.77.0/24")
    hosts = [Host(f"{name}-{word}") for word in ("inside", "one", "two")]
    try:
        hosts[0].join(nat)
        for host in hosts[1:]:
            host.join(internet)
        found = behaviour(*hosts)
    finally:
        for space in (*hosts, nat):
            space.close()
    if (found.mapping, found.filtering) != EXPECTED[kind]:
        raise LabError(f"a NAT that should be {kind} has {found.mapping} mapping and {found.filtering} filtering")
    return found
