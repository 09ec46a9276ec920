"""The conditional 3D U-Net: Stable Diffusion's U-Net with temporal layers between its own.

The parameter tree is that of diffusers' `UNet2DConditionModel` plus the temporal layers of
`models/temporal.py`. With `temporal=()` it is the 2D U-Net, applied frame by frame.

Shape letters: B clips, T frames, H x W latent pixels, C channels, K text tokens, D their width,
E width of the timestep embedding.
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ivid2vid_jax.models.layers import (
    Conv,
    Downsample,
    GroupNorm,
    ResnetBlock,
    TimestepMLP,
    Upsample,
    accum_dtype,
    exact_float32,
    timestep_embedding,
)
from ivid2vid_jax.models.remat import remat_layer
from ivid2vid_jax.models.temporal import TEMPORAL_LAYERS
from ivid2vid_jax.models.transformer import SpatialTransformer
from ivid2vid_jax.models.unet_config import UNetConfig


class InflatedUNet3D(nn.Module):
    """Predicts the noise (or v) of a clip's latents.

    Attributes:
        attention_impl: backend of the spatial attention, see models/attention.py.
        remat: what each resnet, transformer and temporal layer stores for the backward pass, see
            models/remat.py.
        dtype: dtype of the computation. Norms, softmaxes and the output are float32.
        train: enables `config.temporal_dropout`, with the "dropout" stream of `apply`.
    """

    config: UNetConfig
    attention_impl: str = "auto"
    remat: str = "none"
    dtype: Any = jnp.float32
    train: bool = False

    @nn.compact
    @exact_float32
    def __call__(self, x, t, context):
        """Predicts the noise.

        Args:
            x: latents [B, T, H, W, in_channels]; H and W are multiples of `config.downscale`.
            t: timesteps [B] in [0, 1000), one per clip.
            context: text embeddings [B, K, D].

        Returns:
            [B, T, H, W, out_channels] in float32.

        Raises:
            ValueError: for latents of another number of channels or of an unsupported size.
        """
        cfg = self.config if self.train else dataclasses.replace(self.config, temporal_dropout=0.0)
        check_latents(cfg, x.shape)
        channels, levels = cfg.block_out_channels, range(len(cfg.block_out_channels))
        options = (self.attention_impl, self.remat, self.dtype)
        x, context = x.astype(self.dtype), context.astype(self.dtype)

        temb = timestep_embedding(
            t, channels[0], cfg.flip_sin_to_cos, cfg.freq_shift, accum_dtype(self.dtype)
        )
        temb = TimestepMLP(4 * channels[0], self.dtype, name="time_embedding")(temb)

        x = Conv(channels[0], (3, 3), dtype=self.dtype, name="conv_in")(x)
        # 8 heads at every size, as in diffusers.
        x = LevelLayers(cfg, 0, *options).temporal("input", 0, x, heads=8)

        skips = [x]
        for level in levels:
            block = UNetLevel(
                cfg, level, cfg.layers_per_block, *options, name=f"down_blocks.{level}"
            )
            resample = "down" if level < levels[-1] else None
            x, outputs = block(x, temb, context, skips=None, resample=resample)
            skips += outputs
        x = MidBlock(cfg, *options, name="mid_block")(x, temb, context)
        for i, level in enumerate(reversed(levels)):
            block = UNetLevel(cfg, level, cfg.layers_per_block + 1, *options, name=f"up_blocks.{i}")
            resample = "up" if level > 0 else None
            x, _ = block(x, temb, context, skips=skips, resample=resample)

        norm = GroupNorm(
            cfg.norm_num_groups, cfg.norm_eps, norm_axes(cfg), self.dtype, name="conv_norm_out"
        )
        x = Conv(cfg.out_channels, (3, 3), dtype=self.dtype, name="conv_out")(nn.silu(norm(x)))
        return x.astype(accum_dtype(self.dtype))


class UNetLevel(nn.Module):
    """One resolution of the U-Net, on the way down or up."""

    config: UNetConfig
    level: int
    layers: int
    attention_impl: str
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, x, temb, context, skips, resample):
        """Applies the level.

        Args:
            x: [B, T, H, W, C].
            temb: timestep embedding [B, E].
            context: text embeddings [B, K, D].
            skips: None on the way down. On the way up the stack of skip connections, from which
                each resnet pops one.
            resample: "down", "up" or None: the change of resolution at the end.

        Returns:
            The output, and the list of skip connections for the way up.
        """
        cfg, outputs = self.config, []
        layers = LevelLayers(cfg, self.level, self.attention_impl, self.remat, self.dtype)
        for i in range(self.layers):
            if skips is not None:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = layers.resnet(i, x, temb)
            if cfg.has_attention(self.level):
                x = layers.attention(i, x, context)
            x = layers.temporal("layer", i, x)
            outputs.append(x)
        features = cfg.block_out_channels[self.level]
        if resample == "down":
            x = Downsample(features, dtype=self.dtype, name="downsamplers.0")(x)
            outputs.append(x)
        elif resample == "up":
            x = Upsample(features, dtype=self.dtype, name="upsamplers.0")(x)
        return x, outputs


class MidBlock(nn.Module):
    """Resnet - transformer - resnet at the coarsest resolution."""

    config: UNetConfig
    attention_impl: str
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, x, temb, context):
        """x: [B, T, H, W, C]; temb: [B, E]; context: [B, K, D]. Returns x's shape."""
        layers = LevelLayers(self.config, -1, self.attention_impl, self.remat, self.dtype)
        x = layers.resnet(0, x, temb)
        x = layers.attention(0, x, context)
        if self.config.use_motion_mid_block:
            x = layers.temporal("layer", 0, x)
        return layers.resnet(1, x, temb)


@dataclasses.dataclass
class LevelLayers:
    """Creates and applies the layers of one level, as children of the calling Flax module.

    Each spatial layer is followed by the temporal layers of its insertion point.
    """

    config: UNetConfig
    level: int
    attention_impl: str
    remat: str
    dtype: Any

    def resnet(self, i: int, x, temb):
        """The i-th resnet."""
        cfg = self.config
        block = remat_layer(ResnetBlock, self.remat)(
            cfg.block_out_channels[self.level],
            cfg.norm_num_groups,
            cfg.norm_eps,
            norm_axes(cfg),
            self.dtype,
            name=f"resnets.{i}",
        )
        return self.temporal("resnet", i, block(x, temb))

    def attention(self, i: int, x, context):
        """The i-th spatial transformer."""
        cfg = self.config
        block = remat_layer(SpatialTransformer, self.remat)(
            cfg.heads(self.level),
            cfg.head_dim(self.level),
            cfg.transformer_layers_per_block,
            cfg.norm_num_groups,
            cfg.use_linear_projection,
            self.attention_impl,
            sparse_causal=cfg.spatial_attention == "sparse_causal",
            along_time="tune_a_video" in cfg.temporal,
            dtype=self.dtype,
            name=f"attentions.{i}",
        )
        return self.temporal("attention", i, block(x, context))

    def temporal(self, insertion_point: str, i: int, x, heads: int | None = None):
        """The temporal layers of an insertion point (see `TEMPORAL_LAYERS`), if there are any.

        heads: number of attention heads instead of the level's.
        """
        cfg = self.config
        heads = cfg.heads(self.level) if heads is None else heads
        remat = partial(remat_layer, name=self.remat)
        for kind in cfg.temporal:
            if insertion_point in TEMPORAL_LAYERS[kind]:
                name, build = TEMPORAL_LAYERS[kind][insertion_point]
                layer = build(
                    cfg, heads, cfg.head_dim(self.level), self.dtype, name.format(i), remat
                )
                x = layer(x)
        return x


def check_latents(config: UNetConfig, shape: tuple[int, ...]) -> None:
    """Raises ValueError for latents [B, T, H, W, C] that the U-Net does not take."""
    _, _, H, W, C = shape
    if config.in_channels != C:
        raise ValueError(f"the U-Net takes {config.in_channels} latent channels, got {C}")
    if H % config.downscale or W % config.downscale:
        raise ValueError(f"latent size {H}x{W} is not a multiple of {config.downscale}")


def norm_axes(config: UNetConfig) -> int:
    """Axes over which the resnets' norms pool, besides channels: see `GroupNorm`."""
    return 4 if config.group_norm == "clip" else 3
