"""Small layers shared by the U-Net and the autoencoder.

Every spatial layer takes [..., H, W, C] and folds all leading axes (batch, frames) into one batch, so a clip
[B, T, H, W, C] needs no reshape: a stored 3x3 kernel acts as a 1x3x3 "space-only 3D" kernel.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ivid2vid_jax.models.sharded_reshape import fold_time, single_device


def accum_dtype(dtype):
    """The type that statistics, softmaxes and outputs are kept in: float32, or float64 where the arithmetic is (in tests)."""
    return jnp.promote_types(dtype, jnp.float32)


def is_16bit(dtype) -> bool:
    """Whether the arithmetic is 16-bit."""
    return jnp.dtype(dtype).itemsize == 2


def platform() -> str:
    """What is compiled for, "cpu", "tpu", "gpu" or "cuda": the devices of the mesh (jax.set_mesh) if there is one, else the default backend."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return getattr(device, "platform", None) or jax.default_backend()


def matmul(x, kernel):
    """X [..., K] @ kernel [K, M] -> [..., M]. On one CPU all leading axes are folded into one: the kernel's gradient, which contracts them,
    is then 6 times faster in XLA. (Elsewhere they stay apart, so that a split axis need not move.)
    """
    if platform() == "cpu" and single_device():
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
    return x @ kernel


class Dense(nn.Dense):
    """flax's dense layer through `matmul`."""

    dot_general: Any = lambda x, kernel, dimension_numbers, precision=None: matmul(x, kernel)


class Conv(nn.Conv):
    """flax's convolution of [N, H, W, C], or of a clip [B, T, H, W, C] frame by frame; one of 1x1 as the matrix product that it is, which on TPU
    saves copies between the layouts of the two.
    """

    @nn.compact
    def __call__(self, x):
        if tuple(self.kernel_size) == (1, 1):
            kernel = self.param("kernel", self.kernel_init, (1, 1, x.shape[-1], self.features))
            x, kernel, bias = nn.dtypes.promote_dtype(
                x,
                kernel[0, 0],
                self.param("bias", self.bias_init, (self.features,)),
                dtype=self.dtype,
            )
            return matmul(x, kernel) + bias.reshape(*(1,) * (x.ndim - 1), -1)
        if x.ndim != 5:
            return super().__call__(x)
        rows, unfold = fold_time(x)
        return unfold(super().__call__(rows))


class GroupNorm(nn.Module):
    """Group normalisation over [..., H, W, C], statistics and affine map in float32, cast to `dtype` at the end.

    pool = 3 takes statistics over (H, W, channels of the group), i.e. frame by frame, as the 2D net does;
    pool = 4 takes them over (T, H, W, channels of the group), i.e. pooled over the clip.
    """

    groups: int = 32
    eps: float = 1e-5
    norm_axes: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        C = x.shape[-1]
        if C % self.groups:
            raise ValueError(
                f"{C} channels cannot be split into {self.groups} groups; change norm_num_groups"
            )
        scale = self.param("scale", nn.initializers.ones, (C,))
        bias = self.param("bias", nn.initializers.zeros, (C,))
        lead, h = x.shape[: -self.norm_axes], x.astype(accum_dtype(self.dtype))
        if single_device():  # one axis of positions: up to a fifth faster on CPU
            h = h.reshape(*lead, -1, C)
        positions = tuple(range(len(lead), h.ndim - 1))

        def over_all(row):  # [C] or [*lead, C] to h's rank
            return row.reshape(*row.shape[:-1], *(1,) * (h.ndim - row.ndim), C)

        def group_mean(
            h,
        ):  # over positions first, then over the group's channels: twice as fast on CPU as over both
            mean = h.mean(positions)
            mean = mean.reshape(*mean.shape[:-1], self.groups, C // self.groups).mean(-1)
            return over_all(jnp.repeat(mean, C // self.groups, axis=-1))

        mean = group_mean(h)
        # One pass for both moments where the result is 16-bit anyway: on TPU it is made beside h, which is then not read once more.
        variance = (
            group_mean(jnp.square(h)) - jnp.square(mean)
            if is_16bit(self.dtype)
            else group_mean(jnp.square(h - mean))
        )
        factor = jax.lax.rsqrt(jnp.maximum(variance, 0) + self.eps) * over_all(
            scale.astype(h.dtype)
        )
        offset = over_all(bias.astype(h.dtype)) - mean * factor
        factor, offset = jax.lax.optimization_barrier(
            (factor, offset)
        )  # else XLA computes them anew at every pixel
        return (h * factor + offset).reshape(x.shape).astype(self.dtype)


def gelu(x):
    """Exact GELU through erf: [...] -> [...]. jax.nn.gelu goes through erfc, which takes XLA four times as long on CPU."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.asarray(math.sqrt(0.5), x.dtype)))


def timestep_embedding(
    t_B, features: int, flip_sin_to_cos: bool = True, freq_shift: float = 0.0, dtype=jnp.float32
):
    """Sinusoidal embedding of timesteps (Vaswani et al. 2017, as Stable Diffusion uses it), [B, features] in `dtype`.

    t_B: [B], integers or floats. flip_sin_to_cos puts the cosines first.
    """
    half = features // 2
    freqs = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=dtype) / (half - freq_shift))
    angles = t_B.astype(dtype)[:, None] * freqs[None, :]
    halves = (
        (jnp.cos(angles), jnp.sin(angles))
        if flip_sin_to_cos
        else (jnp.sin(angles), jnp.cos(angles))
    )
    return jnp.pad(jnp.concatenate(halves, axis=-1), ((0, 0), (0, features % 2)))


class TimestepMLP(nn.Module):
    """The two dense layers behind the sinusoidal embedding: [B, F] -> [B, features]."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = nn.silu(Dense(self.features, dtype=self.dtype, name="linear_1")(x))
        return Dense(self.features, dtype=self.dtype, name="linear_2")(x)


class ResnetBlock(nn.Module):
    """norm-SiLU-conv twice around a residual; the time embedding is added between (none in the autoencoder).

    x: [..., H, W, C_in]; temb: [B, E] or None, x's first axis being B. Returns [..., H, W, features].
    """

    features: int
    groups: int = 32
    eps: float = 1e-5
    norm_axes: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, temb=None):
        def norm(name, h):
            return nn.silu(
                GroupNorm(self.groups, self.eps, self.norm_axes, self.dtype, name=name)(h)
            )

        h = Conv(self.features, (3, 3), dtype=self.dtype, name="conv1")(norm("norm1", x))
        if temb is not None:
            shift = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(temb))
            h = h + shift.reshape(shift.shape[0], *(1,) * (h.ndim - 2), shift.shape[-1])
        h = Conv(self.features, (3, 3), dtype=self.dtype, name="conv2")(norm("norm2", h))
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """3x3 convolution of stride 2: [..., H, W, C] -> [..., H/2, W/2, C].

    `padding` = 1 pads all sides (U-Net), 0 pads bottom and right only (autoencoder), as Stable Diffusion's two nets do.
    """

    features: int
    padding: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        pad = [(1, 1)] * 2 if self.padding else [(0, 1)] * 2
        return Conv(
            self.features, (3, 3), strides=(2, 2), padding=pad, dtype=self.dtype, name="conv"
        )(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution: [..., H, W, C] -> [..., 2H, 2W, C]."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        *lead, H, W, C = x.shape
        x = jnp.broadcast_to(x[..., :, None, :, None, :], (*lead, H, 2, W, 2, C)).reshape(
            *lead, 2 * H, 2 * W, C
        )
        return Conv(self.features, (3, 3), dtype=self.dtype, name="conv")(x)
