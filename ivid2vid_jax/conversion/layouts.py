"""Key mappings from other checkpoint layouts to diffusers' and transformers' names.

Each function maps one key, and returns None for a key that is not part of the net. The layouts are
those of the public code of AnimateDiff, InsV2V, CompVis' latent diffusion (LDM) and OpenCLIP.
"""

import re
from collections.abc import Iterable

MOTION_LAYERS = {
    "attention_blocks.0": "attn1",
    "attention_blocks.1": "attn2",
    "norms.0": "norm1",
    "norms.1": "norm2",
    "ff_norm": "norm3",
}
RESNET_LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_MODULES = {
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
VAE_MODULES = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "norm_out": "conv_norm_out",
    "nin_shortcut": "conv_shortcut",
    "downsample.conv": "downsamplers.0.conv",
    "upsample.conv": "upsamplers.0.conv",
}
VAE_ATTENTION_LAYERS = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
OPENCLIP_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
OPENCLIP_PARAMS = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


def replace_prefix(key: str, table: dict[str, str]) -> str:
    """Replaces the leading module names of a key by the table's first match."""
    for old, new in table.items():
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old) :]
    return key


def animatediff_to_diffusers(key: str) -> str | None:
    """Maps a key of AnimateDiff's motion module files."""
    block, separator, rest = key.removeprefix("module.").partition(".temporal_transformer.")
    if not separator or "motion_modules" not in block:
        return None
    _, transformer_block, layer = rest.partition("transformer_blocks.0.")
    if not transformer_block:
        return f"{block}.{rest}"
    if layer.endswith("pos_encoder.pe"):
        return f"{block}.{transformer_block}pos_embed.pe"
    return f"{block}.{transformer_block}{replace_prefix(layer, MOTION_LAYERS)}"


def insv2v_to_diffusers(key: str) -> str:
    """Maps a U-Net key of InsV2V, which only names its motion modules differently."""
    return animatediff_to_diffusers(key) or key


def ldm_layers_per_block(keys: Iterable[str]) -> int:
    """Resnets per level of an LDM U-Net; ValueError if its blocks do not add up."""
    keys = set(keys)
    blocks = {int(key.split(".")[1]) for key in keys if re.match(r"input_blocks\.\d+\.", key)}
    levels = 1 + sum(key.endswith(".0.op.weight") for key in keys)
    layers, remainder = divmod(len(blocks) - levels, levels)
    if remainder or layers < 1 or blocks != set(range(len(blocks))):
        raise ValueError(f"{len(blocks)} input blocks do not make {levels} levels")
    return layers


def ldm_unet_to_diffusers(key: str, layers: int) -> str | None:
    """Maps an LDM U-Net key without "model.diffusion_model."; layers: resnets per level."""
    for old, new in UNET_MODULES.items():
        if key.startswith(f"{old}."):
            return new + "." + replace_prefix(key[len(old) + 1 :], RESNET_LAYERS)
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", key)
    if not match:
        return None
    side, number, position, rest = match[1], int(match[2]), int(match[3]), match[4]
    if side == "input":
        level, layer = divmod(number - 1, layers + 1)
        block = f"down_blocks.{level}"
    else:
        level, layer = divmod(number, layers + 1)
        block = f"up_blocks.{level}"
    if rest.startswith("op."):
        return f"{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{block}.upsamplers.0.{rest}"
    if position == 0:
        return f"{block}.resnets.{layer}.{replace_prefix(rest, RESNET_LAYERS)}"
    return f"{block}.attentions.{layer}.{rest}"


def ldm_vae_to_diffusers(key: str, levels: int) -> str | None:
    """Maps an LDM autoencoder key without "first_stage_model."."""
    if key.startswith(("quant_conv.", "post_quant_conv.")):
        return key
    net, _, rest = key.partition(".")
    if net not in ("encoder", "decoder"):
        return None
    match = re.fullmatch(r"(down|up)\.(\d+)\.(?:block\.(\d+)\.)?(.+)", rest)
    if match:
        level = int(match[2]) if match[1] == "down" else levels - 1 - int(match[2])
        resnet = f"resnets.{match[3]}." if match[3] else ""
        layer = replace_prefix(match[4], VAE_MODULES)
        return f"{net}.{match[1]}_blocks.{level}.{resnet}{layer}"
    new = replace_prefix(rest, VAE_MODULES)
    _, attention, layer = new.partition("mid_block.attentions.0.")
    if attention:
        return f"{net}.{attention}{replace_prefix(layer, VAE_ATTENTION_LAYERS)}"
    return f"{net}.{new}"


def openclip_to_transformers(key: str) -> tuple[str | None, bool]:
    """Maps an OpenCLIP text encoder key without "cond_stage_model.model.".

    Returns (new key, whether it is a joint projection). A joint projection stacks q, k and v; its
    new key has "{}" in the position of the letter.
    """
    if key in OPENCLIP_PARAMS:
        return f"text_model.{OPENCLIP_PARAMS[key]}", False
    match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", key)
    if not match:
        return None, False
    layer = f"text_model.encoder.layers.{match[1]}."
    if match[2] in ("attn.in_proj_weight", "attn.in_proj_bias"):
        return f"{layer}self_attn.{{}}_proj.{match[2].rpartition('_')[2]}", True
    return layer + replace_prefix(match[2], OPENCLIP_LAYERS), False
