"""The one `denoise(params, x_t, t, cond)` that samplers and losses know of the net."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ivid2vid_jax.models import InflatedUNet3D, UNetConfig


class Condition(NamedTuple):
    """What the net is told: text [B, L, D] and the source clip's latents [B, T, h, w, C], unscaled, zero where dropped.

    source is None for a net without a source clip (text to image).
    """

    text: jax.Array
    source: jax.Array | None


def make_denoiser(
    config: UNetConfig,
    attention_impl: str = "auto",
    remat: str = "none",
    dtype: Any = jnp.float32,
    train: bool = False,
) -> Callable:
    """denoise(params, x_t [B, T, h, w, C], t [B], cond, rngs=None) -> eps or v prediction [B, T, h, w, C], float32.

    params: the U-Net's tree. Source latents are concatenated behind the noisy ones.
    """
    unet = InflatedUNet3D(config, attention_impl, remat, dtype, train)

    def denoise(params, x_t, t, cond: Condition, rngs=None):
        x = x_t if cond.source is None else jnp.concatenate([x_t, cond.source], axis=-1)
        return unet.apply({"params": params}, x, t, cond.text, rngs=rngs)

    return denoise
