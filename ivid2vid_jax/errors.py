"""The one exception that a command turns into a single line and exit code 2, and the check that commands and library share."""


class UserError(ValueError):
    """Bad input: the message names the value, the limit and the way out."""


def check_instruction(instruction: str) -> None:
    """UserError for an instruction that says nothing."""
    if not instruction.strip():
        raise UserError("the instruction is empty; say what to change, e.g. 'make it snow'")
