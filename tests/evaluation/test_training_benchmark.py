"""The benchmark of a training run: its clips, its table, and a whole run."""

import dataclasses
import logging

import pytest

from ivid2vid_jax import train as command
from ivid2vid_jax.data.shapes import KINDS
from ivid2vid_jax.evaluation import shapes_benchmark, training_benchmark
from ivid2vid_jax.inference.pipeline import Pipeline
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import DEFAULT
from ivid2vid_jax.training.metrics_log import read_metrics
from tests.support.tiny_run import tiny

ALL_KINDS_ROW = "| all kinds of the default training |"


class Pipe(str):
    folder = None


@pytest.fixture
def edits(monkeypatch):
    """Pipe("trained") makes every edit, other pipes none; returns the pipes of all edits."""
    pipes = []

    def editor(pipe, settings):
        def edit(truth):
            pipes.append(pipe)
            return truth.edited if pipe == "trained" else truth.source

        return edit

    monkeypatch.setattr(shapes_benchmark, "editor", editor)
    monkeypatch.setattr(training_benchmark.EditSettings, "resolve", lambda self, folder: self)
    return pipes


def benchmark_config(output, count, kinds, **changes):
    return tiny(
        output,
        log__benchmark=count,
        loader__kinds=kinds,
        loader__size=64,
        loader__frames=4,
        **changes,
    )


def test_kinds_are_as_frequent_as_in_training(tmp_path):
    kinds = ("sepia",) * len(KINDS) + KINDS
    config = tiny(tmp_path, log__benchmark=56, loader__kinds=kinds)
    counted = [kind for kind, _, _ in training_benchmark.clips(config)]
    assert counted.count("sepia") == 28 and all(counted.count(kind) == 2 for kind in KINDS)
    assert len(list(training_benchmark.clips(tiny(tmp_path, log__benchmark=1)))) == len(KINDS)


def test_the_table_compares_before_and_after(tmp_path, edits):
    """The second call with the same moment edits nothing."""
    config = benchmark_config(tmp_path, 4, ("sepia", "colour"))
    moments = [("before", Pipe("new")), ("after", Pipe("trained")), ("after", Pipe("trained"))]
    for when, pipe in moments:
        training_benchmark.run_benchmark(config, tmp_path, when, pipe)
    assert len(edits) == 8
    lines = training_benchmark.table(tmp_path).splitlines()
    assert lines[2].startswith("| sepia | 0 of 2, 0% ") and "| 2 of 2, 100% " in lines[2]
    assert lines[3].startswith("| colour | 0 of 2")
    assert lines[4].startswith(f"{ALL_KINDS_ROW} 0 of 2")
    assert training_benchmark.table(tmp_path / "elsewhere") == ""


def test_a_continued_run_is_evaluated_again(tmp_path, edits):
    for steps, when, pipe in ((2, "before", "new"), (2, "after", "new"), (4, "after", "trained")):
        config = benchmark_config(tmp_path, 1, ("grey",), steps=steps)
        training_benchmark.run_benchmark(config, tmp_path, when, Pipe(pipe))
    lines = training_benchmark.table(tmp_path).splitlines()
    assert "passed after 4 steps [95%]" in lines[0]
    assert lines[2].startswith("| grey | 0 of 1, 0% ") and "| 1 of 1, 100% " in lines[2]


def test_results_of_earlier_versions_are_read_and_continued(tmp_path, edits):
    """They are in RUN/judged."""
    config = benchmark_config(tmp_path, 1, ("grey",))
    training_benchmark.run_benchmark(config, tmp_path, "before", Pipe("new"))
    assert (tmp_path / "benchmark" / "before.jsonl").is_file()
    (tmp_path / "benchmark").rename(tmp_path / "judged")
    training_benchmark.run_benchmark(config, tmp_path, "before", Pipe("new"))
    training_benchmark.run_benchmark(config, tmp_path, "after", Pipe("trained"))
    assert len(edits) == 2 and not (tmp_path / "benchmark").exists()
    assert "| grey | 0 of 1, 0% " in training_benchmark.table(tmp_path)


@pytest.mark.slow
def test_a_run_prints_its_benchmark(tmp_path, capsys, monkeypatch, edits):
    """Without the training step and the edits, which take a minute to compile."""
    monkeypatch.setattr(CompiledStep, "compile", lambda self, *args: setattr(self, "flops", 0.0))
    metrics = {"loss": 0.5, "lr": 0.1}
    monkeypatch.setattr(
        CompiledStep, "__call__", lambda self, state, frozen, batch: (state, metrics)
    )
    run = tmp_path / "run"
    command.run(tiny(run, steps=2, log__benchmark=1, loader__kinds=("sepia", "grey")))
    output = capsys.readouterr().out
    assert "| sepia | 0 of 1" in output and "| grey | 0 of 1" in output
    for step in (0, 2):
        items = shapes_benchmark.read(training_benchmark.file(run, step))
        assert {item.kind for item in items} == {"sepia", "grey"}
    assert len(edits) == 4 and all(isinstance(pipe, Pipeline) for pipe in edits)
    assert len(read_metrics(run, "train")) == 2


@pytest.mark.parametrize("changes", [{"task": "autoencoder"}, {"data": ("elsewhere",)}])
def test_runs_that_cannot_be_checked_have_no_benchmark(caplog, changes):
    """So `train --data MINE` works with the default recipe."""
    caplog.set_level(logging.INFO)
    assert training_benchmark.applicable(DEFAULT) is DEFAULT and not caplog.text
    other = dataclasses.replace(DEFAULT, **changes)
    assert training_benchmark.applicable(other).log.benchmark == 0
    assert "no benchmark (--log.benchmark 56)" in caplog.text
