"""Sizes and switches of the U-Net, read from a pipeline folder's `unet/config.json`."""

import dataclasses
import math

from ivid2vid_jax.models.config import check_fixed_values, config_from_json
from ivid2vid_jax.models.temporal import TEMPORAL_LAYERS

# Keys of diffusers' U-Net configs that change the arithmetic, each with the only values that this
# network implements.
SUPPORTED_VALUES: dict[str, tuple] = {
    "act_fn": ("silu",),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
    "time_embedding_type": ("positional", None),
    "mid_block_layers": (1,),
    "temporal_transformer_layers_per_block": (1,),
    "dropout": (0, None),
    "mid_block_only_cross_attention": (False, None),
    **dict.fromkeys(("attention_type", "resnet_time_scale_shift"), ("default", None)),
    **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), (3, None)),
    **dict.fromkeys(
        (
            "downsample_padding",
            "mid_block_scale_factor",
            "resnet_out_scale_factor",
            "temporal_transformer_layers_per_mid_block",
        ),
        (1, None),
    ),
    **dict.fromkeys(
        (
            "center_input_sample",
            "class_embeddings_concat",
            "dual_cross_attention",
            "only_cross_attention",
            "resnet_skip_time_act",
        ),
        (False,),
    ),
    **dict.fromkeys(
        (
            "addition_embed_type",
            "addition_time_embed_dim",
            "class_embed_type",
            "cross_attention_norm",
            "encoder_hid_dim",
            "encoder_hid_dim_type",
            "num_attention_heads",
            "num_class_embeds",
            "projection_class_embeddings_input_dim",
            "reverse_motion_num_attention_heads",
            "reverse_temporal_transformer_layers_per_block",
            "reverse_transformer_layers_per_block",
            "time_cond_proj_dim",
            "time_embedding_act_fn",
            "time_embedding_dim",
            "timestep_post_act",
            "transformer_layers_per_mid_block",
        ),
        (None,),
    ),
}

# Values of the switches that diffusers does not have.
CHOICES = {
    "spatial_attention": ("frame", "sparse_causal"),
    "group_norm": ("frame", "clip"),
    "motion_group_norm": ("frame", "clip"),
}


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes and switches of the U-Net, under diffusers' names; the last group is not diffusers'."""

    # Latent channels: 4 in a text-to-image base, 8 in an editor ([noisy, source]).
    in_channels: int = 4

    out_channels: int = 4

    # Channels of each level, finest first.
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)

    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3

    # Resnets of each level on the way down; one more on the way up.
    layers_per_block: int = 2

    # NUMBER of attention heads, per level (a misnomer of diffusers' UNet2D configs).
    attention_head_dim: int | tuple[int, ...] = 8

    transformer_layers_per_block: int = 1

    # Width of the text encoder.
    cross_attention_dim: int = 768

    # Dense layers around the transformer blocks (SD 2.x) instead of 1x1 convolutions (SD 1.x).
    use_linear_projection: bool = False

    # Kept for export only: the softmax is always computed in float32.
    upcast_attention: bool = False

    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0

    # Side in latent pixels that the base was trained at; informative only.
    sample_size: int | None = 64

    # Kinds of temporal layers: conv, attention, motion, tune_a_video (models/temporal.py).
    temporal: tuple[str, ...] = ()

    # What a frame's pixels attend to: "frame", their own frame; "sparse_causal", the first and the
    # previous frame.
    spatial_attention: str = "frame"

    # Statistics of the resnets' norms: "frame" (as in the 2D network) or "clip" (over all frames).
    group_norm: str = "frame"

    # Statistics of the motion modules' norms: "clip" (diffusers) or "frame" (AnimateDiff's code).
    motion_group_norm: str = "clip"

    # Attention heads of every motion module.
    motion_num_attention_heads: int = 8

    # Length of the motion modules' positional encoding: the longest window, in frames.
    motion_max_seq_length: int = 32

    # Adds a motion module to the middle block (AnimateDiff v2).
    use_motion_mid_block: bool = False

    temporal_dropout: float = 0.0

    # Frames of the training clip, and of an editing window.
    num_frames: int = 16

    def __post_init__(self):
        """Raises ValueError for a config that does not describe a network."""
        self._check_levels()
        self._check_choices()
        self._check_heads()
        if self.num_frames > self.max_frames:
            raise ValueError(
                f"num_frames {self.num_frames} is more than the {self.max_frames} positions of "
                "the motion modules (motion_max_seq_length)"
            )

    def _check_levels(self):
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            count = len(getattr(self, name))
            if count != levels:
                raise ValueError(
                    f"{name} has {count} entries for {levels} levels of block_out_channels"
                )
        attention_down = ["CrossAttn" in name for name in self.down_block_types]
        attention_up = ["CrossAttn" in name for name in self.up_block_types]
        if attention_down != attention_up[::-1]:
            raise ValueError(
                f"down_block_types {self.down_block_types} and up_block_types "
                f"{self.up_block_types} do not mirror each other"
            )

    def _check_choices(self):
        for kind in self.temporal:
            if kind not in TEMPORAL_LAYERS:
                raise ValueError(
                    f"temporal kind {kind!r} is unknown; choose from {', '.join(TEMPORAL_LAYERS)}"
                )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is not supported; "
                    f"choose from {', '.join(choices)}"
                )

    def _check_heads(self):
        coarsest = len(self.block_out_channels) - 1
        for level, channels in enumerate(self.block_out_channels):
            has_attention = self.has_attention(level) or level == coarsest  # of the mid block
            if has_attention and channels % self.heads(level):
                raise ValueError(
                    f"{channels} channels of level {level} cannot be split into "
                    f"{self.heads(level)} heads"
                )
            if "motion" in self.temporal and channels % self.motion_num_attention_heads:
                raise ValueError(
                    f"{channels} channels of level {level} cannot be split into "
                    f"motion_num_attention_heads {self.motion_num_attention_heads}"
                )

    @classmethod
    def from_json(cls, config: dict) -> "UNetConfig":
        """Reads the `config.json` of a U-Net.

        Takes diffusers' UNet2DConditionModel, UNet3DConditionModel and UNetMotionModel, and this
        package's own.

        Raises:
            ValueError: for a key at a value that this network does not implement.
        """
        config = dict(config)
        if config.get("mid_block_type"):
            config["mid_block_type"] = config["mid_block_type"].replace("3D", "2D")
        for key in ("down_block_types", "up_block_types"):
            if key in config:
                config[key] = [
                    name.replace("3D", "2D").replace("Motion", "2D") for name in config[key]
                ]
        if config.get("_class_name") == "UNet3DConditionModel":
            # Here attention_head_dim is the width of a head, in this config the number of heads.
            width = config["attention_head_dim"]
            config["attention_head_dim"] = [c // width for c in config["block_out_channels"]]
            config |= dict(use_linear_projection=True, temporal=["conv", "attention"])
        if config.get("_class_name") == "UNetMotionModel":
            config["attention_head_dim"] = config.pop("num_attention_heads")
            config["temporal"] = ["motion"]
            max_frames = config.get("motion_max_seq_length") or cls.motion_max_seq_length
            config.setdefault("num_frames", min(cls.num_frames, max_frames))
        check_fixed_values(config, SUPPORTED_VALUES, "U-Net")
        return config_from_json(cls, config)

    def to_json(self) -> dict:
        """The config under diffusers' keys and ours.

        `_class_name` says whether one of diffusers' classes can hold the weights.
        """
        name = "InflatedUNet3D" if self.temporal else "UNet2DConditionModel"
        return {"_class_name": name, **dataclasses.asdict(self)}

    def has_attention(self, level: int) -> bool:
        """Whether the level has spatial transformers. The mid block always has one."""
        return "CrossAttn" in self.down_block_types[level]

    @property
    def max_frames(self) -> float:
        """The longest window that the network takes, in frames."""
        return self.motion_max_seq_length if "motion" in self.temporal else math.inf

    def heads(self, level: int) -> int:
        """Number of attention heads at a level (-1: the coarsest)."""
        heads = self.attention_head_dim
        return heads if isinstance(heads, int) else heads[level]

    def head_dim(self, level: int) -> int:
        """Width of one attention head at a level."""
        return self.block_out_channels[level] // self.heads(level)

    @property
    def downscale(self) -> int:
        """Height and width of the latents must be multiples of this."""
        return 2 ** (len(self.block_out_channels) - 1)
