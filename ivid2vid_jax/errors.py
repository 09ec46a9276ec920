"""UserError, which commands print as one line, and the checks that commands and library share."""

import dataclasses
import types
import typing


class UserError(ValueError):
    """Invalid input. The message names the value, the limit and the way out."""


def check_instruction(instruction: str) -> None:
    """Raises UserError if an instruction is blank."""
    if not instruction.strip():
        raise UserError("the instruction is empty; say what to change, e.g. 'make it snow'")


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (index, count) of a `--shard I/N`; raises UserError for any other text."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--shard {text} must be I/N with I from 0 to N - 1, e.g. 0/4")
    return int(index), int(count)


def check_types(config: typing.Any, prefix: str = "") -> None:
    """Raises UserError if a value in a tree of config dataclasses is not of its field's type."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if not matches_type(value, field.type):
            plain_name = field.type.__name__ if isinstance(field.type, type) else ""
            expected = plain_name or str(field.type).replace("typing.", "")
            raise UserError(f"{name} {value!r} must be {expected}")
        if dataclasses.is_dataclass(value):
            check_types(value, f"{name}.")


def matches_type(value: typing.Any, annotation: typing.Any) -> bool:
    """Whether a value is of an annotated type. An int is accepted as a float."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is typing.Any:
        return True
    if origin is typing.Literal:
        return value in args
    if origin in (types.UnionType, typing.Union):
        return any(matches_type(value, member) for member in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = args[:1] * len(value) if args[-1] is ... else args
        return len(value) == len(items) and all(map(matches_type, value, items))
    if annotation in (int, float):
        return isinstance(value, (int, annotation)) and not isinstance(value, bool)
    return isinstance(value, annotation)
