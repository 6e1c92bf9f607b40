"""Draws from a jackknife, and intervals from draws: plain NumPy, SciPy and croma."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy import stats

from pathorob_jax.core import checks
from pathorob_jax.kernels.bootstrap import draws as bootstrap
from pathorob_jax.kernels.bootstrap import intervals

# Seed 0, 8 groups: np.random.default_rng(0).integers(8, size=(3, 8)), counted.
PINNED = [[3, 0, 2, 0, 1, 1, 1, 0], [0, 1, 0, 0, 2, 2, 1, 2], [1, 0, 1, 0, 2, 2, 1, 1]]


# Weights


@pytest.mark.parametrize("n_groups", [1, 2, 68])
def test_weights_are_counts_of_draws_with_replacement(n_groups):
    weights = bootstrap.draw_group_weights(n_groups, draws=4000, seed=1)
    assert weights.shape == (4000, n_groups)
    assert weights.dtype == np.int32
    assert weights.min() >= 0
    np.testing.assert_array_equal(weights.sum(1), n_groups)
    # Binomial(G, 1/G): mean 1, variance 1 - 1/G; five standard errors of 4,000 draws.
    np.testing.assert_allclose(weights.mean(0), 1.0, atol=5 / 4000**0.5)
    np.testing.assert_allclose(weights.var(), 1 - 1 / n_groups, atol=0.03)
    if n_groups > 1:
        assert len(np.unique(weights, axis=0)) > 2


def test_weights_depend_on_seed_and_groups_only(monkeypatch):
    weights = bootstrap.draw_group_weights(9, draws=50, seed=7)
    np.testing.assert_array_equal(weights, bootstrap.draw_group_weights(9, draws=50, seed=7))
    np.testing.assert_array_equal(weights[:20], bootstrap.draw_group_weights(9, draws=20, seed=7))
    assert (weights != bootstrap.draw_group_weights(9, draws=50, seed=8)).any()
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", 3 * 8 * 9 * 7)  # blocks of 7 draws
    np.testing.assert_array_equal(weights, bootstrap.draw_group_weights(9, draws=50, seed=7))


def test_weights_are_pinned():
    """Published intervals change when this does: say so in the change log."""
    weights = bootstrap.draw_group_weights(8, draws=3, seed=0)
    np.testing.assert_array_equal(weights, PINNED)


def test_no_groups_and_no_draws():
    assert bootstrap.draw_group_weights(0, draws=3, seed=0).shape == (3, 0)
    assert bootstrap.draw_group_weights(4, draws=0, seed=0).shape == (0, 4)


# Draws from replicates


def mean_of_groups(values, left):
    """Mean over groups with each group left out: float64[B]."""
    return np.array([values[row.astype(bool)].mean() for row in left])


@pytest.mark.parametrize("n", [2, 3, 8, 40])
def test_draws_are_linear_in_how_often_a_group_is_drawn(rng, n):
    values = rng.normal(size=n)
    plan = bootstrap.plan_jackknife(n, draws=30, seed=4)
    np.testing.assert_array_equal(plan.left_out.sum(1), n - 1)
    replicates = np.array([np.median(np.delete(values, i)) for i in range(n)])
    got = plan.spread(np.median(values), replicates)
    wider = stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975)
    for weight, drawn in zip(plan.weights, got, strict=True):
        change = sum(
            (int(w) - 1) * (replicates.mean() - r) for w, r in zip(weight, replicates, strict=True)
        )
        expected = np.median(values) + wider * np.sqrt((n - 1) / n) * change
        np.testing.assert_allclose(drawn, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [4, 12, 60])
def test_the_interval_of_a_mean_is_students(rng, n):
    """For a mean the jackknife is the textbook's standard error; 20,000 draws know it to 1 %."""
    values = rng.normal(size=n)
    plan = bootstrap.plan_jackknife(n, draws=20_000, seed=0)
    got = intervals.find_ends(
        values.mean(), plan.spread(values.mean(), mean_of_groups(values, plan.left_out))
    )
    expected = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(np.diff(got), np.diff(expected), rtol=0.02)
    np.testing.assert_allclose(np.mean(got), values.mean(), rtol=1e-12)


def test_the_standard_error_is_near_the_bootstraps(rng):
    """A ratio of sums over 60 groups: SciPy's bootstrap draws the groups themselves."""
    above, below = rng.gamma(4, size=60), rng.gamma(9, size=60)
    plan = bootstrap.plan_jackknife(60, draws=4000, seed=1)
    replicates = (above.sum() - above) / (below.sum() - below)
    got = plan.spread(above.sum() / below.sum(), replicates).std()
    theirs = stats.bootstrap(
        (above, below),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        rng=np.random.default_rng(2),
    ).standard_error
    np.testing.assert_allclose(got, theirs * stats.t.ppf(0.975, 59) / 1.96, rtol=0.1)


def test_a_group_without_which_there_is_no_number_leaves_no_draws():
    plan = bootstrap.plan_jackknife(3, draws=5, seed=0)
    assert np.isnan(plan.spread(0.5, [0.4, np.nan, 0.6])).all()
    assert np.isnan(plan.spread(np.nan, [0.4, 0.5, 0.6])).all()
    alone = bootstrap.plan_jackknife(1, draws=5, seed=0)
    assert np.isnan(alone.spread(0.5, [0.5])).all()
    assert bootstrap.plan_jackknife(3, draws=0, seed=0).spread(0.5, [0.4, 0.5, 0.6]).shape == (0,)
    with pytest.raises(checks.InputError, match="replicates: expected shape"):
        plan.spread(0.5, [0.4, 0.6])


def test_many_groups_are_dealt_into_blocks():
    plan = bootstrap.plan_jackknife(1234, draws=3, seed=7)
    assert plan.n_blocks == bootstrap.MAX_BLOCKS
    sizes = np.bincount(plan.block_of, minlength=plan.n_blocks)
    assert set(sizes) == {2, 3}
    few = bootstrap.plan_jackknife(9, draws=3, seed=7)
    np.testing.assert_array_equal(few.block_of, np.arange(9))


# Intervals, differences, ranks


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.959963984540054), (0.5, 0.6744897501960817)])
def test_interval_is_of_deviations_about_the_estimate(rng, level, z):
    draws = rng.normal(size=(3, 401))
    draws[1, :200] = np.nan  # just under half
    draws[2, :201] = np.nan  # just over half
    got = intervals.interval([0.1, -0.2, 0.0], draws, level=level)
    for row, value in ((0, 0.1), (1, -0.2)):
        half = z * draws[row][~np.isnan(draws[row])].std(ddof=1)
        np.testing.assert_allclose([got.low[row], got.high[row]], [value - half, value + half])
    assert np.isnan([got.low[2], got.high[2]]).all()


def test_interval_of_few_draws():
    assert intervals.find_ends(0.3, [0.3, 0.3, 0.3]) == [0.3, 0.3]
    for draws in ([], [np.nan], [2.0], [np.nan, 2.0], [np.nan, np.nan, 2.0]):
        assert intervals.find_ends(2.0, draws) is None
    assert intervals.find_ends(np.nan, [1.0, 2.0]) is None


BOUNDS = [intervals.SHARE, intervals.SIGNED, intervals.AREA, intervals.POSITIVE, (-1.5, 1.5)]


@pytest.mark.slow
@hypothesis.given(
    bounds=st.sampled_from(BOUNDS),
    share=st.floats(0, 1),
    replicates=st.lists(
        st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, np.nan])), min_size=1, max_size=9
    ),
    missing=st.integers(0, 60),
    shift=st.sampled_from([0.0, -2.0, 0.5]),
    seed=st.integers(0, 9),
)
@hypothesis.settings(max_examples=300, deadline=None)
def test_the_estimate_is_always_inside(bounds, share, replicates, missing, shift, seed):
    """Whatever the replicates are (equal, undefined, of one group, at the ends of the range), and
    wherever the draws lie, as those of older versions do not lie about the estimate.
    """
    low, high = bounds[0], min(bounds[1], 3.0)
    value = low + share * (high - low)
    found = low + np.array(replicates) * (high - low)
    plan = bootstrap.plan_jackknife(len(found), draws=100, seed=seed)
    draws = plan.spread(value, found)
    draws[:missing] = np.nan
    draws += shift
    ends = intervals.find_ends(value, draws, bounds)
    if len(found) < 2 or np.isnan(found).any() or missing > 50:
        assert ends is None
        return
    assert bounds[0] <= ends[0] <= value <= ends[1] <= bounds[1]
    other = plan.spread(low, found[::-1])
    apart = intervals.paired_difference((value, [low]), draws[None], other[None], bounds=bounds)
    widest = bounds[1] - bounds[0]
    assert -widest <= apart.low[0] <= value - low <= apart.high[0] <= widest


def test_paired_difference_is_over_shared_draws(rng):
    a, b = rng.normal(size=(2, 300))
    b[:5] = a[:5]
    a[10:30] = np.nan
    b[20:40] = np.nan
    got = intervals.paired_difference((0.4, 0.1), a, b)
    difference = (a - b)[~np.isnan(a - b)]
    assert len(difference) == 270
    np.testing.assert_allclose(got.value, 0.3, rtol=1e-12)
    half = 1.959963984540054 * difference.std(ddof=1)
    np.testing.assert_allclose([got.low, got.high], [0.3 - half, 0.3 + half], rtol=1e-12)
    assert got.share_positive == (difference > 0).sum() / 270
    back = intervals.paired_difference((0.1, 0.4), b, a)
    np.testing.assert_allclose([back.low, back.high], [-got.high, -got.low], rtol=1e-12)
    assert back.share_positive + got.share_positive == pytest.approx(265 / 270)
    several = intervals.paired_difference((0.4, [0.1, 0.4]), np.stack([a, a]), np.stack([b, a]))
    assert several.share_positive.tolist() == [got.share_positive, 0.0]
    assert several.high[1] == several.value[1] == 0.0


def test_paired_difference_is_nan_when_draws_are_missing(rng):
    a, b = rng.normal(size=(2, 10))
    a[:3], b[3:6] = np.nan, np.nan
    got = intervals.paired_difference((1.0, 0.0), a, b)
    assert np.isnan([got.low, got.high, got.share_positive]).all()
    assert np.isnan(intervals.paired_difference((1.0, 0.0), [], []).low)


def test_shared_draws_make_differences_sharp(rng):
    """A shift common to all draws cancels; with draws of another seed it does not."""
    values = rng.normal(size=30)
    one, other = (bootstrap.plan_jackknife(30, draws=500, seed=s) for s in (0, 1))
    left = mean_of_groups(values, one.left_out)
    base, better = (one.spread(values.mean() + s, left + s) for s in (0, 0.1))
    values_of = (values.mean() + 0.1, values.mean())
    shared = intervals.paired_difference(values_of, better, base)
    apart = intervals.paired_difference(
        values_of, other.spread(values.mean() + 0.1, left + 0.1), base
    )
    np.testing.assert_allclose([shared.low, shared.high], 0.1, rtol=1e-9)
    assert shared.share_positive == 1.0
    assert apart.low < 0.0


def test_rank_stability_is_of_average_ranks(rng):
    draws = rng.integers(0, 4, (5, 200)) / 4
    draws[2, ::9] = np.nan
    got = intervals.rank_stability(draws)
    complete = draws[:, ~np.isnan(draws).any(0)]
    ranks = stats.rankdata(-complete, axis=0)
    np.testing.assert_allclose(got.mean_rank, ranks.mean(1), rtol=1e-14)
    np.testing.assert_array_equal(got.low, np.quantile(ranks, 0.025, axis=1))
    np.testing.assert_array_equal(got.high, np.quantile(ranks, 0.975, axis=1))
    top = [[(c == c.max())[m] / (c == c.max()).sum() for c in complete.T] for m in range(5)]
    np.testing.assert_allclose(got.top_share, np.mean(top, axis=1), rtol=1e-12)
    assert got.top_share.sum() == pytest.approx(1.0)
    shares = np.zeros((5, 5))
    for values in complete.T:
        for model, value in enumerate(values):
            ahead, level = sum(values > value), sum(values == value)
            for place in range(ahead, ahead + level):
                shares[model, place] += 1 / level / complete.shape[1]
    np.testing.assert_allclose(got.place_shares, shares, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(got.place_shares.sum(0), 1.0, rtol=1e-12)


def test_rank_one_is_the_largest():
    got = intervals.rank_stability([[0.9, 0.9, 0.1], [0.5, 0.5, 0.5], [0.9, 0.1, 0.9]], level=0.0)
    np.testing.assert_allclose(got.mean_rank, [5.5 / 3, 7 / 3, 5.5 / 3])
    np.testing.assert_array_equal(got.low, [1.5, 2.0, 1.5])  # level 0: the median
    np.testing.assert_allclose(got.top_share, [0.5, 0.0, 0.5])


def test_rank_stability_of_one_model_and_of_too_few_draws():
    alone = intervals.rank_stability([[0.3, 0.1]])
    assert [np.ravel(part).tolist() for part in alone] == [[1.0]] * 5
    missing = intervals.rank_stability([[0.3, np.nan, np.nan], [0.1, 0.2, 0.4]])
    assert all(np.isnan(part).all() for part in missing)
    assert intervals.rank_stability(np.zeros((0, 4))).mean_rank.shape == (0,)
    none = intervals.rank_stability(np.zeros((3, 0)))
    for part in (none.mean_rank, none.low, none.high, none.top_share):
        np.testing.assert_array_equal(part, [np.nan] * 3)


@pytest.mark.parametrize("n", [6, 30])
def test_coverage_of_a_ratio_over_groups(n):
    """600 experiments: the standard error of a coverage of .95 is .009."""
    rng = np.random.default_rng(11)
    plan = bootstrap.plan_jackknife(n, draws=400, seed=2)
    hits = 0
    for _ in range(600):
        size = rng.integers(5, 15, n)
        right = rng.binomial(size, rng.beta(4, 4, n))
        value = right.sum() / size.sum()
        left = (right.sum() - right) / (size.sum() - size)
        low, high = intervals.find_ends(value, plan.spread(value, left), intervals.SHARE)
        hits += low <= 0.5 <= high
    assert 0.92 < hits / 600 < 0.98


def test_ranks_equal_cromas(rng):
    """croma draws the same groups from the same seed, one draw at a time."""
    croma = pytest.importorskip("croma.metrics.bootstrap")
    group_id = rng.integers(0, 14, 400)
    models = rng.normal(size=(3, 14))[:, group_id] + rng.normal(size=(3, 400))
    models[1:] += [[0.1], [0.4]]
    weights = bootstrap.draw_group_weights(14, draws=300, seed=21)
    medians = np.array(
        [[np.median(np.repeat(model, drawn[group_id])) for drawn in weights] for model in models]
    )
    theirs = croma.paired_rank_stability(dict(enumerate(models)), group_id, n_boot=300, seed=21)
    ranks = intervals.rank_stability(medians)
    np.testing.assert_allclose(ranks.mean_rank, list(theirs.mean_rank.values()), rtol=1e-13)
    for i, j in [(0, 1), (1, 2)]:
        share = intervals.paired_difference((0.0, 0.0), medians[i], medians[j]).share_positive
        assert share == pytest.approx(theirs.pairwise_win[i, j])


# Refusals


@pytest.mark.slow
def test_what_does_not_fit_is_refused():
    values = np.zeros(5)
    with pytest.raises(checks.InputError, match="level"):
        intervals.interval(0.0, values, level=95)
    with pytest.raises(checks.InputError, match="level"):
        intervals.rank_stability(values[None], level=95)
    with pytest.raises(checks.InputError, match="draws_b"):
        intervals.paired_difference((0.0, 0.0), values, values[:1])
    with pytest.raises(checks.InputError, match="draws: expected shape"):
        intervals.rank_stability(values)
