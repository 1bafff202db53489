"""What travels when a package that sleap-io wrote is changed a little and submitted again.

Each change is tried against a worker that has the first package and nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import data
from report import absolute, environment, say, table, write_json
from tools import Ends, Failed, Ours

GOALS: dict[str, float | None] = {"edited": 0.01, "appended": 0.03, "inserted": 0.03, "renamed": 0.001, "longest": None}
"""Share of the package that may travel; `None`: nothing is asked."""
WORDS = {"edited": "a label edited", "appended": "20 frames appended", "inserted": "20 frames inserted in front", "renamed": "file renamed",
         "longest": "one frame appended, the longest"}
PATIENCE = 120.0
LOOPBACK = True
"""Has no use for a link."""


def make_packages(options: argparse.Namespace, work: Path) -> None:
    """The packages as folders, each with its labels and a configuration."""
    script = Path(__file__).with_name("sleap_packages.py")
    done = subprocess.run([options.venv / "bin/python", script, work, str(options.frames), str(options.pixels)], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"sleap-io could not write the packages: {done.stderr.strip()[-2000:]}")
    for name in "first", *GOALS:
        (work / name / "bench.yaml").write_text("# for scripts/bench\nnone: {}\n")


def submit(ours: Ours, source: Path) -> dict:
    """Submit a package; its bytes, and how many of them were sent."""
    client = ours.start_client(source)
    found: dict = {}
    while told := client.next(PATIENCE):
        _, event = told
        if event["type"] == "plan":
            found["bytes"] = event["bytes"]
        elif event["type"] == "uploaded":
            found["sent"] = event["sent"]
    if client.process.wait(PATIENCE) or "sent" not in found:
        raise Failed(f"the client ended with {client.process.returncode}: {client.everything()[-1:]}")
    return found


def try_change(change: str, options: argparse.Namespace, work: Path) -> dict:
    """Submit the first package and then the changed one."""
    folder = Path(tempfile.mkdtemp(prefix="resubmit.", dir=work))
    ours = Ours(Ends(), folder, options)
    try:
        ours.receiver()
        first = submit(ours, work / "first")
        found = submit(ours, work / change)
        arrived = [place.parent for place in (folder / "worker").rglob("bench.yaml")]
        if not any(same(work / change, place) for place in arrived):
            raise data.NotTheSame(f"{change} did not arrive as it was sent")
    finally:
        ours.end()
        shutil.rmtree(folder, ignore_errors=True)
    share = found["sent"] / found["bytes"]
    say(f"  {WORDS[change]}: {share:.2%}")
    return {"change": change, **found, "share": share, "goal": GOALS[change], "first": first}


def same(sent: Path, arrived: Path) -> bool:
    """Whether a package has arrived in this folder."""
    try:
        data.check_same(sent, arrived)
    except data.NotTheSame:
        return False
    return True


def missed(result: dict) -> bool:
    """Whether more travelled than should."""
    return result["goal"] is not None and result["share"] > result["goal"]


def show(results: list[dict]) -> str:
    """The table."""
    rows = [["change", "package MB", "sent MB", "sent %", "goal %", ""]]
    for result in results:
        rows.append([WORDS[result["change"]], f"{result['bytes'] / 1e6:.1f}", f"{result['sent'] / 1e6:.3f}", f"{result['share'] * 100:.2f}",
                     *((f"{result['goal'] * 100:g}", "MISSED" if missed(result) else "ok") if result["goal"] is not None else ("-", ""))])
    return table(rows, left=1)


def run(options: argparse.Namespace, work: Path) -> int:
    """The command."""
    facts = environment(options, frames=options.frames, pixels=options.pixels)
    say(f"{options.frames} frames of {options.pixels} × {options.pixels}")
    make_packages(options, work)
    results = [try_change(change, options, work) for change in GOALS]
    print(show(results))
    write_json(options.json, facts, results)
    return 1 if any(missed(result) for result in results) else 0


def arguments(command: argparse.ArgumentParser) -> None:
    """Its options."""
    command.add_argument("--venv", type=absolute, required=True, help="an environment that has sleap-io and opencv; by default one is made")
    command.add_argument("--frames", type=int, default=800, help="of the first package [default: 800]")
    command.add_argument("--pixels", type=int, default=768, help="height and width of a frame [default: 768]")
