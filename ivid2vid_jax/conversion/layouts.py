"""Other people's names for the same layers: pure functions from a key of theirs to diffusers', or None for what is no part of the net.

Facts read from the public code of AnimateDiff, InsV2V, CompVis' latent diffusion, OpenCLIP.
"""

import re

MOTION = {
    "attention_blocks.0": "attn1",
    "attention_blocks.1": "attn2",
    "norms.0": "norm1",
    "norms.1": "norm2",
    "ff_norm": "norm3",
}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}
VAE = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "norm_out": "conv_norm_out",
    "nin_shortcut": "conv_shortcut",
    "downsample.conv": "downsamplers.0.conv",
    "upsample.conv": "upsamplers.0.conv",
}
VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
OPENCLIP = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
OPENCLIP_ENDS = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


def swapped(text: str, table: dict[str, str]) -> str:
    """The text with the one leading part that the table has replaced."""
    for old, new in table.items():
        if text == old or text.startswith(f"{old}."):
            return new + text[len(old) :]
    return text


def motion(key: str) -> str | None:
    """A motion module of AnimateDiff's own files."""
    block, found, rest = key.removeprefix("module.").partition(".temporal_transformer.")
    if not found or "motion_modules" not in block:
        return None
    head, inner, tail = rest.partition("transformer_blocks.0.")
    if not inner:
        return f"{block}.{rest}"
    if tail.endswith("pos_encoder.pe"):
        return f"{block}.{inner}pos_embed.pe"
    return f"{block}.{head}{inner}{swapped(tail, MOTION)}"


def insv2v(key: str) -> str | None:
    """A U-Net key of InsV2V: diffusers' names, but for its motion modules."""
    return motion(key) or key


def ldm_levels(keys) -> tuple[int, int]:
    """(levels, layers of each) of a U-Net in the latent-diffusion layout. Raises ValueError where its blocks do not add up."""
    blocks = {int(key.split(".")[1]) for key in keys if re.match(r"input_blocks\.\d+\.", key)}
    levels = 1 + sum(key.endswith(".0.op.weight") for key in keys)
    layers, odd = divmod(len(blocks) - levels, levels)
    if odd or layers < 1 or blocks != set(range(len(blocks))):
        raise ValueError(f"{len(blocks)} input blocks do not make {levels} levels")
    return levels, layers


def ldm_unet(key: str, levels: int, layers: int) -> str | None:
    """A U-Net key of latent diffusion, without "model.diffusion_model."."""
    for end, new in ENDS.items():
        if key.startswith(f"{end}."):
            return new + "." + swapped(key[len(end) + 1 :], RESNET)
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", key)
    if not found:
        return None
    side, number, place, rest = found[1], int(found[2]), int(found[3]), found[4]
    if side == "input":
        level, layer = divmod(number - 1, layers + 1)
        block = f"down_blocks.{level}"
    else:
        level, layer = divmod(number, layers + 1)
        block = f"up_blocks.{level}"
    if rest.startswith("op."):
        return f"{block}.downsamplers.0.conv.{rest[3:]}"
    if rest.startswith("conv."):
        return f"{block}.upsamplers.0.{rest}"
    return (
        f"{block}.resnets.{layer}.{swapped(rest, RESNET)}"
        if place == 0
        else f"{block}.attentions.{layer}.{rest}"
    )


def ldm_vae(key: str, levels: int) -> str | None:
    """An autoencoder key of latent diffusion, without "first_stage_model."."""
    if key.startswith(("quant_conv.", "post_quant_conv.")):
        return key
    net, _, rest = key.partition(".")
    if net not in ("encoder", "decoder"):
        return None
    found = re.fullmatch(r"(down|up)\.(\d+)\.(?:block\.(\d+)\.)?(.+)", rest)
    if found:
        level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
        layer = f"resnets.{found[3]}." if found[3] else ""
        return f"{net}.{found[1]}_blocks.{level}.{layer}{swapped(found[4], VAE)}"
    new = swapped(rest, VAE)
    head, attention, tail = new.partition("mid_block.attentions.0.")
    return f"{net}.{attention}{swapped(tail, VAE_ATTENTION)}" if attention else f"{net}.{new}"


def openclip(key: str) -> tuple[str | None, int | None]:
    """(key, third) of an OpenCLIP text tower, without "cond_stage_model.model."; third: which of q, k and v of a joint projection, by `{}` in the key."""
    if key in OPENCLIP_ENDS:
        return f"text_model.{OPENCLIP_ENDS[key]}", None
    found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", key)
    if not found:
        return None, None
    layer = f"text_model.encoder.layers.{found[1]}."
    if found[2] in ("attn.in_proj_weight", "attn.in_proj_bias"):
        return f"{layer}self_attn.{{}}_proj.{found[2].rpartition('_')[2]}", 3
    return layer + swapped(found[2], OPENCLIP), None
