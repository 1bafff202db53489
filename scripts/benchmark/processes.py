"""What /proc says of processes and of the machine: memory, processor time, and who else worked."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE = 0.1
"""Seconds between two looks at a process's memory. The kernel keeps the peak; more looks only take time from what is measured."""


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                found += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
    return found


def peak_memory(pid: int) -> int:
    """The most memory that a living process has had resident: bytes."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def processor_time(pid: int) -> float:
    """Seconds that a living process, and children of it that have ended, computed."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:15])) / TICKS


def ended(pid: int) -> bool:
    """Whether a process has ended and nobody has waited for it yet."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def busy() -> float:
    """Seconds that all processors together have worked since the start."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return (sum(map(int, words[:8])) - int(words[3]) - int(words[4])) / TICKS


class Memory:
    """The peak of each end's processes, looked at again and again; what `wait4` says would have this program's own peak in it."""

    def __init__(self, *roots: int, descendants: bool):
        self._peaks: list[dict[int, int]] = [{} for _ in roots]
        self._roots, self._descendants = roots, descendants
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)
        self._thread.start()

    def _look_on(self) -> None:
        while not self._over.is_set():
            self._look()
            self._over.wait(SAMPLE)

    def _look(self) -> None:
        for root, peaks in zip(self._roots, self._peaks):
            for pid in tree(root) if self._descendants else [root]:
                peaks[pid] = max(peak_memory(pid), peaks.get(pid, 0))

    def end(self) -> list[int]:
        """The peaks by end: the sum over its processes."""
        self._look()
        self._over.set()
        self._thread.join()
        return [sum(peaks.values()) for peaks in self._peaks]
