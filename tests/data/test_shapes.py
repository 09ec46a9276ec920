"""The shapes world: a pure function of its seed, held-out combinations apart, and a checker whose error rates are known."""

import dataclasses
import io
import itertools
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ivid2vid_jax.data import shapes
from ivid2vid_jax.data.shapes.language import PHRASINGS, STYLE_PHRASINGS
from ivid2vid_jax.data.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    apply_edit,
    contrasts,
)
from ivid2vid_jax.utils.errors import UserError

GOLDEN_HELD_OUT = "000000011001000100000000000000100000000001001000001001000000"
RATES_OVER, ROBUST_OVER = 1000, 160  # clips


@pytest.fixture(scope="module")
def world():
    """(triplet, spec) pairs of every kind, the unseen one too, from both splits of both worlds."""
    specs = [
        shapes.sample_spec(
            3, i, shapes.SPLITS[i % 2], shapes.ALL_KINDS, world=list(shapes.WORLDS)[i // 2 % 2]
        )
        for i in range(RATES_OVER)
    ]
    return [(shapes.triplet(spec), spec) for spec in specs]


def share_passing(world, spoil):
    """The share of the clips that pass once `spoil(triplet, spec)` made the edited one; where it returns None, none is counted."""
    clips = [(triplet, spec, spoil(triplet, spec)) for triplet, spec in world]
    verdicts = [
        shapes.check(triplet.source, clip, spec).passed
        for triplet, spec, clip in clips
        if clip is not None
    ]
    assert len(verdicts) >= 40
    return np.mean(verdicts)


# The records


def test_the_same_arguments_make_the_same_bytes_and_others_do_not():
    one, again, other = (shapes.triplet(shapes.sample_spec(0, index)) for index in (7, 7, 8))
    assert one.id == again.id != other.id
    assert one.source.tobytes() == again.source.tobytes() != other.source.tobytes()
    assert one.edited.tobytes() == again.edited.tobytes()
    assert shapes.sample_spec(1, 7) != shapes.sample_spec(0, 7)


def test_the_provenance_is_the_spec(world):
    for triplet, spec in world:
        assert shapes.Spec.from_json(triplet.provenance) == spec
    assert len({triplet.id for triplet, _ in world}) == len(world)


@pytest.mark.parametrize(("size", "frames"), [(16, 2), (48, 5), (64, 8), (96, 1)])
def test_clips_have_the_size_and_length_asked_for(size, frames):
    for kind in shapes.ALL_KINDS:
        triplet = shapes.triplet(shapes.sample_spec(0, 1, kinds=(kind,), size=size, frames=frames))
        assert triplet.source.shape == triplet.edited.shape == (frames, size, size, 3)
        assert triplet.source.dtype == triplet.edited.dtype == np.uint8
        assert triplet.edit_type == kind


def test_the_mask_holds_every_change_and_only_identity_changes_nothing(world):
    for triplet, spec in world:
        changed = (triplet.source != triplet.edited).any(-1)
        mask = np.ones_like(changed) if triplet.mask is None else triplet.mask
        assert mask.dtype == bool and not changed[~mask].any()
        assert (changed.sum((1, 2)) > 20).all() == (spec.edit.kind != "identity")
        assert (triplet.mask is None) == (spec.edited.style is not None)


def test_a_mask_is_no_larger_than_the_object(world):
    for triplet, spec in world:
        if spec.edit.kind in ("colour", "shape", "size", "texture", "add", "remove"):
            assert 0 < triplet.mask.mean((1, 2)).max() < 0.2


def test_objects_stay_in_view_apart_and_moving():
    for i in range(150):
        spec = shapes.sample_spec(5, i, world="shapes-crowded")
        first, *others = spec.scene.objects
        alone = [
            shapes.render(dataclasses.replace(spec.scene, objects=(each,), pan=(0.0, 0.0)), 64, 8)
            for each in spec.scene.objects
        ]
        empty = shapes.render(dataclasses.replace(spec.scene, objects=(), pan=(0.0, 0.0)), 64, 8)
        seen = [(clip != empty).any(-1) for clip in alone]
        for pixels in seen:
            areas = pixels.sum((1, 2))
            assert areas.min() > 0.7 * areas.max() > 40
            assert (pixels[0] & pixels.all(0)).sum() < 0.7 * areas.max()
        assert len(seen) == 1 or not (seen[0] & seen[1]).any()
        assert all(first.shape != each.shape and first.colour != each.colour for each in others)
        assert all(
            contrasts(each.colour, scene.background)
            for scene in (spec.scene, spec.edited)
            for each in scene.objects
        )


def test_the_crowded_world_has_two_objects_or_one_and_uneven_backgrounds_that_pan_in_some_clips():
    scenes = [
        shapes.sample_spec(3, i, kinds=("colour",), world="shapes-crowded").scene
        for i in range(200)
    ]
    assert 0.3 < np.mean([scene.pan != (0.0, 0.0) for scene in scenes]) < 0.7
    assert 0.3 < np.mean([len(scene.objects) == 2 for scene in scenes]) < 0.7
    assert np.ptp(shapes.render(dataclasses.replace(scenes[0], objects=()), 64, 1)[0, :, :, 0]) > 20


def test_the_plain_world_has_one_plain_object_but_for_removing_and_flat_backgrounds_at_rest():
    for i in range(200):
        spec = shapes.sample_spec(3, i)
        assert len(spec.scene.objects) == (2 if spec.edit.kind == "remove" else 1)
        assert {thing.texture for thing in spec.scene.objects} == {"plain"}
        assert (
            np.ptp(
                shapes.render(dataclasses.replace(spec.scene, objects=()), 64, 4), axis=(0, 1, 2)
            ).max()
            == 0
        )


# The splits


def test_training_never_draws_what_is_held_out_and_evaluation_nothing_else():
    for split, (world, kinds) in itertools.product(shapes.SPLITS, shapes.WORLDS.items()):
        specs = [shapes.sample_spec(2, i, split, world=world) for i in range(400)]
        assert {shapes.held_out(spec.scene, spec.edit) for spec in specs} == {split == "eval"}
        assert {spec.edit.kind for spec in specs} == set(kinds)
        assert {thing.shape for spec in specs for thing in spec.scene.objects} == set(SHAPES)
        assert {spec.scene.background for spec in specs} == set(BACKGROUNDS)


def test_a_tenth_of_all_combinations_is_held_out():
    base = shapes.sample_spec(0, 0, kinds=("colour",))
    held = []
    for shape in SHAPES:
        for colour in COLOURS:
            for background in BACKGROUNDS:
                thing = dataclasses.replace(base.scene.objects[0], shape=shape, colour=colour)
                scene = dataclasses.replace(base.scene, objects=(thing,), background=background)
                for kind in shapes.ALL_KINDS:
                    edits = (
                        dataclasses.replace(base.edit, kind=kind, target=0, phrasing=i)
                        for i in range(len(PHRASINGS[kind]))
                    )
                    held += [shapes.held_out(scene, edit) for edit in edits]
    assert np.mean(held) == pytest.approx(0.1, abs=0.01)


def test_held_out_is_the_same_for_ever():
    """Renew only with a reason: every trained model's evaluation split moves."""
    held = "".join(str(int(shapes.held_out(*scene_and_edit(i)))) for i in range(60))
    assert held == GOLDEN_HELD_OUT


def scene_and_edit(i):
    spec = shapes.sample_spec(4, i, shapes.SPLITS[i % 5 == 0], world="shapes-crowded")
    return dataclasses.replace(spec.scene, background=tuple(BACKGROUNDS)[i % 6]), spec.edit


def test_the_unseen_style_is_drawn_only_when_asked_for():
    assert shapes.UNSEEN_STYLE not in shapes.KINDS
    assert shapes.triplet(shapes.sample_spec(0, 0, kinds=("sepia",))).edit_type == "sepia"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"world": "cars"}, "cars"),
        ({"split": "test"}, "split"),
        ({"kinds": ("melt",)}, "melt"),
        ({"size": 60}, "multiple of 8"),
        ({"frames": 0}, "frames"),
    ],
)
def test_errors_name_the_value(wrong, message):
    with pytest.raises(UserError, match=message):
        shapes.sample_spec(0, 0, **wrong)


# The words


def test_every_kind_has_four_phrasings_and_all_are_used(world):
    used = Counter((spec.edit.kind, spec.edit.phrasing) for _, spec in world)
    for kind in shapes.ALL_KINDS:
        assert len(set(PHRASINGS[kind])) >= 4
        assert all(used[kind, i] for i in range(len(PHRASINGS[kind])))
    assert len(STYLE_PHRASINGS) >= 4


def test_instructions_are_drawn_from_the_sentences_that_are_named():
    for split in shapes.SPLITS:
        specs = [shapes.sample_spec(6, i, split, phrasings=(3, 4)) for i in range(200)]
        assert {spec.edit.phrasing for spec in specs} == {3, 4} and {
            shapes.held_out(spec.scene, spec.edit) for spec in specs
        } == {split == "eval"}
        assert {spec.edit.phrasing for spec in specs if spec.edit.kind == "shape"} == {3}, (
            "it has no fifth"
        )
    assert [shapes.sample_spec(6, i, phrasings=tuple(range(5))) for i in range(50)] == [
        shapes.sample_spec(6, i) for i in range(50)
    ]
    with pytest.raises(
        UserError, match=r"phrasings \(4,\): the kind 'shape' has the sentences 0 to 3"
    ):
        shapes.sample_spec(6, 0, kinds=("shape",), phrasings=(4,))


def test_an_edit_is_found_by_what_it_makes_of_the_scene(world):
    found = {kind: [] for kind in shapes.ALL_KINDS}
    for _, spec in world:
        edit = shapes.edit_towards(spec.scene, shapes.caption(spec.edited))
        found[spec.edit.kind].append(
            edit is not None and apply_edit(spec.scene, edit) == spec.edited
        )
    assert all(all(found[kind]) == (kind not in ("add", "remove", "identity")) for kind in found), (
        found
    )
    assert shapes.edit_towards(world[0][1].scene, "a red dog in the snow") is None


def test_the_words_are_few_and_all_filled_in(world):
    sentences = [
        text
        for triplet, _ in world
        for text in (triplet.instruction, triplet.source_caption, triplet.edited_caption)
    ]
    words = {word for text in sentences for word in text.replace(",", "").split()}
    assert all(word.isalpha() and word.islower() and word != "None" for word in words)
    assert len(words) < 100


def test_captions_say_what_the_clips_show():
    spec = shapes.sample_spec(0, 0, kinds=("remove",))
    red = dataclasses.replace(
        spec.scene.objects[0], shape="circle", colour="red", size="medium", texture="plain"
    )
    blue = dataclasses.replace(
        spec.scene.objects[1], shape="square", colour="blue", size="large", texture="striped"
    )
    scene = dataclasses.replace(spec.scene, objects=(red, blue), background="white")
    edit = dataclasses.replace(spec.edit, kind="colour", target=0, value="green", phrasing=1)
    triplet = shapes.triplet(shapes.Spec(scene, edit))
    assert (
        triplet.source_caption
        == "a red circle and a large striped blue square on a white background"
    )
    assert (
        triplet.edited_caption
        == "a green circle and a large striped blue square on a white background"
    )
    assert triplet.instruction == "make the red circle green"
    grey = dataclasses.replace(edit, kind="grey", value="", phrasing=0)
    assert (
        shapes.triplet(shapes.Spec(scene, grey)).edited_caption == triplet.source_caption + ", grey"
    )


# The checker's own error rates


def test_true_edits_pass(world):
    assert share_passing(world, lambda triplet, spec: triplet.edited) >= 0.99


def test_the_untouched_source_fails(world):
    assert (
        share_passing(
            world, lambda triplet, spec: triplet.source if spec.edit.kind != "identity" else None
        )
        <= 0.01
    )


def test_another_instructions_true_edit_fails(world):
    rng = np.random.default_rng(0)
    assert share_passing(world, lambda triplet, spec: another_edit(rng, spec)) <= 0.02


def another_edit(rng, spec):
    """The same source with a different outcome, half of the time by an edit of the same kind where that has others to choose from."""
    fitting = [kind for kind in shapes.ALL_KINDS if kind not in ("add", "remove", "size")]
    fitting += ["remove"] * (len(spec.scene.objects) == 2) + [spec.edit.kind] * (
        len(fitting) if spec.edit.kind != "identity" else 0
    )
    while True:
        scene = apply_edit(
            spec.scene, shapes.sample_edit(rng, spec.scene, fitting[rng.integers(len(fitting))])
        )
        if scene != spec.edited:
            return shapes.render(scene, spec.size, spec.frames)


# It bears what a small autoencoder does to a picture


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


def all_three(clip):
    return compressed(noisy(blurred(clip)))


def moved_by_a_pixel(clip):
    return np.concatenate([clip[:, :, :1], clip[:, :, :-1]], axis=2)


def paler(clip):
    return (clip * 0.9 + 12).astype(np.uint8)


@pytest.mark.parametrize(
    "degrade", [noisy, blurred, compressed, all_three, moved_by_a_pixel, paler]
)
def test_degraded_true_edits_pass(world, degrade):
    assert share_passing(world[:ROBUST_OVER], lambda triplet, spec: degrade(triplet.edited)) >= 0.97


# It sees through what a model that failed may show


def half_of_the_frames(triplet, spec):
    return np.concatenate([triplet.edited[::2], triplet.source[1::2]])[[0, 4, 1, 5, 2, 6, 3, 7]]


def only_one_frame_missing(triplet, spec):
    return np.concatenate([triplet.edited[:-1], triplet.source[-1:]])


def half_way(triplet, spec):
    return ((triplet.edited.astype(int) + triplet.source) // 2).astype(np.uint8)


@pytest.mark.parametrize("fail", [half_of_the_frames, only_one_frame_missing, half_way])
def test_a_partial_edit_fails(world, fail):
    changing = [
        (triplet, spec) for triplet, spec in world[:ROBUST_OVER] if spec.edit.kind != "identity"
    ]
    assert share_passing(changing, fail) <= 0.01


def test_a_frozen_clip_fails(world):
    """Faint objects too: of some, little contrast is left without colour."""
    faint = [(triplet, spec) for triplet, spec in world if spec.edit.kind in ("grey", "sepia")]
    assert share_passing(world[:60], freeze) == 0
    assert share_passing(faint, freeze) == 0


def freeze(triplet, spec):
    return np.repeat(triplet.edited[:1], spec.frames, axis=0)


def on_the_other_object(triplet, spec):
    if len(spec.scene.objects) == 1 or spec.edit.kind not in (
        "colour",
        "shape",
        "size",
        "texture",
        "remove",
    ):
        return None
    scene = apply_edit(spec.scene, dataclasses.replace(spec.edit, target=1 - spec.edit.target))
    return shapes.render(scene, spec.size, spec.frames)


def test_the_wrong_objects_edit_fails(world):
    assert share_passing(world, on_the_other_object) <= 0.01


def background_too(triplet, spec):
    if spec.edited.style or spec.edit.kind == "background":
        return None
    names = [name for name in BACKGROUNDS if name != spec.scene.background]
    return shapes.render(
        dataclasses.replace(spec.edited, background=names[len(triplet.instruction) % len(names)]),
        spec.size,
        spec.frames,
    )


def test_a_recoloured_background_fails_as_not_preserved(world):
    assert share_passing(world[:ROBUST_OVER], background_too) <= 0.01
    triplet, spec = next((triplet, spec) for triplet, spec in world if spec.edit.kind == "colour")
    verdict = shapes.check(triplet.source, background_too(triplet, spec), spec)
    assert not verdict.preserved and not verdict.passed


def other_object_lost(triplet, spec):
    if len(spec.scene.objects) == 1 or spec.edit.kind not in (*shapes.KINDS[:5], "identity"):
        return None
    kept = (spec.edited.objects[spec.edit.target],)
    return shapes.render(dataclasses.replace(spec.edited, objects=kept), spec.size, spec.frames)


def test_losing_the_other_object_fails(world):
    assert share_passing(world, other_object_lost) <= 0.01


def test_the_verdict_tells_which_frame_and_what_it_shows_instead():
    spec = shapes.sample_spec(0, 0, kinds=("colour",))
    triplet = shapes.triplet(spec)
    wrong = triplet.edited.copy()
    wrong[3] = triplet.source[3]
    verdict = shapes.check(triplet.source, wrong, spec)
    assert not verdict.success and verdict.preserved and not verdict.passed
    assert verdict.nearest == "source" and verdict.toward.argmax() == 3
    assert verdict.toward[3] > 0.99 and np.delete(verdict.toward, 3).max() < 0.01


@pytest.mark.parametrize("size", [48, 96])
def test_the_checker_works_at_other_sizes(size):
    specs = [shapes.sample_spec(6, i, kinds=shapes.ALL_KINDS, size=size) for i in range(45)]
    other = [(shapes.triplet(spec), spec) for spec in specs]
    assert share_passing(other, lambda triplet, spec: noisy(triplet.edited)) >= 0.97
    assert (
        share_passing(
            other, lambda triplet, spec: triplet.source if spec.edit.kind != "identity" else None
        )
        <= 0.01
    )


def test_clips_of_another_size_are_refused():
    spec = shapes.sample_spec(0, 0)
    triplet = shapes.triplet(spec)
    with pytest.raises(UserError, match="edited clip"):
        shapes.check(triplet.source, triplet.edited[:4], spec)
