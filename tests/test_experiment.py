"""Experiments: each arm with each seed, once; the table says what the runs say. Training itself is replaced: it has tests of its own."""

import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax.evaluation import experiment as experiments
from ivid2vid_jax.evaluation import shapes
from ivid2vid_jax.evaluation.experiment import Experiment, interval
from ivid2vid_jax.training.config import TrainConfig

FILES = sorted(Path("configs/experiments").glob("*.py"))


@pytest.fixture
def world(monkeypatch):
    """Training leaves a marker; the editor of arm "good" is perfect, that of "bad" a copy."""
    trained = []

    def train(config: TrainConfig) -> Path:
        trained.append((config.optim.lr, config.seed))
        home = Path(config.output)
        home.mkdir(parents=True, exist_ok=True)
        line = {"step": 1, "kind": "validation", "time": 0, "noise_loss": config.optim.lr + config.seed, "frame_loss": 1.0}
        (home / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        return home

    class Settings(experiments.EditSettings):
        def resolved(self, folder):
            return dataclasses.replace(self, size=64, frames=4)

    monkeypatch.setattr(experiments, "load", lambda home: type("Pipe", (), {"folder": None, "home": home}))
    monkeypatch.setattr(shapes, "editor", lambda pipe, settings: lambda truth: truth.edited if "good" in str(pipe.home) else truth.source)
    arms = {"good": TrainConfig(), "bad": dataclasses.replace(TrainConfig(), optim=dataclasses.replace(TrainConfig().optim, lr=0.5))}
    return Experiment("Which?", arms, seeds=(0, 1), kinds=("colour", "grey"), count=2, settings=Settings()), train, trained


def test_every_arm_meets_every_seed_and_the_table_tells(world, tmp_path):
    experiment, train, trained = world
    outcomes = experiments.run(experiment, tmp_path, train)
    assert trained == [(1e-3, 0), (0.5, 0), (1e-3, 1), (0.5, 1)]
    assert [(each.arm, each.seed, each.summary["passed"]["share"]) for each in outcomes] == [("good", 0, 1), ("bad", 0, 0), ("good", 1, 1), ("bad", 1, 0)]
    text = (tmp_path / "table.md").read_text()
    assert "| good | 2 | 100.0% [68, 100] |" in text and "| bad | 2 | 0.0% [0, 32] |" in text and "1.000 ± 6.353" in text  # 0.5 and 1.5: 12.706 * 0.7071 / 1.4142
    assert len(json.loads((tmp_path / "outcomes.json").read_text())) == 4
    assert all((tmp_path / arm / str(seed) / "items.jsonl").read_text().count("\n") == 4 for arm in ("good", "bad") for seed in (0, 1))


def test_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == f"2.000 ± {4.303 / np.sqrt(3):.3f}" and interval([1.0]) == "1.000"


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_files_hold_experiments_of_equal_steps(path):
    found = runpy.run_path(str(path))["experiment"]
    assert isinstance(found, Experiment) and f"--experiment {path}" in path.read_text()
    assert len({(arm.steps, arm.loader, arm.optim) for arm in found.arms.values()}) == 1 and len(found.arms) * len(found.seeds) <= 24
    for arm in found.arms.values():
        arm.check()
