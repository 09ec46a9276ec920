"""A command in this process, as if from the shell."""

import sys
import time

import pytest

from ivid2vid_jax.utils import cli


def run_command(capsys, args_class, run, *words, recipe=None) -> tuple[int, str, str]:
    """(exit code, what it said on stderr, on stdout).

    Parsing a command line parses source code, which CPython 3.11.7 does wrongly while other threads do so too. Here they do: after the test of a damaged
    checkpoint, tensorstore's threads still call a closed event loop, and pytest formats each of these errors, which parses their source. So it is tried
    again until they are done; no command of its own process has such threads.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, words)])
        try:
            for left in reversed(range(10)):
                try:
                    cli.main(args_class, run, recipe)
                    break
                except SystemError as error:
                    if "AST constructor recursion depth" not in str(error) or not left:
                        raise
                    time.sleep(1)
            code = 0
        except SystemExit as stop:
            code = stop.code
    said = capsys.readouterr()
    return code, said.err, said.out
