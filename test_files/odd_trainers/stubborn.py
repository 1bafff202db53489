#!/usr/bin/env python3
"""A trainer that ignores stop, SIGTERM, SIGINT and SIGHUP, and has a child that does the same.

`stubborn.pids` in the run's folder names both. Both are in the trainer's process group, hold its output open, and end
by themselves after ten minutes, so that a test that fails leaves nothing behind for ever.
"""

import os
import signal
import time

from odd import Progress, make_run_folder, read_config

LIFETIME = 600.0


def ignore_signals() -> None:
    """Let only SIGKILL through."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def main() -> None:
    """Train for ever, with a child that sleeps."""
    config = read_config()
    ignore_signals()
    child = os.fork()
    if child == 0:
        time.sleep(LIFETIME)
        os._exit(0)
    folder = make_run_folder(config)
    path = os.path.join(folder, "stubborn.pids")
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {child}\n")
    os.rename(f"{path}.part", path)
    progress = Progress(config)
    progress.event("train_begin", wandb_url=None)
    progress.event("epoch_begin", epoch=0)
    end, batch = time.monotonic() + LIFETIME, 0
    while time.monotonic() < end:
        progress.event("batch_start", batch=batch)
        time.sleep(0.05)
        progress.event("batch_end", {"loss": 1.0}, epoch=0, batch=batch)
        batch += 1
    os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
