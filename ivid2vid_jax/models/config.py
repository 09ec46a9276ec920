"""Reads a component's `config.json` into its dataclass."""

import dataclasses
from typing import TypeVar

Config = TypeVar("Config")


def config_from_json(cls: type[Config], config: dict) -> Config:
    """Builds the dataclass `cls` from a dict.

    Keys that `cls` does not have are ignored, lists become tuples, and None keeps the default.
    """
    assert dataclasses.is_dataclass(cls)
    names = {field.name for field in dataclasses.fields(cls)}
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in config.items()
        if key in names and value is not None
    }
    return cls(**values)


def check_fixed_values(config: dict, supported: dict[str, tuple], component: str) -> None:
    """Checks the keys whose values this package does not vary.

    Args:
        config: a component's `config.json`.
        supported: for each such key the values that are implemented. A missing key passes.
        component: name of the component, for the error message.

    Raises:
        ValueError: for a key at any other value.
    """
    for key, allowed in supported.items():
        if key in config and config[key] not in allowed:
            raise ValueError(
                f"{component} config: {key}={config[key]!r} is not supported "
                f"(only {', '.join(map(repr, allowed))})"
            )
