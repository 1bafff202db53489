#!/usr/bin/env python3
"""A trainer that hangs before it says a word, until somebody ends it."""

import signal


def main() -> None:
    """Wait for a signal; each has its ordinary effect."""
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
