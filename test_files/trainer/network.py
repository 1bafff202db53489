"""A small convolutional network in numpy: forward, backward and Adam.

An image is (batch, height, width, channels), float32. The network halves the image until it has the output stride,
looks around with dilated convolutions, and ends in one confidence map a channel.
"""

from __future__ import annotations

import io
import json
import os
import zipfile

import numpy as np

CHECKPOINT_VERSION = 1


class CheckpointError(Exception):
    """A model file that cannot be used."""


class Convolution:
    """A convolution with bias and, unless it is the last layer, a leaky rectifier."""

    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int, size: int = 3, stride: int = 1,
                 dilation: int = 1, last: bool = False):
        deviation = np.sqrt(2.0 / (size * size * inputs)) * (0.1 if last else 1.0)
        self.weight = rng.normal(0, deviation, (size * size * inputs, outputs)).astype(np.float32)
        self.bias = np.zeros(outputs, np.float32)
        self.size, self.stride, self.dilation, self.last = size, stride, dilation, last
        self.gradients = [np.zeros_like(self.weight), np.zeros_like(self.bias)]
        self._kept: tuple | None = None

    def _windows(self, padded: np.ndarray, height: int, width: int) -> list[tuple[slice, slice]]:
        """Where each of the kernel's positions lies in the padded image."""
        windows = []
        for i in range(self.size):
            for j in range(self.size):
                y, x = i * self.dilation, j * self.dilation
                windows.append((slice(y, y + (height - 1) * self.stride + 1, self.stride),
                                slice(x, x + (width - 1) * self.stride + 1, self.stride)))
        return windows

    def forward(self, image: np.ndarray, training: bool) -> np.ndarray:
        """The layer's output; in training it keeps what `backward` needs."""
        pad = self.dilation * (self.size // 2)
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        height, width = -(-image.shape[1] // self.stride), -(-image.shape[2] // self.stride)
        windows = self._windows(padded, height, width)
        columns = np.concatenate([padded[:, y, x] for y, x in windows], axis=-1)
        flat = columns.reshape(-1, columns.shape[-1])
        output = flat @ self.weight + self.bias
        if not self.last:
            np.maximum(output, 0.1 * output, out=output)
        if training:
            self._kept = (flat, output, padded.shape, windows, pad)
        return output.reshape(len(image), height, width, -1)

    def backward(self, gradient: np.ndarray, needed: bool) -> np.ndarray | None:
        """The gradient of the layer's input (None unless `needed`), with those of its parameters kept aside."""
        flat, output, shape, windows, pad = self._kept
        self._kept = None
        batch, height, width, _ = gradient.shape
        gradient = gradient.reshape(output.shape)
        if not self.last:
            gradient = np.where(output > 0, gradient, 0.1 * gradient)
        self.gradients = [flat.T @ gradient, gradient.sum(axis=0)]
        if not needed:
            return None
        columns = (gradient @ self.weight.T).reshape(batch, height, width, -1)
        result = np.zeros(shape, np.float32)
        channels = shape[-1]
        for number, (y, x) in enumerate(windows):
            result[:, y, x] += columns[..., number * channels:(number + 1) * channels]
        return result[:, pad:shape[1] - pad, pad:shape[2] - pad]


class Network:
    """Image to confidence maps; `inputs` and `outputs` are channels, `stride` the output's cell in pixels."""

    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int, stride: int, filters: int):
        if stride not in (1, 2, 4, 8, 16):
            raise ValueError(f"the output stride must be 1, 2, 4, 8 or 16, not {stride}")
        self.layers: list[Convolution] = []
        channels = inputs
        for halving in range(int(np.log2(stride))):
            wider = filters * (1 if halving == 0 else 2)
            self.layers.append(Convolution(rng, channels, wider, stride=2))
            channels = wider
        # Each layer looks twice as far as the one before, until they see an animal of some 60 pixels as a whole.
        for dilation in [2**step for step in range(5) if 2**step * stride <= 16] + [1]:
            self.layers.append(Convolution(rng, channels, 2 * filters, dilation=dilation))
            channels = 2 * filters
        self.layers.append(Convolution(rng, channels, outputs, size=1, last=True))

    def forward(self, image: np.ndarray, training: bool = False) -> np.ndarray:
        """The confidence maps of a batch."""
        for layer in self.layers:
            image = layer.forward(image, training)
        return image

    def backward(self, gradient: np.ndarray) -> None:
        """Work out the gradients of all parameters, after a `forward` in training."""
        for layer in reversed(self.layers):
            gradient = layer.backward(gradient, needed=layer is not self.layers[0])

    def parameters(self) -> dict[str, np.ndarray]:
        """All parameters by name; changing an array in place changes the network."""
        named = {}
        for number, layer in enumerate(self.layers):
            named[f"layer{number}.weight"], named[f"layer{number}.bias"] = layer.weight, layer.bias
        return named

    def gradients(self) -> list[np.ndarray]:
        """The gradients in the order of `parameters`."""
        return [gradient for layer in self.layers for gradient in layer.gradients]

    def size(self) -> int:
        """The number of parameters."""
        return sum(array.size for array in self.parameters().values())


class Adam:
    """The Adam optimiser (Kingma and Ba, 2014) over a network's parameters."""

    def __init__(self, network: Network, rate: float):
        self.rate, self.steps = rate, 0
        self._parameters = network.parameters()
        self.first = {name: np.zeros_like(array) for name, array in self._parameters.items()}
        self.second = {name: np.zeros_like(array) for name, array in self._parameters.items()}

    def step(self, gradients: list[np.ndarray]) -> None:
        """One update of all parameters."""
        self.steps += 1
        rate = self.rate * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for (name, array), gradient in zip(self._parameters.items(), gradients):
            first, second = self.first[name], self.second[name]
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient * gradient - second)
            array -= (rate * first / (np.sqrt(second) + 1e-8)).astype(np.float32)


def save(path: str, network: Network, optimiser: Adam, facts: dict) -> None:
    """Write parameters, the optimiser's state and `facts` (JSON) to a model file, whole or not at all."""
    arrays = {f"parameter/{name}": array for name, array in network.parameters().items()}
    arrays.update({f"adam.first/{name}": array for name, array in optimiser.first.items()})
    arrays.update({f"adam.second/{name}": array for name, array in optimiser.second.items()})
    facts = dict(facts, version=CHECKPOINT_VERSION, optimiser_steps=optimiser.steps)
    buffer = io.BytesIO()
    np.savez(buffer, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    with open(f"{path}.part", "wb") as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.part", path)


def load(path: str) -> tuple[dict[str, np.ndarray], dict]:
    """The parameters by name and the facts of a model file.

    # Errors
    `CheckpointError` when it is missing, damaged or of another program.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            facts = json.loads(archive["facts"].tobytes())
            parameters = {name.split("/", 1)[1]: archive[name] for name in archive.files
                          if name.startswith("parameter/")}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a model of this trainer: {error}") from error
    if facts.get("version") != CHECKPOINT_VERSION:
        raise CheckpointError(f"{path} has version {facts.get('version')}; this trainer reads {CHECKPOINT_VERSION}")
    return parameters, facts
