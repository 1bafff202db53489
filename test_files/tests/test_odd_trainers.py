"""The odd trainers do what a worker's tests rely on."""

from __future__ import annotations

import os
import signal
import time
import zipfile

import pytest

from conftest import FOLDER, PATIENCE

ODD = FOLDER / "odd_trainers"


def test_one_fails_with_a_traceback(start):
    trainer = start(program=ODD / "fails.py")
    assert trainer.finish() == 1
    assert "Traceback" in trainer.stderr() and "out of memory" in trainer.stderr()
    assert [message["event"] for message in trainer.messages] == ["train_begin", "epoch_begin"]


def test_one_never_starts_and_ends_at_once_when_told(start):
    trainer = start(program=ODD / "never_starts.py")
    with pytest.raises(Exception):
        trainer.process.wait(timeout=0.5)
    assert not trainer.messages and not trainer.stdout() and not trainer.stderr()
    trainer.signal(signal.SIGTERM)
    assert trainer.finish() == -signal.SIGTERM


def test_one_floods_at_its_rate_and_loses_nothing_itself(start):
    trainer = start("trainer_config.max_epochs=2", program=ODD / "floods.py")
    assert trainer.finish() == 0, trainer.stderr()
    assert [message["logs"]["seq"] for message in trainer.events("batch_end")] == list(range(1, 10_000, 2))
    assert [message["batch"] for message in trainer.events("batch_start")] == 2 * list(range(2500))
    assert 1.9 < float(trainer.stdout().split()[-2]) < 4


def test_one_outruns_its_own_queue_and_ends_well(start):
    trainer = start(program=ODD / "drops.py")
    assert trainer.finish() == 0, trainer.stderr()
    batches = [message["batch"] for message in trainer.events("batch_end")]
    assert batches[0] == 0 and batches[-1] == 49_999 and batches == sorted(set(batches))
    assert trainer.messages[-1]["event"] == "train_end"


def test_one_sends_garbage_between_good_messages(start):
    trainer = start(program=ODD / "garbage.py")
    assert trainer.finish() == 0, trainer.stderr()
    good = [message["logs"]["seq"] for message in trainer.events("batch_end")
            if isinstance(message.get("logs"), dict) and "seq" in message["logs"]]
    assert good == list(range(len(good))) and len(good) > 20
    assert trainer.messages[-1]["event"] == "train_end"
    assert "END_OF_FILE\n" in trainer.stdout() and "\x1b[2J" in trainer.stdout()


def test_one_is_stubborn_and_leaves_a_child(start):
    trainer = start(program=ODD / "stubborn.py")
    trainer.wait_for("batch_end")
    path = next(trainer.folder.glob("models/*/stubborn.pids"))
    parent, child = (int(text) for text in path.read_text().split())
    assert parent == trainer.process.pid
    for pid in (parent, child):
        os.kill(pid, signal.SIGTERM)
    trainer.command('{"command": "stop"}')
    trainer.wait_for("batch_end", skip=5)
    os.kill(child, 0)
    assert os.getpgid(child) == parent
    os.kill(parent, signal.SIGKILL)
    trainer.process.wait()
    os.kill(child, 0)
    os.killpg(parent, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while _running(child):
        assert time.monotonic() < deadline


def test_one_saves_its_models_slowly_and_in_place(start):
    trainer = start("trainer_config.max_epochs=2", "++trainer_config.model_bytes=80000", "++trainer_config.kept_bytes=512",
                    "++trainer_config.epoch_seconds=0", program=ODD / "slow_saves.py")
    trainer.wait_for("epoch_end")
    best = next(trainer.folder.glob("models/*/best.ckpt"))
    half = best.stat().st_size
    assert trainer.finish() == 0, trainer.stderr()
    kept = sorted(best.parent.glob("kept/*.ckpt"))
    assert half < kept[0].stat().st_size
    assert best.read_bytes() == kept[1].read_bytes() != kept[0].read_bytes()
    assert zipfile.is_zipfile(best)


def test_one_trains_at_a_steady_rate_and_obeys_a_stop(start):
    trainer = start("++trainer_config.rate=50", "++trainer_config.batches=10", "trainer_config.max_epochs=1000",
                    program=ODD / "steady.py")
    trainer.wait_for("epoch_end")
    assert [message["batch"] for message in trainer.events("batch_end")] == list(range(10))
    trainer.command('{"command": "stop"}')
    assert trainer.finish() == 0, trainer.stderr()
    assert [message["event"] for message in trainer.messages[-2:]] == ["epoch_end", "train_end"]
    assert trainer.stdout() == "stopped\n"
    assert len(list(trainer.folder.glob("models/*/best.ckpt"))) == 1


def _running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
