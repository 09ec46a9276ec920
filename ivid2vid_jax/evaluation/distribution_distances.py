"""Distances between two sets of features: Fréchet (FID) and kernel (KID).

Features may come in parts, in any order and from several hosts.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from ivid2vid_jax.errors import UserError

SUBSETS, SUBSET = 100, 1000  # KID's number of subsets and rows of each, as in clean-fid


@dataclasses.dataclass
class Moments:
    """Running mean and scatter of feature rows, which are not stored.

    Exact for any partition of the rows (Chan, Golub and LeVeque 1979).

    Attributes:
        mean: [D] float64.
        scatter: sum of the squared deviations from the mean, [D, D] float64.
        weight: number of rows.
    """

    mean: np.ndarray
    scatter: np.ndarray
    weight: float = 0.0

    @classmethod
    def of(cls, width: int) -> "Moments":
        """Of no rows, `width` features wide."""
        return cls(np.zeros(width), np.zeros((width, width)))

    def add(self, rows: np.ndarray) -> None:
        """Adds rows [N, D]."""
        if len(rows):
            mean = np.asarray(rows, np.float64).mean(0)
            self.merge(Moments(mean, (rows - mean).T @ (rows - mean), float(len(rows))))

    def merge(self, other: "Moments") -> None:
        """Adds the rows of another part."""
        total = self.weight + other.weight
        if other.weight:
            shift = other.mean - self.mean
            self.scatter += other.scatter + np.outer(shift, shift) * (
                self.weight * other.weight / total
            )
            self.mean += shift * (other.weight / total)
            self.weight = total

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance, [D, D]."""
        return self.scatter / (self.weight - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + Tr(A + B - 2 (A B)^1/2), the squared Fréchet distance of two Gaussians.

    Dowson and Landau 1982; FID: arXiv 1706.08500. Tr (A B)^1/2 is the sum of the singular values of
    A^1/2 B^1/2, which are real and nonnegative for any rank. Raises UserError for fewer than 2
    rows.
    """
    if min(a.weight, b.weight) < 2:
        raise UserError(
            f"{min(a.weight, b.weight):g} features have no covariance: at least 2 are needed, and "
            f"more than {len(a.mean)} for its full rank"
        )
    root_a, root_b = matrix_sqrt(a.covariance), matrix_sqrt(b.covariance)
    cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    return float(
        np.square(a.mean - b.mean).sum()
        + np.trace(a.covariance)
        + np.trace(b.covariance)
        - 2 * cross
    )


def matrix_sqrt(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def kernel_distance(
    a: np.ndarray, b: np.ndarray, subsets: int = SUBSETS, subset_size: int = SUBSET, seed: int = 0
) -> tuple[float, float]:
    """Kernel Inception distance (KID, arXiv 1801.01401) of two sets of rows [N, D].

    The unbiased squared MMD under the kernel (x.y / D + 1)^3, mean over random subsets of at most
    `subset_size` rows of each set, with clean-fid's defaults. It can be negative.

    Returns:
        (mean, standard error of the mean over subsets). The error is that of drawing subsets only,
        0 if a subset holds all rows: it says nothing about other rows.

    Raises:
        UserError: a set has fewer than 2 rows.
    """
    size, rng = min(len(a), len(b), subset_size), np.random.default_rng(seed)
    if size < 2:
        raise UserError(
            f"{size} features are too few for the kernel distance: at least 2 are needed"
        )
    whole = size == len(a) == len(b)
    values = [
        unbiased_mmd(*(rows[rng.choice(len(rows), size, replace=False)] for rows in (a, b)))
        for _ in range(1 if whole else subsets)
    ]
    return float(np.mean(values)), float(np.std(values) / np.sqrt(len(values)))


def unbiased_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """U-statistic of the squared MMD of two sets of M rows: a row is not paired with itself."""
    a, b, M = np.asarray(a, np.float64), np.asarray(b, np.float64), len(a)
    within = sum(
        (kernel.sum() - np.trace(kernel)) / (M * (M - 1))
        for kernel in (cubic_kernel(a, a), cubic_kernel(b, b))
    )
    return float(within - 2 * cubic_kernel(a, b).mean())


def cubic_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """KID's polynomial kernel of all pairs of rows."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def draw_rows(
    counts: list[int], limit: int, load: Callable[[int], np.ndarray], seed: int = 0
) -> np.ndarray:
    """Draws at most `limit` of all rows without replacement, with memory bounded by the limit.

    Args:
        counts: number of rows of each part.
        limit: rows to draw.
        load: returns the rows of part i.
        seed: of the draw.
    """
    total = sum(counts)
    indices = np.sort(np.random.default_rng(seed).choice(total, min(total, limit), replace=False))
    ends = np.cumsum(counts)
    parts = np.searchsorted(ends, indices, side="right")
    return np.concatenate(
        [load(i)[indices[parts == i] - (ends[i] - counts[i])] for i in np.unique(parts)]
    )
