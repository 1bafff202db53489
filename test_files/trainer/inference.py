"""A trained model at work: finding animals and their key points, and how far off that is from the labels."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field

import numpy as np

import network
import slp
from samples import Geometry, View, find_peaks, frame_view, network_input, refine

PEAK_THRESHOLD = 0.25
MATCH_LIMIT = 50.0
"""How far a prediction may be from an animal and still count as that animal, in pixels (mean over its points)."""


class Model:
    """A network with the figures it was trained for."""

    def __init__(self, net: network.Network, shape: Geometry):
        self.network, self.shape = net, shape

    @staticmethod
    def load(path: str) -> "Model":
        """The model in a run's folder, or in the `best.ckpt` given.

        # Errors
        `CheckpointError` when there is none, or it is not one of this trainer.
        """
        file = os.path.join(path, "best.ckpt") if os.path.isdir(path) else path
        parameters, facts = network.load(file)
        try:
            model = build(Geometry(**facts["geometry"]), np.random.default_rng(0))
            for name, array in model.network.parameters().items():
                array[...] = parameters[name]
        except (KeyError, TypeError, ValueError) as error:
            raise network.CheckpointError(f"{file} does not fit this trainer: {error}") from error
        return model

    def facts(self) -> dict:
        """What `load` needs to know besides the parameters."""
        return {"geometry": asdict(self.shape)}

    def find_centres(self, prepared: np.ndarray) -> list[tuple[np.ndarray, float]]:
        """The animals' centres in a prepared frame, in scaled pixels, each with its score (centroid head)."""
        view = frame_view(prepared, self.shape)
        maps = self.network.forward(network_input(view.cut(prepared), self.shape)[None])[0]
        peaks = find_peaks(maps[..., 0], PEAK_THRESHOLD, self.shape.stride)
        return [(view.locate(peak), score) for peak, score in peaks]

    def find_points(self, prepared: np.ndarray, centres: list[np.ndarray]) -> list[tuple[np.ndarray, float]]:
        """The key points of the animals at the given centres, in scaled pixels (centered instance head)."""
        if not centres:
            return []
        views = [View(centre, (self.shape.crop, self.shape.crop)) for centre in centres]
        maps = self.network.forward(np.stack([network_input(view.cut(prepared), self.shape) for view in views]))
        found = []
        for view, some in zip(views, maps):
            peaks = []
            for node in range(some.shape[-1]):
                row, column = np.unravel_index(np.argmax(some[..., node]), some.shape[:2])
                peaks.append(refine(some[..., node], int(row), int(column), self.shape.stride))
            points = view.locate(np.stack([peak for peak, _ in peaks]))
            found.append((points, float(np.mean([score for _, score in peaks]))))
        return found


def build(shape: Geometry, rng: np.random.Generator) -> Model:
    """An untrained model."""
    return Model(network.Network(rng, shape.inputs, shape.outputs, shape.stride, shape.filters), shape)


class Pipeline:
    """Centroid model, centered instance model, or one after the other.

    Without a centroid model the centres come from the labels; without the other one a prediction is the anchor alone.
    """

    def __init__(self, models: list[Model], nodes: list[str]):
        by_head = {model.shape.head: model for model in models}
        if len(by_head) != len(models):
            raise ValueError("two models of the same kind; give at most one centroid and one centered instance model")
        self._centroid, self._instance = by_head.get("centroid"), by_head.get("centered_instance")
        if self._instance is not None and self._instance.shape.nodes != nodes:
            raise ValueError(f"the model predicts {self._instance.shape.nodes}, the labels have {nodes}")
        self._nodes = nodes

    def predict(self, image: np.ndarray, labelled: list[np.ndarray]) -> list[slp.Instance]:
        """The animals in one image; `labelled` are the true ones, used for their centres only, and only if needed."""
        if self._centroid is not None:
            shape = self._centroid.shape
            found = self._centroid.find_centres(shape.prepare(image))
            centres = [(shape.to_image(centre), score) for centre, score in found]
        else:
            shape = self._instance.shape
            centres = [(shape.centre_of(animal), 1.0) for animal in labelled]
        if self._instance is None:
            return [self._anchor_only(centre, score) for centre, score in centres]
        shape = self._instance.shape
        found = self._instance.find_points(shape.prepare(image), [shape.to_scaled(centre) for centre, _ in centres])
        return [slp.Instance(shape.to_image(points), True, score) for points, score in found]

    def _anchor_only(self, centre: np.ndarray, score: float) -> slp.Instance:
        points = np.full((len(self._nodes), 2), np.nan)
        points[self._centroid.shape.anchor or 0] = centre
        return slp.Instance(points, True, score)

    def targets(self, labelled: list[np.ndarray]) -> list[np.ndarray]:
        """What a perfect prediction would be, given the labelled animals."""
        if self._instance is not None:
            return labelled
        shape = self._centroid.shape
        return [self._anchor_only(shape.centre_of(animal), 1.0).points for animal in labelled]


@dataclass
class Accuracy:
    """How predictions compare with labels, over all frames that were added."""

    animals: int = 0
    predictions: int = 0
    matched: int = 0
    errors: list[float] = field(default_factory=list)

    def add(self, targets: list[np.ndarray], found: list[slp.Instance]) -> None:
        """Match one frame's predictions with its animals, the closest first, and keep the points' errors."""
        self.animals, self.predictions = self.animals + len(targets), self.predictions + len(found)
        pairs = []
        for a, target in enumerate(targets):
            for b, instance in enumerate(found):
                errors = np.hypot(*(target - instance.points).T)
                if not np.isnan(errors).all() and np.nanmean(errors) <= MATCH_LIMIT:
                    pairs.append((float(np.nanmean(errors)), a, b, errors[~np.isnan(errors)]))
        used_a, used_b = set(), set()
        for _, a, b, errors in sorted(pairs, key=lambda pair: pair[:3]):
            if a not in used_a and b not in used_b:
                used_a.add(a)
                used_b.add(b)
                self.matched += 1
                self.errors.extend(float(error) for error in errors)

    def summary(self) -> dict[str, float]:
        """The figures by name; distances are infinite where nothing matched."""
        distances = np.array(self.errors or [np.inf])
        recall = self.matched / self.animals if self.animals else 0.0
        precision = self.matched / self.predictions if self.predictions else 0.0
        both = precision + recall
        return {
            "dist_avg": float(distances.mean()),
            "dist_median": float(np.percentile(distances, 50)) if self.errors else float("inf"),
            "dist_p90": float(np.percentile(distances, 90)) if self.errors else float("inf"),
            "dist_p95": float(np.percentile(distances, 95)) if self.errors else float("inf"),
            "dist_max": float(distances.max()),
            "precision": precision, "recall": recall, "f1": 2 * precision * recall / both if both else 0.0,
            "n_tp": float(self.matched), "n_fp": float(self.predictions - self.matched),
            "n_fn": float(self.animals - self.matched),
        }
