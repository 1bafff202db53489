"""Peers whose address changes: the client's, the worker's, both; into another NAT, or from IPv4 to IPv6."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import flow
from cells import Pair
from flow import Disturbance
from network import Nat
from world import BOTH_FAMILIES, World

HELP = "what it costs when a peer's address changes"
GOAL = 15.0
"""Seconds from the new address to new data."""
WITHOUT = 1.0
"""Seconds without any network between the old one and the new one."""
WHO = {"client": ("client",), "worker": ("worker",), "both": ("client", "worker")}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    flow.add_options(parser)
    parser.add_argument("--who", choices=WHO, action="append", help="who moves [default: each of them]")


def run(options: argparse.Namespace) -> int:
    """Move."""
    who = options.who or list(WHO)
    moves = [move(name, f"{name}: another NAT", home("port-restricted"), home("port-restricted")) for name in who]
    moves += [move(name, f"{name}: from IPv4 to IPv6", at_home_with_both, ipv6_only) for name in who]
    moves += [router_restarts(name) for name in who]
    return flow.run(options, moves)


def home(kind: str) -> Callable[[World], Nat]:
    """A LAN behind a NAT."""
    return lambda world: world.nat(kind)


def at_home_with_both(world: World) -> Nat:
    """A LAN with IPv4 behind a NAT, and IPv6; the host uses IPv4 first."""
    return world.nat("port-restricted", families=BOTH_FAMILIES)


def ipv6_only(world: World) -> Nat:
    """A LAN without IPv4."""
    return world.nat("port-restricted", families=("ipv6",))


def move(name: str, title: str, old: Callable[[World], Nat], new: Callable[[World], Nat]) -> Disturbance:
    """Out of one network and into another. Whoever stays has both families where IPv6 is to be moved to."""
    def build(world: World) -> Pair:
        nats = [old(world) for _ in range(2)]
        stays = nats[0].families
        hosts = []
        for role, nat in zip(("client", "worker"), nats):
            # A mover starts with IPv4 alone, so that it is a change of family.
            families = ("ipv4",) if role in WHO[name] else stays
            hosts.append(world.host(role).join(nat, families))
        goals = [new(world) for _ in WHO[name]]
        return Pair(hosts[0], hosts[1], [*nats, *goals])

    def leave(world: World, pair: Pair) -> None:
        for role in WHO[name]:
            getattr(pair, role).leave()

    def arrive(world: World, pair: Pair) -> None:
        for role, nat in zip(WHO[name], pair.nats[2:]):
            getattr(pair, role).join(nat, nat.families)

    return Disturbance(title, build, leave, arrive, WITHOUT, GOAL)


def router_restarts(name: str) -> Disturbance:
    """The address of the host stays, and its router forgets everything: symmetric, so that each mapping is a new one."""
    def build(world: World) -> Pair:
        nats = [world.nat("symmetric" if role in WHO[name] else "full-cone") for role in ("client", "worker")]
        hosts = [world.host(role).join(nat) for role, nat in zip(("client", "worker"), nats)]
        return Pair(hosts[0], hosts[1], nats)

    def restart(world: World, pair: Pair) -> None:
        for role, nat in zip(("client", "worker"), pair.nats):
            if role in WHO[name]:
                nat.restart()

    return Disturbance(f"{name}: the router restarts", build, restart, lambda world, pair: None, WITHOUT, GOAL)
