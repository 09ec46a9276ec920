"""How much a clip changes from frame to frame: frame differencing and block matching.

Lower alone rewards frozen clips: a value means something only beside the source clip's own.
"""

from collections.abc import Iterator

import numpy as np

from ivid2vid_jax.utils.errors import UserError

BLOCK = 16  # pixels of a block's side
REACH = 7  # pixels that the search goes each way
OUTSIDE = 4096  # grey levels beyond the frame: no block is matched there


def frame_difference(clip: np.ndarray) -> float:
    """Mean absolute difference of consecutive frames over pixels and channels, grey levels 0 to 255; clip: [T, H, W, 3] uint8.

    VBench's temporal flickering (arXiv 2311.17982) is (255 - this) / 255. Raises UserError for fewer than 2 frames.
    """
    return float(np.abs(np.diff(moving(clip).astype(np.int16), axis=0)).mean())


def block_matching(clip: np.ndarray) -> tuple[float, float]:
    """(residual, motion) of exhaustive search between consecutive frames' luma: what the best match leaves, mean absolute grey levels 0 to 255,
    and the mean length of its vectors in pixels; clip: [T, H, W, 3] uint8.

    Raises UserError for fewer than 2 frames.
    """
    luma = grey(moving(clip))
    vectors, residuals = block_vectors(luma[:-1], luma[1:])
    return float(residuals.mean()), float(np.linalg.norm(vectors, axis=-1).mean())


def block_vectors(
    before: np.ndarray, after: np.ndarray, block: int = BLOCK, reach: int = REACH
) -> tuple[np.ndarray, np.ndarray]:
    """Where each block of `before` lies in `after` ([N, H, W] uint8 both): vectors [N, rows, columns, 2], (dx, dy) in pixels, and the mean absolute
    difference there, [N, rows, columns].

    Blocks stand side by side from the upper left corner, smaller than `block` only where the frame is; rows and columns that fill none are left out.
    Matches lie within the frame; of equal ones the shortest vector is taken.
    """
    (N, H, W), side = before.shape, min(block, *before.shape[1:])
    rows, columns = H // side, W // side
    a = before[:, : rows * side, : columns * side].astype(np.int16)
    b = np.pad(
        after.astype(np.int16), ((0, 0), (reach, reach), (reach, reach)), constant_values=OUTSIDE
    )
    best, vectors = (
        np.full((N, rows, columns), np.iinfo(np.int32).max),
        np.zeros((N, rows, columns, 2)),
    )
    for dx, dy in displacements(reach):
        shifted = b[:, reach + dy : reach + dy + a.shape[1], reach + dx : reach + dx + a.shape[2]]
        cost = np.abs(a - shifted).reshape(N, rows, side, columns, side).sum((2, 4), dtype=np.int32)
        better = cost < best
        best[better], vectors[better] = cost[better], (dx, dy)
    return vectors, best / side**2


def displacements(reach: int) -> Iterator[tuple[int, int]]:
    """(dx, dy) of the search, the shortest first."""
    steps = range(-reach, reach + 1)
    yield from sorted(
        ((dx, dy) for dy in steps for dx in steps), key=lambda d: d[0] ** 2 + d[1] ** 2
    )


def grey(clip: np.ndarray) -> np.ndarray:
    """Luma (ITU-R BT.601) of [..., 3] uint8, rounded to uint8."""
    return (clip @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)


def moving(clip: np.ndarray) -> np.ndarray:
    """The clip; UserError where it is a still."""
    if len(clip) < 2:
        raise UserError(f"a clip of {len(clip)} frame has no motion: 2 are needed")
    return clip
