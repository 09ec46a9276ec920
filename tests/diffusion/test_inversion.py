"""DDIM inversion: a perfect net is followed to its noise and back; the same steps as diffusers' inverse scheduler; there and back again."""

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


def schedule(prediction_type, **changes):
    return NoiseSchedule.from_json(
        factory.SCHEDULER
        | dict(_class_name="DDIMScheduler", prediction_type=prediction_type)
        | changes
    )


def straight(made: NoiseSchedule):
    """The net of a world in which every x is alpha CLEAN + sigma NOISE: the truth wherever it is asked."""

    def denoise(params, x, t, cond, rngs=None):
        a = jnp.asarray(made.alphas_cumprod, jnp.float32)[t.astype(int)][:, None, None, None, None]
        return (
            NOISE + 0 * x
            if made.prediction_type == "epsilon"
            else jnp.sqrt(a) * NOISE - jnp.sqrt(1 - a) * CLEAN
        )

    return denoise


@pytest.mark.parametrize("steps", [4, 50])
def test_a_perfect_net_is_followed_to_its_noise(steps):
    made = schedule("epsilon", set_alpha_to_one=True, timestep_spacing="trailing")
    *ticks, found = DDIMInversion(straight(made), made)(None, CLEAN[0], jnp.zeros((1, 1)), steps)
    a = made.alphas_cumprod[-1]
    assert len(ticks) == steps
    np.testing.assert_allclose(found, np.sqrt(a) * CLEAN[0] + np.sqrt(1 - a) * NOISE[0], atol=1e-4)


@pytest.mark.parametrize("steps", [10, 50])
def test_steps_are_diffusers_inverse_schedulers(steps):
    """The same predictions, fixed beforehand, take the same way."""
    theirs = DDIMInverseScheduler(
        **factory.SCHEDULER | dict(steps_offset=0), timestep_spacing="leading"
    )
    theirs.set_timesteps(steps)
    x = y = CLEAN[0]
    predictions = RNG.standard_normal((steps, *x.shape)).astype(np.float32)
    mine = inversion_steps(schedule("epsilon", steps_offset=0), steps)
    assert [int(step.t) for step in mine] == theirs.timesteps.tolist()
    for i, t in enumerate(theirs.timesteps):
        x = np.asarray(
            inversion_update(
                lambda *a, i=i: jnp.asarray(predictions[i])[None],
                "epsilon",
                None,
                x[None],
                jnp.zeros((1, 1, 1)),
                mine[i],
            )[0]
        )
        y = theirs.step(
            torch.from_numpy(predictions[i]), t, torch.from_numpy(y)
        ).prev_sample.numpy()
        np.testing.assert_allclose(x, y, atol=1e-4 * np.abs(y).max())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_there_and_back(prediction_type):
    """A net that depends on x smoothly: with many steps inversion and sampling undo each other, zero terminal signal included."""
    zero = prediction_type == "v_prediction"
    made = schedule(
        prediction_type,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=zero,
    )

    def denoise(params, x, t, cond, rngs=None):
        return 0.5 * jnp.tanh(x) + 0.1 * jnp.cos(t / 300)[:, None, None, None, None]

    errors = []
    for steps in (20, 200):
        *_, noise = DDIMInversion(denoise, made)(None, CLEAN[0], jnp.zeros((1, 1)), steps)
        x = noise[None]
        for step in sampler_steps(make_sampler("ddim", made, steps)):
            x0 = predicted_x0(
                x, denoise(None, x, jnp.broadcast_to(step.t, (1,)), None), step, prediction_type
            )
            x = update(x, x0, x0, 0.0, step)
        errors.append(float(np.abs(np.asarray(x[0]) - CLEAN[0]).max()))
    assert errors[1] < 0.25 * errors[0] and errors[1] < 0.05, errors


def test_steps_out_of_range():
    with pytest.raises(ValueError, match="steps=0"):
        inversion_steps(schedule("epsilon"), 0)
