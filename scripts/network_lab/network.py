"""The Internet, routers with NAT, and hosts; every one a network namespace of its own.

```text
   host ── lan  nat  wan ──┐
   host ── lan  nat  wan ──┤ internet (routes public addresses, nothing else) ├── public host
   host ── lan  nat  wan ── lan  carrier  wan ──┘
```
A host joins a network (the Internet or a router's LAN), leaves it, or moves to another one while its programs run.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
import json
import os
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import link as linking

import rules
from space import LabError, Space

PUBLIC = ["203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24"]
"""The addresses of examples (RFC 5737): they stand for public ones."""
PUBLIC_6 = "2001:db8::/32"
"""RFC 3849."""
GATEWAY, GATEWAY_6 = "169.254.0.1", "fe80::1"
"""The Internet's end of every line, as the other end sees it."""
ANY_FAMILY = ("ipv4",)


@dataclasses.dataclass
class Uplink:
    """A node's line to its network: both ends, and the node's addresses on it."""

    node: Space
    device: str
    far: Space
    far_device: str
    v4: str | None = None
    v6: str | None = None
    network: "Network | None" = None
    carrier: subprocess.Popen | None = None

    def cut(self, what: str = "all") -> None:
        """Nothing passes any more, in either direction, and nobody is told (`udp`: only that)."""
        self.node.nft(rules.cut(self.device, what))
        self.far.nft(rules.cut(self.far_device, what))

    def mend(self) -> None:
        """Everything passes again."""
        for space, device in (self.node, self.device), (self.far, self.far_device):
            space.nft(f"delete chain netdev cut {device}")

    def isolate(self) -> None:
        """Neighbours in the LAN cannot be reached directly any more."""
        self.far.ip(f"link set {self.far_device} type bridge_slave isolated on")

    def close(self) -> None:
        """Pull the line out: device, addresses and routes are gone."""
        if self.carrier:
            self.carrier.kill()
            self.carrier.wait()
        else:
            self.node.ip(f"link delete {self.device}")
        if self.network:
            self.network.release(self)


class Network(Protocol):
    """Where nodes get a line and addresses."""

    def attach(self, node: Space, device: str, families: tuple[str, ...], isolated: bool) -> Uplink:
        """Make a line to it, with addresses and default routes."""

    def release(self, uplink: Uplink) -> None:
        """The line is gone."""


def connect(node: Space, device: str, far: Space, far_device: str) -> Uplink:
    """A cable between two nodes, both ends up."""
    node.ip(f"link add {device} type veth peer name {far_device} netns {far.name}", f"link set {device} up")
    far.ip(f"link set {far_device} up")
    return Uplink(node, device, far, far_device)


class Internet(Space):
    """Routes between public addresses. Packets to any other one, such as a private one, vanish."""

    def __init__(self, name: str = "internet"):
        super().__init__(name)
        self.forward()
        self.ip("route add blackhole default", "route add blackhole ::/0")
        self.nft(rules.COUNTERS)
        self._numbers = itertools.count(1)
        addresses = itertools.chain.from_iterable(list(ipaddress.ip_network(network).hosts())[9:] for network in PUBLIC)
        self._free = deque(map(str, addresses))
        self._sites = itertools.count(1)

    def public_address(self) -> str:
        """A free IPv4 address; the ones given back are taken last."""
        if not self._free:
            raise LabError("no public IPv4 address is left")
        return self._free.popleft()

    def site(self) -> ipaddress.IPv6Network:
        """A free IPv6 prefix for a site, /48."""
        return ipaddress.IPv6Network((int(ipaddress.ip_network(PUBLIC_6).network_address) + (next(self._sites) << 80), 48))

    def attach(self, node: Space, device: str = "wan", families: tuple[str, ...] = ANY_FAMILY, isolated: bool = False,
               settings: linking.Settings | None = None, engine: Path | None = None) -> Uplink:
        """A line with public addresses; with `settings`, one of that rate, delay and loss, carried by `engine` (shared/examples/link.rs)."""
        far_device = f"line{next(self._numbers)}"
        if settings and engine:
            uplink = tun_line(node, device, self, far_device, settings, engine)
        else:
            uplink = connect(node, device, self, far_device)
        uplink.network = self
        self.ip(f"address add {GATEWAY}/32 dev {far_device}", f"address add {GATEWAY_6}/64 dev {far_device} nodad")
        if "ipv4" in families:
            uplink.v4 = self.public_address()
            self.ip(f"route add {uplink.v4}/32 dev {far_device}")
            node.ip(f"address add {uplink.v4}/32 dev {device}", f"route add {GATEWAY}/32 dev {device} src {uplink.v4}",
                    f"route add default via {GATEWAY} dev {device} src {uplink.v4}")
        if "ipv6" in families:
            uplink.v6 = str(self.site()[1])
            self.route_v6(f"{uplink.v6}/128", uplink)
            node.ip(f"address add {uplink.v6}/128 dev {device} nodad",
                    f"route add default via {GATEWAY_6} dev {device} src {uplink.v6}")
        return uplink

    def route_v6(self, prefix: str, uplink: Uplink) -> None:
        """Send a prefix down a line."""
        via = "" if prefix.startswith(f"{uplink.v6}/") else f"via {uplink.v6} "
        self.ip(f"route replace {prefix} {via}dev {uplink.far_device}")

    def release(self, uplink: Uplink) -> None:
        if uplink.v4:
            self._free.append(uplink.v4)

    def carried(self) -> dict[tuple[str, str], int]:
        """Bytes so far from one public address to another, headers included."""
        found = {}
        for name in "flows", "flows6":
            listed = json.loads(self.run("nft", "-j", "list", "set", "inet", "carried", name))
            entries = next(entry["set"] for entry in listed["nftables"] if "set" in entry).get("elem", [])
            for entry in entries:
                source, destination = entry["elem"]["val"]["concat"]
                found[source, destination] = entry["elem"]["counter"]["bytes"]
        return found


def tun_line(node: Space, device: str, far: Space, far_device: str, settings: linking.Settings, engine: Path) -> Uplink:
    """A line that is as slow, long and lossy as asked."""
    devices = [linking.open_tun(name) for name in (device, far_device)]
    for name, space in (device, node), (far_device, far):
        linking.run_quietly("ip", "link", "set", name, "txqueuelen", "20000", "netns", space.name)
        space.ip(f"link set {name} up")
    numbers = [settings.rate, settings.delay * 1e6, settings.loss * 1e6, settings.queue * 1e6, settings.seed]
    place = Path("/run") / f"{far_device}.stats"
    carrier = subprocess.Popen([str(engine), *(str(round(number)) for number in numbers), str(place)], stdin=devices[0], stdout=devices[1])
    for opened in devices:
        os.close(opened)
    linking.wait_until(lambda: place.exists() or carrier.poll() is not None, "the line")
    if carrier.poll() is not None:
        raise LabError(f"{engine} ended with {carrier.returncode}")
    return Uplink(node, device, far, far_device, carrier=carrier)


class Nat(Space):
    """A router: NAT of one kind for IPv4, a stateful firewall without NAT for IPv6, a LAN for hosts or further routers."""

    def __init__(self, name: str, kind: str, upstream: "Internet | Nat", subnet: str, hairpin: bool = False,
                 families: tuple[str, ...] = ANY_FAMILY, settings: linking.Settings | None = None, engine: Path | None = None):
        super().__init__(name)
        self.kind, self.hairpin, self.families = kind, hairpin, families
        self.forward()
        if isinstance(upstream, Internet):
            self.uplink = upstream.attach(self, "wan", families, settings=settings, engine=engine)
        else:
            self.uplink = upstream.attach(self, "wan", families)
        self._subnet = ipaddress.ip_network(subnet)
        self._hosts: Iterator = iter(list(self._subnet.hosts())[1:])
        self._numbers = itertools.count(1)
        gateway = next(iter(self._subnet.hosts()))
        self.gateway = str(gateway)
        # Where Docker runs, bridges hand what they switch to our rules, and what is turned back to a neighbour would be switched after all.
        self.run("sh", "-ec", "for call in /proc/sys/net/bridge/bridge-nf-call-*tables; do [ ! -e $call ] || echo 0 > $call; done")
        self.ip("link add lan type bridge", "link set lan up", f"address add {gateway}/{self._subnet.prefixlen} dev lan")
        if "ipv6" in families:
            if not isinstance(upstream, Internet):
                raise LabError("IPv6 comes from the Internet itself, not through another router")
            site = upstream.site()
            self._site = site
            self._hosts_6: Iterator = (site[number] for number in itertools.count(2))
            self.ip(f"address add {site[1]}/64 dev lan nodad", f"address add {GATEWAY_6}/64 dev lan nodad")
            upstream.route_v6(str(site), self.uplink)
        self.nft(rules.nat(kind, self.uplink.v4, hairpin) if self.uplink.v4 else rules.router())
        self._fenced = False

    @property
    def v4(self) -> str | None:
        """The outside address."""
        return self.uplink.v4

    def attach(self, node: Space, device: str = "wan", families: tuple[str, ...] = ANY_FAMILY, isolated: bool = False) -> Uplink:
        """A line to the LAN; `isolated`: its neighbours cannot be reached directly, as in a guest network."""
        far_device = f"port{next(self._numbers)}"
        uplink = connect(node, device, self, far_device)
        uplink.network = self
        self.ip(f"link set {far_device} master lan")
        if isolated:
            uplink.isolate()
        if "ipv4" in families and self.uplink.v4:
            uplink.v4 = str(next(self._hosts))
            node.ip(f"address add {uplink.v4}/{self._subnet.prefixlen} dev {device}", f"route add default via {self.gateway} dev {device}")
        if "ipv6" in families and "ipv6" in self.families:
            uplink.v6 = str(next(self._hosts_6))
            node.ip(f"address add {uplink.v6}/64 dev {device} nodad", f"route add default via {GATEWAY_6} dev {device}")
        return uplink

    def release(self, uplink: Uplink) -> None:
        """Addresses of a LAN are not used again."""

    def fence(self, name: str) -> None:
        """Put a firewall in front, one of `rules.FENCES`, now."""
        self.open()
        self.nft(rules.fence(rules.FENCES[name]))
        self._fenced = True

    def open(self) -> None:
        """Take the firewall away again."""
        if self._fenced:
            self.nft("delete table inet fence")
        self._fenced = False

    def forward_ports(self, first: int, last: int, host: "Host") -> None:
        """Let UDP ports lead to a host, whoever sends."""
        self.nft(rules.forwarded(first, last, host.v4))

    def restart(self) -> None:
        """Forget all connections and mappings, as a router that was switched off and on."""
        if self.uplink.v4:
            for name in "mapping", "sent_address", "sent", "sent_neighbour", "sent_neighbour_port":
                self.nft(f"flush {'map' if name == 'mapping' else 'set'} ip nat {name}")
        self.flush_conntrack()

    def close(self) -> None:
        self.uplink.close()
        super().close()


class Host(Space):
    """A machine on which programs run."""

    def __init__(self, name: str):
        super().__init__(name)
        self.uplink: Uplink | None = None
        self._devices = itertools.count(0)

    def join(self, network: Network, families: tuple[str, ...] = ANY_FAMILY, isolated: bool = False, **more: object) -> "Host":
        """Plug in."""
        self.uplink = network.attach(self, f"eth{next(self._devices)}", families, isolated, **more)
        return self

    def shape(self, megabits: float) -> None:
        """Send no faster than that from now on, on this line."""
        self.run("tc", "qdisc", "replace", "dev", self.uplink.device, "root", "tbf", "rate", f"{round(megabits * 1000)}kbit", "burst", "64k",
                 "latency", "100ms")

    def leave(self) -> None:
        """Unplug; programs go on without a network."""
        if self.uplink:
            self.uplink.close()
        self.uplink = None

    def move(self, network: Network, families: tuple[str, ...] = ANY_FAMILY) -> None:
        """Unplug and plug in elsewhere: another interface, other addresses."""
        self.leave()
        self.join(network, families)

    @property
    def v4(self) -> str | None:
        """Its IPv4 address."""
        return self.uplink.v4 if self.uplink else None

    @property
    def v6(self) -> str | None:
        """Its IPv6 address."""
        return self.uplink.v6 if self.uplink else None

    def cut(self, what: str = "all") -> None:
        """Its line carries nothing any more; its interface does not notice."""
        self.uplink.cut(what)

    def mend(self) -> None:
        """Its line carries everything again."""
        self.uplink.mend()

    def listens(self, port: int, protocol: str = "tcp") -> bool:
        """Whether something on it listens on this port."""
        shown = self.run("cat", f"/proc/net/{protocol}", f"/proc/net/{protocol}6")
        state = "0A" if protocol == "tcp" else "07"
        lines = (line.split() for line in shown.splitlines())
        return any(len(words) > 3 and words[3] == state and words[1].endswith(f":{port:04X}") for words in lines)

    def close(self) -> None:
        self.leave()
        super().close()

