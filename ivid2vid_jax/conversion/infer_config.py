"""Configs read off the shapes of the weights, where a file brings none. What shapes cannot tell is Stable Diffusion's own: 8 heads (1.x) or heads of 64
(2.x), 32 groups.
"""

from ivid2vid_jax.models import AutoencoderConfig, CLIPTextConfig, UNetConfig


def count(keys, prefix: str) -> int:
    """How many numbered children a prefix has."""
    return len({key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)})


def infer_unet_config(shapes: dict[str, tuple[int, ...]], **switches) -> UNetConfig:
    """Of a U-Net by diffusers' names: key -> shape. switches: fields that shapes do not tell. Raises KeyError or ValueError where it is none."""
    levels = count(shapes, "down_blocks.")
    widths = [shapes[f"down_blocks.{level}.resnets.0.conv2.weight"][0] for level in range(levels)]
    attends = [f"down_blocks.{level}.attentions.0.norm.weight" in shapes for level in range(levels)]
    types = ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attends]
    block = "mid_block.attentions.0."
    linear = len(shapes[f"{block}proj_in.weight"]) == 2
    return UNetConfig(
        in_channels=shapes["conv_in.weight"][1],
        out_channels=shapes["conv_out.weight"][0],
        block_out_channels=tuple(widths),
        down_block_types=tuple(types),
        up_block_types=tuple(each.replace("Down", "Up") for each in reversed(types)),
        layers_per_block=count(shapes, "down_blocks.0.resnets."),
        attention_head_dim=tuple(width // 64 for width in widths) if linear else 8,
        transformer_layers_per_block=count(shapes, f"{block}transformer_blocks."),
        cross_attention_dim=shapes[f"{block}transformer_blocks.0.attn2.to_k.weight"][1],
        use_linear_projection=linear,
        upcast_attention=linear,
        sample_size=None,
        **infer_motion_config(shapes) | switches,
    )


def infer_motion_config(shapes: dict[str, tuple[int, ...]]) -> dict:
    """The switches of a net's motion modules; {} where it has none."""
    tables = {
        shape[1]
        for key, shape in shapes.items()
        if "motion_modules" in key and key.endswith("pos_embed.pe")
    }
    if not tables:
        return {}
    if len(tables) > 1:
        raise ValueError(
            f"motion modules with tables of {', '.join(map(str, sorted(tables)))} places do not belong together"
        )
    places = tables.pop()
    middle = any(key.startswith("mid_block.motion_modules.") for key in shapes)
    return dict(
        temporal=("motion",),
        motion_max_seq_length=places,
        use_motion_mid_block=middle,
        num_frames=min(16, places),
    )


def infer_vae_config(shapes: dict[str, tuple[int, ...]]) -> AutoencoderConfig:
    """Of an autoencoder by diffusers' names."""
    levels = count(shapes, "encoder.down_blocks.")
    widths = tuple(
        shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)
    )
    layers = count(shapes, "encoder.down_blocks.0.resnets.")
    channels = shapes["post_quant_conv.weight"][0]
    return AutoencoderConfig(
        latent_channels=channels, block_out_channels=widths, layers_per_block=layers
    )


def infer_text_config(
    shapes: dict[str, tuple[int, ...]], open_clip: bool = False
) -> CLIPTextConfig:
    """Of a CLIP text tower by transformers' names."""
    vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=count(shapes, "text_model.encoder.layers."),
        num_attention_heads=width // 64,
        max_position_embeddings=shapes["text_model.embeddings.position_embedding.weight"][0],
        hidden_act="gelu" if open_clip else "quick_gelu",
        projection_dim=width,
    )
