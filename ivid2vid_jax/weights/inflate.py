"""2D -> 3D inflation as a pure function on parameter trees."""

import functools
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp

from ivid2vid_jax.models.temporal import is_temporal_key
from ivid2vid_jax.models.unet3d import InflatedUNet3D, UNetConfig
from ivid2vid_jax.weights import random_init
from ivid2vid_jax.weights.torch_keys import torch_key


def inflate_params(params: Any, source: UNetConfig, target: UNetConfig, seed: int) -> Any:
    """Adds temporal layers to the parameters of `source` and widens conv_in, to fit `target`.

    New temporal layers end in a zero projection and new input channels (those of the source clip)
    are zero, so the result computes what `params` computed, frame by frame. The bias of conv_in is
    copied. New leaves are float32; the others keep their dtype.

    Args:
        params: parameter tree of `source`.
        source: config of `params`.
        target: config of the result.
        seed: seed of the new leaves.

    Raises:
        ValueError: the nets differ in more than temporal layers and input channels.
    """
    flat = flax.traverse_util.flatten_dict(params)
    target_shapes = flax.traverse_util.flatten_dict(unet_param_shapes(target))
    new_paths = [
        path for path in target_shapes if path not in flat and is_temporal_key(torch_key(path))
    ]
    mismatched = sorted(map(torch_key, (target_shapes.keys() - set(new_paths)) ^ flat.keys()))
    if mismatched:
        raise ValueError(
            "the target net differs from the stored one in more than temporal layers: "
            + ", ".join(mismatched[:8])
        )
    extra_channels = target.in_channels - source.in_channels
    if extra_channels < 0:
        raise ValueError(
            f"the stored net takes {source.in_channels} channels and cannot be narrowed to "
            f"{target.in_channels}"
        )

    new_leaves = {}
    if new_paths:
        new_leaves = random_init.init_params(unet_initializer(target), seed, new_paths)
    inflated = {
        path: jnp.asarray(new_leaves[path]) if path in new_leaves else flat[path]
        for path in target_shapes
    }
    inflated["conv_in", "kernel"] = jnp.pad(
        inflated["conv_in", "kernel"], ((0, 0), (0, 0), (0, extra_channels), (0, 0))
    )
    return flax.traverse_util.unflatten_dict(inflated)


def unet_param_shapes(config: UNetConfig) -> Any:
    """The U-Net's parameter tree as jax.ShapeDtypeStruct leaves (float32); computes nothing."""
    return jax.eval_shape(unet_initializer(config), jax.random.key(0))


@functools.cache
def unet_initializer(config: UNetConfig) -> Callable[[jax.Array], Any]:
    """The function key -> initial parameters of the U-Net, by Flax.

    JAX traces a function once; cached, it is traced once per config and not once per use.
    """

    def init(key):
        side = config.downscale
        latents = jnp.zeros((1, 1, side, side, config.in_channels))
        timesteps = jnp.zeros((1,))
        text = jnp.zeros((1, 1, config.cross_attention_dim))
        return InflatedUNet3D(config).init(key, latents, timesteps, text)["params"]

    return init
