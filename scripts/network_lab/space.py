"""Network namespaces that belong to the lab, and programs that run in them.

One process cannot see all of them from outside, so there are two steps, as in `scripts/benchmark/link.py`:

- `enter()` runs this program again as process 1 of namespaces of its own (processes, mounts, network; users where it is not root);
  whatever is started in there ends with it, however it ends
- a `Space`, in there, is one more network namespace: a host, a router, the Internet
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

INSIDE = "WEBRTC_LAB_INSIDE"
NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
AS_USER = ["--user", "--map-root-user"]
FOLDER = Path("/run/netns")
"""Where `ip netns` keeps names; ours are on a tmpfs that only we see."""


class LabError(Exception):
    """The lab cannot be built or used as asked."""


def inside() -> bool:
    """Whether this process was started by `enter`; the first call sees to it that it ends with who started it, however that ends."""
    if INSIDE not in os.environ or os.getpid() != 1:
        return False
    if word := os.environ[INSIDE]:
        os.environ[INSIDE] = ""
        threading.Thread(target=_end_with, args=(int(word),), daemon=True).start()
    return True


def _end_with(pipe: int) -> None:
    # Nobody writes: it ends when the other end is closed.
    os.read(pipe, 1)
    os._exit(128 + signal.SIGKILL)


def enter(command: list[str]) -> int:
    """Run a command as process 1 of namespaces of its own; its exit code.

    Everything in there is killed when this process ends or when the command ends.
    """
    pipe, _ours = os.pipe()
    child = subprocess.Popen([*_namespaces(), "--", *command], env={**os.environ, INSIDE: str(pipe)}, pass_fds=[pipe])
    os.close(pipe)

    def end(number: int, _frame: object) -> None:
        child.kill()
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    while True:
        # Ctrl-C reaches the command, too, which cleans up and ends; so we only wait.
        with contextlib.suppress(KeyboardInterrupt):
            return child.wait()


def _namespaces() -> list[str]:
    """The words that make them: as root without a user namespace, or, where root may not and for everybody else, with one."""
    said = []
    for more in ([], AS_USER) if os.geteuid() == 0 else (AS_USER,):
        # What the lab does first of all; AppArmor lets users make namespaces and then forbids everything in them.
        try:
            tried = subprocess.run([*NAMESPACES, *more, "--", "mount", "-t", "tmpfs", "none", "/run"], capture_output=True, text=True)
        except FileNotFoundError as error:
            raise LabError("unshare and mount are needed (util-linux)") from error
        if not tried.returncode:
            return [*NAMESPACES, *more]
        said.append(tried.stderr.strip().replace("\n", "; "))
    raise LabError(f"network namespaces cannot be made here ({' / '.join(said)}). Allow them to users (sysctl kernel.unprivileged_userns_clone=1 "
                   "user.max_user_namespaces=10000 kernel.apparmor_restrict_unprivileged_userns=0), run as root, or give the container "
                   "the capability SYS_ADMIN")


def prepare(hosts: Path) -> None:
    """What the namespaces need before the first one is made; `hosts` becomes everybody's /etc/hosts, and nobody has a name server."""
    run("mount", "-t", "tmpfs", "none", "/run")
    FOLDER.mkdir()
    run("mount", "--bind", str(hosts), "/etc/hosts")
    nowhere = hosts.with_name("resolv.conf")
    nowhere.write_text("# Nobody: an unknown name is refused at once.\n")
    with contextlib.suppress(LabError):
        # A link to where nothing is any more does as well.
        run("mount", "--bind", str(nowhere), "/etc/resolv.conf")
    run("ip", "link", "set", "lo", "up")


def run(*command: str, given: str | None = None) -> str:
    """Run a command to its end; what it printed. Its complaint is the error if it fails."""
    try:
        done = subprocess.run(command, input=given, stdin=None if given else subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise LabError(f"there is no program {error.filename}") from error
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}" + (f"; it was given:\n{given}" if given else ""))
    return done.stdout


class Space:
    """A network namespace with a name."""

    def __init__(self, name: str):
        self.name = name
        run("ip", "netns", "add", name)
        # New namespaces take some settings from the first one, which may be strict. Addresses are usable at once (no duplicate detection).
        self.sysctl({"ipv4/conf/all/rp_filter": 0, "ipv4/conf/default/rp_filter": 0, "ipv6/conf/all/accept_dad": 0,
                     "ipv6/conf/default/accept_dad": 0, "ipv6/conf/default/accept_ra": 0, "ipv6/conf/all/disable_ipv6": 0,
                     "ipv6/conf/default/disable_ipv6": 0})
        self.ip("link set lo up")

    @property
    def prefix(self) -> list[str]:
        """What goes before a command that runs in here."""
        return ["nsenter", f"--net={FOLDER / self.name}", "--"]

    def run(self, *command: str, given: str | None = None) -> str:
        """Run a command in here to its end; what it printed."""
        return run(*self.prefix, *command, given=given)

    def python(self, program: Path, *arguments: str) -> str:
        """Run a Python program in here to its end; what it printed."""
        return self.run(sys.executable, str(program), *arguments)

    def ip(self, *lines: str) -> None:
        """Commands of `ip`, one a line, without the word itself."""
        run("ip", "-netns", self.name, "-batch", "-", given="\n".join(lines) + "\n")

    def nft(self, rules: str) -> None:
        """Rules for `nft`, all of them or none."""
        self.run("nft", "-f", "-", given=rules)

    def sysctl(self, values: dict[str, int]) -> None:
        """Set values below /proc/sys/net."""
        words = "".join(f"echo {value} > /proc/sys/net/{name}\n" for name, value in values.items())
        self.run("sh", "-e", given=words)

    def forward(self) -> None:
        """Route from now on."""
        self.sysctl({"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1})

    def flush_conntrack(self) -> None:
        """Forget every connection and every translation, as a router does that starts again."""
        self.python(Path(__file__).with_name("conntrack.py"))

    def pids(self) -> Sequence[int]:
        """The processes in here."""
        return [int(word) for word in run("ip", "netns", "pids", self.name).split()]

    def close(self) -> None:
        """End what runs in here, and remove it with its devices."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run("ip", "netns", "delete", self.name)
