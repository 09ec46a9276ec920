"""Reading a component's `config.json` into its dataclass."""

import dataclasses


def config_from_json(cls, config: dict):
    """The dataclass `cls` from a dict: keys it does not have are left out, lists become tuples, None keeps the default."""
    names = {field.name for field in dataclasses.fields(cls)}
    values = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in config.items()
        if k in names and v is not None
    }
    return cls(**values)


def check_fixed_values(config: dict, fixed: dict, what: str):
    """Raises ValueError, naming key and value, where `config` has a key of `fixed` at a value not listed there."""
    for key, allowed in fixed.items():
        if key in config and config[key] not in allowed:
            raise ValueError(
                f"{what} config: {key}={config[key]!r} is not supported (only {', '.join(map(repr, allowed))})"
            )
