"""Recognises checkpoints in other layouts. Only headers are read."""

from pathlib import Path
from typing import Any

from ivid2vid_jax.conversion import infer_config
from ivid2vid_jax.conversion.foreign_checkpoint import (
    ForeignCheckpoint,
    open_component_tensors,
    tensor_shapes,
)
from ivid2vid_jax.conversion.single_files import VAE_ALONE, parse_file
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models import AutoencoderConfig, UNetConfig
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights.checkpoint_kinds import check_folder_kind
from ivid2vid_jax.weights.pipeline_folder import CONFIGS


def open_checkpoint(path: Path) -> ForeignCheckpoint:
    """Opens a file or folder.

    Raises UserError if it is damaged, of no known layout, or holds keys of no known part.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    try:
        return parse_folder(path) if path.is_dir() else parse_file(path)
    except UserError:
        raise
    except (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        raise UserError(f"{path}: its layers do not form a known net ({error})") from error


def parse_folder(path: Path) -> ForeignCheckpoint:
    """A pipeline folder, or the folder of a motion adapter, U-Net or autoencoder."""
    check_folder_kind(path)
    if (path / "model_index.json").is_file():
        return parse_pipeline_folder(path)
    if not (path / "config.json").is_file():
        content = ", ".join(sorted(file.name for file in path.iterdir())[:8])
        raise UserError(
            f"{path}: has neither model_index.json nor config.json (it holds: {content}); give a "
            "pipeline's folder, a U-Net's, or a file"
        )
    config = read_json(path / "config.json")
    class_name = config.get("_class_name")
    if class_name == "MotionAdapter":
        return parse_motion_adapter(path, config)
    if class_name == "AutoencoderKL":
        vae = {"vae": open_component_tensors("vae", path)}
        return ForeignCheckpoint(path, VAE_ALONE, vae, {"vae": AutoencoderConfig.from_json(config)})
    if "UNet" not in str(class_name):
        raise UserError(
            f"{path}: is a {class_name or config.get('model_type')}, not a U-Net, autoencoder, "
            "motion adapter or pipeline"
        )
    return ForeignCheckpoint(
        path,
        f"U-Net, {class_name}",
        {"unet": open_component_tensors("unet", path)},
        {"unet": parse_unet_config(config)},
    )


def parse_pipeline_folder(path: Path) -> ForeignCheckpoint:
    """A pipeline folder of diffusers or ours."""
    index = read_json(path / "model_index.json")
    class_name = index.get("_class_name")
    if isinstance(class_name, list):  # [module, class] of a custom pipeline
        class_name = class_name[-1]
    source = ForeignCheckpoint(path, f"pipeline folder, {class_name}", folder=path)
    for component, cls in CONFIGS.items():
        config = read_json(path / component / "config.json")
        source.configs[component] = (
            parse_unet_config(config) if component == "unet" else cls.from_json(config)
        )
        source.components[component] = open_component_tensors(component, path / component)
    source.scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    sampling = path / "sampling.json"
    source.sampling = read_json(sampling) if sampling.is_file() else {}
    source.unused = {
        key: "not needed here"
        for key, value in index.items()
        if isinstance(value, list) and value[0] and key in ("safety_checker", "feature_extractor")
    }
    if "tune_a_video" in source.configs["unet"].temporal:
        source.family = f"Tune-A-Video, {source.family}"
    return source


def parse_unet_config(config: dict[str, Any]) -> UNetConfig:
    """The config of a U-Net.

    Tune-A-Video's class has the name of ModelScope's, UNet3DConditionModel; the type of its middle
    block tells them apart.
    """
    if (
        config.get("_class_name") == "UNet3DConditionModel"
        and config.get("mid_block_type") == "UNetMidBlock3DCrossAttn"
    ):
        config = config | {
            "_class_name": "UNet2DConditionModel",
            "temporal": ["tune_a_video"],
            "spatial_attention": "sparse_causal",
            "group_norm": "clip",
        }
    return UNetConfig.from_json(config)


def parse_motion_adapter(path: Path, config: dict[str, Any]) -> ForeignCheckpoint:
    """The motion modules of diffusers' MotionAdapter."""
    if config.get("conv_in_channels"):
        raise UserError(
            f"{path}: conv_in_channels={config['conv_in_channels']}: an adapter with its own input "
            "layer (PIA) is not supported"
        )
    motion = open_component_tensors("unet", path)
    motion_config = infer_config.infer_motion_config(tensor_shapes(motion)) | {
        "motion_num_attention_heads": config.get("motion_num_attention_heads", 8),
        "motion_group_norm": "clip",
    }
    family = "AnimateDiff motion adapter of diffusers"
    return ForeignCheckpoint(path, family, motion=motion, motion_config=motion_config)
