"""Our folders as PyTorch folders: stock classes where they compute the same, else one module of ours that the folder carries."""

import dataclasses
import logging
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from ivid2vid_jax.conversion import model_card
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.weights import safetensors_io
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
SHARED = (
    "sample_size",
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
)
MOTION = (
    "motion_num_attention_heads",
    "motion_max_seq_length",
    "use_motion_mid_block",
    "use_linear_projection",
    "transformer_layers_per_block",
)
IN_2D = (
    "attention_head_dim",
    "use_linear_projection",
    "upcast_attention",
    "transformer_layers_per_block",
    "flip_sin_to_cos",
    "freq_shift",
    "down_block_types",
    "up_block_types",
)


@dataclasses.dataclass(frozen=True)
class ExportTarget:
    """How a U-Net is held in PyTorch. config: the content of its config.json; warnings: what that cannot say."""

    class_name: str
    config: dict
    warnings: tuple[str, ...] = ()

    @property
    def stock(self) -> bool:
        return self.class_name != CUSTOM_UNET_CLASS


def export_target(unet: UNetConfig) -> ExportTarget:
    """The stock class of diffusers that computes what the net computes, or else our own module."""
    plain = unet.group_norm == "frame" and unet.spatial_attention == "frame"
    timesteps = unet.flip_sin_to_cos and unet.freq_shift == 0
    shared = {name: getattr(unet, name) for name in SHARED}
    upcast = (
        "upcast_attention is set, which this class cannot say: in float16 its attention may overflow; use float32 or bfloat16",
    )
    warnings = upcast if unet.upcast_attention else ()
    if plain and unet.temporal == ():
        return ExportTarget(
            "UNet2DConditionModel",
            named("UNet2DConditionModel", shared | {name: getattr(unet, name) for name in IN_2D}),
        )
    if plain and timesteps and unet.temporal == ("motion",) and unet.motion_group_norm == "clip":
        config = (
            shared
            | {name: getattr(unet, name) for name in MOTION}
            | block_types(unet, "Motion")
            | {"num_attention_heads": unet.attention_head_dim}
        )
        return ExportTarget("UNetMotionModel", named("UNetMotionModel", config), warnings)
    widths = {unet.head_dim(level) for level in range(len(unet.block_out_channels))}
    one = unet.transformer_layers_per_block == 1 and len(widths) == 1
    if (
        plain
        and timesteps
        and unet.temporal == ("conv", "attention")
        and unet.use_linear_projection
        and one
    ):
        warnings += (
            f"trained on in PyTorch, this class drops 0.1 in its temporal convolutions; here it was {unet.temporal_dropout}",
        )
        return ExportTarget(
            "UNet3DConditionModel",
            named(
                "UNet3DConditionModel",
                shared | block_types(unet, "3D") | {"attention_head_dim": widths.pop()},
            ),
            warnings,
        )
    return ExportTarget(CUSTOM_UNET_CLASS, unet.to_json() | {"_class_name": CUSTOM_UNET_CLASS})


def named(class_name: str, config: dict) -> dict:
    return {"_class_name": class_name, **config}


def block_types(unet: UNetConfig, suffix: str) -> dict:
    return {
        name: [kind.replace("2D", suffix) for kind in getattr(unet, name)]
        for name in ("down_block_types", "up_block_types")
    }


def export_folder(
    source: Path,
    output: Path,
    dtype: str = "float32",
    facts: model_card.ModelCardFacts | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> tuple[ExportTarget, list[Path]]:
    """Writes the pipeline folder `source` as one that PyTorch loads, leaf by leaf; returns how the U-Net is held, and the files.

    dtype: float32, float16 or bfloat16. Raises UserError for an unknown dtype, a folder that is not whole, or an `output` that exists.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; choose {', '.join(DTYPES)}")
    folder = open_pipeline_folder(source)
    held = export_target(folder.unet)
    warnings = list(held.warnings)
    if dtype == "float16":
        warnings.append(
            "float16 holds nothing beyond 65504 and rounds to 3 digits: compare an edit with float32's before you rely on it"
        )
    for warning in warnings:
        log.warning("%s", warning)
    finish = folder_finisher(
        folder,
        held,
        model_card.render_card(
            folder, held, dtype, warnings, facts or model_card.collect_facts(source)
        ),
    )
    save_folder(
        output,
        folder,
        stored_params(folder),
        safetensors_io.DTYPES[DTYPES[dtype]],
        max_shard_bytes=max_shard_bytes,
        finish=finish,
    )
    return held, sorted(path for path in output.rglob("*") if path.is_file())


def folder_finisher(
    folder: PipelineFolder, held: ExportTarget, readme: str
) -> Callable[[Path], None]:
    """What makes a PyTorch folder of the one that was written aside: the U-Net's config, the code, the index, the card."""

    def finish(path: Path) -> None:
        write_json(path / "unet" / "config.json", held.config)
        index = model_index(folder)
        if held.class_name != "UNet2DConditionModel":
            index["_class_name"] = ["pipeline", "InstructVid2VidPipeline"]
            index |= sampling_defaults(folder)
            for name in (
                "feature_extractor",
                "image_encoder",
                "safety_checker",
                "requires_safety_checker",
            ):
                del index[name]
            copy_code("pipeline.py", path)
        index["unet"] = (
            ["diffusers", held.class_name] if held.stock else ["inflated_unet", held.class_name]
        )
        if not held.stock:
            copy_code("inflated_unet.py", path / "unet")
        write_json(path / "model_index.json", index)
        (path / "README.md").write_text(readme)

    return finish


def sampling_defaults(folder: PipelineFolder) -> dict:
    """What the pipeline's call takes where it says nothing: as our own edits would, from this folder."""
    from ivid2vid_jax.inference.pipeline import EditSettings

    settings = EditSettings().resolve(folder)
    return {
        name: getattr(settings, name)
        for name in (
            "steps",
            "text_scale",
            "video_scale",
            "sampler",
            "size",
            "frames",
            "shared_noise",
        )
    }


def copy_code(name: str, folder: Path) -> None:
    with resources.as_file(resources.files("ivid2vid_jax.conversion.pytorch") / name) as file:
        shutil.copyfile(file, folder / name)
