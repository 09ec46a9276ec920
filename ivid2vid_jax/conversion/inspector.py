"""Describes a checkpoint in a few lines."""

import numpy as np

from ivid2vid_jax.conversion import infer_config
from ivid2vid_jax.conversion.foreign_checkpoint import ForeignCheckpoint


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
