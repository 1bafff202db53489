"""Everything that deploys the programs is in step with them: flags, variables, ports, files."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from conftest import DEPLOY, ROOT, commands_of, flags_of, help_of, variables_of

COMPOSE = ROOT / "docker-compose.yml"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
IMAGES = {"Dockerfile.server": "webrtc-server", "Dockerfile.worker": "webrtc-worker"}
FILES = [
    *(ROOT / name for name in IMAGES),
    COMPOSE,
    *KUBERNETES,
    *sorted((DEPLOY / "systemd").iterdir()),
    *sorted((DEPLOY / "slurm").iterdir()),
    *sorted((DEPLOY / "proxy").iterdir()),
    ROOT / "docs" / "deployment.md",
    ROOT / "README.md",
]
OURS_FOR_COMPOSE = {"WEBRTC_SERVER_IMAGE"}


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def containers(path):
    """The containers of a Kubernetes file."""
    for document in documents(path):
        pod = document.get("spec", {}).get("template", {}).get("spec")
        yield from pod["containers"] if pod else []


def program_of(image: str) -> str:
    return "webrtc-server" if "webrtc-server" in image else "webrtc-worker"


def check_words(program: str, words: list[str], where: str) -> None:
    """Whether the program takes such a command line."""
    command, known = [program], flags_of(program)
    for word in words:
        if word in commands_of(*command):
            command.append(word)
            known = known | flags_of(*command)
    flags = {word.split("=")[0] for word in words if word.startswith("--") and word != "--"}
    assert flags <= known, f"{where}: {' '.join(command)} has no {sorted(flags - known)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_variable_is_one_that_a_program_reads(path):
    known = variables_of("webrtc-server") | variables_of("webrtc-worker") | variables_of("webrtc-client") | OURS_FOR_COMPOSE
    # `WEBRTC_SERVER_HTTP`, `_WS`: the beginning alone is a manner of speaking.
    named = set(re.findall(r"\b(?:WEBRTC_(?!TEST_)[A-Z_]*[A-Z]|ICE_SERVERS)\b", path.read_text()))
    assert named <= known | {"WEBRTC_SERVER"}, sorted(named - known)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_command_line_is_one_that_a_program_takes(path):
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    found = 0
    for line in text.splitlines():
        # What docker is told is docker's.
        if line.lstrip("# ").startswith("docker "):
            continue
        # Where it begins: a line, a quote, a colon, a path. In prose a backtick ends it; in a shell a comment, a pipe, another command.
        for program, rest in re.findall(r"(?:^|[\s`=:]|/bin/)(webrtc-(?:server|worker|client))(\s[^`|;&#]+)", line):
            try:
                words = shlex.split(rest)
            except ValueError:
                continue
            if any(re.match(r"--\w", word) for word in words):
                check_words(program, [word.rstrip(".,:") for word in words], f"{path.name}: {line.strip()}")
                found += 1
    assert found or path.name not in {"README.md", "deployment.md", "worker.sbatch", "webrtc-worker.service"}


def test_compose_and_kubernetes_start_the_programs_with_what_they_take():
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name, service in services.items():
        if "webrtc-" in service["image"]:
            check_words(program_of(service["image"]), service.get("command", []), f"compose: {name}")
    for path in KUBERNETES:
        for container in containers(path):
            program = program_of(container["image"])
            check_words(program, container.get("args", []), path.name)
            for probe in ("readinessProbe", "livenessProbe"):
                words = container.get(probe, {}).get("exec", {}).get("command")
                if words:
                    assert words[0] == program
                    check_words(program, words[1:], path.name)


def test_ports_are_those_that_the_server_listens_on():
    defaults = re.findall(r"\[default: 0\.0\.0\.0:(\d+)\]", help_of("webrtc-server"))
    exposed = re.search(r"^EXPOSE (.*)$", (ROOT / "Dockerfile.server").read_text(), re.M)[1].split()
    assert exposed == defaults
    server = yaml.safe_load(COMPOSE.read_text())["services"]["server"]
    assert [port.split(":") for port in server["ports"]] == [[port, port] for port in defaults]
    by_kind = {document["kind"]: document for document in documents(DEPLOY / "kubernetes" / "server.yaml")}
    listens = by_kind["ConfigMap"]["data"]["WEBRTC_SERVER_LISTEN"].rsplit(":", 1)[1]
    [container] = containers(DEPLOY / "kubernetes" / "server.yaml")
    assert [str(port["containerPort"]) for port in container["ports"]] == [listens]
    assert str(by_kind["Service"]["spec"]["ports"][0]["port"]) == listens
    routes = set(re.findall(r'"(/[\w.-]*)"', (ROOT / "signaling-server/src/api/http.rs").read_text()))
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        assert container[probe]["httpGet"]["path"] in routes


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the root out; `*`, `!NAME` and `**/NAME` are all that it has."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*" and all(rule.startswith(("!", "**/")) for rule in rules[1:])
    parts = path.split("/")
    return f"!{parts[0]}" not in rules or any(f"**/{part}" in rules for part in parts)


@pytest.mark.parametrize("dockerfile", IMAGES)
def test_images_are_built_from_what_is_there(dockerfile):
    text = (ROOT / dockerfile).read_text()
    for sources in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", text, re.M):
        for source in sources.split():
            assert (ROOT / source).exists() and (source == "." or not ignored(source)), source
    workspace = (ROOT / "Cargo.toml").read_text()
    members = re.search(r"^members = \[(.*)\]", workspace, re.M)[1].replace('"', "").split(", ")
    for needed in ["Cargo.toml", "Cargo.lock", *members]:
        assert not ignored(needed), f"cargo needs {needed}"
    package = re.search(r"--package (\S+)", text)[1]
    assert f'name = "{IMAGES[dockerfile]}"' in (ROOT / package / "Cargo.toml").read_text()
    features = re.search(r"--features (\S+)", text)
    assert not features or re.search(rf"^{features[1]} = ", (ROOT / package / "Cargo.toml").read_text(), re.M)
    rust = re.search(r"^ARG RUST_VERSION=(\S+)", text, re.M)[1]
    assert f'rust-version = "{rust}"' in workspace


@pytest.mark.parametrize("dockerfile", IMAGES)
def test_containers_run_as_nobody_and_say_how_they_are(dockerfile):
    text = (ROOT / dockerfile).read_text()
    last = text[text.rindex("\nFROM ") :]
    account = re.search(r"^USER (\d+):\d+$", last, re.M)[1]
    assert int(account) > 0
    health = yaml.safe_load(re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", last, re.M)[1])
    assert health[0].endswith(IMAGES[dockerfile])
    assert health[1] in commands_of(IMAGES[dockerfile])
    for path in KUBERNETES:
        for document in documents(path):
            pod = document.get("spec", {}).get("template", {}).get("spec")
            if pod and program_of(pod["containers"][0]["image"]) == IMAGES[dockerfile]:
                assert str(pod["securityContext"]["runAsUser"]) == account, path.name
                mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
                assert set(re.findall(r"^VOLUME (\S+)$", last, re.M)) <= mounts, path.name


def test_images_are_published_under_the_names_that_are_deployed():
    workflow = yaml.safe_load((ROOT / ".github/workflows/images.yml").read_text())
    registry = workflow["env"]["REGISTRY"]
    built = {(build["image"], build["platform"]) for build in workflow["jobs"]["build"]["strategy"]["matrix"]["include"]}
    joined = {
        (index["image"], platform)
        for index in workflow["jobs"]["index"]["strategy"]["matrix"]["include"]
        for platform in index["platforms"].split()
    }
    assert built == joined
    published = {f"{registry}/{image}" for image, _ in built}
    for path in [COMPOSE, *KUBERNETES]:
        deployed = set(re.findall(r"ghcr\.io/[\w/-]+", path.read_text()))
        assert deployed <= published, path.name
    assert ("webrtc-server", "arm64") in built and ("webrtc-sleap-worker", "arm64") not in built


def test_the_trainer_in_the_image_is_the_one_that_is_tested():
    tested = re.search(r"^SLEAP_VERSION=(\S+)", (ROOT / "scripts/e2e-sleap").read_text(), re.M)[1]
    assert f"ARG SLEAP_NN_VERSION={tested}\n" in (ROOT / "Dockerfile.worker").read_text()
