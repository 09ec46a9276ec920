"""Someone else's file or folder as a pipeline folder of ours, strictly and with a report."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import flax

from ivid2vid_jax.conversion import foreign_formats
from ivid2vid_jax.conversion.exporter import DTYPES
from ivid2vid_jax.diffusion.schedule import NoiseSchedule
from ivid2vid_jax.utils.errors import UserError
from ivid2vid_jax.utils.json_files import write_json
from ivid2vid_jax.weights import components, safetensors_io
from ivid2vid_jax.weights.pipeline_folder import (
    CONFIGS,
    PipelineFolder,
    open_pipeline_folder,
    param_shapes,
    save_folder,
)

SHOWN = 8  # names of what was left that are printed


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What no file tells. None: as the source or the base has it."""

    prediction_type: str | None = None  # epsilon or v_prediction
    group_norm: str | None = None  # of the resnets: frame or clip
    motion_group_norm: str | None = None  # of motion modules
    dtype: str | None = None  # float32, float16 or bfloat16; None: as stored


def import_checkpoint(
    source: foreign_formats.ForeignCheckpoint,
    base: Path | None,
    output: Path,
    options: ImportOptions = ImportOptions(),
) -> dict[str, Any]:
    """Writes `source`, with what it lacks from the folder `base`, as a pipeline folder; returns the report, which also lies there as import.json.

    Raises UserError where a base is needed and missing, where weights do not fit, or where `output` exists.
    """
    kept = open_pipeline_folder(base) if base else None
    parts, configs = merge_with_base(source, kept)
    if options.group_norm or options.motion_group_norm:
        norms = {
            name: value
            for name, value in vars(options).items()
            if name.endswith("group_norm") and value
        }
        configs["unet"] = dataclasses.replace(configs["unet"], **norms)
    unet, text = configs["unet"], configs["text_encoder"]
    if unet.cross_attention_dim != text.hidden_size:
        raise UserError(
            f"{source.path}: the U-Net wants text of width {unet.cross_attention_dim}, the text encoder gives {text.hidden_size}; choose another base"
        )
    scheduler = schedule(source, kept, options)
    params = {
        name: components.fit_tensors(
            name, source.path, param_shapes(name, configs[name]), parts[name]
        )
        for name in CONFIGS
    }
    home = source.tokenizer or kept.path
    folder = PipelineFolder(
        home,
        **configs,
        scheduler=scheduler,
        sampling=source.sampling or (kept.sampling if kept else {}),
    )
    told = report(source, base, params, configs)
    dtype = safetensors_io.DTYPES[DTYPES[options.dtype]] if options.dtype else None
    save_folder(
        output, folder, params, dtype, finish=lambda path: write_json(path / "import.json", told)
    )
    return told


def merge_with_base(
    source: foreign_formats.ForeignCheckpoint, base: PipelineFolder | None
) -> tuple[dict[str, foreign_formats.Tensors], dict[str, Any]]:
    """The parts and configs of source and base; UserError that names what neither has."""
    lacks = [name for name in source.missing if name != "scheduler"]
    if lacks and base is None:
        raise UserError(
            f"{source.path}: {source.family}; it has no {', '.join(lacks)}: give --base, a pipeline folder that has them"
        )
    parts, configs = dict(source.parts), dict(source.configs)
    for name in CONFIGS:
        if name not in parts:
            parts[name], configs[name] = (
                foreign_formats.component_weights(name, base.component_dir(name)),
                base.models[name],
            )
    if source.motion:
        spatial = {
            key: each for key, each in parts["unet"].items() if ".motion_modules." not in key
        }
        parts["unet"] = spatial | source.motion
        configs["unet"] = with_motion(source, configs["unet"])
    return parts, configs


def with_motion(source: foreign_formats.ForeignCheckpoint, unet):
    try:
        return dataclasses.replace(unet, **source.switches)
    except ValueError as error:
        raise UserError(
            f"{source.path}: its motion modules do not fit the base: {error}"
        ) from error


def schedule(
    source: foreign_formats.ForeignCheckpoint, base: PipelineFolder | None, options: ImportOptions
) -> dict:
    """The scheduler's config; UserError where nobody says what the net predicts."""
    found = source.scheduler or (base.scheduler if base else None)
    if found is None:
        raise UserError(
            f"{source.path}: {source.family}; nothing says whether it predicts epsilon or v: give --base with a scheduler"
        )
    found = found | (
        {"prediction_type": options.prediction_type} if options.prediction_type else {}
    )
    try:
        NoiseSchedule.from_json(found)
    except ValueError as error:
        raise UserError(f"{source.path}: {error}") from error
    return found


def report(
    source: foreign_formats.ForeignCheckpoint,
    base: Path | None,
    params: dict[str, Any],
    configs: dict[str, Any],
) -> dict[str, Any]:
    """What went where, and what was left."""
    went = {}
    for name, tree in params.items():
        leaves = flax.traverse_util.flatten_dict(tree).values()
        went[name] = dict(Counter(str(leaf.origin[0]) for leaf in leaves))
    unet = configs["unet"]
    switches = {
        name: getattr(unet, name)
        for name in (
            "in_channels",
            "temporal",
            "group_norm",
            "motion_group_norm",
            "spatial_attention",
        )
    }
    known = {
        "source": str(source.path),
        "family": source.family,
        "base": str(base) if base else None,
    }
    return known | {"tensors": went, "left": source.left, "unet": switches, "notes": source.notes}


def lines(told: dict[str, Any]) -> list[str]:
    """The report as it is printed."""
    out = [f"{told['source']}: {told['family']}"]
    for name, files_ in told["tensors"].items():
        out += [f"  {name}: {number} tensors from {file}" for file, number in files_.items()]
    out.append(
        "  the U-Net: " + ", ".join(f"{name} {value}" for name, value in told["unet"].items())
    )
    left = list(told["left"].items())
    out += [f"  left: {name} ({why})" for name, why in left[:SHOWN]]
    out += [f"  left: {len(left) - SHOWN} more, all in import.json"] * (len(left) > SHOWN)
    return out + [f"  note: {note}" for note in told["notes"]]
