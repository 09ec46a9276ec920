"""The train command: options, recipes, and what it refuses."""

import dataclasses
import sys

import pytest
from jax.sharding import AbstractMesh

from ivid2vid_jax import train as command
from ivid2vid_jax.data.config import LoaderConfig
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel.mesh import AXES
from ivid2vid_jax.training import loop, run_folder
from ivid2vid_jax.training.config import DEFAULT, RENAMED, TrainConfig
from ivid2vid_jax.training.train_setup import single_frames_note
from ivid2vid_jax.utils import cli
from tests.support.command import run_command
from tests.support.train_runs import cheap, train_command, write_recipe

REFUSED = [
    (["--optim.lrr", "1"], "--optim.lr"),
    (["--chekpoint.every", "2"], "--checkpoint.every"),
    (["--steps", "many"], "--steps"),
    (["--optim.schedule", "step"], "cosine"),
    (["--steps", "0"], "--steps 0 must be between 1"),
    (["--seed", "-1"], "--seed -1"),
    (["--optim.lr", "1000"], "--optim.lr 1000.0 must be between"),
    (["--optim.ema", "1"], "--optim.ema 1.0"),
    (["--optim.warmup", "9"], "--optim.warmup 9 is longer than the run, --steps 8"),
    (["--drop.text", "-0.1"], "must not be negative"),
    (["--drop.text", "1"], "--drop.text + drop.both + drop.video"),
    (["--optim.accumulation", "3"], "not a multiple of --optim.accumulation 3"),
    (["--optim.lr", "nan"], "--optim.lr nan"),
    (["--checkpoint.every", "0"], "--checkpoint.every 0"),
    (["--optim.trainable", "uned"], "'uned' matches no parameter"),
    (["--optim.trainable", "("], "nor a regular expression"),
    (["--loader.size", "20"], "--loader.size 20 must be a multiple of 8"),
    (["--data", "/no/where"], "/no/where: no such dataset folder"),
    (["--model", "/no/where"], "/no/where: no such model folder"),
    (["--resume", "3"], "--resume 3"),
    (["--mesh.fsdp", "3"], "--mesh"),
    (["--net.text-encoder.vocab-size", "100"], "vocab-size 100 must be at least 514"),
]


@pytest.mark.parametrize(("argv", "message"), REFUSED, ids=[" ".join(argv) for argv, _ in REFUSED])
def test_bad_values_are_refused_by_name(tmp_path, capsys, argv, message):
    run = tmp_path / "run"
    code, err = train_command(capsys, "--config", write_recipe(tmp_path, run), *argv)
    assert code == 2 and message in err and "Traceback" not in err, err
    assert not (run / "metrics.jsonl").exists() and not (run / "checkpoints" / "2").exists()
    if " must be between" in message or argv[0].startswith("--loader."):
        assert not run.exists()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((3, 1, 1), "--loader.batch 8 is not a multiple"), ((1, 1, 3), "frames are not a multiple")],
)
def test_a_batch_that_the_mesh_cannot_split_is_refused_before_anything_is_made(
    tmp_path, capsys, monkeypatch, sizes, message
):
    """Also before the benchmark, which takes minutes."""
    monkeypatch.setattr(loop, "make_mesh", lambda config: AbstractMesh(sizes, AXES))
    editor = dict(task="edit", optim__trainable=("unet",), loader__batch=8)
    recipe = write_recipe(tmp_path, tmp_path / "run", editor)
    code, err = train_command(capsys, "--config", recipe, "--log.benchmark", "4")
    assert code == 2 and message in err and "Traceback" not in err, err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = TrainConfig(stepz=3)", "did you mean 'steps'?"),
        ("config = TrainConfig(optim=OptimConfig(warm_up=3))", "did you mean 'warmup'?"),
        ("confg = TrainConfig()", "config = TrainConfig("),
        ("config = dict(steps=3)", "config = TrainConfig("),
        ("config = TrainConfig(", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("config = TrainConfig(steps='many')", "steps 'many' must be int"),
        ("config = TrainConfig(optim=OptimConfig(lr='fast'))", "optim.lr 'fast' must be float"),
        ("config = TrainConfig(data='shapes')", "data 'shapes' must be tuple[str, ...]"),
        (
            "config = TrainConfig(optim=OptimConfig(schedule='step'))",
            "optim.schedule 'step' must be",
        ),
        ("config = TrainConfig(resume=True)", "resume True must be int | None"),
        ("config = TrainConfig(optim=None)", "optim None must be OptimConfig"),
        (None, "no such file; did you mean"),
    ],
)
def test_bad_recipes_are_refused_by_name(tmp_path, capsys, text, message):
    path = tmp_path / "recipe.py"
    path.write_text(f"from ivid2vid_jax.training.config import OptimConfig, TrainConfig\n{text}\n")
    path = path if text else tmp_path / "recpie.py"
    code, err = train_command(capsys, "--config", path, "--output", tmp_path / "run")
    assert code == 2 and message in err, err
    assert err.startswith("error: --config ") and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


def test_help_names_the_recipe_option(capsys):
    code, _, out = run_command(capsys, TrainConfig, command.run, "--help", recipe=command.recipe)
    assert code == 0 and "--config FILE" in out and "--optim.grad-clip" in out


def test_a_recipe_option_without_a_path(capsys):
    code, err = train_command(capsys, "--config")
    assert code == 2 and "--config needs the path of a recipe file" in err


X0, PLAIN = DEFAULT, TrainConfig()  # with and without loss.x0_weighting
OLD_AND_NEW = [
    (PLAIN, "--loss.clean", "--loss.x0-weighting", "loss", "x0_weighting", True),
    (X0, "--loss.no-clean", "--loss.no-x0-weighting", "loss", "x0_weighting", False),
    (PLAIN, "--net.fresh-temporal", "--net.reinit-temporal", "net", "reinit_temporal", True),
    (PLAIN, "--net.fresh_temporal", "--net.reinit_temporal", "net", "reinit_temporal", True),
    (PLAIN, "--log.judge 3", "--log.benchmark 3", "log", "benchmark", 3),
    (PLAIN, "--log.judge=3", "--log.benchmark=3", "log", "benchmark", 3),
    (PLAIN, "--optim.clip 3", "--optim.grad-clip 3", "optim", "grad_clip", 3),
]


@pytest.mark.parametrize(
    ("default", "old", "new", "part", "field", "value"),
    OLD_AND_NEW,
    ids=[old for _, old, *_ in OLD_AND_NEW],
)
def test_option_names_of_release_0_1(monkeypatch, caplog, default, old, new, part, field, value):
    """An old name sets the renamed field, with a warning that names the new option."""
    assert getattr(getattr(default, part), field) != value
    configs, warnings = [], []
    for argv in (old, new):
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["train", *argv.split()])
        cli.main(TrainConfig, configs.append, command.recipe, default, RENAMED)
        warnings.append([record for record in caplog.records if record.levelname == "WARNING"])
    assert configs[0] == configs[1] and getattr(getattr(configs[0], part), field) == value
    (warning,), none = warnings
    option = new.replace("=", " ").split()[0].replace("_", "-")
    assert option in warning.getMessage() and not none


def test_old_names_in_config_json_are_the_new_fields(tmp_path):
    """0.1 recorded loss.clean: the same value passes, another is named by its new option."""
    now = run_folder.to_jsonable(cheap(tmp_path, loss__x0_weighting=True))
    before = run_folder.to_jsonable(cheap(tmp_path, loss__x0_weighting=True))
    for old, new in RENAMED.items():
        part, _, old_field = old.partition(".")
        before[part][old_field] = before[part].pop(new.partition(".")[2])
    run_folder.check_same_config(tmp_path, before, now)
    before["loss"]["clean"] = False
    with pytest.raises(UserError, match=r"--loss\.x0-weighting was False, is True"):
        run_folder.check_same_config(tmp_path, before, now)


def test_fields_that_an_older_release_did_not_record_count_as_defaults(tmp_path):
    before, now = (run_folder.to_jsonable(TrainConfig()) for _ in range(2))
    del before["drop"], before["net"]["clip"]
    run_folder.check_same_config(tmp_path, before, now)
    with pytest.raises(UserError, match=r"--drop\.both was 0\.05, is 0\.2"):
        run_folder.check_same_config(
            tmp_path, before, now | {"drop": {"text": 0.05, "both": 0.2, "video": 0.05}}
        )


def test_training_on_single_frames_of_clips_is_noted():
    on_clips = dataclasses.replace(DEFAULT, loader=LoaderConfig(images=0.9))
    of_images = dataclasses.replace(DEFAULT, loader=LoaderConfig(images=1.0, frames=1))
    autoencoder = dataclasses.replace(DEFAULT, task="autoencoder")
    assert "--loader.images 0 " in single_frames_note(DEFAULT, [True, False])
    assert single_frames_note(DEFAULT, [True]) == ""
    for config in (on_clips, of_images, autoencoder):
        assert single_frames_note(config, [False]) == ""
