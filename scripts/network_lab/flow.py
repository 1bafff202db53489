"""Work that is disturbed: an upload or a training that is followed, what happens to its network, and what that has cost.

A disturbance is two steps, such as cut and mend; the clock runs from the end of the second one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cells import Pair
from programs import Event, Program
from report import environment, say, write_json
from space import LabError
from world import Options, Worker, World

UPLOAD_SIZE = 48 << 20
UPLOAD_RATE = 40.0
"""Mbit/s: about ten seconds."""
TRAINING = "max_epochs: 1000000, batches: 20, rate: 10, model_bytes: 20000"
BEGIN = 0.25
"""Share of the upload after which it is disturbed."""
WINDOW = 16 << 20
"""Bytes that a break may cost."""
STOPS = 3
PATIENCE = 120.0
"""Seconds after which work that has not come back is given up."""
PHASES = ["upload", "training"]


@dataclasses.dataclass
class Outcome:
    """What a disturbance has cost."""

    name: str
    phase: str
    goal: float
    back: float | None = None
    """Seconds from the end of the disturbance to the first new data."""
    connections: int = 0
    """Further connections that were made for it; 0: the first one lived on."""
    resumed: bool | None = None
    """Whether the worker still held the session at the last of them."""
    told: list[str] = dataclasses.field(default_factory=list)
    """What the user was told meanwhile."""
    resent: int | None = None
    """Bytes of the package that were sent twice."""
    missing: int = 0
    doubled: int = 0
    """Journal entries."""
    error: str | None = None

    def faults(self) -> list[str]:
        """Goals that were missed; none: good."""
        found = [self.error] if self.error else []
        if self.back is not None and self.back > self.goal:
            found.append(f"data again after {self.back:.1f} s, goal {self.goal:g} s")
        if self.resent is not None and self.resent > WINDOW:
            found.append(f"{self.resent / 1e6:.1f} MB sent twice")
        if self.missing or self.doubled:
            found.append(f"{self.missing} events missing, {self.doubled} doubled")
        return found


@dataclasses.dataclass
class Disturbance:
    """What happens to the network of a pair."""

    name: str
    build: Callable[[World], Pair]
    begin: Callable[[World, Pair], None]
    end: Callable[[World, Pair], None]
    seconds: float
    """From `begin` to `end`."""
    goal: float
    turn: tuple[str, ...] = ()


class Work(Protocol):
    """Something that goes on between a client and a worker, and can be disturbed."""

    client: Program

    def wait_for_more(self) -> float:
        """When there is something new, compared with what the client knows of now."""

    def progress(self) -> list[float]:
        """When there was something new, each time so far."""

    def finish(self, outcome: Outcome) -> None:
        """To its end, and what it has cost."""


class Upload:
    """A package that is on its way."""

    def __init__(self, world: World, pair: Pair, worker: Worker):
        self.world, self.worker = world, worker
        self.package = world.package(UPLOAD_SIZE)
        pair.client.shape(UPLOAD_RATE)
        self.client = world.train(pair.client, worker, self.package, "--detach")
        self.client.wait_for(lambda event: event["type"] == "uploading" and event["done"] >= BEGIN * UPLOAD_SIZE)

    def wait_for_more(self) -> float:
        """When something new is on the worker's disk, compared with what the client knows of now."""
        known = max((event["done"] for _, event in self.client.events("uploading")), default=0)
        when, _ = self.client.wait_for(
            lambda event: event["type"] == "uploaded" or (event["type"] == "uploading" and event["done"] > known), PATIENCE)
        return when

    def progress(self) -> list[float]:
        """When something new was known to be on the worker's disk."""
        found, most = [], -1
        for when, event in self.client.events():
            if event["type"] == "uploaded" or (event["type"] == "uploading" and event["done"] > most):
                found.append(when)
                most = event.get("done", most)
        return found

    def finish(self, outcome: Outcome) -> None:
        """To its end, and what it says then."""
        code = self.client.exit_code(PATIENCE)
        if code:
            raise LabError(f"exit code {code}: {self.client.last_words()}")
        if not self.world.arrived(self.worker, self.package):
            raise LabError("not every byte arrived")
        sent = max((event["sent"] for _, event in self.client.events() if event["type"] in ("uploading", "uploaded")), default=0)
        outcome.resent = max(0, sent - UPLOAD_SIZE - _rest(self.package))


class Training:
    """A training that somebody follows."""

    def __init__(self, world: World, pair: Pair, worker: Worker):
        self.world, self.pair, self.worker = world, pair, worker
        package = world.package(1000, TRAINING)
        self.client = world.train(pair.client, worker, package, "--no-checkpoints")
        self.client.wait_for(lambda event: _entry(event).get("event") == "batch_ended")

    def wait_for_more(self) -> float:
        """When an entry comes that the client does not know now."""
        known = max((event["entry"]["seq"] for _, event in self.client.events("journal")), default=0)
        when, _ = self.client.wait_for(lambda event: event["type"] == "journal" and event["entry"]["seq"] > known, PATIENCE)
        return when

    def progress(self) -> list[float]:
        """When a new entry was shown."""
        return [when for when, _ in self.client.events("journal")]

    def finish(self, outcome: Outcome) -> None:
        """Stop it, and count what was shown."""
        for _ in range(STOPS):
            # Another client, whose way to the worker is not the subject here.
            stop = self.world.client(self.pair.client, self.worker.invite, "stop")
            if not stop.exit_code(PATIENCE):
                break
        else:
            raise LabError(f"stop failed: {stop.last_words()}")
        code = self.client.exit_code(PATIENCE)
        if code:
            raise LabError(f"exit code {code}: {self.client.last_words()}")
        outcome.missing, outcome.doubled = count(self.client)


def count(client: Program) -> tuple[int, int]:
    """Journal entries that were not shown, those of the trainer that never came into the journal among them, and entries shown twice."""
    entries = [event["entry"] for _, event in client.events("journal")]
    seqs = [entry["seq"] for entry in entries]
    lost = sum(1 for entry in entries if entry["event"]["event"] == "gap")
    if not entries or entries[-1]["event"]["event"] != "job_ended":
        lost += 1
    return max(seqs, default=1) - len(set(seqs)) + lost, len(seqs) - len(set(seqs))


def _entry(event: Event) -> dict:
    return event["entry"]["event"] if event["type"] == "journal" else {}


def _rest(package: Path) -> int:
    """The package's bytes besides its data."""
    return sum(path.stat().st_size for path in package.iterdir()) - (package / "data.bin").stat().st_size


WORK: dict[str, Callable[[World, Pair, Worker], Work]] = {"upload": Upload, "training": Training}


def disturb(world: World, disturbance: Disturbance, phase: str) -> Outcome:
    """One disturbance of one kind of work."""
    outcome = Outcome(disturbance.name, phase, disturbance.goal)
    pair: Pair | None = None
    worker: Worker | None = None
    work: Work | None = None
    before = 0
    try:
        pair = disturbance.build(world)
        worker = world.worker(pair.worker, environment=pair.environment)
        work = WORK[phase](world, pair, worker)
        before = len(work.client.events())
        begun = time.monotonic()
        disturbance.begin(world, pair)
        wait(work.client, disturbance.seconds)
        work.client.skip()
        disturbance.end(world, pair)
        ended = time.monotonic()
        outcome.back = max(0.0, work.wait_for_more() - ended)
        work.finish(outcome)
        outcome.back = max(0.0, end_of_silence(work.progress(), begun) - ended)
    except LabError as error:
        outcome.error = str(error)
    finally:
        if work:
            note(outcome, work.client, before)
            with contextlib.suppress(LabError):
                work.client.end(3.0)
        if worker:
            world.ended(worker)
        if pair:
            world.remove(*pair.spaces)
    return outcome


def end_of_silence(times: list[float], since: float) -> float:
    """When the longest silence since then ended: what was on its way already may still have come in the beginning."""
    times = [since, *(when for when in times if when > since)]
    return max(zip(times, times[1:]), key=lambda pair: pair[1] - pair[0], default=(since, since))[1]


def wait(client: Program, seconds: float) -> None:
    """Let so much time pass, unless the client ends."""
    # The silence is the subject here.
    deadline = time.monotonic() + seconds
    while client.running() and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, 0.5))


def note(outcome: Outcome, client: Program, before: int) -> None:
    """What the client said since it was disturbed, besides the work itself."""
    for _, event in client.events()[before:]:
        if event["type"] == "connected":
            outcome.connections += 1
            outcome.resumed = event["resumed"]
        elif event["type"] == "disconnected":
            outcome.told.append(event["reason"])


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every command here takes."""
    parser.add_argument("--phase", choices=PHASES, action="append", help="only this kind of work [default: both]")
    parser.add_argument("--jobs", type=int, default=4, metavar="N", help="cases at the same time; most of it is waiting [default: 4]")
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="how often each [default: 1]")


def run(options: argparse.Namespace, disturbances: list[Disturbance]) -> int:
    """Disturb, show, judge."""
    cases = [(disturbance, phase) for disturbance in disturbances for phase in options.phase or PHASES for _ in range(options.runs)]
    # The longest first, so that nobody waits for it alone at the end.
    cases.sort(key=lambda case: -case[0].seconds)
    with World(Options(options.bin_dir, options.python, options.engine, options.keep)) as world:
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            futures = [pool.submit(disturb, world, *case) for case in cases]
            outcomes = []
            for future in concurrent.futures.as_completed(futures):
                outcomes.append(future.result())
                tell(outcomes[-1])
    places = {disturbance.name: place for place, disturbance in enumerate(disturbances)}
    outcomes.sort(key=lambda outcome: (outcome.phase, places[outcome.name]))
    show(outcomes)
    if options.json:
        facts = environment(argparse.Namespace(bin_dir=options.bin_dir, rmem_max=None))
        write_json(options.json, facts, [{**dataclasses.asdict(outcome), "faults": outcome.faults()} for outcome in outcomes])
    return 1 if any(outcome.faults() for outcome in outcomes) else 0


def tell(outcome: Outcome) -> None:
    """A line as soon as a case is done."""
    faults = outcome.faults()
    back = "" if outcome.back is None else f": data again after {outcome.back:.1f} s"
    say(f"{'MISSED' if faults else 'ok    '} {outcome.phase}, {outcome.name}{back}" + "".join(f"\n       {fault}" for fault in faults))


def show(outcomes: list[Outcome]) -> None:
    """A table in Markdown."""
    print("| work | disturbance | data again after s | goal | new connections | session kept | sent twice MB | events missing / doubled | |\n"
          "|---|---|---|---|---|---|---|---|---|")
    for outcome in outcomes:
        back = "never" if outcome.back is None else f"{outcome.back:.1f}"
        kept = {None: "", True: "yes", False: "no"}[outcome.resumed]
        resent = "" if outcome.resent is None else f"{outcome.resent / 1e6:.1f}"
        events = f"{outcome.missing} / {outcome.doubled}" if outcome.phase == "training" and not outcome.error else ""
        print(f"| {outcome.phase} | {outcome.name} | {back} | {outcome.goal:g} | {outcome.connections} | {kept} | {resent} | {events} | "
              f"{'**missed**' if outcome.faults() else 'ok'} |")
