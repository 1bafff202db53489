"""Peak memory of both sides for a small and a large package: the large one must not need more.

A disk that stops for a moment lets chunks wait in memory, up to a limit that packages of all sizes share. That is rare: what is sent for long meets it, and
what is sent once and is short does not. So as many bytes are sent in small packages as in large ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

import data
from report import environment, parse_size, say, table, write_json
from tools import Ends, Ours
from transfer import run_one

LOOPBACK = True
"""Has no use for a link."""
MOST = 150e6
"""Bytes that a side may have resident."""
SLACK = 1.1
"""What counts as no more: the same package twice differs by less."""


def measure(size: int, count: int, options: argparse.Namespace, work: Path) -> dict:
    """So many uploads of one size."""
    source = options.source = work / "random"
    options.size = size
    size = data.make("random", source, options)
    runs = []
    for number in range(count):
        runs.append(run_one(Ours, Ends(), options, work, source))
        say(f"  {size / 1e9:.2f} GB, run {number + 1}: {runs[-1].seconds:.1f} s, {runs[-1].rss_sender / 1e6:.0f} MB and {runs[-1].rss_receiver / 1e6:.0f} MB")
    shutil.rmtree(source)
    return {"bytes": size, "rss_sender": max(run.rss_sender for run in runs), "rss_receiver": max(run.rss_receiver for run in runs),
            "runs": [dataclasses.asdict(run) for run in runs]}


def faults(small: dict, large: dict) -> list[str]:
    """What must not be."""
    found = []
    for side in "sender", "receiver":
        before, after = small[f"rss_{side}"], large[f"rss_{side}"]
        if after > before * SLACK:
            found.append(f"the {side} needs {after / 1e6:.0f} MB for the large package and {before / 1e6:.0f} MB for the small one")
        if max(before, after) > MOST:
            found.append(f"the {side} needs {max(before, after) / 1e6:.0f} MB; {MOST / 1e6:.0f} are allowed")
    return found


def run(options: argparse.Namespace, work: Path) -> int:
    """The command."""
    facts = environment(options)
    often = max(1, round(options.large / options.small))
    results = [measure(options.small, options.runs * often, options, work), measure(options.large, options.runs, options, work)]
    rows = [["package GB", "runs", "peak MB sender", "receiver", "wall s"]]
    for result in results:
        rows.append([f"{result['bytes'] / 1e9:.2f}", f"{len(result['runs'])}", f"{result['rss_sender'] / 1e6:.0f}", f"{result['rss_receiver'] / 1e6:.0f}",
                     f"{max(run['seconds'] for run in result['runs']):.1f}"])
    print(table(rows, left=0))
    write_json(options.json, facts, results)
    wrong = faults(*results)
    for fault in wrong:
        say(f"error: {fault}")
    return 1 if wrong else 0


def arguments(command: argparse.ArgumentParser) -> None:
    """Its options."""
    command.add_argument("--small", type=parse_size, default=1 << 30, help="of the one package [default: 1GiB]")
    command.add_argument("--large", type=parse_size, default=20 * 10**9, help="of the other; twice as much disk is needed [default: 20GB]")
    command.add_argument("--runs", type=int, default=2, help="of the large one, and as many bytes in small ones; the table shows the highest peaks [default: 2]")
    command.add_argument("--timeout", type=float, default=3600, help="seconds that one transfer may take [default: 3600]")
