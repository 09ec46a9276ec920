"""95% confidence intervals."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Z = 1.959963984540054  # of the normal distribution's central 95%
RESAMPLES = 2000
HELD = 1_000_000  # drawn numbers in memory at a time


def wilson_interval(successes: float, count: float) -> tuple[float, float]:
    """The interval of a share (Wilson 1927), within [0, 1]; count at least 1. Of answers that hang together, as several of one clip do, give means over these
    and the number of clips: both may then be no whole numbers.
    """
    share, z2 = successes / count, Z * Z / count
    middle, half = share + z2 / 2, Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count))
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[str] | None = None,
) -> tuple[float, float]:
    """The interval of a statistic by resampling (percentile method), the same every time: of independent values, or of whole groups of values, where
    those of one group hang together.

    statistic: of values along the last axis, one that depends on their mean alone. groups: of each value; None: each is its own.
    """
    _, rows = np.unique(
        np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True
    )
    sums, counts = np.bincount(rows, np.asarray(values, np.float64)), np.bincount(rows)
    means = [
        sums[drawn].sum(1) / counts[drawn].sum(1)
        for drawn in draws(np.random.default_rng(0), len(sums))
    ]
    low, high = np.quantile(statistic(np.concatenate(means)[:, None]), [0.025, 0.975])
    return float(low), float(high)


def draws(rng: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """RESAMPLES rows of `count` numbers below it, a part at a time: memory does not grow with their product."""
    step = max(1, HELD // count)
    for begin in range(0, RESAMPLES, step):
        yield rng.integers(count, size=(min(step, RESAMPLES - begin), count))


def ratio_interval(over: np.ndarray, under: np.ndarray) -> tuple[float, float]:
    """The interval of mean(over) / mean(under), both [seeds, clips] of the same seeds and clips, by resampling seeds and clips alike for both
    (percentile method); inf where nothing is left below. A few seeds say little of how much seeds differ: it is then too narrow.
    """
    rng, (S, N) = np.random.default_rng(0), over.shape
    seeds, both, begin = rng.integers(S, size=(RESAMPLES, S, 1)), [], 0
    for clips in draws(rng, N):
        part, begin = seeds[begin : begin + len(clips)], begin + len(clips)
        both.append(
            [
                np.asarray(each, np.float64)[part, clips[:, None]].mean((1, 2))
                for each in (over, under)
            ]
        )
    top, bottom = np.concatenate(both, axis=1)
    shares = np.divide(top, bottom, out=np.full(RESAMPLES, np.inf), where=bottom > 0)
    low, high = np.quantile(shares, [0.025, 0.975], method="nearest")
    return float(low), float(high)
