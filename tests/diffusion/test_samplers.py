"""Each sampler's whole trajectory against diffusers' scheduler, and the identities of the update."""

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


def net(x, t):
    """A stand-in for the U-Net that depends on all it is given."""
    return np.tanh(x @ MIX) * (0.7 + 0.3 * np.cos(0.01 * float(t))) + 0.1


def ours(name, schedule, steps, eta=0.0):
    """Latents after every step, in variance-preserving coordinates, and the table."""
    table = make_sampler(name, schedule, steps, eta)
    x, x0, path = NOISE[-1] * table.start, np.zeros(SHAPE, np.float32), []
    for i, step in enumerate(sampler_steps(table)):
        clean = predicted_x0(x, net(np.asarray(x), step.t), step, schedule.prediction_type)
        x, x0 = update(x, clean, x0, NOISE[i], step), clean
        path.append(np.asarray(x))
    return path, table


def theirs(scheduler, steps, monkeypatch, eta=0.0):
    """The same by diffusers' scheduler, its noise replaced by ours."""
    scheduler.set_timesteps(steps)
    fed = iter(NOISE)
    module = type(scheduler).__module__
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *a, **k: torch.from_numpy(next(fed)))
    x, path = torch.from_numpy(NOISE[-1]) * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        out = torch.from_numpy(net(scheduler.scale_model_input(x, t).numpy(), t))
        x = scheduler.step(
            out, t, x, **({"eta": eta} if isinstance(scheduler, DDIMScheduler) else {})
        ).prev_sample.float()
        sigma = (
            float(scheduler.sigmas[scheduler.step_index])
            if isinstance(scheduler, EulerAncestralDiscreteScheduler)
            else 0.0
        )
        path.append(x.numpy() / np.sqrt(1 + sigma**2))
    return path


def compare(name, scheduler, steps, monkeypatch, eta=0.0):
    schedule = NoiseSchedule.from_json(dict(scheduler.config))
    reference, (path, table) = (
        theirs(scheduler, steps, monkeypatch, eta),
        ours(name, schedule, steps, eta),
    )
    np.testing.assert_allclose(table.steps.t, scheduler.timesteps, atol=1e-3)
    assert len(path) == len(reference) == steps
    for i, (a, b) in enumerate(zip(path, reference, strict=True)):
        assert factory.relative(a, b) <= 2e-4, f"step {i}"


SPACINGS = [
    dict(timestep_spacing="leading", steps_offset=1),
    dict(timestep_spacing="linspace"),
    dict(timestep_spacing="trailing"),
]
FAMILIES = [dict(prediction_type="epsilon"), dict(prediction_type="v_prediction")]


@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda s: s["timestep_spacing"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f["prediction_type"])
@pytest.mark.parametrize(("steps", "eta"), [(20, 0.0), (7, 0.0), (10, 0.6)])
def test_ddim(spacing, family, steps, eta, monkeypatch):
    compare(
        "ddim",
        DDIMScheduler(**SD, **spacing, **family, clip_sample=False, set_alpha_to_one=steps == 7),
        steps,
        monkeypatch,
        eta,
    )


@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda s: s["timestep_spacing"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f["prediction_type"])
def test_euler_ancestral(spacing, family, monkeypatch):
    compare(
        "euler_ancestral",
        EulerAncestralDiscreteScheduler(**SD, **spacing, **family),
        12,
        monkeypatch,
    )


@pytest.mark.parametrize("spacing", SPACINGS, ids=lambda s: s["timestep_spacing"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f["prediction_type"])
@pytest.mark.parametrize("steps", [20, 9, 1])
def test_dpm_solver(spacing, family, steps, monkeypatch):
    compare("dpm++", DPMSolverMultistepScheduler(**SD, **spacing, **family), steps, monkeypatch)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("ddim", DDIMScheduler),
        ("euler_ancestral", EulerAncestralDiscreteScheduler),
        ("dpm++", DPMSolverMultistepScheduler),
    ],
)
def test_zero_terminal_snr(name, cls, monkeypatch):
    extra = dict(clip_sample=False) if cls is DDIMScheduler else {}
    scheduler = cls(
        **SD,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        **extra,
    )
    compare(name, scheduler, 10, monkeypatch)


def test_linear_betas(monkeypatch):
    compare(
        "ddim",
        DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False),
        10,
        monkeypatch,
    )


def test_spacing_that_a_folder_leaves_open_is_the_samplers_own():
    schedule = NoiseSchedule.from_json(SD)
    assert make_sampler("ddim", schedule, 4).steps.t.tolist() == [750, 500, 250, 0]
    assert make_sampler("euler_ancestral", schedule, 4).steps.t.tolist() == [999, 666, 333, 0]
    assert make_sampler("dpm++", schedule, 4).steps.t.tolist() == [999, 749, 500, 250]


def test_a_perfect_net_is_followed_to_the_clean_latents():
    clean = RNG.standard_normal(SHAPE).astype(np.float32)
    for name in ("ddim", "euler_ancestral", "dpm++"):
        x, x0 = NOISE[0], np.zeros(SHAPE, np.float32)
        for step in sampler_steps(make_sampler(name, NoiseSchedule(), 5)):
            x, x0 = update(x, clean, x0, NOISE[1], step), clean
        np.testing.assert_allclose(x, clean, atol=2e-2 if name == "ddim" else 1e-5)


def test_noise_of_a_frame_does_not_depend_on_its_window():
    key = jax.random.key(3)
    whole, part = (
        frame_noise(key, np.arange(10), (4, 4, 2)),
        frame_noise(key, np.arange(6, 10), (4, 4, 2)),
    )
    np.testing.assert_array_equal(whole[6:], part)
    assert len(np.unique(np.asarray(whole)[:, 0, 0, 0])) == 10


@pytest.mark.parametrize("shared", [0.0, 0.4, 1.0])
def test_frames_share_as_much_of_their_noise_as_they_are_told(shared):
    """In JAX and in the PyTorch that is shipped with exported weights."""
    key, shape = jax.random.key(3), (64, 64, 4)
    ours = np.asarray(frame_noise(key, np.arange(4), shape, shared))
    theirs = (
        unit_noise((1, 4, 4, 64, 64), shared, torch.Generator().manual_seed(0))[0]
        .numpy()
        .swapaxes(0, 1)
    )
    for noise in (ours, theirs):
        np.testing.assert_allclose(
            np.cov(noise.reshape(4, -1)), shared + (1 - shared) * np.eye(4), atol=0.03
        )
    np.testing.assert_allclose(
        frame_noise(key, np.arange(2, 4), shape, shared), ours[2:], rtol=1e-5, atol=1e-6
    )
    if not shared:
        np.testing.assert_array_equal(ours, frame_noise(key, np.arange(4), shape))


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
def test_values_out_of_range_are_named(arguments, message):
    name, steps, eta = arguments
    with pytest.raises(ValueError, match=message.replace("+", "\\+")):
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
def test_schedules_that_are_not_computed_are_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        NoiseSchedule.from_json(SD | config)
