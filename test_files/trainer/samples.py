"""From labelled images to training samples, and from confidence maps back to points.

Everything here is in the scaled image's pixels; `to_scaled` and `to_image` are the only doors between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from config import Config, ConfigError

FOREGROUND = 0.1
"""From which value on a cell of a target map counts as the animal's and not as background."""


@dataclass
class Geometry:
    """The figures that the images, the maps and the model must agree on; kept in the model file."""

    head: str
    nodes: list[str]
    anchor: int | None
    scale: float
    stride: int
    sigma: float
    crop: int
    filters: int
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def inputs(self) -> int:
        """Channels of the network's input: a crop also tells where its centre is."""
        return 1 if self.head == "centroid" else 3

    @property
    def outputs(self) -> int:
        """Channels of the network's output."""
        return 1 if self.head == "centroid" else len(self.nodes)

    def to_scaled(self, points: np.ndarray) -> np.ndarray:
        """Points of the image in the scaled image's pixels."""
        return (points + 0.5) * self.scale - 0.5

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """The inverse of `to_scaled`."""
        return (points + 0.5) / self.scale - 0.5

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The image scaled and normalised."""
        if self.scale != 1.0:
            size = (max(1, round(image.shape[1] * self.scale)), max(1, round(image.shape[0] * self.scale)))
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        return (image - self.mean) / self.deviation

    def centre_of(self, points: np.ndarray) -> np.ndarray:
        """An animal's centre: its anchor part, or where that is not visible, the middle of its visible points."""
        if self.anchor is not None and not np.isnan(points[self.anchor, 0]):
            return points[self.anchor]
        return np.nanmean(points, axis=0)


def geometry(config: Config, head: str, nodes: list[str], images: list[np.ndarray],
             animals: list[list[np.ndarray]]) -> Geometry:
    """The figures for a training, from its configuration and its data."""
    confmaps = f"model_config.head_configs.{head}.confmaps"
    anchor = config.get(f"{confmaps}.anchor_part")
    if anchor is not None and anchor not in nodes:
        raise ConfigError(f"{confmaps}.anchor_part is {anchor!r}, but the nodes are {', '.join(nodes)}")
    stride = config.integer(f"{confmaps}.output_stride", 4, least=1)
    if stride not in (1, 2, 4, 8, 16):
        raise ConfigError(f"{confmaps}.output_stride must be 1, 2, 4, 8 or 16, not {stride}")
    scale = config.number("data_config.preprocessing.scale", 1.0, least=0.01)
    sigma = config.number(f"{confmaps}.sigma", 2.5, least=0.1)
    filters = config.integer("model_config.backbone_config.unet.filters", 12, least=1)
    result = Geometry(head, nodes, None if anchor is None else nodes.index(anchor), scale, stride, sigma, 0, filters)
    result.crop = _crop_size(config, result, animals)
    pixels = np.concatenate([image[::4, ::4].ravel() for image in images])
    result.mean, result.deviation = float(pixels.mean()), float(max(pixels.std(), 1e-3))
    return result


def _crop_size(config: Config, shape: Geometry, animals: list[list[np.ndarray]]) -> int:
    """The configured crop size in scaled pixels, or one that holds every animal whichever way it is turned."""
    size = config.integer("data_config.preprocessing.crop_size", 0) * shape.scale
    if not size:
        farthest = max(float(np.nanmax(np.hypot(*(animal - shape.centre_of(animal)).T)))
                       for frame in animals for animal in frame)
        least = config.integer("data_config.preprocessing.min_crop_size", 0)
        size = max(2.4 * farthest, least) * shape.scale
    return int(np.ceil(size / 16)) * 16


@dataclass
class View:
    """How a patch is cut out: which point becomes its centre, turned and zoomed by how much."""

    centre: np.ndarray
    size: tuple[int, int]
    angle: float = 0.0
    zoom: float = 1.0

    def _turn(self) -> np.ndarray:
        return np.array([[np.cos(self.angle), -np.sin(self.angle)], [np.sin(self.angle), np.cos(self.angle)]])

    def _middle(self) -> np.ndarray:
        return np.array([self.size[1] // 2, self.size[0] // 2], float)

    def place(self, points: np.ndarray) -> np.ndarray:
        """Points of the scaled image in the patch."""
        return (points - self.centre) @ (self.zoom * self._turn()).T + self._middle()

    def locate(self, points: np.ndarray) -> np.ndarray:
        """The inverse of `place`."""
        return (points - self._middle()) @ self._turn() / self.zoom + self.centre

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The patch, interpolated; what lies outside of the image repeats its edge."""
        rows, columns = np.mgrid[0:self.size[0], 0:self.size[1]]
        x, y = self.locate(np.stack([columns.ravel(), rows.ravel()], axis=-1)).T
        x, y = np.clip(x, 0, image.shape[1] - 1.001), np.clip(y, 0, image.shape[0] - 1.001)
        left, top = x.astype(int), y.astype(int)
        right, bottom = (x - left).astype(np.float32), (y - top).astype(np.float32)
        upper = image[top, left] * (1 - right) + image[top, left + 1] * right
        lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
        return (upper * (1 - bottom) + lower * bottom).reshape(self.size)


class Samples:
    """Training samples: whole frames for the centroid head, one crop an animal for the centered instances."""

    def __init__(self, shape: Geometry, images: list[np.ndarray], animals: list[list[np.ndarray]]):
        self.shape = shape
        self._images = [shape.prepare(image).astype(np.float32) for image in images]
        self._animals = [[shape.to_scaled(animal) for animal in frame] for frame in animals]
        if shape.head == "centroid":
            self._items: list[tuple[int, int]] = [(frame, -1) for frame in range(len(images))]
        else:
            self._items = [(frame, number) for frame, some in enumerate(animals) for number in range(len(some))]

    def __len__(self) -> int:
        return len(self._items)

    def batch(self, chosen: np.ndarray, rng: np.random.Generator | None = None,
              augmentation: "Augmentation | None" = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Network input, target maps, and 1 or 0 a map for whether it counts; augmented where `rng` is given."""
        inputs, targets, weights = [], [], []
        for item in chosen:
            frame, number = self._items[item]
            view = frame_view(self._images[frame], self.shape) if number < 0 else View(
                self.shape.centre_of(self._animals[frame][number]), (self.shape.crop, self.shape.crop))
            if rng is not None and augmentation is not None:
                augmentation.apply(view, rng)
            inputs.append(network_input(view.cut(self._images[frame]), self.shape))
            if number < 0:
                centres = [self.shape.centre_of(animal) for animal in self._animals[frame]]
                groups = [view.place(np.array(centres).reshape(-1, 2))]
            else:
                groups = [point[None] for point in view.place(self._animals[frame][number])]
            targets.append(confidence_maps(groups, view.size, self.shape))
            weights.append([float(number < 0 or not np.isnan(group).any()) for group in groups])
        return np.stack(inputs), np.stack(targets), np.array(weights, np.float32)


@dataclass
class Augmentation:
    """Random turns and zooms, within the configured limits."""

    angles: tuple[float, float]
    zooms: tuple[float, float]
    probability: float

    def apply(self, view: View, rng: np.random.Generator) -> None:
        """Turn and zoom a view."""
        if rng.uniform() < self.probability:
            view.angle, view.zoom = rng.uniform(*self.angles), rng.uniform(*self.zooms)


def augmentation(config: Config) -> Augmentation | None:
    """The configured augmentation, if it is switched on."""
    if not config.get("data_config.use_augmentations_train", True):
        return None
    key = "data_config.augmentation_config.geometric"
    angles = [np.deg2rad(config.number(f"{key}.rotation_{end}", 0.0)) for end in ("min", "max")]
    zooms = [config.number(f"{key}.scale_{end}", 1.0, least=0.1) for end in ("min", "max")]
    return Augmentation((angles[0], angles[1]), (zooms[0], zooms[1]), config.number(f"{key}.affine_p", 0.0))


def frame_view(image: np.ndarray, shape: Geometry) -> View:
    """The view of a whole scaled image, padded so that its sides divide by the stride."""
    height, width = (-(-side // shape.stride) * shape.stride for side in image.shape)
    return View(np.array([width // 2, height // 2], float), (height, width))


def network_input(patch: np.ndarray, shape: Geometry) -> np.ndarray:
    """A patch as the network's input: (height, width, channels)."""
    patch = patch.astype(np.float32)
    if shape.inputs == 1:
        return patch[..., None]
    sides = [np.linspace(-1, 1, side, dtype=np.float32) for side in patch.shape]
    rows, columns = np.meshgrid(*sides, indexing="ij")
    return np.stack([patch, rows, columns], axis=-1)


def confidence_maps(groups: list[np.ndarray], size: tuple[int, int], shape: Geometry) -> np.ndarray:
    """One map a group of points: 1 at a point, falling off with `sigma`; (height, width, groups)."""
    y = np.arange(0, size[0], shape.stride, dtype=np.float32)
    x = np.arange(0, size[1], shape.stride, dtype=np.float32)
    maps = np.zeros((len(y), len(x), len(groups)), np.float32)
    for channel, group in enumerate(groups):
        for px, py in group[~np.isnan(group).any(axis=-1)]:
            row = np.exp(-((x - px) ** 2) / (2 * shape.sigma**2))
            column = np.exp(-((y - py) ** 2) / (2 * shape.sigma**2))
            np.maximum(maps[..., channel], column[:, None] * row[None], out=maps[..., channel])
    return maps


def refine(single: np.ndarray, row: int, column: int, stride: int) -> tuple[np.ndarray, float]:
    """The peak around a cell, in pixels and to a fraction of a cell, and its height."""
    y0, x0 = max(0, row - 2), max(0, column - 2)
    part = np.maximum(single[y0:row + 3, x0:column + 3], 0)
    total = float(part.sum())
    if total <= 0 or not np.isfinite(total):
        return np.array([column, row], float) * stride, float(single[row, column])
    rows, columns = np.mgrid[y0:y0 + part.shape[0], x0:x0 + part.shape[1]]
    peak = np.array([(part * columns).sum(), (part * rows).sum()], float) / total
    return peak * stride, float(single[row, column])


def find_peaks(single: np.ndarray, threshold: float, stride: int) -> list[tuple[np.ndarray, float]]:
    """Every local maximum over the threshold, the highest first."""
    padded = np.pad(single, 2, constant_values=-np.inf)
    around = np.max([padded[i:i + single.shape[0], j:j + single.shape[1]] for i in range(5) for j in range(5)], axis=0)
    cells = np.argwhere((single >= around) & (single > threshold))
    peaks = [refine(single, int(row), int(column), stride) for row, column in cells]
    return sorted(peaks, key=lambda peak: -peak[1])
