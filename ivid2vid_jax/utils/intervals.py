"""95% confidence intervals."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Z = 1.959963984540054  # the 97.5% quantile of the standard normal distribution
RESAMPLES = 2000
MAX_INDICES = 1_000_000  # random indices in memory at a time


def wilson_interval(successes: float, count: float) -> tuple[float, float]:
    """Wilson score interval (1927) of a proportion, within [0, 1].

    Written by hand because `scipy.stats.binomtest` accepts whole counts only: for clustered
    answers (several per clip) pass the mean of the clips' shares times the number of clips, and
    the number of clips.

    Args:
        successes: may be fractional.
        count: at least 1; may be fractional.
    """
    share, z2 = successes / count, Z * Z / count
    middle, half = share + z2 / 2, Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count))
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[str] | None = None,
) -> tuple[float, float]:
    """Bootstrap interval (percentile method) of a statistic; deterministic.

    Args:
        values: [N], at least one.
        statistic: reduces the last axis; must depend on the mean of the values only.
        groups: the group of each value. Whole groups are resampled, for values that are
            correlated within a group. None: the values are independent.
    """
    _, rows = np.unique(
        np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True
    )
    sums, counts = np.bincount(rows, np.asarray(values, np.float64)), np.bincount(rows)
    means = [
        sums[indices].sum(1) / counts[indices].sum(1)
        for indices in resample_indices(np.random.default_rng(0), len(sums))
    ]
    low, high = np.quantile(statistic(np.concatenate(means)[:, None]), [0.025, 0.975])
    return float(low), float(high)


def resample_indices(rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Yields blocks [n, count] of indices below `count`, RESAMPLES rows in all.

    The blocks keep memory bounded: it does not grow with RESAMPLES x count.
    """
    step = max(1, MAX_INDICES // count)
    for start in range(0, RESAMPLES, step):
        yield rng.integers(count, size=(min(step, RESAMPLES - start), count))


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
    """Bootstrap interval (percentile method) of mean(numerator) / mean(denominator).

    Each resample draws seeds and clips, the same for both arrays. With only a few seeds the
    interval underestimates the variation between seeds, so it is too narrow.

    Args:
        numerator: [seeds, clips].
        denominator: [seeds, clips] of the same seeds and clips. A resample whose mean is 0 counts
            as a ratio of infinity.
    """
    rng, (S, N) = np.random.default_rng(0), numerator.shape
    seeds = rng.integers(S, size=(RESAMPLES, S, 1))
    blocks, start = [], 0
    for clips in resample_indices(rng, N):
        rows, start = seeds[start : start + len(clips)], start + len(clips)
        blocks.append(
            [
                np.asarray(values, np.float64)[rows, clips[:, None]].mean((1, 2))
                for values in (numerator, denominator)
            ]
        )
    top, bottom = np.concatenate(blocks, axis=1)
    ratios = np.divide(top, bottom, out=np.full(RESAMPLES, np.inf), where=bottom > 0)
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    return float(low), float(high)
