"""Stable Diffusion's spatial transformer, and the block that temporal transformers use too."""

import math
from functools import partial

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


def identity(x):
    """Returns its argument."""
    return x


def layer_norm(name, dtype):
    """A LayerNorm as PyTorch computes it: statistics in float32, eps 1e-5.

    The variance takes one pass for 16-bit results and two otherwise, as in `GroupNorm`.
    """
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=is_16bit(dtype), dtype=dtype, name=name)


class GEGLU(nn.Module):
    """Gated GELU (Shazeer 2020, arXiv 2002.05202), with the exact (erf) GELU."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[..., C] -> [..., features]."""
        h, gate = SplitDense(self.features, self.dtype, name="proj")(x)
        return h * gelu(gate)


class SplitDense(nn.Module):
    """A dense layer with 2 * `features` outputs, computed as two products of `features` each.

    So the gate is fused into the product that makes it, and the double width is never written to
    memory: on TPU that saves a third of the feed-forward layer's traffic.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[..., C] -> two arrays [..., features]."""
        init, shape = nn.initializers.lecun_normal(), (x.shape[-1], 2 * self.features)
        kernel = self.param("kernel", init, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[1:]).astype(self.dtype)
        row = (1,) * (x.ndim - 1) + (self.features,)
        halves = zip(jnp.split(kernel, 2, axis=1), jnp.split(bias, 2), strict=True)
        return tuple(matmul(x.astype(self.dtype), k) + b.reshape(row) for k, b in halves)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and a dense layer back."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[..., C] -> [..., C]."""
        C = x.shape[-1]
        return Dense(C, dtype=self.dtype, name="net.2")(GEGLU(4 * C, self.dtype, name="net.0")(x))


def sinusoidal_encoding(length: int, features: int, xp=np):
    """Sinusoidal positional encoding (Vaswani et al. 2017), float32 [1, length, features].

    Sines stand at even features and cosines at odd ones. xp: numpy or jax.numpy.
    """
    positions = xp.arange(length).reshape(-1, 1)
    frequencies = xp.exp(xp.arange(0, features, 2) * (-math.log(10000.0) / features))
    angles = positions * frequencies.reshape(1, -1)
    pairs = xp.stack([xp.sin(angles), xp.cos(angles)], axis=-1)
    return pairs.reshape(1, length, -1)[..., :features].astype(np.float32)


class PositionalEncoding(nn.Module):
    """Adds a sinusoidal positional encoding.

    The table `pe` of `length` positions is stored with the weights, as in AnimateDiff's
    checkpoints, and never trained.
    """

    length: int

    @nn.compact
    def __call__(self, x):
        """x: [N, L, C] with L <= length, otherwise ValueError. Returns the same shape."""
        pe = self.param("pe", lambda key: sinusoidal_encoding(self.length, x.shape[-1], jnp))
        if x.shape[-2] > self.length:
            raise ValueError(
                f"{x.shape[-2]} frames are more than the {self.length} positions of the motion "
                "modules (motion_max_seq_length); edit the clip in windows"
            )
        return x + pe[:, : x.shape[-2]].astype(x.dtype)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text and a feed-forward layer, each residual.

    x is [B, T, L, C]: L tokens of each of T frames. Self-attention (`attn1`) is among the tokens of
    a frame. Cross-attention (`attn2`) and the feed-forward layer act on all T*L tokens at once, so
    the text's keys and values are computed once per clip, not once per frame. In a temporal
    transformer L is time and T = 1.

    Attributes:
        impl: see `attention`.
        sparse_causal: a frame's self-attention sees the first and the previous frame instead of
            itself (Tune-A-Video, Wu et al. 2023, arXiv 2212.11565).
        along_time: adds `attn_temp`, attention over time at each of the L positions, whose output
            starts at zero (Tune-A-Video).
        max_positions: length of a positional encoding along L for the inputs of both attentions
            (AnimateDiff); 0 for none.
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
        """Applies the block.

        Args:
            x: [B, T, L, C].
            context: text [B, K, D]; None makes `attn2` a second self-attention.

        Returns:
            [B, T, L, C].
        """
        attention = partial(
            Attention,
            self.heads,
            self.head_dim,
            out_features=x.shape[-1],
            impl=self.impl,
            dtype=self.dtype,
        )
        encode_positions = identity
        if self.max_positions:
            encode_positions = PositionalEncoding(self.max_positions, name="pos_embed")

        h, unfold = fold_time(layer_norm("norm1", self.dtype)(x))  # [B*T, L, C]

        def gather(k):
            return fold_time(sparse_causal_keys(unfold(k)))[0] if self.sparse_causal else k

        x = x + unfold(attention(name="attn1")(encode_positions(h), gather=gather))

        h = layer_norm("norm2", self.dtype)(x)
        if context is None:
            h, unfold = fold_time(h)
        else:
            h, unfold = rearrange(h, "B T L C -> B (T L) C"), lambda h: h.reshape(x.shape)
        x = x + unfold(attention(name="attn2")(encode_positions(h), context))

        x = x + FeedForward(self.dtype, name="ff")(layer_norm("norm3", self.dtype)(x))

        if self.along_time:
            h = layer_norm("norm_temp", self.dtype)(x)[:, :, :, None]  # [B, T, L, 1, C]
            h, unfold = fold_positions(shard_over_positions(h))
            h = attention(out_init=nn.initializers.zeros, name="attn_temp")(h)
            x = x + shard_over_frames(unfold(h))[:, :, :, 0]
        return x


def sparse_causal_keys(k_BTLHD):
    """The keys (or values) that each frame sees: those of frames 0 and max(i-1, 0) for frame i.

    [B, T, L, H, D] -> [B, T, 2L, H, D].
    """
    first = jnp.broadcast_to(k_BTLHD[:, :1], k_BTLHD.shape)
    previous = jnp.concatenate([k_BTLHD[:, :1], k_BTLHD[:, :-1]], axis=1)
    return jnp.concatenate([first, previous], axis=2)


class SpatialTransformer(nn.Module):
    """Stable Diffusion's spatial transformer, frame by frame, with a residual connection.

    Attributes:
        depth: number of transformer blocks.
        linear_projection: dense layers around the blocks (SD 2.x) instead of 1x1 convolutions
            (SD 1.x).
        impl: see `attention`.
        sparse_causal: see `TransformerBlock`, as `along_time`.
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

    @nn.compact
    def __call__(self, x, context):
        """x: [B, T, H, W, C]; context: text [B, K, D]. Returns [B, T, H, W, C]."""
        H, C, inner = x.shape[2], x.shape[4], self.heads * self.head_dim
        h = GroupNorm(self.groups, 1e-6, dtype=self.dtype, name="norm")(x)
        h = rearrange(self._projection(inner, "proj_in")(h), "B T H W C -> B T (H W) C")
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
        return x + self._projection(C, "proj_out")(rearrange(h, "B T (H W) C -> B T H W C", H=H))

    def _projection(self, features, name):
        if self.linear_projection:
            return Dense(features, dtype=self.dtype, name=name)
        return Conv(features, (1, 1), dtype=self.dtype, name=name)
