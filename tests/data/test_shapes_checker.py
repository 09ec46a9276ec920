"""The checker of the shapes world: its error rates, and what it must tolerate and reject."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.shapes.scene import BACKGROUNDS, apply_edit
from ivid2vid_jax.errors import UserError
from tests.data.conftest import FRAME_KINDS

ROBUST_CLIPS = 160  # clips of the world that the slower tests use


def pass_rate(world, make_clip):
    """Share of clips that pass; `make_clip(triplet, spec)` makes one, or None to leave it out."""
    clips = [(triplet, spec, make_clip(triplet, spec)) for triplet, spec in world]
    passed = [
        shapes.check(triplet.source, clip, spec).passed
        for triplet, spec, clip in clips
        if clip is not None
    ]
    assert len(passed) >= 40
    return np.mean(passed)


def untouched(triplet, spec):
    return triplet.source if spec.edit.kind != "identity" else None


# ---- error rates ----

count_clips = pytest.mark.parametrize("count", [300, pytest.param(1000, marks=pytest.mark.slow)])


@count_clips
def test_true_edits_pass(world, count):
    assert pass_rate(world[:count], lambda triplet, spec: triplet.edited) >= 0.99


@count_clips
def test_the_untouched_source_fails(world, count):
    assert pass_rate(world[:count], untouched) <= 0.01


@count_clips
def test_another_instructions_true_edit_fails(world, count):
    rng = np.random.default_rng(0)
    assert pass_rate(world[:count], lambda triplet, spec: another_edit(rng, spec)) <= 0.02


def another_edit(rng, spec):
    """The same source with a different edit, in half of the cases of the same kind if possible."""
    kinds = [kind for kind in FRAME_KINDS if kind not in ("add", "remove", "size")]
    same_kind = [spec.edit.kind] * (len(kinds) if spec.edit.kind != "identity" else 0)
    kinds += ["remove"] * (len(spec.scene.objects) == 2) + same_kind
    while True:
        edit = shapes.sample_edit(rng, spec.scene, kinds[rng.integers(len(kinds))])
        scene = apply_edit(spec.scene, edit)
        if scene != spec.edited:
            return shapes.render(scene, spec.size, spec.frames)


# ---- it tolerates what a small autoencoder does to a picture ----


def noisy(clip):
    rng = np.random.default_rng(0)
    return np.clip(clip + rng.normal(0, 4, clip.shape) + 0.5, 0, 255).astype(np.uint8)


def blurred(clip):
    padded = np.pad(clip.astype(np.float32), [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    rows = padded[:, 2:] + padded[:, 1:-1] + padded[:, :-2]
    return ((rows[:, :, 2:] + rows[:, :, 1:-1] + rows[:, :, :-2]) / 9 + 0.5).astype(np.uint8)


def compressed(clip):
    return np.stack([jpeg(frame) for frame in clip])


def jpeg(frame):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=85)
    return np.asarray(Image.open(file))


def blurred_noisy_compressed(clip):
    return compressed(noisy(blurred(clip)))


def moved_by_a_pixel(clip):
    return np.concatenate([clip[:, :, :1], clip[:, :, :-1]], axis=2)


def paler(clip):
    return (clip * 0.9 + 12).astype(np.uint8)


@pytest.mark.parametrize(
    "degrade",
    [noisy, blurred, compressed, blurred_noisy_compressed, moved_by_a_pixel, paler],
)
def test_degraded_true_edits_pass(world, degrade):
    rate = pass_rate(world[:ROBUST_CLIPS], lambda triplet, spec: degrade(triplet.edited))
    assert rate >= 0.97


# ---- it rejects what a model that failed may show ----


def half_of_the_frames(triplet, spec):
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    return np.concatenate([triplet.edited[::2], triplet.source[1::2]])[order]


def all_but_the_last_frame(triplet, spec):
    return np.concatenate([triplet.edited[:-1], triplet.source[-1:]])


def half_way(triplet, spec):
    return ((triplet.edited.astype(int) + triplet.source) // 2).astype(np.uint8)


@pytest.mark.parametrize("make_clip", [half_of_the_frames, all_but_the_last_frame, half_way])
def test_a_partial_edit_fails(world, make_clip):
    changing = [
        (triplet, spec) for triplet, spec in world[:ROBUST_CLIPS] if spec.edit.kind != "identity"
    ]
    assert pass_rate(changing, make_clip) <= 0.01


def test_a_frozen_clip_fails(world):
    """Also with faint objects: without colour, some have little contrast."""
    faint = [(triplet, spec) for triplet, spec in world if spec.edit.kind in ("grey", "sepia")]
    assert pass_rate(world[:60], frozen) == 0
    assert pass_rate(faint, frozen) == 0


def frozen(triplet, spec):
    return np.repeat(triplet.edited[:1], spec.frames, axis=0)


def edit_of_the_other_object(triplet, spec):
    kinds = ("colour", "shape", "size", "texture", "remove")
    if len(spec.scene.objects) == 1 or spec.edit.kind not in kinds:
        return None
    scene = apply_edit(spec.scene, dataclasses.replace(spec.edit, target=1 - spec.edit.target))
    return shapes.render(scene, spec.size, spec.frames)


def test_an_edit_of_the_wrong_object_fails(world):
    assert pass_rate(world, edit_of_the_other_object) <= 0.01


def edit_with_another_background(triplet, spec):
    if spec.edited.style or spec.edit.kind == "background":
        return None
    names = [name for name in BACKGROUNDS if name != spec.scene.background]
    background = names[len(triplet.instruction) % len(names)]
    scene = dataclasses.replace(spec.edited, background=background)
    return shapes.render(scene, spec.size, spec.frames)


def test_a_recoloured_background_fails_as_not_preserved(world):
    assert pass_rate(world[:ROBUST_CLIPS], edit_with_another_background) <= 0.01
    triplet, spec = next((triplet, spec) for triplet, spec in world if spec.edit.kind == "colour")
    verdict = shapes.check(triplet.source, edit_with_another_background(triplet, spec), spec)
    assert not verdict.preserved
    assert not verdict.passed


def edit_without_the_other_object(triplet, spec):
    if len(spec.scene.objects) == 1 or spec.edit.kind not in (*shapes.KINDS[:5], "identity"):
        return None
    target = (spec.edited.objects[spec.edit.target],)
    return shapes.render(dataclasses.replace(spec.edited, objects=target), spec.size, spec.frames)


def test_losing_the_other_object_fails(world):
    assert pass_rate(world, edit_without_the_other_object) <= 0.01


# ---- the verdict ----


def test_the_verdict_tells_which_frame_and_what_it_shows_instead():
    spec = shapes.sample_spec(0, 0, kinds=("colour",))
    triplet = shapes.triplet(spec)
    wrong = triplet.edited.copy()
    wrong[3] = triplet.source[3]
    verdict = shapes.check(triplet.source, wrong, spec)
    assert not verdict.success
    assert verdict.preserved
    assert not verdict.passed
    assert verdict.nearest == "source"
    assert verdict.toward.argmax() == 3
    assert verdict.toward[3] > 0.99
    assert np.delete(verdict.toward, 3).max() < 0.01


@pytest.mark.parametrize("size", [48, 96])
def test_the_checker_works_at_other_sizes(size):
    specs = [shapes.sample_spec(6, i, kinds=FRAME_KINDS, size=size) for i in range(45)]
    clips = [(shapes.triplet(spec), spec) for spec in specs]
    assert pass_rate(clips, lambda triplet, spec: noisy(triplet.edited)) >= 0.97
    assert pass_rate(clips, untouched) <= 0.01


def test_clips_of_another_size_are_refused():
    spec = shapes.sample_spec(0, 0)
    triplet = shapes.triplet(spec)
    with pytest.raises(UserError, match="edited clip"):
        shapes.check(triplet.source, triplet.edited[:4], spec)
