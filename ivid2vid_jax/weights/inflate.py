"""2D -> 3D inflation as a pure function on parameter trees."""

from typing import Any

import flax
import jax
import jax.numpy as jnp

from ivid2vid_jax.models.temporal import is_temporal_key
from ivid2vid_jax.models.unet3d import InflatedUNet3D, UNetConfig
from ivid2vid_jax.weights import random_init
from ivid2vid_jax.weights.torch_keys import torch_key


def inflate_params(params: Any, source: UNetConfig, target: UNetConfig, seed: int) -> Any:
    """The parameters of `source`, made to fit `target`: fresh temporal layers, and conv_in widened from 4 to 8 channels.

    Fresh temporal layers end in a zero projection, so the result computes what `params` computed, frame by frame. The new
    input channels (the source clip's) are zero and the bias is copied. Fresh leaves are float32, the others keep their type.
    Raises ValueError where the two nets differ in anything but temporal layers and input channels.
    """
    flat = flax.traverse_util.flatten_dict(params)
    abstract = flax.traverse_util.flatten_dict(unet_param_shapes(target))
    new = [path for path in abstract if path not in flat and is_temporal_key(torch_key(path))]
    stray = sorted(map(torch_key, (abstract.keys() - set(new)) ^ flat.keys()))
    if stray:
        raise ValueError(
            f"the target net differs from the stored one in more than temporal layers: {', '.join(stray[:8])}"
        )

    made = (
        random_init.init_params(lambda key: init_unet_params(target, key), seed, new) if new else {}
    )
    out = {path: jnp.asarray(made[path]) if path in made else flat[path] for path in abstract}
    kernel = out[("conv_in", "kernel")]
    extra = target.in_channels - source.in_channels
    if extra < 0:
        raise ValueError(
            f"the stored net takes {source.in_channels} channels and cannot be narrowed to {target.in_channels}"
        )
    out[("conv_in", "kernel")] = jnp.pad(kernel, ((0, 0), (0, 0), (0, extra), (0, 0)))
    return flax.traverse_util.unflatten_dict(out)


def unet_param_shapes(config: UNetConfig) -> Any:
    """The parameter tree of the net as jax.ShapeDtypeStruct leaves (float32); nothing is computed."""
    return jax.eval_shape(lambda key: init_unet_params(config, key), jax.random.key(0))


def init_unet_params(config: UNetConfig, key: jax.Array) -> Any:
    """All parameters of the net, drawn afresh."""
    side = config.downscale
    x = jnp.zeros((1, 1, side, side, config.in_channels))
    return InflatedUNet3D(config).init(
        key, x, jnp.zeros((1,)), jnp.zeros((1, 1, config.cross_attention_dim))
    )["params"]
