"""`denoise(params, x_t, t, cond)`: all that samplers and losses know of the network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ivid2vid_jax.models import InflatedUNet3D, UNetConfig


class Condition(NamedTuple):
    """What the network is conditioned on.

    Attributes:
        text: text embeddings [B, L, D].
        source: latents of the source clip [B, T, h, w, C], NOT multiplied by the scaling factor,
            zero where the condition is dropped. None for a network without a source clip (text to
            image).
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
    """Builds `denoise(params, x_t, t, cond, rngs=None)` around the U-Net.

    It takes the U-Net's parameters, noisy latents x_t [B, T, h, w, C], timesteps t [B] and a
    `Condition`, and returns the eps or v prediction [B, T, h, w, C] in float32. The source latents
    are concatenated after the noisy ones on the channel axis.
    """
    unet = InflatedUNet3D(config, attention_impl, remat, dtype, train)

    def denoise(params, x_t, t, cond: Condition, rngs=None):
        x = x_t if cond.source is None else jnp.concatenate([x_t, cond.source], axis=-1)
        return unet.apply({"params": params}, x, t, cond.text, rngs=rngs)

    return denoise
