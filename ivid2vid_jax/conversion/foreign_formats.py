"""What a file or folder of someone else's is, and its tensors under diffusers' names. Only headers are read."""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ivid2vid_jax.conversion import infer_config, layouts
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights import components, pickles, safetensors_io
from ivid2vid_jax.weights.pipeline_folder import CONFIGS

Tensor = tuple[
    str, safetensors_io.Entry, Callable[[], np.ndarray]
]  # the name in the file, what its header says, its reader
Tensors = dict[str, Tensor]

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
INSV2V_SAMPLING = {
    "steps": 20,
    "text_scale": 7.5,
    "video_scale": 1.2,
    "size": 256,
    "frames": 16,
}  # its own configs' values
TABLES = re.compile(
    r"(betas|alphas_cumprod\w*|sqrt_\w+|log_one_minus\w+|posterior_\w+|lvlb_weights|logvar|model_ema\.(decay|num_updates)|scale_factor)$"
)
UNUSED = {
    "cond_stage_model.model.logit_scale": "for CLIP's loss only",
    "cond_stage_model.model.text_projection": "for CLIP's loss only",
    "cond_stage_model.model.attn_mask": "a constant",
    "cond_stage_model.logit_scale": "for CLIP's loss only",
}


@dataclasses.dataclass
class ForeignCheckpoint:
    """path: what was given. parts: component -> tensors; `motion`: motion modules alone, for a base's U-Net. configs: component -> config.
    left: name in the file -> why it is no part. folder: where tokenizer/ and scheduler/ may lie.
    """

    path: Path
    family: str
    parts: dict[str, Tensors] = dataclasses.field(default_factory=dict)
    configs: dict[str, Any] = dataclasses.field(default_factory=dict)
    left: dict[str, str] = dataclasses.field(default_factory=dict)
    motion: Tensors = dataclasses.field(default_factory=dict)
    switches: dict[str, Any] = dataclasses.field(default_factory=dict)
    scheduler: dict | None = None
    sampling: dict = dataclasses.field(default_factory=dict)
    folder: Path | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def tokenizer(self) -> Path | None:
        """Where the tokenizer's files lie; None where the source has none."""
        return self.folder if self.folder and (self.folder / "tokenizer").is_dir() else None

    @property
    def missing(self) -> list[str]:
        """What a base must supply."""
        lacks = [name for name in CONFIGS if name not in self.parts]
        return (
            lacks
            + ["tokenizer"] * (self.tokenizer is None)
            + ["scheduler"] * (self.scheduler is None)
        )


def open_checkpoint(path: Path) -> ForeignCheckpoint:
    """Raises UserError for what is damaged, unknown, or holds keys that belong to nothing."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    try:
        return of_folder(path) if path.is_dir() else of_file(path)
    except (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise (
            error
            if isinstance(error, UserError)
            else UserError(f"{path}: its layers do not make a net that is known here ({error})")
        ) from error


def open_weights(path: Path) -> Tensors:
    """Every tensor of one file, safetensors or a PyTorch pickle, by its own name."""
    if path.suffix in pickles.SUFFIXES:
        return pickles.read_pickle_tensors(path)
    return {
        key: (key, entry, partial(safetensors_io.read_tensor, key, entry))
        for key, entry in safetensors_io.read_headers([path]).items()
    }


def component_weights(component: str, folder: Path) -> Tensors:
    """A component's tensors by today's names: safetensors, or else .bin, whole or sharded."""
    stem = components.STEMS[component] if component != "text_encoder" else "pytorch_model"
    index, whole = folder / f"{stem}.bin.index.json", folder / f"{stem}.bin"
    if any(folder.glob("*.safetensors")) or not (whole.is_file() or index.is_file()):
        paths = safetensors_io.find_files(folder, components.STEMS[component])
    else:
        paths = [whole] if whole.is_file() else safetensors_io.shards(index)
    found = {}
    for path in paths:
        found |= {
            components.canonical_key(component, key): each
            for key, each in open_weights(path).items()
            if key.rpartition(".")[2] not in components.IGNORED
        }
    return found


def of_folder(path: Path) -> ForeignCheckpoint:
    if (path / "model_index.json").is_file():
        return of_pipeline(path)
    if not (path / "config.json").is_file():
        held = ", ".join(sorted(each.name for each in path.iterdir())[:8])
        raise UserError(
            f"{path}: has neither model_index.json nor config.json (it holds: {held}); give a pipeline's folder, a U-Net's, or a file"
        )
    config = read_json(path / "config.json")
    if config.get("_class_name") == "MotionAdapter":
        return of_adapter(path, config)
    if "UNet" not in str(config.get("_class_name")):
        raise UserError(
            f"{path}: is a {config.get('_class_name') or config.get('model_type')}, not a U-Net, motion adapter or pipeline"
        )
    return ForeignCheckpoint(
        path,
        f"U-Net, {config['_class_name']}",
        {"unet": component_weights("unet", path)},
        {"unet": unet_config(config)},
    )


def of_pipeline(path: Path) -> ForeignCheckpoint:
    index = read_json(path / "model_index.json")
    name = index.get("_class_name")
    source = ForeignCheckpoint(
        path, f"pipeline folder, {name[-1] if isinstance(name, list) else name}", folder=path
    )
    for component, cls in CONFIGS.items():
        config = read_json(path / component / "config.json")
        source.configs[component] = (
            unet_config(config) if component == "unet" else cls.from_json(config)
        )
        source.parts[component] = component_weights(component, path / component)
    source.scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    sampling = path / "sampling.json"
    source.sampling = read_json(sampling) if sampling.is_file() else {}
    source.left = {
        key: "not needed here"
        for key, value in index.items()
        if isinstance(value, list) and value[0] and key in ("safety_checker", "feature_extractor")
    }
    if "tune_a_video" in source.configs["unet"].temporal:
        source.family = f"Tune-A-Video, {source.family}"
    return source


def unet_config(config: dict) -> UNetConfig:
    """Tune-A-Video's class has the name of ModelScope's, but its middle block says which it is."""
    if (
        config.get("_class_name") == "UNet3DConditionModel"
        and config.get("mid_block_type") == "UNetMidBlock3DCrossAttn"
    ):
        inside = dict(
            temporal=["tune_a_video"], spatial_attention="sparse_causal", group_norm="clip"
        )
        config = {**config, "_class_name": "UNet2DConditionModel", **inside}
    return UNetConfig.from_json(config)


def of_adapter(path: Path, config: dict) -> ForeignCheckpoint:
    if config.get("conv_in_channels"):
        raise UserError(
            f"{path}: conv_in_channels={config['conv_in_channels']}: an adapter with its own input layer (PIA) is not supported"
        )
    tensors = component_weights("unet", path)
    heads = config.get("motion_num_attention_heads", 8)
    switches = infer_config.infer_motion_config(
        {key: entry.shape for key, (_, entry, _) in tensors.items()}
    ) | dict(motion_num_attention_heads=heads, motion_group_norm="clip")
    return ForeignCheckpoint(
        path, "AnimateDiff motion adapter of diffusers", motion=tensors, switches=switches
    )


def of_file(path: Path) -> ForeignCheckpoint:
    tensors = {
        key.removeprefix("_forward_module."): each for key, each in open_weights(path).items()
    }
    if "unet.conv_in.weight" in tensors:
        return of_insv2v(path, tensors)
    if any(key.startswith("model.diffusion_model.") for key in tensors):
        return of_ldm(path, tensors)
    if any(".temporal_transformer." in key for key in tensors) and "conv_in.weight" not in tensors:
        return of_animatediff(path, tensors)
    if "conv_in.weight" in tensors and "mid_block.resnets.0.conv1.weight" in tensors:
        return of_unet(path, tensors)
    some = ", ".join(sorted(tensors)[:4]) or "nothing"
    raise UserError(
        f"{path}: is none of the files that are known here (it holds {some}); known: AnimateDiff, InsV2V, U-Nets, SD 1.x/2.x and InstructPix2Pix"
    )


def of_unet(path: Path, tensors: Tensors) -> ForeignCheckpoint:
    tensors = {layouts.insv2v(key): each for key, each in merged(path, tensors).items()}
    if any(".attn_temp." in key for key in tensors):
        switches = dict(
            temporal=("tune_a_video",), spatial_attention="sparse_causal", group_norm="clip"
        )
    else:
        switches = (
            dict(temporal=("conv", "attention"))
            if any(".temp_convs." in key for key in tensors)
            else {}
        )
    return ForeignCheckpoint(
        path,
        "U-Net by diffusers' names",
        {"unet": tensors},
        {"unet": infer_config.infer_unet_config(sizes(tensors), **switches)},
    )


def of_animatediff(path: Path, tensors: Tensors) -> ForeignCheckpoint:
    """v1 normalises over the clip in its resnets, v2 and v3 frame by frame (use_inflated_groupnorm); the modules' own norms are by frame in all."""
    found, left = {}, {}
    for key, each in merged(path, tensors).items():
        new = layouts.motion(key)
        if new is None:
            left[key] = "no motion module"
        else:
            found[new] = each
    if strange := [key for key in left if "lora" in key or "conv_in" in key]:
        raise UserError(
            f"{path}: {strange[0]}: holds more than motion modules, which is not supported"
        )
    switches = infer_config.infer_motion_config(sizes(found))
    version = (
        "v2"
        if switches["use_motion_mid_block"]
        else "v1"
        if switches["motion_max_seq_length"] == 24
        else "v3"
    )
    switches |= dict(motion_group_norm="frame", group_norm="clip" if version == "v1" else "frame")
    return ForeignCheckpoint(
        path, f"AnimateDiff motion modules, {version}", motion=found, switches=switches, left=left
    )


def merged(path: Path, tensors: Tensors) -> Tensors:
    """Without the second of two equal position tables: a motion module's file holds one for each attention, and one is kept."""
    out = dict(tensors)
    for key, (_, entry, read) in tensors.items():
        if key.endswith("attention_blocks.1.pos_encoder.pe"):
            first = key.replace("attention_blocks.1", "attention_blocks.0")
            if (
                first not in tensors
                or tensors[first][1].shape != entry.shape
                or not np.array_equal(tensors[first][2](), read())
            ):
                raise UserError(
                    f"{path}: {key} differs from that of the first attention, and a net here has one for both"
                )
            del out[key]
    return out


def of_insv2v(path: Path, tensors: Tensors) -> ForeignCheckpoint:
    parts, left = {"unet": {}, "vae": {}, "text_encoder": {}}, {}
    for key, each in merged(path, tensors).items():
        if key.startswith("unet."):
            parts["unet"][layouts.insv2v(key.removeprefix("unet."))] = each
        elif key.startswith("vae."):
            parts["vae"][key.removeprefix("vae.")] = each
        elif key.startswith("text_model.transformer."):
            put_text(parts["text_encoder"], key.removeprefix("text_model.transformer."), each, left)
        else:
            left[key] = unused(path, key)
    parts["vae"] = autoencoder(path, parts["vae"])
    source = ForeignCheckpoint(
        path,
        "InsV2V",
        {name: part for name, part in parts.items() if part},
        left=left,
        scheduler=SD1_SCHEDULER,
        sampling=INSV2V_SAMPLING,
    )
    source.notes.append("trained with DDPM steps; eta 1 of the ddim sampler comes closest")
    return configured(source, group_norm="clip", motion_group_norm="frame")


def of_ldm(path: Path, tensors: Tensors) -> ForeignCheckpoint:
    """Averaged weights are taken where the file holds them all."""
    prefix = "model.diffusion_model."
    names = {key.removeprefix(prefix) for key in tensors if key.startswith(prefix)}
    levels, layers = layouts.ldm_levels(names)
    averaged = {name: "model_ema.diffusion_model" + name.replace(".", "") for name in names}
    ema = all(each in tensors for each in averaged.values())
    parts, left, open_clip = (
        {"unet": {}, "vae": {}, "text_encoder": {}},
        {},
        any(key.startswith("cond_stage_model.model.") for key in tensors),
    )
    for name in names:
        new = layouts.ldm_unet(name, levels, layers)
        if new is None:
            raise UserError(f"{path}: {prefix}{name} belongs to no part of the net")
        parts["unet"][new] = tensors[averaged[name] if ema else prefix + name]
        if ema:
            left[prefix + name] = "the averaged weights are taken"
    for key, each in tensors.items():
        if key.startswith("first_stage_model."):
            parts["vae"][key.removeprefix("first_stage_model.")] = each
        elif key.startswith("cond_stage_model.transformer."):
            put_text(
                parts["text_encoder"], key.removeprefix("cond_stage_model.transformer."), each, left
            )
        elif key.startswith("cond_stage_model.model.") and key not in UNUSED:
            put_openclip(path, parts["text_encoder"], key, each)
        elif not key.startswith(prefix) and not (ema and key in averaged.values()):
            left[key] = unused(path, key)
    if open_clip:
        leave_last_layer(parts["text_encoder"], left)
    parts["vae"] = autoencoder(path, parts["vae"])
    source = ForeignCheckpoint(
        path, "", {name: part for name, part in parts.items() if part}, left=left
    )
    source = configured(source, open_clip=open_clip)
    unet = source.configs["unet"]
    source.scheduler = (
        None if unet.use_linear_projection else SD1_SCHEDULER
    )  # 2.x: epsilon or v, which no file tells
    source.family = f"{'InstructPix2Pix' if unet.in_channels == 8 else 'Stable Diffusion 2.x' if unet.use_linear_projection else 'Stable Diffusion 1.x'}, one file"
    source.notes += ["averaged (EMA) weights of the U-Net"] * ema
    return source


def configured(source: ForeignCheckpoint, open_clip: bool = False, **switches) -> ForeignCheckpoint:
    """The source with its configs read off the shapes."""
    of = {
        "unet": partial(infer_config.infer_unet_config, **switches),
        "vae": infer_config.infer_vae_config,
        "text_encoder": partial(infer_config.infer_text_config, open_clip=open_clip),
    }
    source.configs = {name: of[name](sizes(part)) for name, part in source.parts.items()}
    return source


def sizes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {key: entry.shape for key, (_, entry, _) in tensors.items()}


def unused(path: Path, key: str) -> str:
    """Why a key is left; UserError for one that nobody knows."""
    if TABLES.match(key):
        return "a table, computed from the schedule"
    if key in UNUSED or key.startswith("model_ema."):
        return UNUSED.get(key, "averaged weights, which are not whole")
    raise UserError(f"{path}: {key} belongs to no part that is known here")


def put_text(part: Tensors, key: str, each: Tensor, left: dict[str, str]) -> None:
    if key.rpartition(".")[2] in components.IGNORED:
        left[each[0]] = "a constant"
    else:
        part[components.canonical_key("text_encoder", key)] = each


def put_openclip(path: Path, part: Tensors, key: str, each: Tensor) -> None:
    new, thirds = layouts.openclip(key.removeprefix("cond_stage_model.model."))
    if new is None:
        raise UserError(f"{path}: {key} belongs to no part that is known here")
    if thirds is None:
        part[new] = each
        return
    rows = each[1].shape[0] // thirds
    for i, name in enumerate("qkv"):
        part[new.format(name)] = changed(
            each, (rows, *each[1].shape[1:]), lambda array, i=i: array[i * rows : (i + 1) * rows]
        )


def leave_last_layer(part: Tensors, left: dict[str, str]) -> None:
    """Stable Diffusion 2.x reads its text from the last layer but one."""
    last = (
        f"text_model.encoder.layers.{infer_config.count(part, 'text_model.encoder.layers.') - 1}."
    )
    for key in [key for key in part if key.startswith(last)]:
        left[part.pop(key)[0]] = "the last layer, which Stable Diffusion 2.x does not use"


def autoencoder(path: Path, tensors: Tensors) -> Tensors:
    """An autoencoder in latent diffusion's layout by diffusers' names; its attention's 1x1 convolutions are dense layers there."""
    levels, out = infer_config.count(tensors, "encoder.down."), {}
    for key, each in tensors.items():
        new = layouts.ldm_vae(key, levels)
        if new is None:
            raise UserError(f"{path}: {each[0]} belongs to no part of an autoencoder")
        flat = ".attentions." in new and each[1].shape[2:] == (1, 1)
        out[new] = (
            changed(each, each[1].shape[:2], lambda array: array[:, :, 0, 0]) if flat else each
        )
    return out


def changed(
    each: Tensor, shape: tuple[int, ...], function: Callable[[np.ndarray], np.ndarray]
) -> Tensor:
    name, entry, read = each
    return name, entry._replace(shape=shape), lambda: function(read())
