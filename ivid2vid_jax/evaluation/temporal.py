"""How much a clip changes from frame to frame: frame differencing and block matching.

Compare a value with that of the source clip: a lower value alone rewards frozen clips.
"""

from collections.abc import Iterator

import numpy as np

from ivid2vid_jax.errors import UserError

BLOCK = 16  # pixels of a block's side
REACH = 7  # search range in pixels, each way
OUTSIDE = 4096  # padding beyond the frame, above any grey level: no block matches there


def frame_difference(clip: np.ndarray) -> float:
    """Mean absolute difference of consecutive frames over pixels and channels, 0 to 255.

    VBench's temporal flickering (arXiv 2311.17982) is (255 - this) / 255. The clip is [T, H, W, 3]
    uint8; raises UserError for fewer than 2 frames.
    """
    return float(np.abs(np.diff(moving(clip).astype(np.int16), axis=0)).mean())


def block_matching(clip: np.ndarray) -> tuple[float, float]:
    """(residual, motion) of exhaustive block matching between the luma of consecutive frames.

    The residual is the mean absolute difference at the best match, 0 to 255; the motion is the mean
    length of the vectors in pixels. The clip is [T, H, W, 3] uint8; raises UserError for fewer than
    2 frames.
    """
    luma = grey(moving(clip))
    vectors, residuals = block_vectors(luma[:-1], luma[1:])
    return float(residuals.mean()), float(np.linalg.norm(vectors, axis=-1).mean())


def block_vectors(
    before: np.ndarray, after: np.ndarray, block: int = BLOCK, reach: int = REACH
) -> tuple[np.ndarray, np.ndarray]:
    """Finds each block of `before` in `after`, both [N, H, W] uint8.

    Blocks tile the frame from its upper left corner; a last row or column that fills no block is
    left out, and blocks are smaller than `block` only if the frame is. Matches are within the
    frame; of equal ones the shortest vector is taken.

    Returns:
        The vectors [N, rows, columns, 2], (dx, dy) in pixels, and the mean absolute differences
        [N, rows, columns].
    """
    (N, H, W), side = before.shape, min(block, *before.shape[1:])
    rows, columns = H // side, W // side
    a = before[:, : rows * side, : columns * side].astype(np.int16)
    padding = ((0, 0), (reach, reach), (reach, reach))
    b = np.pad(after.astype(np.int16), padding, constant_values=OUTSIDE)
    best = np.full((N, rows, columns), np.iinfo(np.int32).max)
    vectors = np.zeros((N, rows, columns, 2))
    for dx, dy in displacements(reach):
        shifted = b[:, reach + dy : reach + dy + a.shape[1], reach + dx : reach + dx + a.shape[2]]
        cost = np.abs(a - shifted).reshape(N, rows, side, columns, side).sum((2, 4), dtype=np.int32)
        better = cost < best
        best[better], vectors[better] = cost[better], (dx, dy)
    return vectors, best / side**2


def displacements(reach: int) -> Iterator[tuple[int, int]]:
    """Yields (dx, dy) of the search, the shortest first."""
    steps = range(-reach, reach + 1)
    yield from sorted(
        ((dx, dy) for dy in steps for dx in steps), key=lambda d: d[0] ** 2 + d[1] ** 2
    )


def grey(clip: np.ndarray) -> np.ndarray:
    """Luma (ITU-R BT.601) of [..., 3] uint8, rounded to uint8."""
    return (clip @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)


def moving(clip: np.ndarray) -> np.ndarray:
    """Returns the clip. Raises UserError if it has fewer than 2 frames."""
    if len(clip) < 2:
        raise UserError(f"a clip of {len(clip)} frame has no motion: 2 are needed")
    return clip
