"""Each sampler's trajectory against diffusers' scheduler, and properties of the update."""

import re

import jax
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
)

from ivid2vid_jax.conversion.pytorch.pipeline import unit_noise
from ivid2vid_jax.diffusion.samplers import (
    frame_noise,
    make_sampler,
    predicted_x0,
    sampler_steps,
    update,
)
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from tests.support import factory

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SHAPE = (3, 4, 4, 2)
RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal((60, *SHAPE), np.float32)
MIX = RNG.standard_normal((2, 2), np.float32) / 2


def network(x, t):
    """A stand-in for the U-Net that depends on x and t."""
    return np.tanh(x @ MIX) * (0.7 + 0.3 * np.cos(0.01 * float(t))) + 0.1


def our_trajectory(name, schedule, steps, eta=0.0):
    """The latents after every step, and the sampler's table."""
    table = make_sampler(name, schedule, steps, eta)
    x, previous_x0, trajectory = NOISE[-1] * table.start, np.zeros(SHAPE, np.float32), []
    for i, step in enumerate(sampler_steps(table)):
        x0 = predicted_x0(x, network(np.asarray(x), step.t), step, schedule.prediction_type)
        x, previous_x0 = update(x, x0, previous_x0, NOISE[i], step), x0
        trajectory.append(np.asarray(x))
    return trajectory, table


def diffusers_trajectory(scheduler, steps, monkeypatch, eta=0.0):
    """The same by diffusers' scheduler with our noise, in variance-preserving coordinates."""
    scheduler.set_timesteps(steps)
    noise = iter(NOISE)
    module = type(scheduler).__module__
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *a, **k: torch.from_numpy(next(noise)))
    options = {"eta": eta} if isinstance(scheduler, DDIMScheduler) else {}
    x, trajectory = torch.from_numpy(NOISE[-1]) * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        output = torch.from_numpy(network(scheduler.scale_model_input(x, t).numpy(), t))
        x = scheduler.step(output, t, x, **options).prev_sample.float()
        sigma = 0.0
        if isinstance(scheduler, EulerAncestralDiscreteScheduler):
            sigma = float(scheduler.sigmas[scheduler.step_index])
        trajectory.append(x.numpy() / np.sqrt(1 + sigma**2))
    return trajectory


def compare(name, scheduler, steps, monkeypatch, eta=0.0):
    schedule = NoiseSchedule.from_json(dict(scheduler.config))
    expected = diffusers_trajectory(scheduler, steps, monkeypatch, eta)
    actual, table = our_trajectory(name, schedule, steps, eta)
    np.testing.assert_allclose(table.steps.t, scheduler.timesteps, atol=1e-3)
    assert len(actual) == len(expected) == steps
    for i, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert factory.relative_difference(ours, theirs) <= 2e-4, f"step {i}"


SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
}
SPACINGS = [
    dict(timestep_spacing="leading", steps_offset=1),
    dict(timestep_spacing="linspace"),
    dict(timestep_spacing="trailing"),
]
PREDICTION_TYPES = [dict(prediction_type="epsilon"), dict(prediction_type="v_prediction")]


@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda s: s["timestep_spacing"])
@pytest.mark.parametrize("prediction", PREDICTION_TYPES, ids=lambda p: p["prediction_type"])
@pytest.mark.parametrize(("steps", "eta"), [(20, 0.0), (7, 0.0), (10, 0.6)])
def test_ddim(spacing, prediction, steps, eta, monkeypatch):
    options = dict(clip_sample=False, set_alpha_to_one=steps == 7)
    scheduler = DDIMScheduler(**SD, **spacing, **prediction, **options)
    compare("ddim", scheduler, steps, monkeypatch, eta)


@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda s: s["timestep_spacing"])
@pytest.mark.parametrize("prediction", PREDICTION_TYPES, ids=lambda p: p["prediction_type"])
def test_euler_ancestral(spacing, prediction, monkeypatch):
    scheduler = EulerAncestralDiscreteScheduler(**SD, **spacing, **prediction)
    compare("euler_ancestral", scheduler, 12, monkeypatch)


@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda s: s["timestep_spacing"])
@pytest.mark.parametrize("prediction", PREDICTION_TYPES, ids=lambda p: p["prediction_type"])
@pytest.mark.parametrize("steps", [20, 9, 1])
def test_dpm_solver(spacing, prediction, steps, monkeypatch):
    scheduler = DPMSolverMultistepScheduler(**SD, **spacing, **prediction)
    compare("dpm++", scheduler, steps, monkeypatch)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_zero_terminal_snr(name, monkeypatch):
    options = dict(clip_sample=False) if name == "ddim" else {}
    scheduler = SCHEDULERS[name](
        **SD,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        **options,
    )
    compare(name, scheduler, 10, monkeypatch)


@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda s: s["timestep_spacing"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_timesteps_for_every_number_of_steps(name, spacing):
    """Diffusers' own, without the timestep -1 that it adds to "trailing" for 62 counts."""
    options = dict(clip_sample=False) if name == "ddim" else {}
    scheduler = SCHEDULERS[name](**SD, **spacing, **options)
    schedule = NoiseSchedule.from_json(dict(scheduler.config))
    too_long = 0
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        theirs = np.minimum(np.asarray(scheduler.timesteps), 999)  # "leading" reaches 1000
        too_long += len(theirs) > steps
        table = make_sampler(name, schedule, steps).steps
        np.testing.assert_allclose(table.t, theirs[:steps], atol=1e-3, err_msg=f"{steps} steps")
        assert len(theirs) == steps or theirs[steps:].tolist() == [-1]
        assert all(np.isfinite(column).all() for column in table), steps
    assert too_long == (62 if spacing["timestep_spacing"] == "trailing" else 0)


def test_linear_betas(monkeypatch):
    betas = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    compare("ddim", DDIMScheduler(**betas, clip_sample=False), 10, monkeypatch)


def test_each_sampler_has_a_default_spacing():
    schedule = NoiseSchedule.from_json(SD)
    assert make_sampler("ddim", schedule, 4).steps.t.tolist() == [750, 500, 250, 0]
    assert make_sampler("euler_ancestral", schedule, 4).steps.t.tolist() == [999, 666, 333, 0]
    assert make_sampler("dpm++", schedule, 4).steps.t.tolist() == [999, 749, 500, 250]


def test_sampling_with_perfect_predictions_ends_at_the_clean_latents():
    clean = RNG.standard_normal(SHAPE).astype(np.float32)
    for name in ("ddim", "euler_ancestral", "dpm++"):
        x, previous_x0 = NOISE[0], np.zeros(SHAPE, np.float32)
        for step in sampler_steps(make_sampler(name, NoiseSchedule(), 5)):
            x, previous_x0 = update(x, clean, previous_x0, NOISE[1], step), clean
        np.testing.assert_allclose(x, clean, atol=2e-2 if name == "ddim" else 1e-5)


def test_noise_of_a_frame_does_not_depend_on_its_window():
    key = jax.random.key(3)
    clip = frame_noise(key, np.arange(10), (4, 4, 2))
    window = frame_noise(key, np.arange(6, 10), (4, 4, 2))
    np.testing.assert_array_equal(clip[6:], window)
    assert len(np.unique(np.asarray(clip)[:, 0, 0, 0])) == 10


@pytest.mark.parametrize("shared", [0.0, 0.4, 1.0])
def test_frames_share_the_given_part_of_their_noise(shared):
    """In JAX, and in the PyTorch pipeline that is exported with the weights."""
    key, shape = jax.random.key(3), (64, 64, 4)
    noise = np.asarray(frame_noise(key, np.arange(4), shape, shared))
    torch_noise = unit_noise((1, 4, 4, 64, 64), shared, torch.Generator().manual_seed(0))
    expected = shared + (1 - shared) * np.eye(4)
    for frames in (noise, torch_noise[0].numpy().swapaxes(0, 1)):
        np.testing.assert_allclose(np.cov(frames.reshape(4, -1)), expected, atol=0.03)
    window = frame_noise(key, np.arange(2, 4), shape, shared)
    np.testing.assert_allclose(window, noise[2:], rtol=1e-5, atol=1e-6)
    if not shared:
        np.testing.assert_array_equal(noise, frame_noise(key, np.arange(4), shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ddpm", 10, 0.0), "ddpm"),
        (("ddim", 0, 0.0), "steps=0"),
        (("ddim", 1001, 0.0), "steps=1001"),
        (("dpm++", 10, 0.5), "eta=0.5"),
        (("ddim", 10, 2.0), "eta=2.0"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message):
    name, steps, eta = arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        make_sampler(name, NoiseSchedule(), steps, eta)


@pytest.mark.parametrize(
    "config",
    [
        dict(clip_sample=True),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(prediction_type="sample"),
        dict(rescale_betas_zero_snr=True),
        dict(timestep_spacing="odd"),
    ],
)
def test_unsupported_schedules_are_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        NoiseSchedule.from_json(SD | config)
