"""Each kind of NAT, built and asked with plain UDP sockets what it is, in RFC 4787's terms; hairpinning and firewalls, too."""

from __future__ import annotations

import argparse
import concurrent.futures
import tempfile
from pathlib import Path

from report import write_json

import rules
import space
from behaviour import check, hairpins, passes
from network import Host, Internet, Nat

HELP = "each kind of NAT proves that it is what it is called"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Its own options: none."""


def run(options: argparse.Namespace) -> int:
    """Ask them all."""
    with tempfile.TemporaryDirectory() as folder:
        hosts = Path(folder) / "hosts"
        hosts.write_text("127.0.0.1 localhost\n")
        space.prepare(hosts)
        internet = Internet()
        fences = [name for name in rules.FENCES if name != "lossy"]
        # Most of it is waiting for what must not arrive.
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            kinds = [pool.submit(check, internet, kind, kind) for kind in rules.KINDS]
            rest = [pool.submit(check_hairpin, internet, kind, on) for kind in rules.KINDS[:3] for on in (True, False)]
            rest += [pool.submit(check_fence, internet, name) for name in fences]
            results = [{"kind": kind, **vars(future.result())} for kind, future in zip(rules.KINDS, kinds)]
            for future in rest:
                future.result()
        print("| NAT | mapping | filtering |\n|---|---|---|")
        for result in results:
            print(f"| {result['kind']} | {result['mapping']} | {result['filtering']} |")
        print(f"\nhairpinning on and off with {', '.join(rules.KINDS[:3])}, and firewalls ({', '.join(fences)}): as asked")
    if options.json:
        write_json(options.json, {}, results)
    return 0


def check_hairpin(internet: Internet, kind: str, on: bool) -> None:
    """Two hosts that see each other only by their NAT's outside address.

    Raises LabError when hairpinning is not as asked.
    """
    name = f"{kind}-{'hairpin' if on else 'plain'}"
    nat = Nat(name, kind, internet, "192.168.78.0/24", hairpin=on)
    left, right = (Host(f"{name}-{side}").join(nat, isolated=True) for side in ("left", "right"))
    public = Host(f"{name}-public").join(internet)
    try:
        if hairpins(left, right, public) != on:
            raise space.LabError(f"hairpinning of a NAT that is {kind} should be {'on' if on else 'off'}")
    finally:
        for made in (left, right, public, nat):
            made.close()


def check_fence(internet: Internet, name: str) -> None:
    """A firewall that goes up and is taken away again, and a line that is cut and mended.

    Raises LabError when UDP passes where it should not, or does not where it should.
    """
    nat = Nat(name, "full-cone", internet, "192.168.79.0/24")
    inside, public = Host(f"{name}-inside").join(nat), Host(f"{name}-outside").join(internet)
    steps = [(lambda: None, True), (lambda: nat.fence(name), False), (nat.open, True), (inside.cut, False), (inside.mend, True)]
    try:
        for number, (step, wanted) in enumerate(steps):
            step()
            if passes(inside, public) != wanted:
                raise space.LabError(f"in step {number} of {name} UDP should{'' if wanted else ' not'} pass")
    finally:
        for made in (inside, public, nat):
            made.close()
