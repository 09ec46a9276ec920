"""Infers configs from the shapes of the weights, for files without a config.

What shapes do not tell is taken from Stable Diffusion: 8 heads (1.x) or heads of width 64 (2.x),
and 32 groups.
"""

from collections.abc import Iterable
from typing import Any

from ivid2vid_jax.models import AutoencoderConfig, CLIPTextConfig, UNetConfig

Shapes = dict[str, tuple[int, ...]]  # key -> shape in PyTorch's layout


def count_children(keys: Iterable[str], prefix: str) -> int:
    """Number of distinct names that follow a prefix, e.g. of the blocks in "down_blocks."."""
    return len({key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)})


def infer_unet_config(shapes: Shapes, **overrides: Any) -> UNetConfig:
    """Config of a U-Net with diffusers' names; overrides: fields that shapes do not tell.

    Raises KeyError or ValueError if the keys are not those of a U-Net.
    """
    levels = count_children(shapes, "down_blocks.")
    widths = [shapes[f"down_blocks.{level}.resnets.0.conv2.weight"][0] for level in range(levels)]
    down_block_types = tuple(
        "CrossAttnDownBlock2D"
        if f"down_blocks.{level}.attentions.0.norm.weight" in shapes
        else "DownBlock2D"
        for level in range(levels)
    )
    attention = "mid_block.attentions.0."
    linear = len(shapes[f"{attention}proj_in.weight"]) == 2
    fields: dict[str, Any] = infer_motion_config(shapes) | overrides
    return UNetConfig(
        in_channels=shapes["conv_in.weight"][1],
        out_channels=shapes["conv_out.weight"][0],
        block_out_channels=tuple(widths),
        down_block_types=down_block_types,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down_block_types)),
        layers_per_block=count_children(shapes, "down_blocks.0.resnets."),
        attention_head_dim=tuple(width // 64 for width in widths) if linear else 8,
        transformer_layers_per_block=count_children(shapes, f"{attention}transformer_blocks."),
        cross_attention_dim=shapes[f"{attention}transformer_blocks.0.attn2.to_k.weight"][1],
        use_linear_projection=linear,
        upcast_attention=linear,
        sample_size=None,
        **fields,
    )


def infer_motion_config(shapes: Shapes) -> dict[str, Any]:
    """Config fields of a net's motion modules; {} if it has none."""
    lengths = {
        shape[1]
        for key, shape in shapes.items()
        if "motion_modules" in key and key.endswith("pos_embed.pe")
    }
    if not lengths:
        return {}
    if len(lengths) > 1:
        raise ValueError(
            "motion modules with position tables of different lengths: "
            + ", ".join(map(str, sorted(lengths)))
        )
    length = lengths.pop()
    return {
        "temporal": ("motion",),
        "motion_max_seq_length": length,
        "use_motion_mid_block": any(key.startswith("mid_block.motion_modules.") for key in shapes),
        "num_frames": min(16, length),
    }


def infer_vae_config(shapes: Shapes) -> AutoencoderConfig:
    """Config of an autoencoder with diffusers' names."""
    levels = count_children(shapes, "encoder.down_blocks.")
    return AutoencoderConfig(
        latent_channels=shapes["post_quant_conv.weight"][0],
        block_out_channels=tuple(
            shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0]
            for level in range(levels)
        ),
        layers_per_block=count_children(shapes, "encoder.down_blocks.0.resnets."),
    )


def infer_text_config(shapes: Shapes, open_clip: bool = False) -> CLIPTextConfig:
    """Config of a CLIP text encoder with transformers' names."""
    vocab_size, width = shapes["text_model.embeddings.token_embedding.weight"]
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=count_children(shapes, "text_model.encoder.layers."),
        num_attention_heads=width // 64,
        max_position_embeddings=shapes["text_model.embeddings.position_embedding.weight"][0],
        hidden_act="gelu" if open_clip else "quick_gelu",
        projection_dim=width,
    )
