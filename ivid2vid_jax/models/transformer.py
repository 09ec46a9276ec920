"""Transformer blocks of the U-Net: the spatial one of Stable Diffusion, and the block that the temporal one shares."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from ivid2vid_jax.models.attention import Attention
from ivid2vid_jax.models.layers import Conv, Dense, GroupNorm, gelu, is_16bit, matmul
from ivid2vid_jax.models.sharded_reshape import (
    fold_positions,
    fold_time,
    shard_over_frames,
    shard_over_positions,
)


def layer_norm(name, dtype):
    """LayerNorm as torch computes it: variance in float32, in two passes but for 16-bit results (see `GroupNorm`), eps 1e-5."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=is_16bit(dtype), dtype=dtype, name=name)


class GEGLU(nn.Module):
    """Gated GELU (Shazeer 2020): [..., C] -> [..., features]; the exact (erf) GELU."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        h, gate = SplitDense(self.features, self.dtype, name="proj")(x)
        return h * gelu(gate)


class SplitDense(nn.Module):
    """A dense layer of twice `features` outputs, whose two halves are computed apart: [..., C] -> two of [..., features].

    So the gate is applied where a product is made, and the doubled width is never written to memory: on TPU that is two thirds of the
    feed-forward's traffic.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (x.shape[-1], 2 * self.features)
        ).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (2 * self.features,)).astype(self.dtype)
        row = (1,) * (x.ndim - 1) + (self.features,)
        halves = zip(jnp.split(kernel, 2, axis=1), jnp.split(bias, 2), strict=True)
        return tuple(matmul(x.astype(self.dtype), k) + b.reshape(row) for k, b in halves)


class FeedForward(nn.Module):
    """Dense - GEGLU - dense with a fourfold inner width: [..., C] -> [..., C]."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        C = x.shape[-1]
        return Dense(C, dtype=self.dtype, name="net.2")(GEGLU(4 * C, self.dtype, name="net.0")(x))


def sinusoidal_encoding(length: int, features: int, xp=np):
    """float32 [1, length, features]: sines of a place at even features, cosines at odd ones (Vaswani et al. 2017). xp: numpy or jax.numpy."""
    angles = xp.arange(length).reshape(-1, 1) * xp.exp(
        xp.arange(0, features, 2) * (-math.log(10000.0) / features)
    ).reshape(1, -1)
    return (
        xp.stack([xp.sin(angles), xp.cos(angles)], axis=-1)
        .reshape(1, length, -1)[..., :features]
        .astype(np.float32)
    )


class PositionalEncoding(nn.Module):
    """Adds each place's code to x [N, L, C]. The table of `length` places, `pe`, is stored with the weights and never trained.

    Raises ValueError for a longer L.
    """

    length: int

    @nn.compact
    def __call__(self, x):
        pe = self.param("pe", lambda key: sinusoidal_encoding(self.length, x.shape[-1], jnp))
        if x.shape[-2] > self.length:
            raise ValueError(
                f"{x.shape[-2]} frames at once are more than the {self.length} places of the net (motion_max_seq_length); cut the clip into windows"
            )
        return x + pe[:, : x.shape[-2]].astype(x.dtype)


class TransformerBlock(nn.Module):
    """attn1 (self) - attn2 (text, or a second self-attention when `context` is None) - feed-forward, each residual.

    x: [B, T, L, C]: attn1 looks along L within one frame; attn2 and the feed-forward act on the clip's T*L tokens at
    once, so the text's keys and values are computed once a clip, not once a frame. A temporal caller passes T = 1.
    context: [B, K, D] or None. sparse_causal: attn1 looks at the first frame and the one before, in the place of its own. along_time: a last
    attention, attn_temp, along T at each of the L positions; it starts at zero. Both are Tune-A-Video's (Wu et al. 2023, arXiv 2212.11565).
    places: length of a position code that both attentions' inputs get along L, for AnimateDiff; 0 for none.
    """

    heads: int
    head_dim: int
    impl: str = "auto"
    sparse_causal: bool = False
    along_time: bool = False
    dtype: jnp.dtype = jnp.float32
    max_positions: int = 0

    @nn.compact
    def __call__(self, x, context=None):
        coded = (
            PositionalEncoding(self.max_positions, name="pos_embed")
            if self.max_positions
            else lambda h: h
        )
        attend = dict(
            heads=self.heads,
            head_dim=self.head_dim,
            out_features=x.shape[-1],
            impl=self.impl,
            dtype=self.dtype,
        )
        frames, unfold = fold_time(layer_norm("norm1", self.dtype)(x))
        others = (
            (lambda k: fold_time(sparse_causal_keys(unfold(k)))[0])
            if self.sparse_causal
            else (lambda k: k)
        )
        x = x + unfold(Attention(**attend, name="attn1")(coded(frames), gather=others))
        h = layer_norm("norm2", self.dtype)(x)
        h, unfold = (
            fold_time(h)
            if context is None
            else (rearrange(h, "B T L C -> B (T L) C"), lambda h: h.reshape(x.shape))
        )
        x = x + unfold(Attention(**attend, name="attn2")(coded(h), context))
        x = x + FeedForward(self.dtype, name="ff")(layer_norm("norm3", self.dtype)(x))
        if self.along_time:
            h, unfold = fold_positions(
                shard_over_positions(layer_norm("norm_temp", self.dtype)(x)[:, :, :, None])
            )
            x = (
                x
                + shard_over_frames(
                    unfold(Attention(**attend, out_init=nn.initializers.zeros, name="attn_temp")(h))
                )[:, :, :, 0]
            )
        return x


def sparse_causal_keys(k):
    """Keys or values of each frame [B, T, L, H, D] -> those of frames 0 and max(i-1, 0) for frame i, [B, T, 2L, H, D]."""
    first = jnp.broadcast_to(k[:, :1], k.shape)
    return jnp.concatenate([first, jnp.concatenate([k[:, :1], k[:, :-1]], axis=1)], axis=2)


class SpatialTransformer(nn.Module):
    """Stable Diffusion's spatial transformer, frame by frame: x [B, T, H, W, C], context [B, K, D] -> [B, T, H, W, C].

    The projections are 1x1 convolutions in SD 1.x and dense layers in SD 2.x (`linear_projection`).
    """

    heads: int
    head_dim: int
    depth: int = 1
    groups: int = 32
    linear_projection: bool = False
    impl: str = "auto"
    sparse_causal: bool = False
    along_time: bool = False
    dtype: jnp.dtype = jnp.float32

    def project(self, features, name):
        if self.linear_projection:
            return Dense(features, dtype=self.dtype, name=name)
        return Conv(features, (1, 1), dtype=self.dtype, name=name)

    @nn.compact
    def __call__(self, x, context):
        H, C, inner = x.shape[2], x.shape[4], self.heads * self.head_dim
        h = GroupNorm(self.groups, 1e-6, dtype=self.dtype, name="norm")(x)
        h = rearrange(self.project(inner, "proj_in")(h), "B T H W C -> B T (H W) C")
        for i in range(self.depth):
            block = TransformerBlock(
                self.heads,
                self.head_dim,
                self.impl,
                self.sparse_causal,
                self.along_time,
                self.dtype,
                name=f"transformer_blocks.{i}",
            )
            h = block(h, context)
        return x + self.project(C, "proj_out")(rearrange(h, "B T (H W) C -> B T H W C", H=H))
