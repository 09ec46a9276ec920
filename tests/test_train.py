"""Training runs through `train()` and its command: what a run leaves behind, that it goes on to the bit, and what it refuses."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ivid2vid_jax import edit
from ivid2vid_jax import train as command
from ivid2vid_jax.evaluation.clip_scores import load_clip
from ivid2vid_jax.inference import pipeline
from ivid2vid_jax.parallel import sharding
from ivid2vid_jax.parallel.mesh import make_mesh
from ivid2vid_jax.training import init_state, pipeline_export, run_folder
from ivid2vid_jax.training.checkpoints import Checkpoints, named_leaves
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.config import TrainConfig
from ivid2vid_jax.training.loop import train
from ivid2vid_jax.training.metrics_log import MetricsLog, read_metrics
from ivid2vid_jax.training.params import flatten
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder
from tests.support.command import run_command
from tests.support.tiny_run import tiny as config_of
from tests.video.test_video import write

ROOT = Path(__file__).parents[1]
TIMES = {
    "time",
    "step_time",
    "data_wait",
    "eta",
    "clips_per_s",
    "frames_per_s_per_chip",
    "model_flops_per_s",
    "host_mib",
}

# The autoencoder compiles fastest; with a constant learning rate every number of steps is the same program.
CHEAP = dict(
    task="autoencoder",
    optim__trainable=("vae",),
    optim__schedule="constant",
    steps=8,
    checkpoint__keep=100,
)
WATCHED = dict(log__eval_every=4, log__sample_every=8, checkpoint__pipeline=True)


def cheap(run, **changes):
    return config_of(run, **CHEAP | changes)


def recipe(folder, run, changes=None) -> Path:
    """A recipe file of `cheap(run, **changes)`."""
    path = folder / "recipe.py"
    path.write_text(
        f"from tests.test_train import cheap\n\nconfig = cheap({str(run)!r}, **{changes or {}!r})\n"
    )
    return path


def train_command(capsys, *words):
    """(exit code, stderr)."""
    return run_command(capsys, TrainConfig, command.run, *words, recipe=command.recipe)[:2]


def start_process(*words) -> subprocess.Popen:
    argv = [sys.executable, "-m", "ivid2vid_jax.train", *map(str, words)]
    return subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(process, happened, seconds=300):
    """Polls until `happened()` is true; fails where the process ends first."""
    for _ in range(int(seconds / 0.005)):
        if happened():
            return
        if process.poll() is not None:
            break
        time.sleep(0.005)
    process.kill()
    pytest.fail(f"did not happen in time:\n{process.communicate()[0]}")


def files(run, *but) -> dict:
    """What a folder holds, byte for byte."""
    return {
        str(p.relative_to(run)): p.read_bytes()
        for p in run.rglob("*")
        if p.is_file() and not any(name in p.parts for name in but)
    }


def state(run, step) -> dict[str, np.ndarray]:
    """Every leaf of a checkpoint's state."""
    tree = ocp.PyTreeCheckpointer().restore(run / "checkpoints" / str(step) / "state")
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree)}


def position(run, step):
    return json.loads((run / "checkpoints" / str(step) / "data" / "metadata").read_text())


def told(run):
    """The log without what the clock says."""
    return [
        {name: value for name, value in record.items() if name not in TIMES}
        for record in read_metrics(run, "train")
    ]


def steps_of(run) -> list[int]:
    """Complete checkpoints; orbax renames a folder when it is whole."""
    return sorted(
        int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal()
    )


def same_state(run, other, step):
    """The two runs' checkpoints of a step are the same, bit for bit: parameters, EMA, optimiser state, key, position of the data."""
    one, two = state(run, step), state(other, step)
    assert one.keys() == two.keys() and {name.split("/")[0] for name in one} == {
        "step",
        "params",
        "opt_state",
        "ema",
        "key",
    }
    assert [name for name in one if one[name].tobytes() != two[name].tobytes()] == []
    assert int(one["step"]) == step and position(run, step) == position(other, step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never interrupted: (RUN, number of programs compiled by the end of each step)."""
    run, compiled, counts = tmp_path_factory.mktemp("whole") / "run", [], {}
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    with pytest.MonkeyPatch.context() as patch:
        asked = Checkpoints.preempted
        patch.setattr(
            Checkpoints,
            "preempted",
            lambda self, step: counts.update({step: len(compiled)}) or asked(self, step),
        )
        assert train(cheap(run, **WATCHED)) == run
    return run, counts


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of that run, to go on with or to harm."""
    return Path(shutil.copytree(whole[0], tmp_path / "run"))


def test_what_a_run_leaves_behind(whole):
    run, _ = whole
    assert json.loads((run / "config.json").read_text()) == run_folder.to_jsonable(
        cheap(run, **WATCHED)
    )
    assert steps_of(run) == [2, 4, 6, 8]
    assert {"state", "data", "meta"} <= {p.name for p in (run / "checkpoints" / "8").iterdir()}
    assert [record["step"] for record in read_metrics(run, "train")] == list(range(1, 9))
    assert [record["step"] for record in read_metrics(run, "validation")] == [4, 8]
    assert {
        "loss",
        "l1",
        "kl",
        "lr",
        "grad_norm",
        "update_norm",
        "param_norm",
        "data_wait",
    } <= read_metrics(run, "train")[-1].keys()
    assert {p.suffix for p in (run / "samples" / "8").iterdir()} == {".gif", ".png"}
    assert (run / "tokenizer" / "vocab.json").is_file() and position(run, 8)["step"] == 8


def test_the_pipeline_holds_the_average_and_a_measured_scaling_factor(whole):
    run, _ = whole
    folder, kept = open_pipeline_folder(run / "pipeline"), state(run, 8)
    weights = flatten(load_params(folder))
    averages = {
        name.removeprefix("ema/"): leaf for name, leaf in kept.items() if name.startswith("ema/")
    }
    assert averages and all(name.startswith("vae/") for name in averages)
    assert all(np.array_equal(weights[name], leaf) for name, leaf in averages.items())
    assert any(not np.array_equal(kept[f"params/{name}"], leaf) for name, leaf in averages.items())
    square = read_metrics(run, "validation")[-1]["latent_square"]
    assert folder.vae.scaling_factor == round(square**-0.5, 5) != 1


def test_nothing_compiles_after_the_first_step(whole):
    """At the end of step 2 nothing is new; the first save (checksums, the scaling factor) has programs of its own, later ones do not."""
    _, counts = whole
    assert counts[1] > 0 and counts[2] == counts[1]
    assert counts[3] > counts[2] and counts[8] == counts[3]


def test_a_finished_run_says_so_and_changes_nothing(whole, tmp_path):
    """By the real command, from the repository's root; asked for fewer steps than it has, likewise."""
    run, before = whole[0], files(whole[0])
    process = start_process("--config", recipe(tmp_path, run, WATCHED))
    assert (
        "is at step 8 of 8 already; give more --steps" in process.communicate(timeout=120)[0]
        and process.returncode == 0
    )
    assert files(run) == before
    shutil.copytree(run, copy := tmp_path / "run")
    train(cheap(copy, **WATCHED, steps=6))
    before.pop("config.json")
    assert {name: held for name, held in files(copy).items() if name != "config.json"} == before


def stop_at(patch, step):
    """SIGTERM to this process when a step is logged, which is while the next one is computed."""
    tell = MetricsLog.write

    def tell_and_stop(self, at, values, kind="train"):
        tell(self, at, values, kind)
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(MetricsLog, "write", tell_and_stop)


def test_a_run_killed_between_checkpoint_and_pipeline_writes_the_pipeline_when_started_again(
    whole, copy, monkeypatch
):
    """Finished or not; with the weights of the last checkpoint and, though no validation is asked for, a measured scaling factor."""
    wanted = open_pipeline_folder(copy / "pipeline").vae.scaling_factor
    unwatched = dict(WATCHED, log__eval_every=0, log__sample_every=0)

    def killed(*_):
        raise KeyboardInterrupt

    for steps in (8, 10):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pipeline_export, "write_pipeline", killed)
            shutil.rmtree(copy / "pipeline", ignore_errors=True) if steps == 8 else None
            train(cheap(copy, steps=steps, **unwatched))
        assert (
            pipeline_export.exported_step(copy) == (None if steps == 8 else 8)
            and steps_of(copy)[-1] == steps
        )
        train(cheap(copy, steps=steps, **unwatched))
        kept, weights = (
            state(copy, steps),
            flatten(load_params(open_pipeline_folder(copy / "pipeline"))),
        )
        assert pipeline_export.exported_step(copy) == steps
        assert all(
            np.array_equal(leaf, kept[f"ema/{name}"])
            for name, leaf in weights.items()
            if name.startswith("vae/")
        )
        factor = open_pipeline_folder(copy / "pipeline").vae.scaling_factor
        assert factor == wanted if steps == 8 else factor not in (1.0, wanted)


def test_stopped_and_prolonged_equals_uninterrupted(whole, tmp_path, monkeypatch):
    run, handler = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        train(cheap(run, checkpoint__every=100, steps=6))
    assert steps_of(run) == [3] and told(run) == told(whole[0])[:3]
    assert signal.getsignal(signal.SIGTERM) == handler
    train(cheap(run))
    assert steps_of(run) == [3, 4, 6, 8]
    for step in (4, 6, 8):
        same_state(run, whole[0], step)
    assert told(run) == told(whole[0])


def test_killed_within_a_save_it_goes_on_from_the_last_whole_checkpoint(whole, tmp_path):
    run = tmp_path / "run"
    process = start_process("--config", recipe(tmp_path, run, dict(checkpoint__wait=True)))
    folder = run / "checkpoints"
    wait_for(
        process,
        lambda: (folder / "2").is_dir() and any("tmp" in path.name for path in folder.iterdir()),
    )
    process.kill()
    process.wait()
    left, logged = steps_of(run), len(told(run))
    assert left and left[-1] < 8 and logged - left[-1] <= 2, (left, logged)  # one interval
    train(cheap(run))
    same_state(run, whole[0], 8)
    assert told(run) == told(whole[0])


def harm(run, step, how) -> None:
    """Harms the file that holds the arrays."""
    file = max(
        (run / "checkpoints" / str(step) / "state" / "d").iterdir(),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if how == "flipped" else content[: len(content) // 2])


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_taken_when_asked(
    whole, copy, tmp_path, capsys, how
):
    harm(copy, 8, how)
    before, path = files(copy, "config.json"), recipe(tmp_path, copy)
    code, err = train_command(capsys, "--config", path, "--steps", "10")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert str(copy / "checkpoints" / "8") in err and err.rstrip().endswith("--resume 6")
    assert files(copy, "config.json") == before
    if how == "flipped":
        code, err = train_command(capsys, "--config", path, "--resume", "6")
        assert code == 0, err
        assert (copy / "checkpoints" / "8.discarded").is_dir()
        same_state(copy, whole[0], 8)
        assert told(copy) == told(whole[0])


def test_a_broken_state_stops_the_run_and_is_never_saved(
    whole, copy, tmp_path, capsys, monkeypatch
):
    """The parameters that step 9 leaves behind are no numbers: step 10 finds out, and would have been saved."""
    call = CompiledStep.__call__

    def poison(self, state, frozen, batch):
        after, metrics = call(self, state, frozen, batch)
        with jax.transfer_guard("allow"):
            return after.replace(params=jax.tree.map(lambda x: x * jnp.nan, after.params)), metrics

    monkeypatch.setattr(CompiledStep, "__call__", poison)
    before = files(copy / "checkpoints")
    code, err = train_command(capsys, "--config", recipe(tmp_path, copy), "--steps", "12")
    assert (
        code == 2
        and "step 10: " in err
        and "loss nan" in err
        and "the last good checkpoint is of step 8;" in err
    ), err
    assert files(copy / "checkpoints") == before and told(copy)[-1]["step"] == 9


def test_implicit_transfers_are_forbidden_in_the_loop(copy, monkeypatch):
    """Red where a batch reaches the device by itself."""
    put, calls = sharding.put_batch, []
    monkeypatch.setattr(
        sharding,
        "put_batch",
        lambda batch, mesh: calls.append(0) or (put(batch, mesh) if len(calls) == 1 else batch),
    )
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(cheap(copy, steps=12))
    assert len(calls) == 2


REFUSED = [
    (["--optim.lrr", "1"], "--optim.lr"),
    (["--chekpoint.every", "2"], "--checkpoint.every"),
    (["--steps", "many"], "--steps"),
    (["--optim.schedule", "step"], "cosine"),
    (["--steps", "0"], "--steps 0 must be between 1"),
    (["--seed", "-1"], "--seed -1"),
    (["--optim.lr", "1000"], "--optim.lr 1000.0 must be between"),
    (["--optim.ema", "1"], "--optim.ema 1.0"),
    (["--optim.warmup", "9"], "--optim.warmup 9 must be between 0 and 8"),
    (["--drop.text", "-0.1"], "must not be negative"),
    (["--drop.text", "1"], "--drop.text + drop.both + drop.video"),
    (["--optim.accumulation", "3"], "not a multiple of --optim.accumulation 3"),
    (["--optim.lr", "nan"], "--optim.lr nan"),
    (["--checkpoint.every", "0"], "--checkpoint.every 0"),
    (["--optim.trainable", "uned"], "'uned' picks no parameter"),
    (["--optim.trainable", "("], "nor a regular expression"),
    (["--loader.size", "20"], "size 20 must be a multiple of 8"),
    (["--data", "/no/where"], "/no/where: no such dataset folder"),
    (["--model", "/no/where"], "/no/where: no such model folder"),
    (["--resume", "3"], "--resume 3"),
    (["--mesh.fsdp", "3"], "--mesh"),
    (["--net.text-encoder.vocab-size", "100"], "vocab-size 100 must be at least 514"),
]


@pytest.mark.parametrize(("more", "message"), REFUSED, ids=[" ".join(more) for more, _ in REFUSED])
def test_bad_values_are_refused_by_name(tmp_path, capsys, more, message):
    run = tmp_path / "run"
    code, err = train_command(capsys, "--config", recipe(tmp_path, run), *more)
    assert code == 2 and message in err and "Traceback" not in err, err
    assert not (run / "metrics.jsonl").exists() and not (run / "checkpoints" / "2").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = TrainConfig(stepz=3)", "did you mean 'steps'?"),
        ("config = TrainConfig(optim=OptimConfig(warm_up=3))", "did you mean 'warmup'?"),
        ("confg = TrainConfig()", "says no `config = TrainConfig(...)`"),
        ("config = dict(steps=3)", "says no `config = TrainConfig(...)`"),
        ("config = TrainConfig(", "cannot be run (SyntaxError"),
        ("import no_such_module", "cannot be run (ModuleNotFoundError"),
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
    assert (
        code == 2 and message in err and err.startswith("error: --config ") and err.count("\n") == 1
    ), err
    assert not (tmp_path / "run").exists()


def test_a_recipe_option_without_a_path(capsys):
    code, err = train_command(capsys, "--config")
    assert code == 2 and "--config needs the path of a recipe file" in err


def test_folders_that_are_not_this_runs_are_refused(whole, tmp_path, capsys):
    """Another config, a run under way, a file, something else's folder."""
    path, before = recipe(tmp_path, whole[0]), files(whole[0])
    code, err = train_command(
        capsys, "--config", path, "--optim.lr", "0.5", "--seed", "1", "--loader.workers", "2"
    )
    assert (
        code == 2
        and "--optim.lr was 0.001, is 0.5; --seed was 0, is 1)" in err
        and "loader" not in err
    ), err
    with run_folder.locked_run(whole[0], cheap(whole[0], **WATCHED)):
        code, err = train_command(capsys, "--config", path)
        assert code == 2 and "another process is training there" in err
    (tmp_path / "file").write_text("x")
    code, err = train_command(capsys, "--config", path, "--output", tmp_path / "file")
    assert code == 2 and "is a file; name a folder" in err
    code, err = train_command(capsys, "--config", path, "--output", tmp_path)
    assert code == 2 and "is a folder of something else" in err
    assert files(whole[0]) == before and sorted(p.name for p in tmp_path.iterdir()) == [
        "file",
        "recipe.py",
    ]


def test_what_an_older_release_did_not_record_is_the_default(tmp_path):
    before, now = (run_folder.to_jsonable(TrainConfig()) for _ in range(2))
    del before["drop"], before["net"]["clip"]
    run_folder.check_same_config(tmp_path, before, now)
    with pytest.raises(UserError, match="--drop.both was 0.05, is 0.2"):
        run_folder.check_same_config(
            tmp_path, before, now | {"drop": {"text": 0.05, "both": 0.2, "video": 0.05}}
        )


@pytest.fixture(scope="module")
def edited(tiny, tmp_path_factory):
    """An editor that starts from a model: two steps of its new temporal layers alone."""
    folder = tmp_path_factory.mktemp("edited")
    model = shutil.copytree(tiny, folder / "model")
    config = config_of(
        folder / "run",
        model=str(model),
        net__temporal=("conv",),
        optim__trainable=("temporal",),
        steps=2,
        checkpoint__pipeline=True,
    )
    train(config)
    return config


def test_frozen_weights_leave_as_they_came(edited):
    ours, theirs = (
        flatten(load_params(open_pipeline_folder(path)))
        for path in (Path(edited.output) / "pipeline", edited.model)
    )
    assert len(theirs) > 100 and all(
        np.asarray(ours[name]).tobytes() == np.asarray(leaf).tobytes()
        for name, leaf in theirs.items()
    )
    fresh, kept = ours.keys() - theirs.keys(), state(Path(edited.output), 2)
    assert fresh and all("temp_convs" in name for name in fresh)
    assert {name.removeprefix("ema/") for name in kept if name.startswith("ema/")} == fresh
    assert all(np.array_equal(ours[name], kept[f"ema/{name}"]) for name in fresh)
    assert any(
        np.any(ours[name]) for name in fresh if "conv4" in name and name.endswith("kernel")
    )  # zero before training


@pytest.mark.parametrize("kinds", [("conv",), ("attention",), ()])
def test_fresh_temporal_layers_take_the_place_of_the_models_own(edited, tmp_path, kinds):
    """The net is inflated anew: the 2D weights stay, and the layers that its first training made are gone."""
    config = config_of(
        tmp_path, model=edited.output, net__temporal=kinds, net__reinit_temporal=True
    )
    folder, source = init_state.plan_networks(config, lambda: (), tmp_path)
    begun = init_state.load_initial_weights(config, folder, source, make_mesh(config.mesh))
    ours, theirs = (
        begun.trained | begun.frozen,
        flatten(load_params(open_pipeline_folder(edited.model))),
    )
    assert folder.unet.temporal == kinds
    assert all(np.array_equal(ours[name], leaf) for name, leaf in theirs.items())
    fresh = ours.keys() - theirs.keys()
    assert bool(fresh) == bool(kinds) and not any(
        np.any(ours[name])
        for name in fresh
        if name.endswith("kernel") and ("conv4" in name or "proj_out" in name)
    )
    pipeline_export.write_pipeline(tmp_path / "run", 1, folder, source, begun.trained, begun.frozen)
    assert (
        flatten(load_params(open_pipeline_folder(tmp_path / "run" / "pipeline"))).keys()
        == ours.keys()
    )
    with pytest.raises(
        UserError, match="unexpected .*temp"
    ):  # without the word, stray temporal weights are refused as before
        stray = dataclasses.replace(source, is_excluded=None)
        init_state.load_initial_weights(
            config_of(tmp_path, model=edited.output, net__temporal=kinds),
            folder,
            stray,
            make_mesh(config.mesh),
        )


def test_fresh_temporal_layers_must_be_named(edited, tmp_path):
    with pytest.raises(UserError, match="--net.reinit-temporal: say which"):
        init_state.plan_networks(
            config_of(tmp_path, model=edited.output, net__temporal=None, net__reinit_temporal=True),
            lambda: (),
            tmp_path,
        )


@pytest.mark.parametrize(("kinds", "given", "seen"), [(None, 1, 2), (None, 3, 3), ((), 1, 1)])
def test_still_images_leave_the_window_of_a_video_editor(edited, tmp_path, kinds, given, seen):
    folder, _ = init_state.plan_networks(
        config_of(tmp_path, model=edited.output, net__temporal=kinds, loader__frames=given),
        lambda: (),
        tmp_path,
    )
    assert folder.unet.num_frames == folder.sampling["frames"] == seen


def test_a_run_edits_clips(edited, tmp_path, capsys):
    clip, out = write(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    words = [
        "--model",
        edited.output,
        "--video",
        clip,
        "--output",
        out,
        "--instruction",
        "make it red",
        "--steps",
        "2",
    ]
    code, err, _ = run_command(capsys, edit.EditArgs, edit.run, *words)
    assert code == 0, err
    record = json.loads((tmp_path / "out.mp4.json").read_text())
    assert out.is_file() and record["settings"]["size"] == 16 and record["settings"]["frames"] == 2
    assert pipeline.load(edited.output).folder.unet.temporal == ("conv",)


def test_a_run_whose_origin_changed_is_not_gone_on_with(edited, tmp_path):
    run, model = tmp_path / "run", Path(edited.model)
    shutil.copytree(edited.output, run)
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    before = files(run, "config.json")
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        config = config_of(
            run,
            model=str(model),
            net__temporal=("conv",),
            optim__trainable=("temporal",),
            steps=4,
        )
        with pytest.raises(
            UserError,
            match=r"the weights it started from have changed .*vae/diffusion_pytorch_model.safetensors\); put the old ones back",
        ):
            train(config)
    finally:
        file.write_bytes(content)
    assert files(run, "config.json") == before


def test_a_clip_is_trained_and_scores(tmp_path):
    """From scratch, gone on with, then from that run's own average."""
    run = tmp_path / "clip"
    options = dict(
        task="clip",
        optim__trainable=("clip",),
        loader__frames=1,
        checkpoint__pipeline=True,
        optim__schedule="constant",
    )
    train(config_of(run, steps=2, **options))
    train(config_of(run, steps=4, log__eval_every=4, **options))
    lines = read_metrics(run, "train")
    assert (
        [line["step"] for line in lines] == [1, 2, 3, 4]
        and {"retrieved", "scale"} <= lines[-1].keys()
        and "retrieved" in read_metrics(run, "validation")[-1]
    )
    found = load_clip(run)
    averages = {
        name.removeprefix("ema/"): leaf
        for name, leaf in state(run, 4).items()
        if name.startswith("ema/")
    }
    weights = flatten({"clip": found.params})
    assert weights.keys() == averages.keys() and all(
        np.array_equal(weights[name], leaf) for name, leaf in averages.items()
    )
    images, texts = found.images(np.zeros((3, 20, 16, 3), np.uint8)), found.texts(["a red circle"])
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    assert (images @ texts.T).shape == (3, 1)
    train(
        config_of(
            tmp_path / "again",
            model=str(run),
            steps=1,
            **options | dict(optim__lr=0.0, optim__warmup=0),
        )
    )
    again = flatten({"clip": load_clip(tmp_path / "again").params})
    assert all(np.allclose(again[name], leaf, rtol=1e-6) for name, leaf in weights.items())
    with pytest.raises(UserError, match="takes images of 16 pixels"):
        train(
            config_of(
                tmp_path / "none",
                model=str(run),
                steps=1,
                **options | dict(loader__size=24, optim__warmup=0),
            )
        )
