"""DDIM inversion: from a clip's latents back to the noise from which DDIM would sample them (Song et al. 2020, arXiv 2010.02502, section 4.3).

The net is asked at the noise level that a step goes to, with latents of the level it comes from, as Tune-A-Video's inversion does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ivid2vid_jax.diffusion.denoiser import Condition
from ivid2vid_jax.diffusion.samplers import predicted_x0, sampler_timesteps
from ivid2vid_jax.diffusion.schedule import NoiseSchedule


class InversionStep(NamedTuple):
    """One step towards noise: the timestep that the net is told; x = alpha x0 + sigma eps before it and after."""

    t: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    alpha_after: jax.Array
    sigma_after: jax.Array


def inversion_steps(schedule: NoiseSchedule, steps: int) -> list[InversionStep]:
    """The steps, from clean to noisy: DDIM's own, backwards. Raises ValueError for steps outside 1..num_train_timesteps."""
    N = schedule.num_train_timesteps
    if not 1 <= steps <= N:
        raise ValueError(f"steps={steps} must be between 1 and {N}")
    t = sampler_timesteps(schedule, steps, "leading").astype(int)[::-1]
    before = t - N // steps
    last = 1.0 if schedule.set_alpha_to_one else schedule.alphas_cumprod[0]
    a, after = (
        np.where(before >= 0, schedule.alphas_cumprod[np.maximum(before, 0)], last),
        schedule.alphas_cumprod[t],
    )
    columns = (t, np.sqrt(a), np.sqrt(1 - a), np.sqrt(after), np.sqrt(1 - after))
    return [InversionStep(*(np.float32(column[i]) for column in columns)) for i in range(steps)]


def inversion_update(
    denoise: Callable, prediction_type: str, params: Any, x, text, step: InversionStep
):
    """Latents [B, T, h, w, C] one step noisier; text: [B, K, D]."""
    prediction = denoise(
        params, x, jnp.broadcast_to(step.t, x.shape[:1]), Condition(text, None)
    ).astype(jnp.float32)
    x0 = predicted_x0(x, prediction, step, prediction_type)
    eps = prediction if prediction_type == "epsilon" else step.sigma * x + step.alpha * prediction
    return step.alpha_after * x0 + step.sigma_after * eps
