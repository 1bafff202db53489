#!/usr/bin/env python3
"""Make a SLEAP training job package: rendered flies with their true key points, and two models to train on them.

The package has the layout of SLEAP's "Export training job package": a flat zip of the configurations, the labels with
embedded PNG frames, `jobs.yaml` and the two scripts. The same options always give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import zipfile

import numpy as np
import yaml
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "trainer"))
import slp  # noqa: E402

LABELS = "flies.pkg.slp"
SKELETON = slp.Skeleton(
    nodes=["head", "thorax", "abdomen", "wing_left", "wing_right"],
    edges=[(1, 0), (1, 2), (1, 3), (1, 4)],
    symmetries=[(3, 4)],
)
CLEARANCE = 40.0
"""Least distance between two flies, and (with 10 less) between a fly and the edge, in pixels."""


def draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A bright, unevenly lit, blotchy arena: (size, size), grey values from 0 to 1."""
    y, x = np.mgrid[0:size, 0:size] / size
    image = 0.78 - 0.25 * ((x - rng.uniform(0.3, 0.7)) ** 2 + (y - rng.uniform(0.3, 0.7)) ** 2)
    for _ in range(12):
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(2, 25)
        wave = np.cos(2 * np.pi * (frequency * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform()))
        image += rng.uniform(0.004, 0.012) * wave
    return image


def draw_ellipse(image: np.ndarray, centre: np.ndarray, axes: tuple[float, float], angle: float, grey: float,
                 opacity: float) -> None:
    """Blend a soft-edged ellipse into the image; `axes` are its half lengths along and across `angle`."""
    reach = int(max(axes)) + 3
    x0, y0 = (int(max(0, value - reach)) for value in centre)
    part = image[y0:int(centre[1]) + reach + 1, x0:int(centre[0]) + reach + 1]
    y, x = np.mgrid[y0:y0 + part.shape[0], x0:x0 + part.shape[1]].astype(float)
    u = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    v = -(x - centre[0]) * np.sin(angle) + (y - centre[1]) * np.cos(angle)
    radius = np.hypot(u / axes[0], v / axes[1])
    cover = opacity * np.clip((1 - radius) * min(axes) + 0.5, 0, 1)
    part += cover * (grey - part)


def draw_leg(image: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
    """A thin leg between two points."""
    length = float(np.hypot(*(end - start)))
    angle = float(np.arctan2(*(end - start)[::-1]))
    draw_ellipse(image, (start + end) / 2, (length / 2, 0.8), angle, 0.3, 0.8)


def draw_fly(image: np.ndarray, rng: np.random.Generator, centre: np.ndarray) -> np.ndarray:
    """Draw one fly and return its key points in the skeleton's order: (5, 2), x and y."""
    heading, scale = rng.uniform(-np.pi, np.pi), rng.uniform(0.9, 1.1)
    bend, spread = rng.normal(0, 0.12), rng.uniform(0.25, 0.6)

    def along(start: np.ndarray, angle: float, distance: float) -> np.ndarray:
        return start + scale * distance * np.array([np.cos(heading + angle), np.sin(heading + angle)])

    head, back = along(centre, 0.0, 13.0), np.pi + bend
    abdomen = along(centre, back, 20.0)
    wings = [along(centre, np.pi + side * spread, 25.0) for side in (1, -1)]
    for side in (1, -1):
        for angle in (0.9, 1.5, 2.1):
            draw_leg(image, centre, along(centre, side * (angle + rng.normal(0, 0.1)), 14.0))
    draw_ellipse(image, (centre + abdomen) / 2, (scale * 12, scale * 5), heading + back, 0.28, 0.95)
    for side, tip in zip((1, -1), wings):
        draw_ellipse(image, (centre + tip) / 2, (scale * 12.5, scale * 4), heading + np.pi + side * spread, 0.55, 0.6)
    draw_ellipse(image, centre, (scale * 7, scale * 6), heading, 0.18, 0.97)
    draw_ellipse(image, head, (scale * 4, scale * 5.5), heading, 0.35, 0.97)
    for side in (1, -1):
        draw_ellipse(image, along(head, side * 1.2, 4.0), (scale * 1.8, scale * 1.8), 0.0, 0.08, 1.0)
    return np.stack([head, centre, abdomen, *wings])


def draw_frame(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """One image (uint8) with two or three flies, and the key points of each."""
    image, centres, flies = draw_background(rng, size), [], []
    wanted = int(rng.integers(2, 4))
    for _ in range(200):
        centre = rng.uniform(CLEARANCE - 10, size - CLEARANCE + 10, size=2)
        if all(np.hypot(*(centre - other)) > CLEARANCE for other in centres):
            centres.append(centre)
            flies.append(draw_fly(image, rng, centre))
        if len(flies) == wanted:
            break
    image += rng.normal(0, 0.012, size=image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8), flies


def encode_png(image: np.ndarray) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def make_labels(arguments: argparse.Namespace) -> tuple[list[slp.Frame], list[bytes]]:
    """The labelled frames and their images; frame 0 is the first that was asked for without `--insert-front`."""
    frames, pngs = [], []
    for number in range(-arguments.insert_front, arguments.frames):
        # Every frame has a random stream of its own, so that inserting some leaves the others as they were.
        rng = np.random.default_rng([arguments.seed, 2 * number if number >= 0 else -2 * number - 1])
        image, flies = draw_frame(rng, arguments.size)
        index = 7 * (number + arguments.insert_front)
        frames.append(slp.Frame(0, index, [slp.Instance(points) for points in flies]))
        pngs.append(encode_png(image))
    if arguments.edit_label:
        frames[len(frames) // 2].instances[0].points[0] += (1.5, -1.0)
    return frames, pngs


def make_config(head: str, run_name: str) -> dict:
    """A complete training configuration for one head, in sleap-nn's format."""
    centroid = head == "centroid"
    heads = dict.fromkeys(["single_instance", "centroid", "centered_instance", "bottomup", "multi_class_bottomup",
                           "multi_class_topdown"])
    confmaps = {"anchor_part": "thorax", "sigma": 4.0, "output_stride": 4}
    if not centroid:
        confmaps["part_names"] = list(SKELETON.nodes)
    heads[head] = {"confmaps": confmaps}
    unet = {"in_channels": 1, "kernel_size": 3, "filters": 8 if centroid else 16, "filters_rate": 2.0, "max_stride": 8,
            "stem_stride": None, "middle_block": True, "up_interpolate": True, "stacks": 1, "convs_per_block": 2,
            "output_stride": 4}
    return {
        "data_config": {
            "train_labels_path": [LABELS], "val_labels_path": None, "validation_fraction": 0.15,
            "test_file_path": None, "provider": "LabelsReader", "user_instances_only": True,
            "data_pipeline_fw": "torch_dataset",
            "preprocessing": {"ensure_rgb": False, "ensure_grayscale": True, "max_height": None, "max_width": None,
                              "scale": 0.5 if centroid else 1.0, "crop_size": None if centroid else 64,
                              "min_crop_size": None if centroid else 64},
            "use_augmentations_train": True,
            "augmentation_config": {"geometric": {
                "rotation_min": -180.0, "rotation_max": 180.0, "scale_min": 0.9, "scale_max": 1.1,
                "translate_width": 0.0, "translate_height": 0.0, "affine_p": 1.0}},
            "skeletons": None,
        },
        "model_config": {
            "init_weights": "default",
            "backbone_config": {"unet": unet, "convnext": None, "swint": None},
            "head_configs": heads,
        },
        "trainer_config": {
            "train_data_loader": {"batch_size": 4 if centroid else 8, "shuffle": True, "num_workers": 0},
            "val_data_loader": {"batch_size": 4 if centroid else 8, "shuffle": False, "num_workers": 0},
            "model_ckpt": {"save_top_k": 1, "save_last": False},
            "trainer_accelerator": "auto", "enable_progress_bar": True,
            "min_train_steps_per_epoch": 30, "train_steps_per_epoch": 30,
            "visualize_preds_during_training": False, "keep_viz": False,
            "max_epochs": 8 if centroid else 10, "seed": 7, "use_wandb": False, "save_ckpt": True,
            "ckpt_dir": "models", "run_name": run_name, "resume_ckpt_path": None,
            "optimizer_name": "Adam", "optimizer": {"lr": 0.005, "amsgrad": False},
            "lr_scheduler": {"step_lr": None, "reduce_lr_on_plateau": {
                "threshold": 1.0e-06, "threshold_mode": "abs", "cooldown": 3, "patience": 5, "factor": 0.5,
                "min_lr": 1.0e-08}},
            "early_stopping": {"min_delta": 1.0e-08, "patience": 10, "stop_training_on_plateau": True},
            "zmq": {"controller_port": 9000, "controller_polling_timeout": 10, "publish_port": 9001},
        },
        "name": "", "description": "", "filename": "",
    }


def package_files(frames: list[slp.Frame], pngs: list[bytes], size: int) -> dict[str, bytes]:
    """The files of the package by name."""
    run_names = {head: f"flies.{head}.n={len(frames)}" for head in ("centroid", "centered_instance")}
    files = {LABELS: labels_file(frames, pngs, size)}
    for head, run_name in run_names.items():
        files[f"{head}.yaml"] = yaml.safe_dump(make_config(head, run_name), sort_keys=False).encode()
    jobs = {"training": [
        {"cfg": f"{head}.yaml", "run_path": f"models/{run_name}", "train_labels": LABELS}
        for head, run_name in run_names.items()
    ], "inference": []}
    files["jobs.yaml"] = yaml.safe_dump(jobs).encode()
    lines = "".join(
        f"sleap train --config-name {head}.yaml --config-dir . 'trainer_config.ckpt_dir=\"models\"' "
        f"'trainer_config.run_name=\"{run_name}\"'\n" for head, run_name in run_names.items()
    )
    files["train-script.sh"] = f"#!/bin/bash\n{lines}".encode()
    files["inference-script.sh"] = b"#!/bin/bash\n"
    return files


def labels_file(frames: list[slp.Frame], pngs: list[bytes] | None, size: int) -> bytes:
    """The bytes of a label file, with the images where `pngs` are given."""
    video = {"backend": {"type": "MediaVideo", "filename": "/home/lab/videos/flies.mp4", "grayscale": True,
                         "bgr": True, "dataset": "", "input_format": ""}}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "labels.slp")
        slp.write(path, SKELETON, frames, [video], pngs, (size, size))
        with open(path, "rb") as file:
            return file.read()


def write_zip(path: str, files: dict[str, bytes]) -> None:
    """A flat zip whose bytes depend on the files alone."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if name.endswith(".sh") else 0o644) << 16
            archive.writestr(entry, data)


def write_folder(path: str, files: dict[str, bytes]) -> None:
    """The package unpacked into a folder."""
    os.makedirs(path, exist_ok=True)
    for name, data in files.items():
        target = os.path.join(path, name)
        with open(target, "wb") as file:
            file.write(data)
        os.chmod(target, 0o755 if name.endswith(".sh") else 0o644)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make a SLEAP training job package of rendered flies.")
    parser.add_argument("--output", "-o", required=True, help="file or folder to write")
    parser.add_argument("--kind", choices=["zip", "folder", "pkg", "plain-slp"], default="zip",
                        help="the whole package as a zip or folder; its labels with images alone (pkg) or without "
                             "images (plain-slp, what a user exports by mistake)")
    parser.add_argument("--frames", type=int, default=64, help="labelled frames (default 64)")
    parser.add_argument("--size", type=int, default=256, help="height and width of a frame (default 256)")
    parser.add_argument("--seed", type=int, default=1, help="of the drawings (default 1)")
    parser.add_argument("--edit-label", action="store_true", help="move one key point a little")
    parser.add_argument("--insert-front", type=int, default=0, metavar="N", help="put N more frames before the first")
    arguments = parser.parse_args(argv)
    if arguments.frames < 1 or arguments.insert_front < 0 or arguments.seed < 0:
        parser.error("--frames must be at least 1, --insert-front and --seed at least 0")
    if arguments.size < 128:
        parser.error("--size must be at least 128, or the flies do not fit")
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Write what the command line asks for."""
    arguments = parse_arguments(argv)
    frames, pngs = make_labels(arguments)
    if arguments.kind in ("pkg", "plain-slp"):
        with open(arguments.output, "wb") as file:
            file.write(labels_file(frames, pngs if arguments.kind == "pkg" else None, arguments.size))
        return
    files = package_files(frames, pngs, arguments.size)
    (write_zip if arguments.kind == "zip" else write_folder)(arguments.output, files)


if __name__ == "__main__":
    main()
