"""Who connects with whom: the 4 × 4 matrix of NATs, hairpinning, double NAT, IPv6, firewalls without UDP, an advertised address.

For each pair of networks a worker, and a client that sends it 1 MB, several times: did they connect, how soon after the client's start, which way
(what the client says, and where the bytes really went), and did every byte arrive.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import math
import sys
import time

import rules
from cells import QUICK, RELAYED, Cell, Pair, cells
from report import environment, say, write_json
from space import LabError
from world import Options, Worker, World

HELP = "who connects with whom, which way, how soon"
SIZE = 1_000_000
PATIENCE = 90.0
FAILURES = 2
"""After so many a cell is given up."""


@dataclasses.dataclass
class Run:
    """One client's way to the worker."""

    connected: float | None = None
    """Seconds from the client's start."""
    route: str | None = None
    """As the client says it: `direct`, `direct_through_nat`, `relayed`."""
    relayed: int = 0
    direct: int = 0
    """Bytes through coturn and past it, counted in the lab's Internet."""
    whole: bool = False
    """Whether everything arrived as it was sent."""
    error: str | None = None

    @property
    def path(self) -> str:
        """As the client says it, in words."""
        return {None: "none", "direct": "direct", "direct_through_nat": "through NAT"}.get(self.route, self.route)


@dataclasses.dataclass
class Result:
    """What came of a cell."""

    cell: Cell
    runs: list[Run]

    @property
    def times(self) -> list[float]:
        """Seconds, the shortest first."""
        return sorted(run.connected for run in self.runs if run.connected is not None)

    def percentile(self, share: float) -> float | None:
        """Nearest rank."""
        return self.times[math.ceil(share * len(self.times)) - 1] if self.times else None

    def faults(self) -> list[str]:
        """Goals that were missed; none: good."""
        found = [run.error for run in self.runs if run.error]
        for run in self.runs:
            if run.connected is not None and not run.whole and not run.error:
                found.append("not every byte arrived")
            if run.route and (run.route == RELAYED) != (self.cell.expected == RELAYED):
                found.append(f"{run.path} where it should be {self.cell.expected}")
            if run.whole and (run.relayed > SIZE) != (self.cell.expected == RELAYED):
                # The package has a connection of its own, which may have found another way.
                found.append(f"{run.relayed} bytes went through the relay where it should be {self.cell.expected}")
        slow = self.percentile(0.95)
        if slow is not None and slow > self.cell.goal:
            found.append(f"p95 {slow:.1f} s, goal {self.cell.goal:g} s")
        return list(dict.fromkeys(found))

    def facts(self) -> dict:
        """For the JSON file."""
        return {"group": self.cell.group, "name": self.cell.name, "expected": self.cell.expected, "goal": self.cell.goal, "p50": self.percentile(0.5),
                "p95": self.percentile(0.95), "faults": self.faults(), "runs": [vars(run) for run in self.runs]}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="clients for each pair of networks [default: 3]")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="pairs at the same time [default: 1]")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="pairs whose name or group matches, such as 'symmetric / *' or blocked")
    parser.add_argument("--quick", action="store_true", help="the corners of the matrix, and UDP blocked: what the tests run")
    parser.add_argument("--list", action="store_true", help="only say which pairs there are")


def chosen(options: argparse.Namespace) -> list[Cell]:
    """The cells that were asked for."""
    found = cells()
    if options.quick:
        found = [cell for cell in found if cell.name in QUICK]
    if options.only:
        found = [cell for cell in found if any(fnmatch.fnmatch(word, pattern) for pattern in options.only for word in (cell.name, cell.group))]
    if not found:
        raise LabError("no pair has such a name; see --list")
    return found


def run(options: argparse.Namespace) -> int:
    """Measure, show, judge."""
    wanted = chosen(options)
    if options.list:
        for cell in wanted:
            print(f"{cell.group}: {cell.name} ({cell.expected})")
        return 0
    results: list[Result] = []
    begun = time.monotonic()
    with World(Options(options.bin_dir, options.python, options.engine, options.keep)) as world:
        for turn in dict.fromkeys(cell.turn for cell in wanted):
            world.tell(*turn)
            some = [cell for cell in wanted if cell.turn == turn]
            with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
                for result in pool.map(lambda cell: measure(world, cell, options.runs), some):
                    tell(result)
                    results.append(result)
    show(results)
    missed = [result for result in results if result.faults()]
    say(f"{len(results) - len(missed)} of {len(results)} as they should be, in {time.monotonic() - begun:.0f} s")
    if options.json:
        facts = environment(argparse.Namespace(bin_dir=options.bin_dir, rmem_max=None), runs=options.runs)
        write_json(options.json, facts, [result.facts() for result in results])
    return 1 if missed else 0


def measure(world: World, cell: Cell, runs: int) -> Result:
    """One cell: its networks, its worker, its clients one after the other."""
    result = Result(cell, [])
    pair = cell.build(world)
    worker = None
    try:
        worker = world.worker(pair.worker, environment=pair.environment)
        while len(result.runs) < runs and sum(1 for run in result.runs if run.error) < FAILURES:
            result.runs.append(attempt(world, pair, worker))
    except LabError as error:
        result.runs.append(Run(error=f"the worker does not start: {error}"))
    finally:
        if worker:
            world.ended(worker)
        world.remove(*pair.spaces)
    return result


def attempt(world: World, pair: Pair, worker: Worker) -> Run:
    """One client."""
    run = Run()
    package = world.package(SIZE)
    before = world.internet.carried()
    client = world.train(pair.client, worker, package, "--detach")
    try:
        when, connected = client.wait_for("connected", PATIENCE)
        run.connected, run.route = when - client.begun, (connected.get("route") or {}).get("kind")
        code = client.exit_code(PATIENCE)
        run.relayed, run.direct = world.relayed(before, *pair.outside())
        run.whole = world.arrived(worker, package)
        if code:
            run.error = f"exit code {code}: {client.last_words()}"
    except LabError as error:
        run.error = str(error)
    finally:
        with contextlib.suppress(LabError):
            client.end()
    return run


def tell(result: Result) -> None:
    """A line as soon as a cell is done."""
    faults = result.faults()
    times = ", ".join(f"{seconds:.1f}" for seconds in result.times)
    say(f"{'MISSED' if faults else 'ok    '} {result.cell.name}: {paths(result)}{f', connected after {times} s' if times else ''}"
        + "".join(f"\n       {fault}" for fault in faults))


def paths(result: Result) -> str:
    """The ways that were taken."""
    return ", ".join(dict.fromkeys(run.path for run in result.runs))


def short(result: Result) -> str:
    """A cell of the matrix."""
    if not result.times:
        return "**none**"
    text = f"{paths(result)} {result.percentile(0.5):.1f} / {result.percentile(0.95):.1f} s"
    return f"**{text}**" if result.faults() else text


def show(results: list[Result]) -> None:
    """Tables in Markdown: seconds are p50 / p95 from the client's start to the connection; what missed a goal is bold."""
    by_name = {result.cell.name: result for result in results if result.cell.group == "nat"}
    if by_name:
        kinds = [kind for kind in rules.KINDS if any(name.endswith(f" / {kind}") for name in by_name)]
        print("| client behind ↓, worker behind → | " + " | ".join(kinds) + " |\n|" + "---|" * (len(kinds) + 1))
        for client in rules.KINDS:
            row = [by_name.get(f"{client} / {worker}") for worker in kinds]
            if any(row):
                print(f"| {client} | " + " | ".join(short(result) if result else "" for result in row) + " |")
        print()
    rest = [result for result in results if result.cell.group != "nat"]
    if rest:
        print("| networks | expected | path | connected | p50 / p95 s | 1 MB right | |\n|---|---|---|---|---|---|---|")
        for result in rest:
            print(line(result))
    sys.stdout.flush()


def line(result: Result) -> str:
    """A row of the table."""
    times = f"{result.percentile(0.5):.1f} / {result.percentile(0.95):.1f}" if result.times else ""
    whole = sum(run.whole for run in result.runs)
    verdict = "**missed**" if result.faults() else "ok"
    count = len(result.runs)
    return (f"| {result.cell.name} | {result.cell.expected} | {paths(result)} | {len(result.times)} of {count} | {times} | {whole} of {count} | {verdict} |")
