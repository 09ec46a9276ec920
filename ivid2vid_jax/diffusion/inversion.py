"""DDIM inversion: from a clip's latents to the noise from which DDIM samples them.

Song et al. 2020 (arXiv 2010.02502), section 4.3. Each step evaluates the network at the timestep
of its result but on the latents before it, as Tune-A-Video's inversion does.
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
    """One step towards noise, in float32.

    Attributes:
        t: timestep given to the network.
        alpha, sigma: x = alpha x_0 + sigma eps before the step.
        alpha_after, sigma_after: the same after the step.
    """

    t: jax.Array | np.floating
    alpha: jax.Array | np.floating
    sigma: jax.Array | np.floating
    alpha_after: jax.Array | np.floating
    sigma_after: jax.Array | np.floating


def inversion_steps(schedule: NoiseSchedule, steps: int) -> list[InversionStep]:
    """DDIM's steps in reverse order, from clean to noisy.

    Raises:
        ValueError: for steps outside 1..num_train_timesteps.
    """
    N, alpha_bar = schedule.num_train_timesteps, schedule.alphas_cumprod
    if not 1 <= steps <= N:
        raise ValueError(f"steps={steps} must be between 1 and {N}")
    t_after = sampler_timesteps(schedule, steps, "leading").astype(int)[::-1]
    t = t_after - N // steps
    clean = 1.0 if schedule.set_alpha_to_one else alpha_bar[0]
    a, a_after = np.where(t >= 0, alpha_bar[np.maximum(t, 0)], clean), alpha_bar[t_after]
    columns = (t_after, np.sqrt(a), np.sqrt(1 - a), np.sqrt(a_after), np.sqrt(1 - a_after))
    return [InversionStep(*(np.float32(column[i]) for column in columns)) for i in range(steps)]


def inversion_update(
    denoise: Callable, prediction_type: str, params: Any, x, text, step: InversionStep
):
    """One step of x towards noise.

    Args:
        denoise: see diffusion/denoiser.py; of a network without a source clip.
        prediction_type: "epsilon" or "v_prediction".
        params: the network's parameters.
        x: latents [B, T, h, w, C].
        text: text embeddings [B, K, D].
        step: the step.

    Returns:
        Latents of x's shape, one step noisier.
    """
    t = jnp.broadcast_to(step.t, x.shape[:1])
    prediction = denoise(params, x, t, Condition(text, None)).astype(jnp.float32)
    x0 = predicted_x0(x, prediction, step, prediction_type)
    eps = prediction if prediction_type == "epsilon" else step.sigma * x + step.alpha * prediction
    return step.alpha_after * x0 + step.sigma_after * eps
