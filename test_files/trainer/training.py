"""One training, from its configuration to the run's folder.

- `Training(config)` reads labels and images, splits them, and makes the run's folder.
- `run` goes through the epochs: batches, validation, best.ckpt, learning rate, early stop.
- A stop command ends the epoch after the current batch; validation and saving follow as ever.
- SIGTERM ends the training after the current batch without them; what was saved last stays.
- `evaluate` measures the best model, once the sockets are closed.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
import os
import signal
import time
from dataclasses import dataclass

import numpy as np

import inference
import network
import slp
from config import Config, ConfigError
from dataset import load_parts, write_labels
from output import Bar, log
from reporter import Reporter
from samples import FOREGROUND, Samples, augmentation, geometry

LOG_COLUMNS = ["epoch", "train_loss", "val_loss", "learning_rate", "train_time", "val_time"]


@dataclass
class Settings:
    """Every figure that the epochs need, read before the first of them so that a bad one fails early."""

    seed: int
    rate: float
    epochs: int
    steps: int
    batch_size: int
    val_batch_size: int
    save: bool
    patience: int | None
    min_delta: float
    plateau: int | None
    factor: float
    min_rate: float

    @staticmethod
    def read(config: Config, samples: int) -> "Settings":
        """The settings for a number of training samples."""
        key = "trainer_config"
        batch_size = config.integer(f"{key}.train_data_loader.batch_size", 4, least=1)
        steps = max(-(-samples // batch_size), config.integer(f"{key}.min_train_steps_per_epoch", 0))
        stopping, plateau = f"{key}.early_stopping", f"{key}.lr_scheduler.reduce_lr_on_plateau"
        stops_early = config.get(f"{stopping}.stop_training_on_plateau", False)
        return Settings(
            seed=config.integer(f"{key}.seed", 0),
            rate=config.number(f"{key}.optimizer.lr", 1e-3, least=0.0),
            epochs=config.integer(f"{key}.max_epochs", 10, least=1),
            steps=config.integer(f"{key}.train_steps_per_epoch", steps, least=1),
            batch_size=batch_size,
            val_batch_size=config.integer(f"{key}.val_data_loader.batch_size", batch_size, least=1),
            save=bool(config.get(f"{key}.save_ckpt", True)),
            patience=config.integer(f"{stopping}.patience", 10) if stops_early else None,
            min_delta=config.number(f"{stopping}.min_delta", 0.0),
            plateau=config.integer(f"{plateau}.patience", 5) if config.get(plateau) else None,
            factor=config.number(f"{plateau}.factor", 0.5),
            min_rate=config.number(f"{plateau}.min_lr", 1e-8),
        )


@dataclass
class Loss:
    """The mean squared error of confidence maps: over all cells, on animals, and off them."""

    total: float
    foreground: float
    background: float
    fraction: float

    def logs(self, use: str) -> dict[str, float]:
        """The parts under the names that sleap-nn gives them."""
        return {f"{use}/confmap_loss_fg": self.foreground, f"{use}/confmap_loss_bg": self.background,
                f"{use}/confmap_fg_frac": self.fraction}


def measure(predicted: np.ndarray, target: np.ndarray, weights: np.ndarray) -> tuple[Loss, np.ndarray]:
    """The loss of a batch and its gradient; maps of points that are not visible do not count."""
    weight = np.broadcast_to(weights[:, None, None, :], target.shape)
    difference = (predicted - target) * weight
    squares, count = difference * difference, max(float(weight.sum()), 1.0)
    inside = (target > FOREGROUND) * weight
    inside_count = float(inside.sum())
    foreground = float((squares * inside).sum())
    total = float(squares.sum(dtype=np.float64))
    loss = Loss(total / count, foreground / max(inside_count, 1.0),
                (total - foreground) / max(count - inside_count, 1.0), inside_count / count)
    return loss, (2.0 / count) * difference


def average(losses: list[Loss]) -> Loss:
    """The mean of several batches' losses."""
    columns = np.mean([[loss.total, loss.foreground, loss.background, loss.fraction] for loss in losses], axis=0)
    return Loss(*(float(value) for value in columns))


class Terminated(Exception):
    """SIGTERM came in training."""


class Training:
    """A training between its setup and its evaluation."""

    def __init__(self, config: Config):
        self.config, self.head, initial = config, config.head(), config.dump()
        if config.get("trainer_config.resume_ckpt_path") is not None:
            raise ConfigError("trainer_config.resume_ckpt_path is not supported: this trainer starts afresh")
        log("Creating train-val split...")
        self.parts = load_parts(config)
        images = {use: [image for part in self.parts if part.use == use for image in part.images]
                  for use in ("train", "val")}
        animals = {use: [some for part in self.parts if part.use == use for some in part.animals] for use in images}
        log(f"# Train Labeled frames: {len(images['train'])}")
        log(f"# Val Labeled frames: {len(images['val'])}")
        self.skeleton = self.parts[0].labels.skeleton
        shape = geometry(config, self.head, self.skeleton.nodes, images["train"], animals["train"])
        self.samples = {use: Samples(shape, images[use], animals[use]) for use in images}
        self.settings = Settings.read(config, len(self.samples["train"]))
        self.augmentation = augmentation(config)
        self.rng = np.random.default_rng(self.settings.seed)
        self.model = inference.build(shape, self.rng)
        self.optimiser = network.Adam(self.model.network, self.settings.rate)
        log(f"Total model parameters: {self.model.network.size():,}")
        self.best, self.last_loss = math.inf, math.nan
        self.stopped = self.terminated = False
        self.metrics: dict[str, float] = {}
        self.folder = self._make_folder(len(images["train"]))
        self._write_setup(initial)

    def _make_folder(self, frames: int) -> str:
        """A fresh folder for the run; its name gets `-1`, `-2`, ... where an earlier run left its model."""
        default = f"{datetime.datetime.now():%y%m%d_%H%M%S}.{self.head}.n={frames}"
        name = str(self.config.get("trainer_config.run_name") or default)
        parent = str(self.config.get("trainer_config.ckpt_dir") or ".")
        folder, number = os.path.join(parent, name), 0
        while os.path.exists(os.path.join(folder, "best.ckpt")):
            number += 1
            folder = os.path.join(parent, f"{name}-{number}")
        log(f"Setting up model ckpt dir: `{folder}`...")
        os.makedirs(folder, exist_ok=True)
        self.config.set("trainer_config.ckpt_dir", parent)
        self.config.set("trainer_config.run_name", os.path.basename(folder))
        return folder

    def _write_setup(self, initial: str) -> None:
        """The two configurations, as it was given and as it was understood, and the labels of either use."""
        final, nodes, shape = self.config.copy(), self.skeleton.nodes, self.model.shape
        if self.head == "centered_instance":
            final.set("data_config.preprocessing.crop_size", round(shape.crop / shape.scale))
        final.set("data_config.skeletons", [{
            "nodes": [{"name": name} for name in nodes],
            "edges": [{"source": {"name": nodes[a]}, "destination": {"name": nodes[b]}}
                      for a, b in self.skeleton.edges],
            "symmetries": [[{"name": nodes[a]}, {"name": nodes[b]}] for a, b in self.skeleton.symmetries],
            "name": "Skeleton-0",
        }])
        final.set("model_config.total_params", self.model.network.size())
        for name, text in (("initial_config.yaml", initial), ("training_config.yaml", final.dump())):
            with open(os.path.join(self.folder, name), "w", encoding="utf-8") as file:
                file.write(text)
        for part in self.parts:
            write_labels(self.folder, "gt", part, part.frames)

    def run(self, reporter: Reporter) -> bool:
        """Go through all epochs; false when SIGTERM ended them."""
        signal.signal(signal.SIGTERM, self._note_termination)
        log("Starting training loop...")
        reporter.send("train_begin", wandb_url=None)
        with open(os.path.join(self.folder, "training_log.csv"), "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(LOG_COLUMNS)
            try:
                for row in self._epochs(reporter):
                    table.writerow(row)
                    file.flush()
            except Terminated:
                log("Received SIGTERM, leaving the training.")
                return False
        reporter.send("train_end")
        return True

    def _note_termination(self, _number: int, _stack: object) -> None:
        """From the training loop on, SIGTERM is a mark that the end of a batch looks at, and nothing after it."""
        self.terminated = True

    def _epochs(self, reporter: Reporter):
        """Run the epochs and yield a row of the log for each."""
        settings, waited, stalled = self.settings, 0, 0
        for epoch in range(settings.epochs):
            reporter.send("epoch_begin", epoch=epoch)
            start = time.monotonic()
            trained, last = self._train(epoch, reporter)
            middle = time.monotonic()
            validated = self._validate(epoch)
            end = time.monotonic()
            # `not >=` and not `<`, so that a model of NaNs is saved as well: sleap-nn does, and the loss tells.
            improved = not validated.total >= self.best - settings.min_delta
            self._keep_best(validated.total, epoch)
            self._report_epoch(epoch, reporter, trained, last, validated, (middle - start, end - middle))
            yield [epoch, trained.total, validated.total, self.optimiser.rate, middle - start, end - middle]
            waited, stalled = (0, 0) if improved else (waited + 1, stalled + 1)
            if settings.plateau is not None and stalled > settings.plateau:
                self.optimiser.rate, stalled = max(settings.min_rate, self.optimiser.rate * settings.factor), 0
            if self.stopped:
                log("Stopped by command.")
                return
            if not math.isfinite(validated.total) or (settings.patience is not None and waited >= settings.patience):
                log(f"Early stop after epoch {epoch}.")
                return

    def _train(self, epoch: int, reporter: Reporter) -> tuple[Loss, float]:
        """The batches of one epoch: their mean loss, and the last one's."""
        losses: list[Loss] = []
        bar = Bar(f"Epoch {epoch}", self.settings.steps)
        for number, chosen in enumerate(self._shuffled_batches()):
            reporter.send("batch_start", batch=number)
            inputs, targets, weights = self.samples["train"].batch(chosen, self.rng, self.augmentation)
            # A learning rate that is far too high overflows; that shows as NaN in the loss and needs no warning.
            with np.errstate(over="ignore", invalid="ignore"):
                loss, gradient = measure(self.model.network.forward(inputs, training=True), targets, weights)
                self.model.network.backward(gradient)
                self.optimiser.step(self.model.network.gradients())
            losses.append(loss)
            reporter.send("batch_end", {"loss": loss.total, **self.metrics}, epoch=epoch, batch=number)
            bar.show(number + 1, f"loss={loss.total:.4g}")
            if self.terminated:
                bar.end()
                raise Terminated
            if reporter.stop_requested():
                self.stopped = True
                break
        bar.end()
        return average(losses), losses[-1].total

    def _shuffled_batches(self):
        """As many batches as an epoch has; the samples come round again when they are used up."""
        count, size = len(self.samples["train"]), self.settings.batch_size
        needed = self.settings.steps * size
        order = np.concatenate([self.rng.permutation(count) for _ in range(-(-needed // count))])
        return order[:needed].reshape(self.settings.steps, size)

    def _validate(self, epoch: int) -> Loss:
        """The loss of all samples held out."""
        samples, size = self.samples["val"], self.settings.val_batch_size
        losses = []
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, len(samples), size):
                inputs, targets, weights = samples.batch(np.arange(first, min(first + size, len(samples))))
                losses.append(measure(self.model.network.forward(inputs), targets, weights)[0])
        result = average(losses)
        log(f"Epoch {epoch} validation: loss={result.total:.4g}")
        return result

    def _keep_best(self, loss: float, epoch: int) -> None:
        """Save the model if none was better."""
        if loss >= self.best:
            return
        self.best = loss
        if self.settings.save:
            facts = dict(self.model.facts(), epoch=epoch, val_loss=loss)
            network.save(os.path.join(self.folder, "best.ckpt"), self.model.network, self.optimiser, facts)

    def _report_epoch(self, epoch: int, reporter: Reporter, trained: Loss, last: float, validated: Loss,
                      times: tuple[float, float]) -> None:
        """Send `epoch_end`. The training's means become known after it, so that it carries the epoch's before."""
        if self.head == "centroid":
            accuracy = self._centroid_accuracy()
            self.metrics.update({f"eval/val/centroid_{name}": value for name, value in accuracy.items()})
        self.metrics.update({**validated.logs("val"), "val/loss": validated.total, "val/time": times[1],
                             "epoch": float(epoch), **trained.logs("train")})
        # By how much the loss changed: not a number in the first epoch, which has none before it.
        change = {"val/loss_change": validated.total - self.last_loss}
        self.last_loss = validated.total
        reporter.send("epoch_end", {"loss": last, **self.metrics, **change}, epoch=epoch)
        speed = self.settings.steps / times[0]
        self.metrics.update({"train/time": times[0], "train/loss": trained.total, "train/lr": self.optimiser.rate,
                             "train/steps_per_sec": speed, "train/samples_per_sec": speed * self.settings.batch_size})

    def _centroid_accuracy(self) -> dict[str, float]:
        """How well the centroids of the held-out frames are found."""
        pipeline, accuracy = inference.Pipeline([self.model], self.skeleton.nodes), inference.Accuracy()
        for part in self.parts:
            if part.use == "val":
                for image, animals in zip(part.images, part.animals):
                    accuracy.add(pipeline.targets(animals), pipeline.predict(image, animals))
        return accuracy.summary()

    def evaluate(self) -> None:
        """Predict all frames with the best model; write predictions and figures to the run's folder."""
        if not self.settings.save:
            return
        pipeline = inference.Pipeline([inference.Model.load(self.folder)], self.skeleton.nodes)
        for part in self.parts:
            log(f"Computing evaluation metrics of {part.use}.{part.number}...")
            accuracy, frames = inference.Accuracy(), []
            for frame, image, animals in zip(part.frames, part.images, part.animals):
                found = pipeline.predict(image, animals)
                accuracy.add(pipeline.targets(animals), found)
                frames.append(slp.Frame(frame.video, frame.index, found))
            write_labels(self.folder, "pr", part, frames)
            summary = accuracy.summary()
            path = os.path.join(self.folder, f"metrics.{part.use}.{part.number}")
            np.savez(f"{path}.npz", **summary)
            with open(f"{path}.json", "w", encoding="utf-8") as file:
                json.dump({name: value if math.isfinite(value) else None for name, value in summary.items()}, file)
            log(f"Average Distance: {summary['dist_avg']:.2f} px, recall {summary['recall']:.3f}")
