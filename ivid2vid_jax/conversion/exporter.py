"""Exports pipeline folders to PyTorch.

The U-Net is held by a stock class of diffusers if one computes the same, else by `InflatedUNet3D`,
a PyTorch module that is copied into the folder.
"""

import dataclasses
import logging
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from ivid2vid_jax.conversion import model_card
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.inference.settings import EditSettings
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.utils.names import SCHEDULER_CLASSES
from ivid2vid_jax.weights import components, safetensors_io
from ivid2vid_jax.weights.pipeline_folder import (
    PipelineFolder,
    model_index,
    open_pipeline_folder,
    save_folder,
    stored_params,
)

log = logging.getLogger(__name__)

CUSTOM_UNET_CLASS = "InflatedUNet3D"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

# Keys of config.json: of all stock classes, and of one class each.
SHARED_KEYS = (
    "sample_size",
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
)
MOTION_KEYS = (
    "motion_num_attention_heads",
    "motion_max_seq_length",
    "use_motion_mid_block",
    "use_linear_projection",
    "transformer_layers_per_block",
)
UNET_2D_KEYS = (
    "attention_head_dim",
    "use_linear_projection",
    "upcast_attention",
    "transformer_layers_per_block",
    "flip_sin_to_cos",
    "freq_shift",
    "down_block_types",
    "up_block_types",
)
# Settings that become the exported pipeline's defaults.
DEFAULT_SETTINGS = ("steps", "text_scale", "video_scale", "size", "frames", "shared_noise")
# Files of the exported pipeline's code.
PIPELINE_CODE = ("pipeline.py", "clips.py", "old_names.py")
# Entries of model_index.json that the exported pipeline does not take.
STOCK_ONLY = ("feature_extractor", "image_encoder", "safety_checker", "requires_safety_checker")

UPCAST_WARNING = (
    "upcast_attention is set, which this class cannot say: in float16 its attention may overflow; "
    "use float32 or bfloat16"
)
FLOAT16_NOTE = (
    "float16 holds nothing beyond 65504 and rounds to 3 digits: compare an edit with float32's "
    "before you rely on it"
)


@dataclasses.dataclass(frozen=True)
class ExportTarget:
    """The PyTorch class of a U-Net."""

    class_name: str
    config: dict  # content of its config.json
    warnings: tuple[str, ...] = ()  # what the config cannot express

    @property
    def stock(self) -> bool:
        """Whether the class is one of diffusers'."""
        return self.class_name != CUSTOM_UNET_CLASS


def export_target(unet: UNetConfig) -> ExportTarget:
    """The stock class of diffusers that computes what the net computes, or else our own module."""
    frame_wise = unet.group_norm == "frame" and unet.spatial_attention == "frame"
    if frame_wise and unet.temporal == ():
        return ExportTarget(
            "UNet2DConditionModel",
            {"_class_name": "UNet2DConditionModel"} | fields(unet, SHARED_KEYS + UNET_2D_KEYS),
        )
    default_timesteps = unet.flip_sin_to_cos and unet.freq_shift == 0
    if frame_wise and default_timesteps:
        if unet.temporal == ("motion",) and unet.motion_group_norm == "clip":
            return motion_target(unet)
        head_dims = {unet.head_dim(level) for level in range(len(unet.block_out_channels))}
        if (
            unet.temporal == ("conv", "attention")
            and unet.use_linear_projection
            and unet.transformer_layers_per_block == 1
            and len(head_dims) == 1
        ):
            return unet3d_target(unet, head_dims.pop())
    return ExportTarget(CUSTOM_UNET_CLASS, unet.to_json() | {"_class_name": CUSTOM_UNET_CLASS})


def motion_target(unet: UNetConfig) -> ExportTarget:
    """The target for diffusers' UNetMotionModel."""
    config = (
        {"_class_name": "UNetMotionModel"}
        | fields(unet, SHARED_KEYS + MOTION_KEYS)
        | block_types(unet, "Motion")
        | {"num_attention_heads": unet.attention_head_dim}
    )
    warnings = (UPCAST_WARNING,) if unet.upcast_attention else ()
    return ExportTarget("UNetMotionModel", config, warnings)


def unet3d_target(unet: UNetConfig, head_dim: int) -> ExportTarget:
    """The target for diffusers' UNet3DConditionModel; head_dim: width of its attention heads."""
    config = (
        {"_class_name": "UNet3DConditionModel"}
        | fields(unet, SHARED_KEYS)
        | block_types(unet, "3D")
        | {"attention_head_dim": head_dim}
    )
    dropout_warning = (
        "trained on in PyTorch, this class drops 0.1 in its temporal convolutions; here it was "
        f"{unet.temporal_dropout}"
    )
    warnings = (UPCAST_WARNING,) if unet.upcast_attention else ()
    return ExportTarget("UNet3DConditionModel", config, (*warnings, dropout_warning))


def fields(unet: UNetConfig, names: tuple[str, ...]) -> dict[str, Any]:
    """Fields of a config by name."""
    return {name: getattr(unet, name) for name in names}


def block_types(unet: UNetConfig, suffix: str) -> dict[str, list[str]]:
    """The block types of a config with another suffix than "2D"."""
    return {
        name: [block.replace("2D", suffix) for block in getattr(unet, name)]
        for name in ("down_block_types", "up_block_types")
    }


def export_folder(
    source: Path,
    output: Path,
    dtype: str = "float32",
    facts: model_card.ModelCardFacts | None = None,
    max_shard_bytes: int = components.MAX_SHARD_BYTES,
) -> tuple[ExportTarget, list[Path]]:
    """Writes a pipeline folder as one that PyTorch loads, one tensor at a time.

    Args:
        source: the pipeline folder.
        output: the new folder.
        dtype: float32, float16 or bfloat16.
        facts: content of the model card; None reads them from the training run, if there is one.
        max_shard_bytes: above this size a component's weights are split into shards.

    Returns:
        The class of the U-Net, and the files.

    Raises:
        UserError: `dtype` is unknown, `source` is incomplete, or `output` exists.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; choose {', '.join(DTYPES)}")
    folder = open_pipeline_folder(source)
    target = export_target(folder.unet)
    for warning in target.warnings:
        log.warning("%s", warning)
    notes = [*target.warnings, *([FLOAT16_NOTE] if dtype == "float16" else [])]
    facts = facts or model_card.collect_facts(source)
    card = model_card.render_card(folder, target, dtype, notes, facts)
    save_folder(
        output,
        folder,
        stored_params(folder),
        safetensors_io.DTYPES[DTYPES[dtype]],
        max_shard_bytes=max_shard_bytes,
        finish=folder_finisher(folder, target, card),
    )
    return target, sorted(path for path in output.rglob("*") if path.is_file())


def folder_finisher(
    folder: PipelineFolder, target: ExportTarget, card: str
) -> Callable[[Path], None]:
    """The function that turns a written pipeline folder into a PyTorch folder.

    It replaces the configs of U-Net and scheduler and model_index.json, and adds the code and the
    model card.
    """

    def finish(path: Path) -> None:
        write_json(path / "unet" / "config.json", target.config)
        index = model_index(folder)
        if target.class_name != "UNet2DConditionModel":
            settings = EditSettings().resolve(folder)
            scheduler = scheduler_config(folder, settings.sampler)
            write_json(path / "scheduler" / "scheduler_config.json", scheduler)
            index["scheduler"] = ["diffusers", scheduler["_class_name"]]
            index["_class_name"] = ["pipeline", "InstructVid2VidPipeline"]
            defaults = {name: getattr(settings, name) for name in DEFAULT_SETTINGS}
            index |= defaults
            # for this package: a stock class does not record the frames that it was trained on
            write_json(path / "sampling.json", folder.sampling | defaults)
            for name in STOCK_ONLY:
                del index[name]
            for name in PIPELINE_CODE:
                copy_code(name, path)
        module = "diffusers" if target.stock else "inflated_unet"
        index["unet"] = [module, target.class_name]
        if not target.stock:
            copy_code("inflated_unet.py", path / "unet")
        write_json(path / "model_index.json", index)
        (path / "README.md").write_text(card)

    return finish


def scheduler_config(folder: PipelineFolder, sampler: str) -> dict[str, Any]:
    """The config of the diffusers scheduler that samples as our sampler does with this folder."""
    classes = {name: class_name for class_name, name in SCHEDULER_CLASSES.items()}
    # clip_sample: on by default in diffusers, also in schedulers that replace this one later
    return folder.scheduler | {"_class_name": classes[sampler], "clip_sample": False}


def copy_code(name: str, folder: Path) -> None:
    """Copies a file of `conversion/pytorch/` into a folder."""
    with resources.as_file(resources.files("ivid2vid_jax.conversion.pytorch") / name) as file:
        shutil.copyfile(file, folder / name)
