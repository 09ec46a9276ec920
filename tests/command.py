"""A command in this process, as if from the shell."""

import sys

import pytest

from ivid2vid_jax import commands


def run_command(capsys, args_class, run, *words, recipe=None) -> tuple[int, str, str]:
    """(exit code, what it said on stderr, on stdout).

    Parsing a command line parses source code, which CPython 3.11.7 does wrongly, once in some thousand times, while threads that earlier tests have
    left are at work; no command of its own process has any yet.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, words)])
        try:
            try:
                commands.main(args_class, run, recipe)
            except SystemError as error:
                if "AST constructor recursion depth" not in str(error):
                    raise
                commands.main(args_class, run, recipe)
            code = 0
        except SystemExit as stop:
            code = stop.code
    said = capsys.readouterr()
    return code, said.err, said.out
