"""The one exception that a command turns into a single line and exit code 2, and the checks that commands and library share."""

import dataclasses
import types
import typing


class UserError(ValueError):
    """Bad input: the message names the value, the limit and the way out."""


def check_instruction(instruction: str) -> None:
    """UserError for an instruction that says nothing."""
    if not instruction.strip():
        raise UserError("the instruction is empty; say what to change, e.g. 'make it snow'")


def parse_shard(text: str) -> tuple[int, int]:
    """(index, count) of a --shard "I/N". Raises UserError."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--shard {text} must be I/N with I from 0 to N - 1, e.g. 0/4")
    return int(index), int(count)


def check_types(config, prefix: str = "") -> None:
    """UserError that names a value of another type than its field says: Python, which recipes are written in, does not mind one."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if not matches_type(value, field.type):
            kind = getattr(field.type, "__name__", "") if isinstance(field.type, type) else ""
            raise UserError(
                f"{name} {value!r} must be {kind or str(field.type).replace('typing.', '')}"
            )
        if dataclasses.is_dataclass(value):
            check_types(value, f"{name}.")


def matches_type(value, kind) -> bool:
    """Whether a value is of an annotation's kind; a whole number passes for a float."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any:
        return True
    if origin is typing.Literal:
        return value in args
    if origin in (types.UnionType, typing.Union):
        return any(matches_type(value, each) for each in args)
    if origin is tuple:
        each = [args[0]] * len(value) if isinstance(value, tuple) and args[-1] is ... else args
        return (
            isinstance(value, tuple)
            and len(value) == len(each)
            and all(map(matches_type, value, each))
        )
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)
