"""Training losses: noise prediction, inter-frames consistency, and weights of timesteps.

Latents are [B, T, h, w, C]. alpha_bar is [B], the schedule's alpha_bar_t at each clip's timestep,
and SNR = alpha_bar / (1 - alpha_bar). Every loss is a mean over a clip's elements, [B] in float32,
so that it can be weighted by timestep.

The paper's inter-frames consistency loss (frame difference loss in the first preprint) compares
the changes from frame to frame in the prediction with those in the target.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss: weight of the timestep * (noise loss + frame_weight * inter-frames consistency)."""

    # Inter-frames consistency loss. match: frame differences of the prediction against those of
    # the target; match_x0: the same for the predicted clean latents; smooth_x0: frame differences
    # of the predicted clean latents, as small as possible.
    frame_difference: Literal["none", "match", "match_x0", "smooth_x0"] = "match"

    # Weight of the inter-frames consistency loss. For errors that are independent between frames,
    # "match" is twice the noise loss.
    frame_weight: float = 0.25

    # gamma of min-SNR weighting (Hang et al. 2023, arXiv 2303.09556, uses 5); 0 turns it off.
    snr_gamma: float = 0.0

    # Weights timesteps by the error of the predicted clean latents; excludes snr_gamma. match_x0 is
    # such an error already: with x0_weighting its timesteps are weighted twice.
    x0_weighting: bool = False

    # Largest weight 1/SNR of match_x0 and x0_weighting with epsilon prediction.
    snr_clip: float = 5.0


def broadcast_per_clip(alpha_bar, like):
    """[B] -> [B, 1, 1, ...], of the rank of `like`."""
    return alpha_bar.reshape(-1, *(1,) * (like.ndim - 1))


def add_noise(x0, noise, alpha_bar):
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps (Ho et al. 2020, arXiv 2006.11239)."""
    alpha_bar = broadcast_per_clip(alpha_bar, x0)
    return jnp.sqrt(alpha_bar) * x0 + jnp.sqrt(1 - alpha_bar) * noise


def prediction_target(x0, noise, alpha_bar, prediction_type: str):
    """What the network learns to predict.

    eps, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022, arXiv
    2202.00512).
    """
    if prediction_type == "epsilon":
        return noise
    alpha_bar = broadcast_per_clip(alpha_bar, x0)
    return jnp.sqrt(alpha_bar) * noise - jnp.sqrt(1 - alpha_bar) * x0


def x0_difference(x_t, prediction, alpha_bar, prediction_type: str):
    """sqrt(alpha_bar) (x0_hat[i+1] - x0_hat[i]) of the predicted clean latents x0_hat.

    The factor keeps it finite at alpha_bar = 0. Returns [B, T-1, h, w, C].
    """
    alpha_bar = broadcast_per_clip(alpha_bar, x_t)
    alpha, sigma = jnp.sqrt(alpha_bar), jnp.sqrt(1 - alpha_bar)
    if prediction_type == "epsilon":
        scaled_x0 = x_t - sigma * prediction
    else:
        scaled_x0 = alpha * (alpha * x_t - sigma * prediction)
    return jnp.diff(scaled_x0, axis=1)


def mse_per_clip(x):
    """Mean square of each clip's elements: [B, ...] -> [B]."""
    return jnp.square(x).reshape(x.shape[0], -1).mean(axis=1)


def frame_difference(x_t, prediction, target, alpha_bar, prediction_type: str, config: LossConfig):
    """The inter-frames consistency loss of each clip, [B]; zero for clips of one frame.

    The paper's text was not available; these are three readings of its description. With
    prediction p, target y, clean latents x0 and their prediction x0_hat, each is the mean square of

    - match:     (p[i+1] - p[i]) - (y[i+1] - y[i]), in the space of the prediction (eps or v).
    - match_x0:  (x0_hat[i+1] - x0_hat[i]) - (x0[i+1] - x0[i]). This is match / SNR for eps, with
                 1/SNR at most `snr_clip`, and (1 - alpha_bar) match for v.
    - smooth_x0: sqrt(alpha_bar) (x0_hat[i+1] - x0_hat[i]). The factor reduces the weight of steps
                 that are nearly noise. Its minimum is a frozen clip.
    """
    if x_t.shape[1] == 1 or config.frame_difference == "none":
        return jnp.zeros(x_t.shape[0], prediction.dtype)
    if config.frame_difference == "smooth_x0":
        return mse_per_clip(x0_difference(x_t, prediction, alpha_bar, prediction_type))
    match = mse_per_clip(jnp.diff(prediction - target, axis=1))
    if config.frame_difference == "match":
        return match
    return match * x0_loss_weight(alpha_bar, config.snr_clip, prediction_type)


def x0_loss_weight(alpha_bar, clip: float, prediction_type: str):
    """The factor from a squared error of the prediction to one of the clean latents, [B].

    1 / SNR for eps, at most `clip`; 1 - alpha_bar for v.
    """
    if prediction_type == "epsilon":
        return jnp.minimum((1 - alpha_bar) / jnp.maximum(alpha_bar, 1e-8), clip)
    return 1 - alpha_bar


def timestep_weight(alpha_bar, prediction_type: str, config: LossConfig):
    """The weight of each clip's loss, [B]."""
    if config.x0_weighting:
        return x0_loss_weight(alpha_bar, config.snr_clip, prediction_type)
    return min_snr_weight(alpha_bar, config.snr_gamma, prediction_type)


def min_snr_weight(alpha_bar, gamma: float, prediction_type: str):
    """The min-SNR-gamma weight of each clip's loss, [B] (Hang et al. 2023, arXiv 2303.09556).

    min(SNR, gamma) / SNR for eps, min(SNR, gamma) / (SNR + 1) for v, and 1 for gamma = 0. With a
    zero-terminal-SNR schedule the last timestep has weight 0.
    """
    if not gamma:
        return jnp.ones_like(alpha_bar)
    if prediction_type == "epsilon":
        return jnp.minimum(1.0, gamma * (1 - alpha_bar) / jnp.maximum(alpha_bar, 1e-8))
    return jnp.minimum(alpha_bar, gamma * (1 - alpha_bar))  # SNR + 1 = 1 / (1 - alpha_bar)
