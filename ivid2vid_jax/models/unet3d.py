"""The conditional 3D U-Net: Stable Diffusion's U-Net with temporal layers between its own.

The parameter tree is that of diffusers' `UNet2DConditionModel` plus the temporal children of `models/temporal.py`; with
`temporal=()` it is the 2D net, run frame by frame.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ivid2vid_jax.models.config import check_fixed_values, config_from_json
from ivid2vid_jax.models.layers import (
    Conv,
    Downsample,
    GroupNorm,
    ResnetBlock,
    TimestepMLP,
    Upsample,
    accum_dtype,
    timestep_embedding,
)
from ivid2vid_jax.models.remat import remat_layer
from ivid2vid_jax.models.temporal import SLOTS
from ivid2vid_jax.models.transformer import SpatialTransformer

# Keys of diffusers' U-Net configs that change the arithmetic and that this net computes at these values only.
FIXED = dict(
    act_fn=("silu",),
    center_input_sample=(False,),
    mid_block_scale_factor=(1, None),
    resnet_time_scale_shift=("default", None),
    downsample_padding=(1, None),
    dual_cross_attention=(False,),
    only_cross_attention=(False,),
    class_embed_type=(None,),
    num_class_embeds=(None,),
    addition_embed_type=(None,),
    encoder_hid_dim=(None,),
    encoder_hid_dim_type=(None,),
    time_cond_proj_dim=(None,),
    timestep_post_act=(None,),
    time_embedding_type=("positional", None),
    time_embedding_dim=(None,),
    time_embedding_act_fn=(None,),
    conv_in_kernel=(3, None),
    conv_out_kernel=(3, None),
    attention_type=("default", None),
    mid_block_only_cross_attention=(None, False),
    cross_attention_norm=(None,),
    class_embeddings_concat=(False,),
    resnet_skip_time_act=(False,),
    resnet_out_scale_factor=(1, None),
    num_attention_heads=(None,),
    dropout=(0, None),
    mid_block_type=("UNetMidBlock2DCrossAttn", None),
    reverse_transformer_layers_per_block=(None,),
    projection_class_embeddings_input_dim=(None,),
    addition_time_embed_dim=(None,),
    temporal_transformer_layers_per_block=(1,),
    reverse_temporal_transformer_layers_per_block=(None,),
    temporal_transformer_layers_per_mid_block=(1, None),
    transformer_layers_per_mid_block=(None,),
    mid_block_layers=(1,),
    reverse_motion_num_attention_heads=(None,),
)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes and switches of the net, under diffusers' names; the last group is this package's own."""

    in_channels: int = (
        4  # latent channels: 4 in a text-to-image base, 8 in an editor ([noisy, source])
    )
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (
        320,
        640,
        1280,
        1280,
    )  # channels of each level, finest first
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    layers_per_block: int = 2  # resnets of each level on the way down; one more on the way up
    attention_head_dim: int | tuple[int, ...] = (
        8  # NUMBER of heads, per level: diffusers' misnomer in UNet2D configs
    )
    transformer_layers_per_block: int = 1
    cross_attention_dim: int = 768  # width of the text encoder
    use_linear_projection: bool = (
        False  # SD 2.x: dense layers around the transformer blocks instead of 1x1 convolutions
    )
    upcast_attention: bool = False  # kept for export; the softmax is in float32 always
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    sample_size: int | None = 64  # latent pixels a side the base was trained at; informative
    temporal: tuple[str, ...] = ()  # kinds of temporal layers, see models/temporal.py
    spatial_attention: str = "frame"  # of a frame's pixels to its own, or "sparse_causal": to those of the first frame and the one before
    group_norm: str = "frame"  # statistics of the resnets' norms: "frame" (equals 2D) or "clip" (pooled over frames)
    motion_group_norm: str = "clip"  # of the motion modules' norms: "clip" (as diffusers) or "frame" (as AnimateDiff's own code)
    motion_num_attention_heads: int = 8  # of every motion module
    motion_max_seq_length: int = 32  # frames that motion modules tell apart: no window is longer
    use_motion_mid_block: bool = False  # a motion module in the middle block too
    temporal_dropout: float = 0.0
    num_frames: int = 16  # frames of the training clip, and of an editing window

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {levels} levels of block_out_channels"
                )
        for kind in self.temporal:
            if kind not in SLOTS:
                raise ValueError(
                    f"temporal kind {kind!r} is unknown; choose from {', '.join(SLOTS)}"
                )
        pooled = ("frame", "clip")
        for name, choices in (
            ("spatial_attention", ("frame", "sparse_causal")),
            ("group_norm", pooled),
            ("motion_group_norm", pooled),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not supported; choose from {', '.join(choices)}"
                )
        if ["CrossAttn" in name for name in self.down_block_types] != [
            "CrossAttn" in name for name in reversed(self.up_block_types)
        ]:
            raise ValueError(
                f"down_block_types {self.down_block_types} and up_block_types {self.up_block_types} do not mirror each other"
            )
        for level, channels in enumerate(self.block_out_channels):
            if (self.has_attention(level) or level == levels - 1) and channels % self.heads(level):
                raise ValueError(
                    f"{channels} channels of level {level} cannot be split into {self.heads(level)} heads"
                )
            if "motion" in self.temporal and channels % self.motion_num_attention_heads:
                raise ValueError(
                    f"{channels} channels of level {level} cannot be split into motion_num_attention_heads {self.motion_num_attention_heads}"
                )
        if self.num_frames > self.max_frames:
            raise ValueError(
                f"num_frames {self.num_frames} is more than the {self.max_frames} places of the motion modules (motion_max_seq_length)"
            )

    @classmethod
    def from_json(cls, config: dict) -> "UNetConfig":
        """Reads a diffusers `config.json` of UNet2DConditionModel, UNet3DConditionModel or UNetMotionModel, or one of our own.

        Raises ValueError for a key at a value that this net does not compute.
        """
        config = {
            **config,
            **{k: v.replace("3D", "2D") for k, v in config.items() if k == "mid_block_type" and v},
        }
        for key in ("down_block_types", "up_block_types"):
            if key in config:
                config[key] = [
                    name.replace("3D", "2D").replace("Motion", "2D") for name in config[key]
                ]
        if (
            config.get("_class_name") == "UNet3DConditionModel"
        ):  # there the head DIMENSION, here the number of heads
            width = config["attention_head_dim"]
            config["attention_head_dim"] = [c // width for c in config["block_out_channels"]]
            config |= dict(use_linear_projection=True, temporal=["conv", "attention"])
        if config.get("_class_name") == "UNetMotionModel":
            config |= dict(
                attention_head_dim=config.pop("num_attention_heads"), temporal=["motion"]
            )
            config.setdefault(
                "num_frames",
                min(
                    cls.num_frames, config.get("motion_max_seq_length") or cls.motion_max_seq_length
                ),
            )
        check_fixed_values(config, FIXED, "U-Net")
        return config_from_json(cls, config)

    def to_json(self) -> dict:
        """Diffusers' keys plus ours; `_class_name` says whether a stock class can hold the weights."""
        name = "InflatedUNet3D" if self.temporal else "UNet2DConditionModel"
        return {"_class_name": name, **dataclasses.asdict(self)}

    def has_attention(self, level: int) -> bool:
        """Whether the level has spatial transformers, by its block type; the mid block always has one."""
        return "CrossAttn" in self.down_block_types[level]

    @property
    def max_frames(self) -> float:
        """Frames that the net can see at once."""
        return self.motion_max_seq_length if "motion" in self.temporal else math.inf

    def heads(self, level: int) -> int:
        """Number of attention heads at a level (-1: the coarsest)."""
        heads = self.attention_head_dim
        return heads if isinstance(heads, int) else heads[level]

    def head_dim(self, level: int) -> int:
        """Width of one head at a level."""
        return self.block_out_channels[level] // self.heads(level)

    @property
    def downscale(self) -> int:
        """Height and width of the latents must be a multiple of this."""
        return 2 ** (len(self.block_out_channels) - 1)


class InflatedUNet3D(nn.Module):
    """Predicts the noise (or v) of a clip's latents.

    `remat`: what each resnet, transformer and temporal layer keeps for the backward pass, see models/remat.py.
    `train`: `config.temporal_dropout` acts, with the "dropout" stream of `apply`.
    """

    config: UNetConfig
    attention_impl: str = "auto"
    remat: str = "none"
    dtype: Any = jnp.float32
    train: bool = False

    @nn.compact
    def __call__(self, x, t, context):
        """x: [B, T, H, W, in_channels] latents; t: [B] timesteps in [0, 1000), one a clip; context: [B, K, D] text.

        H and W are multiples of `config.downscale`. Returns [B, T, H, W, out_channels] in float32.
        """
        cfg = self.config if self.train else dataclasses.replace(self.config, temporal_dropout=0.0)
        levels = range(len(cfg.block_out_channels))
        if x.shape[-1] != cfg.in_channels:
            raise ValueError(
                f"the U-Net takes {cfg.in_channels} latent channels, got {x.shape[-1]}"
            )
        if x.shape[2] % cfg.downscale or x.shape[3] % cfg.downscale:
            raise ValueError(
                f"latent size {x.shape[2]}x{x.shape[3]} is not a multiple of {cfg.downscale}"
            )
        x, context = x.astype(self.dtype), context.astype(self.dtype)
        temb = timestep_embedding(
            t,
            cfg.block_out_channels[0],
            cfg.flip_sin_to_cos,
            cfg.freq_shift,
            accum_dtype(self.dtype),
        )
        temb = TimestepMLP(4 * cfg.block_out_channels[0], self.dtype, name="time_embedding")(temb)

        x = Conv(cfg.block_out_channels[0], (3, 3), dtype=self.dtype, name="conv_in")(x)
        for kind in cfg.temporal:
            if "input" in SLOTS[kind]:
                name, build = SLOTS[kind]["input"]
                x = build(
                    cfg, 8, cfg.head_dim(0), self.dtype, name, partial(remat_layer, name=self.remat)
                )(x)  # 8 heads at every size, as diffusers has it

        skips = [x]
        for level in levels:
            block = UNetLevel(
                cfg,
                level,
                cfg.layers_per_block,
                self.attention_impl,
                self.remat,
                self.dtype,
                name=f"down_blocks.{level}",
            )
            x, outputs = block(
                x, temb, context, skips=None, resample="down" if level < levels[-1] else None
            )
            skips += outputs
        x = MidBlock(cfg, self.attention_impl, self.remat, self.dtype, name="mid_block")(
            x, temb, context
        )
        for i, level in enumerate(reversed(levels)):
            block = UNetLevel(
                cfg,
                level,
                cfg.layers_per_block + 1,
                self.attention_impl,
                self.remat,
                self.dtype,
                name=f"up_blocks.{i}",
            )
            x, _ = block(x, temb, context, skips=skips, resample="up" if level > 0 else None)

        x = nn.silu(
            GroupNorm(
                cfg.norm_num_groups, cfg.norm_eps, norm_axes(cfg), self.dtype, name="conv_norm_out"
            )(x)
        )
        return Conv(cfg.out_channels, (3, 3), dtype=self.dtype, name="conv_out")(x).astype(
            accum_dtype(self.dtype)
        )


class UNetLevel(nn.Module):
    """One resolution on the way down (skips=None) or up (skips: a stack that is popped); returns (x, outputs)."""

    config: UNetConfig
    level: int
    layers: int
    attention_impl: str
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, x, temb, context, skips, resample):
        cfg, outputs = self.config, []
        build = LevelLayers(cfg, self.level, self.attention_impl, self.remat, self.dtype)
        for i in range(self.layers):
            if skips is not None:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = build.resnet(i, x, temb)
            if cfg.has_attention(self.level):
                x = build.attention(i, x, context)
            x = build.temporal("layer", i, x)
            outputs.append(x)
        features = cfg.block_out_channels[self.level]
        if resample == "down":
            x = Downsample(features, dtype=self.dtype, name="downsamplers.0")(x)
            outputs.append(x)
        elif resample == "up":
            x = Upsample(features, dtype=self.dtype, name="upsamplers.0")(x)
        return x, outputs


class MidBlock(nn.Module):
    """resnet - transformer - resnet at the coarsest level."""

    config: UNetConfig
    attention_impl: str
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, x, temb, context):
        build = LevelLayers(self.config, -1, self.attention_impl, self.remat, self.dtype)
        x = build.resnet(0, x, temb)
        x = build.attention(0, x, context)
        if self.config.use_motion_mid_block:
            x = build.temporal("layer", 0, x)
        return build.resnet(1, x, temb)


@dataclasses.dataclass
class LevelLayers:
    """Builds the layers of one level inside the calling module, each spatial layer followed by its temporal ones."""

    config: UNetConfig
    level: int
    attention_impl: str
    remat: str
    dtype: Any

    def module(self, cls):
        return remat_layer(cls, self.remat)

    def resnet(self, i, x, temb):
        cfg = self.config
        features = cfg.block_out_channels[self.level]
        block = self.module(ResnetBlock)(
            features,
            cfg.norm_num_groups,
            cfg.norm_eps,
            norm_axes(cfg),
            self.dtype,
            name=f"resnets.{i}",
        )
        return self.temporal("resnet", i, block(x, temb))

    def attention(self, i, x, context):
        cfg = self.config
        block = self.module(SpatialTransformer)(
            cfg.heads(self.level),
            cfg.head_dim(self.level),
            cfg.transformer_layers_per_block,
            cfg.norm_num_groups,
            cfg.use_linear_projection,
            self.attention_impl,
            cfg.spatial_attention == "sparse_causal",
            "tune_a_video" in cfg.temporal,
            dtype=self.dtype,
            name=f"attentions.{i}",
        )
        return self.temporal("attention", i, block(x, context))

    def temporal(self, slot, i, x):
        cfg = self.config
        for kind in cfg.temporal:
            if slot in SLOTS[kind]:
                name, build = SLOTS[kind][slot]
                x = build(
                    cfg,
                    cfg.heads(self.level),
                    cfg.head_dim(self.level),
                    self.dtype,
                    name.format(i),
                    self.module,
                )(x)
        return x


def norm_axes(config: UNetConfig) -> int:
    """Axes the resnets' norms pool over, besides channels: see `GroupNorm.pool`."""
    return 4 if config.group_norm == "clip" else 3
