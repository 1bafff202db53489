"""Everything at once: an Internet with a signaling server and coturn, and whoever is put into it.

```python
with World(options) as world:
    office, home = world.nat("symmetric"), world.nat("port-restricted")
    worker = world.worker(world.host().join(office))
    client = world.train(world.host().join(home), worker, world.package(size=1 << 20), "--detach")
    when, connected = client.wait_for("connected")
```
Only where `space.inside()`. What it started ends with it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import link as linking

import space
from network import ANY_FAMILY, Host, Internet, Nat
from programs import Program, Service, end_everything_of, environment
from space import LabError, Space
from turn import NAME as TURN_NAME
from turn import CertificateAuthority, Turn

ROOT = Path(__file__).resolve().parents[2]
SIGNAL_NAME, SIGNAL_PORT = "signal.lab.test", 443
"""The server stands on 443 so that it can be reached where nothing else can."""
TRAINER = "lab"
"""Trains nothing; the package is all that matters."""
BOTH_FAMILIES = ("ipv4", "ipv6")


@dataclasses.dataclass
class Options:
    """What a world is made of."""

    bin_dir: Path
    python: Path = Path(sys.executable)
    """One with the packages of test_files/requirements.txt, where trainers run."""
    engine: Path | None = None
    """shared/examples/link, where lines have a rate, delay or loss."""
    keep: bool = False
    """Leave logs and folders behind, and say where."""
    turn: tuple[str, ...] = ("stun", "udp", "tcp", "tls")
    """What the signaling server tells peers of coturn."""
    server_args: tuple[str, ...] = ()
    turn_args: tuple[str, ...] = ()


class Worker(Service):
    """A worker on a host, with its folders."""

    def __init__(self, world: "World", host: Host, folder: Path, args: tuple[str, ...], more: dict[str, str]):
        self.host, self.folder, self.data, self.invite = host, folder, folder / "data", folder / "invite"
        folder.mkdir()
        steady = [str(world.options.python), str(ROOT / "test_files/odd_trainers/steady.py")]
        config = folder / "worker.toml"
        config.write_text(f'[worker]\nsleap_nn = {json.dumps(steady)}\n[worker.trainers.{TRAINER}]\ncommand = ["true"]\nconfigs = "*.yaml"\n')
        command = [world.program("webrtc-worker"), "--json", "--server", world.url, "--data-dir", str(self.data), "--name", host.name,
                   "--config", str(config), "--invite-file", str(self.invite), *args]
        super().__init__(lambda: Program(host, command, folder / "worker.log", folder, world.environment(folder, more)))
        _, self.said = self.program.wait_for("invite")

    def start(self) -> None:
        super().start()
        self.program.wait_for("invite")

    def received(self, name: str) -> list[Path]:
        """The files of this name that have arrived whole."""
        return [path for path in self.data.rglob(name) if path.is_file()]


class World:
    """An Internet with a signaling server and coturn."""

    def __init__(self, options: Options):
        self.options = options
        self._stack: list[Space] = []
        self._told = options.turn
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.folder = Path(tempfile.mkdtemp(prefix="webrtc-lab."))

    def __enter__(self) -> "World":
        try:
            return self._build()
        except BaseException:
            self.__exit__()
            raise

    def _build(self) -> "World":
        hosts = self.folder / "hosts"
        hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
        space.prepare(hosts)
        self.internet = Internet()
        self.authority = CertificateAuthority(self.folder / "ca")
        self.signal_host = Host("signal").join(self.internet, BOTH_FAMILIES)
        self.turn_host = Host("turn").join(self.internet, BOTH_FAMILIES)
        with open(hosts, "a") as file:
            for host, name in (self.signal_host, SIGNAL_NAME), (self.turn_host, TURN_NAME):
                file.write(f"{host.v4} {name}\n{host.v6} {name}\n")
        self.turn = Turn(self.turn_host, self.folder / "turn", self.authority, list(self.options.turn_args))
        self.server = Service(self._start_server)
        return self

    @property
    def url(self) -> str:
        """The signaling server's."""
        return f"http://{SIGNAL_NAME}:{SIGNAL_PORT}"

    def tell(self, *kinds: str) -> None:
        """The server starts again and tells peers of this much of coturn: `stun`, `udp`, `tcp`, `tls`."""
        if self._told != kinds:
            self._told = kinds
            self.server.stop()
            self.server.start()

    def _start_server(self) -> Program:
        folder = self.folder / "server"
        folder.mkdir(exist_ok=True)
        told = self.turn.ice_servers(*self._told)
        # People behind one NAT are one address.
        (folder / "webrtc-connect.toml").write_text("[server.limits]\nsockets_per_address = 200\nsign_ins_per_minute = 100000\n")
        command = [self.program("webrtc-server"), "--json", "--listen", f"[::]:{SIGNAL_PORT}", "--data-dir", str(folder / "data"),
                   *(["--ice-servers", json.dumps(told)] if told else []), *self.options.server_args]
        program = Program(self.signal_host, command, folder / "server.log", folder, self.environment(folder))
        linking.wait_until(lambda: self.signal_host.listens(SIGNAL_PORT) or not program.running(), "the signaling server")
        if not program.running():
            raise LabError(f"{program} does not start: {program.last_words()}")
        return program

    def program(self, name: str) -> str:
        """The path of one of ours."""
        return str(self.options.bin_dir / name)

    def environment(self, home: Path, more: dict[str, str] | None = None) -> dict[str, str]:
        """A program's environment: nothing of ours but the test CA."""
        return environment(home, {"WEBRTC_CA_FILE": str(self.authority.certificate), **(more or {})})

    def _name(self, what: str) -> str:
        return f"{what}{next(self._numbers)}"

    def _keep(self, made: Space) -> None:
        with self._lock:
            self._stack.append(made)

    def nat(self, kind: str, upstream: Internet | Nat | None = None, subnet: str | None = None, hairpin: bool = False,
            families: tuple[str, ...] = ANY_FAMILY, settings: linking.Settings | None = None) -> Nat:
        """A router with a NAT of this kind, on the Internet unless behind another one."""
        name = self._name("nat")
        number = int(name[3:])
        subnet = subnet or f"10.{number // 250 % 250}.{number % 250}.0/24"
        made = Nat(name, kind, upstream or self.internet, subnet, hairpin, families, settings, self.options.engine)
        self._keep(made)
        return made

    def host(self, name: str = "host") -> Host:
        """A machine; it has yet to join a network."""
        made = Host(self._name(name))
        self._keep(made)
        return made

    def remove(self, *spaces: Space) -> None:
        """Take hosts and routers away again, with what runs on them."""
        for made in spaces:
            made.close()
            with self._lock:
                self._stack.remove(made)

    def worker(self, host: Host, *args: str, ice: list[dict] | None = None, environment: dict[str, str] | None = None) -> Worker:
        """A worker that is registered; `ice`: its own ICE_SERVERS instead of the server's."""
        return Worker(self, host, self.folder / self._name("worker"), args, {**_ice(ice), **(environment or {})})

    def client(self, host: Host, invite: Path, *args: str, ice: list[dict] | None = None, environment: dict[str, str] | None = None) -> Program:
        """`webrtc-client ARGS` with --json, on a host; the same host has the same person's folders."""
        folder = self.folder / f"person-{host.name}"
        folder.mkdir(exist_ok=True)
        more = {**_ice(ice), **(environment or {})}
        command = [self.program("webrtc-client"), *args, "--json", "--invite-file", str(invite)]
        return Program(host, command, folder / "client.log", folder, self.environment(folder, more))

    def train(self, host: Host, worker: Worker, package: Path, *args: str, ice: list[dict] | None = None,
              environment: dict[str, str] | None = None) -> Program:
        """`webrtc-client train`, by the trainer that trains nothing unless the package has a steady.yaml."""
        trainer = [] if (package / "steady.yaml").exists() else ["--trainer", TRAINER]
        return self.client(host, worker.invite, "train", str(package), *trainer, *args, ice=ice, environment=environment)

    def package(self, size: int, steady: str | None = None) -> Path:
        """A package that nobody has seen, with `data.bin` of that size; `steady`: what the steady trainer's configuration says, such as
        `max_epochs: 5, rate: 20`."""
        name = self._name("package")
        folder = self.folder / name
        folder.mkdir()
        (folder / "data.bin").write_bytes(b"".join(os.urandom(min(1 << 20, size - begin)) for begin in range(0, size, 1 << 20)))
        if steady is None:
            (folder / "lab.yaml").write_text(f"# {name}\nnone: {{}}\n")
        else:
            (folder / "labels.pkg.slp").write_text(f"labels that this trainer does not read, {name}")
            (folder / "steady.yaml").write_text("data_config: {train_labels_path: [labels.pkg.slp]}\nmodel_config: {}\n"
                                                f"trainer_config: {{{steady}}}\n")
        return folder

    def arrived(self, worker: Worker, package: Path) -> bool:
        """Whether the worker has the package's data, byte for byte."""
        wanted = _digest(package / "data.bin")
        return any(_digest(path) == wanted for path in worker.received("data.bin"))

    def ask_server(self, path: str) -> str:
        """What the signaling server answers to a GET; asked on its own host."""
        program = "import sys, urllib.request as r; print(r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=5).read().decode())"
        return self.signal_host.run(sys.executable, "-c", program, f"http://127.0.0.1:{SIGNAL_PORT}{path}")

    def relayed(self, before: dict[tuple[str, str], int], *outside: str) -> tuple[int, int]:
        """Bytes that coturn and these outside addresses have exchanged since `before` (see `Internet.carried`), and these addresses among
        each other: which way something really took."""
        now = self.internet.carried()
        grown = {pair: count - before.get(pair, 0) for pair, count in now.items()}
        turn = self.turn.addresses
        through = sum(count for (one, other), count in grown.items() if one in outside and other in turn or one in turn and other in outside)
        return through, sum(count for (one, other), count in grown.items() if one in outside and other in outside)

    def ended(self, worker: Worker) -> None:
        """The worker and everything that it started is not needed any more."""
        worker.program.end(3.0)
        end_everything_of(worker.folder)
        if not self.options.keep:
            shutil.rmtree(worker.folder, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        end_everything_of(self.folder)
        if self.options.keep:
            print(f"kept: {self.folder}", file=sys.stderr)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def _ice(servers: list[dict] | None) -> dict[str, str]:
    return {} if servers is None else {"ICE_SERVERS": json.dumps(servers)}


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
