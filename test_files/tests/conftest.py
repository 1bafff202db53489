"""A package to train on, and a trainer under observation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq

FOLDER = Path(__file__).resolve().parent.parent
TRAINER = FOLDER / "trainer" / "sleap_nn_lite.py"
sys.path[:0] = [str(FOLDER), str(FOLDER / "trainer")]

import make_package  # noqa: E402

PATIENCE = 60.0
"""After how many seconds without what it waits for a test fails."""


class Trainer:
    """A trainer's process with the two sockets that it connects to."""

    def __init__(self, program: Path, folder: Path, *overrides: str, config: str = "centroid"):
        self._context = zmq.Context()
        self._progress, self._control = self._context.socket(zmq.SUB), self._context.socket(zmq.XPUB)
        self._progress.set_hwm(0)
        self._progress.subscribe("")
        ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in (self._progress, self._control)]
        self.folder, self.messages, self.raw = folder, [], []
        self._output = open(folder / "stdout", "wb"), open(folder / "stderr", "wb")
        self.process = subprocess.Popen(
            [sys.executable, str(program), "train", "--config-name", f"{config}.yaml", "--config-dir", ".",
             f"++trainer_config.zmq.publish_port={ports[0]}", f"++trainer_config.zmq.controller_port={ports[1]}",
             *overrides],
            cwd=folder, stdout=self._output[0], stderr=self._output[1], stdin=subprocess.DEVNULL,
            start_new_session=True,
            # A shell starts what it puts into the background with SIGINT ignored, and children inherit that; the worker resets it, too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def wait_for(self, event: str, skip: int = 0) -> dict:
        """Read messages up to one of the given kind, passing over the first `skip` of it."""
        while True:
            message = self._receive(PATIENCE)
            assert message is not None, f"no {event} within {PATIENCE} s; stderr: {self.stderr()}"
            if message.get("event") == event:
                if skip == 0:
                    return message
                skip -= 1

    def finish(self) -> int:
        """Read everything up to the end of the process; its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "the trainer does not end"
            self._receive(0.05)
        while self._receive(0.2) is not None:
            pass
        return self.process.returncode

    def _receive(self, seconds: float) -> dict | None:
        """The next message that is a JSON object, if one comes in time."""
        while self._progress.poll(int(seconds * 1000)):
            frames = self._progress.recv_multipart()
            try:
                message = json.loads(b"".join(frames))
            except (ValueError, RecursionError):
                continue
            if isinstance(message, dict):
                self.messages.append(message)
                self.raw.append(frames[0].decode())
                return message
        return None

    def command(self, payload: str) -> None:
        """Send on the control socket, once the trainer has subscribed to it."""
        assert self._control.poll(int(PATIENCE * 1000)) and self._control.recv() == b"\x01"
        self._control.send_string(payload)

    def signal(self, number: int) -> None:
        """Signal the trainer, and only it."""
        os.kill(self.process.pid, number)

    def events(self, name: str) -> list[dict]:
        """All messages of one kind so far."""
        return [message for message in self.messages if message.get("event") == name]

    def stdout(self) -> str:
        """What it printed."""
        return (self.folder / "stdout").read_bytes().decode(errors="replace")

    def stderr(self) -> str:
        """What it printed on stderr."""
        return (self.folder / "stderr").read_bytes().decode(errors="replace")

    def close(self) -> None:
        """Leave no process and no socket behind."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        for file in self._output:
            file.close()
        self._context.destroy(linger=0)


def make(folder: Path, *options: str, kind: str = "folder") -> Path:
    """Write a package with the given options."""
    make_package.main(["--kind", kind, "--output", str(folder), *options])
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package, unpacked."""
    return make(tmp_path / "package", "--frames", "8", "--size", "128")


@pytest.fixture
def start(package: Path):
    """Start trainers in the small package (or in another folder) that do not outlive the test."""
    running: list[Trainer] = []

    def start_one(*overrides: str, program: Path = TRAINER, folder: Path = package, config: str = "centroid"):
        running.append(Trainer(program, folder, *overrides, config=config))
        return running[-1]

    yield start_one
    for trainer in running:
        trainer.close()


def run_lite(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the trainer's program to its end, without sockets."""
    return subprocess.run([sys.executable, str(TRAINER), *arguments], cwd=folder, capture_output=True, text=True,
                          timeout=PATIENCE)
