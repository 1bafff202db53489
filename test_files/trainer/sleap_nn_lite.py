#!/usr/bin/env python3
"""A small pose trainer with the command line, messages and files of sleap-nn.

It learns for real, in numpy on one core; see README.md one folder up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

# Small matrices: more threads than one make it slower. To be set before numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

VERSION = "sleap-nn-lite 1.0.0 (command line of sleap-nn 0.3.5)"


def train(arguments: argparse.Namespace) -> int:
    """Train one model; the exit code. Anything wrong leaves as an exception: a traceback and exit code 1."""
    import config as configuration
    from output import log
    from reporter import Reporter
    from training import Training

    config = configuration.load(arguments.config_dir, arguments.config_name, arguments.overrides)
    log(f"Input config:\n{config.dump()}")
    log(VERSION)
    training = Training(config)
    reporter = Reporter(config)
    try:
        ended = training.run(reporter)
    finally:
        reporter.close()
    if ended:
        training.evaluate()
        log("Finished.")
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """Predict the frames of a label file; the exit code."""
    import inference
    import slp
    from dataset import user_animals

    labels = slp.read(arguments.data_path)
    pipeline = inference.Pipeline([inference.Model.load(path) for path in arguments.model_paths],
                                  labels.skeleton.nodes)
    accuracy, frames, start = inference.Accuracy(), [], time.monotonic()
    images = labels.images()
    for done, (frame, image) in enumerate(zip(labels.frames, images), start=1):
        animals = user_animals(frame)
        found = pipeline.predict(image, animals)
        accuracy.add(pipeline.targets(animals), found)
        frames.append(slp.Frame(frame.video, frame.index, found))
        if arguments.gui and (done % arguments.batch_size == 0 or done == len(images)):
            rate = done / max(time.monotonic() - start, 1e-6)
            print(json.dumps({"n_processed": done, "n_total": len(images), "rate": round(rate, 1),
                              "eta": round((len(images) - done) / rate, 1)}), flush=True)
    write_predictions(arguments.output_path, labels, frames)
    summary = accuracy.summary()
    print(f"{accuracy.predictions} animals predicted, {accuracy.animals} labelled, {accuracy.matched} of them found; "
          f"mean error {summary['dist_avg']:.2f} px", file=sys.stderr)
    if arguments.check is None:
        return 0
    good = summary["dist_avg"] <= arguments.check and summary["recall"] >= 0.8 and summary["precision"] >= 0.8
    print(f"check: mean error at most {arguments.check:g} px, recall and precision at least 0.8 "
          f"(here {summary['recall']:.2f} and {summary['precision']:.2f}): {'passed' if good else 'FAILED'}",
          file=sys.stderr)
    return 0 if good else 1


def write_predictions(path: str, labels, frames: list) -> None:
    """Write predictions as a label file (`.slp`) or as JSON (any other name)."""
    import numpy as np
    import slp

    if path.endswith(".slp"):
        slp.write(path, labels.skeleton, frames, labels.references())
        return
    nodes = labels.skeleton.nodes
    content = {"nodes": nodes, "frames": [{
        "video": frame.video, "frame_idx": frame.index,
        "instances": [{
            "score": round(item.score, 4),
            "points": {node: None if np.isnan(x) else [round(float(x), 2), round(float(y), 2)]
                       for node, (x, y) in zip(nodes, item.points)},
        } for item in frame.instances],
    } for frame in frames]}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


def train_parser() -> argparse.ArgumentParser:
    """The command line of `train`."""
    parser = argparse.ArgumentParser(prog="sleap_nn_lite.py train", description="Train one model.")
    parser.add_argument("--config-name", "-c", required=True, help="a YAML file in the folder, with or without .yaml")
    parser.add_argument("--config-dir", "-d", default=".")
    parser.add_argument("overrides", nargs="*", metavar="++key=value")
    parser.set_defaults(run=train)
    return parser


def predict_parser() -> argparse.ArgumentParser:
    """The command line of `predict`."""
    parser = argparse.ArgumentParser(prog="sleap_nn_lite.py predict",
                                     description="Predict the labelled frames of a package.")
    parser.add_argument("--data_path", "-i", required=True, help="a .pkg.slp file")
    parser.add_argument("--model_paths", "-m", action="append", required=True,
                        help="a run's folder; twice for a centroid and a centered instance model")
    parser.add_argument("--output_path", "-o", required=True, help="JSON, or a label file where it ends in .slp")
    parser.add_argument("--device", "-d", default="auto", help="taken and ignored: always the CPU")
    parser.add_argument("--batch_size", "-b", type=int, default=4, help="frames between two lines of progress")
    parser.add_argument("--gui", action="store_true", help="progress and errors as JSON lines on stdout")
    parser.add_argument("--check", type=float, metavar="MAX_PX",
                        help="exit with 1 unless the mean error against the labels is at most this, and at least 0.8 "
                             "of the animals are found and 0.8 of the predictions are animals")
    parser.set_defaults(run=predict)
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line: the subset of sleap-nn's that a training package or an inference job needs."""
    top = argparse.ArgumentParser(prog="sleap_nn_lite.py", description=__doc__)
    top.add_argument("--version", action="version", version=VERSION)
    top.add_argument("command", choices=["train", "predict"])
    top.add_argument("arguments", nargs=argparse.REMAINDER, help="see `train --help` and `predict --help`")
    given = top.parse_args(argv)
    parser = train_parser() if given.command == "train" else predict_parser()
    # Intermixed: overrides may stand before, between and after the options.
    return parser.parse_intermixed_args(given.arguments)


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    arguments = parse_arguments(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 1
    except Exception as error:
        if getattr(arguments, "gui", False):
            print(json.dumps({"error": True, "type": type(error).__name__, "message": str(error)}), flush=True)
            return 1
        raise


if __name__ == "__main__":
    sys.exit(main())
