"""The network lab proves itself, and what must always connect does: the corners of the NAT matrix, and both sides without UDP.

Needs network namespaces, nft, coturn, and the built programs; where one of them is missing the tests fail and say what to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LAB = ROOT / "scripts/network_lab/lab.py"
PROGRAMS = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
INDEPENDENT, ADDRESS, PORT = "endpoint-independent", "address-dependent", "address-and-port-dependent"
RUN_TIME = 120


def lab(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the lab to its end."""
    return subprocess.run([sys.executable, LAB, *arguments], capture_output=True, text=True, timeout=RUN_TIME, env={**os.environ, **environment})


def results(folder: Path, *arguments: str) -> list[dict]:
    """What a command of the lab found out, whether or not its goals were met."""
    file = folder / "results.json"
    done = lab(*arguments, "--json", str(file))
    assert file.exists(), f"the lab did not get there (exit code {done.returncode}): {done.stderr}"
    return json.loads(file.read_text())["results"]


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Mapping and filtering of each kind of NAT, as plain UDP sockets see them. Hairpinning and firewalls are checked on the way."""
    return {found["kind"]: (found["mapping"], found["filtering"]) for found in results(tmp_path_factory.mktemp("nats"), "nats")}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Pairs of networks with the real programs, each tried once."""
    found = results(tmp_path_factory.mktemp("matrix"), "matrix", "--quick", "--runs", "1", "--jobs", "2", "--bin-dir", str(PROGRAMS))
    return {pair["name"]: pair for pair in found}


@pytest.mark.parametrize("kind, mapping, filtering", [
    ("full-cone", INDEPENDENT, INDEPENDENT),
    ("address-restricted", INDEPENDENT, ADDRESS),
    ("port-restricted", INDEPENDENT, PORT),
    ("symmetric", PORT, PORT),
])
def test_a_nat_is_what_it_is_called(nats, kind, mapping, filtering):
    assert nats[kind] == (mapping, filtering)


@pytest.mark.parametrize("name, relayed", [
    ("full-cone / full-cone", False),
    ("full-cone / symmetric", False),
    ("symmetric / full-cone", False),
    ("symmetric / symmetric", True),
    ("both sides' UDP dropped, TCP 443", True),
])
def test_a_pair_connects_the_right_way_and_soon_enough(pairs, name, relayed):
    pair = pairs[name]
    assert not pair["faults"]
    for run in pair["runs"]:
        # By the bytes that were counted in the network, not by what the client says.
        assert (run["relayed"] > 1_000_000) == relayed
        assert run["whole"]


def test_where_namespaces_are_forbidden_the_lab_says_what_to_allow(tmp_path):
    forbidding = tmp_path / "unshare"
    forbidding.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n")
    forbidding.chmod(0o755)
    done = lab("nats", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert "Operation not permitted" in done.stderr and "sysctl" in done.stderr
