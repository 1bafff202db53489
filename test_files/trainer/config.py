"""A training configuration: the YAML file, the overrides of the command line, and typed access to both.

Overrides follow Hydra: `a.b=c` changes a key that exists, `+a.b=c` adds one, `++a.b=c` does either. A value with
characters of Hydra's grammar in it needs quotes of its own: `++trainer_config.run_name="x.n=181"`.
"""

from __future__ import annotations

import copy
import os
import re
from typing import Any

import yaml

HEADS = ("single_instance", "centroid", "centered_instance", "bottomup", "multi_class_bottomup",
         "multi_class_topdown")
SUPPORTED_HEADS = ("centroid", "centered_instance")


class ConfigError(Exception):
    """A configuration that cannot be trained; the message says which key and what to do."""


class Config:
    """A nested configuration, addressed with dotted keys."""

    def __init__(self, values: dict):
        self.values = values

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key; the default where it is absent or null."""
        node: Any = self.values
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return default if node is None else node

    def set(self, key: str, value: Any) -> None:
        """Set a dotted key, making the sections on the way."""
        *sections, last = key.split(".")
        node = self.values
        for part in sections:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[last] = value

    def number(self, key: str, default: float, least: float | None = None) -> float:
        """A number; text such as `1e-4`, which YAML takes for a string, counts as one.

        # Errors
        `ConfigError` when it is none, or under `least`.
        """
        value = self.get(key, default)
        try:
            if isinstance(value, bool):
                raise ValueError
            result = float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{key} must be a number, not {value!r}") from None
        if least is not None and result < least:
            raise ConfigError(f"{key} must be at least {least:g}, not {value!r}")
        return result

    def integer(self, key: str, default: int, least: int = 0) -> int:
        """A whole number, at least `least`."""
        value = self.number(key, default, least)
        if value != int(value):
            raise ConfigError(f"{key} must be a whole number, not {value!r}")
        return int(value)

    def port(self, key: str) -> int | None:
        """A TCP port, or None where it is null or absent."""
        if self.get(key) is None:
            return None
        value = self.integer(key, 0, least=1)
        if value > 65535:
            raise ConfigError(f"{key} must be a port from 1 to 65535, not {value}")
        return value

    def paths(self, key: str) -> list[str]:
        """A list of files; a single one may stand without the brackets."""
        value = self.get(key, [])
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            raise ConfigError(f"{key} must be a list of files, not {value!r}")
        return values

    def head(self) -> str:
        """Which of the heads is to be trained.

        # Errors
        `ConfigError` when none or several are set, or one that this trainer lacks.
        """
        chosen = [name for name in HEADS if self.get(f"model_config.head_configs.{name}") is not None]
        if len(chosen) != 1:
            raise ConfigError(f"exactly one of model_config.head_configs must be set; set here: {chosen or 'none'}")
        if chosen[0] not in SUPPORTED_HEADS:
            raise ConfigError(f"the head {chosen[0]!r} is not supported; supported are {', '.join(SUPPORTED_HEADS)}")
        return chosen[0]

    def copy(self) -> "Config":
        """An independent copy."""
        return Config(copy.deepcopy(self.values))

    def dump(self) -> str:
        """The configuration as YAML."""
        return yaml.safe_dump(self.values, sort_keys=False)


def load(folder: str, name: str, overrides: list[str]) -> Config:
    """The configuration `name` (with or without `.yaml`) of a folder, with the overrides applied.

    # Errors
    `ConfigError` when the file is missing or does not parse, or an override does not fit.
    """
    path = os.path.join(folder, name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a configuration: its top level must be a mapping")
    config = Config(values)
    for override in overrides:
        _apply(config, override)
    if "${" in config.dump():
        raise ConfigError(f"{path} has an interpolation (${{...}}), which is not supported")
    return config


def _apply(config: Config, override: str) -> None:
    match = re.fullmatch(r"(\+{0,2})([A-Za-z_]\w*(?:\.\w+)*)=(.*)", override, re.DOTALL)
    if not match:
        raise ConfigError(f"cannot read the override {override!r}; expected key.key=value")
    plus, key, text = match.groups()
    *sections, last = key.split(".")
    parent = config.get(".".join(sections), {}) if sections else config.values
    exists = isinstance(parent, dict) and last in parent
    if not plus and not exists:
        raise ConfigError(f"the configuration has no key {key!r}; to add it, write +{override}")
    if plus == "+" and exists:
        raise ConfigError(f"the configuration has a key {key!r} already; to override it, write +{override}")
    config.set(key, _value(text, override))


def _value(text: str, override: str) -> Any:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text[:1] in ("[", "{"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"cannot read the value of the override {override!r}: {error}") from error
    if re.search(r"[='\"{}\[\],]", text):
        raise ConfigError(f"the value of {override!r} needs quotes inside the argument, as in key='\"value\"'")
    words = {"null": None, "": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
