#!/usr/bin/env python3
"""A network lab: hosts, NATs and firewalls in network namespaces, with the real programs and a real coturn. Called by `scripts/lab`.

- `nats`: each kind of NAT proves with plain UDP sockets that it is what it is called
- `matrix`: who connects with whom, which way, how soon
- `cuts`, `moves`, `server-restart`: what a break costs

See docs/network-lab.md. Exit code 1: a goal was missed; 2: the lab could not be built.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts/benchmark")]

from report import absolute  # noqa: E402

import cuts  # noqa: E402
import doctor  # noqa: E402
import matrix  # noqa: E402
import moves  # noqa: E402
import nats  # noqa: E402
import restart  # noqa: E402
import space  # noqa: E402

COMMANDS = {"nats": nats, "matrix": matrix, "cuts": cuts, "moves": moves, "server-restart": restart, "doctor": doctor}


def parse(words: list[str]) -> argparse.Namespace:
    """The command and its options."""
    parser = argparse.ArgumentParser(prog="scripts/lab", description="What the programs do in networks of every kind.",
                                     epilog="See docs/network-lab.md.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        sub = commands.add_parser(name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.add_argument("--bin-dir", type=absolute, metavar="DIR", help="the folder of the built programs [default: build them]")
        sub.add_argument("--python", type=absolute, default=Path(sys.executable), metavar="FILE",
                         help="a Python with the packages of test_files/requirements.txt [default: the one in .venv]")
        sub.add_argument("--engine", type=absolute, metavar="FILE", help=argparse.SUPPRESS)
        sub.add_argument("--json", type=absolute, metavar="FILE", help="everything that was measured goes there, too")
        sub.add_argument("--keep", action="store_true", help="leave logs and folders behind, and say where")
        module.add_options(sub)
    return parser.parse_args(words)


def main() -> int:
    options = parse(sys.argv[1:])
    # Where nft and ip are, although everybody may call them.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        if not space.inside():
            return space.enter([sys.executable, *sys.argv])
        if options.bin_dir and not os.access(options.bin_dir / "webrtc-client", os.X_OK):
            raise space.LabError(f"there are no programs in {options.bin_dir}")
        return COMMANDS[options.command].run(options)
    except space.LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
