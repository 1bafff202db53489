#!/usr/bin/env python3
"""Measure the three programs on loopback. Called by `scripts/measure`, which builds them.

- memory: resident, of a server and a worker that have nothing to do, and their peaks at the end
- first byte: from the start of `webrtc-client train` to the first event that says that bytes are on the worker's disk
- latency: from the trainer's send to the event's line at the reader of `webrtc-client train --json`, at about 100 a second
- CPU: of each program while that goes on, in percent of one core
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST_BYTE_RUNS = 5
RATE, SECONDS = 100, 15
SETTLE = 3.0
TICKS = os.sysconf("SC_CLK_TCK")


class Lab:
    """A server and a worker whose trainer sends at a steady rate; ends with everything it started."""

    def __init__(self, bin_dir: Path, folder: Path):
        self.bin_dir, self.folder = bin_dir, folder
        self.processes: dict[str, subprocess.Popen] = {}
        trainer = [sys.executable, str(ROOT / "test_files/odd_trainers/steady.py")]
        self._config = folder / "worker.toml"
        self._config.write_text(f"[worker]\nsleap_nn = {json.dumps(trainer)}\n", encoding="utf-8")

    def __enter__(self) -> "Lab":
        server = self._start("server", "--listen", "127.0.0.1:0", "--json", "--data-dir", str(self.folder / "server"))
        url = json.loads(server.stdout.readline())["http"]
        worker = self._start("worker", "--server", url, "--name", "measured", "--json", "--config", str(self._config),
                             "--data-dir", str(self.folder / "worker"), "--invite-file", str(self.folder / "invite"))
        json.loads(worker.stdout.readline())
        return self

    def _start(self, name: str, *arguments: str) -> subprocess.Popen:
        with open(self.folder / f"{name}.log", "wb") as log:
            process = subprocess.Popen([self.bin_dir / f"webrtc-{name}", *arguments], cwd=self.folder, stderr=log,
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=self._environment())
        self.processes[name] = process
        return process

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder / "config")}

    def package(self, seed: int, batches: int, rate: int) -> Path:
        """A package that the worker has not seen yet, for a training of so many batches."""
        folder = self.folder / f"flies-{seed}"
        subprocess.run([sys.executable, ROOT / "test_files/make_package.py", "--kind", "folder", "--seed", str(seed),
                        "--output", folder], check=True, stdout=subprocess.DEVNULL)
        config = folder / "centroid.yaml"
        text = config.read_text(encoding="utf-8")
        text = text.replace("max_epochs: 8", f"max_epochs: 1\n  batches: {batches}\n  rate: {rate}")
        config.write_text(text, encoding="utf-8")
        return folder

    def train(self, package: Path, *arguments: str) -> subprocess.Popen:
        """Begin a training."""
        output = self.folder / f"models-{package.name}"
        return self._start("client", "train", str(package), "--config", "centroid.yaml", "--json", "--output", str(output),
                           "--invite-file", str(self.folder / "invite"), *arguments)

    def pids(self) -> dict[str, int]:
        """The programs that run now, the job's runner and trainer among them."""
        found = {name: process.pid for name, process in self.processes.items() if process.poll() is None}
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
            except OSError:
                continue
            if str(self.folder) in line and "run-job" in line:
                found["runner"] = int(entry.name)
            elif str(self.folder) in line and "steady.py" in line:
                found["trainer"] = int(entry.name)
        return found

    def __exit__(self, *_: object) -> None:
        for name in ("runner", "trainer"):
            pid = self.pids().get(name)
            if pid:
                os.kill(pid, signal.SIGKILL)
        for process in reversed(self.processes.values()):
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def events(client: subprocess.Popen):
    """Each event of a client and when its line was read."""
    for line in client.stdout:
        now = time.time()
        yield now, json.loads(line)


def memory(pid: int, field: str) -> float:
    """A field of /proc/PID/status that is in kB, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"no {field} of process {pid}")


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def first_byte(lab: Lab, seed: int) -> float:
    """Seconds from the start of the client to the first byte on the worker's disk."""
    package = lab.package(seed, 1, RATE)
    start, first = time.time(), None
    client = lab.train(package, "--detach")
    for now, event in events(client):
        if first is None and event["type"] == "uploading" and event["done"] > 0:
            first = now - start
    if client.wait() != 0 or first is None:
        raise SystemExit(f"the upload failed; see {lab.folder}")
    return first


def follow(lab: Lab) -> tuple[list[float], dict[str, float]]:
    """Latencies in milliseconds, and the CPU of each program in percent of one core."""
    client = lab.train(lab.package(1000, RATE * SECONDS, RATE))
    delays: list[float] = []
    before: dict[str, tuple[int, float]] = {}
    shares: dict[str, float] = {}
    begun = 0.0
    for now, event in events(client):
        inner = event.get("entry", {}).get("event", {})
        if inner.get("event") == "batch_ended":
            if not before:
                begun, before = now, {name: (pid, cpu(pid)) for name, pid in lab.pids().items()}
                continue
            delays.append((now - inner["metrics"]["sent_at"]) * 1000)
        if inner.get("event") == "epoch_ended":
            for name, (pid, used) in before.items():
                try:
                    shares[name] = 100 * (cpu(pid) - used) / (now - begun)
                except OSError:
                    continue
    if client.wait() != 0 or len(delays) < RATE * SECONDS // 2:
        raise SystemExit(f"the training failed, or only {len(delays)} batches were seen; see {lab.folder}")
    return sorted(delays), shares


def percentile(values: list[float], part: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(len(values) * part))]


def measure(lab: Lab) -> list[tuple[str, float, str, float | None]]:
    """Rows of name, value, unit and goal."""
    time.sleep(SETTLE)
    server, worker = (lab.processes[name].pid for name in ("server", "worker"))
    rows: list[tuple[str, float, str, float | None]] = [
        ("server, idle: resident memory", memory(server, "VmRSS"), "MB", 20),
        ("worker, idle: resident memory", memory(worker, "VmRSS"), "MB", 40),
    ]
    runs = [first_byte(lab, seed) for seed in range(2, 2 + FIRST_BYTE_RUNS)]
    rows.append((f"first byte after the start of train, median of {FIRST_BYTE_RUNS}", statistics.median(runs), "s", 1))
    rows.append((f"first byte after the start of train, slowest of {FIRST_BYTE_RUNS}", max(runs), "s", None))
    delays, shares = follow(lab)
    for part, goal in ((0.5, None), (0.95, 20), (0.99, None)):
        rows.append((f"trainer's send to the client's line, p{part * 100:.0f} of {len(delays)}", percentile(delays, part), "ms", goal))
    rows += [(f"{name}: CPU at {RATE} batches a second", share, "% of a core", None) for name, share in sorted(shares.items())]
    rows.append(("server: peak memory", memory(server, "VmHWM"), "MB", None))
    rows.append(("worker: peak memory", memory(worker, "VmHWM"), "MB", None))
    return rows


def main() -> int:
    """Print the table; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin-dir", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="webrtc-connect-measure.") as folder, Lab(arguments.bin_dir, Path(folder)) as lab:
        rows = measure(lab)
    missed = [name for name, value, _, goal in rows if goal is not None and value >= goal]
    if arguments.json:
        figures = [{"name": name, "value": round(value, 4), "unit": unit, "goal": goal} for name, value, unit, goal in rows]
        print(json.dumps({"figures": figures, "missed": missed}))
    else:
        for name, value, unit, goal in rows:
            judged = "" if goal is None else f"goal < {goal:g}: {'MISSED' if name in missed else 'ok'}"
            print(f"{name:<58} {value:9.3f} {unit:<12} {judged}".rstrip())
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
