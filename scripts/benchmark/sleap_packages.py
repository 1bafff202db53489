#!/usr/bin/env python3
"""Write a label file with embedded images, and what a user makes of it later, all with sleap-io; for `scripts/bench resubmit`.

Runs in an environment that has sleap-io: `sleap_packages.py FOLDER FRAMES SIZE`. Each package is exported anew from a sequence of
images, as a user does who labels on and exports again.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import sleap_io

EXTRA = 20
"""Frames that are appended or inserted."""


def draw(number: int, size: int, noise: float) -> np.ndarray:
    """One image as a camera gives it: uneven light, texture that stays, two animals that move, sensor noise. (size, size) of uint8.

    More noise makes a longer PNG.
    """
    still, moving = np.random.default_rng(7), np.random.default_rng([7, number])
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    image = 170 - 60 * ((x - 0.5) ** 2 + (y - 0.5) ** 2) + cv2.GaussianBlur(still.normal(0, 40, (size, size)).astype(np.float32), (0, 0), 3)
    for animal in range(2):
        angle = number / 25 + animal * np.pi
        centre = (int(size * (0.5 + 0.3 * np.cos(angle))), int(size * (0.5 + 0.3 * np.sin(angle))))
        cv2.ellipse(image, centre, (size // 16, size // 40), float(np.degrees(angle)), 0, 360, 40.0, -1, cv2.LINE_AA)
    return np.clip(image + moving.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


def write_images(folder: Path, base: range, size: int) -> list[str]:
    """The images as files, `EXTRA` before and after the base, and one longer than all others; their names.

    sleap-io pads all of a video's images to the longest. So the extra frames are a little shorter than the base's, and what a longer
    one does is a case of its own.
    """
    folder.mkdir()
    noises = [4.0 if number in base else 3.9 for number in range(base.stop + EXTRA)] + [5.0]
    names = [str(folder / f"{number:05}.png") for number in range(len(noises))]
    for number, (name, noise) in enumerate(zip(names, noises)):
        cv2.imwrite(name, draw(number, size, noise))
    return names


def frame(video: sleap_io.Video, index: int, skeleton: sleap_io.Skeleton, size: int) -> sleap_io.LabeledFrame:
    """A frame with its labels: two instances of three points."""
    instances = []
    for animal in range(2):
        angle = index / 25 + animal * np.pi
        centre = size * (0.5 + 0.3 * np.array([np.cos(angle), np.sin(angle)]))
        points = np.stack([centre + size / 20 * step * np.array([np.cos(angle), np.sin(angle)]) for step in (-1, 0, 1)])
        instances.append(sleap_io.Instance.from_numpy(points, skeleton=skeleton))
    return sleap_io.LabeledFrame(video=video, frame_idx=index, instances=instances)


def save(path: Path, video: sleap_io.Video, skeleton: sleap_io.Skeleton, size: int, indices: Iterable[int], edit: bool = False) -> None:
    """A package of these frames of the video."""
    frames = [frame(video, index, skeleton, size) for index in indices]
    if edit:
        # Some way into the file, as a user would.
        frames[len(frames) // 2].instances[0].points["xy"][0] += (1.5, -1.0)
    path.parent.mkdir()
    sleap_io.Labels(frames, videos=[video], skeletons=[skeleton]).save(str(path), embed=True, verbose=False)


def main() -> None:
    folder, count, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    base = range(EXTRA, EXTRA + count)
    images = write_images(folder / "images", base, size)
    skeleton = sleap_io.Skeleton(["head", "thorax", "abdomen"], edges=[("head", "thorax"), ("thorax", "abdomen")])
    name = "labels.pkg.slp"

    def video() -> sleap_io.Video:
        return sleap_io.Video.from_filename(images)

    save(folder / "first" / name, video(), skeleton, size, base)
    save(folder / "edited" / name, video(), skeleton, size, base, edit=True)
    save(folder / "appended" / name, video(), skeleton, size, range(EXTRA, EXTRA + count + EXTRA))
    save(folder / "inserted" / name, video(), skeleton, size, range(0, EXTRA + count))
    save(folder / "longest" / name, video(), skeleton, size, [*base, len(images) - 1])
    (folder / "renamed").mkdir()
    shutil.copy(folder / "first" / name, folder / "renamed" / "labels.v002.pkg.slp")
    shutil.rmtree(folder / "images")


if __name__ == "__main__":
    main()
