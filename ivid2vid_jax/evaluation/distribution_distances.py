"""Distances between two sets of features: Fréchet (FID) and kernel (KID). Rows come in parts, in any order and on any number of hosts."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ivid2vid_jax.utils.errors import UserError

SUBSETS, SUBSET = 100, 1000  # KID's, as clean-fid takes them


@dataclasses.dataclass
class Moments:
    """Weight, mean [D] and scatter [D, D] (sum of squared deviations) of rows that are not kept, float64: exact however the rows are parted
    (Chan, Golub and LeVeque 1979).
    """

    mean: np.ndarray
    scatter: np.ndarray
    weight: float = 0.0

    @classmethod
    def of(cls, width: int) -> "Moments":
        """Of no rows."""
        return cls(np.zeros(width), np.zeros((width, width)))

    def add(self, rows: np.ndarray) -> None:
        """rows: [N, D]."""
        if len(rows):
            mean = np.asarray(rows, np.float64).mean(0)
            self.merge(Moments(mean, (rows - mean).T @ (rows - mean), float(len(rows))))

    def merge(self, other: "Moments") -> None:
        """Takes in the rows of another host."""
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
        """Unbiased, [D, D]."""
        return self.scatter / (self.weight - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + Tr(A + B - 2 (A B)^1/2), the squared Fréchet distance of two Gaussians (Dowson and Landau 1982; FID: arXiv 1706.08500).

    Tr (A B)^1/2 is the sum of the singular values of A^1/2 B^1/2, which are real and never negative, whatever the rank.
    Raises UserError for fewer than 2 rows.
    """
    if min(a.weight, b.weight) < 2:
        raise UserError(
            f"{min(a.weight, b.weight):g} features have no covariance: at least 2 are needed, and more than {len(a.mean)} for its full rank"
        )
    roots = [root(each.covariance) for each in (a, b)]
    cross = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    return float(
        np.square(a.mean - b.mean).sum()
        + np.trace(a.covariance)
        + np.trace(b.covariance)
        - 2 * cross
    )


def root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def kernel_distance(
    a: np.ndarray, b: np.ndarray, subsets: int = SUBSETS, most: int = SUBSET, seed: int = 0
) -> tuple[float, float]:
    """(mean, its standard error over subsets) of the unbiased squared MMD under the kernel (x.y / D + 1)^3 over random subsets of at most `most` rows of each (KID:
    arXiv 1801.01401; clean-fid takes the same numbers of subsets and rows). a, b: [N, D], at least 2 rows.

    The standard error is that of drawing subsets alone, 0 where one holds all rows: it says nothing of other rows. The mean can be negative: it is unbiased. Raises UserError for fewer than 2.
    """
    size, rng = min(len(a), len(b), most), np.random.default_rng(seed)
    if size < 2:
        raise UserError(
            f"{size} features are too few for the kernel distance: at least 2 are needed"
        )
    whole = size == len(a) == len(b)
    found = [
        unbiased(*(part[rng.choice(len(part), size, replace=False)] for part in (a, b)))
        for _ in range(1 if whole else subsets)
    ]
    return float(np.mean(found)), float(np.std(found) / np.sqrt(len(found)))


def unbiased(a: np.ndarray, b: np.ndarray) -> float:
    """The U-statistic of the squared MMD of two sets of M rows; pairs of a row with itself do not count."""
    a, b, M = np.asarray(a, np.float64), np.asarray(b, np.float64), len(a)
    within = sum(
        (kernel.sum() - np.trace(kernel)) / (M * (M - 1)) for kernel in (cubic(a, a), cubic(b, b))
    )
    return float(within - 2 * cubic(a, b).mean())


def cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def draw_rows(
    counts: list[int], most: int, load: Callable[[int], np.ndarray], seed: int = 0
) -> np.ndarray:
    """At most `most` of all rows, drawn without replacement, so that memory does not grow with their number.

    counts: rows of each part; load(i): the rows of part i.
    """
    total = sum(counts)
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(total, most), replace=False))
    ends = np.cumsum(counts)
    parts = np.searchsorted(ends, chosen, side="right")
    return np.concatenate(
        [load(i)[chosen[parts == i] - (ends[i] - counts[i])] for i in np.unique(parts)]
    )
