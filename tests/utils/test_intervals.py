"""Confidence intervals: known answers, and the promised coverage."""

import tracemalloc

import numpy as np
import pytest

from ivid2vid_jax.utils import intervals
from ivid2vid_jax.utils.intervals import bootstrap_interval, ratio_interval, wilson_interval


def mean(values):
    return values.mean(-1)


@pytest.mark.parametrize(
    ("successes", "count", "expected"),
    [(8, 10, (0.4901625, 0.9433178)), (0, 20, (0.0, 0.1611252)), (20, 20, (0.8388748, 1.0))],
)
def test_wilson_known_answers(successes, count, expected):
    """Values of R's prop.test(correct = FALSE)."""
    assert wilson_interval(successes, count) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_wilson_covers_the_truth_in_95_percent_of_cases(share):
    successes = np.random.default_rng(0).binomial(40, share, 4000)
    covered = np.mean(
        [low <= share <= high for low, high in (wilson_interval(int(k), 40) for k in successes)]
    )
    assert 0.92 <= covered <= 0.98


def test_bootstrap_of_a_mean_is_the_normal_interval_and_repeats():
    values = np.random.default_rng(1).normal(3, 2, 400)
    interval = bootstrap_interval(values, mean)
    half = 1.96 * values.std() / 20
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert interval == bootstrap_interval(values, mean)


def test_correlated_values_are_resampled_as_groups():
    """25 values, eight times each: the interval is that of the 25.

    Groups of different sizes: the mean of the values they hold.
    """
    values, groups = np.random.default_rng(3).normal(size=25), [f"clip{i:02d}" for i in range(25)]
    expected = bootstrap_interval(values, mean)
    grouped = bootstrap_interval(np.tile(values, 8), mean, 8 * groups)
    assert grouped == pytest.approx(expected, abs=1e-12)
    assert bootstrap_interval([1.0, 1, 1, 5], mean, ["a", "a", "a", "b"]) == (1, 5)


def test_memory_does_not_grow_with_the_resamples(monkeypatch):
    """Smaller blocks use the same random stream and give the same intervals.

    2000 resamples of 20000 values would take 640 MB at once.
    """
    values = np.random.default_rng(4).random(500)
    clips = np.random.default_rng(5).random((2, 500)) < 0.5

    def both():
        return bootstrap_interval(values, mean), ratio_interval(clips[:1], clips[1:])

    expected = both()
    monkeypatch.setattr(intervals, "MAX_INDICES", 7001)
    assert both() == expected
    tracemalloc.start()
    bootstrap_interval(np.ones(20_000), mean)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_a_ratio_resamples_the_same_clips_for_both():
    """Half of the clips that pass in one also pass in the other.

    Clips that are hard for both must not widen the interval.
    """
    rng = np.random.default_rng(2)
    denominator = np.repeat(rng.random(400) < 0.5, 3).reshape(400, 3).T
    numerator = denominator & (np.arange(400) % 2 == 0)
    low, high = ratio_interval(numerator, denominator)
    assert low < numerator.mean() / denominator.mean() < high and high - low < 0.2
    assert ratio_interval(denominator, denominator) == (1, 1)
    assert ratio_interval(~denominator, denominator & False) == (np.inf, np.inf)
    assert ratio_interval(numerator, denominator) == (low, high)
