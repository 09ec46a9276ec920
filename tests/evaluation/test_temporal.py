"""Temporal metrics on clips whose motion is known.

Frame differencing, block matching, optical flow and the warping error.
"""

import cv2
import numpy as np
import pytest

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation import flow, temporal
from tests.support.clips import moving, static, texture

MOVES = [(1, 0), (2, 1), (3, -2), (-5, 4)]


def test_a_static_clip_has_no_motion():
    clip = static()
    forward, backward = flow.forward(clip), flow.backward(clip)
    assert temporal.frame_difference(clip) == 0 and temporal.block_matching(clip) == (0, 0)
    # The rest is the error of Farneback's method.
    assert flow.magnitude(forward) < 0.01
    assert flow.warping_error(clip, forward, flow.visible(forward, backward)) < 1e-6


@pytest.mark.parametrize("amplitude", [1, 7])
def test_flicker_of_known_amplitude(amplitude):
    """Every other frame is brighter by the amplitude, which block matching cannot compensate."""
    clip = np.clip(static(), 20, 200)
    clip[1::2] += amplitude
    assert temporal.frame_difference(clip) == amplitude
    flat = np.full_like(clip, 100)
    flat[1::2] += amplitude
    assert temporal.block_matching(flat) == (amplitude, 0)


@pytest.mark.parametrize("move", MOVES)
def test_block_matching_finds_the_exact_vector(move):
    luma = temporal.grey(moving(*move, frames=3, size=96))
    vectors, residuals = temporal.block_vectors(luma[:-1], luma[1:])
    assert vectors.shape == (2, 6, 6, 2)
    inner = (slice(None), slice(1, -1), slice(1, -1))  # blocks at the edge may leave the frame
    assert np.all(vectors[inner] == move) and not residuals[inner].any()


def test_block_matching_equals_an_exhaustive_search():
    """For two unrelated pictures, block by block."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 1, 40, 37), np.uint8)
    vectors, residuals = temporal.block_vectors(a, b, 8, 3)
    assert residuals.shape == (1, 5, 4)
    for row in range(5):
        for column in range(4):
            y, x = 8 * row, 8 * column
            block = a[0, y : y + 8, x : x + 8].astype(int)
            costs = {
                (dx, dy): np.abs(block - b[0, y + dy : y + dy + 8, x + dx : x + dx + 8]).mean()
                for dx in range(-3, 4)
                for dy in range(-3, 4)
                if 0 <= y + dy <= 32 and 0 <= x + dx <= 29
            }
            lowest, vector = min(costs.values()), tuple(vectors[0, row, column].astype(int))
            assert residuals[0, row, column] == pytest.approx(lowest) and costs[vector] == lowest


def test_motion_beyond_the_search_range_leaves_a_residual():
    within, beyond = moving(7, 7, size=96), moving(9, 0, size=96)
    assert temporal.block_matching(within)[0] < temporal.block_matching(beyond)[0]


def test_small_frames_are_one_block():
    vectors, _ = temporal.block_vectors(*np.zeros((2, 1, 10, 12), np.uint8))
    assert vectors.shape == (1, 1, 1, 2)


@pytest.mark.parametrize("move", MOVES)
def test_flow_finds_the_exact_vector(move):
    """Within 0.02 pixels, away from the edge, where the picture leaves the frame."""
    clip, inner = moving(*move, size=96), (slice(None), slice(24, -24), slice(24, -24))
    forward, backward = flow.forward(clip)[inner], flow.backward(clip)[inner]
    exact = np.broadcast_to(move, forward.shape)
    np.testing.assert_allclose(forward, exact, atol=0.02)
    np.testing.assert_allclose(backward, -exact, atol=0.02)
    assert flow.magnitude(forward) == pytest.approx(np.hypot(*move), abs=0.01)
    assert flow.end_point_error(forward, -backward) < 0.02


def test_flow_equals_opencvs():
    """Up to a few pixels, whose luma is rounded differently."""
    clip = moving(2, 1)
    luma = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip[:2]]
    options = dict(pyr_scale=0.5, levels=4, winsize=15, iterations=5, poly_n=7, poly_sigma=1.5)
    expected = cv2.calcOpticalFlowFarneback(*luma, None, **options, flags=0)
    np.testing.assert_allclose(flow.forward(clip)[0], expected, atol=0.05)
    assert np.abs(temporal.grey(clip[0]).astype(int) - luma[0]).max() <= 1


def test_warping_follows_the_flow():
    clip = moving(3, -2).astype(np.float32)
    exact = np.broadcast_to(np.float32([3, -2]), (3, 64, 64, 2))
    np.testing.assert_array_equal(flow.warp(clip[1:], exact)[:, 2:, :-3], clip[:-1, 2:, :-3])


def test_a_clip_that_moves_as_its_source_has_no_warping_error():
    """Compared with a static clip and with one that flickers by 51 grey levels."""
    source, edited = moving(3, -2, size=96), moving(3, -2, size=96, seed=9)
    forward = flow.forward(source)
    mask = flow.visible(forward, flow.backward(source))
    # The last columns leave the frame.
    assert mask[:, 10:-10, 10:-10].mean() > 0.95 and not mask[:, :, -2:].any()
    edited_error, static_error = (
        flow.warping_error(clip, forward, mask) for clip in (edited, static(size=96, seed=9))
    )
    assert edited_error < 2e-4 and static_error > 20 * edited_error
    flicker = np.full_like(source, 100)
    flicker[1::2] = 151
    assert flow.warping_error(flicker, forward, mask) == pytest.approx((51 / 255) ** 2, rel=1e-5)


def test_occluded_pixels_do_not_count():
    """A square passes over a static background; what it covers and uncovers is masked."""
    background, square = texture(seed=1)[:96, :96], texture(seed=2)[:32, :32]
    clip = np.stack([background] * 3)
    for t in range(3):
        clip[t, 32:64, 20 + 5 * t : 52 + 5 * t] = square
    forward = flow.forward(clip)
    mask = flow.visible(forward, flow.backward(clip))
    covered_next, inside_square, far_away = (
        mask[0, 32:64, 52:57],
        mask[0, 44:52, 30:44],
        mask[0, :20],
    )
    assert covered_next.mean() < 0.2 and inside_square.all() and far_away.mean() > 0.95
    unmasked_error = flow.warping_error(clip, forward, np.ones_like(mask))
    assert flow.warping_error(clip, forward, mask) < 0.5 * unmasked_error


def published_warping_error(frames, forward, backward):
    """The warping error and mask of Lai et al. 2018 (arXiv 1808.00449), pixel by pixel.

    As in their compute_flow_occlusion.py and evaluate_WarpError.py, with OpenCV's flows instead of
    FlowNet2's.
    """
    T, H, W = len(frames), *frames.shape[1:3]

    def sample(image, x, y):
        """Bilinear interpolation, with the edge's value outside the frame (Resample2d)."""
        x, y = min(max(x, 0), W - 1), min(max(y, 0), H - 1)
        (x0, y0), u, v = (int(x), int(y)), x - int(x), y - int(y)
        x1, y1 = min(x0 + 1, W - 1), min(y0 + 1, H - 1)
        return (1 - v) * ((1 - u) * image[y0, x0] + u * image[y0, x1]) + v * (
            (1 - u) * image[y1, x0] + u * image[y1, x1]
        )

    errors, mask = [], np.zeros((T - 1, H, W), bool)
    for t in range(T - 1):
        total = count = 0
        for y, x in np.ndindex(H, W):
            f = forward[t, y, x]
            b = sample(backward[t], x + f[0], y + f[1])
            occluded = ((f + b) ** 2).sum() > 0.01 * ((f**2).sum() + (b**2).sum()) + 0.5
            right = (forward[t, y, x + 1] - f if x + 1 < W else np.zeros(2)) ** 2
            below = (forward[t, y + 1, x] - f if y + 1 < H else np.zeros(2)) ** 2
            boundary = right.sum() + below.sum() > 0.01 * (f**2).sum() + 0.002
            if not (occluded or boundary):
                mask[t, y, x] = True
                warped = sample(frames[t + 1] / 255.0, x + f[0], y + f[1])
                total += ((warped - frames[t, y, x] / 255.0) ** 2).sum()
                count += 3
        errors.append(total / count)
    return np.mean(errors), mask


def test_the_warping_error_equals_the_published_one():
    """Both the mask and the error, except for pixels whose flow leaves the frame."""
    clip = np.stack([texture(seed=1)[:48, :48]] * 3)
    for t in range(3):
        clip[t, 12:32, 10 + 4 * t : 30 + 4 * t] = texture(seed=2)[:20, :20]
    forward, backward = flow.forward(clip), flow.backward(clip)
    expected, expected_mask = published_warping_error(
        clip.astype(float), forward.astype(float), backward.astype(float)
    )
    x, y = np.moveaxis(flow.targets(forward), -1, 0)
    inside = (x >= -0.5) & (x <= 47.5) & (y >= -0.5) & (y <= 47.5)
    mask = flow.visible(forward, backward)
    assert (mask != (expected_mask & inside)).mean() < 1e-3 and 0.3 < expected_mask.mean() < 0.99
    actual = flow.warping_error(clip, forward, expected_mask)
    assert actual == pytest.approx(expected, rel=1e-4)


def test_stills_and_clips_without_visible_pixels_are_refused():
    for metric in (temporal.frame_difference, temporal.block_matching, flow.forward):
        with pytest.raises(UserError, match="1 frame has no motion"):
            metric(static(1))
    with pytest.raises(UserError, match="no pixel of any frame"):
        flow.warping_error(static(), flow.forward(static()), np.zeros((3, 64, 64), bool))
