"""The signaling server is killed while pairs are at work, and started again: no session breaks, and all are registered again soon."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import re
import time

from flow import TRAINING, count
from network import Host
from programs import Program
from report import environment, say, write_json
from space import LabError
from world import Options, Worker, World

HELP = "what it costs when the signaling server is restarted"
GOAL = 15.0
"""Seconds from the server's start to the last registration."""
SILENCE = 5.0
"""Seconds that a viewer may go without an entry; ten come in a second."""
PATIENCE = 120.0


@dataclasses.dataclass
class Following:
    """A worker at work, and a client that follows."""

    worker: Worker
    worker_host: Host
    client: Program
    client_host: Host


def add_options(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    parser.add_argument("--pairs", type=int, default=20, metavar="N", help="workers with a client each [default: 20]")
    parser.add_argument("--down", type=float, default=5.0, metavar="S", help="seconds without a server [default: 5]")


def run(options: argparse.Namespace) -> int:
    """Kill, start, look."""
    with World(Options(options.bin_dir, options.python, options.engine, options.keep)) as world:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            pairs = list(pool.map(lambda _: follow(world), range(options.pairs)))
        registered = lambda: sockets(world)  # noqa: E731
        wait_until(lambda: registered() == 2 * options.pairs, "all registrations before the restart")
        say(f"{options.pairs} pairs are at work")
        world.server.kill()
        killed = time.monotonic()
        # The silence is the subject here.
        time.sleep(options.down)
        world.server.start()
        started = time.monotonic()
        missed = []
        try:
            wait_until(lambda: registered() == 2 * options.pairs, "all registrations after the restart")
        except LabError:
            missed.append(f"{registered()} of {2 * options.pairs} registered again after {PATIENCE:.0f} s")
        back = time.monotonic() - started
        if not missed and back > GOAL:
            missed.append(f"all registered again after {back:.1f} s, goal {GOAL:g} s")
        silences = [silence(pair.client, killed) for pair in pairs]
        broken = [pair for pair in pairs if any(when > killed for when, _ in pair.client.events("disconnected"))]
        if broken:
            missed.append(f"{len(broken)} sessions broke, one of them because {broken[0].client.events('disconnected')[-1][1]['reason']}")
        if max(silences) > SILENCE:
            missed.append(f"a viewer saw nothing for {max(silences):.1f} s")
        lost = finish(world, pairs)
        if any(map(any, lost)):
            missed.append(f"{sum(one for one, _ in lost)} events missing, {sum(other for _, other in lost)} doubled")
    print("| pairs | server away s | registered again after s | sessions broken | longest silence of a viewer s | events missing / doubled | |\n"
          "|---|---|---|---|---|---|---|")
    print(f"| {options.pairs} | {options.down:g} | {back:.1f} | {len(broken)} | {max(silences):.1f} | {sum(one for one, _ in lost)} / "
          f"{sum(other for _, other in lost)} | {'**missed**' if missed else 'ok'} |")
    for fault in missed:
        say(f"MISSED {fault}")
    if options.json:
        facts = environment(argparse.Namespace(bin_dir=options.bin_dir, rmem_max=None))
        write_json(options.json, facts, {"pairs": options.pairs, "down": options.down, "registered": back, "silences": silences, "missed": missed})
    return 1 if missed else 0


def follow(world: World) -> Following:
    """A pair of public hosts, at work."""
    hosts = [world.host(name).join(world.internet) for name in ("worker", "client")]
    worker = world.worker(hosts[0])
    client = world.train(hosts[1], worker, world.package(1000, TRAINING), "--no-checkpoints")
    client.wait_for(lambda event: event["type"] == "journal" and event["entry"]["event"]["event"] == "batch_ended", PATIENCE)
    return Following(worker, hosts[0], client, hosts[1])


def sockets(world: World) -> int:
    """Registered peers, as the server counts them: each has one socket."""
    found = re.search(r"^webrtc_server_sockets (\d+)", world.ask_server("/metrics"), re.MULTILINE)
    return int(found[1]) if found else 0


def wait_until(condition, what: str) -> None:
    """Ask again and again until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {PATIENCE:.0f} s for {what}")
        time.sleep(0.2)


def silence(client: Program, since: float) -> float:
    """The longest time without an entry."""
    times = [since, *(when for when, _ in client.events("journal") if when > since), time.monotonic()]
    return max(later - earlier for earlier, later in zip(times, times[1:]))


def finish(world: World, pairs: list[Following]) -> list[tuple[int, int]]:
    """Stop everything; what each viewer missed, and saw twice."""
    def stop(pair: Following) -> tuple[int, int]:
        world.client(pair.client_host, pair.worker.invite, "stop").exit_code(PATIENCE)
        pair.client.exit_code(PATIENCE)
        return count(pair.client)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(stop, pairs))
