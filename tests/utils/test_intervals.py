"""Confidence intervals: known answers, and the coverage that they promise."""

import tracemalloc

import numpy as np
import pytest

from ivid2vid_jax.utils import intervals
from ivid2vid_jax.utils.intervals import bootstrap_interval, ratio_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "count", "wanted"),
    [(8, 10, (0.4901625, 0.9433178)), (0, 20, (0.0, 0.1611252)), (20, 20, (0.8388748, 1.0))],
)
def test_wilson_known_answers(successes, count, wanted):
    """Values of R's prop.test(correct = FALSE)."""
    assert wilson_interval(successes, count) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_wilson_covers_the_truth_as_often_as_it_says(share):
    drawn = np.random.default_rng(0).binomial(40, share, 4000)
    covered = np.mean(
        [low <= share <= high for low, high in (wilson_interval(int(k), 40) for k in drawn)]
    )
    assert 0.92 <= covered <= 0.98


def test_bootstrap_of_a_mean_is_the_normal_interval_and_repeats():
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = bootstrap_interval(values, lambda drawn: drawn.mean(-1))
    half = 1.96 * values.std() / 20
    assert found == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert found == bootstrap_interval(values, lambda drawn: drawn.mean(-1))


def test_values_that_hang_together_are_drawn_together():
    """Each of 25 values eight times over: the interval is that of the 25; and of groups of unlike size the mean of what they hold."""
    values, groups = np.random.default_rng(3).normal(size=25), [f"clip{i:02d}" for i in range(25)]
    alone = bootstrap_interval(values, lambda drawn: drawn.mean(-1))
    assert bootstrap_interval(
        np.tile(values, 8), lambda drawn: drawn.mean(-1), 8 * groups
    ) == pytest.approx(alone, abs=1e-12)
    low, high = bootstrap_interval(
        [1.0, 1, 1, 5], lambda drawn: drawn.mean(-1), ["a", "a", "a", "b"]
    )
    assert (low, high) == (1, 5)


def test_memory_does_not_grow_with_the_draws(monkeypatch):
    """Parts of the same stream: the same intervals; 2000 draws of 20000 values would hold 640 MB at once."""
    values, clips = (
        np.random.default_rng(4).random(500),
        np.random.default_rng(5).random((2, 500)) < 0.5,
    )
    whole = (
        bootstrap_interval(values, lambda drawn: drawn.mean(-1)),
        ratio_interval(clips[:1], clips[1:]),
    )
    monkeypatch.setattr(intervals, "HELD", 7001)
    assert (
        bootstrap_interval(values, lambda drawn: drawn.mean(-1)),
        ratio_interval(clips[:1], clips[1:]),
    ) == whole
    tracemalloc.start()
    bootstrap_interval(np.ones(20_000), lambda drawn: drawn.mean(-1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_a_ratio_knows_that_both_saw_the_same_clips():
    """Half of what passes for one passes for the other: clips that are hard for both do not count twice."""
    rng = np.random.default_rng(2)
    under = np.repeat(rng.random(400) < 0.5, 3).reshape(400, 3).T
    over = under & (np.arange(400) % 2 == 0)
    low, high = ratio_interval(over, under)
    assert low < over.mean() / under.mean() < high and high - low < 0.2
    assert (
        ratio_interval(under, under) == (1, 1)
        and ratio_interval(~under, under & False) == (np.inf, np.inf)
        and ratio_interval(over, under) == (low, high)
    )
