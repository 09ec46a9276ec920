"""Temporal layers, and the table of where each kind of them stands in the U-Net.

All kinds start with a zero output projection (kernel and bias), so the freshly inflated network
equals the 2D network frame by frame.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivid2vid_jax.models.layers import Dense, GroupNorm, matmul, platform
from ivid2vid_jax.models.sharded_reshape import (
    fold_positions,
    fold_positions_time_major,
    shard_over_frames,
    shard_over_positions,
)
from ivid2vid_jax.models.transformer import TransformerBlock

ZERO_INIT = dict(kernel_init=nn.initializers.zeros, bias_init=nn.initializers.zeros)


class TemporalConvLayer(nn.Module):
    """Four steps of norm - SiLU - temporal convolution (3x1x1), with a residual connection.

    Diffusers' `TemporalConvLayer` (ModelScope, Wang et al. 2023, arXiv 2308.06571). Norms pool
    over the clip, the last step starts at zero, and dropout acts in steps 2 to 4.
    """

    groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, T, H, W, C] -> the same shape."""
        C = x.shape[-1]
        h = x = shard_over_positions(x)
        for step in (1, 2, 3, 4):
            norm = GroupNorm(self.groups, 1e-5, norm_axes=4, dtype=self.dtype, name=f"conv{step}.0")
            h = nn.silu(norm(h))
            if step > 1 and self.dropout:
                h = nn.Dropout(self.dropout, deterministic=False)(h)
            init = ZERO_INIT if step == 4 else {}
            # PyTorch's Sequential has a dropout at index 2 of steps 2 to 4.
            name = f"conv{step}.{2 if step == 1 else 3}"
            h = TemporalConv1D(C, self.dtype, name=name, **init)(h)
        return shard_over_frames(x + h)


class TemporalConv1D(nn.Module):
    """Convolution over 3 frames x 1 x 1 pixels, zero-padded in time.

    The kernel is stored 5-D, [3, 1, 1, C, features]. On CPU it is one matrix product over the
    three concatenated taps, 2 to 4 times as fast as XLA's 3D convolution. On TPU it is a 1D
    convolution over time, which moves two thirds of the matrix product's bytes forward and less
    than half backward (docs/tpu-plan.md). On GPU it is a 2D convolution over time and positions,
    1.3 to 1.4 times as fast as the matrix product (docs/benchmarks.md).
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x):
        """[B, T, H, W, C] -> [B, T, H, W, features]."""
        C = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (3, 1, 1, C, self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        taps, x = kernel.astype(self.dtype)[:, 0, 0], x.astype(self.dtype)  # taps: [3, C, features]
        if x.shape[1] == 1:  # a still image: the outer taps see padding only
            out = matmul(x, taps[1])
        elif platform() == "tpu":
            out = temporal_conv_tpu(x, taps)
        elif platform() in ("gpu", "cuda"):
            out = temporal_conv_gpu(x, taps)
        else:
            out = temporal_conv_matmul(x, taps)
        return out + bias.astype(self.dtype).reshape(1, 1, 1, 1, -1)


def temporal_conv_tpu(x, taps):
    """Temporal convolution of x [B, T, H, W, C] as a 1D convolution at every position."""
    # Without the barrier XLA recomputes the preceding norm for each tap, in float32.
    rows, unfold = fold_positions_time_major(jax.lax.optimization_barrier(x))
    out = jax.lax.conv_general_dilated(
        rows, taps, (1,), ((1, 1),), dimension_numbers=("HNC", "HIO", "HNC")
    )
    return unfold(out)


def temporal_conv_gpu(x, taps):
    """Temporal convolution of x [B, T, H, W, C] as a 2D one of size 3x1 over (time, positions)."""
    B, T, H, W, C = x.shape
    out = jax.lax.conv_general_dilated(
        x.reshape(B, T, H * W, C),
        taps[:, None],
        (1, 1),
        ((1, 1), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out.reshape(B, T, H, W, -1)


def temporal_conv_matmul(x, taps):
    """Temporal convolution of x [B, T, H, W, C] as one matrix product."""
    T = x.shape[1]
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    neighbours = jnp.concatenate([x[:, i : i + T] for i in range(3)], axis=-1)  # [B, T, H, W, 3C]
    return matmul(neighbours, taps.reshape(-1, taps.shape[-1]))


class TemporalTransformer(nn.Module):
    """Attention over time at every position, with a residual connection.

    Diffusers' `TransformerTemporalModel`: a norm, dense projections, and one block of two
    self-attentions and a feed-forward layer. It has no positional encoding, since the temporal
    convolutions provide the order of frames. With `max_positions` it is AnimateDiff's motion
    module (Guo et al. 2023, arXiv 2307.04725), which has one.

    Attributes:
        max_positions: length of the positional encoding, in frames; 0 for none.
        norm_axes: 4 pools the norm over the clip, 3 frame by frame (see `GroupNorm`).
    """

    heads: int
    head_dim: int
    groups: int = 32
    dtype: jnp.dtype = jnp.float32
    max_positions: int = 0
    norm_axes: int = 4

    @nn.compact
    def __call__(self, x):
        """[B, T, H, W, C] -> the same shape."""
        x, C, inner = shard_over_positions(x), x.shape[-1], self.heads * self.head_dim
        h = GroupNorm(self.groups, 1e-6, self.norm_axes, self.dtype, name="norm")(x)
        h, unfold = fold_positions(h)
        h = Dense(inner, dtype=self.dtype, name="proj_in")(h)
        block = TransformerBlock(
            self.heads,
            self.head_dim,
            dtype=self.dtype,
            max_positions=self.max_positions,
            name="transformer_blocks.0",
        )
        h = block(h[:, None])[:, 0]
        h = Dense(C, dtype=self.dtype, name="proj_out", **ZERO_INIT)(h)
        return shard_over_frames(x + unfold(h))


# ---- Where they stand in the U-Net.
#
# A builder returns a layer for a level with `heads` heads of width `head_dim`; `remat` wraps the
# layer's class (see models/remat.py).


def temporal_convolution(config, heads, head_dim, dtype: Any, name: str, remat: Callable):
    """Builds a temporal convolution layer."""
    layer = remat(TemporalConvLayer)
    return layer(config.norm_num_groups, config.temporal_dropout, dtype, name=name)


def temporal_attention(config, heads, head_dim, dtype: Any, name: str, remat: Callable):
    """Builds a temporal transformer."""
    layer = remat(TemporalTransformer)
    return layer(heads, head_dim, config.norm_num_groups, dtype, name=name)


def motion_module(config, heads, head_dim, dtype: Any, name: str, remat: Callable):
    """Builds an AnimateDiff motion module, whose number of heads is the same at every level."""
    channels, motion_heads = heads * head_dim, config.motion_num_attention_heads
    layer = remat(TemporalTransformer)
    return layer(
        motion_heads,
        channels // motion_heads,
        config.norm_num_groups,
        dtype,
        max_positions=config.motion_max_seq_length,
        norm_axes=4 if config.motion_group_norm == "clip" else 3,
        name=name,
    )


# Kind -> insertion point -> (parameter path, builder). Insertion points: "input", after conv_in;
# "resnet", after every resnet; "attention", after every spatial transformer; "layer", after every
# resnet with its transformer, if it has one. To add a kind, write its module and add it here.
TEMPORAL_LAYERS: dict[str, dict[str, tuple[str, Callable]]] = {
    "conv": {"resnet": ("temp_convs.{}", temporal_convolution)},
    "attention": {
        "input": ("transformer_in", temporal_attention),
        "attention": ("temp_attentions.{}", temporal_attention),
    },
    "motion": {"layer": ("motion_modules.{}", motion_module)},
    "tune_a_video": {},  # inside the spatial transformers, see `TransformerBlock.along_time`
}
TUNE_A_VIDEO_MODULES = {"attn_temp", "norm_temp"}


def is_temporal_key(name: str) -> bool:
    """Whether a PyTorch key, or a Flax path joined by dots, belongs to a temporal layer."""
    modules = {
        path.partition(".")[0]
        for insertion_points in TEMPORAL_LAYERS.values()
        for path, _ in insertion_points.values()
    }
    return not (modules | TUNE_A_VIDEO_MODULES).isdisjoint(name.split("."))
