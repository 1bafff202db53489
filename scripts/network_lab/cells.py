"""The networks that two peers can be in, and which way their data should take there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import rules
from network import Host, Nat
from space import Space
from world import BOTH_FAMILIES, World

SOON, SOON_WITHOUT_UDP = 8.0, 10.0
"""Seconds from the client's start to the connection, p95."""
EVERYTHING = ("stun", "udp", "tcp", "tls")
PORTS = (50000, 50050)
DIRECT, RELAYED = "direct", "relayed"


@dataclasses.dataclass
class Pair:
    """A client's machine and a worker's, and the routers around them: the client's, the worker's where it has another one, and further ones."""

    client: Host
    worker: Host
    nats: list[Nat] = dataclasses.field(default_factory=list)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of the worker."""

    @property
    def spaces(self) -> list[Space]:
        """All of it."""
        return [self.client, self.worker, *self.nats]

    def outside(self) -> list[str]:
        """Their addresses as the Internet sees them."""
        uplinks = [self.client.uplink, self.worker.uplink, *(nat.uplink for nat in self.nats)]
        return [address for uplink in uplinks if uplink for address in (uplink.v4, uplink.v6) if address]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One such network."""

    group: str
    name: str
    expected: str
    build: Callable[[World], Pair]
    goal: float = SOON
    turn: tuple[str, ...] = EVERYTHING
    """What the server tells of coturn."""


def path_of(client: str, worker: str) -> str:
    """Which way data should go between NATs of two kinds, or hosts without (`public`).

    A symmetric NAT shows each destination another port, so the other side learns where to send to only from what arrives; a port-restricted
    or symmetric one drops exactly that.
    """
    strict = {"port-restricted", "symmetric"}
    return RELAYED if "symmetric" in (client, worker) and {client, worker} <= strict else DIRECT


def behind(client: str, worker: str) -> Callable[[World], Pair]:
    """Each behind a NAT of its own."""
    def build(world: World) -> Pair:
        nats = [world.nat(kind) for kind in (client, worker)]
        hosts = [world.host(name).join(nat) for name, nat in zip(("client", "worker"), nats)]
        return Pair(hosts[0], hosts[1], nats)
    return build


def open_hosts(families: tuple[str, ...]) -> Callable[[World], Pair]:
    """Both with public addresses."""
    def build(world: World) -> Pair:
        hosts = [world.host(name).join(world.internet, families) for name in ("client", "worker")]
        return Pair(hosts[0], hosts[1])
    return build


def one_lan(kind: str, isolated: bool, hairpin: bool) -> Callable[[World], Pair]:
    """Both behind the same NAT; `isolated`: they do not see each other in their LAN."""
    def build(world: World) -> Pair:
        nat = world.nat(kind, hairpin=hairpin)
        hosts = [world.host(name).join(nat, isolated=isolated) for name in ("client", "worker")]
        return Pair(hosts[0], hosts[1], [nat])
    return build


def same_addresses(world: World) -> Pair:
    """Two homes whose routers came from the same factory: the same subnet, and the same address for both hosts."""
    nats = [world.nat("port-restricted", subnet="192.168.1.0/24") for _ in range(2)]
    hosts = [world.host(name).join(nat) for name, nat in zip(("client", "worker"), nats)]
    return Pair(hosts[0], hosts[1], nats)


def carrier(home: str, carriers: str, worker: str) -> Callable[[World], Pair]:
    """The client's home router is behind its provider's NAT."""
    def build(world: World) -> Pair:
        provider = world.nat(carriers, subnet="100.64.0.0/24")
        nat, office = world.nat(home, provider), world.nat(worker)
        client, there = world.host("client").join(nat), world.host("worker").join(office)
        return Pair(client, there, [nat, office, provider])
    return build


def one_carrier(carriers: str, hairpin: bool) -> Callable[[World], Pair]:
    """Two homes behind the same provider's NAT, whose LAN does not let customers see each other."""
    def build(world: World) -> Pair:
        provider = world.nat(carriers, subnet="100.64.0.0/24", hairpin=hairpin)
        nats = [world.nat("port-restricted", provider) for _ in range(2)]
        for nat in nats:
            nat.uplink.isolate()
        hosts = [world.host(name).join(nat) for name, nat in zip(("client", "worker"), nats)]
        return Pair(hosts[0], hosts[1], [*nats, provider])
    return build


def only_ipv6(client_families: tuple[str, ...], worker_families: tuple[str, ...]) -> Callable[[World], Pair]:
    """Behind routers that filter IPv6 and do not translate it."""
    def build(world: World) -> Pair:
        nats = [world.nat("port-restricted", families=families) for families in (client_families, worker_families)]
        hosts = [world.host(name).join(nat, nat.families) for name, nat in zip(("client", "worker"), nats)]
        return Pair(hosts[0], hosts[1], nats)
    return build


def fenced(client: str | None, worker: str | None, kind: str = "port-restricted") -> Callable[[World], Pair]:
    """Behind NATs with firewalls."""
    def build(world: World) -> Pair:
        pair = behind(kind, kind)(world)
        for nat, name in zip(pair.nats, (client, worker)):
            if name:
                nat.fence(name)
        return pair
    return build


def advertised(client: str) -> Callable[[World], Pair]:
    """The worker's router passes a range of UDP ports on to it, and the worker says under which address; nobody tells it of STUN or TURN."""
    def build(world: World) -> Pair:
        pair = behind(client, "port-restricted")(world)
        office = pair.nats[1]
        office.forward_ports(*PORTS, pair.worker)
        pair.environment = {"WEBRTC_ADVERTISE_IP": office.v4, "WEBRTC_UDP_PORTS": f"{PORTS[0]}-{PORTS[1]}"}
        return pair
    return build


def cells() -> list[Cell]:
    """All of them."""
    made = [Cell("nat", f"{client} / {worker}", path_of(client, worker), behind(client, worker)) for client in rules.KINDS for worker in rules.KINDS]
    made += [
        Cell("other", "public / public", DIRECT, open_hosts(("ipv4",))),
        Cell("other", "same LAN", DIRECT, one_lan("port-restricted", isolated=False, hairpin=False)),
        Cell("other", "same NAT, hairpin", DIRECT, one_lan("port-restricted", isolated=True, hairpin=True)),
        Cell("other", "same NAT, no hairpin", RELAYED, one_lan("port-restricted", isolated=True, hairpin=False)),
        Cell("other", "same private addresses", DIRECT, same_addresses),
        Cell("other", "double NAT / NAT", DIRECT, carrier("port-restricted", "port-restricted", "port-restricted")),
        Cell("other", "double NAT, symmetric / NAT", RELAYED, carrier("port-restricted", "symmetric", "port-restricted")),
        Cell("other", "one carrier, hairpin", DIRECT, one_carrier("full-cone", hairpin=True)),
        Cell("other", "one carrier, no hairpin", RELAYED, one_carrier("port-restricted", hairpin=False)),
        Cell("other", "5 % loss on both sides", DIRECT, fenced("lossy", "lossy")),
        Cell("other", "symmetric / symmetric, 5 % loss", RELAYED, fenced("lossy", "lossy", "symmetric")),
        Cell("other", "IPv6 only, public", DIRECT, open_hosts(("ipv6",))),
        Cell("other", "IPv6 only, firewalls", DIRECT, only_ipv6(("ipv6",), ("ipv6",))),
        Cell("other", "both families, firewalls", DIRECT, only_ipv6(BOTH_FAMILIES, BOTH_FAMILIES)),
        Cell("other", "IPv6 only / IPv4 only", RELAYED, only_ipv6(("ipv6",), ("ipv4",))),
        Cell("other", "symmetric / advertised IP, ports", DIRECT, advertised("symmetric"), turn=()),
    ]
    sides = {"client's": (1, 0), "worker's": (0, 1), "both sides'": (1, 1)}
    for turn, name in (("tcp", "TCP 443"), ("tls", "TLS 443")):
        for side, (client, worker) in sides.items():
            made.append(Cell("blocked", f"{side} UDP dropped, {name}", RELAYED,
                             fenced("udp-dropped" if client else None, "udp-dropped" if worker else None), SOON_WITHOUT_UDP, ("stun", "udp", turn)))
        for fence, what in (("udp-rejected", "UDP rejected"), ("only-tcp-443", "all but TCP 443 dropped")):
            made.append(Cell("blocked", f"both sides' {what}, {name}", RELAYED, fenced(fence, fence), SOON_WITHOUT_UDP, ("stun", "udp", turn)))
    return made


QUICK = ["full-cone / full-cone", "full-cone / symmetric", "symmetric / full-cone", "symmetric / symmetric", "both sides' UDP dropped, TCP 443"]
"""What the tests run: the corners of the matrix, and UDP blocked on both sides."""

