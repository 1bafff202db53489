"""The ways to send a folder that are compared, and where they run.

- `Ends`: where sender and receiver run: both here, or at the two ends of a link
- `Tool`: starts what must listen, says what a user would type to send, and where the data went
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import link as linking
from client import Client
from processes import ended, processor_time, tree

START_TIME = 30.0


class Failed(Exception):
    """A transfer did not work."""


class Ends:
    """A sender's end and a receiver's end: both on loopback."""

    sender_bind: list[str] = ["--bind", "127.0.0.1:0"]
    b: list[str] = []
    address = "127.0.0.1"

    def wait_for_port(self, port: int) -> None:
        """Wait until the receiver listens."""
        linking.wait_until(lambda: linking.listens(port), f"port {port}", START_TIME)

    def traffic(self) -> dict:
        """Counters of what was carried."""
        return {}


class OwnLoopback(Ends):
    """Loopback in a network namespace that nobody else uses, so that its counters are ours; only where `linking.inside()`."""

    def __init__(self) -> None:
        linking.run_quietly("ip", "link", "set", "lo", "up")

    def traffic(self) -> dict:
        """Both directions in one: acknowledgements are in it."""
        line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
        return {"a_to_b": {"bytes": int(line.partition(":")[2].split()[0])}}


class LinkEnds(Ends):
    """The sender on side A of a link, the receiver on side B."""

    sender_bind: list[str] = []
    address = linking.ADDRESS_B

    def __init__(self, link: linking.Link):
        self._link, self.b = link, link.b

    def wait_for_port(self, port: int) -> None:
        linking.wait_until(lambda: self._link.listens(port), f"port {port}", START_TIME)

    def traffic(self) -> dict:
        return self._link.stats()


def free_port() -> int:
    """A TCP port that is free here now; on the link's other side, where nothing else runs, it is, too."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


TCP = Path(__file__).with_name("tcp.py")


class Tool:
    """One way to send a folder. Made anew for each transfer, in an empty folder."""

    name: str
    needs: list[str] = []
    descendants = True
    """Whether what an end's process starts has a part in the transfer."""

    def __init__(self, ends: Ends, folder: Path, options: argparse.Namespace):
        self.ends, self.folder, self.options = ends, folder, options
        self.goal = folder / "arrived"
        self._running: list[subprocess.Popen] = []

    def start(self, name: str, *command: str | Path, prefix: list[str] | None = None, listen: bool = False) -> subprocess.Popen:
        """Start a process, at the receiver's end unless told otherwise; what it says goes to a file, or stdout to whoever listens."""
        prefix = self.ends.b if prefix is None else prefix
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen([*prefix, *map(str, command)], cwd=self.folder, env=self.environment(), stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE if listen else log, stderr=log if listen else subprocess.STDOUT)
        self._running.append(process)
        return process

    def environment(self) -> dict[str, str]:
        """Nothing of the user's own settings or caches."""
        home = str(self.folder)
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("WEBRTC_", "XDG_", "ICE_"))}
        return {**ours, "HOME": home}

    def receiver(self) -> subprocess.Popen:
        """Start what receives, and wait until it is ready; the process that counts."""
        raise NotImplementedError

    def command(self, source: Path) -> list[str | Path]:
        """What the user would type to send: this is timed, from its start to its end."""
        raise NotImplementedError

    def settle(self, receiver: subprocess.Popen) -> float:
        """Let the receiver finish; the processor time that it took from its start."""
        return processor_time(receiver.pid)

    def arrived(self) -> Path:
        """The folder in which the data are."""
        return self.goal

    def here(self) -> int:
        """Bytes that have arrived so far, also of a transfer that was broken off."""
        return sum(path.stat().st_size for path in self.goal.rglob("*") if path.is_file())

    def resent(self) -> int | None:
        """Bytes of content that were sent more than once, where the tool says so."""
        return None

    def end(self) -> None:
        """End what was started."""
        for process in reversed(self._running):
            if process.returncode is None:
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


class Ours(Tool):
    """This program: `train --detach` ends when the worker has every byte verified, synced and named."""

    name = "webrtc-connect"
    # The worker starts the package's job at the end; whether a look at memory still meets its runner would be chance.
    descendants = False
    more: list[str] = []
    """Further options of the client."""

    def receiver(self) -> subprocess.Popen:
        port = free_port()
        self._server = f"http://{self.ends.address}:{port}"
        for name in "server", "client":
            (self.folder / name).mkdir()
        (self.folder / "webrtc-connect.toml").write_text('[worker.trainers.bench]\ncommand = ["true"]\n')
        self.start("server", self.options.bin_dir / "webrtc-server", "--listen", f"{self.ends.address}:{port}",
                   "--data-dir", self.folder / "server")
        self.ends.wait_for_port(port)
        worker = self.start_worker()
        linking.wait_until(lambda: (self.folder / "invite").exists() or worker.poll() is not None, "the worker's invite", START_TIME)
        return worker

    def start_worker(self) -> subprocess.Popen:
        """Start the worker, or start it again."""
        return self.start("worker", self.options.bin_dir / "webrtc-worker", "--server", self._server, "--data-dir", self.folder / "worker",
                          "--invite-file", self.folder / "invite", "--bind", f"{self.ends.address}:0")

    def command(self, source: Path) -> list[str | Path]:
        return [self.options.bin_dir / "webrtc-client", "train", source, "--trainer", "bench", "--detach", "--json",
                "--invite-file", self.folder / "invite", *self.ends.sender_bind, *self.more]

    def start_client(self, source: Path) -> Client:
        """Run the command, and listen."""
        return Client(self.start("send", *self.command(source), prefix=[], listen=True))

    def resent(self) -> int | None:
        events = map(json.loads, (self.folder / "send.log").read_text().splitlines())
        return next((event["sent"] - event["bytes"] for event in events if event["type"] == "uploaded" and "sent" in event), None)

    def end(self) -> None:
        super().end()
        # A job's runner outlives its worker on purpose, and may have been started in its last moment; nobody comes back for it here.
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.fsencode(self.folder) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)

    def arrived(self) -> Path:
        for found in (self.folder / "worker").rglob("bench.yaml"):
            return found.parent
        raise Failed("the package is not at the worker")


class OursSingle(Ours):
    """The same with one bulk connection at most: what one SCTP association does."""

    name = "one-connection"
    more = ["--connections", "1"]


class Tcp(Tool):
    """Bytes through one TCP connection, to files: no encryption, no check, no sync. What the machine can do at most."""

    name = "tcp"

    def receiver(self) -> subprocess.Popen:
        self._port = free_port()
        self.goal.mkdir()
        receiver = self.start("receive", sys.executable, TCP, "receive", self.ends.address,
                              str(self._port), self.goal)
        self.ends.wait_for_port(self._port)
        return receiver

    def command(self, source: Path) -> list[str | Path]:
        return [sys.executable, TCP, "send", self.ends.address, str(self._port), source]


class Scp(Tool):
    """scp to an sshd of our own, with keys made for this."""

    name = "scp"
    needs = ["scp", "sshd", "ssh-keygen"]
    ciphers: list[str] = []

    def receiver(self) -> subprocess.Popen:
        self._port = free_port()
        for key in "host", "user":
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key], check=True)
        target = f"[{self.ends.address}]:{self._port}"
        (self.folder / "known_hosts").write_text(f"{target} {(self.folder / 'host.pub').read_text()}")
        shutil.copy(self.folder / "user.pub", self.folder / "authorized_keys")
        (self.folder / "sshd_config").write_text(
            f"ListenAddress {self.ends.address}\nPort {self._port}\nHostKey {self.folder}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\nUseDNS no\n"
            "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n")
        (self.folder / "ssh_config").write_text(
            f"Host there\nHostName {self.ends.address}\nPort {self._port}\nIdentityFile {self.folder}/user\nIdentitiesOnly yes\n"
            f"UserKnownHostsFile {self.folder}/known_hosts\nGlobalKnownHostsFile /dev/null\nBatchMode yes\nLogLevel ERROR\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        receiver = self.start("sshd", find_program("sshd"), "-D", "-e", "-f", self.folder / "sshd_config")
        self.ends.wait_for_port(self._port)
        self.goal.mkdir()
        return receiver

    def command(self, source: Path) -> list[str | Path]:
        # SFTP pastes no shell words together, and copies the folder itself.
        return ["scp", "-q", "-r", "-F", self.folder / "ssh_config", *self.ciphers, source, f"there:{self.goal}/"]

    def settle(self, receiver: subprocess.Popen) -> float:
        # The processes of a session count once sshd has waited for them.
        linking.wait_until(lambda: len(tree(receiver.pid)) == 1, "the end of sshd's sessions")
        return processor_time(receiver.pid)

    def arrived(self) -> Path:
        return self.goal / self.options.source.name


class ScpGcm(Scp):
    """scp with the cipher that processors have instructions for."""

    name = "scp-aes-gcm"
    ciphers = ["-c", "aes256-gcm@openssh.com"]


class Rsync(Scp):
    """rsync through that sshd, as people use it."""

    name = "rsync"
    needs = ["rsync", *Scp.needs]

    def command(self, source: Path) -> list[str | Path]:
        return ["rsync", "-a", "-e", f"ssh -F {self.folder}/ssh_config", source, f"there:{self.goal}/"]


class Wormhole(Tool):
    """magic-wormhole with servers of our own, as Debian packages them: it zips a folder first, and the receiver unpacks it."""

    name = "magic-wormhole"
    needs = ["wormhole", "twist3"]
    _code = "1-for-measuring"

    def receiver(self) -> subprocess.Popen:
        mailbox, transit = free_port(), free_port()
        for service, port in ("wormhole-mailbox", mailbox), ("transitrelay", transit):
            self.start(service, "twist3", service, f"--port=tcp:{port}:interface={self.ends.address}")
            self.ends.wait_for_port(port)
        self._servers = ["--relay-url", f"ws://{self.ends.address}:{mailbox}/v1", "--transit-helper", f"tcp:{self.ends.address}:{transit}"]
        self.goal.mkdir()
        return self.start("receive", "wormhole", *self._servers, "receive", "--hide-progress", "--accept-file", "-o", self.goal / "folder", self._code)

    def command(self, source: Path) -> list[str | Path]:
        return ["wormhole", *self._servers, "send", "--hide-progress", "--code", self._code, source]

    def settle(self, receiver: subprocess.Popen) -> float:
        # It unpacks after it has told the sender that it has everything; until it is waited for, its times can be read.
        linking.wait_until(lambda: ended(receiver.pid), "the receiver's end", 600)
        return processor_time(receiver.pid)

    def arrived(self) -> Path:
        return self.goal / "folder"


TOOLS: dict[str, type[Tool]] = {tool.name: tool for tool in (Ours, Tcp, Scp, ScpGcm, Rsync, Wormhole)}
NOT_HERE = {
    "croc": "croc has no package in Debian 12",
    "sendme": "sendme finds its peers through servers on the Internet",
}
"""Tools that people may miss in a table, and why they are not in it."""


def find_program(name: str) -> str | None:
    """A program, also where only the administrator's PATH leads."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")
