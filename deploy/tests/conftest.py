"""What the deployment's files say, and what the programs say of themselves."""

from __future__ import annotations

import os
import re
import subprocess
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def program(name: str) -> Path:
    """One of the built programs."""
    path = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / name
    assert path.is_file(), f"{path} is not built: cargo build --workspace --bins"
    return path


def tool(name: str) -> Path:
    """A checker of test_files/tools.txt."""
    path = Path(os.environ.get("WEBRTC_TEST_TOOLS", ROOT / ".venv-tools" / "bin")) / name
    assert path.is_file(), f"{path} is not installed: scripts/test does it"
    return path


@lru_cache
def help_of(*command: str) -> str:
    """The long help of a program, or of one of its commands."""
    line = [program(command[0]), *command[1:], "--help"]
    return subprocess.run(line, check=True, capture_output=True, text=True, env={"PATH": os.environ["PATH"], "COLUMNS": "10000"}).stdout


def commands_of(*command: str) -> list[str]:
    """The commands of a program, or of one of its commands, as its help lists them."""
    section = re.search(r"^Commands:\n((?: .*\n|\n(?= {2}\w))+)", help_of(*command), re.M)
    return [word for word in re.findall(r"^  (\w[\w-]*)", section[1], re.M) if word != "help"] if section else []


def flags_of(*command: str) -> set[str]:
    """The flags that it takes there."""
    return set(re.findall(r"--[a-z][a-z-]*", "\n".join(re.findall(r"^ +(?:-\w, )?(--[a-z].*)$", help_of(*command), re.M))))


def variables_of(name: str) -> set[str]:
    """The variables that a program reads, in whatever command."""
    helps = [help_of(name), *(help_of(name, command) for command in commands_of(name))]
    return {variable for text in helps for variable in re.findall(r"\[env: (\w+)", text)} | {"WEBRTC_LOG", "WEBRTC_INVITE"}
