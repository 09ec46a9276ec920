"""Samplers as tables: DDIM, Euler-ancestral and DPM-Solver++(2M) are one update with different coefficients.

    x <- A x + B x0 + C x0_before + D noise,      x0 = the clean latents predicted at this step

so one compiled program serves every sampler and every number of steps. A table is computed on the host, in float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ivid2vid_jax.diffusion.schedule import NoiseSchedule

SAMPLERS = ("ddim", "euler_ancestral", "dpm++")

# Scheduler class of a pipeline folder -> the sampler that stands for it.
SCHEDULER_CLASSES = {
    "DDIMScheduler": "ddim",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpm++",
}
NO_FRAME = 2**31 - 1  # no clip is so long: the number of what all frames have in common
TINY = 2.0**-24  # stands for alpha_bar = 0 where a sampler divides by it, as in diffusers


class SamplerStep(NamedTuple):
    """Coefficients of one step (or, stacked, of all): scalars in float32, or arrays [steps]."""

    t: jax.Array  # timestep that the net is told; may be fractional
    alpha: jax.Array  # x_t = alpha x0 + sigma eps
    sigma: jax.Array
    A: jax.Array
    B: jax.Array
    C: jax.Array
    D: jax.Array


class SamplerTable(NamedTuple):
    """`steps`: a Step of arrays. `start`: factor of unit noise at the first step (1, but for some Euler variants)."""

    steps: SamplerStep
    start: float


def make_sampler(name: str, schedule: NoiseSchedule, steps: int, eta: float = 0.0) -> SamplerTable:
    """The table of `name`, one of SAMPLERS, over `steps` steps. eta: DDIM's share of fresh noise, 0 to 1.

    Raises ValueError for an unknown name, steps outside 1..num_train_timesteps, or eta outside [0, 1] or given to others.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    if not 1 <= steps <= schedule.num_train_timesteps:
        raise ValueError(f"steps={steps} must be between 1 and {schedule.num_train_timesteps}")
    if not 0.0 <= eta <= 1.0 or (eta and name != "ddim"):
        raise ValueError(f"eta={eta} must be between 0 and 1, and 0 for samplers other than ddim")
    columns, start = {"ddim": ddim, "euler_ancestral": euler_ancestral, "dpm++": dpm_solver_pp}[
        name
    ](schedule, steps, eta)
    return SamplerTable(SamplerStep(*(np.asarray(column, np.float32) for column in columns)), start)


def predicted_x0(x, prediction, step: SamplerStep, prediction_type: str):
    """Clean latents from the net's eps or v prediction (Salimans & Ho 2022), shapes alike."""
    if prediction_type == "epsilon":
        return (x - step.sigma * prediction) / step.alpha
    return step.alpha * x - step.sigma * prediction


def update(x, x0, x0_before, noise, step: SamplerStep):
    """The latents at the next timestep; all arrays of one shape."""
    return step.A * x + step.B * x0 + step.C * x0_before + step.D * noise


def frame_noise(key, frames, shape, shared=0.0):
    """Unit noise of a clip, each frame's from its own number: [len(frames), *shape].

    frames: int32 [T], frame numbers in the whole clip; so a frame's noise does not depend on the window it is seen in. shared: share of its variance
    that all frames have in common, 0 to 1 (the mixed noise of Ge et al. 2023, arXiv 2305.10474).
    """
    own = jax.vmap(lambda frame: jax.random.normal(jax.random.fold_in(key, frame), shape))(frames)
    common = jax.random.normal(jax.random.fold_in(key, NO_FRAME), shape)
    return jnp.sqrt(1 - shared) * own + jnp.sqrt(shared) * common[None]


def sampler_timesteps(
    schedule: NoiseSchedule, steps: int, default: str, rounded: bool = True
) -> np.ndarray:
    """Timesteps from noisy to clean, float64 [steps], by the schedule's spacing or else `default`."""
    N, spacing = schedule.num_train_timesteps, schedule.timestep_spacing or default
    if spacing == "linspace":
        t = np.linspace(0, N - 1, steps)[::-1]
    elif spacing == "leading":
        t = np.arange(steps)[::-1] * (N // steps) + float(schedule.steps_offset)
    else:
        t = np.round(np.arange(N, 0, -N / steps)) - 1
    return np.minimum(np.round(t) if rounded else t, N - 1)


def ddim(schedule: NoiseSchedule, steps: int, eta: float):
    """Song et al. 2020 (arXiv 2010.02502), equations 12 and 16. The step before t is t - N // steps, as in diffusers."""
    alpha_bar = schedule.alphas_cumprod
    t = sampler_timesteps(schedule, steps, "leading").astype(int)
    before = t - schedule.num_train_timesteps // steps
    last = 1.0 if schedule.set_alpha_to_one else alpha_bar[0]
    a, a_next = alpha_bar[t], np.where(before >= 0, alpha_bar[np.maximum(before, 0)], last)
    D = eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
    A = np.sqrt(np.maximum(1 - a_next - D**2, 0)) / np.sqrt(
        1 - a
    )  # eps = (x - sqrt(a) x0) / sqrt(1 - a)
    B = np.sqrt(a_next) - A * np.sqrt(a)
    return (t, np.sqrt(a), np.sqrt(1 - a), A, B, 0 * A, D), 1.0


def euler_ancestral(schedule: NoiseSchedule, steps: int, eta: float):
    """Ancestral Euler steps (Karras et al. 2022, arXiv 2206.00364; k-diffusion), moved to variance-preserving coordinates.

    There x = y / sqrt(1 + s^2) of k-diffusion's y, with noise level s = sigma / alpha.
    """
    alpha_bar = np.maximum(schedule.alphas_cumprod, TINY)
    t = sampler_timesteps(schedule, steps, "linspace", rounded=False)
    s = np.append(
        np.interp(t, np.arange(len(alpha_bar)), np.sqrt((1 - alpha_bar) / alpha_bar)), 0.0
    )
    here, there = s[:-1], s[1:]
    up = np.sqrt(there**2 * (here**2 - there**2) / here**2)
    down = np.sqrt(there**2 - up**2)
    scale_here, scale_there = np.sqrt(1 + here**2), np.sqrt(1 + there**2)
    columns = (
        t,
        1 / scale_here,
        here / scale_here,
        down / here * scale_here / scale_there,
        (1 - down / here) / scale_there,
        0 * t,
        up / scale_there,
    )
    spacing = schedule.timestep_spacing or "linspace"
    return columns, float(here[0] / scale_here[0]) if spacing != "leading" else 1.0


def dpm_solver_pp(schedule: NoiseSchedule, steps: int, eta: float):
    """DPM-Solver++(2M), midpoint, ending at sigma 0 (Lu et al. 2022, arXiv 2211.01095, algorithm 2); first order first and last."""
    alpha_bar = schedule.alphas_cumprod
    if schedule.rescale_betas_zero_snr:
        alpha_bar = np.append(alpha_bar[:-1], TINY)
    N, spacing = schedule.num_train_timesteps, schedule.timestep_spacing or "linspace"
    if spacing == "linspace":  # here diffusers leaves out the cleanest of steps + 1 points
        t = np.round(np.linspace(0, N - 1, steps + 1))[::-1][:-1]
    elif spacing == "leading":
        t = np.arange(steps + 1)[::-1][:-1] * (N // (steps + 1)) + float(schedule.steps_offset)
    else:
        t = sampler_timesteps(schedule, steps, spacing)
    a = np.append(alpha_bar[t.astype(int)], 1.0)
    alpha, sigma = np.sqrt(a), np.sqrt(1 - a)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)  # half the log-SNR; infinite at the end
    h = np.diff(lam)
    r0 = np.append(np.inf, np.diff(lam)[:-1]) / np.where(np.isinf(h), 1.0, h)
    half = 0.5 / r0  # D1 = (m0 - m1) / r0 enters with 1/2
    half[0] = half[-1] = 0.0
    gain = alpha[1:] * -np.expm1(-h)
    return (
        t,
        alpha[:-1],
        sigma[:-1],
        sigma[1:] / sigma[:-1],
        gain * (1 + half),
        -gain * half,
        0 * gain,
    ), 1.0


def sampler_steps(table: SamplerTable) -> list[SamplerStep]:
    """One Step of device scalars a step, put there at once, so that the loop itself transfers nothing."""
    columns = [np.asarray(column) for column in table.steps]
    return jax.device_put(
        [SamplerStep(*(column[i] for column in columns)) for i in range(len(columns[0]))]
    )
