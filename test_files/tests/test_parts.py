"""The trainer's parts that figures can be wrong in without anything failing."""

from __future__ import annotations

import numpy as np
import pytest

import config as configuration
import network
from samples import Geometry, View, confidence_maps, find_peaks
from training import measure


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_gradients_agree_with_finite_differences(stride):
    rng = np.random.default_rng(3)
    net = network.Network(rng, inputs=2, outputs=3, stride=stride, filters=4)
    for array in net.parameters().values():
        array += rng.normal(0, 0.05, array.shape).astype(np.float32)
    image = rng.normal(size=(2, 16, 12, 2)).astype(np.float32)
    target = rng.uniform(size=net.forward(image).shape).astype(np.float32)
    weights = np.array([[1, 1, 0], [1, 0, 1]], np.float32)

    def loss() -> float:
        return measure(net.forward(image).astype(np.float64), target, weights)[0].total

    net.backward(measure(net.forward(image, training=True), target, weights)[1])
    for array, gradient in zip(net.parameters().values(), net.gradients()):
        # Along the gradient itself the change is largest, and float32 resolves it.
        length = float(np.linalg.norm(gradient))
        step = (1e-2 * gradient / length).astype(np.float32)
        array += step
        above = loss()
        array -= 2 * step
        below = loss()
        array += step
        assert (above - below) / 2e-2 == pytest.approx(length, rel=0.05)


def test_a_view_maps_points_there_and_back_and_its_patch_agrees():
    y, x = np.mgrid[0:60, 0:80].astype(np.float32)
    image = np.exp(-((x - 50) ** 2 + (y - 20) ** 2) / 18)
    view = View(np.array([45.0, 25.0]), (48, 48), angle=0.7, zoom=1.3)
    point = view.place(np.array([[50.0, 20.0]]))
    assert view.locate(point) == pytest.approx(np.array([[50.0, 20.0]]))
    row, column = np.unravel_index(np.argmax(view.cut(image)), (48, 48))
    assert np.hypot(column - point[0, 0], row - point[0, 1]) < 1


def test_peaks_are_found_to_a_fraction_of_a_cell():
    shape = Geometry("centroid", ["a"], None, 0.5, 4, 4.0, 0, 8)
    points = np.array([[30.3, 41.7], [90.9, 70.2], [np.nan, np.nan]])
    maps = confidence_maps([points], (128, 128), shape)
    found = sorted((tuple(peak) for peak, _ in find_peaks(maps[..., 0], 0.25, 4)))
    assert len(found) == 2
    assert np.abs(np.array(found) - points[:2]).max() < 0.5
    assert shape.to_image(shape.to_scaled(points[:2])) == pytest.approx(points[:2])


@pytest.mark.parametrize("text, value", [
    ("3", 3), ("1e-4", 1e-4), ("null", None), ("true", True), ("name", "name"), ("a/b.slp", "a/b.slp"),
    ('"x=1"', "x=1"), ("[a.slp,b.slp]", ["a.slp", "b.slp"]), ("", None),
])
def test_overrides_read_values_as_hydra_does(tmp_path, text, value):
    (tmp_path / "c.yaml").write_text("section: {key: old}\n")
    assert configuration.load(str(tmp_path), "c", [f"section.key={text}"]).values == {"section": {"key": value}}
