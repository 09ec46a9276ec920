"""Runs a command in this process, as if from the shell, or starts it in its own."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ivid2vid_jax.utils import cli

ROOT = Path(__file__).parents[2]


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


def start_command(name: str, *argv, group: bool = False) -> subprocess.Popen:
    """Starts `python -m ivid2vid_jax.<name>` in a process, or in a process group, of its own."""
    words = [sys.executable, "-m", f"ivid2vid_jax.{name}", *map(str, argv)]
    return subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=group,
    )


def wait_for(process: subprocess.Popen, condition, seconds: float = 300) -> None:
    """Polls until `condition()` is true; fails if the process ends first."""
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        if process.poll() is not None:
            break
        time.sleep(0.005)
    process.kill()
    pytest.fail(f"the condition did not become true:\n{process.communicate()[0]}")
