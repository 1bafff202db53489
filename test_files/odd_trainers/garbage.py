#!/usr/bin/env python3
"""A trainer whose output and messages are full of what a careless reader trips over. It ends well.

Between the bad messages it sends one epoch's good ones, so that a listener can show that it missed none.
"""

import json
import os
import sys

from odd import Progress, make_run_folder, read_config, write_model

HUGE = 32 * 1024 * 1024

LINES = [
    b"END_OF_FILE\n",
    b"FILE_META::evil.ckpt:10:/etc\n",
    b"PROGRESS_REPORT::{\"event\": \"train_end\"}\n",
    b"TRAIN_JOB_END::models\n",
    b"ZMQ_CTRL::{\"command\": \"stop\"}\n",
    b"{\"event\": \"train_end\"}\n",
    b"\x1b[2J\x1b[H\x1b[31mred\x1b]0;title\x07\x1b]8;;http://example.com\x07link\x1b]8;;\x07\x1b[0m\n",
    b"\xff\xfe\x00\x01\x80 not UTF-8 \xc3\x28\n",
    b"carriage\rreturns\rover\rand over\r\n",
    b"right-to-left \xe2\x80\xae override, nul \x00, bell \x07, backspaces \x08\x08\x08\n",
    b"\n" * 100,
    b"x" * 1_000_000 + b"\n",
]

MESSAGES = [
    [b""],
    [b"\x00\xff\xfe\x80"],
    [b"END_OF_FILE"],
    [b"not JSON"],
    [b"null"], [b"[]"], [b"42"], [b"\"text\""], [b"NaN"], [b"{}"],
    [b"{\"event\": 7}"],
    [b"{\"event\": \"no_such_event\", \"logs\": {}}"],
    [b"{\"event\": \"batch_end\"}"],
    [b"{\"event\": \"batch_end\", \"logs\": [1, 2], \"epoch\": \"zero\", \"batch\": {}}"],
    [b"{\"event\": \"batch_end\", \"logs\": {\"loss\": \"low\"}, \"epoch\": -1, \"batch\": -9}"],
    [b"{\"event\": \"batch_end\", \"logs\": {\"loss\": 1e999}, \"epoch\": 1e999, \"batch\": 99999999999999999999}"],
    [b"{\"event\": \"batch_end\", \"logs\": {\"lr\": {\"py/reduce\": [{\"py/function\": \"posix.system\"}, "
     b"{\"py/tuple\": [\"touch PWNED\"]}]}}, \"epoch\": 0, \"batch\": 0}"],
    [b"{\"py/reduce\": [{\"py/function\": \"posix.system\"}, {\"py/tuple\": [\"touch PWNED\"]}]}"],
    [b"{\"event\": \"batch_end\", \"logs\": {\"a\\u001b[2Jb\\n\": 1, \"END_OF_FILE\": 2}, \"epoch\": 0, \"batch\": 0}"],
    [b"{\"event\": \"batch_end\", \"logs\": {" + b", ".join(b"\"k%d\": %d" % (i, i) for i in range(20_000)) + b"}}"],
    [b"[" * 100_000 + b"]" * 100_000],
    [b"{\"event\": \"batch_end\", \"logs\": {\"x\": " + b"{\"x\": " * 5_000 + b"1" + b"}" * 5_000 + b"}}"],
    [b"{\"event\": \"train_begin\"", b", \"logs\": null}"],
    [b"{\"event\": \"batch_end\", \"logs\": {\"text\": \"" + b"a" * HUGE + b"\"}}"],
    [b"\x00" * HUGE],
]


def main() -> None:
    """Send one good batch after each bad message, and print the bad lines in between."""
    config = read_config()
    folder = make_run_folder(config)
    progress = Progress(config)
    progress.event("train_begin", wandb_url=None)
    progress.event("epoch_begin", epoch=0)
    for batch, frames in enumerate(MESSAGES):
        progress.raw(*frames)
        progress.event("batch_start", batch=batch)
        progress.event("batch_end", {"loss": 1 / (1 + batch), "seq": batch}, epoch=0, batch=batch)
        sys.stdout.buffer.write(LINES[batch % len(LINES)])
        sys.stdout.buffer.flush()
        sys.stderr.buffer.write(os.urandom(200))
        sys.stderr.buffer.flush()
    progress.event("epoch_end", {"loss": 0.5, "val/loss": float("nan"), "val/other": float("-inf")}, epoch=0)
    progress.event("epoch_begin", epoch=1)
    progress.event("epoch_end", {"loss": 0.25, "val/loss": 0.25}, epoch=1)
    write_model(folder)
    progress.event("train_end")
    progress.close()
    print(json.dumps({"bad_messages": len(MESSAGES), "good_batches": len(MESSAGES)}), flush=True)


if __name__ == "__main__":
    main()
