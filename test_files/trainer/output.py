"""What a training prints: log lines, and progress bars that redraw themselves with a carriage return."""

from __future__ import annotations

import sys
import time


def log(text: str) -> None:
    """Print one line with the time."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} | {text}", flush=True)


class Bar:
    """A progress bar on one line of stdout."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self._start = label, total, time.monotonic()
        self.show(0)

    def show(self, done: int, note: str = "") -> None:
        """Redraw the bar."""
        spent = time.monotonic() - self._start
        filled = 10 * done // self.total
        bar = "█" * filled + " " * (10 - filled)
        rate = f"{done / spent:5.2f}it/s" if done and spent else "?it/s"
        sys.stdout.write(f"\r{self.label}: {100 * done // self.total:3d}%|{bar}| {done}/{self.total} "
                         f"[{int(spent) // 60:02d}:{int(spent) % 60:02d}, {rate}{', ' + note if note else ''}]")
        sys.stdout.flush()

    def end(self) -> None:
        """Go to the next line."""
        sys.stdout.write("\n")
        sys.stdout.flush()
