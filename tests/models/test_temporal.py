"""Frame differencing, block matching, optical flow and the warping error on clips whose motion is known."""

import cv2
import numpy as np
import pytest

from ivid2vid_jax.evaluation import flow, temporal
from ivid2vid_jax.utils.errors import UserError
from tests.support.clips import moving, static, texture

MOVES = [(1, 0), (2, 1), (3, -2), (-5, 4)]


def test_a_static_clip_changes_nothing():
    clip = static()
    there = flow.forward(clip)
    assert temporal.frame_difference(clip) == 0 and temporal.block_matching(clip) == (0, 0)
    assert (
        flow.magnitude(there) < 0.01
        and flow.warping_error(clip, there, flow.visible(there, flow.backward(clip))) < 1e-6
    )  # Farneback's own error


@pytest.mark.parametrize("amplitude", [1, 7])
def test_flicker_of_known_amplitude(amplitude):
    """Every other frame brighter: that much between any two, and block matching cannot take it away."""
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
    assert (
        vectors.shape == (2, 6, 6, 2)
        and np.all(vectors[:, 1:-1, 1:-1] == move)
        and not residuals[:, 1:-1, 1:-1].any()
    )  # those at the edge may leave the frame


def test_block_matching_is_the_exhaustive_search():
    """Against one written block by block, of two pictures that have nothing in common."""
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
            assert residuals[0, row, column] == pytest.approx(min(costs.values())) and costs[
                tuple(vectors[0, row, column].astype(int))
            ] == min(costs.values())


def test_block_matching_beyond_its_reach_leaves_a_residual():
    assert (
        temporal.block_matching(moving(7, 7, size=96))[0]
        < temporal.block_matching(moving(9, 0, size=96))[0]
    )


def test_small_frames_are_one_block():
    vectors, _ = temporal.block_vectors(*np.zeros((2, 1, 10, 12), np.uint8))
    assert vectors.shape == (1, 1, 1, 2)


@pytest.mark.parametrize("move", MOVES)
def test_flow_finds_the_exact_vector(move):
    """Every vector away from the edge, where what is seen leaves the frame, within 0.02 pixels."""
    inner = (slice(None), slice(24, -24), slice(24, -24))
    there, back = (
        flow.forward(moving(*move, size=96))[inner],
        flow.backward(moving(*move, size=96))[inner],
    )
    np.testing.assert_allclose(there, np.broadcast_to(move, there.shape), atol=0.02)
    np.testing.assert_allclose(back, np.broadcast_to(np.negative(move), there.shape), atol=0.02)
    assert (
        flow.magnitude(there) == pytest.approx(np.hypot(*move), abs=0.01)
        and flow.end_point_error(there, -back) < 0.02
    )


def test_flow_is_opencvs():
    clip = moving(2, 1)
    wanted = cv2.calcOpticalFlowFarneback(
        *(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in clip[:2]),
        None,
        0.5,
        4,
        15,
        5,
        7,
        1.5,
        0,
    )
    np.testing.assert_allclose(
        flow.forward(clip)[0], wanted, atol=0.05
    )  # luma is rounded otherwise in a few pixels
    assert (
        np.abs(temporal.grey(clip[0]).astype(int) - cv2.cvtColor(clip[0], cv2.COLOR_RGB2GRAY)).max()
        <= 1
    )


def test_warping_follows_the_flow():
    clip = moving(3, -2).astype(np.float32)
    exact = np.broadcast_to(np.array([3, -2], np.float32), (3, 64, 64, 2))
    np.testing.assert_array_equal(flow.warp(clip[1:], exact)[:, 2:, :-3], clip[:-1, 2:, :-3])


def test_a_clip_that_moves_as_its_source_has_no_warping_error():
    """Another picture moved alike; one that stands still; one that flickers by 25.5 grey levels, 0.1: 0.01 of squared error."""
    source, alike = moving(3, -2, size=96), moving(3, -2, size=96, seed=9)
    there = flow.forward(source)
    seen = flow.visible(there, flow.backward(source))
    assert (
        seen[:, 10:-10, 10:-10].mean() > 0.95 and not seen[:, :, -2:].any()
    )  # those columns leave the frame
    own, frozen = (
        flow.warping_error(clip, there, seen) for clip in (alike, static(size=96, seed=9))
    )
    assert own < 2e-4 and frozen > 20 * own
    flicker = np.full_like(source, 100)
    flicker[1::2] = 151
    assert flow.warping_error(flicker, there, seen) == pytest.approx((51 / 255) ** 2, rel=1e-5)


def test_occluded_pixels_do_not_count():
    """A square passes over a still background: what it covers and uncovers is masked, so the error stays that of the rest."""
    back, front = texture(seed=1)[:96, :96], texture(seed=2)
    clip = np.stack([back] * 3)
    for t in range(3):
        clip[t, 32:64, 20 + 5 * t : 52 + 5 * t] = front[:32, :32]
    there = flow.forward(clip)
    seen = flow.visible(there, flow.backward(clip))
    assert (
        seen[0, 32:64, 52:57].mean() < 0.2
        and seen[0, 44:52, 30:44].all()
        and seen[0, :20].mean() > 0.95
    )  # covered next, on the square, far away
    assert flow.warping_error(clip, there, seen) < 0.5 * flow.warping_error(
        clip, there, np.ones_like(seen)
    )


def published_warping_error(frames, there, back):
    """Lai et al.'s compute_flow_occlusion.py and evaluate_WarpError.py pixel by pixel, with OpenCV's flows in the place of FlowNet2's."""
    T, H, W = len(frames), *frames.shape[1:3]

    def at(image, x, y):
        """Bilinear; beyond the frame its edge (Resample2d)."""
        x, y = min(max(x, 0), W - 1), min(max(y, 0), H - 1)
        (x0, y0), u, v = (int(x), int(y)), x - int(x), y - int(y)
        x1, y1 = min(x0 + 1, W - 1), min(y0 + 1, H - 1)
        return (1 - v) * ((1 - u) * image[y0, x0] + u * image[y0, x1]) + v * (
            (1 - u) * image[y1, x0] + u * image[y1, x1]
        )

    errors, seen = [], np.zeros((T - 1, H, W), bool)
    for t in range(T - 1):
        total = count = 0
        for y, x in np.ndindex(H, W):
            f = there[t, y, x]
            b = at(back[t], x + f[0], y + f[1])
            occluded = ((f + b) ** 2).sum() > 0.01 * ((f**2).sum() + (b**2).sum()) + 0.5
            right = (there[t, y, x + 1] - f if x + 1 < W else np.zeros(2)) ** 2
            below = (there[t, y + 1, x] - f if y + 1 < H else np.zeros(2)) ** 2
            boundary = right.sum() + below.sum() > 0.01 * (f**2).sum() + 0.002
            if not (occluded or boundary):
                seen[t, y, x] = True
                total += (
                    (at(frames[t + 1] / 255.0, x + f[0], y + f[1]) - frames[t, y, x] / 255.0) ** 2
                ).sum()
                count += 3
        errors.append(total / count)
    return np.mean(errors), seen


def test_the_warping_error_is_the_published_one():
    """A square that passes over a background: the same pixels are seen and the same error is told, but for those whose flow leaves the frame."""
    clip = np.stack([texture(seed=1)[:48, :48]] * 3)
    for t in range(3):
        clip[t, 12:32, 10 + 4 * t : 30 + 4 * t] = texture(seed=2)[:20, :20]
    there, back = flow.forward(clip), flow.backward(clip)
    wanted, seen = published_warping_error(
        clip.astype(float), there.astype(float), back.astype(float)
    )
    ours = flow.visible(there, back)
    x, y = np.moveaxis(flow.targets(there), -1, 0)
    inside = (x >= -0.5) & (x <= 47.5) & (y >= -0.5) & (y <= 47.5)
    assert (ours != (seen & inside)).mean() < 1e-3 and 0.3 < seen.mean() < 0.99
    assert flow.warping_error(clip, there, seen) == pytest.approx(wanted, rel=1e-4)


def test_stills_and_cuts_are_refused():
    for measure in (temporal.frame_difference, temporal.block_matching, flow.forward):
        with pytest.raises(UserError, match="1 frame has no motion"):
            measure(static(1))
    with pytest.raises(UserError, match="no pixel of any frame"):
        flow.warping_error(static(), flow.forward(static()), np.zeros((3, 64, 64), bool))
