"""Programs that run on hosts of the lab: started, listened to, killed, started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from client import Client
from network import Host
from space import LabError

PATIENCE = 60.0
"""Seconds within which anything that is waited for happens, unless told otherwise."""

Event = dict
Wanted = Callable[[Event], bool]


class Program(Client):
    """A running program that says one JSON object a line on stdout, and whatever it likes to its log."""

    def __init__(self, host: Host, command: list[str], log: Path, folder: Path, environment: dict[str, str]):
        self.host, self.log, self.command = host, log, command
        self.begun = time.monotonic()
        with open(log, "ab") as out:
            process = subprocess.Popen([*host.prefix, *command], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=out)
        super().__init__(process)

    def wait_for(self, wanted: str | Wanted, seconds: float = PATIENCE) -> tuple[float, Event]:
        """The next event that is wanted (of this type, or for which this is true), after those waited for before, and when it came."""
        matches = (lambda event: event.get("type") == wanted) if isinstance(wanted, str) else wanted
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                while self._next < len(self._events):
                    self._next += 1
                    if matches(self._events[self._next - 1][1]):
                        return self._events[self._next - 1]
                if self._over:
                    raise LabError(f"{self} ended before {wanted if isinstance(wanted, str) else 'what was waited for'}: {self.last_words()}")
                if not self._changed.wait(deadline - time.monotonic()):
                    raise LabError(f"{self}: no {wanted if isinstance(wanted, str) else 'event as wanted'} within {seconds:g} s: {self.last_words()}")

    def skip(self) -> None:
        """What has been said so far counts as waited for."""
        with self._changed:
            self._next = len(self._events)

    def events(self, kind: str | None = None) -> list[tuple[float, Event]]:
        """Everything that it has said so far, or all of one type."""
        with self._changed:
            return [told for told in self._events if kind is None or told[1].get("type") == kind]

    def exit_code(self, seconds: float = PATIENCE) -> int:
        """Its exit code, once it has ended by itself and everything that it said is here."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self} has not ended within {seconds:g} s: {self.last_words()}") from error
        self._thread.join()
        return code

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def end(self, seconds: float = 10.0) -> None:
        """SIGTERM, and SIGKILL where that does not help."""
        if self.running():
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        self._thread.join()

    def last_words(self) -> str:
        """What it said at last: an error's message, or the end of its log."""
        said = [event for _, event in self._events[-3:]]
        if said and said[-1].get("type") == "error":
            return str(said[-1].get("message") or said[-1])
        tail = self.log.read_text(errors="replace").splitlines()[-5:]
        return " | ".join([*map(json.dumps, said), *tail])[-1500:]

    def __str__(self) -> str:
        return f"{Path(self.command[0]).name} on {self.host.name}"


class Service:
    """A program that can be started again with the same folders and words."""

    def __init__(self, start: Callable[[], Program]):
        self._start = start
        self.program = start()

    def kill(self) -> None:
        """SIGKILL."""
        self.program.kill()

    def stop(self) -> None:
        """SIGTERM."""
        self.program.end()

    def start(self) -> None:
        """Start it again."""
        self.program = self._start()

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.program.running()


def end_everything_of(folder: Path) -> None:
    """Kill whatever has this folder in its command line: a job's runner outlives its worker on purpose."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if int(name) != os.getpid() and os.fsencode(folder) in Path(f"/proc/{name}/cmdline").read_bytes():
                os.kill(int(name), signal.SIGKILL)


def environment(home: Path, more: dict[str, str] | None = None) -> dict[str, str]:
    """Nothing of the user's own settings, proxies and caches."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "RUST_BACKTRACE", "TMPDIR")}
    log = {"WEBRTC_LOG": os.environ["WEBRTC_LOG"]} if "WEBRTC_LOG" in os.environ else {}
    return {**kept, **log, "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "XDG_DATA_HOME": str(home / ".local/share"), **(more or {})}
