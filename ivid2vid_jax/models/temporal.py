"""Temporal layers, and the table that says where each kind of them stands in the U-Net.

A kind fills slots: "input" (after conv_in), "resnet" (after every resnet), "attention" (after every spatial
transformer) and "layer" (after every layer of a level, be it a resnet with a transformer or a resnet alone). All kinds
start with a zero output projection (weight and bias), so the freshly inflated net equals the 2D net frame by frame. To add a kind: write its module, and add its line to `SLOTS`.
"""

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

ZERO = dict(kernel_init=nn.initializers.zeros, bias_init=nn.initializers.zeros)


class TemporalConvLayer(nn.Module):
    """Four norm-SiLU-conv(3x1x1) steps along time around a residual: [B, T, H, W, C] -> the same shape.

    As diffusers' `TemporalConvLayer` (ModelScope): norms pool over the clip, the last step starts at zero, dropout acts in
    steps 2-4. Kernels are stored 5-D, [3, 1, 1, C, C].
    """

    groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        C = x.shape[-1]
        h = x = shard_over_positions(x)
        for step in (1, 2, 3, 4):
            h = nn.silu(GroupNorm(self.groups, 1e-5, 4, self.dtype, name=f"conv{step}.0")(h))
            if step > 1 and self.dropout:
                h = nn.Dropout(self.dropout, deterministic=False)(h)
            init = ZERO if step == 4 else {}
            h = TemporalConv1D(C, self.dtype, name=f"conv{step}.{2 if step == 1 else 3}", **init)(h)
        return shard_over_frames(x + h)


class TemporalConv1D(nn.Module):
    """Convolution of 3 frames x 1 x 1 pixels, zero-padded in time: [B, T, H, W, C] -> [B, T, H, W, features].

    As one matrix product over the three taps side by side, 2-4x faster on CPU than XLA's 3D convolution; on TPU as a 1D convolution of every position,
    which moves two thirds of the former's bytes forward and less than half backward (docs/tpu-plan.md).
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x):
        B, T, H, W, C = x.shape
        kernel = self.param("kernel", self.kernel_init, (3, 1, 1, C, self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        taps, x = kernel.astype(self.dtype)[:, 0, 0], x.astype(self.dtype)  # [3, C, features]
        if T == 1:  # a still image: the outer taps meet padding alone
            out = matmul(x, taps[1])
        elif platform() == "tpu":
            rows, unfold = fold_positions_time_major(
                jax.lax.optimization_barrier(x)
            )  # without it norms are computed anew for each tap, in float32
            out = unfold(
                jax.lax.conv_general_dilated(
                    rows, taps, (1,), ((1, 1),), dimension_numbers=("HNC", "HIO", "HNC")
                )
            )
        else:
            x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
            out = matmul(
                jnp.concatenate([x[:, i : i + T] for i in range(3)], axis=-1),
                taps.reshape(3 * C, self.features),
            )
        return out + bias.astype(self.dtype).reshape(1, 1, 1, 1, -1)


class TemporalTransformer(nn.Module):
    """Attention along time at every position: [B, T, H, W, C] -> the same shape.

    As diffusers' `TransformerTemporalModel`: norm pooled over the clip, dense projections, one block of two
    self-attentions and a feed-forward, no position code (the temporal convolutions tell the order of the frames).
    places: length of a position code, as AnimateDiff's motion modules have it (Guo et al. 2023, arXiv 2307.04725); pool: of the norm, see `GroupNorm`.
    """

    heads: int
    head_dim: int
    groups: int = 32
    dtype: jnp.dtype = jnp.float32
    max_positions: int = 0
    norm_axes: int = 4

    @nn.compact
    def __call__(self, x):
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
        return shard_over_frames(x + unfold(Dense(C, dtype=self.dtype, name="proj_out", **ZERO)(h)))


def temporal_convolution(config, heads, head_dim, dtype, name, wrap=lambda module: module):
    return wrap(TemporalConvLayer)(
        config.norm_num_groups, config.temporal_dropout, dtype, name=name
    )


def temporal_attention(config, heads, head_dim, dtype, name, wrap=lambda module: module):
    return wrap(TemporalTransformer)(heads, head_dim, config.norm_num_groups, dtype, name=name)


def motion_module(config, heads, head_dim, dtype, name, wrap=lambda module: module):
    heads, width, pool = (
        config.motion_num_attention_heads,
        heads * head_dim,
        4 if config.motion_group_norm == "clip" else 3,
    )
    return wrap(TemporalTransformer)(
        heads,
        width // heads,
        config.norm_num_groups,
        dtype,
        config.motion_max_seq_length,
        pool,
        name=name,
    )


SLOTS = {
    "conv": {"resnet": ("temp_convs.{}", temporal_convolution)},
    "attention": {
        "input": ("transformer_in", temporal_attention),
        "attention": ("temp_attentions.{}", temporal_attention),
    },
    "motion": {"layer": ("motion_modules.{}", motion_module)},
    "tune_a_video": {},  # inside the spatial transformers, see `TransformerBlock.along_time`
}
INSIDE = {"attn_temp", "norm_temp"}  # what they are called there


def is_temporal_key(name: str) -> bool:
    """Whether a PyTorch key or joined Flax path belongs to a temporal layer of any kind."""
    heads = {pattern.partition(".")[0] for slots in SLOTS.values() for pattern, _ in slots.values()}
    return not (heads | INSIDE).isdisjoint(name.split("."))
