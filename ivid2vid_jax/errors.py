"""The one exception that a command turns into a single line and exit code 2."""


class UserError(ValueError):
    """Bad input: the message names the value, the limit and the way out."""
