"""Judges from pixels whether an edited clip follows its instruction and keeps the rest.

Scene and edit are known, so each frame is compared with rendered clips. Let x be a frame, w the
true edit and a an alternative to it: the source, or another value of what the edit sets. Then
<x - w, a - w> / |a - w|^2 says how far x is from the true edit (0) towards the alternative (1). A
blend of both lies between; noise, blur or a colour cast hardly change it. All other errors are
found by the mean colours of small blocks, which must lie within the range of the true edit's
colours around the block, with a tolerance of half a block's shift.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ivid2vid_jax.data.shapes.disturbances import BRIGHTER, DARKER, disturbed_pixels
from ivid2vid_jax.data.shapes.renderer import (
    edit_mask,
    largest_channel,
    render,
    stylize,
)
from ivid2vid_jax.data.shapes.scene import (
    ALL_STYLES,
    BASE_KINDS,
    TEXTURES,
    VALUES,
    Edit,
    Scene,
    Spec,
    apply_edit,
)
from ivid2vid_jax.data.shapes.scene_sampler import choices
from ivid2vid_jax.errors import UserError

# Cells per side: fine enough for the smallest object, coarse enough to average out noise and blur.
MIN_CELLS = 24
# In disturbed clips a frame may hide or show only a sliver of an object. It is compared with an
# alternative that differs by at least four cells of 100 grey levels.
MIN_HIDDEN = 200.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest values of a verdict that pass."""

    toward: float = 0.42  # of the way to an alternative
    inside: float = 60.0  # grey levels
    outside: float = 60.0  # grey levels
    cast: float = 25.0  # grey levels


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """The judgement of an edited clip.

    A style changes all blocks. They count as `outside` and are compared with the restyled source.

    Attributes:
        passed: `success` and `preserved`.
        success: every frame shows the edit.
        preserved: the rest of the clip is unchanged.
        toward: [T] float32, how far each frame is towards any alternative: 0 is the true edit, 1
            the alternative; may exceed 1.
        nearest: what the worst frame resembles most; "" = the true edit.
        inside: [T] float32, error in grey levels of the worst block that the edit may change.
        outside: [T] float32, error in grey levels of the worst other block.
        cast: [T] float32, mean error in grey levels of the other blocks.
        valid: every frame passes, each compared with the right result that it is nearest to.
        consistent: all frames are nearest to the same right result.
        spec: the right result that the clip was compared with: of a free edit, the one that most
            frames are nearest to.
    """

    passed: bool
    success: bool
    preserved: bool
    toward: np.ndarray
    nearest: str
    inside: np.ndarray
    outside: np.ndarray
    cast: np.ndarray
    valid: bool
    consistent: bool
    spec: Spec


def check(source: np.ndarray, edited: np.ndarray, spec: Spec, limits: Limits = Limits()) -> Verdict:
    """Judges `edited` as the result of the spec's instruction for `source`.

    A free edit has several right results; it passes if all frames show the same one.

    Args:
        source: [T, H, W, 3] uint8.
        edited: [T, H, W, 3] uint8.
        spec: the scene and the edit.
        limits: what passes.

    Raises:
        UserError: a clip does not have the spec's size and length.
    """
    shape = (spec.frames, spec.size, spec.size, 3)
    for name, clip in (("source", source), ("edited", edited)):
        if clip.shape != shape or clip.dtype != np.uint8:
            raise UserError(
                f"the {name} clip is {clip.dtype} {clip.shape}, but the spec says uint8 {shape}"
            )
    results = choices(spec)
    if len(results) == 1:
        return compare(source, edited, results[0], limits)
    nearest = nearest_results(source, edited, results)
    verdicts = {i: compare(source, edited, results[i], limits) for i in set(nearest.tolist())}
    passes = [passing_frames(verdicts[i], limits)[frame] for frame, i in enumerate(nearest)]
    verdict = verdicts[int(np.bincount(nearest).argmax())]
    return dataclasses.replace(
        verdict,
        passed=verdict.passed and len(verdicts) == 1,
        valid=all(passes),
        consistent=len(verdicts) == 1,
    )


def nearest_results(source: np.ndarray, edited: np.ndarray, results: list[Spec]) -> np.ndarray:
    """[T] int: the right result that each frame is nearest to."""
    edited_cells = cells(edited)
    distances = [
        np.square(edited_cells - cells(true_edit(source, spec))).sum((1, 2, 3)) for spec in results
    ]
    return np.argmin(distances, axis=0)


def true_edit(source: np.ndarray, spec: Spec) -> np.ndarray:
    """The true edit of this source, [T, H, W, 3] uint8."""
    return target_clip(source, spec, edit_mask(spec), render(spec.edited, spec.size, spec.frames))


def compare(source: np.ndarray, edited: np.ndarray, spec: Spec, limits: Limits) -> Verdict:
    """Judges a clip, [T, H, W, 3] uint8, against one right result."""
    mask, rendered = edit_mask(spec), render(spec.edited, spec.size, spec.frames)
    target = target_clip(source, spec, mask, rendered)
    edited_cells, target_cells = cells(edited), cells(target)
    toward, nearest = toward_alternatives(
        edited_cells - target_cells,
        alternatives(source, target, spec, rendered),
        MIN_HIDDEN if spec.scene.disturbance else 0.0,
    )
    changeable = np.zeros(edited.shape[:3], bool) if mask is None else mask
    inside, outside, cast = deviations(edited_cells, target_cells, changeable)
    success = bool(toward.max() <= limits.toward and inside.max() <= limits.inside)
    preserved = bool(outside.max() <= limits.outside and cast.max() <= limits.cast)
    passed = success and preserved
    return Verdict(
        passed,
        success,
        preserved,
        toward,
        nearest,
        inside,
        outside,
        cast,
        valid=passed,
        consistent=True,
        spec=spec,
    )


def passing_frames(verdict: Verdict, limits: Limits) -> np.ndarray:
    """[T] bool: the frames that pass on their own."""
    measures = dataclasses.asdict(limits)
    return np.all([getattr(verdict, name) <= most for name, most in measures.items()], axis=0)


def target_clip(
    source: np.ndarray, spec: Spec, mask: np.ndarray | None, rendered: np.ndarray
) -> np.ndarray:
    """The true edit of this source: rendered pixels where the edit may change them."""
    if mask is None:
        return stylize(source, spec.edit.kind)
    return np.where(mask[..., None], rendered, source)


# ---- alternatives to the true edit ----


def alternatives(
    source: np.ndarray, target: np.ndarray, spec: Spec, rendered: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, [T, H, W, 3] float32 difference of an alternative to the true edit).

    Rendered alternatives are compared with the rendered edit, the others with the target clip.
    """
    target, rendered = target.astype(np.float32), rendered.astype(np.float32)
    kind = spec.edit.kind
    if kind != "identity":
        yield "source", source - target
    if kind in (*ALL_STYLES, "identity"):
        for style in ALL_STYLES:
            if style != kind:
                yield style, stylize(source, style) - target
    if kind == "remove-flicker":
        for name, gain in (("darker", DARKER[1]), ("brighter", BRIGHTER[0])):
            yield name, (gain - 1) * target
        return
    if spec.scene.disturbance and not spec.edited.disturbance:
        hidden = disturbed_pixels(spec.scene.disturbance, spec.size, spec.frames)[..., None]
        for name, scene in repair_rivals(spec.edited):
            yield name, hidden * (render(scene, spec.size, spec.frames) - rendered)
        return
    scenes = without_one(spec.edited) if kind in ALL_STYLES else rival_scenes(spec)
    for name, scene in scenes:
        yield name, render(scene, spec.size, spec.frames) - rendered


def repair_rivals(scene: Scene) -> Iterator[tuple[str, Scene]]:
    """Yields (name, scene): what a wrong repair may show in the place of hidden pixels."""
    yield from without_one(scene)
    for i, obj in enumerate(scene.objects):
        for attribute in ("colour", "shape"):
            for value in VALUES[attribute]:
                if value != getattr(obj, attribute):
                    edit = Edit(attribute, 0, i, value)
                    yield f"{value} {obj.shape}", apply_edit(scene, edit)


def without_one(scene: Scene) -> Iterator[tuple[str, Scene]]:
    """Yields (name, scene) with each object left out in turn."""
    for i, obj in enumerate(scene.objects):
        others = scene.objects[:i] + scene.objects[i + 1 :]
        yield f"no {obj.shape}", dataclasses.replace(scene, objects=others)


def rival_scenes(spec: Spec) -> Iterator[tuple[str, Scene]]:
    """Yields (name, scene) of the results of all rival edits."""
    for name, edit in rival_edits(spec.scene, spec.edit):
        yield name, apply_edit(spec.scene, edit)


def rival_edits(scene: Scene, edit: Edit) -> Iterator[tuple[str, Edit]]:
    """Yields (name, edit) of the other values that an edit could have set.

    The source's value is left out. Rivals of "identity" are edits of the texture.
    """
    kind = BASE_KINDS.get(edit.kind, edit.kind)
    if kind in VALUES:
        if kind == "background":
            present = scene.background
        else:
            present = getattr(scene.objects[edit.target], kind)
        for value in VALUES[kind]:
            if value not in (edit.value, present):
                yield value, dataclasses.replace(edit, value=value)
    elif edit.kind == "remove":
        for i in range(len(scene.objects)):
            if i != edit.target:
                yield "the other", dataclasses.replace(edit, target=i)
    elif edit.kind == "identity":
        for i, obj in enumerate(scene.objects):
            for value in TEXTURES:
                if value != obj.texture:
                    yield value, dataclasses.replace(edit, kind="texture", target=i, value=value)
    else:
        assert edit.added is not None
        for attribute in ("colour", "shape"):
            for value in VALUES[attribute]:
                if value != getattr(edit.added, attribute):
                    change: dict[str, Any] = {attribute: value}
                    added = dataclasses.replace(edit.added, **change)
                    yield value, dataclasses.replace(edit, added=added)


def toward_alternatives(
    error: np.ndarray, directions: Iterable[tuple[str, np.ndarray]], min_length: float
) -> tuple[np.ndarray, str]:
    """Projects the error on the direction of each alternative.

    Args:
        error: [T, n, n, 3], difference of the edited clip's cells to the true edit's.
        directions: (name, [T, H, W, 3] difference of an alternative to the true edit).
        min_length: frames where an alternative differs less (root of the sum of squares over the
            cells) are not compared with it.

    Returns:
        The largest share of the way to any alternative, [T] float32; what the worst frame resembles
        most, "" for the true edit.
    """
    toward = np.zeros(len(error), np.float32)
    names = [""]
    # Squared distance to the true edit minus squared distance to the alternative, [T] each.
    closeness = [np.zeros(len(error), np.float32)]
    for name, direction in directions:
        way = flat(cells(direction))
        length = np.maximum(np.einsum("tn,tn->t", way, way), 1.0)
        share = np.einsum("tn,tn->t", flat(error), way) / length
        share[length < min_length**2] = 0
        toward = np.maximum(toward, share)
        names.append(name)
        closeness.append((2 * share - 1) * length)
    return toward, names[int(np.argmax(np.stack(closeness)[:, toward.argmax()]))]


def flat(clip: np.ndarray) -> np.ndarray:
    """[T, ...] -> [T, n]."""
    return clip.reshape(len(clip), -1)


# ---- deviations from the true edit ----


def deviations(
    edited: np.ndarray, target: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors of blocks in grey levels; a block is the mean of 2 x 2 cells.

    Args:
        edited: [T, n, n, 3], cells.
        target: [T, n, n, 3], cells of the true edit.
        mask: [T, H, W] bool.

    Returns:
        [T] float32 each: the worst block that touches the mask; the worst of the others; their
        mean.
    """
    excess = block_excess(pair_means(edited, step=1), pair_means(target, step=1))
    touched = pair_means(cells(mask[..., None]), step=1)[..., 0] > 0
    inside, outside = np.where(touched, excess, 0), np.where(touched, 0, excess)
    untouched = np.maximum((~touched).sum((1, 2)), 1)
    return inside.max((1, 2)), outside.max((1, 2)), outside.sum((1, 2)) / untouched


def cells(clip: np.ndarray) -> np.ndarray:
    """[T, H, W, C] -> [T, n, n, C] float32: means of square cells; H is a multiple of 8.

    A cell is 2 pixels wide at size 64.
    """
    means = np.asarray(clip, np.float32)
    for _ in range(3):
        if means.shape[1] >= 2 * MIN_CELLS:
            means = pair_means(means, step=2)
    return means


def pair_means(values: np.ndarray, step: int) -> np.ndarray:
    """Means of 2 x 2 neighbours along axes 1 and 2, overlapping (step 1) or not (step 2)."""
    rows = values[:, :-1:step] + values[:, 1::step]
    return (rows[:, :, :-1:step] + rows[:, :, 1::step]) / 4


def block_excess(edited: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[T, n, n]: how far the worst channel of each block is outside the target's range.

    The range is spanned by the target block and the points half-way to its neighbours.
    """
    low, high = target, target
    for axis in (1, 2):
        low, high = neighbourhood(low, axis, np.minimum), neighbourhood(high, axis, np.maximum)
    excess = np.maximum(edited - (target + high) / 2, (target + low) / 2 - edited)
    return largest_channel(excess).clip(0)


def neighbourhood(
    values: np.ndarray, axis: int, extreme: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """The minimum or maximum of each value and its two neighbours along an axis."""
    widths = [(1, 1) if i == axis else (0, 0) for i in range(values.ndim)]
    padded = np.pad(values, widths, mode="edge")
    count = values.shape[axis]
    first, second, third = (padded.take(range(shift, shift + count), axis) for shift in range(3))
    return extreme(extreme(first, second), third)
