"""Judges from pixels whether an edited clip shows what was asked, in every frame, and whether the rest was kept.

The scene and the edit are known, so each frame is measured against drawings. With x the frame, w the drawing that was asked for and a
that of an alternative (the source, or another value of what the edit sets), <x - w, a - w> / |a - w|^2 says how far x went from what
was asked, 0, to the alternative, 1: a blend of both lies between, and noise, blur or a colour cast hardly move it. What no alternative
foresees is found by the mean colours of small blocks, which must lie within what w shows around there, half a block's shift allowed.
"""

import dataclasses

import numpy as np

from ivid2vid_jax.data.shapes.renderer import (
    edit_mask,
    largest_channel,
    render,
    stylize,
)
from ivid2vid_jax.data.shapes.scene import (
    ALL_STYLES,
    TEXTURES,
    VALUES,
    Scene,
    Spec,
    apply_edit,
)
from ivid2vid_jax.utils.errors import UserError

MIN_CELLS = 24  # a side: fine enough for the smallest object, coarse enough to bear noise and blur


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much of each number of the verdict may pass."""

    toward: float = 0.42  # of the way to an alternative
    inside: float = 60.0  # grey levels
    outside: float = 60.0  # grey levels
    cast: float = 25.0  # grey levels


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """success: what was asked is shown in every frame. preserved: the rest is as it was. passed: both.

    toward: [T] float32, how far each frame went to any alternative, 0 none of the way, 1 all of it, more beyond. nearest: what the
    worst of them resembles most, "" for the true edit. inside, outside: [T] float32, grey levels by which the worst block is off, among
    those that the edit may change and among the rest; cast: the mean of the rest's. For a style, which changes everything, all blocks
    are the rest, measured against the restyled source.
    """

    passed: bool
    success: bool
    preserved: bool
    toward: np.ndarray
    nearest: str
    inside: np.ndarray
    outside: np.ndarray
    cast: np.ndarray


def check(source: np.ndarray, edited: np.ndarray, spec: Spec, limits: Limits = Limits()) -> Verdict:
    """Judges `edited` as the answer to the spec's instruction for `source`; both [T, H, W, 3] uint8.

    Raises UserError where a clip has not the spec's size and length.
    """
    expected = (spec.frames, spec.size, spec.size, 3)
    for name, clip in (("source", source), ("edited", edited)):
        if clip.shape != expected or clip.dtype != np.uint8:
            raise UserError(
                f"the {name} clip is {clip.dtype} {clip.shape}, but the spec says uint8 {expected}"
            )
    mask, drawn = edit_mask(spec), render(spec.edited, spec.size, spec.frames)
    wanted = target_clip(source, spec, mask, drawn)
    found_cells, wanted_cells = cells(edited), cells(wanted)
    toward, nearest = toward_alternatives(
        found_cells - wanted_cells, alternatives(source, wanted, spec, drawn)
    )
    inside, outside, cast = deviations(
        found_cells, wanted_cells, np.zeros(expected[:3], bool) if mask is None else mask
    )
    success = bool(toward.max() <= limits.toward and inside.max() <= limits.inside)
    preserved = bool(outside.max() <= limits.outside and cast.max() <= limits.cast)
    return Verdict(
        success and preserved, success, preserved, toward, nearest, inside, outside, cast
    )


def target_clip(
    source: np.ndarray, spec: Spec, mask: np.ndarray | None, drawn: np.ndarray
) -> np.ndarray:
    """The true edit of the source that was passed in: as drawn where the edit may change it, and else as it is."""
    return (
        stylize(source, spec.edit.kind)
        if mask is None
        else np.where(mask[..., None], drawn, source)
    )


def alternatives(source: np.ndarray, wanted: np.ndarray, spec: Spec, drawn: np.ndarray):
    """Yields (name, [T, H, W, 3] float32 difference of an alternative to the true edit, both drawn alike)."""
    wanted, drawn = wanted.astype(np.float32), drawn.astype(np.float32)
    if spec.edit.kind != "identity":
        yield "source", source - wanted
    if spec.edit.kind in (*ALL_STYLES, "identity"):
        yield from (
            (style, stylize(source, style) - wanted)
            for style in ALL_STYLES
            if style != spec.edit.kind
        )
    scenes = less_one(spec.edited) if spec.edit.kind in ALL_STYLES else rival_scenes(spec)
    yield from ((name, render(scene, spec.size, spec.frames) - drawn) for name, scene in scenes)


def less_one(scene: Scene):
    """Yields (name, scene) with each object left out in turn."""
    for i, thing in enumerate(scene.objects):
        yield (
            f"no {thing.shape}",
            dataclasses.replace(scene, objects=scene.objects[:i] + scene.objects[i + 1 :]),
        )


def rival_scenes(spec: Spec):
    """Yields (name, scene) of every other value that the edit could have set, but the source's; for "identity", of other textures."""
    edit, scene = spec.edit, spec.scene
    if edit.kind in VALUES:
        present = (
            scene.background
            if edit.kind == "background"
            else getattr(scene.objects[edit.target], edit.kind)
        )
        rivals = [
            (value, dataclasses.replace(edit, value=value))
            for value in VALUES[edit.kind]
            if value not in (edit.value, present)
        ]
    elif edit.kind == "remove":
        rivals = [
            ("the other", dataclasses.replace(edit, target=i))
            for i in range(len(scene.objects))
            if i != edit.target
        ]
    elif edit.kind == "identity":
        textures = [
            (i, value)
            for i, thing in enumerate(scene.objects)
            for value in TEXTURES
            if value != thing.texture
        ]
        rivals = [
            (value, dataclasses.replace(edit, kind="texture", target=i, value=value))
            for i, value in textures
        ]
    else:
        rivals = [
            (
                value,
                dataclasses.replace(
                    edit, added=dataclasses.replace(edit.added, **{attribute: value})
                ),
            )
            for attribute in ("colour", "shape")
            for value in VALUES[attribute]
            if value != getattr(edit.added, attribute)
        ]
    return [(name, apply_edit(scene, rival)) for name, rival in rivals]


def toward_alternatives(error: np.ndarray, directions) -> tuple[np.ndarray, str]:
    """The largest share of the way to any alternative, [T] float32, and what the worst frame resembles most, "" for the true edit.

    error: [T, n, n, 3], the cells' difference to the true edit's.
    """
    toward, names, nearer = (
        np.zeros(len(error), np.float32),
        [""],
        [np.zeros(len(error), np.float32)],
    )
    for name, direction in directions:
        way = flat(cells(direction))
        length = np.maximum(np.einsum("tn,tn->t", way, way), 1.0)
        share = np.einsum("tn,tn->t", flat(error), way) / length
        toward = np.maximum(toward, share)
        names.append(name)
        nearer.append(
            (2 * share - 1) * length
        )  # squared distance to the true edit less that to this alternative
    return toward, names[int(np.argmax(np.stack(nearer)[:, toward.argmax()]))]


def flat(clip: np.ndarray) -> np.ndarray:
    return clip.reshape(len(clip), -1)


def deviations(
    found: np.ndarray, wanted: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[T] float32 each, excess in grey levels: the worst block's where blocks touch the mask, the worst and the mean where they do not.

    found, wanted: [T, n, n, 3] cells; mask: [T, H, W] bool. A block is the mean of 2 x 2 cells.
    """
    excess = block_excess(pairs(found, step=1), pairs(wanted, step=1))
    touched = pairs(cells(mask[..., None]), step=1)[..., 0] > 0
    inside, outside = np.where(touched, excess, 0), np.where(touched, 0, excess)
    return (
        inside.max((1, 2)),
        outside.max((1, 2)),
        outside.sum((1, 2)) / np.maximum((~touched).sum((1, 2)), 1),
    )


def cells(clip: np.ndarray) -> np.ndarray:
    """[T, H, W, C] -> [T, n, n, C] float32: the means of square cells, 2 pixels wide at size 64; H a multiple of 8."""
    means = np.asarray(clip, np.float32)
    for _ in range(3):
        if means.shape[1] >= 2 * MIN_CELLS:
            means = pairs(means, step=2)
    return means


def pairs(values: np.ndarray, step: int) -> np.ndarray:
    """The means of 2 x 2 neighbours along axes 1 and 2: of all of them for step 1, of every other one for step 2."""
    rows = values[:, :-1:step] + values[:, 1::step]
    return (rows[:, :, :-1:step] + rows[:, :, 1::step]) / 4


def block_excess(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[T, n, n]: how far the worst channel is out of the range that the wanted block and, half-way, its neighbours span."""
    low, high = wanted, wanted
    for axis in (1, 2):
        low, high = neighbourhood(low, axis, np.minimum), neighbourhood(high, axis, np.maximum)
    excess = np.maximum(found - (wanted + high) / 2, (wanted + low) / 2 - found)
    return largest_channel(excess).clip(0)


def neighbourhood(values: np.ndarray, axis: int, extreme) -> np.ndarray:
    """The extreme of each value and its two neighbours along the axis."""
    padded = np.pad(
        values, [(1, 1) if each == axis else (0, 0) for each in range(values.ndim)], mode="edge"
    )
    count = values.shape[axis]
    first, second, third = (padded.take(range(shift, shift + count), axis) for shift in range(3))
    return extreme(extreme(first, second), third)
