"""The labelled frames of a training: which files, which frames train and which validate."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

import slp
from config import Config, ConfigError


@dataclass
class Part:
    """Labelled frames of one file that are trained on, or validated with."""

    use: str
    number: int
    labels: slp.Labels
    frames: list[slp.Frame]
    images: list[np.ndarray]

    @property
    def animals(self) -> list[list[np.ndarray]]:
        """The user's instances of every frame."""
        return [user_animals(frame) for frame in self.frames]


def user_animals(frame: slp.Frame) -> list[np.ndarray]:
    """The key points of a frame's labelled animals; predictions of an earlier model do not count."""
    return [item.points for item in frame.instances if not item.predicted and not np.isnan(item.points).all()]


def load_parts(config: Config) -> list[Part]:
    """The frames to train on and to validate with.

    # Errors
    `ConfigError` or `SlpError` when there are none, or they do not belong together.
    """
    paths = config.paths("data_config.train_labels_path")
    if not paths:
        raise ConfigError("data_config.train_labels_path names no label file")
    train = [_load_part("train", number, path) for number, path in enumerate(paths)]
    validation = config.paths("data_config.val_labels_path")
    if validation:
        parts = train + [_load_part("val", number, path) for number, path in enumerate(validation)]
    elif config.get("data_config.use_same_data_for_val", False):
        parts = train + [Part("val", part.number, part.labels, part.frames, part.images) for part in train]
    else:
        parts = _split(train, config)
    for part in parts:
        if part.labels.skeleton.nodes != parts[0].labels.skeleton.nodes:
            raise ConfigError(f"{part.labels.path} has other nodes than {parts[0].labels.path}")
    return parts


def _load_part(use: str, number: int, path: str) -> Part:
    labels = slp.read(path)
    labels.frames = [frame for frame in labels.frames if user_animals(frame)]
    if not labels.frames:
        raise ConfigError(f"{path} has no frame that a user labelled")
    return Part(use, number, labels, labels.frames, labels.images())


def _split(train: list[Part], config: Config) -> list[Part]:
    fraction = config.number("data_config.validation_fraction", 0.1, least=0.0)
    if fraction >= 1:
        raise ConfigError(f"data_config.validation_fraction must be under 1, not {fraction:g}")
    rng = np.random.default_rng(config.integer("trainer_config.seed", 0))
    parts: list[Part] = []
    for part in train:
        count = len(part.frames)
        # A single frame serves for both.
        held_out = min(max(1, round(fraction * count)), max(1, count - 1))
        order = rng.permutation(count)
        chosen = {"train": order[held_out:] if count > 1 else order, "val": order[:held_out]}
        parts += [
            Part(use, part.number, part.labels, [part.frames[i] for i in sorted(some)],
                 [part.images[i] for i in sorted(some)]) for use, some in chosen.items()
        ]
    return sorted(parts, key=lambda part: (part.use, part.number))


def write_labels(folder: str, kind: str, part: Part, frames: list[slp.Frame]) -> None:
    """A label file of the run (`gt`: the labels, `pr`: predictions) that refers to the images of the package."""
    path = os.path.join(folder, f"labels_{kind}.{part.use}.{part.number}.slp")
    slp.write(path, part.labels.skeleton, frames, part.labels.references())
