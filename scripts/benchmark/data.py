"""The data sets that are sent, and whether they arrived.

The same seed makes the same bytes, in which no two blocks are equal: a tool that sends each block once must not gain by that.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

NAMES = ["random", "many", "compressible"]


class NotTheSame(Exception):
    """What arrived is not what was sent."""


def make_random(folder: Path, size: int, rng: random.Random) -> None:
    """One file that nothing can compress."""
    with open(folder / "data.bin", "wb") as file:
        for begin in range(0, size, 1 << 20):
            file.write(rng.randbytes(min(1 << 20, size - begin)))


def make_many(folder: Path, count: int, rng: random.Random) -> None:
    """Many files of 10 kB, as a package of single frames has them."""
    for number in range(count):
        (folder / f"frame{number:05}.bin").write_bytes(rng.randbytes(10_000))


def make_compressible(folder: Path, size: int, rng: random.Random) -> None:
    """One file that shrinks to about a quarter, in which no two blocks are equal."""
    line = b"0.25 0.50 0.75 1.00 " * 154
    with open(folder / "data.bin", "wb") as file:
        for begin in range(0, size, 4096):
            file.write((rng.randbytes(1024) + line[:3072])[:size - begin])


def make(name: str, folder: Path, options: argparse.Namespace) -> int:
    """A data set; its bytes."""
    folder.mkdir()
    rng = random.Random(20261101)
    if name == "many":
        make_many(folder, options.files, rng)
    else:
        {"random": make_random, "compressible": make_compressible}[name](folder, options.size, rng)
    # A package must have a configuration; 30 bytes more for everybody.
    (folder / "bench.yaml").write_text("# for scripts/bench\nnone: {}\n")
    return sum(path.stat().st_size for path in folder.iterdir())


def check_same(sent: Path, arrived: Path) -> None:
    """Every byte must have arrived."""
    for path in sorted(sent.iterdir()):
        try:
            with open(path, "rb") as one, open(arrived / path.name, "rb") as other:
                same = os.fstat(one.fileno()).st_size == os.fstat(other.fileno()).st_size
                while same and (block := one.read(1 << 20)):
                    same = block == other.read(1 << 20)
        except FileNotFoundError:
            same = False
        if not same:
            raise NotTheSame(f"{path.name} did not arrive as it was sent")
