#!/usr/bin/env python3
"""A link of given rate, delay, loss and queue between two network namespaces, for measuring and for tests.

Used by `scripts/link` and `scripts/bench`. Where the kernel has no netem it is the only way, and where it has, the same
numbers come out everywhere. The namespaces, TUN devices and addresses are made here; `shared/examples/link.rs` carries
the packets. Needs /dev/net/tun and either root or a kernel that lets users make namespaces.

Two steps, since one process cannot see both sides' worlds from outside:

- `enter()` runs this program again in a namespace of its own, which becomes side A; whatever is started in there ends
  with it, however it ends
- `Link`, in there, makes side B and the devices; a command runs on side A as it is and on side B with `link.b` in front
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ADDRESS_A, ADDRESS_B = "10.77.0.1", "10.77.0.2"
INSIDE = "WEBRTC_LINK_INSIDE"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
"""From linux/if_tun.h."""


class LinkError(Exception):
    """The link cannot be made as asked."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """A link, the same in both directions: bits a second (0: no limit), seconds one way, share lost, seconds of queue."""

    rate: int = 0
    delay: float = 0.0
    loss: float = 0.0
    queue: float = 0.1
    seed: int = 1

    def __str__(self) -> str:
        rate = f"{self.rate / 1e6:g} Mbit/s" if self.rate else "no rate limit"
        queue = f", queue {self.queue * 1000:g} ms" if self.rate else ""
        return f"{rate}, {self.delay * 2000:g} ms round trip, {self.loss * 100:g} % loss{queue}"


def parse_rate(text: str) -> int:
    """`100mbit`, `1gbit`, `20000kbit`; `0` or `none`: no limit."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg])bit", text)
    if not found and text not in ("0", "none"):
        raise argparse.ArgumentTypeError(f"{text!r} is no rate such as 20mbit or 1gbit")
    return int(float(found[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[found[2]]) if found else 0


def parse_time(text: str) -> float:
    """`15ms`, `0.2s`, `0`: seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", text)
    if not found and text != "0":
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 15ms")
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]] if found else 0.0


def parse_loss(text: str) -> float:
    """`0.05%`, `0`: a share."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if (not found and text != "0") or (found and float(found[1]) > 100):
        raise argparse.ArgumentTypeError(f"{text!r} is no loss such as 0.05%")
    return float(found[1]) / 100 if found else 0.0


def parse_link(text: str) -> Settings:
    """`RATE,DELAY,LOSS[,QUEUE]`, such as `100mbit,15ms,0.05%`."""
    words = text.split(",")
    if not 3 <= len(words) <= 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not RATE,DELAY,LOSS or RATE,DELAY,LOSS,QUEUE")
    queue = parse_time(words[3]) if len(words) == 4 else Settings.queue
    return Settings(parse_rate(words[0]), parse_time(words[1]), parse_loss(words[2]), queue)


def inside() -> bool:
    """Whether this process was started by `enter`."""
    return os.environ.get(INSIDE) == "1" and os.getpid() == 1


def enter(command: list[str]) -> int:
    """Run a command as process 1 of namespaces of its own (network, processes); its exit code.

    Everything in there is killed when this process ends or when the command ends.
    """
    namespaces = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        # Not mapped to root: sshd would take itself for the real one and try what only that may.
        namespaces += ["--user", "--map-current-user", "--keep-caps"]
    child = subprocess.Popen([*namespaces, "--", *command], env={**os.environ, INSIDE: "1"})

    def end(number: int, _frame: object) -> None:
        child.kill()
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    while True:
        # Ctrl-C reaches the command, too, which cleans up and ends; so we only wait.
        with contextlib.suppress(KeyboardInterrupt):
            return child.wait()


def open_tun(name: str) -> int:
    """Make a TUN device in this network namespace; its descriptor."""
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise LinkError(f"/dev/net/tun cannot be opened ({error.strerror}); the link needs it") from error
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return tun


def run_quietly(*command: str) -> None:
    """Run a command; its words are the error if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LinkError(f"{' '.join(command)}: {done.stderr.strip()}")


class Link:
    """The link, from `with` to its end; only where `inside()`."""

    def __init__(self, engine: Path, settings: Settings):
        self.engine, self.settings = engine, settings
        self.real_time = False
        self._folder = tempfile.TemporaryDirectory(prefix="link.")
        self._socket = os.path.join(self._folder.name, "stats")
        self._holder: subprocess.Popen | None = None
        self._carrier: subprocess.Popen | None = None

    @property
    def b(self) -> list[str]:
        """What goes before a command that runs on side B."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--"]

    def __enter__(self) -> "Link":
        try:
            self._holder = subprocess.Popen(["unshare", "--net", "--", "sleep", "infinity"])
            ours = os.readlink("/proc/self/ns/net")
            wait_until(lambda: os.readlink(f"/proc/{self._holder.pid}/ns/net") != ours, "side B's namespace")
            devices = [open_tun("link_a"), open_tun("link_b")]
            run_quietly("ip", "link", "set", "link_b", "netns", str(self._holder.pid))
            for prefix, name, own, other in ([], "link_a", ADDRESS_A, ADDRESS_B), (self.b, "link_b", ADDRESS_B, ADDRESS_A):
                # A device queue that drops before the link's own queue would be a second, unknown link.
                run_quietly(*prefix, "ip", "link", "set", name, "txqueuelen", "20000", "up")
                run_quietly(*prefix, "ip", "address", "add", own, "peer", other, "dev", name)
                run_quietly(*prefix, "ip", "link", "set", "lo", "up")
            self._start_engine(devices)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_engine(self, devices: list[int]) -> None:
        link = self.settings
        numbers = [link.rate, link.delay * 1e6, link.loss * 1e6, link.queue * 1e6, link.seed]
        self._carrier = subprocess.Popen([str(self.engine), *(str(round(number)) for number in numbers), self._socket],
                                         stdin=devices[0], stdout=devices[1])
        for device in devices:
            os.close(device)
        # A carrier that waits for a processor behind the programs under test would add their load to the delay.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(self._carrier.pid, os.SCHED_RR, os.sched_param(1))
            self.real_time = True
        wait_until(lambda: os.path.exists(self._socket) or self._carrier.poll() is not None, "the link")
        if self._carrier.poll() is not None:
            raise LinkError(f"{self.engine} ended with {self._carrier.returncode}")

    def stats(self) -> dict:
        """Packets, bytes, lost (by chance) and dropped (queue full) so far, by direction; `overrun`: dropped before the link."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._socket)
            found = json.loads(connection.makefile().read())
        for direction, prefix, name in ("a_to_b", [], "link_a"), ("b_to_a", self.b, "link_b"):
            shown = subprocess.run([*prefix, "ip", "-json", "-stats", "link", "show", name], capture_output=True, check=True)
            found[direction]["overrun"] = json.loads(shown.stdout)[0]["stats64"]["tx"]["dropped"]
        return found

    def listens(self, port: int) -> bool:
        """Whether something on side B listens on this TCP port."""
        return listens(port, self._holder.pid)

    def __exit__(self, *_: object) -> None:
        for process in (self._carrier, self._holder):
            if process:
                process.kill()
                process.wait()
        self._folder.cleanup()


def listens(port: int, pid: int | str = "self") -> bool:
    """Whether something listens on this TCP port in the namespace of a process, asked without a connection."""
    for table in "tcp", "tcp6":
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                    return True
    return False


def wait_until(condition, what: str, seconds: float = 10.0) -> None:
    """Ask again and again until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LinkError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.005)


def run_both(link: Link, a: list[str], b: list[str], port: int | None) -> int:
    """Run B, then A when B listens; end B with A; A's exit code."""
    try:
        far = subprocess.Popen([*link.b, *b], env={**os.environ, "LINK_LOCAL": ADDRESS_B, "LINK_PEER": ADDRESS_A})
        if port:
            wait_until(lambda: link.listens(port) or far.poll() is not None, f"port {port} on side B")
        near = subprocess.Popen(a, env={**os.environ, "LINK_LOCAL": ADDRESS_A, "LINK_PEER": ADDRESS_B})
    except FileNotFoundError as error:
        raise LinkError(f"there is no command {error.filename}") from error
    code = near.wait()
    far.terminate()
    try:
        far.wait(timeout=10)
    except subprocess.TimeoutExpired:
        far.kill()
    return code if code >= 0 else 128 - code


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """The options, A's command and B's."""
    parser = argparse.ArgumentParser(
        prog="scripts/link", usage="%(prog)s [OPTION]... -- A-COMMAND [ARGUMENT]... ::: B-COMMAND [ARGUMENT]...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run two commands at the ends of a link of given rate, delay and loss, each in a network namespace of its own.",
        epilog=f"Side A is {ADDRESS_A}, side B {ADDRESS_B}; in the commands' environment LINK_LOCAL and LINK_PEER. B is started first and\n"
               "ended when A has ended. The exit code is A's. The link's counters go to stderr as one JSON line.\n\n"
               "Example: scripts/link --rate 100mbit --delay 15ms --loss 0.05% -- ping -c 5 10.77.0.2 ::: sleep 60")
    parser.add_argument("--engine", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=parse_rate, default=0, help="such as 100mbit, in each direction [default: no limit]")
    parser.add_argument("--delay", type=parse_time, default=0.0, help="one way, such as 15ms: half of the round trip [default: 0]")
    parser.add_argument("--loss", type=parse_loss, default=0.0, help="of packets in each direction, at random, such as 0.05%% [default: 0]")
    parser.add_argument("--queue", type=parse_time, default=Settings.queue, help="longest wait for the rate [default: 100ms]")
    parser.add_argument("--seed", type=int, default=1, help="another number loses other packets [default: 1]")
    parser.add_argument("--wait", type=int, metavar="PORT", help="start A when something on side B listens on this TCP port")
    commands = words[words.index("--") + 1:] if "--" in words else []
    options = parser.parse_args(words[:words.index("--")] if commands else words)
    if ":::" not in commands:
        parser.error("two commands are needed: -- A-COMMAND ::: B-COMMAND")
    split = commands.index(":::")
    if not commands[:split] or not commands[split + 1:]:
        parser.error("two commands are needed: -- A-COMMAND ::: B-COMMAND")
    return options, commands[:split], commands[split + 1:]


def main() -> int:
    options, a, b = parse(sys.argv[1:])
    if not inside():
        return enter([sys.executable, *sys.argv])
    settings = Settings(options.rate, options.delay, options.loss, options.queue, options.seed)
    try:
        with Link(options.engine, settings) as link:
            code = run_both(link, a, b, options.wait)
            print(json.dumps(link.stats()), file=sys.stderr)
            return code
    except LinkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
