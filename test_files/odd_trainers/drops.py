#!/usr/bin/env python3
"""A trainer that sends 50,000 batches as fast as it can through a queue of 100 messages, so that ZeroMQ drops many.

The last batch is sent apart, when the queue has run empty: a listener can tell how many it lost.
"""

import time

import odd
import zmq

BATCHES = 50_000
QUEUE = 100
"""Messages that wait at most."""
PAUSE = 1.0
"""Seconds in which the queue runs empty."""


class Hasty(zmq.Context):
    """Sockets whose queues are short from the beginning: a limit counts for later connections only."""

    def socket(self, kind: int, **more: object) -> zmq.Socket:
        """A socket that keeps its limit."""
        socket = super().socket(kind, **more)
        socket.set_hwm(QUEUE)
        socket.set_hwm = lambda limit: None
        return socket


def main() -> None:
    """Send it all at once, and end well."""
    config = odd.read_config()
    folder = odd.make_run_folder(config)
    odd.zmq.Context = Hasty
    progress = odd.Progress(config)
    progress.event("train_begin", wandb_url=None)
    progress.event("epoch_begin", epoch=0)
    for batch in range(BATCHES):
        if batch in (1, BATCHES - 1):
            time.sleep(PAUSE)
        progress.event("batch_end", {"loss": 1 / (1 + batch)}, epoch=0, batch=batch)
    progress.event("epoch_end", {"loss": 0.5, "val/loss": 0.5}, epoch=0)
    odd.write_model(folder)
    progress.event("train_end")
    progress.close()


if __name__ == "__main__":
    main()
