"""Set-ups that are broken in one way each, for doctor to find out."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import link as linking

from cells import Pair, behind, fenced, only_ipv6
from turn import PORT, TLS_PORT, CertificateAuthority, Turn
from world import SIGNAL_PORT, World

NAT = "port-restricted"
NOBODY = "198.51.100.250"
"""A public address that nobody has: what is sent there vanishes."""
LATE_PORT, STRANGER_PORT = 8080, 8081


@dataclasses.dataclass
class Visit:
    """What is broken, as far as it is in place before the programs start; the rest is done in between."""

    pair: Pair
    ice: list[dict] | None = None
    """ICE_SERVERS of both sides, instead of what the server tells."""
    worker: dict[str, str] = dataclasses.field(default_factory=dict)
    client: dict[str, str] = dataclasses.field(default_factory=dict)
    """Their environments."""
    invite: Callable[[dict], dict] | None = None
    """What happens to the invite on its way."""
    meanwhile: Callable[[object], None] | None = None
    """What happens once the worker is there; it gets the worker."""


@dataclasses.dataclass(frozen=True)
class Broken:
    """One set-up, and what doctor must say first."""

    name: str
    cause: str
    side: str
    build: Callable[[World, contextlib.ExitStack], Visit]
    says: str = ""
    """Words of the verdict."""


def both(world: World) -> Pair:
    """The usual two homes."""
    return behind(NAT, NAT)(world)


def stun(world: World) -> list[dict]:
    """STUN alone, on two ports, so that mappings can be compared."""
    return [{"urls": [f"stun:turn.lab.test:{port}" for port in (PORT, TLS_PORT)]}]


def plain(**more: object) -> Callable[[World, contextlib.ExitStack], Visit]:
    """The usual two homes, with STUN, and something else."""
    return lambda world, _: Visit(both(world), stun(world), **more)


def blocked(client: str | None, worker: str | None) -> Callable[[World, contextlib.ExitStack], Visit]:
    """Firewalls that drop UDP; the server tells of everything that coturn has."""
    return lambda world, _: Visit(fenced(client, worker)(world))


def urls(*named: str) -> Callable[[World, contextlib.ExitStack], Visit]:
    """Other STUN servers."""
    return lambda world, _: Visit(both(world), [{"urls": list(named)}])


def credentials(lifetime: float = 3600, secret: str | None = None) -> Callable[[World, contextlib.ExitStack], Visit]:
    """Behind symmetric NATs, which need a relay, with other credentials."""
    def build(world: World, _: contextlib.ExitStack) -> Visit:
        user, password = world.turn.credentials(lifetime, **({"secret": secret} if secret else {}))
        turn = {"urls": [f"turn:turn.lab.test:{PORT}?transport=udp"], "username": user, "credential": password}
        return Visit(behind("symmetric", "symmetric")(world), [*stun(world), turn])
    return build


class Issuer:
    """The lab's authority, with something wrong about each certificate."""

    def __init__(self, authority: CertificateAuthority, name: str, days: int, addresses: bool):
        self._authority, self._name, self._days, self._addresses = authority, name, days, addresses

    def issue(self, _name: str, addresses: list[str]) -> tuple[Path, Path]:
        return self._authority.issue(self._name, addresses if self._addresses else [], self._days)


@contextlib.contextmanager
def relay(world: World, authority: object, *more: str) -> Iterator[Turn]:
    """Another coturn, on a host of its own."""
    host = world.host("relay").join(world.internet)
    turn = Turn(host, world.folder / host.name, authority, list(more))
    try:
        yield turn
    finally:
        turn.kill()
        world.remove(host)


def certificate(name: str | None = None, days: int = 2, trusted: bool = True) -> Callable[[World, contextlib.ExitStack], Visit]:
    """TURN over TLS only, behind firewalls without UDP, with a certificate that is no good."""
    def build(world: World, stack: contextlib.ExitStack) -> Visit:
        authority = world.authority if trusted else CertificateAuthority(world.folder / "another-ca")
        issuer = Issuer(authority, name or "relay.lab.test", days, addresses=name is None)
        turn = stack.enter_context(relay(world, issuer))
        user, password = turn.credentials()
        ice = [{"urls": [f"turns:{turn.host.v4}:{TLS_PORT}?transport=tcp"], "username": user, "credential": password}]
        return Visit(fenced("udp-dropped", "udp-dropped")(world), ice)
    return build


def quota(world: World, stack: contextlib.ExitStack) -> Visit:
    """A TURN server with one place, which is taken."""
    turn = stack.enter_context(relay(world, world.authority, "--user-quota=1", "--total-quota=1", "--verbose"))
    user, password = turn.credentials()
    url = f"turn:{turn.host.v4}:{PORT}?transport=udp"
    holder = world.host("holder").join(world.internet)
    taken = subprocess.Popen([*holder.prefix, "turnutils_uclient", "-u", user, "-w", password, "-e", holder.v4, "-n", "100000", "-z", "1000",
                              "-m", "1", "-c", str(turn.host.v4)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(world.remove, holder)
    stack.callback(taken.wait)
    stack.callback(taken.kill)
    log = world.folder / turn.host.name / "turn.log"
    linking.wait_until(lambda: "ALLOCATE processed, success" in log.read_text(errors="replace"), "the one place to be taken")
    return Visit(behind("symmetric", "symmetric")(world), [*stun(world), {"urls": [url], "username": user, "credential": password}])


def served(words: list[str], port: int) -> Callable[[World, contextlib.ExitStack], Visit]:
    """Another program on the signaling server's machine, to which the client's invite leads."""
    def build(world: World, stack: contextlib.ExitStack) -> Visit:
        program = subprocess.Popen([*world.signal_host.prefix, sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(program.wait)
        stack.callback(program.kill)
        linking.wait_until(lambda: world.signal_host.listens(port), "another program on the signaling server's machine")
        return Visit(both(world), stun(world), invite=server_at(port))
    return build


def server_at(port: int) -> Callable[[dict], dict]:
    """The invite leads to another port of the signaling server's machine."""
    return lambda invite: {**invite, "s": invite["s"].rsplit(":", 1)[0] + f":{port}"}


def full_range(world: World, stack: contextlib.ExitStack) -> Visit:
    """The client may use one UDP port, and another program has it."""
    pair = both(world)
    hold = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 50000)); time.sleep(600)"
    holder = subprocess.Popen([*pair.client.prefix, sys.executable, "-c", hold])
    stack.callback(holder.wait)
    stack.callback(holder.kill)
    linking.wait_until(lambda: pair.client.listens(50000, "udp"), "a program that holds the port")
    return Visit(pair, stun(world), client={"WEBRTC_UDP_PORTS": "50000-50000"})


def no_server(world: World, stack: contextlib.ExitStack) -> Visit:
    """The signaling server ends once the worker has registered."""
    stack.callback(world.server.start)
    return Visit(both(world), stun(world), meanwhile=lambda _worker: world.server.stop())


def other(field: str) -> Callable[[dict], dict]:
    """A part of the invite was another one."""
    def change(invite: dict) -> dict:
        text = invite[field]
        return {**invite, field: ("A" if text[0] != "A" else "B") + text[1:]}
    return change


def families(world: World, _: contextlib.ExitStack) -> Visit:
    """One side has IPv6 only, the other IPv4 only."""
    return Visit(only_ipv6(("ipv6",), ("ipv4",))(world), stun(world))


def symmetric(world: World, _: contextlib.ExitStack) -> Visit:
    """Neither side can be addressed."""
    return Visit(behind("symmetric", "symmetric")(world), stun(world))


LATE = [str(Path(__file__).with_name("late.py")), str(LATE_PORT), "127.0.0.1", str(SIGNAL_PORT), "600"]
STRANGER = ["-m", "http.server", str(STRANGER_PORT)]

SETUPS = [
    Broken("the worker's network drops UDP", "udp-blocked", "worker", blocked(None, "udp-dropped")),
    Broken("the client's network drops UDP", "udp-blocked", "client", blocked("udp-dropped", None)),
    Broken("both networks drop UDP", "udp-blocked", "both", blocked("udp-dropped", "udp-dropped")),
    Broken("the STUN server does not answer", "stun-unreachable", "both", urls(f"stun:{NOBODY}:3478")),
    Broken("the STUN server's name does not exist", "stun-name", "both", urls("stun:nowhere.lab.test:3478")),
    Broken("wrong TURN credentials", "turn-credentials", "both", credentials(secret="another secret")),
    Broken("expired TURN credentials", "turn-expired", "both", credentials(lifetime=-600)),
    Broken("TURN certificate of an unknown authority", "turn-certificate", "both", certificate(trusted=False), "signed by nobody"),
    Broken("TURN certificate expired", "turn-certificate", "both", certificate(days=-1), "has expired"),
    Broken("TURN certificate for another name", "turn-certificate", "both", certificate(name="other.lab.test"), "for another name"),
    Broken("the signaling server is down", "server-unreachable", "between", no_server),
    Broken("the invite has a wrong port", "server-unreachable", "between", plain(invite=server_at(8001))),
    Broken("another program at the server's address", "server-strange", "between", served(STRANGER, STRANGER_PORT)),
    Broken("a clock is ten minutes off", "clock", "client", served(LATE, LATE_PORT), "Your clock is"),
    Broken("the room is gone", "room-gone", "client", plain(invite=lambda invite: {**invite, "r": "0" * 32})),
    Broken("the worker is gone", "worker-gone", "worker", plain(meanwhile=lambda worker: worker.kill())),
    Broken("wrong secret in the invite", "wrong-invite", "client", plain(invite=other("k"))),
    Broken("ICE_SERVERS malformed", "settings", "client", plain(client={"ICE_SERVERS": '[{"urls": "stun:x"'})),
    Broken("relays only, without TURN", "relay-only-without-turn", "client", plain(client={"WEBRTC_RELAY_ONLY": "1"})),
    Broken("symmetric NATs, without TURN", "symmetric-nat", "both", symmetric),
    Broken("no UDP port is free", "no-port", "client", full_range),
    Broken("wrong advertised address", "advertised-address", "worker", plain(worker={"WEBRTC_ADVERTISE_IP": NOBODY})),
    Broken("no interface is left", "no-address", "client", plain(client={"WEBRTC_INTERFACES": "eth77"})),
    Broken("TURN quota reached", "turn-quota", "both", quota),
    Broken("IPv6 only and IPv4 only, without TURN", "address-families", "between", families),
]


def changed(text: str, change: Callable[[dict], dict]) -> str:
    """An invite with another content."""
    prefix, body = text.strip().split(":", 1)
    content = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    packed = json.dumps(change(content), separators=(",", ":")).encode()
    return f"{prefix}:{base64.urlsafe_b64encode(packed).decode().rstrip('=')}"
