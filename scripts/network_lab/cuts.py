"""A path that is cut and comes back: in an upload, in a training; for 5 to 91 seconds, or for ten minutes."""

from __future__ import annotations

import argparse

import flow
from cells import behind
from flow import Disturbance

HELP = "what it costs when the network is away for a while"
SECONDS = [5, 29, 31, 60, 89, 91]
LONG = 600
GOAL = 10.0
"""Seconds from the path's return to new data."""
SIDES = ["client", "worker"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    flow.add_options(parser)
    parser.add_argument("--seconds", type=lambda text: [float(word) for word in text.split(",")], default=SECONDS, metavar="S,…",
                        help=f"how long it is away [default: {','.join(map(str, SECONDS))}]")
    parser.add_argument("--long", action="store_true", help=f"{LONG} s, too")
    parser.add_argument("--side", choices=SIDES, action="append", help="whose line is cut, signaling and all [default: the client's]")
    parser.add_argument("--nats", default="port-restricted/port-restricted", metavar="CLIENT/WORKER", help="[default: %(default)s]")


def run(options: argparse.Namespace) -> int:
    """Cut and mend."""
    client, _, worker = options.nats.partition("/")
    seconds = options.seconds + ([LONG] if options.long else [])
    return flow.run(options, [cut(side, each, client, worker) for side in options.side or SIDES[:1] for each in seconds])


def cut(side: str, seconds: float, client: str = "port-restricted", worker: str = "port-restricted") -> Disturbance:
    """One side's line is dead for a while: everything is dropped, and no interface notices."""
    return Disturbance(f"{side}'s line cut for {seconds:g} s", behind(client, worker), lambda world, pair: getattr(pair, side).cut(),
                       lambda world, pair: getattr(pair, side).mend(), seconds, GOAL)
