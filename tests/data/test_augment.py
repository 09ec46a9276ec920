"""Crops: the same for both clips, moving windows, and no mirrored clip with a wrong text."""

import dataclasses

import numpy as np
import pytest

from ivid2vid_jax.data import augment, shapes
from ivid2vid_jax.data.loader import LoaderConfig
from tests.data.fakes import SMALL, FakeSource, open_loader, read_batches


def gradient(frames, height, width):
    """[T, H, W, 3] whose red is x and whose green is y."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    clip[..., 0], clip[..., 1] = np.arange(width), np.arange(height)[:, None]
    return clip


def random_crop(clip, seed, size=16, frames=4, stride=1, crop=1.0, flip=0.0):
    rng = np.random.default_rng(seed)
    window = augment.sample_crop(rng, clip.shape, frames, stride, crop, flip)
    return augment.apply_crop(clip, window, size)


def test_a_crop_is_the_same_for_both_clips(sources):
    """Equal clips remain equal, and crops differ between examples."""
    sources["a"] = FakeSource(60, frames=9, side=30)
    config = LoaderConfig(batch=30, frames=3, size=16, crop=0.4, flip=0.5, stride=3)
    (batch,) = read_batches(1, config, "a", view="edit")
    np.testing.assert_array_equal(batch["source"], batch["edited"])
    steps = np.diff(batch["source"][:, :, 0, 0, 2].astype(int), axis=1)
    assert (steps[:, 0] == steps[:, 1]).all()
    assert set(steps[:, 0]) == {1, 2, 3}
    starts = set(batch["source"][:, 0, 0, 0, 2])
    assert len(starts) >= 3


def test_what_fits_is_not_resampled():
    clip = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(random_crop(clip, 0), clip)
    np.testing.assert_array_equal(random_crop(clip, 0, flip=1.0), clip[:, :, ::-1])
    wide = gradient(4, 16, 40)
    np.testing.assert_array_equal(random_crop(wide, 3), wide[:, :, 12:28])


def test_crops_are_large_enough_and_do_not_move():
    clip, spans, corners = gradient(4, 60, 100), [], []
    for seed in range(200):
        window = random_crop(clip, seed, size=8, crop=0.5).astype(int)
        assert (window == window[:1]).all()
        width = window[0, 4, 7, 0] - window[0, 4, 0, 0]
        height = window[0, 7, 4, 1] - window[0, 0, 4, 1]
        assert abs(width - height) <= 2
        spans.append(width * 8 / 7)
        corners.append((window[0, 4, 0, 0], window[0, 0, 4, 1]))
    assert 28 <= min(spans) < 33
    assert 57 < max(spans) <= 62
    assert min(x for x, _ in corners) < 8
    assert max(x for x, _ in corners) > 55
    assert max(y for _, y in corners) > 22


def test_a_moving_window_has_constant_speed_in_fractions_of_pixels():
    image = gradient(1, 128, 200)
    distances = []
    for seed in range(60):
        crop = augment.sample_crop(np.random.default_rng(seed), image.shape, 5, 1, 1.0, 0.0)
        steps = np.diff(crop.boxes, axis=0)
        np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), atol=1e-9)
        side = crop.boxes[0, 2] - crop.boxes[0, 0]
        assert 0.6 * 128 <= side <= 0.85 * 128
        assert crop.boxes.min() >= 0
        assert crop.boxes[:, 2].max() <= 200
        assert crop.boxes[:, 3].max() <= 128
        assert np.abs(crop.boxes[-1] - crop.boxes[0]).max() <= side / 2 + 1e-9
        clip = augment.apply_crop(image, crop, 64).astype(float)
        centres = crop.boxes[:, 0] + side / 2 - 0.5
        np.testing.assert_allclose(clip[:, 32, 20:44, 0].mean(1), centres, atol=1)
        distances.append(np.abs(steps[0, :2]).max() * 4)
    assert np.median(distances) > 10


@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_images_become_moving_clips(seed):
    assert random_crop(gradient(1, 1, 1), seed, size=8).shape == (4, 8, 8, 3)


def test_a_mirrored_clip_never_contradicts_its_instruction():
    sided = ["add a hat on the Left", "remove the rightmost cat", "the right-hand one"]
    free = ["a bright night", "keep it upright", "make it snow"]
    assert all(augment.mentions_side(text) for text in sided)
    assert not any(augment.mentions_side(text) for text in free)
    config = LoaderConfig(batch=200, frames=2, size=64, flip=1.0, threads=0)
    with open_loader(config, "shapes", view="edit") as loader:
        batch, _ = next(loader)
    mirrored = 0
    for serial, edited in zip(batch["serial"], batch["edited"], strict=True):
        triplet = shapes.triplet(shapes.sample_spec(0, int(serial), frames=2))
        flip = not any(word in triplet.instruction for word in ("left", "right"))
        expected = triplet.edited[:, :, ::-1] if flip else triplet.edited
        np.testing.assert_array_equal(edited, expected)
        mirrored += flip
    assert 100 < mirrored < 199


def test_captions_forbid_mirroring_too(sources):
    """Here the instruction names no side and the caption does."""

    @dataclasses.dataclass(frozen=True)
    class SidedSource(FakeSource):
        def __getitem__(self, index):
            clip = gradient(4, 8, 8)
            return dataclasses.replace(
                super().__getitem__(index),
                source=clip,
                edited=clip,
                edited_caption="a dog on the right",
            )

    sources["a"] = SidedSource(20)
    (batch,) = read_batches(1, dataclasses.replace(SMALL, flip=1.0), "a")
    expected = np.broadcast_to(gradient(2, 8, 8), batch["clip"].shape)
    np.testing.assert_array_equal(batch["clip"], expected)
