"""Runs a command in this process, as if from the shell."""

import sys
import time

import pytest

from ivid2vid_jax.utils import cli


def run_command(capsys, args_class, run, *words, recipe=None) -> tuple[int, str, str]:
    """Returns (exit code, stderr, stdout).

    tyro parses source code, which fails in CPython 3.11.7 while other threads do so too. After the
    test of a damaged checkpoint, threads of tensorstore call a closed event loop, and pytest parses
    the source of each of these errors. So the command is tried again until they are done. Commands
    in a process of their own have no such threads.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, words)])
        try:
            for attempts_left in reversed(range(10)):
                try:
                    cli.main(args_class, run, recipe)
                    break
                except SystemError as error:
                    if "AST constructor recursion depth" not in str(error) or not attempts_left:
                        raise
                    time.sleep(1)
            code = 0
        except SystemExit as stop:
            code = stop.code
    output = capsys.readouterr()
    return code, output.err, output.out
