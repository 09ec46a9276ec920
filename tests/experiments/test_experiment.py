"""Experiments: each arm with each seed, once; the tables say what the runs and the data engine say. Training itself is replaced but in one test."""

import dataclasses
import itertools
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.data.dataset import open_dataset
from ivid2vid_jax.evaluation import shapes_benchmark
from ivid2vid_jax.experiments import experiment as experiments
from ivid2vid_jax.experiments.experiment import EngineTriplets, Experiment, Outcome, interval
from ivid2vid_jax.inference.pipeline import EditSettings
from ivid2vid_jax.synthesis.clip_cutting import ClipsConfig
from ivid2vid_jax.synthesis.config import SynthesisConfig
from ivid2vid_jax.synthesis.filter import FilterConfig
from ivid2vid_jax.synthesis.run_stages import run_stages
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.loop import train as real_train
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import write_json

FILES = sorted(Path("configs/experiments").glob("*.py"))


@pytest.fixture
def world(monkeypatch):
    """Training leaves a marker; the editor of arm "good" is perfect, that of "bad" a copy."""
    trained = []

    def train(config: TrainConfig) -> Path:
        trained.append((config.optim.lr, config.seed))
        home = Path(config.output)
        home.mkdir(parents=True, exist_ok=True)
        line = {
            "step": 1,
            "kind": "validation",
            "time": 0,
            "noise_loss": config.optim.lr + config.seed,
            "frame_loss": 1.0,
        }
        (home / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (home / "pipeline").mkdir(exist_ok=True)
        write_json(home / "pipeline" / "training.json", {"step": config.steps})
        return home

    class Settings(experiments.EditSettings):
        def resolved(self, folder):
            return dataclasses.replace(self, size=64, frames=4)

    monkeypatch.setattr(
        experiments, "load", lambda home: type("Pipe", (), {"folder": None, "home": home})
    )
    monkeypatch.setattr(
        shapes_benchmark,
        "editor",
        lambda pipe, settings: (
            lambda truth: truth.edited if "good" in str(pipe.home) else truth.source
        ),
    )
    arms = {
        "good": TrainConfig(),
        "bad": dataclasses.replace(
            TrainConfig(), optim=dataclasses.replace(TrainConfig().optim, lr=0.5)
        ),
    }
    return (
        Experiment(
            "Which?", arms, seeds=(0, 1), kinds=("colour", "grey"), count=2, settings=Settings()
        ),
        train,
        trained,
    )


def test_every_arm_meets_every_seed_and_the_table_tells(world, tmp_path):
    experiment, train, trained = world
    outcomes = experiments.run(experiment, tmp_path, train)
    assert trained == [(1e-3, 0), (0.5, 0), (1e-3, 1), (0.5, 1)]
    assert [(each.arm, each.seed, each.summary["passed"]["share"]) for each in outcomes] == [
        ("good", 0, 1),
        ("bad", 0, 0),
        ("good", 1, 1),
        ("bad", 1, 0),
    ]
    text = (tmp_path / "table.md").read_text()
    assert (
        "| good | 2 | 100.0% [51, 100] |" in text
        and "| bad | 2 | 0.0% [0, 49] |" in text
        and "Wilson's interval of the 4 clips" in text
        and "1.000 ± 6.353" in text
    )  # 0.5 and 1.5: 12.706 * 0.7071 / 1.4142
    assert len(json.loads((tmp_path / "outcomes.json").read_text())) == 4
    assert all(
        next((tmp_path / arm / str(seed)).glob("items-*.jsonl")).read_text().count("\n") == 4
        for arm in ("good", "bad")
        for seed in (0, 1)
    )


def test_other_weights_settings_and_sentences_are_judged_anew(world, tmp_path, monkeypatch):
    experiment, train, _ = world
    experiment, judged = (
        dataclasses.replace(
            experiment, arms={"good": experiment.arms["good"]}, seeds=(0,), kinds=("grey",)
        ),
        [],
    )
    monkeypatch.setattr(
        shapes_benchmark,
        "editor",
        lambda pipe, settings: lambda truth: judged.append(truth.instruction) or truth.source,
    )
    longer = {
        "good": dataclasses.replace(
            experiment.arms["good"], steps=experiment.arms["good"].steps + 1
        )
    }
    other = dataclasses.replace(experiment.settings, text_scale=3.0)
    for change in ({}, {}, {"arms": longer}, {"settings": other}, {"phrasings": (3,)}, {}):
        experiments.run(dataclasses.replace(experiment, **change), tmp_path, train)
    assert len(judged) == 2 * 4 and judged[-2:] == ["use the grey style"] * 2


def test_half_a_run_is_not_judged(world, tmp_path):
    """SIGTERM ends a run's training with a checkpoint, not the process."""
    experiment, train, trained = world

    def stopped(config):
        return train(config if len(trained) < 2 else dataclasses.replace(config, steps=7))

    with pytest.raises(
        UserError, match=r"good/1: told to stop at step 7 of \d+; run the same command to go on"
    ):
        experiments.run(experiment, tmp_path, stopped)
    assert len(json.loads((tmp_path / "outcomes.json").read_text())) == 2 and not list(
        (tmp_path / "good" / "1").glob("items-*.jsonl")
    )


def test_differences_are_told_seed_by_seed(world, tmp_path):
    """The arms' noise losses are 0.001 and 0.5 plus the seed: far apart over seeds, the same distance in each."""
    experiment, train, _ = world
    experiments.run(experiment, tmp_path, train)
    told = cells((tmp_path / "table.md").read_text(), "bad", "less good, seed by seed")
    assert (
        told["seeds"] == "2"
        and told["noise loss"] == "0.499 ± 0.000"
        and told["frame loss"] == "0.000 ± 0.000"
        and float(told["edit shown, %"].split()[0]) == -100
    )


def test_frame_losses_of_unlike_recipes_are_not_compared(world, tmp_path):
    experiment, train, _ = world
    other = dataclasses.replace(
        experiment.arms["bad"],
        loss=dataclasses.replace(experiment.arms["bad"].loss, frame_difference="none"),
    )
    experiments.run(
        dataclasses.replace(experiment, arms=experiment.arms | {"bad": other}), tmp_path, train
    )
    assert (
        "frame loss" not in (tmp_path / "table.md").read_text()
        and "noise loss" in (tmp_path / "table.md").read_text()
    )


def test_the_outcomes_are_json(world, tmp_path):
    """A perfect edit's PSNR is infinite, which JSON has no word for."""
    experiment, train, _ = world
    experiments.run(experiment, tmp_path, train)
    json.loads((tmp_path / "outcomes.json").read_text(), parse_constant=pytest.fail)


def test_interval_is_students():
    assert (
        interval([1.0, 2.0, 3.0]) == f"2.000 ± {4.303 / np.sqrt(3):.3f}"
        and interval([1.0]) == "1.000"
        and interval([1.0, None]) == "-"
    )


def cells(text: str, first: str, corner: str = "arm") -> dict[str, str]:
    """Column -> cell of the row that begins with this word, of the table with this in its corner."""
    head = [""]
    for line in text.splitlines():
        row = [cell.strip() for cell in line.split("|")[1:-1]]
        if row and row[0] == first and head[0] == corner:
            return dict(zip(head, row, strict=True))
        head = (
            row
            if row and (row[0] in ("arm", "triplets of") or row[0].startswith("less "))
            else head
        )
    raise AssertionError(f"{first} is no row of {text}")


def test_the_table_tells_how_frames_follow_each_other(world, tmp_path):
    """The perfect editor moves as the truth does; a copy of what is to become grey moves more, for it has colours."""
    experiment, train, _ = world
    experiments.run(dataclasses.replace(experiment, kinds=("grey",), count=4), tmp_path, train)
    good, bad = (cells((tmp_path / "table.md").read_text(), arm) for arm in ("good", "bad"))
    assert (
        good["frame difference less truth's"] == good["flicker"] == "0.000 ± 0.000"
        and good["warping error x1000"] == good["the truth's own"] == bad["the truth's own"]
    )
    assert (
        float(bad["flicker"].split()[0]) > 0.1
        and float(bad["warping error x1000"].split()[0])
        > float(good["warping error x1000"].split()[0])
        > 0
    )


def test_passed_clips_are_told_as_a_share_of_another_arms(world, tmp_path):
    experiment, train, _ = world
    experiments.run(dataclasses.replace(experiment, against="good"), tmp_path, train)
    shares = [
        cells((tmp_path / "table.md").read_text(), arm)["as a share of good [95%]"]
        for arm in ("good", "bad")
    ]
    assert shares == ["100% [100, 100]", "0% [0, 0]"]
    half, none = Outcome("a", 0, {}, {}, (True, False) * 20), Outcome("b", 0, {}, {}, (False,) * 40)
    whole = Outcome("b", 0, {}, {}, (True,) * 40)
    assert (
        experiments.compared([half], [whole]).startswith("50% [3")
        and experiments.compared([half], [none]) == "-"
    )
    assert experiments.compared([dataclasses.replace(half, seed=1)], [whole]) == "-", (
        "no seed in common"
    )


def test_clips_are_judged_in_the_sentences_that_are_named(world, tmp_path, monkeypatch):
    experiment, train, _ = world
    heard = []
    monkeypatch.setattr(
        shapes_benchmark,
        "editor",
        lambda pipe, settings: lambda truth: heard.append(truth.instruction) or truth.source,
    )
    experiments.run(
        dataclasses.replace(experiment, kinds=("grey",), phrasings=(3,)), tmp_path, train
    )
    assert set(heard) == {"use the grey style"}


def test_an_experiment_is_pointed_at_another_net_and_other_data():
    arms = {"own": TrainConfig(), "made": TrainConfig()}
    found = (
        Experiment("?", arms, synthesized={"made": EngineTriplets(SynthesisConfig())})
        .with_overrides("net", "folder")
        .arms
    )
    assert [(arm.model, arm.data) for arm in found.values()] == [
        ("net", ("folder",)),
        ("net", ("shapes",)),
    ]
    assert Experiment("?", arms).with_overrides(None, None).arms == arms


@pytest.mark.parametrize(
    "change", [{"against": "best"}, {"made": {"best": EngineTriplets(SynthesisConfig())}}]
)
def test_arms_that_there_are_not_are_named(change):
    with pytest.raises(UserError, match="best of made or against is no arm: a"):
        Experiment("?", {"a": TrainConfig()}, **change)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The data engine's true edits, judged by a random CLIP."""
    from tests.models.test_clip import VISION_TINY, save_clip
    from tests.support import factory

    home = tmp_path_factory.mktemp("clip")
    save_clip(home, factory.TEXT_TINY, VISION_TINY, 40)
    anything = FilterConfig(model=str(home), image=-1, text=-1, direction=-1, consistency=-1)
    return SynthesisConfig(
        output=Path("truth"),
        editor="truth",
        count=4,
        clips=ClipsConfig(frames=2, size=16, least=16),
        filter=anything,
        validation=0.3,
    )


def test_triplets_are_made_once_for_all_seeds_and_told_of(world, engine, tmp_path):
    experiment, train, _ = world
    used = {}

    def note(config):
        used.setdefault(Path(config.output).parent.name, []).append(config.data)
        return train(config)

    strict = dataclasses.replace(engine.filter, direction=0.0)
    made = {
        "good": EngineTriplets(engine),
        "bad": EngineTriplets(dataclasses.replace(engine, filter=strict)),
    }
    asked = dataclasses.replace(experiment, made=made)
    experiments.run(asked, tmp_path, note)
    folders = {arm: tmp_path / arm / "made" / "dataset" for arm in made}
    assert used == {arm: [(str(folder),)] * 2 for arm, folder in folders.items()}
    sizes = [
        sum(len(open_dataset(folder, split)) for split in open_dataset(folder).splits)
        for folder in folders.values()
    ]
    assert sizes[0] == 8 > sizes[1] > 0, "both are there, though the engine worked in one place"
    told = cells((tmp_path / "table.md").read_text(), "bad", "triplets of")
    assert (
        told["clips"] == told["with instructions"] == "4 of 4"
        and told["edits made"] == "8 of 8"
        and told["kept by the filter"] == str(sizes[1])
    )
    assert told["right [95%]"].startswith("100.0%") and told[
        "right ones that are kept [95%]"
    ].startswith(f"{100 * sizes[1] / 8:.1f}%")

    before = {
        path: path.stat().st_mtime_ns for path in tmp_path.glob("*/made/**/*") if path.is_file()
    } | {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*.jsonl")}
    experiments.run(asked, tmp_path, note)
    assert {path: path.stat().st_mtime_ns for path in before} == before, (
        "a second run makes nothing"
    )
    with pytest.raises(UserError, match="holds triplets of another recipe"):
        experiments.run(
            dataclasses.replace(
                asked, made={"good": EngineTriplets(dataclasses.replace(engine, seed=5))}
            ),
            tmp_path,
            note,
        )


def test_clips_are_told_to_show_something_else(engine, tmp_path):
    """The rules turn it into instructions, which this scene's checker knows nothing of."""
    ask = dataclasses.replace(
        engine,
        editor="shared_noise",
        instructions="rules",
        stages=("clips", "captions", "instructions"),
    )
    work, told = experiments.making.working_config(
        EngineTriplets(ask, lambda id: f"a dog on a beach, clip {id[-1]}"), tmp_path
    )
    run_stages(experiments.making.Engine(work))
    lines = [
        json.loads(line)
        for line in (tmp_path / "truth" / "instructions.jsonl").read_text().splitlines()
    ]
    assert {line["id"]: line["caption"] for line in lines} == told and len(told) == 4


@pytest.mark.slow
def test_a_made_arm_trains_from_its_cache(engine, tiny, tmp_path):
    """All real, at the size of a stamp: engine, cache, training, judging; a minute of compiling."""
    from tests.test_configs import twin

    loader = LoaderConfig(batch=4, frames=2, size=16, cached=True)
    recipe = dataclasses.replace(
        twin(TrainConfig(model="x", loader=loader), tiny, tmp_path, tmp_path), steps=2
    )
    asked = Experiment(
        "?",
        {"a": recipe},
        (0,),
        ("colour",),
        1,
        EditSettings(steps=1, size=16, frames=2),
        {"a": EngineTriplets(engine)},
        "a",
    )
    (found,) = experiments.run(asked, tmp_path / "out", real_train)
    assert len(found.passed) == 1 and np.isfinite(found.validation["noise_loss"])
    assert list((tmp_path / "out" / "a" / "made" / "dataset" / "cache").iterdir())


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_files_hold_experiments_of_equal_steps(path):
    found = runpy.run_path(str(path))["experiment"]
    assert isinstance(found, Experiment) and f"--experiment {path}" in path.read_text()
    equal = {
        (arm.model, arm.steps, dataclasses.replace(arm.loader, phrasings=()), arm.optim)
        for arm in found.arms.values()
    }
    assert len(equal) == 1 and len(found.arms) * len(found.seeds) <= 24
    for arm in found.arms.values():
        arm.check()
        arm.loader.check()
    for made in found.synthesized.values():
        made.engine.check()
        assert made.captions is None or made.captions("shapes-0-000003")
    for one, other in itertools.combinations(found.synthesized.values(), 2):
        same = one.engine.output == other.engine.output
        assert not same or (
            dataclasses.replace(one.engine, filter=other.engine.filter),
            one.captions,
        ) == (other.engine, other.captions)
