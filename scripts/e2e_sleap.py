#!/usr/bin/env python3
"""Run the main job with a real trainer through server, worker and client, and check what comes of it.

Called by `scripts/e2e-sleap`, which prepares everything. What the programs' command lines look like stands in `Stack`
and `Client` and nowhere else. Three runs, each with a fresh server and worker:

- completed: every epoch of every step is seen live, all models arrive
- stopped: after the first epoch; the training saves, and what it saved arrives
- cancelled: after the first epoch; no process of the trainer is left
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

START_TIME = 30.0
JOB_TIME = 1800.0
SCENARIOS = ["completed", "stopped", "cancelled"]


class Failed(Exception):
    """Something is not as it must be."""


def check(condition: object, message: str) -> None:
    """Fail with the message unless the condition holds."""
    if not condition:
        raise Failed(message)


class Stack:
    """A server and a worker on loopback, with data folders of their own; ends with everything it started."""

    def __init__(self, bin_dir: Path, executable: str, folder: Path):
        self.bin_dir, self.folder = bin_dir, folder
        self.invite = folder / "invite"
        self.worker_data = folder / "worker"
        self._running: list[subprocess.Popen] = []
        for name in ("server", "worker", "client"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._config = folder / "webrtc-connect.toml"
        self._config.write_text(f"[worker]\nsleap_nn = [{json.dumps(executable)}]\n", encoding="utf-8")

    def __enter__(self) -> "Stack":
        try:
            port = free_port()
            server = f"http://127.0.0.1:{port}"
            self._start("webrtc-server", "--listen", f"127.0.0.1:{port}", "--data-dir", str(self.folder / "server"))
            wait_for(lambda: healthy(server), "the server to be healthy")
            self._start("webrtc-worker", "--server", server, "--data-dir", str(self.worker_data), "--json")
            wait_for(self._read_invite, "the worker's invite")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, program: str, *arguments: str) -> None:
        """Start a program in the folder where its configuration file lies; its output goes to files there."""
        with open(self.folder / f"{program}.out", "wb") as out, open(self.folder / f"{program}.err", "wb") as err:
            self._running.append(subprocess.Popen([str(self.bin_dir / program), *arguments], cwd=self.folder,
                                                  stdin=subprocess.DEVNULL, stdout=out, stderr=err))

    def _read_invite(self) -> bool:
        """Take the invite from what the worker prints: a JSON line, or a plain one."""
        for process in self._running:
            check(process.poll() is None, f"{process.args[0]} ended with {process.returncode}; see {self.folder}")
        for line in (self.folder / "webrtc-worker.out").read_text(errors="replace").splitlines():
            found = line if line.startswith("webrtc-connect:") else None
            if line.startswith("{"):
                try:
                    found = json.loads(line).get("invite")
                except ValueError:
                    continue
            if found:
                self.invite.touch(mode=0o600)
                self.invite.write_text(f"{found}\n", encoding="utf-8")
                return True
        return False

    def trainers(self) -> list[int]:
        """The processes whose command line names this worker's data folder, other than the worker and its runners."""
        own = os.fsencode(str(self.worker_data))
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            except OSError:
                continue
            ours = any(word.endswith(b"/webrtc-worker") for word in words)
            if not ours and any(own in word for word in words):
                found.append(int(entry.name))
        return found

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
        for process in self._running:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Client:
    """One `webrtc-client train`, read event by event."""

    def __init__(self, stack: Stack, package: Path):
        self._stack = stack
        self.output = stack.folder / "models"
        self.events: list[dict] = []
        self._error = open(stack.folder / "webrtc-client.err", "wb")
        self._process = subprocess.Popen(
            [str(stack.bin_dir / "webrtc-client"), "train", str(package), "--invite-file", str(stack.invite),
             "--output", str(self.output), "--json"],
            cwd=stack.folder / "client", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._error,
        )

    def follow(self, command: str | None) -> int:
        """Read to the end, sending `command` once after the first epoch; the exit code."""
        timer = threading.Timer(JOB_TIME, self._process.kill)
        timer.start()
        try:
            with open(self._stack.folder / "events.jsonl", "wb") as record:
                for line in self._process.stdout:
                    record.write(line)
                    self.events.append(json.loads(line))
                    if command and self._journal_event(self.events[-1]).get("event") == "epoch_ended":
                        self._send(command, self.events[-1]["job"])
                        command = None
            code = self._process.wait()
        finally:
            timer.cancel()
            self._process.kill()
            self._error.close()
        check(command is None, f"no epoch ended, so that {command} was never sent")
        return code

    def _send(self, command: str, job: str) -> None:
        """Run `webrtc-client stop` or `cancel`, as another client at the same time."""
        done = subprocess.run(
            [str(self._stack.bin_dir / "webrtc-client"), command, job, "--invite-file", str(self._stack.invite)],
            cwd=self._stack.folder / "client", stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=JOB_TIME)
        check(done.returncode == 0, f"webrtc-client {command} ended with {done.returncode}: {done.stderr.strip()}")

    @staticmethod
    def _journal_event(event: dict) -> dict:
        return event["entry"]["event"] if event.get("type") == "journal" else {}

    def journal(self, kind: str) -> list[dict]:
        """The journal's events of one kind."""
        return [event for event in map(self._journal_event, self.events) if event.get("event") == kind]

    def check_journal(self) -> None:
        """Every entry must have arrived once and in order."""
        numbers = [event["entry"]["seq"] for event in self.events if event.get("type") == "journal"]
        check(numbers == list(range(1, len(numbers) + 1)), "the journal's entries did not come once and in order")


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def healthy(server: str) -> bool:
    """Whether the server answers."""
    try:
        with urllib.request.urlopen(f"{server}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_for(condition, what: str, seconds: float = START_TIME) -> None:
    """Ask again and again until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)


def models(folder: Path) -> dict[str, str]:
    """The SHA-256 of every best.ckpt below a folder, by the name of its run."""
    found = {}
    for path in sorted(folder.rglob("best.ckpt")):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        found[path.parent.name] = digest.hexdigest()
    return found


def check_scenario(name: str, client: Client, stack: Stack, code: int) -> dict[str, str]:
    """What must hold at the end; the models that arrived."""
    client.check_journal()
    finished = [event for event in client.events if event.get("type") == "finished"]
    check(finished, f"the client ended with {code} and without a last word")
    outcome, message = finished[-1]["outcome"], finished[-1]["message"]
    check(outcome == name, f"the job should be {name} and is {outcome}: {message}")
    arrived, kept = models(client.output), models(stack.worker_data)
    differing = [run for run, digest in arrived.items() if kept.get(run) != digest]
    check(not differing, f"models differ between worker and client: {differing}")
    wait_for(lambda: not stack.trainers(), "the trainer's processes to be gone")
    if name == "completed":
        check(code == 0, f"the client ended with {code}")
        steps = [step["name"] for step in client.journal("step_started")]
        check(len(arrived) == len(steps), f"{len(steps)} steps ({', '.join(steps)}), but {len(arrived)} models arrived")
        for number in range(len(steps)):
            epochs = [event["epoch"] for event in client.journal("epoch_ended") if event["step"] == number]
            check(epochs and epochs == list(range(len(epochs))), f"epochs of step {number}: {epochs}")
    if name == "stopped":
        check(arrived, "no model arrived")
    return arrived


def run_scenario(name: str, arguments: argparse.Namespace) -> str:
    """One run in a folder of its own; a line for the summary."""
    folder = arguments.work / name
    command = {"stopped": "stop", "cancelled": "cancel"}.get(name)
    with Stack(arguments.bin_dir, arguments.executable, folder) as stack:
        start = time.monotonic()
        client = Client(stack, arguments.package)
        code = client.follow(command)
        seconds = time.monotonic() - start
        arrived = check_scenario(name, client, stack, code)
    epochs, batches = len(client.journal("epoch_ended")), len(client.journal("batch_ended"))
    lines = [f"{name:<10} {seconds:6.1f} s  exit {code}  {epochs} epochs and {batches} batches seen live, "
             f"{len(arrived)} models"]
    lines += [f"{'':<10} {digest[:16]}  {run}/best.ckpt (the same on both sides)" for run, digest in arrived.items()]
    return "\n".join(lines)


def main() -> int:
    """Run the scenarios; 0 when all went as they must."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=lambda text: Path(text).resolve())
    parser.add_argument("--bin-dir", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--executable", required=True, help="the trainer: sleap-nn, or what has its command line")
    parser.add_argument("--work", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--only", choices=SCENARIOS, action="append")
    arguments = parser.parse_args()
    failed = False
    for name in arguments.only or SCENARIOS:
        print(f"... {name}", file=sys.stderr, flush=True)
        try:
            print(run_scenario(name, arguments), flush=True)
        except (Failed, OSError, subprocess.SubprocessError, ValueError) as error:
            failed = True
            print(f"{name:<10} FAILED: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
