"""Describes a checkpoint or a training run in a few lines. Only headers and configs are read."""

import collections
from pathlib import Path

import numpy as np

from ivid2vid_jax import assets
from ivid2vid_jax.conversion import foreign_formats, infer_config
from ivid2vid_jax.conversion.foreign_checkpoint import ForeignCheckpoint
from ivid2vid_jax.errors import UserError
from ivid2vid_jax.utils.json_files import read_json
from ivid2vid_jax.weights import runs
from ivid2vid_jax.weights.pipeline_folder import open_pipeline_folder


def describe(source: str) -> list[str]:
    """The lines that `convert inspect` prints of a file, a folder or an embedded model.

    Of a training run they describe RUN/pipeline, or its newest checkpoint while there is none.

    Raises UserError if it is none of these, or is damaged.
    """
    path = Path(source).expanduser()
    if not path.exists() and source in assets.MODELS:
        path = assets.folder() / source
    if not runs.is_run(path):
        return describe_checkpoint(foreign_formats.open_checkpoint(path))
    pipeline = path / "pipeline"
    if not pipeline.is_dir():
        return describe_run(path)
    task = read_json(path / "config.json").get("task")
    step = read_json(pipeline / "training.json")["step"]
    head = f"{path}: training run (task {task}); its weights of step {step} are in {pipeline}"
    if task == "clip":
        return [head, f"  to use it: a CLIP model for filters and metrics: --clip-model {pipeline}"]
    # --model takes the run's own name, which is shorter
    description = describe_checkpoint(foreign_formats.open_checkpoint(pipeline))
    return [head, *(line.replace(f"--model {pipeline}", f"--model {path}") for line in description)]


def describe_run(run: Path) -> list[str]:
    """Describes a run without pipeline folder by its config and its newest checkpoint."""
    step = runs.last_step(run)
    if step is None:
        raise runs.missing_pipeline(run)
    newest = run / "checkpoints" / str(step)
    record = read_json(newest / "meta" / "metadata")
    config = record["meta"]["config"]
    sizes: dict[str, int] = collections.Counter()
    for name, (_, shape, _) in record["leaves"].items():
        kind, _, parameter = name.partition("/")
        if kind == "params":
            sizes[parameter.partition("/")[0]] += int(np.prod(shape, dtype=np.int64))
    start = f"the weights of {config['model']}" if config["model"] else "scratch"
    return [
        f"{run}: training run (task {config['task']}) without a pipeline folder; its newest "
        f"checkpoint is {newest}",
        f"  step {newest.name} of {config['steps']}, trained from {start}",
        *(f"  {name}: {count:,} trained parameters" for name, count in sizes.items()),
        f"  to use it: {runs.export_command(run)}",
    ]


def describe_checkpoint(source: ForeignCheckpoint) -> list[str]:
    """The lines that `convert inspect` prints: family, sizes, uses, what is missing."""
    output = [f"{source.path}: {source.family}"]
    parts = dict(source.components)
    if source.motion:
        parts["motion modules"] = source.motion
    for name, tensors in parts.items():
        total = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors.values())
        dtypes = ", ".join(sorted({tensor.dtype for tensor in tensors.values()}))
        output.append(f"  {name}: {len(tensors)} tensors, {total / 1e6:.1f} M parameters, {dtypes}")
    unet = source.configs.get("unet")
    if unet:
        output += [
            f"  U-Net: {unet.in_channels} input channels, widths {unet.block_out_channels}, text "
            f"of width {unet.cross_attention_dim}",
            f"  temporal layers: {', '.join(unet.temporal) or 'none'}; norms by "
            f"{unet.group_norm}, attention {unet.spatial_attention}",
        ]
    if source.motion:
        fields = ", ".join(
            f"{name} {value}" for name, value in source.motion_config.items() if name != "temporal"
        )
        levels = infer_config.count_children(source.motion, "down_blocks.")
        output += [f"  temporal layers: motion; {fields}", f"  modules in {levels} levels"]
    if source.scheduler:
        prediction_type = source.scheduler.get("prediction_type", "epsilon")
    else:
        prediction_type = "not recorded; taken from the base's scheduler"
    return [
        *output,
        f"  predicts: {prediction_type}",
        f"  not used: {len(source.unused)} tensors or parts",
        *possible_uses(source),
    ]


def possible_uses(source: ForeignCheckpoint) -> list[str]:
    """The commands that make use of a checkpoint."""
    if is_model_folder(source):
        editor = source.configs["unet"].in_channels == 8
        use = "to edit clips, or to train on from it" if editor else "to train an editor from it"
        return [f"  to use it: --model {source.path} takes it as it is, {use}"]
    base = f" --base FOLDER (for {', '.join(source.missing)})" if source.missing else ""
    output = [f"  to use it: python -m ivid2vid_jax.convert import {source.path} OUT{base}"]
    if not source.motion and "unet" not in source.components:
        return [*output, "  then: use OUT as --model"]
    channels = source.configs["unet"].in_channels if "unet" in source.configs else None
    if channels == 8:
        return [*output, "  then: edit clips with --model OUT, or train on from it"]
    temporal = " --net.temporal motion" if source.motion else ""
    return [
        *output,
        f"  then: train an editor from it, with --model OUT{temporal}; it cannot edit yet",
    ]


def is_model_folder(source: ForeignCheckpoint) -> bool:
    """Whether `--model` takes a folder without conversion."""
    if source.folder is None:
        return False
    try:
        folder = open_pipeline_folder(source.folder)
    except UserError:
        return False
    return folder.unet == source.configs["unet"] and all(
        any(folder.component_dir(name).glob("*.safetensors")) for name in folder.models
    )
