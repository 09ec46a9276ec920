"""FID and KID: closed forms, clean-fid's formula, features in parts."""

import itertools

import numpy as np
import pytest
from scipy import linalg

from ivid2vid_jax.errors import UserError
from ivid2vid_jax.evaluation.distribution_distances import (
    Moments,
    draw_rows,
    frechet_distance,
    kernel_distance,
)


def moments(rows) -> Moments:
    result = Moments.of(rows.shape[1])
    result.add(rows)
    return result


def gaussian(mean, covariance) -> Moments:
    return Moments(np.asarray(mean, float), np.asarray(covariance, float) * 99, 100.0)


def test_identical_sets_have_no_distance():
    """KID's unbiased estimate is below 0: only pairs across the sets include a row with itself."""
    rows = np.random.default_rng(0).normal(size=(50, 8))
    assert frechet_distance(moments(rows), moments(rows)) == pytest.approx(0, abs=1e-9)
    mean, error = kernel_distance(rows, rows)
    assert mean < 0 == error


def test_shifted_gaussians_in_closed_form():
    """Covariances that commute, in any rotation: |m|^2 + sum (sqrt a - sqrt b)^2."""
    rng = np.random.default_rng(0)
    a, b, shift = rng.uniform(0.1, 4, 6), rng.uniform(0.1, 4, 6), rng.normal(size=6)
    rotation = linalg.qr(rng.normal(size=(6, 6)))[0]
    distance = frechet_distance(
        gaussian(np.zeros(6), rotation @ np.diag(a) @ rotation.T),
        gaussian(rotation @ shift, rotation @ np.diag(b) @ rotation.T),
    )
    expected = (shift**2).sum() + ((a**0.5 - b**0.5) ** 2).sum()
    assert distance == pytest.approx(expected, rel=1e-10)


def test_gaussians_of_any_covariance_equal_the_matrix_root():
    rng = np.random.default_rng(1)
    A, B = (factor @ factor.T for factor in rng.normal(size=(2, 5, 5)))
    expected = np.trace(A + B - 2 * linalg.sqrtm(A @ B).real)
    distance = frechet_distance(gaussian(np.zeros(5), A), gaussian(np.zeros(5), B))
    assert distance == pytest.approx(expected, rel=1e-8)


def test_fewer_rows_than_dimensions_are_finite():
    rng = np.random.default_rng(2)
    a, b = moments(rng.normal(size=(5, 40))), moments(rng.normal(size=(7, 40)))
    assert 0 < frechet_distance(a, b) < 200
    single = moments(rng.normal(size=(1, 40)))
    with pytest.raises(
        UserError, match="1 features have no covariance: at least 2 are needed, and more than 40"
    ):
        frechet_distance(single, moments(rng.normal(size=(7, 40))))


def test_parts_and_hosts_change_nothing():
    rng = np.random.default_rng(3)
    rows = 5 + rng.normal(size=(103, 7)) @ rng.normal(size=(7, 7))
    hosts = [Moments.of(7), Moments.of(7)]
    for i, start in enumerate(range(0, 103, 16)):
        hosts[i % 2].add(rows[start : start + 16])
    hosts[0].add(rows[:0])
    hosts[0].merge(hosts[1])
    assert hosts[0].weight == 103
    np.testing.assert_allclose(hosts[0].mean, rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(hosts[0].covariance, np.cov(rows, rowvar=False), rtol=1e-11)
    empty = Moments.of(7)
    empty.merge(Moments.of(7))
    assert empty.weight == 0 and not empty.mean.any()


def test_kernel_distance_is_the_sum_over_pairs():
    a, b = np.random.default_rng(4).normal(size=(2, 6, 3))

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    pairs = list(itertools.permutations(range(6), 2))
    within = sum(kernel(rows[i], rows[j]) for rows in (a, b) for i, j in pairs) / 30
    across = sum(kernel(x, y) for x in a for y in b) / 36
    assert kernel_distance(a, b) == (pytest.approx(within - 2 * across), 0)


@pytest.mark.parametrize("subset_size", [1000, 20])
def test_kernel_distance_is_the_published_estimator(subset_size):
    """The mean over 100 subsets, as in clean-fid, of Gretton et al. 2012 (equation 3).

    Written with a mask for i != j, on the same subsets: all rows, and 20 of 50 and 30.
    """
    rng, subset_rng, values = np.random.default_rng(6), np.random.default_rng(0), []
    a = rng.normal(size=(30 if subset_size > 30 else 50, 8))
    b = rng.normal(0.3, 1, size=(30, 8))
    m = min(len(a), len(b), subset_size)

    def kernel(x, y):
        return (np.einsum("id,jd->ij", x, y) / 8 + 1) ** 3

    for _ in range(100):
        x, y = (rows[subset_rng.choice(len(rows), m, replace=False)] for rows in (a, b))
        within = ((kernel(x, x) + kernel(y, y)) * ~np.eye(m, dtype=bool)).sum() / (m * (m - 1))
        values.append(within - 2 * kernel(x, y).mean())
    expected = np.mean(values)
    distance, _ = kernel_distance(a, b, subset_size=subset_size)
    assert distance == pytest.approx(expected, rel=1e-9) and expected > 0.1


def test_kernel_distance_of_shifted_gaussians_in_closed_form():
    """In one dimension the kernel compares moments.

    The distance is 3 (m1 - n1)^2 + 3 (m2 - n2)^2 + (m3 - n3)^2; the moments of a Gaussian are m,
    m^2 + 1 and m^3 + 3 m.
    """
    rng, m = np.random.default_rng(5), 0.7
    expected = 3 * m**2 + 3 * m**4 + (m**3 + 3 * m) ** 2
    values = [
        kernel_distance(rng.normal(size=(100, 1)), rng.normal(m, 1, size=(100, 1)))[0]
        for _ in range(400)
    ]
    error = np.std(values) / 20
    assert abs(np.mean(values) - expected) < 3 * error < 0.2 * expected


def test_rows_are_drawn_from_all_parts():
    parts = [np.arange(0, 3)[:, None], np.zeros((0, 1)), np.arange(3, 10)[:, None]]
    counts, load = [3, 0, 7], parts.__getitem__
    assert draw_rows(counts, 100, load)[:, 0].tolist() == list(range(10))
    rows = np.concatenate([draw_rows(counts, 4, load, seed)[:, 0] for seed in range(50)])
    assert len(rows) == 200 and set(rows) == set(range(10))


def test_subsets_have_a_standard_error_and_need_two_rows():
    a, b = np.arange(8.0).reshape(4, 2), np.ones((9, 2))
    assert kernel_distance(a, b, subsets=5, subset_size=3)[1] > 0
    with pytest.raises(UserError, match="1 features are too few"):
        kernel_distance(np.zeros((1, 2)), np.zeros((5, 2)))
