#!/usr/bin/env python3
"""A trainer whose models get better with every epoch, and that saves them slowly and in place.

Half of `best.ckpt` is there when an epoch's end is told, the rest follows within `trainer_config.save_seconds`. Each model is a zip of
`trainer_config.model_bytes` random bytes after `trainer_config.kept_bytes` that are always the same; what was written as a whole
is also at `kept/epoch-N.ckpt`. It obeys a stop at an epoch's end. Then it is silent for `trainer_config.evaluate_seconds`, as if it
evaluated; exit 0.
"""

import io
import os
import time
import zipfile

from odd import Progress, make_run_folder, read_config

PARTS = 8
"""So many times a save is flushed."""
SAME = bytes(range(256))


def model(size: int, kept: int) -> bytes:
    """A new model."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("kept", SAME * (kept // len(SAME)))
        archive.writestr("weights", os.urandom(size))
    return buffer.getvalue()


def main() -> None:
    """Train, which is nothing but saving."""
    config = read_config()
    size = config.integer("trainer_config.model_bytes", 1_000_000, least=1)
    kept = config.integer("trainer_config.kept_bytes", 0, least=0)
    pause = config.number("trainer_config.save_seconds", 0.8, least=0) / PARTS
    folder = make_run_folder(config)
    os.makedirs(os.path.join(folder, "kept"))
    progress = Progress(config)
    progress.event("train_begin", wandb_url=None)
    for epoch in range(config.integer("trainer_config.max_epochs", 5, least=1)):
        progress.event("epoch_begin", epoch=epoch)
        progress.event("batch_end", {"loss": 1 / (1 + epoch)}, epoch=epoch, batch=0)
        time.sleep(config.number("trainer_config.epoch_seconds", 0.8, least=0))
        content = model(size, kept)
        with open(os.path.join(folder, "kept", f"epoch-{epoch}.ckpt"), "wb") as file:
            file.write(content)
        with open(os.path.join(folder, "best.ckpt"), "wb") as file:
            for part in range(PARTS):
                file.write(content[part * len(content) // PARTS:(part + 1) * len(content) // PARTS])
                file.flush()
                if part == PARTS // 2:
                    progress.event("epoch_end", {"loss": 1 / (1 + epoch), "val/loss": 1 / (1 + epoch)}, epoch=epoch)
                time.sleep(pause)
        if progress.stop_requested():
            break
    progress.event("train_end")
    progress.close()
    time.sleep(config.number("trainer_config.evaluate_seconds", 0, least=0))


if __name__ == "__main__":
    main()
