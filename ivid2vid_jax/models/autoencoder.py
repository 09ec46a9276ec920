"""Stable Diffusion's variational autoencoder (Rombach et al. 2022, arXiv 2112.10752).

Pixels are [N, H, W, 3] in [-1, 1]; latents are [N, h, w, C] with h = H / `config.downscale`. There
is no time axis: callers fold it into N.
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
    exact_float32,
)

# Keys of diffusers' configs that change the arithmetic, each with the only values that this network
# implements.
SUPPORTED_VALUES: dict[str, tuple] = {
    "act_fn": ("silu",),
    "latents_mean": (None,),
    "latents_std": (None,),
    "shift_factor": (None, 0),
    "mid_block_add_attention": (True, None),
    "use_quant_conv": (True, None),
    "use_post_quant_conv": (True, None),
}


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder, under diffusers' names."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32

    # Diffusion latents = autoencoder latents * this.
    scaling_factor: float = 0.18215

    # Side in pixels that it was trained at; informative only.
    sample_size: int = 512

    # Kept for export only.
    force_upcast: bool = True

    @classmethod
    def from_json(cls, config: dict) -> "AutoencoderConfig":
        """Reads diffusers' `config.json`. Raises ValueError for an unsupported value."""
        check_fixed_values(config, SUPPORTED_VALUES, "autoencoder")
        return config_from_json(cls, config)

    def to_json(self) -> dict:
        """The config under diffusers' keys."""
        levels = len(self.block_out_channels)
        types = dict(
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
        )
        return {"_class_name": "AutoencoderKL", **dataclasses.asdict(self), **types}

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


def to_pixels(frames_u8, dtype=jnp.float32):
    """uint8 [0, 255] -> [-1, 1], in float32 even if the network computes in `dtype` bfloat16.

    In bfloat16 127 of the 256 grey levels would differ, rounded twice.
    """
    return frames_u8.astype(accum_dtype(dtype)) / 127.5 - 1.0


class Posterior(NamedTuple):
    """Diagonal Gaussian over latents [N, h, w, C], float32, NOT multiplied by scaling_factor."""

    mean: jax.Array
    std: jax.Array

    def mode(self) -> jax.Array:
        """The most likely latents: the mean."""
        return self.mean

    def sample(self, key: jax.Array) -> jax.Array:
        """Random latents."""
        return self.mean + self.std * jax.random.normal(key, self.mean.shape, self.mean.dtype)


class AutoencoderKL(nn.Module):
    """Encodes pixels to a `Posterior` over latents, and decodes latents to pixels."""

    config: AutoencoderConfig
    dtype: Any = jnp.float32

    def setup(self):
        """Creates the submodules."""
        channels = self.config.latent_channels
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)
        self.quant_conv = nn.Conv(2 * channels, (1, 1), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(channels, (1, 1), dtype=self.dtype)

    @exact_float32
    def encode(self, pixels) -> Posterior:
        """pixels: [N, H, W, 3] in [-1, 1], with H and W multiples of `config.downscale`."""
        moments = self.quant_conv(self.encoder(pixels.astype(self.dtype)))
        mean, logvar = jnp.split(moments.astype(accum_dtype(self.dtype)), 2, axis=-1)
        return Posterior(mean, jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0)))

    @exact_float32
    def decode(self, latents):
        """Decodes latents [N, h, w, C], already divided by the scaling factor.

        Returns [N, H, W, 3] in float32, approximately within [-1, 1].
        """
        pixels = self.decoder(self.post_quant_conv(latents.astype(self.dtype)))
        return pixels.astype(accum_dtype(self.dtype))

    def __call__(self, pixels):
        """Reconstructs pixels from the posterior's mode, with all parameters: for `init`."""
        return self.decode(self.encode(pixels).mode())


class Encoder(nn.Module):
    """Downsampling convolutional network with attention at the coarsest resolution."""

    config: AutoencoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[N, H, W, 3] -> [N, h, w, 2C], the means and log-variances before `quant_conv`."""
        cfg = self.config
        groups, channels = cfg.norm_num_groups, cfg.block_out_channels
        x = nn.Conv(channels[0], (3, 3), dtype=self.dtype, name="conv_in")(x)
        for i, features in enumerate(channels):
            resample = "down" if i < len(channels) - 1 else None
            stage = ResnetStage(
                features,
                cfg.layers_per_block,
                resample,
                groups,
                self.dtype,
                name=f"down_blocks.{i}",
            )
            x = stage(x)
        x = MidBlock(groups, self.dtype, name="mid_block")(x)
        return output_head(x, 2 * cfg.latent_channels, groups, self.dtype)


class Decoder(nn.Module):
    """The mirror image of the encoder."""

    config: AutoencoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[N, h, w, C] -> [N, H, W, 3]."""
        cfg = self.config
        groups, channels = cfg.norm_num_groups, cfg.block_out_channels[::-1]
        x = nn.Conv(channels[0], (3, 3), dtype=self.dtype, name="conv_in")(x)
        x = MidBlock(groups, self.dtype, name="mid_block")(x)
        for i, features in enumerate(channels):
            resample = "up" if i < len(channels) - 1 else None
            layers = cfg.layers_per_block + 1
            stage = ResnetStage(
                features, layers, resample, groups, self.dtype, name=f"up_blocks.{i}"
            )
            x = stage(x)
        return output_head(x, cfg.out_channels, groups, self.dtype)


class ResnetStage(nn.Module):
    """The resnets of one resolution and the change to the next ("down", "up" or None)."""

    features: int
    layers: int
    resample: str | None
    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[N, h, w, C] -> [N, h', w', features]."""
        for i in range(self.layers):
            resnet = ResnetBlock(
                self.features, self.groups, 1e-6, dtype=self.dtype, name=f"resnets.{i}"
            )
            x = resnet(x)
        if self.resample == "down":
            x = Downsample(self.features, padding=0, dtype=self.dtype, name="downsamplers.0")(x)
        elif self.resample == "up":
            x = Upsample(self.features, self.dtype, name="upsamplers.0")(x)
        return x


class MidBlock(nn.Module):
    """Resnet - self-attention - resnet at the coarsest resolution."""

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[N, h, w, C] -> the same shape."""
        C = x.shape[-1]
        x = ResnetBlock(C, self.groups, 1e-6, dtype=self.dtype, name="resnets.0")(x)
        x = SelfAttention(self.groups, self.dtype, name="attentions.0")(x)
        return ResnetBlock(C, self.groups, 1e-6, dtype=self.dtype, name="resnets.1")(x)


class SelfAttention(nn.Module):
    """Attention with one head over all positions of a frame, with norm and residual connection.

    The projections are children of this module (`to_q` ... beside `group_norm`), as in diffusers.
    """

    groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """[N, h, w, C] -> the same shape."""
        N, h, w, C = x.shape
        y = GroupNorm(self.groups, 1e-6, dtype=self.dtype, name="group_norm")(x)
        y = y.reshape(N, h * w, 1, C)  # tokens, one head
        q, k, v = (Dense(C, dtype=self.dtype, name=name)(y) for name in ("to_q", "to_k", "to_v"))
        out = Dense(C, dtype=self.dtype, name="to_out.0")(attention(q, k, v))
        return x + out.reshape(x.shape)


def output_head(x, features: int, groups: int, dtype):
    """Norm - SiLU - convolution, inside the calling module: [N, h, w, C] -> [N, h, w, features]."""
    x = nn.silu(GroupNorm(groups, 1e-6, dtype=dtype, name="conv_norm_out")(x))
    return nn.Conv(features, (3, 3), dtype=dtype, name="conv_out")(x)
