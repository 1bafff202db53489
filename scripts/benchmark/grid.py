"""Throughput over links of given rate, round trip and loss: ours, ours with one connection, scp and rsync over the same link.

Each transfer has a deadline; of one that did not make it, what had arrived by then counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import data
import link as linking
from client import Client
from link import Link, Settings, parse_link
from report import environment, parse_names, say, table, write_json
from tools import Failed, LinkEnds, Ours, OursSingle, Rsync, Scp, Tool
from transfer import present

INSIDE = LOOPBACK = True
"""Makes its own links, and so needs a network namespace."""
TOOLS: dict[str, type[Tool]] = {tool.name: tool for tool in (Ours, OursSingle, Scp, Rsync)}
MOST_ROUND_TRIP = 300
"""Milliseconds that a control round trip may take beside an upload."""


@dataclasses.dataclass
class Run:
    """One transfer over a link."""

    tool: str
    bytes: int
    """That arrived, in …"""
    seconds: float
    """… from the start of the command to its end, or to the deadline."""
    finished: bool
    rate: float
    """Bytes of content a second."""
    share: float
    """Of the link's rate."""
    carried: int
    """Bytes on the link from the sender's side."""
    link: dict
    sent: int | None = None
    """Bytes that our client says it has sent of the package."""
    round_trips: list[int] = dataclasses.field(default_factory=list)
    """Control round trips beside the transfer, in milliseconds."""


Found = dict[str, Run]


@dataclasses.dataclass(frozen=True)
class Case:
    """A link, and what must be so there."""

    link: Settings
    goal: str = ""
    met: Callable[[Found], bool] = lambda found: True


def share_of(least: float) -> Callable[[Found], bool]:
    """Ours reaches at least this share of the link."""
    return lambda found: found[Ours.name].share >= least


def mbit(least: float) -> Callable[[Found], bool]:
    """Ours reaches at least so many Mbit/s."""
    return lambda found: found[Ours.name].rate * 8 >= least * 1e6


def quick_beside(found: Found) -> bool:
    """Ours fills the link and leaves room for control."""
    trips = found[Ours.name].round_trips
    return share_of(0.8)(found) and bool(trips) and max(trips) < MOST_ROUND_TRIP


def times(factor: float, other: str) -> Callable[[Found], bool]:
    """Ours is so many times as fast as another; so where that one was not measured."""
    return lambda found: other not in found or found[Ours.name].rate >= factor * found[other].rate


R25 = {0: 400, 20: 300, 50: 200, 100: 100, 200: 50}
"""Round trip in milliseconds: Mbit/s that a loss-free link must give."""
SETS: dict[str, list[Case]] = {
    "main": [
        Case(parse_link("1gbit,25ms,0"), "80 % of the link", share_of(0.8)),
        Case(parse_link("100mbit,15ms,0.05%"), "80 % of the link", share_of(0.8)),
        Case(parse_link("20mbit,20ms,0"), f"80 % of the link, control under {MOST_ROUND_TRIP} ms", quick_beside),
        Case(parse_link("1gbit,25ms,0.1%"), "10 times one connection", times(10, OursSingle.name)),
        Case(parse_link("100mbit,100ms,1%"), "faster than scp", times(1, Scp.name)),
    ],
    "round-trips": [
        Case(Settings(10**9, trip / 2000, loss / 100), *((f"{least} Mbit/s", mbit(least)) if not loss else ()))
        for trip, least in R25.items() for loss in (0, 0.1, 1)
    ],
}


def transfer(tool: Tool, source: Path, size: int, deadline: float) -> Run:
    """One transfer."""
    tool.receiver()
    rate = tool.ends.rate
    before = tool.ends.traffic()
    begun = time.monotonic()
    client = tool.start_client(source) if isinstance(tool, Ours) else None
    process = client.process if client else tool.start("send", *tool.command(source), prefix=[])
    try:
        finished = process.wait(deadline) == 0
        if not finished:
            raise Failed(f"it ended with {process.returncode}: {tail(tool, client)}")
    except subprocess.TimeoutExpired:
        finished = False
    seconds = time.monotonic() - begun
    after = tool.ends.traffic()
    here = size if finished else acknowledged(client) if client else tool.here()
    process.kill()
    process.wait()
    if finished:
        data.check_same(source, tool.arrived())
    between = {way: {name: after[way][name] - before[way][name] for name in after[way]} for way in after}
    run = Run(tool.name, here, seconds, finished, here / seconds, here / seconds * 8 / rate, between["a_to_b"]["bytes"], between)
    if client:
        run.round_trips = round_trips(client)
        run.sent = max((event["sent"] for _, event in client.everything() if event["type"] in ("uploading", "uploaded")), default=0)
    return run


def tail(tool: Tool, client: Client | None) -> str:
    """The last words."""
    if client:
        return str(client.everything()[-1:])
    return (tool.folder / "send.log").read_text(errors="replace").strip()[-300:]


def acknowledged(client: Client) -> int:
    """Bytes on the worker's disk, as the client last heard."""
    return max((event["done"] for _, event in client.everything() if event["type"] == "uploading"), default=0)


def round_trips(client: Client) -> list[int]:
    """The control round trips that were told while data flowed."""
    told = [event.get("round_trip_ms") for _, event in client.everything() if event["type"] == "uploading" and 0 < event["done"] < event["total"]]
    return [milliseconds for milliseconds in told if milliseconds is not None]


class GridEnds(LinkEnds):
    """The ends of a link whose rate is known."""

    def __init__(self, link: Link, rate: int):
        super().__init__(link)
        self.rate = rate


def run_case(case: Case, options: argparse.Namespace, work: Path) -> dict:
    """Every tool over one link."""
    rate = case.link.rate or 10**9
    size = max(4 << 20, round(rate / 8 * options.seconds))
    source = options.source = work / "random"
    options.size = size
    size = data.make("random", source, options)
    say(f"{case.link}: {size / 1e6:.0f} MB")
    found: Found = {}
    failures: dict[str, str] = {}
    with Link(options.engine, case.link) as link:
        for name in options.tools:
            try:
                found[name] = run_tool(TOOLS[name], GridEnds(link, rate), options, work, size)
                run = found[name]
                say(f"  {name}: {run.rate / 1e6:.1f} MB/s, {run.share:.0%} of the link{'' if run.finished else ', not finished'}")
            except (Failed, data.NotTheSame, linking.LinkError) as failure:
                failures[name] = str(failure)
                say(f"  {name}: failed: {failure}")
    shutil.rmtree(source)
    met = case.met(found) if Ours.name in found else False
    return {"link": str(case.link), "goal": case.goal, "met": met, "failures": failures,
            "runs": {name: dataclasses.asdict(run) for name, run in found.items()}}


def run_tool(kind: type[Tool], ends: GridEnds, options: argparse.Namespace, work: Path, size: int) -> Run:
    """One transfer in an empty folder, which is removed."""
    folder = Path(tempfile.mkdtemp(prefix=f"{kind.name}.", dir=work))
    tool = kind(ends, folder, options)
    try:
        return transfer(tool, options.source, size, options.seconds * options.patience)
    finally:
        tool.end()
        shutil.rmtree(folder, ignore_errors=True)


def show(results: list[dict]) -> str:
    """The table."""
    rows = [["link", "tool", "MB/s", "% of link", "seconds", "carried/data", "re-sent %", "control ms p50", "max", "goal"]]
    for result in results:
        for name, run in result["runs"].items():
            trips = run["round_trips"]
            goal = f"{result['goal']}: {'ok' if result['met'] else 'MISSED'}" if result["goal"] and name == Ours.name else ""
            rows.append([result["link"], name, f"{run['rate'] / 1e6:.2f}", f"{run['share'] * 100:.0f}",
                         f"{run['seconds']:.1f}{'' if run['finished'] else '…'}", f"{run['carried'] / max(run['bytes'], 1):.3f}",
                         f"{max(0, run['sent'] - run['bytes']) / max(run['bytes'], 1) * 100:.1f}" if run["finished"] and run["sent"] else "",
                         f"{statistics.median(trips):.0f}" if trips else "", f"{max(trips)}" if trips else "", goal])
        rows += [[result["link"], name, f"failed: {failure[:90]}"] for name, failure in result["failures"].items()]
    return table(rows)


def run(options: argparse.Namespace, work: Path) -> int:
    """The command."""
    options.tools = [name for name in present(options.only)]
    cases = [Case(link) for link in options.links] or [case for name in options.set for case in SETS[name]]
    facts = environment(options, seconds=options.seconds)
    say(f"{len(cases)} links; {facts['processors']} processors, load {facts['load'][0]:.1f}")
    results = [run_case(case, options, work) for case in cases]
    print(show(results))
    write_json(options.json, facts, results)
    return 1 if any(result["failures"] or not result["met"] for result in results) else 0


def arguments(command: argparse.ArgumentParser) -> None:
    """Its options."""
    command.add_argument("--set", type=parse_names(list(SETS)), default=list(SETS), metavar="NAMES", help="of main,round-trips [default: both]")
    command.add_argument("--links", type=parse_link, action="append", default=[], metavar="RATE,DELAY,LOSS[,QUEUE]",
                         help="this link instead (delay one way); may be given several times")
    command.add_argument("--only", type=parse_names(list(TOOLS)), default=list(TOOLS), metavar="NAMES", help=f"of {','.join(TOOLS)} [default: all]")
    command.add_argument("--seconds", type=float, default=20, help="that the data would take at the link's full rate [default: 20]")
    command.add_argument("--patience", type=float, default=3, help="times so long until a transfer is broken off [default: 3]")
