#!/usr/bin/env python3
"""What `scripts/demo` says of the client's events.

- follow: read `webrtc-client train --json` from stdin to its end; write each event, with the time of its arrival
- summary: read what `follow` has written; print how long each part took
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path


def follow(arguments: argparse.Namespace) -> int:
    """Write every event to a file, and show it as was asked."""
    # Ctrl-C is for the client, which says what becomes of the job; we read on to its end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(arguments.events, "w", encoding="utf-8") as record:
        start = time.monotonic()
        for line in sys.stdin:
            event = json.loads(line)
            record.write(json.dumps({"after": round(time.monotonic() - start, 4), "event": event}) + "\n")
            if arguments.pass_on:
                print(line, end="", flush=True)
            told = describe(event) if arguments.tell else None
            if told:
                print(f"    {told}", file=sys.stderr, flush=True)
    return 0


def describe(event: dict) -> str | None:
    """A line for a person, for what is worth one."""
    kind = event["type"]
    if kind == "connected":
        return f"connected to {event['worker'].get('name', 'the worker')} in {event['elapsed_ms']} ms"
    if kind == "plan":
        return f"{size(event['to_send'])} of {size(event['bytes'])} are to be sent"
    if kind == "uploaded":
        return f"uploaded in {event['elapsed_ms'] / 1000:.2f} s"
    if kind == "downloaded":
        return f"downloaded {len(event['files'])} files, {size(event['bytes'])}, in {event['elapsed_ms'] / 1000:.2f} s"
    if kind in ("notice", "finished"):
        return event["message"]
    if kind != "journal":
        return None
    entry = event["entry"]["event"]
    if entry["event"] == "step_started":
        return f"training {entry['name']}"
    if entry["event"] == "epoch_ended":
        loss = entry["metrics"].get("val/loss", entry["metrics"].get("loss"))
        return f"step {entry['step'] + 1}, epoch {entry['epoch'] + 1}: validation loss {number(loss)}"
    return None


def number(value: object) -> str:
    """A metric, which may be a string such as NaN."""
    return f"{value:.5f}" if isinstance(value, (int, float)) else str(value)


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


class Run:
    """What the events say of one training."""

    def __init__(self, path: Path):
        self._lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def first(self, kind: str) -> dict:
        """The first event of a kind, or nothing."""
        return next((line["event"] for line in self._lines if line["event"]["type"] == kind), {})

    def journal(self, kind: str) -> list[dict]:
        """The journal's entries of one kind."""
        entries = [line["event"]["entry"] for line in self._lines if line["event"]["type"] == "journal"]
        return [entry for entry in entries if entry["event"]["event"] == kind]

    def first_byte(self) -> float | None:
        """Seconds from the client's first event until the worker had the first byte of the package on its disk."""
        for line in self._lines:
            event = line["event"]
            if event["type"] == "uploaded" or (event["type"] == "uploading" and event["done"] > 0):
                return line["after"]
        return None

    def training(self) -> float | None:
        """Seconds from the job's start to its end, by the worker's clock."""
        start, end = self.journal("job_started"), self.journal("job_ended")
        return (end[0]["at_ms"] - start[0]["at_ms"]) / 1000 if start and end else None

    def steps(self) -> list[str]:
        """A line for each model: how many epochs, and from which loss to which."""
        lines = []
        for start in self.journal("step_started"):
            event = start["event"]
            epochs = [entry["event"] for entry in self.journal("epoch_ended") if entry["event"]["step"] == event["step"]]
            losses = [epoch["metrics"].get("val/loss") for epoch in epochs]
            lines.append(f"{event['name']}: {len(epochs)} epochs, validation loss {number(losses[0])} to {number(losses[-1])}"
                         if epochs else f"{event['name']}: no epoch ended")
        return lines

    def sequence_is_whole(self) -> bool:
        """Whether every entry of the journal came once and in order."""
        numbers = [line["event"]["entry"]["seq"] for line in self._lines if line["event"]["type"] == "journal"]
        return numbers == list(range(1, len(numbers) + 1))


def summary(arguments: argparse.Namespace) -> int:
    """Print the parts and their times."""
    run = Run(arguments.events)
    seconds = {name: int(value) / 1000 for name, value in (word.split("=", 1) for word in arguments.parts)}
    connected, uploaded, downloaded = run.first("connected"), run.first("uploaded"), run.first("downloaded")
    check = arguments.check.read_text(encoding="utf-8").strip().splitlines()
    values = {
        "build_s": seconds["build"], "prepare_s": seconds["prepare"], "start_s": seconds["start"],
        "connect_s": connected.get("elapsed_ms", 0) / 1000 if connected else None,
        "first_byte_s": run.first_byte(),
        "upload_s": uploaded.get("elapsed_ms", 0) / 1000 if uploaded else None, "upload_bytes": uploaded.get("bytes"),
        "training_s": run.training(), "steps": run.steps(),
        "download_s": downloaded.get("elapsed_ms", 0) / 1000 if downloaded else None, "download_bytes": downloaded.get("bytes"),
        "check_s": seconds["check"], "check": check[0] if check else "",
        "events_in_order": run.sequence_is_whole(), "end_s": seconds["end"], "total_s": seconds["total"],
    }
    if arguments.json:
        print(json.dumps({"type": "demo_summary", **values}))
    else:
        show(values)
    if not values["events_in_order"]:
        print("error: the journal's entries did not come once and in order", file=sys.stderr)
        return 1
    return 0


def show(values: dict) -> None:
    """The summary for people."""
    def row(name: str, key: str, more: str = "") -> None:
        value = values[key]
        print(f"  {name:<34}{'not seen' if value is None else f'{value:8.2f} s'}  {more}".rstrip())

    def amount(key: str) -> str:
        return size(values[key]) if values[key] is not None else ""

    print("\nSummary")
    row("set-up: building", "build_s")
    row("set-up: Python, package", "prepare_s")
    row("set-up: starting server and worker", "start_s")
    row("connecting", "connect_s")
    row("train to first byte at the worker", "first_byte_s")
    row("upload", "upload_s", amount("upload_bytes"))
    row("training", "training_s")
    for line in values["steps"]:
        print(f"    {line}")
    row("download", "download_s", amount("download_bytes"))
    row("check", "check_s", values["check"])
    row("ending everything", "end_s")
    row("in all", "total_s")


def main() -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("follow")
    command.add_argument("--events", type=Path, required=True)
    command.add_argument("--pass-on", action="store_true", help="print the events on stdout, too")
    command.add_argument("--tell", action="store_true", help="say a line on stderr for what is worth one")
    command.set_defaults(run=follow)
    command = commands.add_parser("summary")
    command.add_argument("--events", type=Path, required=True)
    command.add_argument("--check", type=Path, required=True, help="what the check of the models has printed")
    command.add_argument("--json", action="store_true")
    command.add_argument("parts", nargs="+", metavar="PART=MILLISECONDS")
    command.set_defaults(run=summary)
    arguments = parser.parse_args()
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
