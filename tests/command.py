"""A command in this process, as if from the shell."""

import sys

import pytest

from ivid2vid_jax import commands


def run_command(capsys, args_class, run, *words, recipe=None) -> tuple[int, str, str]:
    """(exit code, what it said on stderr, on stdout)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, words)])
        try:
            commands.main(args_class, run, recipe)
            code = 0
        except SystemExit as stop:
            code = stop.code
    said = capsys.readouterr()
    return code, said.err, said.out
