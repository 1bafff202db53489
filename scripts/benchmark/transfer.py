"""The same data through this program and through what people use otherwise, in one run.

Only what a user would type to send is timed; starting what listens, checking and cleaning up are not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import data
import link as linking
from processes import Memory, busy, processor_time
from report import environment, parse_names, say, table, write_json
from tools import NOT_HERE, TOOLS, Ends, Failed, LinkEnds, OursSingle, Tool, find_program


@dataclasses.dataclass
class Run:
    """What one transfer took: seconds and bytes; `sender` and `receiver` for the two ends."""

    tool: str
    seconds: float
    cpu_sender: float
    cpu_receiver: float
    rss_sender: int
    rss_receiver: int
    sync_seconds: float
    """What writing the rest to the disk took afterwards; next to nothing where the tool had synced."""
    others: float
    """Share of all processors' time that went to neither end meanwhile."""
    load: float
    """The machine's load average at the start."""
    carried: int | None
    """Bytes that went into the link from the sender's side, all headers and repetitions included."""
    link: dict
    resent: int | None
    """Bytes of the package that were sent more than once; only our own client says so."""


def measure(tool: Tool, source: Path, deadline: float) -> Run:
    """One transfer of a folder."""
    receiver = tool.receiver()
    command = [str(word) for word in tool.command(source)]
    os.sync()
    load, before, cpu_before, busy_before = os.getloadavg()[0], tool.ends.traffic(), processor_time(receiver.pid), busy()
    begun = time.monotonic()
    sender = tool.start("send", *command, prefix=[])
    memory = Memory(sender.pid, receiver.pid, descendants=tool.descendants)
    timer = threading.Timer(deadline, sender.kill)
    timer.start()
    try:
        _, status, usage = os.wait4(sender.pid, 0)
        seconds = time.monotonic() - begun
    finally:
        timer.cancel()
        peaks = memory.end()
    sender.returncode = os.waitstatus_to_exitcode(status)
    busy_after, after = busy(), tool.ends.traffic()
    if sender.returncode:
        said = {log.stem: log.read_text(errors="replace").strip().rpartition("\n")[2] for log in sorted(tool.folder.glob("*.log"))}
        raise Failed(f"it ended with {sender.returncode} after {seconds:.1f} s; last words: {json.dumps(said)}")
    cpu_sender, cpu_receiver = usage.ru_utime + usage.ru_stime, tool.settle(receiver) - cpu_before
    arrived = tool.arrived()
    begun = time.monotonic()
    subprocess.run(["sync", "--file-system", arrived], check=True)
    sync_seconds = time.monotonic() - begun
    data.check_same(source, arrived)
    ours = cpu_sender + cpu_receiver
    others = max(0.0, busy_after - busy_before - ours) / (seconds * (os.cpu_count() or 1))
    between = difference(before, after)
    return Run(tool.name, seconds, cpu_sender, cpu_receiver, *peaks, sync_seconds, others, load,
               between["a_to_b"]["bytes"] if between else None, between, tool.resent())


def difference(before: dict, after: dict) -> dict:
    """Counters' growth."""
    return {way: {name: after[way][name] - before[way][name] for name in after[way]} for way in after}


def run_all(ends: Ends, options: argparse.Namespace, work: Path) -> list[dict]:
    """Every data set through every tool, the tools in turn so that a drift of the machine hits all alike."""
    results = []
    for name in options.data:
        source = options.source = work / name
        size = data.make(name, source, options)
        say(f"{name}: {size / 1e6:.0f} MB in {len(list(source.iterdir()))} files")
        runs: dict[str, list[Run]] = {tool: [] for tool in options.tools}
        failures: dict[str, list[str]] = {tool: [] for tool in options.tools}
        for number in range(options.runs):
            for tool in options.tools:
                try:
                    runs[tool].append(run_one(TOOLS[tool], ends, options, work, source))
                    say(f"  run {number + 1}, {tool}: {runs[tool][-1].seconds:.2f} s")
                except (Failed, data.NotTheSame, linking.LinkError) as failure:
                    failures[tool].append(str(failure))
                    say(f"  run {number + 1}, {tool}: failed: {failure}")
        shutil.rmtree(source)
        results += [{"data": name, "bytes": size, "tool": tool, "median": medians(runs[tool]), "failures": failures[tool],
                     "runs": [dataclasses.asdict(run) for run in runs[tool]]} for tool in options.tools]
    return results


def run_one(kind: type[Tool], ends: Ends, options: argparse.Namespace, work: Path, source: Path) -> Run:
    """One transfer in an empty folder, which is removed, unless something failed."""
    folder = Path(tempfile.mkdtemp(prefix=f"{kind.name}.", dir=work))
    tool = kind(ends, folder, options)
    try:
        run = measure(tool, source, options.timeout)
    finally:
        tool.end()
    # What is left behind by a process that is just ending goes with the whole work folder.
    shutil.rmtree(folder, ignore_errors=True)
    return run


def medians(runs: list[Run]) -> dict | None:
    """The median of each number."""
    if not runs:
        return None
    numbers = [field.name for field in dataclasses.fields(Run) if field.name not in ("tool", "link")]
    columns = {name: [value for run in runs if (value := getattr(run, name)) is not None] for name in numbers}
    return {name: statistics.median(values) for name, values in columns.items() if values}


def show(results: list[dict], linked: bool) -> str:
    """The table."""
    head = ["data", "tool", "runs", "wall s", "min-max", "MB/s", "CPU s send", "recv", "RSS MB send", "recv", "then sync s", "others %", "re-sent MB"]
    rows = [head + (["carried/data", "lost", "dropped"] if linked else [])]
    for result in results:
        median, runs = result["median"], result["runs"]
        if not median:
            rows.append([result["data"], result["tool"], "0", f"failed: {result['failures'][0][:70]}"])
            continue
        walls = [run["seconds"] for run in runs]
        row = [result["data"], result["tool"], f"{len(runs)}", f"{median['seconds']:.2f}", f"{min(walls):.2f}-{max(walls):.2f}",
               f"{result['bytes'] / 1e6 / median['seconds']:.1f}", f"{median['cpu_sender']:.2f}", f"{median['cpu_receiver']:.2f}",
               f"{median['rss_sender'] / 1e6:.0f}", f"{median['rss_receiver'] / 1e6:.0f}", f"{median['sync_seconds']:.2f}",
               f"{median['others'] * 100:.0f}", f"{median['resent'] / 1e6:.1f}" if "resent" in median else "-"]
        if linked:
            ways = [run["link"][way] for run in runs for way in run["link"]]
            row += [f"{median['carried'] / result['bytes']:.3f}", f"{sum(way['lost'] for way in ways)}",
                    f"{sum(way['dropped'] + way['overrun'] for way in ways)}"]
        rows.append(row)
    return table(rows)


def run(options: argparse.Namespace, work: Path) -> int:
    """The command."""
    options.tools = present(options.only or list(TOOLS))
    facts = environment(options, link=str(options.link) if options.link else "loopback", runs=options.runs)
    say(f"{facts['link']}; {facts['processors']} processors, load {facts['load'][0]:.1f}")
    if options.link:
        with linking.Link(options.engine, options.link) as link:
            facts["link_real_time"] = link.real_time
            results = run_all(LinkEnds(link), options, work)
    else:
        results = run_all(Ends(), options, work)
    print(show(results, bool(options.link)))
    if not options.only:
        for why in NOT_HERE.values():
            say(f"note: {why}")
    write_json(options.json, {**facts, "not_here": NOT_HERE}, results)
    return 1 if any(result["failures"] for result in results) else 0


def present(names: list[str]) -> list[str]:
    """Those of these tools that are there."""
    known = {**TOOLS, OursSingle.name: OursSingle}
    absent = {name: [need for need in known[name].needs if not find_program(need)] for name in names}
    for name, needs in absent.items():
        if needs:
            say(f"{name} is left out: there is no {', '.join(needs)}")
    return [name for name in names if not absent[name]]


def arguments(command: argparse.ArgumentParser) -> None:
    """Its options."""
    command.add_argument("--files", type=int, default=5000, help="of 10 kB each, in the set of many files [default: 5000]")
    command.add_argument("--data", type=parse_names(data.NAMES), default=data.NAMES, metavar="NAMES", help=f"of {','.join(data.NAMES)} [default: all]")
    command.add_argument("--runs", type=int, default=5, help="of each; the table shows medians [default: 5]")
    command.add_argument("--only", type=parse_names(list(TOOLS)), metavar="NAMES", help=f"of {','.join(TOOLS)} [default: all that are there]")
    command.add_argument("--timeout", type=float, default=900, help="seconds that one transfer may take [default: 900]")
