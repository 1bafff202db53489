"""The two ZMQ sockets of a training: progress out, the stop command in.

Both connect (the viewer binds). Progress is one frame a message, JSON but for bare NaN and Infinity. The control
socket is read at the end of each batch, at most for the configured polling timeout (milliseconds).
"""

from __future__ import annotations

import json
import time

import zmq

from config import Config

SUBSCRIPTION_TIME = 1.0
"""How long a subscription may need to arrive, in seconds: what a PUB socket sends before that is lost."""
LINGER_MS = 3000


class Reporter:
    """Sends the events of a training and hears the stop command; silent where no port is configured."""

    def __init__(self, config: Config):
        self._context = zmq.Context()
        self._progress = self._control = None
        publish_port = config.port("trainer_config.zmq.publish_port")
        controller_port = config.port("trainer_config.zmq.controller_port")
        self._timeout_ms = config.integer("trainer_config.zmq.controller_polling_timeout", 10)
        if controller_port is not None:
            self._control = self._context.socket(zmq.SUB)
            self._control.subscribe("")
            self._control.connect(f"tcp://127.0.0.1:{controller_port}")
        if publish_port is not None:
            self._progress = self._context.socket(zmq.PUB)
            self._progress.connect(f"tcp://127.0.0.1:{publish_port}")
            time.sleep(SUBSCRIPTION_TIME)

    def send(self, event: str, logs: dict | None = None, **more: object) -> None:
        """Publish one event."""
        if self._progress is not None:
            self._progress.send_string(json.dumps({"what": "", "event": event, "logs": logs, **more}))

    def stop_requested(self) -> bool:
        """Whether a message is there and says stop; any other command is ignored.

        # Errors
        `ValueError` when the message is not JSON, `AttributeError` when it is no object: as sleap-nn, the training
        then fails.
        """
        if self._control is None or not self._control.poll(self._timeout_ms):
            return False
        return json.loads(self._control.recv_string()).get("command") == "stop"

    def close(self) -> None:
        """Close both sockets once everything is sent, or nobody took it for a while."""
        for socket in (self._progress, self._control):
            if socket is not None:
                socket.close(linger=LINGER_MS)
        self._progress = self._control = None
        self._context.term()
