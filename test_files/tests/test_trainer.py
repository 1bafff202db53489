"""The trainer as a worker sees it: messages, commands, signals, exit codes and files."""

from __future__ import annotations

import csv
import json
import math
import re
import signal

import numpy as np
import pytest
import yaml

import network
import slp
from conftest import make, run_lite

NO_PORTS = ("++trainer_config.zmq.publish_port=null", "++trainer_config.zmq.controller_port=null")
SHORT = ("trainer_config.train_steps_per_epoch=6", "trainer_config.max_epochs=2")
LONG = ("trainer_config.train_steps_per_epoch=100", "trainer_config.max_epochs=50")


def run_folder(package, head="centroid", frames=8):
    """Where the package's configuration puts a run."""
    return package / "models" / f"flies.{head}.n={frames}"


def test_both_models_learn_and_predict_far_better_than_the_trivial_guess(tmp_path, start):
    package = make(tmp_path / "flies", "--frames", "40", "--size", "192")
    models = [run_folder(package, head, 40) for head in ("centroid", "centered_instance")]
    for head, epochs in (("centroid", 4), ("centered_instance", 7)):
        trainer = start(f"trainer_config.max_epochs={epochs}", folder=package, config=head)
        assert trainer.finish() == 0, trainer.stderr()
        losses = [message["logs"]["val/loss"] for message in trainer.events("epoch_end")]
        assert len(losses) == epochs and min(losses) < losses[0] / 2

    # Flies that the models have not seen.
    unseen = make(tmp_path / "unseen.pkg.slp", "--frames", "10", "--size", "192", "--seed", "99", kind="pkg")
    animals = [item.points for frame in slp.read(str(unseen)).frames for item in frame.instances]
    guess = np.mean([np.hypot(*(points - points.mean(axis=0)).T) for points in animals])
    limit = f"{guess / 3:.2f}"
    assert guess > 9, "the trivial guess, all points in the middle of the animal, is far off"
    done = run_lite(package, "predict", "-i", str(unseen), "-m", str(models[0]), "-m", str(models[1]),
                    "-o", "out.json", "--check", limit)
    assert done.returncode == 0, done.stderr
    frames = json.loads((package / "out.json").read_text())["frames"]
    assert len(frames) == 10 and all(set(frames[0]["instances"][0]["points"]) == {
        "head", "thorax", "abdomen", "wing_left", "wing_right"} for _ in frames)


def test_an_unfit_model_fails_the_check(package):
    arguments = ("train", "--config-name", "centroid.yaml", "trainer_config.max_epochs=1",
                 "trainer_config.train_steps_per_epoch=1", *NO_PORTS)
    assert run_lite(package, *arguments).returncode == 0
    done = run_lite(package, "predict", "-i", "flies.pkg.slp", "-m", str(run_folder(package)), "-o", "o.json",
                    "--check", "3")
    assert done.returncode == 1 and "FAILED" in done.stderr


def test_messages_have_the_shapes_and_order_of_sleap_nn(start):
    trainer = start(*SHORT)
    # A command other than stop changes nothing.
    trainer.command('{"command": "cancel"}')
    assert trainer.finish() == 0, trainer.stderr()
    names = [message["event"] for message in trainer.messages]
    epoch = ["epoch_begin"] + ["batch_start", "batch_end"] * 6 + ["epoch_end"]
    assert names == ["train_begin"] + epoch * 2 + ["train_end"]
    assert trainer.raw[0] == '{"what": "", "event": "train_begin", "logs": null, "wandb_url": null}'
    assert trainer.raw[1] == '{"what": "", "event": "epoch_begin", "logs": null, "epoch": 0}'
    assert trainer.raw[2] == '{"what": "", "event": "batch_start", "logs": null, "batch": 0}'
    assert re.fullmatch(r'\{"what": "", "event": "batch_end", "logs": \{"loss": [\d.e-]+\}, "epoch": 0, "batch": 0\}',
                        trainer.raw[3])
    assert trainer.raw[-1] == '{"what": "", "event": "train_end", "logs": null}'
    # The progress bars redraw themselves.
    assert re.search(r"\rEpoch 1: 100%\|█{10}\| 6/6 \[", trainer.stdout())


def test_epoch_metrics_come_late_are_repeated_and_nan_is_bare_once(start):
    trainer = start(*SHORT)
    assert trainer.finish() == 0, trainer.stderr()
    assert sum(len(re.findall(r"\bNaN\b", raw)) for raw in trainer.raw) == 1
    first, second = (message["logs"] for message in trainer.events("epoch_end"))
    assert "train/loss" not in first and math.isfinite(first["val/loss"])
    batches = trainer.events("batch_end")
    assert set(batches[5]["logs"]) == {"loss"} and batches[6]["logs"]["val/loss"] == first["val/loss"]
    with open(run_folder(trainer.folder) / "training_log.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert second["train/loss"] == float(rows[0]["train_loss"]) == batches[6]["logs"]["train/loss"]
    assert second["val/loss"] == float(rows[1]["val_loss"])


def test_stop_ends_after_the_next_batch_with_everything_saved(start):
    trainer = start(*LONG)
    trainer.wait_for("batch_end", skip=3)
    trainer.command('{"command": "stop"}')
    before = len(trainer.events("batch_end"))
    assert trainer.finish() == 0, trainer.stderr()
    assert len(trainer.events("batch_end")) <= before + 3
    assert [message["event"] for message in trainer.messages[-3:]] == ["batch_end", "epoch_end", "train_end"]
    assert (run_folder(trainer.folder) / "best.ckpt").exists()
    assert (run_folder(trainer.folder) / "metrics.val.0.json").exists()


@pytest.mark.parametrize("payload", ["stop", "[1, 2]"])
def test_a_malformed_command_fails_the_training_as_it_does_sleap_nn(start, payload):
    trainer = start(*LONG)
    trainer.wait_for("batch_end")
    trainer.command(payload)
    assert trainer.finish() == 1 and "Traceback" in trainer.stderr()
    assert not trainer.events("train_end")


def test_sigterm_before_the_training_kills(start):
    trainer = start(*LONG)
    trainer.signal(signal.SIGTERM)
    assert trainer.finish() == -signal.SIGTERM
    assert not trainer.messages and not run_folder(trainer.folder).exists()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_a_signal_in_training_keeps_the_last_best_model(start, number, code):
    trainer = start("trainer_config.train_steps_per_epoch=5", "trainer_config.max_epochs=500",
                    "trainer_config.early_stopping.patience=500")
    trainer.wait_for("epoch_begin", skip=1)
    trainer.wait_for("batch_end")
    trainer.signal(number)
    assert trainer.finish() == code
    assert not trainer.events("train_end")
    network.load(str(run_folder(trainer.folder) / "best.ckpt"))
    assert not (run_folder(trainer.folder) / "metrics.val.0.json").exists()


def test_sigterm_after_train_end_is_ignored(start):
    trainer = start(*SHORT)
    trainer.wait_for("train_end")
    trainer.signal(signal.SIGTERM)
    assert trainer.finish() == 0
    assert (run_folder(trainer.folder) / "metrics.val.0.json").exists()


def test_a_run_leaves_the_files_of_sleap_nn_and_no_others(package):
    assert run_lite(package, "train", "-c", "centered_instance", *SHORT, *NO_PORTS).returncode == 0
    folder = run_folder(package, "centered_instance")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["initial_config.yaml", "training_config.yaml", "training_log.csv", "best.ckpt"]
        + [f"labels_{kind}.{use}.0.slp" for kind in ("gt", "pr") for use in ("train", "val")]
        + [f"metrics.{use}.0.{kind}" for kind in ("json", "npz") for use in ("train", "val")])
    final = yaml.safe_load((folder / "training_config.yaml").read_text())
    assert final["data_config"]["skeletons"][0]["nodes"][0] == {"name": "head"}
    assert final["model_config"]["total_params"] > 0
    held_out = slp.read(str(folder / "labels_gt.val.0.slp"))
    assert len(held_out.images()) == len(held_out.frames) == 1


def test_a_second_run_gets_a_folder_of_its_own_and_the_same_model(package):
    outputs = [run_lite(package, "train", "-c", "centroid", *SHORT, *NO_PORTS) for _ in range(2)]
    assert [done.returncode for done in outputs] == [0, 0]
    assert (package / "models" / "flies.centroid.n=8-1" / "best.ckpt").exists()
    first, again = ((package / "models" / name / "best.ckpt").read_bytes()
                    for name in ("flies.centroid.n=8", "flies.centroid.n=8-1"))
    assert first == again


def test_losses_of_nan_still_save_a_model_and_exit_with_zero(start):
    trainer = start(*SHORT, "trainer_config.optimizer.lr=1e30")
    assert trainer.finish() == 0, trainer.stderr()
    assert len(trainer.events("epoch_end")) == 1 and trainer.events("train_end")
    parameters, _ = network.load(str(run_folder(trainer.folder) / "best.ckpt"))
    assert not all(np.isfinite(array).all() for array in parameters.values())


def test_quoted_overrides_name_the_run(package):
    done = run_lite(package, "train", "-c", "centroid", *SHORT, *NO_PORTS, '++trainer_config.run_name="x.n=181"',
                    "++trainer_config.ckpt_dir='else where'")
    assert done.returncode == 0, done.stderr
    assert (package / "else where" / "x.n=181" / "best.ckpt").exists()


@pytest.mark.parametrize("arguments, said", [
    (["-c", "missing.yaml"], "cannot read the configuration"),
    (["-c", "jobs.yaml"], "exactly one of model_config.head_configs"),
    (["-c", "centroid", "trainer_config.no_such=1"], "has no key"),
    (["-c", "centroid", "+trainer_config.seed=1"], "already"),
    (["-c", "centroid", "trainer_config.run_name=a=b"], "needs quotes"),
    (["-c", "centroid", "trainer_config.run_name=\"${oc.env:HOME}\""], "interpolation"),
    (["-c", "centroid", "trainer_config.max_epochs=many"], "must be a number"),
    (["-c", "centroid", "trainer_config.zmq.publish_port=70000"], "must be a port"),
    (["-c", "centroid", "data_config.train_labels_path=[]"], "names no label file"),
    (["-c", "centroid", "data_config.train_labels_path=[gone.slp]"], "there is no label file"),
    (["-c", "centroid", "data_config.train_labels_path=[centroid.yaml]"], "not a SLEAP label file"),
    (["-c", "centroid", "model_config.head_configs.centroid=null", "model_config.head_configs.bottomup={a: 1}"],
     "not supported"),
    (["-c", "centroid", "model_config.head_configs.centroid.confmaps.anchor_part=tail"], "tail"),
])
def test_a_wrong_configuration_is_a_traceback_and_exit_code_one(package, arguments, said):
    done = run_lite(package, "train", *arguments)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and said in done.stderr
    assert not list(package.glob("models/*/best.ckpt"))


def test_labels_without_images_say_what_to_export(package, tmp_path):
    plain = make(tmp_path / "flies.slp", "--frames", "3", kind="plain-slp")
    done = run_lite(package, "train", "-c", "centroid", f"data_config.train_labels_path=[{plain}]")
    assert done.returncode == 1 and "Export a training job package" in done.stderr


def test_predicting_with_gui_prints_progress_or_the_error_as_json(package):
    assert run_lite(package, "train", "-c", "centroid", *SHORT, *NO_PORTS).returncode == 0
    model = str(run_folder(package))
    done = run_lite(package, "predict", "--gui", "-i", "flies.pkg.slp", "-m", model, "-o", "out.slp", "-b", "3")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["n_processed"], line["n_total"]) for line in lines] == [(3, 8), (6, 8), (8, 8)]
    predicted = slp.read(str(package / "out.slp"))
    assert len(predicted.frames) == len(predicted.images()) == 8

    (run_folder(package) / "best.ckpt").write_bytes(b"damaged")
    done = run_lite(package, "predict", "--gui", "-i", "flies.pkg.slp", "-m", model, "-o", "out.json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] is True and json.loads(done.stdout)["type"] == "CheckpointError"
