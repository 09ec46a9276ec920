"""Stable Diffusion's variational autoencoder (AutoencoderKL), frame by frame.

Pixels are [N, H, W, 3] in [-1, 1]; latents are [N, H/f, W/f, C] with f = `config.downscale`. No time axis: callers fold it.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ivid2vid_jax.models.attention import attention
from ivid2vid_jax.models.config import check_fixed_values, config_from_json
from ivid2vid_jax.models.layers import (
    Dense,
    Downsample,
    GroupNorm,
    ResnetBlock,
    Upsample,
    accum_dtype,
)

FIXED = dict(
    act_fn=("silu",),
    latents_mean=(None,),
    latents_std=(None,),
    shift_factor=(None, 0),
    mid_block_add_attention=(True, None),
    use_quant_conv=(True, None),
    use_post_quant_conv=(True, None),
)


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder, under diffusers' names."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # diffusion latents = autoencoder latents * this
    sample_size: int = 512  # pixels a side it was trained at; informative
    force_upcast: bool = True  # kept for export

    @classmethod
    def from_json(cls, config: dict) -> "AutoencoderConfig":
        """Reads diffusers' `config.json`; ValueError for a value that this net does not compute."""
        check_fixed_values(config, FIXED, "autoencoder")
        return config_from_json(cls, config)

    def to_json(self) -> dict:
        levels = len(self.block_out_channels)
        types = dict(
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
        )
        return {"_class_name": "AutoencoderKL", **dataclasses.asdict(self), **types}

    @property
    def downscale(self) -> int:
        """Pixels a latent, each way."""
        return 2 ** (len(self.block_out_channels) - 1)


class Posterior(NamedTuple):
    """Diagonal Gaussian over latents, NOT multiplied by the scaling factor: mean, std [N, h, w, C] in float32."""

    mean: jax.Array
    std: jax.Array

    def mode(self):
        return self.mean

    def sample(self, key):
        return self.mean + self.std * jax.random.normal(key, self.mean.shape, self.mean.dtype)


class AutoencoderKL(nn.Module):
    """`encode` pixels to a `Posterior`, `decode` latents to pixels."""

    config: AutoencoderConfig
    dtype: Any = jnp.float32

    def setup(self):
        channels = self.config.latent_channels
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.quant_conv = nn.Conv(2 * channels, (1, 1), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(channels, (1, 1), dtype=self.dtype)

    def encode(self, pixels) -> Posterior:
        """pixels: [N, H, W, 3] in [-1, 1], H and W multiples of `config.downscale`."""
        moments = self.quant_conv(self.encoder(pixels.astype(self.dtype))).astype(
            accum_dtype(self.dtype)
        )
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0)))

    def decode(self, latents):
        """latents: [N, h, w, C], already divided by the scaling factor. Returns [N, H, W, 3] float32, about [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents.astype(self.dtype))).astype(
            accum_dtype(self.dtype)
        )

    def __call__(self, pixels):
        """Reconstruction through the posterior's mode; touches every parameter, for initialisation."""
        return self.decode(self.encode(pixels).mode())


class Encoder(nn.Module):
    config: AutoencoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x):
        cfg = self.config
        x = nn.Conv(cfg.block_out_channels[0], (3, 3), dtype=self.dtype, name="conv_in")(x)
        for i, features in enumerate(cfg.block_out_channels):
            last = i == len(cfg.block_out_channels) - 1
            x = ResnetStage(
                features,
                cfg.layers_per_block,
                None if last else "down",
                cfg.norm_num_groups,
                self.dtype,
                name=f"down_blocks.{i}",
            )(x)
        x = MidBlock(cfg.norm_num_groups, self.dtype, name="mid_block")(x)
        return output_head(x, 2 * cfg.latent_channels, cfg.norm_num_groups, self.dtype)


class Decoder(nn.Module):
    config: AutoencoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x):
        cfg = self.config
        x = nn.Conv(cfg.block_out_channels[-1], (3, 3), dtype=self.dtype, name="conv_in")(x)
        x = MidBlock(cfg.norm_num_groups, self.dtype, name="mid_block")(x)
        for i, features in enumerate(reversed(cfg.block_out_channels)):
            last = i == len(cfg.block_out_channels) - 1
            x = ResnetStage(
                features,
                cfg.layers_per_block + 1,
                None if last else "up",
                cfg.norm_num_groups,
                self.dtype,
                name=f"up_blocks.{i}",
            )(x)
        return output_head(x, cfg.out_channels, cfg.norm_num_groups, self.dtype)


class ResnetStage(nn.Module):
    """Resnets of one resolution and the change to the next."""

    features: int
    layers: int
    resample: str | None
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers):
            x = ResnetBlock(
                self.features, self.groups, 1e-6, dtype=self.dtype, name=f"resnets.{i}"
            )(x)
        if self.resample == "down":
            x = Downsample(self.features, padding=0, dtype=self.dtype, name="downsamplers.0")(x)
        elif self.resample == "up":
            x = Upsample(self.features, self.dtype, name="upsamplers.0")(x)
        return x


class MidBlock(nn.Module):
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        C = x.shape[-1]
        x = ResnetBlock(C, self.groups, 1e-6, dtype=self.dtype, name="resnets.0")(x)
        x = SelfAttention(self.groups, self.dtype, name="attentions.0")(x)
        return ResnetBlock(C, self.groups, 1e-6, dtype=self.dtype, name="resnets.1")(x)


class SelfAttention(nn.Module):
    """One head over all positions of a frame, with its norm and residual: [N, h, w, C] -> the same.

    The projections are children of this module (`to_q` ... beside `group_norm`), as in diffusers' one-class layout.
    """

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        N, h, w, C = x.shape
        y = GroupNorm(self.groups, 1e-6, dtype=self.dtype, name="group_norm")(x).reshape(
            N, h * w, 1, C
        )
        q, k, v = (Dense(C, dtype=self.dtype, name=name)(y) for name in ("to_q", "to_k", "to_v"))
        return x + Dense(C, dtype=self.dtype, name="to_out.0")(attention(q, k, v)).reshape(x.shape)


def output_head(x, features, groups, dtype):
    x = nn.silu(GroupNorm(groups, 1e-6, dtype=dtype, name="conv_norm_out")(x))
    return nn.Conv(features, (3, 3), dtype=dtype, name="conv_out")(x)
