"""Training losses: noise prediction, the frame-difference loss in its three readings, min-SNR weights.

Latents are [B, T, h, w, C]; alpha_bar is the schedule's cumulative signal share at each clip's timestep, [B]. Every loss is a mean
over a clip's elements, [B] float32, so that weights and bands of timesteps can be applied to it.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised: weight of the timestep * (noise loss + frame_weight * frame difference)."""

    frame_difference: Literal["none", "match", "match_x0", "smooth_x0"] = (
        "match"  # see `frame_difference`
    )
    frame_weight: float = 0.25  # of the frame-difference loss; for frame-independent errors "match" is twice the noise loss
    snr_gamma: float = (
        0.0  # min-SNR weighting (Hang et al. 2023, arXiv 2303.09556, uses 5); 0 = off
    )
    x0_weighting: bool = False  # weigh timesteps so that the error of the predicted clean latents counts; excludes snr_gamma
    snr_clip: float = (
        5.0  # match_x0 and clean with epsilon prediction: most weight that 1/SNR may give
    )


def broadcast_per_clip(alpha_bar, like):
    """[B] -> [B, 1, 1, ...], to scale clips."""
    return alpha_bar.reshape(-1, *(1,) * (like.ndim - 1))


def add_noise(x0, noise, alpha_bar):
    """x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise."""
    alpha_bar = broadcast_per_clip(alpha_bar, x0)
    return jnp.sqrt(alpha_bar) * x0 + jnp.sqrt(1 - alpha_bar) * noise


def prediction_target(x0, noise, alpha_bar, prediction_type: str):
    """What the net is to predict: the noise, or v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022)."""
    if prediction_type == "epsilon":
        return noise
    alpha_bar = broadcast_per_clip(alpha_bar, x0)
    return jnp.sqrt(alpha_bar) * noise - jnp.sqrt(1 - alpha_bar) * x0


def x0_difference(x_t, prediction, alpha_bar, prediction_type: str):
    """sqrt(alpha_bar) times the frame differences of the predicted clean latents: finite at alpha_bar = 0, [B, T-1, h, w, C]."""
    root, sigma = (
        jnp.sqrt(broadcast_per_clip(alpha_bar, x_t)),
        jnp.sqrt(1 - broadcast_per_clip(alpha_bar, x_t)),
    )
    scaled = (
        x_t - sigma * prediction
        if prediction_type == "epsilon"
        else root * (root * x_t - sigma * prediction)
    )
    return jnp.diff(scaled, axis=1)


def mse_per_clip(x):
    """Mean of squares of each clip: [B, ...] -> [B]."""
    return jnp.square(x).reshape(x.shape[0], -1).mean(axis=1)


def frame_difference(x_t, prediction, target, alpha_bar, prediction_type: str, config: LossConfig):
    """The frame-difference loss of each clip, [B]; zero for a clip of one frame.

    match: || (p[i+1] - p[i]) - (y[i+1] - y[i]) ||^2 of prediction p and target y, in the net's own prediction space.
    match_x0: the same of predicted and true clean latents, which is match / SNR for epsilon (weight at most `snr_clip`) and
    (1 - alpha_bar) match for v. smooth_x0: || x0[i+1] - x0[i] ||^2 of the predicted clean latents, times alpha_bar, so that steps
    that are nearly noise say little; its optimum is a frozen clip. (The paper's text could not be had; these are the readings of it.)
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
    """What makes a squared error of the prediction one of the clean latents, [B]: 1 / SNR for epsilon, at most `clip`; 1 - alpha_bar for v."""
    if prediction_type == "epsilon":
        return jnp.minimum((1 - alpha_bar) / jnp.maximum(alpha_bar, 1e-8), clip)
    return 1 - alpha_bar


def timestep_weight(alpha_bar, prediction_type: str, config: LossConfig):
    """The weight of each clip's loss, [B]."""
    if config.x0_weighting:
        return x0_loss_weight(alpha_bar, config.snr_clip, prediction_type)
    return min_snr_weight(alpha_bar, config.snr_gamma, prediction_type)


def min_snr_weight(alpha_bar, gamma: float, prediction_type: str):
    """min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v, [B]; 1 for gamma = 0.

    With a zero-terminal-SNR schedule the very last timestep has weight 0.
    """
    if not gamma:
        return jnp.ones_like(alpha_bar)
    if prediction_type == "epsilon":
        return jnp.minimum(1.0, gamma * (1 - alpha_bar) / jnp.maximum(alpha_bar, 1e-8))
    return jnp.minimum(alpha_bar, gamma * (1 - alpha_bar))  # SNR + 1 = 1 / (1 - alpha_bar)
