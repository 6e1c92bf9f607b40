"""Rank correlations, fronts and contrasts over models, against scipy and by hand."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from pathorob_jax.metrics import over_models as om


def spearman(x, y):
    return stats.spearmanr(x, y).statistic


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5]),
        ([1, 2, 2, 3, 3, 3], [6, 5, 5, 3, 2, 1]),
        ([0.1, 0.5, 0.2, 0.9, 0.4, 0.3, 0.8], [3, 1, 4, 1, 5, 9, 2]),
    ],
    ids=["plain", "ties, falling", "ties in one"],
)
def test_exact_p_equals_that_of_scipy(x, y):
    x, y = np.array(x, float), np.array(y, float)
    got = om.rank_correlation(x, y, seed=0, draws=0)
    theirs = stats.permutation_test(
        (x,), lambda v: spearman(v, y), permutation_type="pairings", n_resamples=np.inf
    )
    assert got.n == len(x)
    assert_allclose(got.rho, spearman(x, y), rtol=1e-12)
    assert_allclose(got.p_value, theirs.pvalue, rtol=1e-12)
    assert_allclose(got.p_value_t, stats.spearmanr(x, y).pvalue, rtol=1e-9)
    assert got.p_rule == "exact"
    assert got.ci95 is None


def test_drawn_p_is_near_the_exact_one():
    """Nine models: 362,880 permutations are counted here and drawn there."""
    x = np.arange(9.0)
    y = np.array([2, 1, 5, 0, 3, 8, 4, 7, 6.0])
    got = om.rank_correlation(x, y, seed=0, draws=500)
    ranks = np.array(list(itertools.permutations(range(9))), np.int8).astype(float)
    sums = ranks @ y
    exact = 2 * (sums >= x @ y - 1e-9).mean()
    error = np.sqrt(exact / om.N_PERMUTATIONS)
    assert got.p_rule == "drawn"
    assert abs(got.p_value - exact) < 5 * error
    assert got.p_value != exact
    low, high = got.ci95
    assert -1 <= low < got.rho < high <= 1
    assert got == om.rank_correlation(x, y, seed=0, draws=500)


@pytest.mark.slow
def test_interval_is_over_draws_of_models():
    rng = np.random.default_rng(5)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    got = om.rank_correlation(x, y, seed=3, draws=4000)
    drawn = []
    for _ in range(4000):
        i = rng.integers(30, size=30)
        drawn.append(spearman(x[i], y[i]))
    half = 1.959964 * np.std(drawn, ddof=1)
    assert_allclose(got.ci95[0], got.rho - half, atol=0.02)
    assert_allclose(got.ci95[1], min(got.rho + half, 1), atol=0.02)


def test_models_without_a_number_are_left_out():
    x = np.array([1, 2, 3, 4, 5, np.nan, 7])
    y = np.array([1, 2, 4, 3, 5, 6, np.nan])
    got = om.rank_correlation(x, y, seed=0, draws=200)
    assert got.n == 5
    assert_allclose(got.rho, 0.9)
    four = om.rank_correlation(x[:4], y[:4], seed=0, draws=200)
    assert (four.n, four.p_rule, four.ci95) == (4, "", None)
    assert np.isnan([four.rho, four.p_value, four.p_value_t]).all()
    same = om.rank_correlation(np.ones(6), np.arange(6.0), seed=0, draws=200)
    assert np.isnan([same.rho, same.p_value]).all()


def test_a_planted_front():
    accuracy = np.array([0.9, 0.8, 0.7, 0.8, 0.6, np.nan, 0.9])
    robustness = np.array([0.5, 0.7, 0.9, 0.6, 0.6, 0.99, 0.5])
    on_front, beaten_by = om.find_front(accuracy, robustness)
    assert on_front.tolist() == [True, True, True, False, False, False, True]
    assert beaten_by == [[], [], [], [1], [1, 2, 3], [], []]


def test_share_on_the_front_follows_the_errors():
    x = np.array([1.0, 0.9, 0.0])
    y = np.array([1.0, 0.9, 0.0])
    sure = om.share_on_front(x, y, (np.zeros(3), np.zeros(3)), seed=0, draws=50)
    assert sure.tolist() == [1, 0, 0]
    errors = np.array([0.1, 0.1, 0.01])
    unsure = om.share_on_front(x, y, (errors, errors), seed=0, draws=2000)
    # The second is beaten if it is below the first in both.
    below = stats.norm.cdf(0.1 / np.hypot(0.1, 0.1))
    assert_allclose(unsure[1], 1 - below**2, atol=0.04)
    assert unsure[2] == 0
    unknown = om.share_on_front(x, y, (errors, errors * np.nan), seed=0, draws=50)
    assert np.isnan(unknown).all()


def test_two_kinds_at_equal_accuracy():
    rng = np.random.default_rng(0)
    accuracy = rng.uniform(0.7, 0.9, 12)
    is_a = np.arange(12) < 4
    accuracy[is_a] -= 0.1
    robust = 2 * accuracy + 0.3 * is_a + rng.normal(0, 0.01, 12)
    got = om.compare_at_equal(accuracy, robust, is_a, ~is_a, seed=0, draws=1000)
    assert (got.n_a, got.n_b, got.p_rule) == (4, 8, "drawn")
    design = np.stack([np.ones(12), accuracy, is_a], 1)
    expected = np.linalg.lstsq(design, robust, rcond=None)[0]
    assert_allclose([got.slope, got.difference], expected[1:], rtol=1e-9)
    assert_allclose(got.difference, 0.3, atol=0.02)
    assert got.p_value < 0.01
    assert got.ci95[0] < got.difference < got.ci95[1]
    few = om.compare_at_equal(accuracy, robust, np.arange(12) == 0, ~is_a, seed=0, draws=0)
    assert (few.n_a, few.n_b, few.p_rule) == (1, 8, "")
    assert np.isnan([few.difference, few.p_value]).all()


def test_p_of_two_kinds_permutes_what_accuracy_leaves():
    """Seven models: all 5,040 permutations, each fitted again."""
    rng = np.random.default_rng(1)
    x, y, is_a = rng.normal(size=7), rng.normal(size=7), np.arange(7) % 3 == 0
    got = om.compare_at_equal(x, y, is_a, ~is_a, seed=0, draws=0)
    small, full = np.stack([np.ones(7), x], 1), np.stack([np.ones(7), x, is_a], 1)
    fitted = small @ np.linalg.lstsq(small, y, rcond=None)[0]
    permuted = np.array([fitted + (y - fitted)[list(p)] for p in itertools.permutations(range(7))])
    found = np.linalg.lstsq(full, permuted.T, rcond=None)[0][2]
    tails = (found >= got.difference - 1e-9).mean(), (found <= got.difference + 1e-9).mean()
    assert got.p_rule == "exact"
    assert_allclose(got.p_value, min(1, 2 * min(tails)), rtol=1e-12)


@pytest.mark.slow
def test_slope():
    x = np.array([1.0, 2, 3, np.nan])
    assert_allclose(om.find_slope(x, np.array([2.0, 4, 6, 1])), 2)
    assert np.isnan(om.find_slope(x * np.nan, x))
