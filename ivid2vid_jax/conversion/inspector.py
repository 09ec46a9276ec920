"""What a file or folder is, in a few lines."""

import numpy as np

from ivid2vid_jax.conversion import foreign_formats, infer_config


def describe_checkpoint(source: foreign_formats.ForeignCheckpoint) -> list[str]:
    """What it is, its sizes, what can be done with it, what is missing: the lines that `inspect` prints."""
    out = [f"{source.path}: {source.family}"]
    for name, part in {
        **source.parts,
        **({"motion modules": source.motion} if source.motion else {}),
    }.items():
        numbers = [int(np.prod(entry.shape, dtype=np.int64)) for _, entry, _ in part.values()]
        types = ", ".join(sorted({entry.dtype for _, entry, _ in part.values()}))
        out.append(f"  {name}: {len(part)} tensors, {sum(numbers) / 1e6:.1f} M parameters, {types}")
    unet = source.configs.get("unet")
    if unet:
        out.append(
            f"  U-Net: {unet.in_channels} input channels, widths {unet.block_out_channels}, text of width {unet.cross_attention_dim}"
        )
        out.append(
            f"  temporal layers: {', '.join(unet.temporal) or 'none'}; norms by {unet.group_norm}, attention {unet.spatial_attention}"
        )
    if source.motion:
        out.append(
            "  temporal layers: motion; "
            + ", ".join(
                f"{name} {value}" for name, value in source.switches.items() if name != "temporal"
            )
        )
        out.append(f"  modules in {infer_config.count(source.motion, 'down_blocks.')} levels")
    predicts = (
        source.scheduler.get("prediction_type", "epsilon")
        if source.scheduler
        else "not said here; the base's scheduler says it"
    )
    return [
        *out,
        f"  predicts: {predicts}",
        f"  left: {len(source.left)} tensors or parts that no net here uses",
        *possible_uses(source),
    ]


def possible_uses(source: foreign_formats.ForeignCheckpoint) -> list[str]:
    """What to do with it."""
    lacks = [name for name in source.missing if name != "scheduler" or not source.tokenizer]
    base = f" --base FOLDER (for {', '.join(lacks)})" if lacks else ""
    channels = source.configs["unet"].in_channels if "unet" in source.configs else None
    out = [f"  to use it: python -m ivid2vid_jax.convert import {source.path} OUT{base}"]
    if channels == 8:
        return [*out, "  then: edit clips with --model OUT, or train on from it"]
    return [
        *out,
        f"  then: train an editor from it, with --model OUT{' --net.temporal motion' if source.motion else ''}; it edits nothing yet",
    ]
