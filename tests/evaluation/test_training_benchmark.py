"""What a run learns is judged before and after: the clips that are chosen, that nothing is judged twice, the table, and a whole run."""

import pytest

from ivid2vid_jax import train as command
from ivid2vid_jax.data.shapes import KINDS
from ivid2vid_jax.evaluation import shapes_benchmark, training_benchmark
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.metrics_log import read_metrics
from tests.support.command import run_command
from tests.support.tiny_run import tiny


def test_kinds_drawn_more_often_are_judged_more_often(tmp_path):
    drawn = ("sepia",) * len(KINDS) + KINDS
    kinds = [
        kind
        for kind, _, _ in training_benchmark.clips(
            tiny(tmp_path, log__benchmark=56, loader__kinds=drawn)
        )
    ]
    assert kinds.count("sepia") == 28 and all(kinds.count(kind) == 2 for kind in KINDS)
    assert len(list(training_benchmark.clips(tiny(tmp_path, log__benchmark=1)))) == len(KINDS)


class Pipe(str):
    folder = None


def test_before_and_after_stand_side_by_side(tmp_path, monkeypatch):
    """An editor that makes every edit after training and none before; the second call of the same moment edits nothing again."""
    config = tiny(
        tmp_path,
        log__benchmark=4,
        loader__kinds=("sepia", "colour"),
        loader__size=64,
        loader__frames=4,
    )
    asked = []

    def editor(pipe, settings):
        return lambda truth: (
            asked.append(pipe) or (truth.edited if pipe == "taught" else truth.source)
        )

    monkeypatch.setattr(shapes_benchmark, "editor", editor)
    monkeypatch.setattr(training_benchmark.EditSettings, "resolve", lambda self, folder: self)
    for when, pipe in (
        ("before", Pipe("new")),
        ("after", Pipe("taught")),
        ("after", Pipe("taught")),
    ):
        training_benchmark.run_benchmark(config, tmp_path, when, pipe)
    assert len(asked) == 8
    lines = training_benchmark.table(tmp_path).splitlines()
    assert lines[2].startswith("| sepia | 0 of 2, 0% ") and "| 2 of 2, 100% " in lines[2]
    assert lines[3].startswith("| colour | 0 of 2") and lines[4].startswith(
        "| all kinds of the default training | 0 of 2"
    )
    assert training_benchmark.table(tmp_path / "elsewhere") == ""


def test_a_run_that_goes_on_is_judged_again(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shapes_benchmark,
        "editor",
        lambda pipe, settings: lambda truth: truth.edited if pipe == "taught" else truth.source,
    )
    monkeypatch.setattr(training_benchmark.EditSettings, "resolve", lambda self, folder: self)
    for steps, when, pipe in ((2, "before", "new"), (2, "after", "new"), (4, "after", "taught")):
        training_benchmark.run_benchmark(
            tiny(
                tmp_path,
                steps=steps,
                log__benchmark=1,
                loader__kinds=("grey",),
                loader__size=64,
                loader__frames=4,
            ),
            tmp_path,
            when,
            Pipe(pipe),
        )
    lines = training_benchmark.table(tmp_path).splitlines()
    assert (
        "passed after 4 steps [95%]" in lines[0]
        and lines[2].startswith("| grey | 0 of 1, 0% ")
        and "| 1 of 1, 100% " in lines[2]
    )


def test_a_run_prints_what_it_has_learned(tmp_path, capsys, monkeypatch):
    """The step itself is left out, which takes a minute to compile."""
    monkeypatch.setattr(CompiledStep, "compile", lambda self, *args: setattr(self, "flops", 0.0))
    monkeypatch.setattr(
        CompiledStep,
        "__call__",
        lambda self, state, frozen, batch: (state, {"loss": 0.5, "lr": 0.1}),
    )
    config = tiny(tmp_path / "run", steps=2, log__benchmark=1, loader__kinds=("sepia", "grey"))
    command.run(config)
    said = capsys.readouterr().out
    assert "| sepia | 0 of 1" in said and "| grey | 0 of 1" in said
    assert {
        item.kind
        for step in (0, 2)
        for item in shapes_benchmark.read(training_benchmark.file(tmp_path / "run", step))
    } == {"sepia", "grey"}
    assert len(read_metrics(tmp_path / "run", "train")) == 2


@pytest.mark.parametrize("words", [("--task", "autoencoder"), ("--data", "elsewhere")])
def test_what_cannot_be_judged_is_refused(tmp_path, capsys, words):
    code, err, _ = run_command(
        capsys,
        TrainConfig,
        command.run,
        "--log.benchmark",
        4,
        "--output",
        tmp_path / "run",
        *words,
        recipe=command.recipe,
    )
    assert code == 2 and "--log.benchmark 4" in err and not (tmp_path / "run").exists()
