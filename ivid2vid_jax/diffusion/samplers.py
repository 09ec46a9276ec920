"""Samplers as tables of coefficients.

DDIM, Euler-ancestral and DPM-Solver++(2M) are one update with different coefficients,

    x_{i+1} = A x_i + B x0_i + C x0_{i-1} + D noise,

where x0_i are the clean latents predicted at step i. So one compiled program serves every sampler
and every number of steps. The tables are computed on the host in float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ivid2vid_jax.diffusion.schedule import NoiseSchedule

# Frame number that no clip reaches: the seed of the noise that all frames share.
SHARED_NOISE_FRAME = 2**31 - 1
# Replaces alpha_bar = 0 where a sampler divides by it, as in diffusers.
MIN_ALPHA_BAR = 2.0**-24


class SamplerStep(NamedTuple):
    """One step (float32 scalars), or the columns of a table (arrays [steps]).

    Attributes:
        t: timestep given to the network; may be fractional.
        alpha, sigma: x_t = alpha x_0 + sigma eps before the step.
        A, B, C, D: coefficients of the update, see the module's docstring.
    """

    t: jax.Array | np.ndarray
    alpha: jax.Array | np.ndarray
    sigma: jax.Array | np.ndarray
    A: jax.Array | np.ndarray
    B: jax.Array | np.ndarray
    C: jax.Array | np.ndarray
    D: jax.Array | np.ndarray


class SamplerTable(NamedTuple):
    """All steps of a sampler.

    Attributes:
        steps: the columns.
        start: scale of the initial unit noise; 1 except for some spacings of Euler-ancestral.
    """

    steps: SamplerStep
    start: float


class NoiseLevel(Protocol):
    """Anything that has the alpha and sigma of x_t = alpha x_0 + sigma eps."""

    @property
    def alpha(self) -> Any:
        """Scale of the signal."""

    @property
    def sigma(self) -> Any:
        """Scale of the noise."""


def make_sampler(name: str, schedule: NoiseSchedule, steps: int, eta: float = 0.0) -> SamplerTable:
    """The table of a sampler, in float32.

    Args:
        name: one of SAMPLERS.
        schedule: the noise schedule that the network was trained with.
        steps: number of steps, 1 to num_train_timesteps.
        eta: DDIM's share of fresh noise, 0 to 1; 0 for the other samplers.

    Raises:
        ValueError: for an unknown name, or a value out of range.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    if not 1 <= steps <= schedule.num_train_timesteps:
        raise ValueError(f"steps={steps} must be between 1 and {schedule.num_train_timesteps}")
    if not 0.0 <= eta <= 1.0 or (eta and name != "ddim"):
        raise ValueError(f"eta={eta} must be between 0 and 1, and 0 for samplers other than ddim")
    columns, start = BUILDERS[name](schedule, steps, eta)
    return SamplerTable(SamplerStep(*(np.asarray(column, np.float32) for column in columns)), start)


def predicted_x0(x, prediction, step: NoiseLevel, prediction_type: str):
    """The clean latents implied by an eps or v prediction (Salimans & Ho 2022), of x's shape."""
    if prediction_type == "epsilon":
        return (x - step.sigma * prediction) / step.alpha
    return step.alpha * x - step.sigma * prediction


def update(x, x0, previous_x0, noise, step: SamplerStep):
    """The latents at the next timestep. All arrays have one shape."""
    return step.A * x + step.B * x0 + step.C * previous_x0 + step.D * noise


def frame_noise(key, frames, shape, shared=0.0):
    """Unit noise of a clip, [T, *shape], where each frame's noise depends on its number only.

    So a frame has the same noise in every window that contains it.

    Args:
        key: random key of the clip.
        frames: int32 [T], frame numbers in the whole clip.
        shape: shape of one frame.
        shared: share of the variance that all frames have in common, 0 to 1 (the mixed noise of Ge
            et al. 2023, arXiv 2305.10474).
    """
    independent = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(frames)
    common = jax.random.normal(jax.random.fold_in(key, SHARED_NOISE_FRAME), shape)
    return jnp.sqrt(1 - shared) * independent + jnp.sqrt(shared) * common[None]


def sampler_timesteps(
    schedule: NoiseSchedule, steps: int, default: str, rounded: bool = True
) -> np.ndarray:
    """Timesteps from noisy to clean, float64 [steps].

    Args:
        schedule: its `timestep_spacing` is used, if it has one.
        steps: number of timesteps.
        default: the spacing otherwise.
        rounded: whether timesteps are rounded to integers.
    """
    N, spacing = schedule.num_train_timesteps, schedule.timestep_spacing or default
    t: np.ndarray
    if spacing == "linspace":
        t = np.linspace(0, N - 1, steps)[::-1]
    elif spacing == "leading":
        t = np.arange(steps)[::-1] * (N // steps) + float(schedule.steps_offset)
    else:
        # By rounding, arange has one value too many for 62 of the counts up to 1,000. Diffusers
        # keeps it, and samples at timestep -1.
        t = np.round(np.arange(N, 0, -N / steps)[:steps]) - 1
    return np.minimum(np.round(t) if rounded else t, N - 1)


def ddim(schedule: NoiseSchedule, steps: int, eta: float) -> SamplerTable:
    """DDIM (Song et al. 2020, arXiv 2010.02502, equations 12 and 16).

    The timestep after t is t - N // steps, as in diffusers.
    """
    alpha_bar = schedule.alphas_cumprod
    t = sampler_timesteps(schedule, steps, "leading").astype(int)
    t_next = t - schedule.num_train_timesteps // steps
    final = 1.0 if schedule.set_alpha_to_one else alpha_bar[0]
    a, a_next = alpha_bar[t], np.where(t_next >= 0, alpha_bar[np.maximum(t_next, 0)], final)
    D = eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
    # x_next = sqrt(a_next) x0 + sqrt(1 - a_next - D^2) eps, with eps = (x - sqrt(a) x0) / sqrt(1-a)
    A = np.sqrt(np.maximum(1 - a_next - D**2, 0)) / np.sqrt(1 - a)
    B = np.sqrt(a_next) - A * np.sqrt(a)
    table = SamplerStep(t=t, alpha=np.sqrt(a), sigma=np.sqrt(1 - a), A=A, B=B, C=0 * A, D=D)
    return SamplerTable(table, start=1.0)


def euler_ancestral(schedule: NoiseSchedule, steps: int, eta: float) -> SamplerTable:
    """Ancestral Euler steps (Karras et al. 2022, arXiv 2206.00364; k-diffusion).

    k-diffusion's variable is y = x sqrt(1 + s^2), with the noise level s = sigma / alpha. From s
    to s_next it steps down to s_down and adds noise of deviation s_up.
    """
    alpha_bar = np.maximum(schedule.alphas_cumprod, MIN_ALPHA_BAR)
    t = sampler_timesteps(schedule, steps, "linspace", rounded=False)
    levels = np.interp(t, np.arange(len(alpha_bar)), np.sqrt((1 - alpha_bar) / alpha_bar))
    levels = np.append(levels, 0.0)
    s, s_next = levels[:-1], levels[1:]
    s_up = np.sqrt(s_next**2 * (s**2 - s_next**2) / s**2)
    s_down = np.sqrt(s_next**2 - s_up**2)
    scale, scale_next = np.sqrt(1 + s**2), np.sqrt(1 + s_next**2)  # y = scale * x
    table = SamplerStep(
        t=t,
        alpha=1 / scale,
        sigma=s / scale,
        A=s_down / s * scale / scale_next,
        B=(1 - s_down / s) / scale_next,
        C=0 * t,
        D=s_up / scale_next,
    )
    # Unless the spacing is "leading", diffusers starts from y = s noise.
    spacing = schedule.timestep_spacing or "linspace"
    return SamplerTable(table, 1.0 if spacing == "leading" else float(s[0] / scale[0]))


def dpm_solver_pp(schedule: NoiseSchedule, steps: int, eta: float) -> SamplerTable:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    It ends at sigma = 0; the first and the last step are of first order.
    """
    alpha_bar = schedule.alphas_cumprod
    if schedule.rescale_betas_zero_snr:
        alpha_bar = np.append(alpha_bar[:-1], MIN_ALPHA_BAR)
    N, spacing = schedule.num_train_timesteps, schedule.timestep_spacing or "linspace"
    t: np.ndarray
    if spacing == "linspace":  # diffusers omits the cleanest of steps + 1 points
        t = np.round(np.linspace(0, N - 1, steps + 1))[::-1][:-1]
    elif spacing == "leading":
        t = np.arange(steps + 1)[::-1][:-1] * (N // (steps + 1)) + float(schedule.steps_offset)
        t = np.minimum(t, N - 1)
    else:
        t = sampler_timesteps(schedule, steps, spacing)
    a = np.append(alpha_bar[t.astype(int)], 1.0)
    alpha, sigma = np.sqrt(a), np.sqrt(1 - a)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha) - np.log(sigma)  # half the log-SNR; infinite at the end
    h = np.diff(lam)
    r = np.append(np.inf, np.diff(lam)[:-1]) / np.where(np.isinf(h), 1.0, h)
    # x_next = sigma_next / sigma x + gain ((1 + half) x0 - half previous_x0), half = 1 / (2 r)
    with np.errstate(divide="ignore"):
        half = np.where(r > 0, 0.5 / r, 0.0)  # r = 0 after a timestep that occurs twice
    half[0] = half[-1] = 0.0
    gain = alpha[1:] * -np.expm1(-h)
    table = SamplerStep(
        t=t,
        alpha=alpha[:-1],
        sigma=sigma[:-1],
        A=sigma[1:] / sigma[:-1],
        B=gain * (1 + half),
        C=-gain * half,
        D=0 * gain,
    )
    return SamplerTable(table, start=1.0)


BUILDERS: dict[str, Callable[[NoiseSchedule, int, float], SamplerTable]] = {
    "ddim": ddim,
    "euler_ancestral": euler_ancestral,
    "dpm++": dpm_solver_pp,
}
SAMPLERS = tuple(BUILDERS)


def sampler_steps(table: SamplerTable) -> list[SamplerStep]:
    """The steps as device scalars, transferred at once so that the loop transfers nothing."""
    columns = [np.asarray(column) for column in table.steps]
    return jax.device_put(
        [SamplerStep(*(column[i] for column in columns)) for i in range(len(columns[0]))]
    )
