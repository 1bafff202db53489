"""SLEAP's label file (`.slp`, `.pkg.slp`): an HDF5 file with tables of frames, instances and points.

What lives here: reading such a file with its embedded images, and writing one. No training, no drawing.

- `metadata` (attribute `json`) names the nodes and the skeleton's links.
- `frames` -> `instances` -> `points` / `pred_points` are tables that refer to each other by row ranges.
- `videos_json` has a line a video; an embedded one names a dataset, and "." means "in this file".
- `videoN/video` holds one PNG a frame, `videoN/frame_numbers` their numbers in the original video.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, field

import h5py
import numpy as np
from PIL import Image

FRAME = np.dtype([
    ("frame_id", "<u8"), ("video", "<u4"), ("frame_idx", "<u8"),
    ("instance_id_start", "<u8"), ("instance_id_end", "<u8"),
])
INSTANCE = np.dtype([
    ("instance_id", "<i8"), ("instance_type", "u1"), ("frame_id", "<u8"), ("skeleton", "<u4"),
    ("track", "<i4"), ("from_predicted", "<i8"), ("score", "<f4"), ("point_id_start", "<u8"),
    ("point_id_end", "<u8"), ("tracking_score", "<f4"),
])
POINT = np.dtype([("x", "<f8"), ("y", "<f8"), ("visible", "?"), ("complete", "?")])
PREDICTED_POINT = np.dtype(POINT.descr + [("score", "<f8")])
USER, PREDICTED = 0, 1


class SlpError(Exception):
    """A label file that cannot be used; the message says why and what to do."""


@dataclass
class Skeleton:
    """The animal's nodes by name, and links between them by index."""

    nodes: list[str]
    edges: list[tuple[int, int]] = field(default_factory=list)
    symmetries: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Instance:
    """One animal in one frame: `points` is (nodes, 2), x and y in pixels, NaN where a node is not visible."""

    points: np.ndarray
    predicted: bool = False
    score: float = float("nan")


@dataclass
class Frame:
    """One labelled image: `index` is its number in the original video."""

    video: int
    index: int
    instances: list[Instance] = field(default_factory=list)


@dataclass
class Labels:
    """A label file's content, without the images; `images` reads those."""

    path: str
    skeleton: Skeleton
    frames: list[Frame]
    videos: list[dict]

    def references(self) -> list[dict]:
        """The videos as another label file has to name them: embedded images by this file's absolute path."""
        videos = []
        for video in self.videos:
            backend = dict(video.get("backend", {}))
            if backend.get("filename") == ".":
                backend["filename"] = os.path.abspath(self.path)
            videos.append(dict(video, backend=backend))
        return videos

    def images(self) -> list[np.ndarray]:
        """The image of every frame, in the order of `frames`: float32 grey values from 0 to 1, (height, width).

        # Errors
        `SlpError` when a frame's video is not embedded, or an image cannot be decoded.
        """
        readers: dict[int, _EmbeddedVideo] = {}
        try:
            for frame in self.frames:
                if frame.video not in readers:
                    readers[frame.video] = _EmbeddedVideo(self, frame.video)
            return [readers[frame.video].read(frame.index) for frame in self.frames]
        finally:
            for reader in readers.values():
                reader.close()


class _EmbeddedVideo:
    """The embedded images of one video."""

    def __init__(self, labels: Labels, number: int):
        backend = labels.videos[number].get("backend", {})
        dataset, name = backend.get("dataset"), backend.get("filename", "")
        if not dataset:
            raise SlpError(
                f"{labels.path} has no images: it refers to the video {name!r}. "
                "Export a training job package, which embeds the labelled frames (.pkg.slp)."
            )
        path = labels.path if name == "." else os.path.join(os.path.dirname(labels.path), name)
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise SlpError(f"cannot open {path}, which should hold the images of {labels.path}: {error}") from error
        if dataset not in self._file:
            raise SlpError(f"{path} has no dataset {dataset!r} with the images of video {number}")
        self._data = self._file[dataset]
        numbers = self._data.parent.get("frame_numbers")
        order = np.arange(len(self._data)) if numbers is None else numbers[()]
        self._position = {int(number): position for position, number in enumerate(order)}

    def read(self, index: int) -> np.ndarray:
        """One image by its number in the original video, as float32 grey values from 0 to 1."""
        if index not in self._position:
            raise SlpError(f"frame {index} is labelled but its image is not embedded in {self._file.filename}")
        raw = self._data[self._position[index]]
        if raw.ndim >= 2:
            pixels = np.asarray(raw)
        else:
            try:
                pixels = np.asarray(Image.open(io.BytesIO(raw.astype(np.uint8).tobytes())))
            except OSError as error:
                raise SlpError(f"the image of frame {index} in {self._file.filename} is damaged: {error}") from error
        grey = pixels.astype(np.float32) / 255.0
        return grey if grey.ndim == 2 else grey[..., :3].mean(axis=-1)

    def close(self) -> None:
        self._file.close()


def read(path: str) -> Labels:
    """The labels in a file, without its images.

    # Errors
    `SlpError` when the file is missing or is not a SLEAP label file.
    """
    if not os.path.exists(path):
        raise SlpError(f"there is no label file {path}")
    try:
        with h5py.File(path, "r") as file:
            metadata = json.loads(file["metadata"].attrs["json"])
            # Files before 1.1 put a pixel's centre at a half.
            shift = 0.5 if float(file["metadata"].attrs.get("format_id", 1.0)) < 1.1 else 0.0
            videos = [json.loads(line) for line in file["videos_json"][()]]
            frames = _read_frames(file, shift)
    except (KeyError, OSError, ValueError) as error:
        raise SlpError(f"{path} is not a SLEAP label file: {error}") from error
    return Labels(path, _read_skeleton(metadata), frames, videos)


def _read_skeleton(metadata: dict) -> Skeleton:
    if not metadata.get("skeletons"):
        raise SlpError("the label file has no skeleton")
    skeleton = metadata["skeletons"][0]
    ids = [node["id"] for node in skeleton["nodes"]]
    result = Skeleton([metadata["nodes"][number]["name"] for number in ids])
    # A link's type is a pickled enumeration: spelled out the first time, by reference ("py/id") after that.
    types: list[int] = []
    for link in skeleton.get("links", []):
        kind = link["type"]
        if "py/reduce" in kind:
            value = kind["py/reduce"][1]["py/tuple"][0]
            types.append(value)
        else:
            value = types[kind["py/id"] - 1]
        pair = (ids.index(link["source"]), ids.index(link["target"]))
        (result.edges if value == 1 else result.symmetries).append(pair)
    return result


def _read_frames(file: h5py.File, shift: float) -> list[Frame]:
    instances, points, predicted = file["instances"][()], file["points"][()], file["pred_points"][()]
    frames = []
    for row in file["frames"][()]:
        frame = Frame(int(row["video"]), int(row["frame_idx"]))
        for item in instances[int(row["instance_id_start"]):int(row["instance_id_end"])]:
            is_predicted = int(item["instance_type"]) == PREDICTED
            table = predicted if is_predicted else points
            part = table[int(item["point_id_start"]):int(item["point_id_end"])]
            xy = np.stack([part["x"], part["y"]], axis=-1) - shift
            xy[~part["visible"]] = np.nan
            frame.instances.append(Instance(xy, is_predicted, float(item["score"])))
        frames.append(frame)
    return frames


def write(path: str, skeleton: Skeleton, frames: list[Frame], videos: list[dict], pngs: list[bytes] | None = None,
          shape: tuple[int, int] = (0, 0)) -> None:
    """Write a label file; with `pngs` (one a frame, all of video 0) it carries its images."""
    tables = _tables(frames)
    with h5py.File(path, "w") as file:
        metadata = file.create_group("metadata")
        metadata.attrs["format_id"] = 1.2
        metadata.attrs["json"] = np.bytes_(json.dumps(_metadata(skeleton), separators=(",", ":")))
        if pngs is not None:
            _write_images(file, frames, pngs, shape, videos[0])
            videos = [{"backend": {"filename": ".", "dataset": "video0/video", "input_format": "channels_last",
                                   "convert_range": False}}]
        lines = [json.dumps(video, separators=(",", ":")).encode() for video in videos]
        file.create_dataset("videos_json", data=np.array(lines))
        file.create_dataset("tracks_json", shape=(0,), dtype="<f8")
        file.create_dataset("suggestions_json", shape=(0,), dtype="<f8")
        for name, table in tables.items():
            file.create_dataset(name, data=table)


def _metadata(skeleton: Skeleton) -> dict:
    links = [(pair, 1) for pair in skeleton.edges] + [(pair, 2) for pair in skeleton.symmetries]
    seen: list[int] = []

    def kind(value: int) -> dict:
        if value in seen:
            return {"py/id": seen.index(value) + 1}
        seen.append(value)
        return {"py/reduce": [{"py/type": "sleap.skeleton.EdgeType"}, {"py/tuple": [value]}]}

    return {
        "version": "2.0.0",
        "skeletons": [{
            "directed": True,
            "graph": {"name": "Skeleton-0", "num_edges_inserted": len(skeleton.edges)},
            "links": [
                {"edge_insert_idx": number, "key": 0, "source": a, "target": b, "type": kind(value)}
                for number, ((a, b), value) in enumerate(links)
            ],
            "multigraph": True,
            "nodes": [{"id": number} for number in range(len(skeleton.nodes))],
        }],
        "nodes": [{"name": name, "weight": 1.0} for name in skeleton.nodes],
        "videos": [], "tracks": [], "suggestions": [], "negative_anchors": {}, "provenance": {},
    }


def _tables(frames: list[Frame]) -> dict[str, np.ndarray]:
    rows: dict[str, list[tuple]] = {"frames": [], "instances": [], "points": [], "pred_points": []}
    nan = float("nan")
    for number, frame in enumerate(frames):
        start = len(rows["instances"])
        for item in frame.instances:
            table = rows["pred_points" if item.predicted else "points"]
            first = len(table)
            for x, y in item.points:
                point = (x, y, not np.isnan(x), True)
                table.append(point + (item.score,) if item.predicted else point)
            rows["instances"].append((
                len(rows["instances"]), PREDICTED if item.predicted else USER, number, 0, -1, -1, item.score,
                first, len(table), nan,
            ))
        rows["frames"].append((number, frame.video, frame.index, start, len(rows["instances"])))
    types = {"frames": FRAME, "instances": INSTANCE, "points": POINT, "pred_points": PREDICTED_POINT}
    return {name: np.array(rows[name], dtype=types[name]) for name in types}


def _write_images(file: h5py.File, frames: list[Frame], pngs: list[bytes], shape: tuple[int, int],
                  source: dict) -> None:
    group = file.create_group("video0")
    data = group.create_dataset("video", shape=(len(pngs),), dtype=h5py.vlen_dtype(np.int8))
    for number, png in enumerate(pngs):
        data[number] = np.frombuffer(png, dtype=np.int8)
    data.attrs.update({"format": "png", "height": shape[0], "width": shape[1], "channels": 1})
    group.create_dataset("frame_numbers", data=np.array([frame.index for frame in frames], dtype="<i8"))
    group.create_group("source_video").attrs["json"] = json.dumps(source, separators=(",", ":"))
