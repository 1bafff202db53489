"""The package maker: what it writes is a package, always the same, and true."""

from __future__ import annotations

import os
import subprocess
import zipfile

import h5py
import numpy as np
import pytest
import yaml

import slp
from conftest import make


def images_of(path) -> list[bytes]:
    """The embedded PNG files."""
    with h5py.File(path, "r") as file:
        return [bytes(item.astype(np.uint8)) for item in file["video0/video"][()]]


def test_the_same_options_give_the_same_bytes_of_a_few_megabytes(tmp_path):
    first, second = (make(tmp_path / name, kind="zip") for name in ("a.zip", "b.zip"))
    assert first.read_bytes() == second.read_bytes()
    assert 1_000_000 < os.path.getsize(first) < 4_000_000
    other = make(tmp_path / "c.slp", "--seed", "2", "--frames", "2", kind="pkg")
    with zipfile.ZipFile(first) as archive, archive.open("flies.pkg.slp") as labels:
        (tmp_path / "first.slp").write_bytes(labels.read())
    assert not set(images_of(other)) & set(images_of(tmp_path / "first.slp"))


def test_the_zip_is_flat_and_its_jobs_name_files_in_it(tmp_path):
    with zipfile.ZipFile(make(tmp_path / "a.zip", "--frames", "2", kind="zip")) as archive:
        names = archive.namelist()
        assert sorted(names) == ["centered_instance.yaml", "centroid.yaml", "flies.pkg.slp", "inference-script.sh",
                                 "jobs.yaml", "train-script.sh"]
        jobs = yaml.safe_load(archive.read("jobs.yaml"))["training"]
        script = archive.read("train-script.sh").decode()
    assert [job["cfg"] for job in jobs] == ["centroid.yaml", "centered_instance.yaml"]
    assert all(job["cfg"] in names and job["train_labels"] in names and job["cfg"] in script for job in jobs)


def test_the_train_script_is_a_valid_one(package):
    assert subprocess.run(["bash", "-n", str(package / "train-script.sh")]).returncode == 0


def test_key_points_lie_on_the_drawn_animals(package):
    labels = slp.read(str(package / "flies.pkg.slp"))
    for frame, image in zip(labels.frames, labels.images()):
        assert 2 <= len(frame.instances) <= 3
        for item in frame.instances:
            head, thorax, abdomen, *wings = (image[round(y), round(x)] for x, y in item.points)
            assert max(thorax, head) < 0.45 < np.median(image)
            # The other points are the tips of things: dark just inside.
            inside = item.points[1] + 0.85 * (item.points[2:] - item.points[1])
            assert all(image[round(y), round(x)] < np.median(image) - 0.05 for x, y in inside)


def test_plain_labels_have_no_images_and_say_so(tmp_path):
    labels = slp.read(str(make(tmp_path / "a.slp", "--frames", "2", kind="plain-slp")))
    with pytest.raises(slp.SlpError, match="flies.mp4.*Export a training job package"):
        labels.images()


def test_an_edited_label_moves_one_point_and_no_image(tmp_path):
    before = make(tmp_path / "a.slp", "--frames", "6", kind="pkg")
    after = make(tmp_path / "b.slp", "--frames", "6", "--edit-label", kind="pkg")
    assert images_of(before) == images_of(after)
    points = [np.concatenate([item.points for frame in slp.read(str(path)).frames for item in frame.instances])
              for path in (before, after)]
    assert (points[0] != points[1]).any(axis=-1).sum() == 1


def test_frames_put_in_front_leave_the_others_as_they_were(tmp_path):
    before = make(tmp_path / "a.slp", "--frames", "5", kind="pkg")
    after = make(tmp_path / "b.slp", "--frames", "5", "--insert-front", "3", kind="pkg")
    assert images_of(after)[3:] == images_of(before)
    assert not set(images_of(after)[:3]) & set(images_of(before))


def test_what_was_written_is_read_back(tmp_path):
    skeleton = slp.Skeleton(["a", "b", "c"], [(0, 1), (1, 2)], [(0, 2)])
    points = np.array([[1.5, 2.5], [np.nan, np.nan], [3.0, 4.0]])
    frames = [slp.Frame(0, 4, [slp.Instance(points), slp.Instance(points + 1, True, 0.5)]), slp.Frame(0, 9, [])]
    path = str(tmp_path / "x.slp")
    slp.write(path, skeleton, frames, [{"backend": {"filename": "x.mp4"}}])
    labels = slp.read(path)
    assert labels.skeleton == skeleton
    assert [(frame.index, len(frame.instances)) for frame in labels.frames] == [(4, 2), (9, 0)]
    user, predicted = labels.frames[0].instances
    np.testing.assert_array_equal(user.points, points)
    np.testing.assert_array_equal(predicted.points, points + 1)
    assert (user.predicted, predicted.predicted, predicted.score) == (False, True, 0.5)
