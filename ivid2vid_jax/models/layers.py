"""Small layers shared by the U-Net and the autoencoder.

Every spatial layer takes [..., H, W, C] and folds all leading axes (batch, frames) into one batch,
so a clip [B, T, H, W, C] needs no reshape: a stored 3x3 kernel acts as a 1x3x3 ("space-only 3D")
kernel.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ivid2vid_jax.models.sharded_reshape import fold_time, shard_over_data, single_device


def accum_dtype(dtype):
    """The dtype of statistics, softmaxes and outputs: float32, or float64 for float64 compute."""
    return jnp.promote_types(dtype, jnp.float32)


def is_16bit(dtype) -> bool:
    """Whether a dtype has 16 bits."""
    return jnp.dtype(dtype).itemsize == 2


def platform() -> str:
    """The platform that is compiled for: "cpu", "tpu", "gpu" or "cuda".

    That of the mesh's devices (jax.set_mesh) if a mesh is set, otherwise the default backend.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return getattr(device, "platform", None) or jax.default_backend()


def exact_float32(method: Callable) -> Callable:
    """Decorates a method of a module: if its `dtype` is float32, products are of float32 precision.

    By default TPUs multiply float32 numbers in bfloat16, and NVIDIA GPUs in TF32. Networks are
    decorated, not layers: the precision is that of all matrix products and convolutions inside.
    """

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        if (
            jnp.dtype(self.dtype) != jnp.float32 or platform() == "cpu"
        ):  # on CPU they are exact anyway
            return method(self, *args, **kwargs)
        with jax.default_matmul_precision("highest"):
            return method(self, *args, **kwargs)

    return run


def matmul(x, kernel):
    """Matrix product x [..., K] @ kernel [K, M] -> [..., M].

    On a single CPU device the leading axes are merged first: the kernel's gradient, which
    contracts them, is then 6 times as fast in XLA. Otherwise they stay separate, so that a sharded
    axis need not move.
    """
    if platform() == "cpu" and single_device():
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])
    return x @ kernel


class Dense(nn.Dense):
    """Flax's dense layer, computed by `matmul`."""

    dot_general: Any = lambda x, kernel, dimension_numbers, precision=None: matmul(x, kernel)


class Conv(nn.Conv):
    """Flax's 2D convolution, which also takes clips [B, T, H, W, C] and convolves each frame.

    A 1x1 convolution is computed as a matrix product: on TPU that saves copies between the layouts
    of the two operations.
    """

    @nn.compact
    def __call__(self, x):
        """[N, H, W, C] or [B, T, H, W, C] -> the same with `features` channels."""
        if tuple(self.kernel_size) == (1, 1):
            return self._pixelwise(x)
        if x.ndim != 5:
            return super().__call__(x)
        frames, unfold = fold_time(x)
        return unfold(super().__call__(frames))

    def _pixelwise(self, x):
        """The 1x1 convolution as a matrix product."""
        kernel = self.param("kernel", self.kernel_init, (1, 1, x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel[0, 0], bias, dtype=self.dtype)
        return matmul(x, kernel) + bias.reshape(*(1,) * (x.ndim - 1), -1)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018, arXiv 1803.08494).

    Statistics and affine map are computed in float32; the result is cast to `dtype`.

    Attributes:
        norm_axes: number of trailing axes that share statistics (within a group of channels).
            3: (H, W, C), frame by frame, as the 2D network does. 4: (T, H, W, C), over the clip.
    """

    groups: int = 32
    eps: float = 1e-5
    norm_axes: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[..., H, W, C] -> the same shape. Raises ValueError if `groups` does not divide C."""
        C = x.shape[-1]
        if C % self.groups:
            raise ValueError(
                f"{C} channels cannot be split into {self.groups} groups; change norm_num_groups"
            )
        scale = self.param("scale", nn.initializers.ones, (C,))
        bias = self.param("bias", nn.initializers.zeros, (C,))
        lead, h = x.shape[: -self.norm_axes], x.astype(accum_dtype(self.dtype))
        if single_device():  # merged positions are up to 20% faster on CPU
            h = h.reshape(*lead, -1, C)
        positions = tuple(range(len(lead), h.ndim - 1))

        def broadcast(row):  # [C] or [*lead, C] to h's rank
            return row.reshape(*row.shape[:-1], *(1,) * (h.ndim - row.ndim), C)

        def group_mean(h):
            # Positions first, then the group's channels: twice as fast on CPU as both at once.
            mean = h.mean(positions)
            mean = mean.reshape(*mean.shape[:-1], self.groups, C // self.groups).mean(-1)
            return broadcast(jnp.repeat(mean, C // self.groups, axis=-1))

        mean = group_mean(h)
        if is_16bit(self.dtype):
            # E[h^2] - E[h]^2 needs one pass over h instead of two on TPU; its rounding error is
            # below that of a 16-bit result.
            variance = group_mean(jnp.square(h)) - jnp.square(mean)
        else:
            variance = group_mean(jnp.square(h - mean))
        inverse_std = jax.lax.rsqrt(jnp.maximum(variance, 0) + self.eps)
        factor = inverse_std * broadcast(scale.astype(h.dtype))
        offset = broadcast(bias.astype(h.dtype)) - mean * factor
        # Without the barrier XLA recomputes both at every pixel.
        factor, offset = jax.lax.optimization_barrier((factor, offset))
        return (h * factor + offset).reshape(x.shape).astype(self.dtype)


def gelu(x):
    """Exact GELU. By erf: jax.nn.gelu uses erfc, which is four times as slow on XLA's CPU."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.asarray(math.sqrt(0.5), x.dtype)))


def timestep_embedding(
    t_B, features: int, flip_sin_to_cos: bool = True, freq_shift: float = 0.0, dtype=jnp.float32
):
    """Sinusoidal embedding of timesteps (Vaswani et al. 2017, as in Stable Diffusion).

    Args:
        t_B: [B], integers or floats.
        features: width of the embedding.
        flip_sin_to_cos: puts the cosines first.
        freq_shift: subtracted from the number of frequencies in the exponent's denominator.
        dtype: dtype of the computation and of the result.

    Returns:
        [B, features].
    """
    half = features // 2
    freqs = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=dtype) / (half - freq_shift))
    angles = t_B.astype(dtype)[:, None] * freqs[None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    halves = (cos, sin) if flip_sin_to_cos else (sin, cos)
    return jnp.pad(jnp.concatenate(halves, axis=-1), ((0, 0), (0, features % 2)))


class TimestepMLP(nn.Module):
    """The two dense layers after the sinusoidal timestep embedding."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[B, F] -> [B, features]."""
        x = Dense(self.features, dtype=self.dtype, name="linear_1")(shard_over_data(x))
        x = Dense(self.features, dtype=self.dtype, name="linear_2")(shard_over_data(nn.silu(x)))
        return shard_over_data(x)


class ResnetBlock(nn.Module):
    """Residual block: norm - SiLU - conv, plus the timestep embedding, then norm - SiLU - conv.

    The autoencoder's blocks have no timestep embedding (`temb` = None).
    """

    features: int
    groups: int = 32
    eps: float = 1e-5
    norm_axes: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, temb=None):
        """x: [B, ..., H, W, C]; temb: [B, E] or None. Returns [B, ..., H, W, features]."""

        def norm_silu(name, h):
            norm = GroupNorm(self.groups, self.eps, self.norm_axes, self.dtype, name=name)
            return nn.silu(norm(h))

        h = Conv(self.features, (3, 3), dtype=self.dtype, name="conv1")(norm_silu("norm1", x))
        if temb is not None:
            temb = shard_over_data(nn.silu(temb))
            shift = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(temb)
            shift = shard_over_data(shift)
            h = h + shift.reshape(shift.shape[0], *(1,) * (h.ndim - 2), shift.shape[-1])
        h = Conv(self.features, (3, 3), dtype=self.dtype, name="conv2")(norm_silu("norm2", h))
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Downsample(nn.Module):
    """3x3 convolution of stride 2.

    Attributes:
        padding: 1 pads all sides (U-Net); 0 pads bottom and right only (autoencoder).
    """

    features: int
    padding: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[..., H, W, C] -> [..., H/2, W/2, features]."""
        pad = [(1, 1)] * 2 if self.padding else [(0, 1)] * 2
        return Conv(
            self.features, (3, 3), strides=(2, 2), padding=pad, dtype=self.dtype, name="conv"
        )(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """[..., H, W, C] -> [..., 2H, 2W, features]."""
        *lead, H, W, C = x.shape
        x = jnp.broadcast_to(x[..., :, None, :, None, :], (*lead, H, 2, W, 2, C))
        x = x.reshape(*lead, 2 * H, 2 * W, C)
        return Conv(self.features, (3, 3), dtype=self.dtype, name="conv")(x)
