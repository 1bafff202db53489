"""A network of its own for each coturn: a process in fresh namespaces that does what the tests ask for."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from multiprocessing.managers import BaseManager
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[2]
sys.path.insert(0, str(FOLDER))

from turn_client import TurnClient, credential  # noqa: E402

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
TURN, RELAY, TURN6, PUBLIC, LAN = "198.51.100.1", "198.51.100.2", "2001:db8:1::1", "1.2.3.4", "10.9.0.1"
"""coturn's addresses lie in ranges that its configuration denies, as a private network's do; PUBLIC is anybody on the internet."""
PRIVATE = ["10.1.2.3", "192.168.7.7", "172.16.5.5", "100.64.1.1", "169.254.169.254"]
OLD, NEW = "old-canary-old-canary-old-canary", "new-canary-new-canary-new-canary"


class Service:
    """A UDP service that sends back what it gets."""

    def __init__(self, ip: str, port: int = 0):
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.bind((ip, port))

    def port(self) -> int:
        return self._socket.getsockname()[1]

    def serve_one(self, patience: float) -> bytes | None:
        """What arrived, if something did."""
        self._socket.settimeout(patience)
        try:
            data, sender = self._socket.recvfrom(65536)
        except socket.timeout:
            return None
        self._socket.sendto(data, sender)
        return data


class Background:
    """A program that runs until it is ended; what it says goes to a file."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path):
        with open(log, "wb") as output:
            self._process = subprocess.Popen(command, cwd=log.parent, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def program(name: str) -> str:
    """One of ours, as scripts/test has built it."""
    path = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "debug" / name
    assert path.exists(), f"{path} is missing: run cargo build --workspace --bins"
    return str(path)


def environment_of(folder: Path) -> dict[str, str]:
    """For our programs: no settings of the person who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WEBRTC_") and name != "ICE_SERVERS"}
    return {**kept, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config"), "XDG_DATA_HOME": str(folder / "data")}


def eventually(condition, patience: float = 10) -> None:
    """Waits until it holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"it did not come about within {patience} s"
        time.sleep(0.1)


def run(command: list[str], environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code, and everything that was said."""
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return done.returncode, done.stdout


def reachable(ip: str, port: int) -> bool:
    """Whether something listens there on TCP."""
    try:
        socket.create_connection((ip, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


class Inside(BaseManager):
    """The process in the namespaces."""


Inside.register("TurnClient", TurnClient)
Inside.register("Service", Service)
Inside.register("Background", Background)
Inside.register("run", run)
Inside.register("reachable", reachable)


def enter_namespaces() -> None:
    """Leaves the machine's network for an empty one in which this process is root."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "no user namespaces for this user; see sysctl user.max_user_namespaces")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    addresses = [f"{ip}/32" for ip in [TURN, RELAY, PUBLIC, *PRIVATE]] + [f"{TURN6}/128", "fd00::1/128", "fe80::1/128"]
    # An interface beside loopback, for programs that look for one.
    cable = [["link", "add", "eth0", "type", "veth", "peer", "name", "eth1"], ["addr", "add", f"{LAN}/24", "dev", "eth0"],
             ["link", "set", "eth0", "up"], ["link", "set", "eth1", "up"]]
    for command in [["link", "set", "lo", "up"], *cable, *(["addr", "add", ip, "dev", "lo"] for ip in addresses)]:
        subprocess.run(["ip", *command], check=True)
    # Below coturn's relay ports: clients have coturn's account here, and must not look like its relays to the firewall.
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("32768 49151")


class Lab:
    """A network with a coturn in it."""

    def __init__(self, inside: Inside, folder: Path):
        self._inside, self.folder, self.environment, self._clients, self._programs = inside, folder, {}, [], []

    def run(self, *command: str, **environment: str) -> str:
        """What a command said that must succeed."""
        code, said = self.attempt(*command, **environment)
        assert code == 0, said
        return said

    def attempt(self, *command: str, **environment: str) -> tuple[int, str]:
        return self._inside.run(list(command), {**self.environment, **environment})._getvalue()

    def start_coturn(self, **environment: str) -> str:
        """What the script said; the account is not changed, since there is only one in the namespace."""
        self.environment = {"COTURN_DIR": str(self.folder), "COTURN_IP": f"{TURN} {TURN6}", "COTURN_USER": "", "NO_COLOR": "1", **environment}
        return self.run(str(ROOT / "scripts/coturn"), "start")

    def secret(self) -> str:
        return (self.folder / "secret").read_text().split()[0]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def service(self, ip: str, port: int = 0) -> Service:
        return self._inside.Service(ip, port)

    def background(self, *command: str, environment: dict[str, str], log: Path) -> Background:
        program = self._inside.Background(list(command), environment, log)
        self._programs.append(program)
        return program

    def reachable(self, ip: str, port: int) -> bool:
        return self._inside.reachable(ip, port)._getvalue()

    def client(self, peer: str = "peer-1", lasts: float = 600, secret: str | None = None, **how) -> TurnClient:
        """A client with a credential of this peer's that is valid for so many seconds."""
        username = f"{int(time.time() + lasts)}:{peer}"
        return self.client_with(username, credential(secret or self.secret(), username), **how)

    def client_with(self, username: str, password: str, server: str = TURN, **how) -> TurnClient:
        client = self._inside.TurnClient(server, username, password, **how)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for program in self._programs:
            program.end()
        for client in self._clients:
            client.close()
        if self.environment:
            self.attempt(str(ROOT / "scripts/coturn"), "stop")


def make_lab(folder: Path):
    inside = Inside()
    inside.start(enter_namespaces)
    lab = Lab(inside, folder)
    try:
        yield lab
    finally:
        lab.close()
        inside.shutdown()


@pytest.fixture()
def lab(tmp_path):
    """No coturn yet."""
    yield from make_lab(tmp_path)


@pytest.fixture(scope="module")
def turn(tmp_path_factory):
    """A coturn as scripts/coturn starts it, one address for listening and relaying."""
    for lab in make_lab(tmp_path_factory.mktemp("coturn")):
        lab.start_coturn()
        yield lab
