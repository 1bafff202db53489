#!/usr/bin/env python3
"""Measure what a transfer takes and costs; docs/measuring.md says what each command measures and how to read its table."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

import grid
import link as linking
import memory
import resubmit
import resume
import signaling
import transfer
from data import NotTheSame
from report import absolute, parse_size, say
from tools import Failed

COMMANDS = {"transfer": transfer, "grid": grid, "memory": memory, "resume": resume, "resubmit": resubmit, "signaling": signaling}
"""Each has `arguments(parser)`, its first docstring line as description, and `run(options, work)`, which gives the exit code."""
SIZES = {"transfer": 1 << 30, "resume": 2 * 10**9}


def parse_arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rmem-max", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        described = module.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=described, description=described)
        command.add_argument("--bin-dir", type=absolute, required=True, help="the built programs; by default they are built, for release")
        command.add_argument("--engine", type=absolute, help="what carries the link's packets; by default it is built")
        if name in SIZES:
            command.add_argument("--size", type=parse_size, default=SIZES[name], help=f"of the data [default: {SIZES[name] / 1e9:.1f} GB]")
        command.add_argument("--work", type=absolute, help="where the data are made and go [default: the temporary folder]")
        command.add_argument("--json", type=Path, help="write everything to this file, too")
        if not getattr(module, "LOOPBACK", False):
            command.add_argument("--link", type=linking.parse_link, metavar="RATE,DELAY,LOSS[,QUEUE]",
                                 help="through a link such as 100mbit,15ms,0.05%% (delay one way, queue 100ms) instead of loopback")
        module.arguments(command)
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    module = COMMANDS[options.command]
    if (getattr(options, "link", None) or getattr(module, "INSIDE", False)) and not linking.inside():
        # Inside, the kernel does not say it.
        rmem_max = Path("/proc/sys/net/core/rmem_max").read_text().strip()
        return linking.enter([sys.executable, sys.argv[0], "--rmem-max", rmem_max, *sys.argv[1:]])
    if options.rmem_max is None:
        options.rmem_max = int(Path("/proc/sys/net/core/rmem_max").read_text())
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory(prefix="bench.", dir=options.work, ignore_cleanup_errors=True) as folder:
            work = Path(folder)
            # sshd looks into the home folder's parents; others have no business here.
            work.chmod(0o700)
            return module.run(options, work)
    except (Failed, NotTheSame, linking.LinkError) as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
