"""Kills one side of an upload again and again, and counts what each kill costs.

What a kill costs is what had been sent and was not on the worker's disk: it travels twice. A client that lives says how much it
has sent; for one that was killed it is what the wire carried, by the share of an undisturbed upload.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import data
import link as linking
from client import Client
from report import environment, parse_names, say, table, write_json
from tools import Ends, Failed, LinkEnds, Ours, OwnLoopback

SIDES = ["worker", "client"]
INSIDE = True
"""Needs a network namespace of its own, also without a link."""
MOST_RESENT = 16 << 20
"""Bytes that a kill may cost: the window."""
SOONEST = 5.0
"""Seconds within which data must flow again."""
PATIENCE = 120.0


@dataclasses.dataclass
class Kill:
    """One kill: where it came, what it cost in bytes, and the seconds from the new start to the first new data on the worker's disk."""

    side: str
    wanted: float
    """Share of the package at which it was wanted, …"""
    at: float
    """… and at which it came."""
    resent: int
    asked: float
    """Until the worker had said what it lacks."""
    back: float


@dataclasses.dataclass
class Life:
    """From a start to the next kill, or to the end: bytes."""

    there: int
    """On the worker's disk when it began."""
    sent: int = 0
    """What the client says it has sent, in this life."""
    carried: int = 0
    """What the wire carried."""


class Upload:
    """An upload that is disturbed at the given points (shares of the package)."""

    def __init__(self, ours: Ours, source: Path, side: str, points: list[float], share: float):
        self.ours, self.source, self.side, self.points = ours, source, side, list(points)
        self.share = share
        """Bytes that the wire carries for each byte of a package."""
        self.kills: list[Kill] = []
        self.worker = ours.receiver()
        self.size = 0
        self.seconds = 0.0
        self._life: Life | None = None
        self._said = 0
        """What the client had sent before this life, as it counts."""
        self._killed: tuple[float, float, float, Life] | None = None
        """The last kill, until its price is known: wanted at, came at, when the side was started again, the life that it ended."""
        self._again: float | None = None
        """When the side that was killed was started again, until new data are on the worker's disk."""
        self._carried = 0

    def run(self) -> None:
        """To the end."""
        begun = time.monotonic()
        self._carried = self._traffic()
        client = self.ours.start_client(self.source)
        while told := client.next(PATIENCE):
            client = self._handle(client, *told)
        if client.process.wait(PATIENCE):
            raise Failed(f"the client ended with {client.process.returncode}: {client.everything()[-1:]}")
        self.seconds = time.monotonic() - begun

    def _traffic(self) -> int:
        return self.ours.ends.traffic()["a_to_b"]["bytes"]

    def _handle(self, client: Client, when: float, event: dict) -> Client:
        """Take an event; the client that runs now."""
        if event["type"] == "plan":
            self.size = event["bytes"]
            self._begin(when, event["already_there"])
        elif event["type"] == "uploading" and self._life:
            position = self.size - event["total"] + event["done"]
            self._life.sent = event["sent"] - self._said
            if event["done"] and not self._killed:
                self._settle(when)
                if self.points and position >= self.points[0] * self.size and event["done"] < event["total"]:
                    return self._kill(client, position)
        elif event["type"] == "uploaded":
            self._settle(when)
        return client

    def _begin(self, when: float, there: int) -> None:
        """A link's upload begins: what the life before has cost is known now."""
        before, self._life = self._life, Life(there)
        if before and self.side == "worker":
            self._said += before.sent
        if self._killed:
            wanted, at, self._again, life = self._killed
            sent = life.sent if self.side == "worker" else life.carried / self.share
            self.kills.append(Kill(self.side, wanted, at, max(0, round(sent - (there - life.there))), when - self._again, 0.0))
            self._killed = None

    def _settle(self, when: float) -> None:
        """New data are on the worker's disk."""
        if self._again is not None:
            kill = self.kills[-1]
            kill.back, self._again = when - self._again, None
            slow = f", {kill.asked:.1f} s of them until the worker had said what it lacks" if kill.back > SOONEST else ""
            say(f"  {kill.side} killed at {kill.at:.1%}: {kill.resent / 1e6:.1f} MB again, back in {kill.back:.1f} s{slow}")

    def _kill(self, client: Client, position: int) -> Client:
        """Kill the side and start it again."""
        wanted, life = self.points.pop(0), self._life
        if self.side == "client":
            client.kill()
        else:
            self.worker.kill()
            self.worker.wait()
        carried = self._traffic()
        life.carried, self._carried = carried - self._carried, carried
        again = time.monotonic()
        self._killed = (wanted, position / self.size, again, life)
        if self.side == "client":
            return self.ours.start_client(self.source)
        self.worker = self.ours.start_worker()
        return client


def points(options: argparse.Namespace) -> list[float]:
    """The shares of the package at which a side is killed."""
    dice = random.Random(options.seed)
    regular = [n * options.every / 100 for n in range(1, 100) if n * options.every < 100] if options.every else []
    return sorted(regular + [dice.uniform(0.01, 0.99) for _ in range(options.random)])


def in_a_folder(ends: Ends, options: argparse.Namespace, work: Path, use: Callable[[Ours], object]) -> object:
    """Run server and worker in an empty folder, which is removed."""
    folder = Path(tempfile.mkdtemp(prefix="resume.", dir=work))
    ours = Ours(ends, folder, options)
    try:
        return use(ours)
    except (Failed, TimeoutError) as failure:
        said = {log.stem: log.read_text(errors="replace").strip().splitlines()[-5:] for log in sorted(folder.glob("*.log"))}
        raise Failed(f"{failure}; last words: {said}") from failure
    finally:
        ours.end()
        shutil.rmtree(folder, ignore_errors=True)


def undisturbed(ours: Ours, source: Path) -> tuple[float, float]:
    """An upload that nobody disturbs: its seconds, and what the wire carries for each byte."""
    upload = Upload(ours, source, "client", [], 1.0)
    before = ours.ends.traffic()["a_to_b"]["bytes"]
    upload.run()
    return upload.seconds, (ours.ends.traffic()["a_to_b"]["bytes"] - before) / upload.size


def disturbed(ours: Ours, source: Path, side: str, options: argparse.Namespace, share: float) -> dict:
    """An upload with kills; what it took."""
    upload = Upload(ours, source, side, points(options), share)
    upload.run()
    data.check_same(source, ours.arrived())
    again = sum(kill.resent for kill in upload.kills)
    return {"side": side, "seconds": upload.seconds, "bytes": upload.size, "kills": [dataclasses.asdict(kill) for kill in upload.kills],
            "missed": upload.points, "resent": again, "resent_most": max((kill.resent for kill in upload.kills), default=0),
            "back_most": max((kill.back for kill in upload.kills), default=0.0)}


def show(results: list[dict], reference: float) -> str:
    """The table."""
    rows = [["killed", "kills", "missed", "re-sent MB median", "most", "total %", "back s median", "most", "wall s", "undisturbed"]]
    for result in results:
        kills = result["kills"] or [{"resent": 0, "back": 0.0}]
        rows.append([result["side"], f"{len(result['kills'])}", f"{len(result['missed'])}",
                     f"{statistics.median(kill['resent'] for kill in kills) / 1e6:.1f}", f"{result['resent_most'] / 1e6:.1f}",
                     f"{result['resent'] / result['bytes'] * 100:.1f}", f"{statistics.median(kill['back'] for kill in kills):.1f}",
                     f"{result['back_most']:.1f}", f"{result['seconds']:.1f}", f"{reference:.1f}"])
    return table(rows, left=1)


def faults(result: dict) -> list[str]:
    """What must not be."""
    found = []
    if result["resent_most"] > MOST_RESENT:
        found.append(f"a kill of the {result['side']} cost {result['resent_most'] / (1 << 20):.1f} MiB; {MOST_RESENT >> 20} are allowed")
    if result["missed"]:
        found.append(f"the upload was over before {len(result['missed'])} of the kills; make it slower with --link, or --size larger")
    return found


def measure(ends: Ends, options: argparse.Namespace, work: Path) -> tuple[float, float, list[dict]]:
    """All uploads."""
    source = work / "random"
    size = data.make("random", source, options)
    say(f"random: {size / 1e6:.0f} MB; undisturbed first")
    reference, share = in_a_folder(ends, options, work, lambda ours: undisturbed(ours, source))
    say(f"  {reference:.1f} s, {share:.3f} bytes on the wire for each")
    return reference, share, [in_a_folder(ends, options, work, lambda ours: disturbed(ours, source, side, options, share))
                              for side in options.kill]


def run(options: argparse.Namespace, work: Path) -> int:
    """The command."""
    facts = environment(options, link=str(options.link) if options.link else "loopback")
    if options.link:
        with linking.Link(options.engine, options.link) as link:
            reference, share, results = measure(LinkEnds(link), options, work)
    else:
        reference, share, results = measure(OwnLoopback(), options, work)
    print(show(results, reference))
    write_json(options.json, {**facts, "undisturbed_seconds": reference, "wire_share": share}, results)
    wrong = [fault for result in results for fault in faults(result)]
    for fault in wrong:
        say(f"error: {fault}")
    slow = max((result["back_most"] for result in results), default=0.0)
    if slow > SOONEST:
        say(f"slow: {slow:.1f} s until data flowed again; {SOONEST:.0f} s are the goal")
    return 1 if wrong else 0


def arguments(command: argparse.ArgumentParser) -> None:
    """Its options."""
    command.add_argument("--kill", type=parse_names(SIDES), default=SIDES, metavar="NAMES", help="of worker,client [default: both]")
    command.add_argument("--every", type=int, default=10, metavar="PERCENT", help="kill at every so many percent; 0: not [default: 10]")
    command.add_argument("--random", type=int, default=20, metavar="N", help="and at so many random points [default: 20]")
    command.add_argument("--seed", type=int, default=1, help="of the random points [default: 1]")
