"""Weights under other people's names, made from diffusers' by rules written here apart from the package's own; diffusers' converters judge them."""

import io
import re
import zipfile

import torch

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


MODULES = {
    "attn1.": "attention_blocks.0.",
    "attn2.": "attention_blocks.1.",
    "norm1.": "norms.0.",
    "norm2.": "norms.1.",
    "norm3.": "ff_norm.",
}


def resnet(rest):
    layer, _, leaf = rest.rpartition(".")
    return f"{RESNET[layer]}.{leaf}"


def ldm_unet(state: dict, layers: int) -> dict:
    """Diffusers' U-Net -> latent diffusion's names."""
    out = {}
    for key, value in state.items():
        name, leaf = key.rsplit(".", 1)
        place = re.match(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)",
            key,
        )
        if name in ENDS:
            new = f"{ENDS[name]}.{leaf}"
        elif key.startswith("mid_block.attentions.0."):
            new = "middle_block.1." + key.removeprefix("mid_block.attentions.0.")
        elif key.startswith("mid_block.resnets."):
            number, rest = key.removeprefix("mid_block.resnets.").split(".", 1)
            new = f"middle_block.{2 * int(number)}.{resnet(rest)}"
        else:
            side, block, kind, layer, rest = (
                place[1],
                int(place[2]),
                place[3],
                int(place[4]),
                place[5],
            )
            head, base = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
            number = base + block * (layers + 1) + layer
            if kind == "resnets":
                new = f"{head}.{number}.0.{resnet(rest)}"
            elif kind == "attentions":
                new = f"{head}.{number}.1.{rest}"
            elif kind == "downsamplers":
                new = f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
            else:
                attends = any(other.startswith(f"up_blocks.{block}.attentions.") for other in state)
                new = f"output_blocks.{block * (layers + 1) + layers}.{2 if attends else 1}.{rest}"
        out[f"model.diffusion_model.{new}"] = value
    return out


def ldm_vae(state: dict, levels: int, prefix="first_stage_model.") -> dict:
    """Diffusers' autoencoder -> latent diffusion's names."""
    out = {}
    for key, value in state.items():
        new = (
            key.replace("mid_block.resnets.0", "mid.block_1")
            .replace("mid_block.resnets.1", "mid.block_2")
            .replace("conv_norm_out", "norm_out")
        )
        new = (
            new.replace("conv_shortcut", "nin_shortcut")
            .replace("downsamplers.0.conv", "downsample.conv")
            .replace("upsamplers.0.conv", "upsample.conv")
        )
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", new)
        new = re.sub(r"down_blocks\.(\d+)", r"down.\1", new)
        new = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", new)
        new = re.sub(r"(up\.\d+)\.resnets\.(\d+)", r"\1.block.\2", new)
        if "mid_block.attentions.0" in new:
            head, name, leaf = re.fullmatch(
                r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)", new
            ).groups()
            name = {
                "group_norm": "norm",
                "to_q": "q",
                "to_k": "k",
                "to_v": "v",
                "to_out.0": "proj_out",
            }[name]
            new = f"{head}mid.attn_1.{name}.{leaf}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        out[prefix + new] = value
    return out


def with_prefix(state: dict, prefix: str) -> dict:
    """A text tower under its published names, behind a prefix."""
    return {
        f"{prefix}{key if key.startswith('text_model.') else 'text_model.' + key}": value
        for key, value in state.items()
    }


def openclip(state: dict) -> dict:
    """Transformers' text tower -> OpenCLIP's names, with the layer more that Stable Diffusion 2.x leaves out."""
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    ends = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    out = {new: state[old] for old, new in ends.items()}
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layers."))
    width = state["embeddings.token_embedding.weight"].shape[1]
    names = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for i in range(layers + 1):
        source = f"encoder.layers.{min(i, layers - 1)}."
        for leaf in ("weight", "bias"):
            for old, new in names.items():
                out[f"transformer.resblocks.{i}.{new}.{leaf}"] = state[
                    f"{source}{old}.{leaf}"
                ].clone()
            out[f"transformer.resblocks.{i}.attn.in_proj_{leaf}"] = torch.cat(
                [state[f"{source}self_attn.{each}_proj.{leaf}"] for each in "qkv"]
            )
    out |= {"logit_scale": torch.tensor(1.0), "text_projection": torch.zeros(width, width)}
    return {f"cond_stage_model.model.{key}": value for key, value in out.items()}


def animatediff(state: dict) -> dict:
    """Diffusers' motion modules -> AnimateDiff's names; other keys stay."""
    out = {}
    for key, value in state.items():
        found = re.fullmatch(r"(.*motion_modules\.\d+)\.(.*)", key)
        if not found:
            out[key] = value
            continue
        block, rest = f"{found[1]}.temporal_transformer", found[2]
        inner = "transformer_blocks.0."
        if rest == f"{inner}pos_embed.pe":
            for i in (0, 1):
                out[f"{block}.{inner}attention_blocks.{i}.pos_encoder.pe"] = value.clone()
            continue
        for old, new in MODULES.items():
            if rest.startswith(inner + old):
                rest = inner + new + rest.removeprefix(inner + old)
                break
        out[f"{block}.{rest}"] = value
    return out


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def repacked(path, change, compression=zipfile.ZIP_STORED):
    """A torch file with its members changed: change(name, bytes) -> bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))
    path.write_bytes(out.getvalue())
