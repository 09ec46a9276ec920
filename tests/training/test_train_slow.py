"""Training runs that take minutes: many kills, every kind of start and task, host memory."""

import os
import random
import shutil
import signal
import time

import numpy as np
import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.training.loop import train
from ivid2vid_jax.training.metrics_log import read_metrics
from ivid2vid_jax.training.params import flatten
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder
from tests.support import factory
from tests.support.command import start_command, wait_for
from tests.support.tiny_run import tiny as tiny_config
from tests.support.train_runs import (
    assert_same_checkpoint,
    cheap,
    complete_steps,
    loader_position,
    reproducible_metrics,
    saved_ema,
    write_recipe,
)

pytestmark = pytest.mark.slow
KILLS = 20  # in each mode
INTERVAL = 2  # steps between checkpoints
ENDLESS = 1000  # more steps than a run reaches before it is killed


@pytest.mark.parametrize(("wait", "most"), [(True, INTERVAL), (False, 2 * INTERVAL)])
def test_killed_at_random_moments_a_run_resumes_from_the_last_complete_checkpoint(
    tmp_path, wait, most
):
    """SIGKILL within 3 s of a start, also within saves; the end equals an uninterrupted run's.

    most: number of steps that a kill may lose. Without checkpoint.wait a kill within a save also
    loses the steps since the save began: fewer than INTERVAL, because the next save waits for it.
    """
    run, rng, at, kills_in_saves, lost = tmp_path / "run", random.Random(wait), 0, 0, []
    path = write_recipe(tmp_path, run, dict(steps=ENDLESS, checkpoint__wait=wait))
    for _ in range(KILLS):
        start, process = time.time(), start_command("train", "--config", path)
        wait_for(
            process,
            lambda start=start: any(record["time"] > start for record in read_metrics(run)[-1:]),
        )
        time.sleep(rng.uniform(0, 3))
        assert process.poll() is None, "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)
        output = process.communicate()[0]
        assert (f"resuming from step {at}" if at else "from scratch") in output
        kills_in_saves += any("tmp" in path.name for path in (run / "checkpoints").iterdir())
        steps = complete_steps(run)
        lost.append(read_metrics(run)[-1]["step"] - (steps[-1] if steps else 0))
        assert not steps or steps[-1] >= at
        at = steps[-1] if steps else 0
    print(f"step {at} after {KILLS} kills, {kills_in_saves} within a save; steps lost: {lost}")
    assert 0 < at < ENDLESS and kills_in_saves > 0
    assert max(lost) <= most
    end = at + 10
    train(cheap(run, steps=end))
    train(cheap(tmp_path / "other", steps=end, checkpoint__every=end))
    assert_same_checkpoint(run, tmp_path / "other", end)
    assert reproducible_metrics(run) == reproducible_metrics(tmp_path / "other")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_saves_at_the_step_reached_and_exits_with_0(tmp_path, number):
    """Ctrl-C reaches the workers too, which are of the same process group."""
    run = tmp_path / "run"
    options = dict(steps=ENDLESS, checkpoint__every=ENDLESS, loader__workers=2)
    process = start_command("train", "--config", write_recipe(tmp_path, run, options), group=True)
    wait_for(process, lambda: len(read_metrics(run)) > 5)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert "Traceback" not in output
    (at,) = complete_steps(run)
    assert process.returncode == 0 and f"saved at step {at}" in output
    assert read_metrics(run)[-1]["step"] == at
    train(cheap(run, steps=at + 4))
    train(cheap(tmp_path / "other", steps=at + 4))
    assert_same_checkpoint(run, tmp_path / "other", at + 4)


def test_an_editor_resumes_bit_for_bit(tmp_path):
    """With every temporal layer, two micro-batches per step, and images mixed with clips."""
    options = dict(optim__accumulation=2, loader__images=0.5, checkpoint__keep=9, steps=8)
    watched = dict(checkpoint__pipeline=True, log__sample_every=8, log__eval_every=8)
    reference, resumed = tmp_path / "reference", tmp_path / "resumed"
    train(tiny_config(reference, **options, **watched))
    shutil.copytree(reference, resumed)
    train(tiny_config(resumed, **options, resume=4))
    streams = loader_position(reference, 8)["streams"]
    assert streams["0/clips"] > 0 and streams["0/images"] > 0
    names = {path.name for path in (resumed / "checkpoints").iterdir()}
    assert {"6.discarded", "8.discarded"} <= names
    assert_same_checkpoint(resumed, reference, 8)
    assert reproducible_metrics(resumed) == reproducible_metrics(reference)
    assert {path.suffix for path in (reference / "samples" / "8").iterdir()} == {".gif", ".png"}
    metrics = read_metrics(reference, "validation")[-1]
    assert {"noise_loss", "frame_loss", "loss"} <= metrics.keys()
    weights, averages = weights_of(reference / "pipeline"), saved_ema(reference, 8)
    assert averages and all(np.array_equal(weights[name], leaf) for name, leaf in averages.items())


def test_host_memory_is_constant_over_2000_steps(tmp_path):
    run = tmp_path / "run"
    train(
        cheap(
            run,
            steps=2000,
            checkpoint__every=2000,
            loader__size=8,
            loader__batch=1,
            loader__frames=1,
        )
    )
    host = {
        record["step"]: record["host_mib"]
        for record in read_metrics(run, "train")
        if "host_mib" in record
    }
    early, late = (
        np.median([mib for step, mib in host.items() if low <= step <= low + 200])
        for low in (500, 1800)
    )
    print(f"resident: {early:.1f} MiB at steps 500-700, {late:.1f} MiB at 1800-2000")
    assert len(host) == 100 and late - early < 5


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder like Stable Diffusion's: 4 input channels."""
    return factory.save_pipeline(
        tmp_path_factory.mktemp("models") / "plain", factory.tiny_parts(in_channels=4)
    )


def weights_of(path) -> dict[str, np.ndarray]:
    """The weights of a pipeline folder, by name."""
    return {
        name: np.asarray(leaf)
        for name, leaf in flatten(load_params(open_pipeline_folder(path))).items()
    }


def test_an_editor_from_a_text_to_image_model_and_from_that_run(plain, tmp_path):
    """4 -> 8 channels, the new ones zero because conv_in is frozen; then from the run's average."""
    first, second = tmp_path / "first", tmp_path / "second"
    options = dict(optim__trainable=("temporal",), steps=2, checkpoint__pipeline=True)
    train(tiny_config(first, model=str(plain), **options))
    base, weights = weights_of(plain), weights_of(first / "pipeline")
    kernel = "unet/conv_in/kernel"
    assert weights[kernel].shape[2] == 8 and not weights[kernel][:, :, 4:].any()
    assert np.array_equal(weights[kernel][:, :, :4], base[kernel])
    assert all(
        weights[name].tobytes() == leaf.tobytes() for name, leaf in base.items() if name != kernel
    )
    new, averages = weights.keys() - base.keys(), saved_ema(first, 2)
    assert {"temp_convs" in name for name in new} == {True, False}
    assert all(np.array_equal(weights[name], averages[name]) for name in new)

    options |= dict(net__temporal=None, steps=1, optim__warmup=0, optim__lr=0.0)
    train(tiny_config(second, model=str(first), **options))
    again = weights_of(second / "pipeline")
    assert again.keys() == weights.keys()
    assert all(again[name].tobytes() == weights[name].tobytes() for name in weights.keys() - new)
    for name in new:  # an average of equal numbers is rounded
        np.testing.assert_allclose(again[name], weights[name], rtol=1e-6)
    assert open_pipeline_folder(second / "pipeline").unet.temporal == ("conv", "attention")


def test_text_to_image_from_a_model_and_from_scratch(plain, tmp_path):
    for name, model in (("model", str(plain)), ("scratch", None)):
        run = tmp_path / name
        train(
            tiny_config(
                run,
                task="text_to_image",
                model=model,
                loader__frames=1,
                steps=2,
                checkpoint__pipeline=True,
                log__sample_every=2,
            )
        )
        assert {path.name for path in (run / "samples" / "2").iterdir()} == {"0.gif", "0_sheet.png"}
        folder = open_pipeline_folder(run / "pipeline")
        assert (
            folder.unet.in_channels == 4
            and folder.unet.temporal == ()
            and complete_steps(run) == [2]
        )
        assert all(np.isfinite(record["loss"]) for record in read_metrics(run, "train"))
    with pytest.raises(UserError, match=r"trains a 2D U-Net of 4 channels; this one has 8"):
        wide = factory.save_pipeline(tmp_path / "wide", factory.tiny_parts())
        train(tiny_config(tmp_path / "none", task="text_to_image", model=str(wide)))
