"""Makes the labels files in this folder: `python make.py` (needs h5py and numpy; the images are drawn here).

with_images.pkg.slp has the layout of SLEAP's "labels with images": one PNG in video0/video.
without_images.slp is a plain labels file: it only names a video.
"""

import json
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np

HERE = Path(__file__).parent


def png(width, height):
    """A grey gradient."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes((x * 7 + y * 3) % 256 for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tables(file, backend):
    file.create_group("metadata").attrs["format_id"] = 1.2
    file.create_dataset("videos_json", data=np.bytes_([json.dumps({"backend": backend})]))
    file.create_dataset("frames", shape=(1,), dtype=[("frame_id", "u8"), ("video", "u4"), ("frame_idx", "u8")])


with h5py.File(HERE / "with_images.pkg.slp", "w") as file:
    tables(file, {"filename": ".", "dataset": "video0/video"})
    images = file.create_dataset("video0/video", (1,), dtype=h5py.vlen_dtype("int8"))
    images[0] = np.frombuffer(png(16, 16), dtype="int8")
    images.attrs["format"] = "png"
    file["video0"].create_group("source_video").attrs["json"] = "{}"

with h5py.File(HERE / "without_images.slp", "w") as file:
    tables(file, {"filename": "/data/somewhere/fly.mp4", "dataset": ""})
    file.create_group("video0/source_video").attrs["json"] = "{}"
