"""Converts diffusers' state dicts to other checkpoint layouts.

The rules are written independently of the package's; diffusers' own converters verify them.
"""

import io
import re
import zipfile

from tests.support.references import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
VAE_LAYERS = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0.conv": "downsample.conv",
    "upsamplers.0.conv": "upsample.conv",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPENCLIP_ENDS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPENCLIP_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
MOTION_LAYERS = {
    "attn1.": "attention_blocks.0.",
    "attn2.": "attention_blocks.1.",
    "norm1.": "norms.0.",
    "norm2.": "norms.1.",
    "norm3.": "ff_norm.",
}


def ldm_unet(state: dict, layers: int) -> dict:
    """Diffusers' U-Net -> latent diffusion's names; layers: resnets per level."""
    return {
        f"model.diffusion_model.{ldm_unet_key(key, state, layers)}": value
        for key, value in state.items()
    }


def ldm_unet_key(key: str, state: dict, layers: int) -> str:
    name, leaf = key.rsplit(".", 1)
    if name in ENDS:
        return f"{ENDS[name]}.{leaf}"
    if key.startswith("mid_block.attentions.0."):
        return "middle_block.1." + key.removeprefix("mid_block.attentions.0.")
    if key.startswith("mid_block.resnets."):
        number, rest = key.removeprefix("mid_block.resnets.").split(".", 1)
        return f"middle_block.{2 * int(number)}.{ldm_resnet_key(rest)}"
    match = re.match(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key
    )
    side, level, kind, layer, rest = match.groups()
    level, layer = int(level), int(layer)
    blocks, first = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
    number = first + level * (layers + 1) + layer
    if kind == "resnets":
        return f"{blocks}.{number}.0.{ldm_resnet_key(rest)}"
    if kind == "attentions":
        return f"{blocks}.{number}.1.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    attends = any(name.startswith(f"up_blocks.{level}.attentions.") for name in state)
    return f"output_blocks.{level * (layers + 1) + layers}.{2 if attends else 1}.{rest}"


def ldm_resnet_key(key: str) -> str:
    layer, _, leaf = key.rpartition(".")
    return f"{RESNET[layer]}.{leaf}"


def ldm_vae(state: dict, levels: int, prefix="first_stage_model.") -> dict:
    """Diffusers' autoencoder -> latent diffusion's names."""
    out = {}
    for key, value in state.items():
        for old, new in VAE_LAYERS.items():
            key = key.replace(old, new)
        key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
        key = re.sub(r"down_blocks\.(\d+)", r"down.\1", key)
        key = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", key)
        key = re.sub(r"(up\.\d+)\.resnets\.(\d+)", r"\1.block.\2", key)
        match = re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)", key)
        if match:
            key = f"{match[1]}mid.attn_1.{VAE_ATTENTION[match[2]]}.{match[3]}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        out[prefix + key] = value
    return out


def with_prefix(state: dict, prefix: str) -> dict:
    """A text encoder under its published names, with a prefix."""
    return {
        f"{prefix}{key if key.startswith('text_model.') else 'text_model.' + key}": value
        for key, value in state.items()
    }


def openclip(state: dict) -> dict:
    """Transformers' text encoder -> OpenCLIP's names.

    It has one layer more, which Stable Diffusion 2.x does not use.
    """
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    out = {new: state[old] for old, new in OPENCLIP_ENDS.items()}
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers."))
    width = state["embeddings.token_embedding.weight"].shape[1]
    for i in range(layers + 1):
        source, target = f"encoder.layers.{min(i, layers - 1)}.", f"transformer.resblocks.{i}."
        for leaf in ("weight", "bias"):
            for old, new in OPENCLIP_LAYERS.items():
                out[f"{target}{new}.{leaf}"] = state[f"{source}{old}.{leaf}"].clone()
            out[f"{target}attn.in_proj_{leaf}"] = torch.cat(
                [state[f"{source}self_attn.{letter}_proj.{leaf}"] for letter in "qkv"]
            )
    out |= {"logit_scale": torch.tensor(1.0), "text_projection": torch.zeros(width, width)}
    return {f"cond_stage_model.model.{key}": value for key, value in out.items()}


def animatediff(state: dict) -> dict:
    """Diffusers' motion modules -> AnimateDiff's names; other keys stay."""
    out = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.*motion_modules\.\d+)\.(.*)", key)
        if not match:
            out[key] = value
            continue
        block, rest = f"{match[1]}.temporal_transformer", match[2]
        inner = "transformer_blocks.0."
        if rest == f"{inner}pos_embed.pe":
            for i in (0, 1):
                out[f"{block}.{inner}attention_blocks.{i}.pos_encoder.pe"] = value.clone()
            continue
        for old, new in MOTION_LAYERS.items():
            if rest.startswith(inner + old):
                rest = inner + new + rest.removeprefix(inner + old)
                break
        out[f"{block}.{rest}"] = value
    return out


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def repacked(path, change, compression=zipfile.ZIP_STORED):
    """Rewrites a torch file with changed members: change(name, bytes) -> bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))
    path.write_bytes(out.getvalue())
