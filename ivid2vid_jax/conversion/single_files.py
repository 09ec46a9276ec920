"""Recognises checkpoints in one file and maps their keys to diffusers' names."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.conversion import infer_config, layouts
from ivid2vid_jax.conversion.foreign_checkpoint import (
    ForeignCheckpoint,
    Tensors,
    tensor_shapes,
)
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.weights import components
from ivid2vid_jax.weights.checkpoint_kinds import check_tensors_kind, open_tensors
from ivid2vid_jax.weights.safetensors_io import LazyTensor

SD1_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
# Values of InsV2V's own configs.
INSV2V_SAMPLING = {
    "steps": 20,
    "text_scale": 7.5,
    "video_scale": 1.2,
    "size": 256,
    "frames": 16,
}
SCHEDULE_TABLES = re.compile(
    r"(betas|alphas_cumprod\w*|sqrt_\w+|log_one_minus\w+|posterior_\w+|lvlb_weights|logvar"
    r"|model_ema\.(decay|num_updates)|scale_factor)$"
)
UNUSED_TEXT_TENSORS = {
    "cond_stage_model.model.logit_scale": "for CLIP's loss only",
    "cond_stage_model.model.text_projection": "for CLIP's loss only",
    "cond_stage_model.model.attn_mask": "a constant",
    "cond_stage_model.logit_scale": "for CLIP's loss only",
    "cond_stage_model.transformer.logit_scale": "for CLIP's loss only",
    "cond_stage_model.transformer.text_projection.weight": "for CLIP's loss only",
}
LDM_UNET = "model.diffusion_model."
LDM_VAE = "first_stage_model."
VAE_ALONE = "autoencoder (VAE) alone"


def parse_file(path: Path) -> ForeignCheckpoint:
    """Recognises a file by its keys; UserError if it is of no known layout."""
    tensors = {
        key.removeprefix("_forward_module."): tensor for key, tensor in open_tensors(path).items()
    }
    check_tensors_kind(path, tensors)
    if "unet.conv_in.weight" in tensors:
        return parse_insv2v(path, tensors)
    if any(key.startswith(LDM_UNET) for key in tensors):
        return parse_ldm(path, tensors)
    if any(key.removeprefix(LDM_VAE).startswith("encoder.") for key in tensors):
        return parse_vae(path, tensors)
    if any(".temporal_transformer." in key for key in tensors) and "conv_in.weight" not in tensors:
        return parse_animatediff(path, tensors)
    if "conv_in.weight" in tensors and "mid_block.resnets.0.conv1.weight" in tensors:
        return parse_unet(path, tensors)
    keys = ", ".join(sorted(tensors)[:4]) or "nothing"
    raise UserError(
        f"{path}: is of no known layout (it holds {keys}); known are AnimateDiff, InsV2V, U-Nets, "
        "SD 1.x/2.x, InstructPix2Pix and autoencoders"
    )


def parse_vae(path: Path, tensors: Tensors) -> ForeignCheckpoint:
    """An autoencoder alone, by latent diffusion's names or diffusers'."""
    vae: Tensors = {}
    unused: dict[str, str] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(LDM_VAE)
        if name.startswith(("loss.", "model_ema.")):
            unused[key] = "for training only"
        else:
            vae[components.canonical_key("vae", name)] = tensor
    if not any(".down_blocks." in key for key in vae):
        vae = convert_ldm_vae(path, vae)
    return make_checkpoint(path, VAE_ALONE, {"vae": vae}, unused)


def parse_unet(path: Path, tensors: Tensors) -> ForeignCheckpoint:
    """A U-Net with diffusers' names, or with AnimateDiff's names in its motion modules."""
    tensors = {
        layouts.insv2v_to_diffusers(key): tensor
        for key, tensor in merge_position_tables(path, tensors).items()
    }
    overrides: dict[str, Any] = {}
    if any(".attn_temp." in key for key in tensors):
        overrides = {
            "temporal": ("tune_a_video",),
            "spatial_attention": "sparse_causal",
            "group_norm": "clip",
        }
    elif any(".temp_convs." in key for key in tensors):
        overrides = {"temporal": ("conv", "attention")}
    return make_checkpoint(path, "U-Net by diffusers' names", {"unet": tensors}, {}, **overrides)


def parse_animatediff(path: Path, tensors: Tensors) -> ForeignCheckpoint:
    """AnimateDiff's motion modules.

    The net's resnets pool their norms over the clip in v1 and normalise frame by frame in v2 and
    v3 (use_inflated_groupnorm); the modules' own norms are frame by frame in all versions.
    """
    motion, unused = {}, {}
    for key, tensor in merge_position_tables(path, tensors).items():
        new_key = layouts.animatediff_to_diffusers(key)
        if new_key is None:
            unused[key] = "no motion module"
        else:
            motion[new_key] = tensor
    if unsupported := [key for key in unused if "lora" in key or "conv_in" in key]:
        raise UserError(
            f"{path}: {unsupported[0]}: holds more than motion modules, which is not supported"
        )
    config = infer_config.infer_motion_config(tensor_shapes(motion))
    if config["use_motion_mid_block"]:
        version = "v2"
    else:
        version = "v1" if config["motion_max_seq_length"] == 24 else "v3"
    config["motion_group_norm"] = "frame"
    config["group_norm"] = "clip" if version == "v1" else "frame"
    family = f"AnimateDiff motion modules, {version}"
    return ForeignCheckpoint(path, family, motion=motion, motion_config=config, unused=unused)


def merge_position_tables(path: Path, tensors: Tensors) -> Tensors:
    """Drops the second position table of each AnimateDiff block.

    The file has one table per attention and our nets one per block, so both must be equal.
    """
    merged = dict(tensors)
    for key, tensor in tensors.items():
        if key.endswith("attention_blocks.1.pos_encoder.pe"):
            first = tensors.get(key.replace("attention_blocks.1", "attention_blocks.0"))
            if (
                first is None
                or first.shape != tensor.shape
                or not np.array_equal(first.read(), tensor.read())
            ):
                raise UserError(
                    f"{path}: {key} differs from the table of the first attention; this net has "
                    "one table for both"
                )
            del merged[key]
    return merged


def parse_insv2v(path: Path, tensors: Tensors) -> ForeignCheckpoint:
    """An InsV2V checkpoint: U-Net with motion modules, autoencoder and text encoder."""
    unet: Tensors = {}
    vae: Tensors = {}
    text_encoder: Tensors = {}
    unused: dict[str, str] = {}
    for key, tensor in merge_position_tables(path, tensors).items():
        if key.startswith("unet."):
            unet[layouts.insv2v_to_diffusers(key.removeprefix("unet."))] = tensor
        elif key.startswith("vae."):
            vae[key.removeprefix("vae.")] = tensor
        elif key.startswith("text_model.transformer."):
            text_key = key.removeprefix("text_model.transformer.")
            add_text_tensor(text_encoder, text_key, tensor, unused)
        else:
            unused[key] = unused_reason(path, key)
    parts = {"unet": unet, "vae": convert_ldm_vae(path, vae), "text_encoder": text_encoder}
    source = make_checkpoint(
        path, "InsV2V", parts, unused, group_norm="clip", motion_group_norm="frame"
    )
    source.scheduler, source.sampling = SD1_SCHEDULER, INSV2V_SAMPLING
    source.notes.append("trained with DDPM steps; eta 1 of the ddim sampler comes closest")
    return source


def parse_ldm(path: Path, tensors: Tensors) -> ForeignCheckpoint:
    """Stable Diffusion or InstructPix2Pix in one file, in latent diffusion's layout.

    If the file holds a complete EMA of the U-Net, the EMA is taken.
    """
    keys = [key for key in tensors if key.startswith(LDM_UNET)]
    ema_keys = {key: "model_ema." + key.removeprefix("model.").replace(".", "") for key in keys}
    has_ema = all(key in tensors for key in ema_keys.values())
    used_ema_keys = set(ema_keys.values()) if has_ema else set()
    open_clip = any(key.startswith("cond_stage_model.model.") for key in tensors)
    unused = dict.fromkeys(keys, "the averaged weights are taken") if has_ema else {}
    unet = convert_ldm_unet(path, {key: tensors[ema_keys[key] if has_ema else key] for key in keys})
    vae: Tensors = {}
    text_encoder: Tensors = {}
    for key, tensor in tensors.items():
        if key in ema_keys or key in used_ema_keys:
            continue
        if key.startswith(LDM_VAE):
            vae[key.removeprefix(LDM_VAE)] = tensor
        elif key.startswith("cond_stage_model.transformer.") and key not in UNUSED_TEXT_TENSORS:
            text_key = key.removeprefix("cond_stage_model.transformer.")
            add_text_tensor(text_encoder, text_key, tensor, unused)
        elif key.startswith("cond_stage_model.model.") and key not in UNUSED_TEXT_TENSORS:
            add_openclip_tensor(path, text_encoder, key, tensor)
        else:
            unused[key] = unused_reason(path, key)
    if open_clip:
        drop_last_layer(text_encoder, unused)
    parts = {"unet": unet, "vae": convert_ldm_vae(path, vae), "text_encoder": text_encoder}
    source = make_checkpoint(path, "", parts, unused, open_clip)
    config = source.configs["unet"]
    source.family = f"{ldm_family(config)}, one file"
    # 2.x nets predict epsilon or v, and no file tells which
    source.scheduler = None if config.use_linear_projection else SD1_SCHEDULER
    if has_ema:
        source.notes.append("averaged (EMA) weights of the U-Net")
    return source


def ldm_family(unet: UNetConfig) -> str:
    """What an LDM checkpoint is, by its U-Net."""
    if unet.in_channels == 8:
        return "InstructPix2Pix"
    return "Stable Diffusion 2.x" if unet.use_linear_projection else "Stable Diffusion 1.x"


def make_checkpoint(
    path: Path,
    family: str,
    parts: dict[str, Tensors],
    unused: dict[str, str],
    open_clip: bool = False,
    **unet_overrides: Any,
) -> ForeignCheckpoint:
    """A checkpoint of the components that have tensors, with configs inferred from shapes."""
    parts = {name: tensors for name, tensors in parts.items() if tensors}
    infer: dict[str, Callable[[infer_config.Shapes], Any]] = {
        "unet": lambda shapes: infer_config.infer_unet_config(shapes, **unet_overrides),
        "vae": infer_config.infer_vae_config,
        "text_encoder": lambda shapes: infer_config.infer_text_config(shapes, open_clip),
    }
    configs = {name: infer[name](tensor_shapes(tensors)) for name, tensors in parts.items()}
    return ForeignCheckpoint(path, family, parts, configs, unused)


def unused_reason(path: Path, key: str) -> str:
    """Why a key is not used; UserError for an unknown key."""
    if SCHEDULE_TABLES.match(key):
        return "a table, computed from the schedule"
    if key in UNUSED_TEXT_TENSORS:
        return UNUSED_TEXT_TENSORS[key]
    if key.startswith("model_ema."):
        return "averaged weights, which are not whole"
    raise UserError(f"{path}: {key} belongs to no known part of the net")


def add_text_tensor(
    text_encoder: Tensors, key: str, tensor: LazyTensor, unused: dict[str, str]
) -> None:
    """Adds a text encoder tensor in transformers' layout to `text_encoder`, or to `unused`."""
    if components.is_ignored(key):
        unused[tensor.name] = "a constant"
    else:
        text_encoder[components.canonical_key("text_encoder", key)] = tensor


def add_openclip_tensor(path: Path, text_encoder: Tensors, key: str, tensor: LazyTensor) -> None:
    """Adds an OpenCLIP text tensor to `text_encoder`; joint projections are split in q, k, v."""
    new_key, is_joint = layouts.openclip_to_transformers(
        key.removeprefix("cond_stage_model.model.")
    )
    if new_key is None:
        raise UserError(f"{path}: {key} belongs to no known part of the net")
    if not is_joint:
        text_encoder[new_key] = tensor
        return
    rows = tensor.shape[0] // 3
    for i, letter in enumerate("qkv"):

        def take_rows(array: np.ndarray, first=i * rows) -> np.ndarray:
            return array[first : first + rows]

        text_encoder[new_key.format(letter)] = tensor.map((rows, *tensor.shape[1:]), take_rows)


def drop_last_layer(text_encoder: Tensors, unused: dict[str, str]) -> None:
    """Drops the last layer: Stable Diffusion 2.x uses the output of the last but one."""
    layers = infer_config.count_children(text_encoder, "text_model.encoder.layers.")
    prefix = f"text_model.encoder.layers.{layers - 1}."
    for key in [key for key in text_encoder if key.startswith(prefix)]:
        tensor = text_encoder.pop(key)
        unused[tensor.name] = "the last layer, which Stable Diffusion 2.x does not use"


def convert_ldm_unet(path: Path, tensors: Tensors) -> Tensors:
    """An LDM U-Net under diffusers' names."""
    names = {key.removeprefix(LDM_UNET): tensor for key, tensor in tensors.items()}
    layers = layouts.ldm_layers_per_block(names)
    unet = {}
    for name, tensor in names.items():
        new_key = layouts.ldm_unet_to_diffusers(name, layers)
        if new_key is None:
            raise UserError(f"{path}: {LDM_UNET}{name} belongs to no known part of the net")
        unet[new_key] = tensor
    return unet


def convert_ldm_vae(path: Path, tensors: Tensors) -> Tensors:
    """An LDM autoencoder under diffusers' names."""
    levels = infer_config.count_children(tensors, "encoder.down.")
    vae = {}
    for key, tensor in tensors.items():
        new_key = layouts.ldm_vae_to_diffusers(key, levels)
        if new_key is None:
            raise UserError(f"{path}: {tensor.name} belongs to no known part of an autoencoder")
        vae[new_key] = tensor
    return vae
