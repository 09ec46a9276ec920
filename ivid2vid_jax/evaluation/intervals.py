"""95% confidence intervals."""

import math
from collections.abc import Callable, Sequence

import numpy as np

Z = 1.959963984540054  # of the normal distribution's central 95%
RESAMPLES = 2000


def wilson(successes: int, count: int) -> tuple[float, float]:
    """The interval of a share (Wilson 1927), within [0, 1]; count at least 1."""
    share, z2 = successes / count, Z * Z / count
    middle, half = share + z2 / 2, Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count))
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def bootstrap(values: Sequence[float], statistic: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """The interval of a statistic of independent values by resampling them (percentile method), the same every time.

    statistic: [resamples, n] -> [resamples].
    """
    values = np.asarray(values, np.float64)
    drawn = values[np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))]
    low, high = np.quantile(statistic(drawn), [0.025, 0.975])
    return float(low), float(high)


def ratio(over: np.ndarray, under: np.ndarray) -> tuple[float, float]:
    """The interval of mean(over) / mean(under), both [seeds, clips] of the same seeds and clips, by resampling seeds and clips alike for both
    (percentile method); inf where nothing is left below. A few seeds say little of how much seeds differ: it is then too narrow."""
    rng, (S, N) = np.random.default_rng(0), over.shape
    seeds, clips = rng.integers(S, size=(RESAMPLES, S, 1)), rng.integers(N, size=(RESAMPLES, 1, N))
    top, bottom = (np.asarray(each, np.float64)[seeds, clips].mean((1, 2)) for each in (over, under))
    shares = np.divide(top, bottom, out=np.full(RESAMPLES, np.inf), where=bottom > 0)
    low, high = np.quantile(shares, [0.025, 0.975], method="nearest")
    return float(low), float(high)
