#!/usr/bin/env python3
"""A trainer that sends 5,000 messages a second for as many seconds as the configuration has epochs.

Counting `batch_start` and `batch_end` from 0 without a gap, `batch_end` carries its number as `seq`, always an odd one;
batch b of epoch e has the numbers 5000 e + 2 b and the one after it. So a listener can tell what it lost.
"""

import time

from odd import Progress, make_run_folder, read_config, write_model

RATE = 5000
"""Messages a second."""
SLICE = 50
"""Messages between two looks at the clock."""


def main() -> None:
    """Flood, and end well."""
    config = read_config()
    folder = make_run_folder(config)
    progress = Progress(config)
    progress.event("train_begin", wandb_url=None)
    start, sent = time.monotonic(), 0
    for epoch in range(config.integer("trainer_config.max_epochs", 5, least=1)):
        progress.event("epoch_begin", epoch=epoch)
        for batch in range(RATE // 2):
            progress.event("batch_start", batch=batch)
            progress.event("batch_end", {"loss": 1 / (1 + sent), "seq": sent + 1}, epoch=epoch, batch=batch)
            sent += 2
            if sent % SLICE == 0:
                time.sleep(max(0.0, start + sent / RATE - time.monotonic()))
        progress.event("epoch_end", {"loss": 1 / (1 + sent), "val/loss": 1 / (1 + sent)}, epoch=epoch)
    write_model(folder)
    progress.event("train_end")
    progress.close()
    print(f"sent {sent} batch messages in {time.monotonic() - start:.2f} s", flush=True)


if __name__ == "__main__":
    main()
