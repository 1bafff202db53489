#!/usr/bin/env python3
"""A trainer that trains nothing, at a steady rate, for as long as a test needs it.

`trainer_config.max_epochs` epochs of `trainer_config.batches` batches, `trainer_config.rate` batches a second; every
epoch writes the model anew (`trainer_config.model_bytes`). Each batch says when it was sent (`sent_at`, Unix seconds), so that a listener can tell how
long it took. It is silent for `trainer_config.late` seconds before it connects its sockets. It obeys a
stop as sleap-nn does: at the end of a batch, then the epoch's end, the model, `train_end`, exit 0.
"""

import time

from odd import Progress, make_run_folder, read_config, write_model


def main() -> None:
    """Train at the rate that the configuration says."""
    config = read_config()
    batches = config.integer("trainer_config.batches", 20, least=1)
    pause = 1 / config.number("trainer_config.rate", 20, least=0.1)
    folder = make_run_folder(config)
    time.sleep(config.number("trainer_config.late", 0, least=0))
    progress = Progress(config)
    progress.event("train_begin", wandb_url=None)
    stopped = False
    for epoch in range(config.integer("trainer_config.max_epochs", 5, least=1)):
        progress.event("epoch_begin", epoch=epoch)
        for batch in range(batches):
            progress.event("batch_start", batch=batch)
            time.sleep(pause)
            progress.event("batch_end", {"loss": 1 / (1 + epoch), "sent_at": time.time()}, epoch=epoch, batch=batch)
            stopped = progress.stop_requested()
            if stopped:
                break
        write_model(folder, config.integer("trainer_config.model_bytes", 100_000))
        progress.event("epoch_end", {"loss": 1 / (1 + epoch), "val/loss": 1 / (1 + epoch)}, epoch=epoch)
        if stopped:
            break
    progress.event("train_end")
    progress.close()
    print("stopped" if stopped else "done", flush=True)


if __name__ == "__main__":
    main()
