"""Ctrl-C of commands: never lost, at once the second time, without tracebacks."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.support.command import ROOT, start_command

HEAD = """
import hashlib, os, signal, sys, time
from pathlib import Path
from ivid2vid_jax.utils.atomic import atomic_path
from ivid2vid_jax.utils.cli import errors_as_lines
from ivid2vid_jax.utils.progress import Progress
from ivid2vid_jax.utils.signals import deferred_signals, reliable_interrupts

def press():
    os.kill(os.getpid(), signal.SIGINT)

class Dying:
    def __del__(self):  # Python drops what is raised here
        press()
        time.sleep(0.2)

with reliable_interrupts(), errors_as_lines():
    print("ready", flush=True)
"""
INTERRUPTED = "interrupted; finished files are complete"
DROPPED = "    Dying()\n    time.sleep(60)"
CAUGHT = """
    try:
        press()
    except BaseException:
        pass
    with Progress("items") as progress:
        for i in progress.wrap(range(2)):
            time.sleep(0.1)
    time.sleep(60)
"""
FOLLOWED = """
    try:
        press()
    except KeyboardInterrupt:
        raise RuntimeError("the workers are gone")
"""
DEFERRED = """
    time.sleep(1)  # the parent reads "ready" alone
    with deferred_signals():
        press()
        print("complete", flush=True)
    print("not reached", flush=True)
"""
NATIVE = """
    with atomic_path(Path(sys.argv[1])) as path:
        path.write_text("half of it")
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # about half an hour
"""


def start(script, *arguments):
    """Runs the script up to "ready"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + script, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("script", "printed"),
    [(DROPPED, ""), (CAUGHT, ""), (FOLLOWED, ""), (DEFERRED, "complete\n")],
    ids=["dropped", "caught", "followed", "deferred"],
)
def test_an_interrupt_is_never_lost(script, printed):
    output, errors = start(script).communicate(timeout=30)
    lines = [line for line in errors.splitlines() if not line.startswith("items:")]
    assert output == printed and lines == [INTERRUPTED], errors


def test_the_second_interrupt_ends_native_code_and_leaves_nothing(tmp_path):
    process = start(NATIVE, tmp_path / "out.txt")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # a launcher's copy of the same
    time.sleep(1.5)
    assert process.poll() is None and len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=5)[1]
    assert process.returncode == 130 and not list(tmp_path.iterdir())
    assert errors.splitlines() == [
        *("", "ends after the current step; Ctrl-C again ends at once", "ended at once"),
    ]


def interrupt_edit(folder, model, delay):
    """Interrupts an edit `delay` seconds after its first line; returns its output."""
    arguments = ["--model", model, "--video", "star", "--size", "16", "--steps", "1000"]
    arguments += ["--instruction", "make it snow", "--output", folder / "out.mp4"]
    process = start_command("edit", *arguments)
    while "8 frames at" not in (line := process.stdout.readline()):
        assert process.poll() is None, line
    time.sleep(delay)
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    return output, time.monotonic() - pressed


@pytest.mark.parametrize("count", [3, pytest.param(15, marks=pytest.mark.slow)])
def test_an_edit_ends_at_ctrl_c(tiny, tmp_path, monkeypatch, count):
    """At random moments of tracing, compiling and sampling."""
    monkeypatch.setenv("IVID2VID_CACHE", "off")
    draw = random.Random(count)
    for _ in range(count):
        output, seconds = interrupt_edit(tmp_path, tiny, draw.uniform(0, 6))
        assert output.count(INTERRUPTED) == 1 and "ended at once" not in output, output
        assert "Traceback" not in output and "ignored" not in output, output
        assert seconds < 20 and not list(tmp_path.iterdir()), output


WRITING = """
import os, signal, sys
from ivid2vid_jax import edit
from ivid2vid_jax.video import rescue

write_clip = rescue.write_clip

def interrupted_write(*args):
    os.kill(os.getpid(), signal.SIGINT)
    write_clip(*args)

rescue.write_clip = interrupted_write
edit.main()
"""


def test_ctrl_c_while_an_edit_is_written_completes_it_and_its_record(tiny, tmp_path):
    """Sampling can have taken hours; the record is what repeats it."""
    arguments = ["--model", tiny, "--video", "star", "--size", "16", "--steps", "2"]
    output = tmp_path / "out.mp4"
    arguments += ["--instruction", "make it snow", "--output", output]
    process = subprocess.run(
        [sys.executable, "-c", WRITING, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    record = tmp_path / "out.mp4.json"
    assert process.returncode == 130, process.stderr
    assert process.stdout.splitlines() == [f"wrote {output}", f"wrote {record}"]
    assert f"finishing {output}; Ctrl-C again discards it" in process.stderr
    assert process.stderr.rstrip().endswith(INTERRUPTED)
    assert json.loads(record.read_text())["settings"]["steps"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "out.mp4.json"]


def test_the_second_interrupt_ends_a_training_that_compiles(tmp_path, monkeypatch):
    """At once, and its loader's workers with it: all are interrupted."""
    monkeypatch.setenv("IVID2VID_CACHE", "off")
    options = ["--output", tmp_path / "run", "--log.benchmark", "0", "--loader.workers", "2"]
    process = start_command("train", *options, group=True)
    while "compiling" not in process.stdout.readline():
        assert process.poll() is None
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
    output = process.communicate(timeout=5)[0]  # which the workers have open too
    assert process.returncode == 130, output
    assert output.endswith("ended at once\n") and "step 1/" not in output, output
    assert "Traceback" not in output and "ignored" not in output, output
