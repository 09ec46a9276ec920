"""Runs split over several processes."""

import dataclasses
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.synthesis import dataset_writer
from ivid2vid_jax.synthesis.config import STAGES
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.synthesis.manifest import FAILED, lock_stage
from ivid2vid_jax.synthesis.run_stages import run_stages
from tests.support.devices import device_env
from tests.synthesis.runs import dataset_bytes, run_output, write_recipe

ROOT = Path(__file__).parents[2]


def shard(config, index, stages):
    """The config of one of two processes."""
    return dataclasses.replace(config, shard=f"{index}/2", stages=stages)


@pytest.mark.slow
def test_two_shards_make_what_one_process_makes(config, capsys, tmp_path):
    run_output(capsys, config)
    run = dataclasses.replace(config, output=tmp_path / "parts")
    with pytest.raises(UserError, match="run --stages clips first, of every shard"):
        run_output(capsys, dataclasses.replace(run, shard="1/2"))
    for stages in (("clips",), ("captions", "instructions", "edits", "scores"), ("write",)):
        for index in (1, 0):
            output = run_output(capsys, shard(run, index, stages))
    assert "write: 8 triplets" in output
    assert dataset_bytes(run.output) == dataset_bytes(config.output)
    assert all((run.output / f"edits-{index}-of-2.jsonl").read_text() for index in (0, 1))


def test_write_waits_for_other_shards(config, capsys):
    for stages in (("clips",), ("captions", "instructions")):
        for index in (1, 0):
            run_output(capsys, shard(config, index, stages))
    with pytest.raises(UserError, match="edits: 4 of 8 are still to be done by other shards"):
        run_output(capsys, shard(config, 0, STAGES[1:]))


def test_write_leaves_out_nothing_of_other_shards(config, capsys, monkeypatch):
    """It counts, stage by stage, what they have not tried, and sees their latest results."""
    run = dataclasses.replace(config, editor="truth")
    for index in (0, 1):
        run_output(capsys, shard(run, index, ("clips",)))
    for stage in ("captions", "instructions"):
        message = f"{stage}: 2 of 4 are still to be done by other shards"
        with pytest.raises(UserError, match=message):
            run_output(capsys, shard(run, 0, STAGES[1:]))
        run_output(capsys, shard(run, 1, (stage,)))
    engine = Engine(shard(run, 0, ("scores",)))
    run_stages(engine)  # caches that the other shard has no edits
    run_output(capsys, shard(run, 1, ("edits",)))
    with pytest.raises(UserError, match="scores: 4 of 8 are still"):
        dataset_writer.write_dataset(engine)

    scores = "ivid2vid_jax.synthesis.stages.scores"
    monkeypatch.setattr(f"{scores}.rejection_reason", lambda *_: "disk full")
    monkeypatch.setattr(f"{scores}.REJECTED", FAILED)
    run_output(capsys, shard(run, 1, ("scores",)))
    dataset_writer.write_dataset(engine)
    output = capsys.readouterr().out
    assert "write: 4 triplets" in output, "items that fail do not block the others"
    monkeypatch.undo()
    run_output(capsys, shard(run, 1, ("scores",)))
    dataset_writer.write_dataset(engine)
    assert "write: 8 triplets" in capsys.readouterr().out


# argv: port, process index, recipe file
DISTRIBUTED = """
import runpy, sys
import jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from ivid2vid_jax import synthesize
synthesize.run(runpy.run_path(sys.argv[3])["config"])
"""


def test_processes_of_shard_auto_wait_for_each_other(config, capsys, tmp_path):
    """All stages at once: none starts before the other's clips, and shard 0 writes all edits."""
    run = dataclasses.replace(config, editor="truth", count=5)
    run_output(capsys, run)
    auto = dataclasses.replace(run, output=tmp_path / "auto", shard="auto")
    recipe = write_recipe(auto, tmp_path / "recipe.py")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DISTRIBUTED, str(port), index, str(recipe)],
            env=device_env(1),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for index in ("0", "1")
    ]
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "write: 10 triplets" in outputs[0][0]
    assert "write: left to shard 0" in outputs[1][0]
    assert dataset_bytes(auto.output) == dataset_bytes(run.output)


def test_a_shard_is_locked_by_one_process(config, capsys):
    with (
        lock_stage(config.output, "clips", (0, 1)),
        pytest.raises(UserError, match="another process is at work on --shard 0/1"),
    ):
        run_output(capsys, config)
    with lock_stage(config.output, "clips", (0, 2)):
        run_output(capsys, shard(config, 1, ("clips",)))
    run_output(capsys, dataclasses.replace(config, stages=("clips",)))
