"""Training runs that take minutes: many kills, every kind of start and task, host memory over thousands of steps."""

import random
import shutil
import signal
import time

import numpy as np
import pytest

from ivid2vid_jax.training.loop import train
from ivid2vid_jax.training.metrics_log import read_metrics
from ivid2vid_jax.training.params import flatten
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.weights.pipeline_folder import load_params, open_pipeline_folder
from tests.support import factory
from tests.support.tiny_run import tiny as config_of
from tests.test_train import (
    cheap,
    position,
    recipe,
    same_state,
    start_process,
    state,
    steps_of,
    told,
    wait_for,
)

pytestmark = pytest.mark.slow
KILLS, EVERY, LONG = 20, 2, 1000  # kills in each mode


@pytest.mark.parametrize(("wait", "most"), [(True, EVERY), (False, 2 * EVERY)])
def test_killed_at_random_moments_it_always_goes_on_from_the_last_whole_checkpoint(
    tmp_path, wait, most
):
    """SIGKILL within 3 s of going on, saves included; the run's end is that of one that was never interrupted.

    most: steps that a kill may cost. Where training goes on while a checkpoint is being written, a kill within that costs also the steps
    of that while, which are fewer than `EVERY`, for the next save waits for it.
    """
    run, rng, at, in_saves, lost = tmp_path / "run", random.Random(wait), 0, 0, []
    path = recipe(tmp_path, run, dict(steps=LONG, checkpoint__wait=wait))
    for _ in range(KILLS):
        began, process = time.time(), start_process("--config", path)
        wait_for(process, lambda: any(record["time"] > began for record in read_metrics(run)[-1:]))
        time.sleep(rng.uniform(0, 3))
        assert process.poll() is None, "ended before it was killed"
        process.send_signal(signal.SIGKILL)
        output = process.communicate()[0]
        assert (f"going on from step {at}" if at else "from scratch") in output
        in_saves += any("tmp" in each.name for each in (run / "checkpoints").iterdir())
        left = steps_of(run)
        lost.append(read_metrics(run)[-1]["step"] - (left[-1] if left else 0))
        assert not left or left[-1] >= at
        at = left[-1] if left else 0
    print(f"at step {at} after {KILLS} kills, {in_saves} of them within a save; steps lost {lost}")
    assert 0 < at < LONG and in_saves > 0
    assert max(lost) <= most
    end = at + 10
    train(cheap(run, steps=end))
    train(cheap(tmp_path / "other", steps=end, checkpoint__every=end))
    same_state(run, tmp_path / "other", end)
    assert told(run) == told(tmp_path / "other")


def test_sigterm_saves_at_the_step_reached_and_exits_with_0(tmp_path):
    run = tmp_path / "run"
    path = recipe(tmp_path, run, dict(steps=LONG, checkpoint__every=LONG))
    process = start_process("--config", path)
    wait_for(process, lambda: len(read_metrics(run)) > 5)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    (at,) = steps_of(run)
    assert (
        process.returncode == 0
        and f"told to stop: saved at step {at}" in output
        and read_metrics(run)[-1]["step"] == at
    )
    train(cheap(run, steps=at + 4))
    train(cheap(tmp_path / "other", steps=at + 4))
    same_state(run, tmp_path / "other", at + 4)


def test_an_editor_goes_on_to_the_bit(tmp_path):
    """With every temporal layer, two micro-batches a step, and steps of still images between those of clips."""
    options = dict(optim__accumulation=2, loader__images=0.5, checkpoint__keep=9, steps=8)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(
        config_of(
            whole, **options, checkpoint__pipeline=True, log__sample_every=8, log__eval_every=8
        )
    )
    shutil.copytree(whole, parts)
    train(config_of(parts, **options, resume=4))
    assert position(whole, 8)["streams"]["0/clips"] > 0 < position(whole, 8)["streams"]["0/images"]
    assert {"6.discarded", "8.discarded"} <= {
        path.name for path in (parts / "checkpoints").iterdir()
    }
    same_state(parts, whole, 8)
    assert told(parts) == told(whole)
    assert {path.suffix for path in (whole / "samples" / "8").iterdir()} == {".gif", ".png"}
    assert {"noise_loss", "frame_loss", "loss"} <= read_metrics(whole, "validation")[-1].keys()
    weights = flatten(load_params(open_pipeline_folder(whole / "pipeline")))
    averages = {
        name.removeprefix("ema/"): leaf
        for name, leaf in state(whole, 8).items()
        if name.startswith("ema/")
    }
    assert averages and all(np.array_equal(weights[name], leaf) for name, leaf in averages.items())


def test_host_memory_is_flat_over_2000_steps(tmp_path):
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
    """A Stable Diffusion-shaped folder: 4 input channels."""
    return factory.save(tmp_path_factory.mktemp("models") / "plain", factory.tiny(in_channels=4))


def weights_of(path) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(leaf)
        for name, leaf in flatten(load_params(open_pipeline_folder(path))).items()
    }


def test_an_editor_from_a_text_to_image_model_and_from_that_run(plain, tmp_path):
    """4 -> 8 channels: the new ones zero, for conv_in is frozen here; then a run that starts from the first one's average."""
    first, second = tmp_path / "first", tmp_path / "second"
    options = dict(optim__trainable=("temporal",), steps=2, checkpoint__pipeline=True)
    train(config_of(first, model=str(plain), **options))
    source, ours = weights_of(plain), weights_of(first / "pipeline")
    kernel = "unet/conv_in/kernel"
    assert (
        ours[kernel].shape[2] == 8
        and np.array_equal(ours[kernel][:, :, :4], source[kernel])
        and not ours[kernel][:, :, 4:].any()
    )
    assert all(
        ours[name].tobytes() == leaf.tobytes() for name, leaf in source.items() if name != kernel
    )
    fresh = ours.keys() - source.keys()
    assert {"temp_convs" in name for name in fresh} == {True, False}
    assert all(np.array_equal(ours[name], state(first, 2)[f"ema/{name}"]) for name in fresh)

    train(
        config_of(
            second,
            model=str(first),
            net__temporal=None,
            **options | dict(steps=1, optim__warmup=0, optim__lr=0.0),
        )
    )
    again = weights_of(second / "pipeline")
    assert again.keys() == ours.keys() and all(
        again[name].tobytes() == ours[name].tobytes() for name in ours.keys() - fresh
    )
    for name in fresh:  # an average of equal numbers is rounded
        np.testing.assert_allclose(again[name], ours[name], rtol=1e-6)
    assert open_pipeline_folder(second / "pipeline").unet.temporal == ("conv", "attention")


def test_text_to_image_from_a_model_and_from_scratch(plain, tmp_path):
    for name, model in (("model", str(plain)), ("scratch", None)):
        run = tmp_path / name
        train(
            config_of(
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
        assert folder.unet.in_channels == 4 and folder.unet.temporal == () and steps_of(run) == [2]
        assert all(np.isfinite(record["loss"]) for record in read_metrics(run, "train"))
    with pytest.raises(
        UserError, match="text_to_image trains a 2D U-Net of 4 channels; this one has 8"
    ):
        wide = factory.save(tmp_path / "wide", factory.tiny())
        train(config_of(tmp_path / "none", task="text_to_image", model=str(wide)))
