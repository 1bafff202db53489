"""What the odd trainers share: sleap-nn's command line, the ports, the run's folder and well-formed messages."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import zmq

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "trainer"))
import config as configuration  # noqa: E402

SUBSCRIPTION_TIME = 1.0


def read_config() -> configuration.Config:
    """The configuration of a `train` command line as a worker writes it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["train"])
    parser.add_argument("--config-name", required=True)
    parser.add_argument("--config-dir", default=".")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    return configuration.load(arguments.config_dir, arguments.config_name, arguments.overrides)


def make_run_folder(config: configuration.Config) -> str:
    """The run's folder, with the configuration in it."""
    folder = os.path.join(str(config.get("trainer_config.ckpt_dir", ".")),
                          str(config.get("trainer_config.run_name", "odd")))
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "training_config.yaml"), "w", encoding="utf-8") as file:
        file.write(config.dump())
    return folder


def write_model(folder: str, size: int = 100_000) -> None:
    """A best.ckpt that nothing can predict with: of these trainers only the conduct is of interest."""
    with open(os.path.join(folder, "best.ckpt"), "wb") as file:
        file.write(os.urandom(size))


class Progress:
    """Both sockets. The progress has no limit on what waits in it, so that what gets lost is lost by the listener; the
    control is subscribed as in sleap-nn, and read by those that ask."""

    def __init__(self, config: configuration.Config):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set_hwm(0)
        self._control = self._context.socket(zmq.SUB)
        self._control.subscribe("")
        port = config.port("trainer_config.zmq.controller_port")
        if port is not None:
            self._control.connect(f"tcp://127.0.0.1:{port}")
        port = config.port("trainer_config.zmq.publish_port")
        if port is not None:
            self._socket.connect(f"tcp://127.0.0.1:{port}")
            time.sleep(SUBSCRIPTION_TIME)

    def event(self, name: str, logs: dict | None = None, **more: object) -> None:
        """A message as sleap-nn sends it."""
        self.raw(json.dumps({"what": "", "event": name, "logs": logs, **more}).encode())

    def raw(self, *frames: bytes) -> None:
        """Any message."""
        self._socket.send_multipart(frames)

    def stop_requested(self) -> bool:
        """Whether a message is there and says stop."""
        return bool(self._control.poll(0)) and json.loads(self._control.recv_string()).get("command") == "stop"

    def close(self) -> None:
        """Send what is left, for up to half a minute."""
        self._control.close(linger=0)
        self._socket.close(linger=30_000)
        self._context.term()
