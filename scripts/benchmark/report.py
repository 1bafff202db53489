"""What all measurements share: how numbers are typed and shown, and what somebody else would have to know about the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


def absolute(text: str) -> Path:
    """A path that programs understand wherever they run."""
    return Path(text).absolute()


def parse_size(text: str) -> int:
    """`1GiB`, `256MiB`, `5MB`: bytes."""
    for suffix, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("GB", 10**9), ("MB", 10**6), ("", 1)):
        if text.endswith(suffix) and text[:len(text) - len(suffix)].isdigit():
            return int(text[:len(text) - len(suffix)]) * factor
    raise argparse.ArgumentTypeError(f"{text!r} is no size such as 256MiB")


def parse_names(known: list[str]):
    """Comma-separated names of these."""
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
        return names
    return parse


def table(rows: list[list[str]], left: int = 2) -> str:
    """Rows as aligned text, the first `left` columns to the left. A row of fewer cells ends in a sentence, which takes no part."""
    full = len(rows[0])
    widths = [max(len(row[column]) for row in rows if len(row) == full) for column in range(full)]
    align = [str.ljust] * left + [str.rjust] * (full - left)

    def line(row: list[str]) -> str:
        whole = row if len(row) == full else row[:-1]
        cells = [place(cell, width) for place, cell, width in zip(align, whole, widths)]
        return "  ".join(cells + row[len(whole):]).rstrip()

    return "\n".join(map(line, rows))


def environment(options: argparse.Namespace, **more: object) -> dict:
    """What somebody else would have to know about this machine."""
    def said(*command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            return f"no {command[0]}"
        return (done.stdout + done.stderr).strip().partition("\n")[0]

    model = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "command": " ".join(sys.argv[1:]), "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(), "processors": os.cpu_count(),
        "processor": model[0] if model else platform.machine(), "rmem_max": options.rmem_max, "load": os.getloadavg(),
        "commit": said("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        "versions": [said(str(options.bin_dir / "webrtc-client"), "--version"), said("ssh", "-V"), said("rsync", "--version")],
        **more,
    }


def write_json(path: Path | None, facts: dict, results: object) -> None:
    """Everything to a file, where one was named."""
    if path:
        path.write_text(json.dumps({"environment": facts, "results": results}, indent=1) + "\n")
