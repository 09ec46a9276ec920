"""What a run leaves behind; stopped, killed and damaged runs resume bit for bit or are refused."""

import json
import logging
import os
import shutil
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.parallel import sharding
from ivid2vid_jax.training import pipeline_export, run_folder
from ivid2vid_jax.training.checkpoints import Checkpoints
from ivid2vid_jax.training.compiled_step import CompiledStep
from ivid2vid_jax.training.export_run import export_run
from ivid2vid_jax.training.hooks import Benchmark
from ivid2vid_jax.training.loop import train
from ivid2vid_jax.training.metrics_log import MetricsLog, read_metrics
from ivid2vid_jax.training.params import flatten
from ivid2vid_jax.training.samples import Samples
from ivid2vid_jax.weights import hub
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder
from tests.support.command import start_command, wait_for
from tests.support.train_runs import (
    WATCHED,
    assert_same_checkpoint,
    cheap,
    complete_steps,
    file_contents,
    loader_position,
    reproducible_metrics,
    saved_ema,
    saved_state,
    train_command,
    write_recipe,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(RUN, number of programs compiled by the end of each step) of a run of 8 steps."""
    run, compiled, counts = tmp_path_factory.mktemp("uninterrupted") / "run", [], {}
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    preempted = Checkpoints.preempted

    def counting(self, step):
        counts[step] = len(compiled)
        return preempted(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "preempted", counting)
        assert train(cheap(run, **WATCHED)) == run
    return run, counts


@pytest.fixture(scope="module")
def reference(uninterrupted):
    """The RUN folder of the uninterrupted run; tests do not change it."""
    return uninterrupted[0]


@pytest.fixture
def copy(reference, tmp_path):
    """A copy of that RUN folder, to resume or to damage."""
    return Path(shutil.copytree(reference, tmp_path / "run"))


def test_files_of_a_run(reference):
    config = json.loads((reference / "config.json").read_text())
    assert config == run_folder.to_jsonable(cheap(reference, **WATCHED))
    assert run_folder.read_config(reference) == cheap(reference, **WATCHED)
    assert complete_steps(reference) == [2, 4, 6, 8]
    items = {path.name for path in (reference / "checkpoints" / "8").iterdir()}
    assert {"state", "data", "meta"} <= items
    metrics = read_metrics(reference, "train")
    assert [record["step"] for record in metrics] == list(range(1, 9))
    assert [record["step"] for record in read_metrics(reference, "validation")] == [4, 8]
    names = {"loss", "l1", "kl", "lr", "grad_norm", "update_norm", "param_norm", "data_wait"}
    assert names <= metrics[-1].keys()
    assert {path.suffix for path in (reference / "samples" / "8").iterdir()} == {".gif", ".png"}
    assert (reference / "tokenizer" / "vocab.json").is_file()
    assert loader_position(reference, 8)["step"] == 8


def test_the_pipeline_holds_the_average_and_a_measured_scaling_factor(reference):
    folder, state = open_pipeline_folder(reference / "pipeline"), saved_state(reference, 8)
    weights, averages = flatten(load_params(folder)), saved_ema(reference, 8)
    assert averages and all(name.startswith("vae/") for name in averages)
    assert all(np.array_equal(weights[name], leaf) for name, leaf in averages.items())
    assert any(not np.array_equal(state[f"params/{name}"], leaf) for name, leaf in averages.items())
    square = read_metrics(reference, "validation")[-1]["latent_square"]
    assert folder.vae.scaling_factor == round(square**-0.5, 5) != 1


def test_nothing_compiles_after_the_first_step(uninterrupted):
    """Except checksums at step 2 and the validation at step 4, the first of their kind."""
    _, counts = uninterrupted
    assert counts[1] > 0 and counts[2] == counts[1]
    assert counts[4] == counts[3] > counts[2]
    assert counts[8] == counts[5] > counts[4]


def test_a_finished_run_says_so_and_changes_nothing(reference, tmp_path):
    """By the command in a process of its own; likewise if fewer steps are asked for than done."""
    before = file_contents(reference)
    process = start_command("train", "--config", write_recipe(tmp_path, reference, WATCHED))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "is at step 8 of 8 already; give more --steps" in output
    assert file_contents(reference) == before
    shutil.copytree(reference, copy := tmp_path / "run")
    train(cheap(copy, **WATCHED, steps=6))
    after = file_contents(copy)
    del before["config.json"], after["config.json"]
    assert after == before


def stop_when_logging(patch, step, number=signal.SIGTERM):
    """Sends a signal to this process when a step is logged, that is while the next one runs."""
    write = MetricsLog.write

    def write_and_stop(self, at, values, kind="train"):
        write(self, at, values, kind)
        if at == step:
            os.kill(os.getpid(), number)

    patch.setattr(MetricsLog, "write", write_and_stop)


def test_the_pipeline_is_written_at_its_interval_and_at_the_end(reference, tmp_path, monkeypatch):
    """Not at each checkpoint; a stop does not write it, and its command does."""
    written, write_pipeline = [], pipeline_export.write_pipeline
    thread = threading.current_thread()

    def record(run, step, *rest):
        assert threading.current_thread() is not thread, "it must not hold up the steps"
        written.append(step)
        write_pipeline(run, step, *rest)

    monkeypatch.setattr(pipeline_export, "write_pipeline", record)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_when_logging(patch, 4)
        train(cheap(run, checkpoint__pipeline=True))
    assert complete_steps(run) == [2, 4, 5] and written == []
    message = f"step 5: python -m ivid2vid_jax.convert pipeline {run}"
    with pytest.raises(UserError, match=message):
        hub.resolve_model(str(run))
    assert export_run(str(run)) == (run / "pipeline", 5) and written == [5]
    averages = saved_ema(run, 5)
    weights = flatten(load_params(open_pipeline_folder(hub.resolve_model(run))))
    assert all(np.array_equal(weights[name], leaf) for name, leaf in averages.items())
    train(cheap(run, checkpoint__pipeline=True, checkpoint__pipeline_every=3))
    assert written == [5, 6, 8] and pipeline_export.exported_step(run) == 8
    assert_same_checkpoint(run, reference, 8)


def test_the_copy_for_the_background_is_not_changed_by_later_steps():
    """On a CPU, where numpy views the memory that is donated to the next step."""
    update = jax.jit(lambda x: x + 1, donate_argnums=0)
    trained = {"unet/kernel": update(jnp.zeros(1000))}
    weights = pipeline_export.Weights.collect(trained, {}, None)
    for _ in range(3):
        trained["unet/kernel"] = update(trained["unet/kernel"])
    assert np.array_equal(weights.arrays["unet/kernel"], np.ones(1000))


def test_a_pipeline_that_cannot_be_written_ends_the_run_after_its_checkpoint(tmp_path, monkeypatch):
    """The error of the background is raised, with the way out; the next start makes up for it."""
    run = tmp_path / "run"

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline_export, "save_folder", fail)
        with pytest.raises(UserError, match=r"pipeline of step 2 could not.*No space left.*disk"):
            train(cheap(run, steps=2, checkpoint__pipeline=True))
    assert complete_steps(run) == [2] and pipeline_export.exported_step(run) is None
    train(cheap(run, steps=2, checkpoint__pipeline=True))
    assert pipeline_export.exported_step(run) == 2


SLOW_EXPORT = """
import time
from ivid2vid_jax.weights import pipeline_folder

def write_half(self, path, *_):
    (path / "unet").mkdir()
    (path / "unet" / "half.safetensors").write_bytes(b"half")
    time.sleep(600)

pipeline_folder.PipelineFolder.write = write_half
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["while writing", "while replacing"])
def test_a_kill_during_the_background_export_loses_nothing(reference, tmp_path, killed):
    """Steps go on during the export; afterwards there is no half of a pipeline."""
    run, last = tmp_path / "run", 3 if killed == "while writing" else 4
    changes = dict(checkpoint__pipeline=True, checkpoint__pipeline_every=2, checkpoint__wait=True)
    recipe = write_recipe(tmp_path, run, changes)
    recipe.write_text(recipe.read_text() + SLOW_EXPORT)
    if killed == "while replacing":
        train(cheap(run, **changes | dict(steps=2)))
    process = start_command("train", "--config", recipe, "--steps", last)
    # The export of step 2 hangs while step 3 is made and saved, or that of the last step 4.
    wait_for(process, lambda: run.is_dir() and (run / "checkpoints" / str(last)).is_dir())
    wait_for(process, lambda: any(run.glob(".tmp-*/unet/half.safetensors")))
    process.kill()
    process.wait()
    assert complete_steps(run) == [2, last]
    if killed == "while replacing":
        assert pipeline_export.exported_step(run) == 2
        (run / "pipeline").rename(run / ".old-1-0")  # as if it was killed between the two renames
    run_folder.recover_replaced(run / "pipeline")
    assert pipeline_export.exported_step(run) == (None if killed == "while writing" else 2)
    train(cheap(run, **changes))
    assert pipeline_export.exported_step(run) == 8
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert_same_checkpoint(run, reference, 8)
    assert reproducible_metrics(run) == reproducible_metrics(reference)


@pytest.mark.slow
def test_a_run_killed_between_checkpoint_and_pipeline_writes_the_pipeline_on_restart(
    copy, monkeypatch
):
    """Finished or not; with the weights of the last checkpoint and a measured scaling factor."""
    expected = open_pipeline_folder(copy / "pipeline").vae.scaling_factor
    unwatched = dict(WATCHED, log__eval_every=0, log__sample_every=0)

    def kill(*_):
        raise KeyboardInterrupt

    for steps in (8, 10):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(pipeline_export, "write_pipeline", kill)
            if steps == 8:
                shutil.rmtree(copy / "pipeline")
            train(cheap(copy, steps=steps, **unwatched))
        assert pipeline_export.exported_step(copy) == (None if steps == 8 else 8)
        assert complete_steps(copy)[-1] == steps
        train(cheap(copy, steps=steps, **unwatched))
        assert pipeline_export.exported_step(copy) == steps
        folder, averages = open_pipeline_folder(copy / "pipeline"), saved_ema(copy, steps)
        for name, leaf in flatten(load_params(folder)).items():
            if name.startswith("vae/"):
                assert np.array_equal(leaf, averages[name]), name
        factor = folder.vae.scaling_factor
        assert factor == expected if steps == 8 else factor not in (1.0, expected)


def test_a_stopped_run_resumed_with_more_steps_equals_an_uninterrupted_one(
    reference, tmp_path, monkeypatch
):
    run, handler = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        stop_when_logging(patch, 2)
        train(cheap(run, checkpoint__every=100, steps=6))
    assert complete_steps(run) == [3]
    assert reproducible_metrics(run) == reproducible_metrics(reference)[:3]
    assert signal.getsignal(signal.SIGTERM) == handler
    train(cheap(run))
    assert complete_steps(run) == [3, 4, 6, 8]
    for step in (4, 6, 8):
        assert_same_checkpoint(run, reference, step)
    assert reproducible_metrics(run) == reproducible_metrics(reference)


def test_a_run_with_its_state_in_host_memory_equals_another(reference, tmp_path):
    """Validation, samples and pipeline read it there; a run may move its state at a restart."""
    run, offload = tmp_path / "run", ("ema", "moments")
    train(cheap(run, **WATCHED | dict(steps=4, optim__offload=offload)))
    for step in (2, 4):
        assert_same_checkpoint(run, reference, step)
    assert pipeline_export.exported_step(run) == 4
    train(cheap(run, **WATCHED | dict(steps=6)))
    train(cheap(run, **WATCHED | dict(optim__offload=offload)))
    assert_same_checkpoint(run, reference, 8)
    assert reproducible_metrics(run) == reproducible_metrics(reference)


def test_the_last_checkpoint_is_saved_before_the_benchmark_which_is_made_up_for(
    tmp_path, monkeypatch
):
    """A kill within the benchmark after training loses nothing of the training."""
    run, moments = tmp_path / "run", []

    def measure(config, folder, when, pipe):
        moments.append((when, complete_steps(run)))
        if moments.count(("after", [2])) == 1:
            raise KeyboardInterrupt

    benchmark = Benchmark(measure, lambda config, folder: moments.count(("after", [2])) < 2)
    monkeypatch.setattr(Samples, "pipeline", lambda self, params, frozen: "the editor")
    with pytest.raises(KeyboardInterrupt):
        train(cheap(run, steps=2), benchmark)
    assert moments == [("before", []), ("after", [2])]
    train(cheap(run, steps=2), benchmark)
    assert moments == [("before", []), ("after", [2]), ("after", [2])]
    train(cheap(run, steps=2), benchmark)
    assert len(moments) == 3


def test_ctrl_c_saves_and_the_next_run_goes_on(reference, tmp_path, monkeypatch, caplog):
    run, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:
        stop_when_logging(patch, 5, signal.SIGINT)
        train(cheap(run, checkpoint__every=100))
    assert complete_steps(run) == [6] and "saved at step 6" in caplog.text
    assert "Ctrl-C again ends at once" in caplog.text
    assert signal.getsignal(signal.SIGINT) == handler
    train(cheap(run))
    assert_same_checkpoint(run, reference, 8)


def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path, monkeypatch):
    def press_twice(self, at, values, kind="train"):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MetricsLog, "write", press_twice)
    with pytest.raises(KeyboardInterrupt):
        train(cheap(tmp_path / "run"))
    assert complete_steps(tmp_path / "run") == []


@pytest.mark.slow
def test_a_run_killed_within_a_save_resumes_from_the_last_complete_checkpoint(reference, tmp_path):
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path, run, dict(checkpoint__wait=True))
    process = start_command("train", "--config", recipe)
    folder = run / "checkpoints"
    wait_for(
        process,
        lambda: (folder / "2").is_dir() and any("tmp" in path.name for path in folder.iterdir()),
    )
    process.kill()
    process.wait()
    saved, logged = complete_steps(run), len(reproducible_metrics(run))
    assert saved and saved[-1] < 8
    assert logged - saved[-1] <= 2, "at most one interval between checkpoints is lost"
    train(cheap(run))
    assert_same_checkpoint(run, reference, 8)
    assert reproducible_metrics(run) == reproducible_metrics(reference)


def damage_arrays(run, step, kind) -> None:
    """Truncates the file with a checkpoint's arrays, or flips a bit in it."""
    file = max(
        (run / "checkpoints" / str(step) / "state" / "d").iterdir(),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if kind == "flipped" else content[: len(content) // 2])


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_a_corrupt_checkpoint_is_refused_and_resume_takes_the_one_before(
    reference, copy, tmp_path, capsys, kind
):
    damage_arrays(copy, 8, kind)
    before, recipe = file_contents(copy, "config.json"), write_recipe(tmp_path, copy)
    code, err = train_command(capsys, "--config", recipe, "--steps", "10")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert str(copy / "checkpoints" / "8") in err and err.rstrip().endswith("--resume 6")
    assert file_contents(copy, "config.json") == before
    if kind == "flipped":
        code, err = train_command(capsys, "--config", recipe, "--resume", "6")
        assert code == 0, err
        assert (copy / "checkpoints" / "8.discarded").is_dir()
        assert_same_checkpoint(copy, reference, 8)
        assert reproducible_metrics(copy) == reproducible_metrics(reference)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(
    copy, tmp_path, capsys, monkeypatch
):
    """Step 9 makes the parameters NaN; step 10, which would be saved, detects it."""
    call = CompiledStep.__call__

    def poison(self, state, frozen, batch):
        new, metrics = call(self, state, frozen, batch)
        with jax.transfer_guard("allow"):
            return new.replace(params=jax.tree.map(lambda x: x * jnp.nan, new.params)), metrics

    monkeypatch.setattr(CompiledStep, "__call__", poison)
    before = file_contents(copy / "checkpoints")
    code, err = train_command(capsys, "--config", write_recipe(tmp_path, copy), "--steps", "12")
    assert code == 2, err
    for words in ("step 10: ", "loss nan", "the last good checkpoint is of step 8;"):
        assert words in err, err
    assert file_contents(copy / "checkpoints") == before
    assert reproducible_metrics(copy)[-1]["step"] == 9


def test_implicit_transfers_are_forbidden_in_the_loop(copy, monkeypatch):
    """Fails for a batch that is not put on the device explicitly."""
    put_batch, calls = sharding.put_batch, []

    def put_only_the_first(batch, mesh):
        calls.append(batch)
        return put_batch(batch, mesh) if len(calls) == 1 else batch

    monkeypatch.setattr(sharding, "put_batch", put_only_the_first)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(cheap(copy, steps=12))
    assert len(calls) == 2


def test_a_run_without_a_checkpoint_starts_anew_with_another_config(tmp_path):
    """Its vocabulary and benchmark, which depend on the config, are discarded."""
    run = tmp_path / "run"
    leftovers = [run / "tokenizer" / "vocab.json", run / "benchmark" / "before.jsonl"]
    with run_folder.locked_run(run, cheap(run), False):
        for file in leftovers:
            file.parent.mkdir()
            file.touch()
    with run_folder.locked_run(run, cheap(run), False):
        assert all(file.exists() for file in leftovers)
    with run_folder.locked_run(run, cheap(run, seed=1), False):
        assert not any(file.exists() for file in leftovers)
    assert json.loads((run / "config.json").read_text())["seed"] == 1
    with (
        pytest.raises(UserError, match=r"--seed was 1, is 0\). Use .* or a new --output$"),
        run_folder.locked_run(run, cheap(run), True),
    ):
        pass


def test_folders_of_other_runs_are_refused(reference, tmp_path, capsys):
    """A run with another config, a run in progress, a file, a folder with something else."""
    recipe, before = write_recipe(tmp_path, reference), file_contents(reference)
    code, err = train_command(
        capsys, "--config", recipe, "--optim.lr", "0.5", "--seed", "1", "--loader.workers", "2"
    )
    assert code == 2 and "loader" not in err, err
    assert "--optim.lr was 0.001, is 0.5; --seed was 0, is 1)" in err, err
    with run_folder.locked_run(reference, cheap(reference, **WATCHED), True):
        code, err = train_command(capsys, "--config", recipe)
        assert code == 2 and "another process is training there" in err
    (tmp_path / "file").write_text("x")
    code, err = train_command(capsys, "--config", recipe, "--output", tmp_path / "file")
    assert code == 2 and "is a file; name a folder" in err
    code, err = train_command(capsys, "--config", recipe, "--output", tmp_path)
    assert code == 2 and f"--output {tmp_path}: is not a RUN folder" in err
    assert file_contents(reference) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "recipe.py"]
