"""What routers do with packets, as rules for nft.

The four kinds of NAT by RFC 4787's terms. All but the symmetric one keep the port, so a socket of a host has one outside address towards
everybody (endpoint-independent mapping); they differ in who gets in:

- full-cone: whoever sends to it
- address-restricted: the addresses that the socket has sent to
- port-restricted: the addresses and ports that it has sent to
- symmetric: another, random outside port towards each address and port, and in gets only that one

Who gets in is kept in `sent`, what belongs to an outside port in `mapping`; both are renewed with every packet that leaves. Whatever is for
nobody is dropped before connection tracking takes note of it: a note would take the port, and the socket behind it would get another one.
"""

from __future__ import annotations

KINDS = ["full-cone", "address-restricted", "port-restricted", "symmetric"]
MAPPING = 300
"""Seconds for which a mapping lives without packets from inside (RFC 4787 REQ-5 wants 120 at least)."""

FENCES = {
    "udp-dropped": "meta l4proto udp drop",
    "udp-rejected": "meta l4proto udp reject with icmpx type admin-prohibited",
    "only-tcp-443": 'meta l4proto != tcp drop\niifname "lan" tcp dport != 443 drop\niifname "wan" tcp sport != 443 drop',
    "lossy": "meta l4proto udp numgen random mod 100 < 5 drop",
}
"""Firewalls of routers, by what they do with packets that pass; and a line that loses 5 % of all datagrams each way."""


def nat(kind: str, outside: str, hairpin: bool) -> str:
    """A NAT with the outside address given, from the device `lan` to the device `wan`."""
    if hairpin and kind == "symmetric":
        raise ValueError("a symmetric NAT has no outside port that a neighbour could know")
    masquerade = "masquerade random,fully-random" if kind == "symmetric" else "masquerade"
    # Who may come in from outside, and the same of neighbours, whose own outside port is the one that they send from.
    admitted = {
        "full-cone": ("", ""),
        "address-restricted": ("udp dport . ip saddr @sent_address", "udp dport @sent_neighbour"),
        "port-restricted": ("udp dport . ip saddr . udp sport @sent", "udp dport . udp sport @sent_neighbour_port"),
        "symmetric": ("udp dport 0", "udp dport 0"),
    }[kind]
    turned = (f'iifname "lan" ip daddr {outside} {admitted[1]} dnat ip to udp dport map @mapping' if hairpin else "")
    lasting = f"flags dynamic,timeout; timeout {MAPPING}s; size 65535;"
    return f"""
table ip nat {{
    map mapping {{ type inet_service : ipv4_addr . inet_service; {lasting} }}
    set sent_address {{ type inet_service . ipv4_addr; {lasting} }}
    set sent {{ type inet_service . ipv4_addr . inet_service; {lasting} }}
    set sent_neighbour {{ type inet_service; {lasting} }}
    set sent_neighbour_port {{ type inet_service . inet_service; {lasting} }}
    chain remember {{
        type filter hook prerouting priority mangle;
        iifname "lan" meta l4proto udp jump leaving
    }}
    chain leaving {{
        update @mapping {{ udp sport : ip saddr . udp sport }}
        update @sent_address {{ udp sport . ip daddr }}
        update @sent {{ udp sport . ip daddr . udp dport }}
        ip daddr {outside} update @sent_neighbour {{ udp sport }}
        ip daddr {outside} update @sent_neighbour_port {{ udp sport . udp dport }}
    }}
    chain enter {{
        type nat hook prerouting priority dstnat;
        iifname "wan" {admitted[0]} dnat ip to udp dport map @mapping
        {turned}
    }}
    chain leave {{
        type nat hook postrouting priority srcnat;
        oifname "wan" {masquerade}
        oifname "lan" ct status dnat iifname "lan" snat to {outside}
    }}
}}
{router()}
"""


def router() -> str:
    """What every home router has: in gets what belongs to a connection from inside or was forwarded; IPv4 and IPv6."""
    return """
table inet router {
    chain pass {
        type filter hook forward priority filter; policy drop;
        iifname "lan" accept
        ct state established,related accept
        ct status dnat accept
    }
    chain mine {
        type filter hook input priority filter; policy accept;
        iifname "wan" meta l4proto { tcp, udp } drop
        iifname "lan" meta l4proto udp drop
    }
}
"""


def forwarded(port: int, last: int, inside: str) -> str:
    """UDP ports that lead to one host, whoever sends."""
    return ('table ip forwarded {\nchain enter {\ntype nat hook prerouting priority dstnat - 1;\n'
            f'iifname "wan" udp dport {port}-{last} dnat to {inside}\n}}\n}}\n')


def fence(rules: str) -> str:
    """A firewall before everything else."""
    return f"table inet fence {{\nchain pass {{\ntype filter hook forward priority -10;\n{rules}\n}}\n}}\n"


def cut(device: str, what: str) -> str:
    """Nothing comes out of this device any more; address resolution goes on, so that what is mended works at once."""
    which = {"all": "meta protocol { ip, ip6 } drop", "udp": "meta l4proto udp drop"}[what]
    return f'table netdev cut {{\nchain {device} {{\ntype filter hook ingress device "{device}" priority 0;\n{which}\n}}\n}}\n'


COUNTERS = """
table inet carried {
    set flows { type ipv4_addr . ipv4_addr; flags dynamic; counter; size 65535; }
    set flows6 { type ipv6_addr . ipv6_addr; flags dynamic; counter; size 65535; }
    chain pass {
        type filter hook forward priority filter;
        update @flows { ip saddr . ip daddr }
        update @flows6 { ip6 saddr . ip6 daddr }
    }
}
"""
"""Bytes from one public address to another."""
