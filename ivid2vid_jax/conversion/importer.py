"""Writes a checkpoint in another layout as a pipeline folder, strictly and with a report."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import flax

from ivid2vid_jax.conversion.exporter import DTYPES
from ivid2vid_jax.conversion.foreign_checkpoint import (
    ForeignCheckpoint,
    Tensors,
    open_component_tensors,
)
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.models import UNetConfig
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.weights import components, safetensors_io
from ivid2vid_jax.weights.pipeline_folder import (
    CONFIGS,
    PipelineFolder,
    open_pipeline_folder,
    param_shapes,
    save_folder,
)

MAX_UNUSED_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What no file tells. None takes the value of the source or the base."""

    prediction_type: str | None = None  # epsilon or v_prediction
    group_norm: str | None = None  # statistics of the resnets' norms: frame or clip
    motion_group_norm: str | None = None  # statistics of the motion modules' norms
    dtype: str | None = None  # float32, float16 or bfloat16; None: as stored


def import_checkpoint(
    source: ForeignCheckpoint,
    base: Path | None,
    output: Path,
    options: ImportOptions = ImportOptions(),
) -> dict[str, Any]:
    """Writes `source` as a pipeline folder; returns the report, which is also saved as import.json.

    Args:
        source: the opened checkpoint.
        base: a pipeline folder that supplies what `source` lacks.
        output: the new folder.
        options: overrides.

    Raises:
        UserError: a base is needed and missing, weights do not fit, or `output` exists.
    """
    base_folder = open_pipeline_folder(base) if base else None
    tensors, configs = merge_with_base(source, base_folder)
    norms = {"group_norm": options.group_norm, "motion_group_norm": options.motion_group_norm}
    configs["unet"] = dataclasses.replace(
        configs["unet"], **{name: value for name, value in norms.items() if value}
    )
    unet, text = configs["unet"], configs["text_encoder"]
    if unet.cross_attention_dim != text.hidden_size:
        raise UserError(
            f"{source.path}: the U-Net expects text of width {unet.cross_attention_dim}, the text "
            f"encoder gives {text.hidden_size}; choose another base"
        )
    if unet.out_channels != configs["vae"].latent_channels:
        raise UserError(
            f"{source.path}: the U-Net gives latents of {unet.out_channels} channels, the "
            f"autoencoder takes {configs['vae'].latent_channels}; choose another base"
        )
    scheduler = scheduler_config(source, base_folder, options)
    params = {
        name: components.fit_tensors(
            name, source.path, param_shapes(name, configs[name]), tensors[name]
        )
        for name in CONFIGS
    }
    tokenizer_home = source.tokenizer
    if tokenizer_home is None:
        assert base_folder is not None, "merge_with_base demands a base without a tokenizer"
        tokenizer_home = base_folder.path
    folder = PipelineFolder(
        tokenizer_home,
        **configs,
        scheduler=scheduler,
        sampling=source.sampling or (base_folder.sampling if base_folder else {}),
    )
    report = make_report(source, base, params, configs)
    dtype = safetensors_io.DTYPES[DTYPES[options.dtype]] if options.dtype else None
    save_folder(
        output, folder, params, dtype, finish=lambda path: write_json(path / "import.json", report)
    )
    return report


def merge_with_base(
    source: ForeignCheckpoint, base: PipelineFolder | None
) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """(tensors, configs) per component of source and base; UserError names what neither has."""
    missing = [name for name in source.missing if name != "scheduler"]
    if missing and base is None:
        raise UserError(
            f"{source.path}: {source.family}; it has no {', '.join(missing)}: give --base, a "
            "pipeline folder that has them"
        )
    tensors, configs = dict(source.components), dict(source.configs)
    if base is not None:
        for name in CONFIGS:
            if name not in tensors:
                tensors[name] = open_component_tensors(name, base.component_dir(name))
                configs[name] = base.models[name]
    if source.motion:
        spatial = {
            key: tensor for key, tensor in tensors["unet"].items() if ".motion_modules." not in key
        }
        tensors["unet"] = spatial | source.motion
        configs["unet"] = add_motion_config(source, configs["unet"])
    return tensors, configs


def add_motion_config(source: ForeignCheckpoint, unet: UNetConfig) -> UNetConfig:
    """The base's U-Net config with the source's motion modules; UserError if they do not fit."""
    try:
        return dataclasses.replace(unet, **source.motion_config)
    except ValueError as error:
        raise UserError(
            f"{source.path}: its motion modules do not fit the base: {error}"
        ) from error


def scheduler_config(
    source: ForeignCheckpoint, base: PipelineFolder | None, options: ImportOptions
) -> dict[str, Any]:
    """The scheduler's config; UserError if nothing tells the prediction type."""
    config = source.scheduler or (base.scheduler if base else None)
    if config is None:
        raise UserError(
            f"{source.path}: {source.family}; nothing says whether it predicts epsilon or v: give "
            "--base with a scheduler"
        )
    if options.prediction_type:
        config = config | {"prediction_type": options.prediction_type}
    try:
        NoiseSchedule.from_json(config)
    except ValueError as error:
        raise UserError(f"{source.path}: {error}") from error
    return config


def make_report(
    source: ForeignCheckpoint,
    base: Path | None,
    params: dict[str, Any],
    configs: dict[str, Any],
) -> dict[str, Any]:
    """The content of import.json: the origin of every tensor, and what was not used."""
    origins = {}
    for name, tree in params.items():
        leaves = flax.traverse_util.flatten_dict(tree).values()
        origins[name] = dict(Counter(str(leaf.tensor.file) for leaf in leaves))
    unet_fields = (
        "in_channels",
        "temporal",
        "group_norm",
        "motion_group_norm",
        "spatial_attention",
    )
    return {
        "source": str(source.path),
        "family": source.family,
        "base": str(base) if base else None,
        "tensors": origins,
        "left": source.unused,
        "unet": {name: getattr(configs["unet"], name) for name in unet_fields},
        "notes": source.notes,
    }


def format_report(report: dict[str, Any]) -> list[str]:
    """The lines of the report that `convert import` prints."""
    output = [f"{report['source']}: {report['family']}"]
    for name, origins in report["tensors"].items():
        output += [f"  {name}: {count} tensors from {file}" for file, count in origins.items()]
    unet_fields = (f"{name} {value}" for name, value in report["unet"].items())
    output.append("  the U-Net: " + ", ".join(unet_fields))
    unused = list(report["left"].items())
    output += [f"  not used: {name} ({reason})" for name, reason in unused[:MAX_UNUSED_SHOWN]]
    if len(unused) > MAX_UNUSED_SHOWN:
        output.append(f"  not used: {len(unused) - MAX_UNUSED_SHOWN} more, all in import.json")
    return output + [f"  note: {note}" for note in report["notes"]]
