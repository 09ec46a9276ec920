"""Experiments: each arm with each seed, once; the tables.

Training is replaced in all tests but one.
"""

import dataclasses
import itertools
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation import shapes_benchmark
from ivid2vid_jax.experiments import engine_triplets
from ivid2vid_jax.experiments import experiment as experiments
from ivid2vid_jax.experiments.engine_triplets import EngineTriplets
from ivid2vid_jax.experiments.experiment import Experiment, Outcome, interval, relative_share
from ivid2vid_jax.inference.pipeline import EditSettings
from ivid2vid_jax.synthesis.clip_cutting import ClipsConfig
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.engine import Engine
from ivid2vid_jax.synthesis.filter import FilterConfig
from ivid2vid_jax.synthesis.run_stages import run_stages
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.loop import train as real_train
from ivid2vid_jax.utils.json_files import write_json
from tests.models.test_clip import VISION_TINY, save_clip
from tests.support import factory

FILES = sorted(Path("configs/experiments").glob("*.py"))


class Settings(EditSettings):
    """Small clips, of any folder."""

    def resolve(self, folder):
        return dataclasses.replace(self, size=64, frames=4)


@pytest.fixture
def world(monkeypatch):
    """(experiment, train, trained): train() leaves metrics and a marker, and logs (lr, seed).

    The editor of arm "good" is perfect, that of "bad" copies the source.
    """
    trained = []

    def train(config: TrainConfig) -> Path:
        trained.append((config.optim.lr, config.seed))
        folder = Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
        losses = {"noise_loss": config.optim.lr + config.seed, "frame_loss": 1.0}
        line = {"step": 1, "kind": "validation", "time": 0} | losses
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "pipeline").mkdir(exist_ok=True)
        write_json(folder / "pipeline" / "training.json", {"step": config.steps})
        return folder

    def load(folder):
        return type("Pipe", (), {"folder": None, "run": folder})

    def editor(pipe, settings):
        return lambda truth: truth.edited if "good" in str(pipe.run) else truth.source

    monkeypatch.setattr(experiments, "load", load)
    monkeypatch.setattr(shapes_benchmark, "editor", editor)
    good = TrainConfig()
    bad = dataclasses.replace(good, optim=dataclasses.replace(good.optim, lr=0.5))
    experiment = Experiment(
        "Which?",
        {"good": good, "bad": bad},
        seeds=(0, 1),
        kinds=("colour", "grey"),
        count=2,
        settings=Settings(),
    )
    return experiment, train, trained


@pytest.fixture
def instructions(world, monkeypatch):
    """The instructions of all edits, by an editor that copies the source."""
    calls = []

    def edit(truth):
        calls.append(truth.instruction)
        return truth.source

    monkeypatch.setattr(shapes_benchmark, "editor", lambda pipe, settings: edit)
    return calls


def cells(text: str, first: str, corner: str = "arm") -> dict[str, str]:
    """Column -> cell of the row that starts with `first`, in the table with this corner."""
    columns = [""]
    for line in text.splitlines():
        row = [cell.strip() for cell in line.split("|")[1:-1]]
        if row and row[0] == first and columns[0] == corner:
            return dict(zip(columns, row, strict=True))
        if row and (row[0] in ("arm", "triplets of") or row[0].startswith("minus ")):
            columns = row
    raise AssertionError(f"{first} is no row of {text}")


def number(cell: str) -> float:
    """The mean of a cell "mean ± half-width"."""
    return float(cell.split()[0])


def test_every_arm_is_run_with_every_seed(world, tmp_path):
    experiment, train, trained = world
    outcomes = experiments.run(experiment, tmp_path, train)
    assert trained == [(1e-3, 0), (0.5, 0), (1e-3, 1), (0.5, 1)]
    shares = [(run.arm, run.seed, run.summary["passed"]["share"]) for run in outcomes]
    assert shares == [("good", 0, 1), ("bad", 0, 0), ("good", 1, 1), ("bad", 1, 0)]
    text = (tmp_path / "table.md").read_text()
    assert "| good | 2 | 100.0% [51, 100] |" in text and "| bad | 2 | 0.0% [0, 49] |" in text
    assert "Wilson's interval for the 4 clips" in text
    assert "1.000 ± 6.353" in text  # noise losses 0.5 and 1.5: 12.706 * 0.7071 / sqrt(2)
    assert len(json.loads((tmp_path / "outcomes.json").read_text())) == 4
    for arm, seed in itertools.product(("good", "bad"), (0, 1)):
        (items,) = (tmp_path / arm / str(seed)).glob("items-*.jsonl")
        assert items.read_text().count("\n") == 4


def test_other_weights_settings_and_phrasings_are_evaluated_again(world, instructions, tmp_path):
    experiment, train, _ = world
    recipe = experiment.arms["good"]
    experiment = dataclasses.replace(experiment, arms={"good": recipe}, seeds=(0,), kinds=("grey",))
    longer = {"good": dataclasses.replace(recipe, steps=recipe.steps + 1)}
    settings = dataclasses.replace(experiment.settings, text_scale=3.0)
    changes = ({}, {}, {"arms": longer}, {"settings": settings}, {"phrasings": (3,)}, {})
    for change in changes:
        experiments.run(dataclasses.replace(experiment, **change), tmp_path, train)
    assert len(instructions) == 2 * 4 and instructions[-2:] == ["use the grey style"] * 2


def test_an_interrupted_run_is_not_evaluated(world, tmp_path):
    """SIGTERM ends a run's training with a checkpoint, but not the process."""
    experiment, train, trained = world

    def interrupted(config):
        return train(config if len(trained) < 2 else dataclasses.replace(config, steps=7))

    with pytest.raises(UserError, match=r"good/1: training stopped before step \d+; run the same"):
        experiments.run(experiment, tmp_path, interrupted)
    assert len(json.loads((tmp_path / "outcomes.json").read_text())) == 2
    assert not list((tmp_path / "good" / "1").glob("items-*.jsonl"))


def test_differences_are_paired_by_seed(world, tmp_path):
    """Noise losses are 0.001 and 0.5 plus the seed: their difference is the same for each seed."""
    experiment, train, _ = world
    experiments.run(experiment, tmp_path, train)
    row = cells((tmp_path / "table.md").read_text(), "bad", "minus good, paired by seed")
    assert row["seeds"] == "2" and row["noise loss"] == "0.499 ± 0.000"
    assert row["frame loss"] == "0.000 ± 0.000" and number(row["edit shown, %"]) == -100


def test_frame_losses_of_different_recipes_are_left_out(world, tmp_path):
    experiment, train, _ = world
    bad = experiment.arms["bad"]
    loss = dataclasses.replace(bad.loss, frame_difference="none")
    arms = experiment.arms | {"bad": dataclasses.replace(bad, loss=loss)}
    experiments.run(dataclasses.replace(experiment, arms=arms), tmp_path, train)
    text = (tmp_path / "table.md").read_text()
    assert "frame loss" not in text and "noise loss" in text


def test_the_outcomes_are_json(world, tmp_path):
    """A perfect edit's PSNR is infinite, which JSON cannot express."""
    experiment, train, _ = world
    experiments.run(experiment, tmp_path, train)
    json.loads((tmp_path / "outcomes.json").read_text(), parse_constant=pytest.fail)


def test_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == f"2.000 ± {4.303 / np.sqrt(3):.3f}"
    assert interval([1.0]) == "1.000" and interval([1.0, None]) == "-"


def test_the_table_has_temporal_metrics(world, tmp_path):
    """The perfect editor moves as the true edit; a copy that should be grey has more contrast."""
    experiment, train, _ = world
    experiments.run(dataclasses.replace(experiment, kinds=("grey",), count=4), tmp_path, train)
    text = (tmp_path / "table.md").read_text()
    good, bad = (cells(text, arm) for arm in ("good", "bad"))
    difference, warping = "frame difference minus true edit's", "warping error x1000"
    true_warping = "true edit's warping error x1000"
    assert good[difference] == good["flicker"] == "0.000 ± 0.000"
    assert good[warping] == good[true_warping] == bad[true_warping]
    assert number(bad["flicker"]) > 0.1
    assert number(bad[warping]) > number(good[warping]) > 0


def test_passed_clips_relative_to_another_arm(world, tmp_path):
    experiment, train, _ = world
    experiments.run(dataclasses.replace(experiment, against="good"), tmp_path, train)
    text = (tmp_path / "table.md").read_text()
    column = "passed relative to good [95%]"
    shares = [cells(text, arm)[column] for arm in ("good", "bad")]
    assert shares == ["100% [100, 100]", "0% [0, 0]"]
    half = Outcome("a", 0, {}, {}, (True, False) * 20)
    none, all_passed = (Outcome("b", 0, {}, {}, (value,) * 40) for value in (False, True))
    assert relative_share([half], [all_passed]).startswith("50% [3")
    assert relative_share([half], [none]) == "-"
    other_seed = dataclasses.replace(half, seed=1)
    assert relative_share([other_seed], [all_passed]) == "-"


def test_the_benchmark_uses_the_named_phrasings(world, instructions, tmp_path):
    experiment, train, _ = world
    experiment = dataclasses.replace(experiment, kinds=("grey",), phrasings=(3,))
    experiments.run(experiment, tmp_path, train)
    assert set(instructions) == {"use the grey style"}


def test_model_and_data_are_overridden():
    arms = {"plain": TrainConfig(), "synthesized": TrainConfig()}
    triplets = {"synthesized": EngineTriplets(SynthesisConfig())}
    overridden = Experiment("?", arms, synthesized=triplets).with_overrides("net", "folder").arms
    assert [(arm.model, arm.data) for arm in overridden.values()] == [
        ("net", ("folder",)),
        ("net", ("shapes",)),
    ]
    assert Experiment("?", arms).with_overrides(None, None).arms == arms


@pytest.mark.parametrize(
    "change", [{"against": "best"}, {"synthesized": {"best": EngineTriplets(SynthesisConfig())}}]
)
def test_errors_of_unknown_arms(change):
    with pytest.raises(UserError, match=r"best of synthesized or against is no arm; arms: a"):
        Experiment("?", {"a": TrainConfig()}, **change)


# ---- triplets made by the data engine ----


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The data engine with the editor of true edits and a random CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder, factory.TEXT_TINY, VISION_TINY, 40)
    accept_all = FilterConfig(model=str(folder), image=-1, text=-1, direction=-1, consistency=-1)
    return SynthesisConfig(
        output=Path("truth"),
        editor="truth",
        count=4,
        clips=ClipsConfig(frames=2, size=16, least=16),
        filter=accept_all,
        validation=0.3,
    )


def modified(*paths: Path) -> dict[Path, int]:
    """File -> time of its last modification."""
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}


def test_triplets_are_made_once_for_all_seeds(world, engine, tmp_path):
    experiment, train, _ = world
    data = {}

    def logged_train(config):
        data.setdefault(Path(config.output).parent.name, []).append(config.data)
        return train(config)

    strict = dataclasses.replace(engine.filter, direction=0.0)
    synthesized = {
        "good": EngineTriplets(engine),
        "bad": EngineTriplets(dataclasses.replace(engine, filter=strict)),
    }
    experiment = dataclasses.replace(experiment, synthesized=synthesized)
    experiments.run(experiment, tmp_path, logged_train)
    folders = {arm: tmp_path / arm / "made" / "dataset" for arm in synthesized}
    assert data == {arm: [(str(folder),)] * 2 for arm, folder in folders.items()}
    sizes = [
        sum(len(open_dataset(folder, split)) for split in open_dataset(folder).splits)
        for folder in folders.values()
    ]
    assert sizes[0] == 8 > sizes[1] > 0, "each arm has its own, though the engine's work is shared"
    row = cells((tmp_path / "table.md").read_text(), "bad", "triplets of")
    assert row["clips"] == row["with instructions"] == "4 of 4"
    assert row["edits made"] == "8 of 8" and row["kept by the filter"] == str(sizes[1])
    assert row["correct edits [95%]"].startswith("100.0%")
    recall = f"{100 * sizes[1] / 8:.1f}%"
    assert row["kept among correct (recall) [95%]"].startswith(recall)

    files = [*tmp_path.glob("*/made/**/*"), *(tmp_path / "made").rglob("*.jsonl")]
    before = modified(*files)
    experiments.run(experiment, tmp_path, logged_train)
    assert modified(*files) == before, "a second run makes nothing"
    other = {"good": EngineTriplets(dataclasses.replace(engine, seed=5))}
    with pytest.raises(UserError, match="holds triplets of another recipe"):
        experiments.run(dataclasses.replace(experiment, synthesized=other), tmp_path, logged_train)


def test_captions_replace_those_of_the_clips(engine, tmp_path):
    """Rules turn them into instructions, which this world's checker cannot check."""
    recipe = dataclasses.replace(
        engine,
        editor="shared_noise",
        instructions="rules",
        stages=("clips", "captions", "instructions"),
    )
    triplets = EngineTriplets(recipe, lambda id: f"a dog on a beach, clip {id[-1]}")
    config, captions = engine_triplets.working_config(triplets, tmp_path)
    run_stages(Engine(config))
    text = (tmp_path / "truth" / "instructions.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["id"]: line["caption"] for line in lines} == captions and len(captions) == 4


@pytest.mark.slow
def test_an_arm_trains_on_its_synthesized_cache(engine, tiny, tmp_path):
    """Nothing is replaced: engine, cache, training, evaluation. It compiles for a minute."""
    from tests.test_configs import twin

    loader = LoaderConfig(batch=4, frames=2, size=16, cached=True)
    recipe = twin(TrainConfig(model="x", loader=loader), tiny, tmp_path, tmp_path)
    experiment = Experiment(
        "?",
        {"a": dataclasses.replace(recipe, steps=2)},
        seeds=(0,),
        kinds=("colour",),
        count=1,
        settings=EditSettings(steps=1, size=16, frames=2),
        synthesized={"a": EngineTriplets(engine)},
        against="a",
    )
    (outcome,) = experiments.run(experiment, tmp_path / "out", real_train)
    assert len(outcome.passed) == 1 and np.isfinite(outcome.validation["noise_loss"])
    assert list((tmp_path / "out" / "a" / "made" / "dataset" / "cache").iterdir())


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_files_hold_experiments_of_equal_steps(path):
    experiment = runpy.run_path(str(path))["experiment"]
    assert isinstance(experiment, Experiment) and f"--experiment {path}" in path.read_text()
    arms = experiment.arms.values()
    common = {
        (arm.model, arm.steps, dataclasses.replace(arm.loader, phrasings=()), arm.optim)
        for arm in arms
    }
    assert len(common) == 1 and len(arms) * len(experiment.seeds) <= 24
    for arm in arms:
        arm.check()
        arm.loader.check()
    synthesized = experiment.synthesized.values()
    for triplets in synthesized:
        triplets.engine.check()
        assert triplets.captions is None or triplets.captions("shapes-0-000003")
    for a, b in itertools.combinations(synthesized, 2):
        if a.engine.output == b.engine.output:
            assert dataclasses.replace(a.engine, filter=b.engine.filter) == b.engine
            assert a.captions == b.captions
