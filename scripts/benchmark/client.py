"""A program that runs with `--json`: what it says, as it says it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time


class Client:
    """Events of a running program, each once and with the time at which it came."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self._events: list[tuple[float, dict]] = []
        self._next = 0
        self._over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            # A killed program may leave half a line; one that is no JSON is for people.
            with contextlib.suppress(ValueError), self._changed:
                self._events.append((time.monotonic(), json.loads(line)))
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def next(self, seconds: float) -> tuple[float, dict] | None:
        """The next event and its time; `None` when there will be none.

        Raises TimeoutError when nothing is said for so long.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._over or self._next < len(self._events), seconds):
                raise TimeoutError(f"the client said nothing for {seconds:.0f} s")
            if self._next == len(self._events):
                return None
            self._next += 1
            return self._events[self._next - 1]

    def kill(self) -> None:
        """SIGKILL, and everything that it had said before is there."""
        self.process.kill()
        self.process.wait()
        self._thread.join()

    def everything(self) -> list[tuple[float, dict]]:
        """All events so far."""
        with self._changed:
            return list(self._events)
