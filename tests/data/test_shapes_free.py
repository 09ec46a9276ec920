"""Edits that one frame cannot decide: the checker's error rates, and what it must reject."""

import dataclasses

import numpy as np
import pytest

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.shapes.checker import true_edit
from ivid2vid_jax.data.shapes.disturbances import (
    BAR_COLOUR,
    BAR_WIDTH,
    disturbed_pixels,
    flicker_gains,
    lost_frames,
)
from ivid2vid_jax.data.shapes.scene import Disturbance
from ivid2vid_jax.evaluation.contours import contour_distance

free_kinds = pytest.mark.parametrize("kind", shapes.FREE_KINDS)
temporal_kinds = pytest.mark.parametrize("kind", shapes.TEMPORAL_KINDS)
# `pytest -m slow tests/data/test_shapes_free.py` takes 1,000 clips of each kind.
count_clips = pytest.mark.parametrize("count", [16, pytest.param(1000, marks=pytest.mark.slow)])


def sample_clips(kind, count, frames=8):
    """Yields (triplet, spec) of both worlds and both splits."""
    for i in range(count):
        world = ("shapes", "shapes-crowded")[i % 2]
        split = shapes.SPLITS[i // 2 % 2]
        spec = shapes.sample_spec(11, i, split, (kind,), frames=frames, world=world)
        yield shapes.triplet(spec), spec


def pass_rate(kind, count, make_clip):
    """Share of clips that pass; `make_clip(triplet, spec)` makes one."""
    return np.mean(
        [
            shapes.check(triplet.source, make_clip(triplet, spec), spec).passed
            for triplet, spec in sample_clips(kind, count)
        ]
    )


def noisy_truth(triplet, spec):
    noise = np.random.default_rng(0).normal(0, 4, triplet.edited.shape)
    return np.clip(triplet.edited + noise + 0.5, 0, 255).astype(np.uint8)


@count_clips
@pytest.mark.parametrize("kind", [*shapes.FREE_KINDS, *shapes.TEMPORAL_KINDS])
def test_true_edits_pass_and_sources_fail(kind, count):
    assert pass_rate(kind, count, noisy_truth) >= 0.99
    assert pass_rate(kind, count, lambda triplet, spec: triplet.source) <= 0.01


# ---- free edits ----


@count_clips
@free_kinds
def test_every_right_result_passes(kind, count):
    rng = np.random.default_rng(0)

    def any_result(triplet, spec):
        results = shapes.choices(spec)
        return true_edit(triplet.source, results[rng.integers(len(results))])

    assert pass_rate(kind, count, any_result) >= 0.99


@count_clips
@free_kinds
def test_results_drawn_frame_by_frame_are_valid_but_not_consistent(kind, count):
    rng = np.random.default_rng(0)
    verdicts = []
    for triplet, spec in sample_clips(kind, count):
        results = [true_edit(triplet.source, result) for result in shapes.choices(spec)]
        clip = np.stack([results[rng.integers(len(results))][t] for t in range(spec.frames)])
        verdicts.append(shapes.check(triplet.source, clip, spec))
    assert np.mean([verdict.valid for verdict in verdicts]) >= 0.99
    assert np.mean([verdict.passed or verdict.consistent for verdict in verdicts]) <= 0.01


@free_kinds
def test_one_frame_with_another_result_fails(kind):
    for triplet, spec in sample_clips(kind, 8):
        first, second = shapes.choices(spec)[:2]
        clip = true_edit(triplet.source, first)
        clip[5] = true_edit(triplet.source, second)[5]
        verdict = shapes.check(triplet.source, clip, spec)
        assert (verdict.passed, verdict.valid, verdict.consistent) == (False, True, False)


@free_kinds
def test_the_sentence_does_not_tell_the_value(kind):
    for triplet, spec in sample_clips(kind, 40):
        results = shapes.choices(spec)
        assert len(results) >= 2
        assert spec.edited in [result.edited for result in results]
        if kind != "free-add":
            words = triplet.instruction.split()
            assert not {result.edit.value for result in results} & set(words)


def test_an_invalid_result_is_not_valid():
    """The object in the colour of another kind's words, or with a change of the background."""
    triplet, spec = next(sample_clips("free-shape", 1))
    wrong = dataclasses.replace(spec, edit=dataclasses.replace(spec.edit, kind="colour"))
    wrong = dataclasses.replace(wrong, edit=dataclasses.replace(wrong.edit, value="cyan"))
    verdict = shapes.check(triplet.source, true_edit(triplet.source, wrong), spec)
    assert not verdict.valid
    assert not verdict.passed


# ---- edits that need other frames ----


@count_clips
@pytest.mark.parametrize("kind", ["remove-bar", "repair-frames"])
def test_a_repair_without_the_hidden_object_fails(kind, count):
    """Only clips in which a frame hides most of the object are judged."""
    judged, passed = 0, 0
    for triplet, spec in sample_clips(kind, 4 * count):
        hidden = disturbed_pixels(spec.scene.disturbance, spec.size, spec.frames)[..., None]
        empty = dataclasses.replace(spec.edited, objects=())
        without = np.where(hidden, shapes.render(empty, spec.size, spec.frames), triplet.edited)
        if ((without != triplet.edited).any(-1).sum((1, 2)) > 60).any():
            judged += 1
            passed += shapes.check(triplet.source, without, spec).passed
    assert judged >= count
    assert passed <= 0.01 * judged


@temporal_kinds
def test_a_repair_of_all_frames_but_one_fails(kind):
    for triplet, spec in sample_clips(kind, 12):
        if kind == "remove-flicker":
            changed = flicker_gains(spec.scene.disturbance, spec.frames) != 1
        else:
            changed = (triplet.source != triplet.edited).any(-1).sum((1, 2)) > 100
        frame = int(np.flatnonzero(changed)[0])
        clip = triplet.edited.copy()
        clip[frame] = triplet.source[frame]
        assert not shapes.check(triplet.source, clip, spec).passed


def test_a_bar_crosses_the_whole_picture_and_hides_what_is_behind():
    triplet, spec = next(sample_clips("remove-bar", 1))
    hidden = disturbed_pixels(spec.scene.disturbance, 64, 8)
    assert not hidden[0].any()
    assert not hidden[-1].any()
    inner = hidden.all(axis=(1, 2)).any() or hidden.any(0).mean()
    assert inner > 0.9, "over 8 frames it passes nearly every place"
    assert hidden.mean((1, 2)).max() == pytest.approx(BAR_WIDTH, abs=0.03)
    middle = hidden & (triplet.source == BAR_COLOUR).all(-1)
    assert middle.sum() > 0.8 * hidden.sum()


@pytest.mark.parametrize(("frames", "count"), [(1, 0), (2, 0), (3, 1), (8, 2), (16, 4), (24, 6)])
def test_a_quarter_of_the_frames_is_lost_never_two_in_a_row(frames, count):
    for seed in range(40):
        lost = lost_frames(Disturbance("black", seed), frames)
        assert lost.shape == (frames,)
        assert lost.sum() in (count, count - 1), "a bad order can leave no place for the last one"
        assert not (lost[1:] & lost[:-1]).any()
        assert not lost[[0, -1]].any()


def test_most_frames_do_not_flicker_and_none_clips():
    for triplet, spec in sample_clips("remove-flicker", 40):
        gains = flicker_gains(spec.scene.disturbance, spec.frames)
        assert (gains == 1).sum() == 5
        assert 255 * spec.scene.exposure * gains.max() < 255
        steady = gains == 1
        np.testing.assert_array_equal(triplet.source[steady], triplet.edited[steady])


# ---- the distance of contours ----


def test_the_contour_distance_of_a_moved_disc_is_known():
    """A disc of radius r moved by d along x: the mean of |d cos(angle)| over the contour."""
    spec = next(
        spec
        for i in range(1000)
        if (spec := shapes.sample_spec(0, i, kinds=("identity",), size=128)).scene.objects[0].shape
        == "circle"
    )
    clip = shapes.render(spec.scene, 128, 8)
    assert contour_distance(clip, spec) == pytest.approx(0, abs=1e-3)
    moved = np.concatenate([clip[:, :, :3], clip[:, :, :-3]], axis=2)
    assert contour_distance(moved, spec) == pytest.approx(3 * 2 / np.pi, rel=0.05)
    styled = shapes.sample_spec(0, 0, kinds=("grey",))
    assert contour_distance(shapes.render(styled.edited, 64, 8), styled) is None
