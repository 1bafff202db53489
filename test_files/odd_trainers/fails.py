#!/usr/bin/env python3
"""A trainer that fails in its first epoch, as one that runs out of memory does: a traceback and exit code 1."""

from odd import Progress, make_run_folder, read_config


def allocate() -> None:
    """Fail as torch does."""
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")


def main() -> None:
    """Begin, and fail."""
    config = read_config()
    make_run_folder(config)
    progress = Progress(config)
    try:
        print("Starting training loop...", flush=True)
        progress.event("train_begin", wandb_url=None)
        progress.event("epoch_begin", epoch=0)
        allocate()
    finally:
        progress.close()


if __name__ == "__main__":
    main()
