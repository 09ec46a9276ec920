"""DDIM inversion against diffusers' inverse scheduler, and against DDIM sampling."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler

from ivid2vid_jax.diffusion.inversion import inversion_steps, inversion_update
from ivid2vid_jax.diffusion.samplers import make_sampler, predicted_x0, sampler_steps, update
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.inference.inversion_loop import DDIMInversion
from tests.support import factory

RNG = np.random.default_rng(0)
CLEAN, NOISE = RNG.standard_normal((2, 1, 3, 4, 4, 4)).astype(np.float32)
NO_TEXT = jnp.zeros((1, 1))


def make_schedule(prediction_type, **changes):
    config = dict(_class_name="DDIMScheduler", prediction_type=prediction_type)
    return NoiseSchedule.from_json(factory.SCHEDULER | config | changes)


def perfect_denoiser(schedule: NoiseSchedule):
    """A denoiser for data where every x_t is alpha CLEAN + sigma NOISE."""

    def denoise(params, x, t, cond, rngs=None):
        alpha_bar = jnp.asarray(schedule.alphas_cumprod, jnp.float32)[t.astype(int)]
        a = alpha_bar[:, None, None, None, None]
        if schedule.prediction_type == "epsilon":
            return NOISE + 0 * x
        return jnp.sqrt(a) * NOISE - jnp.sqrt(1 - a) * CLEAN

    return denoise


@pytest.mark.parametrize("steps", [4, 50])
def test_inversion_with_a_perfect_denoiser_finds_the_noise(steps):
    schedule = make_schedule("epsilon", set_alpha_to_one=True, timestep_spacing="trailing")
    inversion = DDIMInversion(perfect_denoiser(schedule), schedule)
    *ticks, result = inversion(None, CLEAN[0], NO_TEXT, steps)
    a = schedule.alphas_cumprod[-1]
    assert len(ticks) == steps
    np.testing.assert_allclose(result, np.sqrt(a) * CLEAN[0] + np.sqrt(1 - a) * NOISE[0], atol=1e-4)


@pytest.mark.parametrize("steps", [10, 50])
def test_steps_equal_diffusers_inverse_scheduler(steps):
    """With the same fixed predictions both follow the same trajectory."""
    reference = DDIMInverseScheduler(
        **factory.SCHEDULER | dict(steps_offset=0), timestep_spacing="leading"
    )
    reference.set_timesteps(steps)
    x = expected = CLEAN[0]
    predictions = RNG.standard_normal((steps, *x.shape)).astype(np.float32)
    ours = inversion_steps(make_schedule("epsilon", steps_offset=0), steps)
    assert [int(step.t) for step in ours] == reference.timesteps.tolist()
    for step, prediction, t in zip(ours, predictions, reference.timesteps, strict=True):
        denoise = lambda *args, p=prediction: jnp.asarray(p)[None]  # noqa: E731
        text = jnp.zeros((1, 1, 1))
        x = np.asarray(inversion_update(denoise, "epsilon", None, x[None], text, step)[0])
        output = reference.step(torch.from_numpy(prediction), t, torch.from_numpy(expected))
        expected = output.prev_sample.numpy()
        np.testing.assert_allclose(x, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_sampling_undoes_inversion(prediction_type):
    """For a denoiser that is smooth in x, up to an error that falls with the number of steps.

    With v-prediction the schedule has zero-terminal SNR.
    """
    schedule = make_schedule(
        prediction_type,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=prediction_type == "v_prediction",
    )

    def denoise(params, x, t, cond, rngs=None):
        return 0.5 * jnp.tanh(x) + 0.1 * jnp.cos(t / 300)[:, None, None, None, None]

    errors = []
    for steps in (20, 200):
        *_, noise = DDIMInversion(denoise, schedule)(None, CLEAN[0], NO_TEXT, steps)
        x = noise[None]
        for step in sampler_steps(make_sampler("ddim", schedule, steps)):
            prediction = denoise(None, x, jnp.broadcast_to(step.t, (1,)), None)
            x0 = predicted_x0(x, prediction, step, prediction_type)
            x = update(x, x0, x0, 0.0, step)
        errors.append(float(np.abs(np.asarray(x[0]) - CLEAN[0]).max()))
    assert errors[1] < 0.25 * errors[0] and errors[1] < 0.05, errors


def test_steps_out_of_range_are_refused():
    with pytest.raises(ValueError, match="steps=0"):
        inversion_steps(make_schedule("epsilon"), 0)
