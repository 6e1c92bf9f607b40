"""Group bootstrap against draws that are written out with np.repeat, and against croma."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from pathorob_jax.core import checks
from pathorob_jax.kernels.bootstrap import draws as bootstrap
from pathorob_jax.kernels.bootstrap import intervals

QUANTILES = [0.0, 0.025, 0.1, 0.3, 0.5, 0.9, 1.0]
# Seed 0, 8 groups: np.random.default_rng(0).integers(8, size=(3, 8)), counted.
PINNED = [[3, 0, 2, 0, 1, 1, 1, 0], [0, 1, 0, 0, 2, 2, 1, 2], [1, 0, 1, 0, 2, 2, 1, 1]]


def rows_of(weights, group_id):
    """For each draw, the rows that it holds, as often as they were drawn."""
    return [np.repeat(np.arange(len(group_id)), w[group_id]) for w in weights]


def each_draw(statistic, weights, values, group_id):
    """``statistic`` of every draw's multiset of defined values; NaN where it is empty."""
    drawn = (values[rows] for rows in rows_of(weights, group_id))
    defined = (x[~np.isnan(x)] for x in drawn)
    return np.array([statistic(x) if x.size else np.nan for x in defined])


def median_of_medians(values, scope_id):
    return np.median([np.median(values[scope_id == s]) for s in np.unique(scope_id)])


# n, groups, draws: one row, one group, more groups than rows (some empty), one draw, many rows.
@pytest.fixture(
    params=[(1, 1, 3), (2, 1, 4), (2, 5, 40), (7, 3, 40), (40, 40, 30), (301, 11, 50), (60, 9, 1)],
    ids=str,
)
def case(request, rng):
    """Weights, values with ties and NaN, groups; every third draw by hand, hence lopsided."""
    n, n_groups, draws = request.param
    weights = bootstrap.draw_group_weights(n_groups, draws=draws, seed=3)
    weights[::3] = 0
    weights[::3, rng.integers(n_groups)] = n_groups
    values = np.where(rng.random(n) < 0.5, rng.normal(size=n), rng.integers(-2, 3, n) / 4)
    if n > 2:
        values[rng.random(n) < 0.2] = np.nan
    return weights, values, rng.integers(0, n_groups, n)


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


# Ratios


def test_ratio_is_of_sums_over_drawn_groups(case, rng):
    weights, _, _ = case
    top, bottom = rng.integers(0, 5, (2, 3, weights.shape[1]))
    bottom[0] = 0
    picks = [np.repeat(np.arange(len(w)), w) for w in weights]
    expected = np.full((3, len(weights)), np.nan)
    for s in range(3):
        for d, pick in enumerate(picks):
            if bottom[s, pick].sum():
                expected[s, d] = top[s, pick].sum() / bottom[s, pick].sum()
    assert np.isnan(expected[0]).all()
    np.testing.assert_array_equal(bootstrap.bootstrap_ratio(weights, top, bottom), expected)
    one = bootstrap.bootstrap_ratio(jnp.asarray(weights), jnp.asarray(top[1]), bottom[1])
    assert one.shape == (len(weights),)
    np.testing.assert_array_equal(one, expected[1])


def test_ratio_shares_a_denominator_and_blocks(rng, monkeypatch):
    weights = bootstrap.draw_group_weights(6, draws=25, seed=0)
    top, bottom = rng.normal(size=(2, 4, 6)), rng.random(6)
    whole = bootstrap.bootstrap_ratio(weights, top, bottom)
    np.testing.assert_allclose(whole, top @ weights.T / (bottom @ weights.T), rtol=1e-13)
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", 8 * 6 * 4)
    np.testing.assert_allclose(
        bootstrap.bootstrap_ratio(weights, top, bottom), whole, rtol=1e-13
    )  # the order of a sum may depend on the block


def test_integer_sums_are_exact_beyond_int32_and_float32(rng):
    """Sums near 2^31 per group, 68 groups: over 2^37, and the last unit still counts."""
    weights = bootstrap.draw_group_weights(68, draws=200, seed=0)
    big = 2**31 - 1 - rng.integers(0, 50, 68)
    exact = [sum(int(w) * int(v) for w, v in zip(row, big, strict=True)) for row in weights]
    unit = np.full(68, 1)  # every row sums to 68
    sums = bootstrap.bootstrap_ratio(weights, big, unit)
    assert [float(s) for s in sums] == [e / 68 for e in exact]
    less_one = big - (np.arange(68) == 5)
    both = bootstrap.bootstrap_ratio(weights, np.stack([big, less_one]), big)
    assert (both[0] == 1.0).all()
    assert ((both[1] == 1.0) == (weights[:, 5] == 0)).all()


# Order statistics


@pytest.mark.parametrize("q", QUANTILES)
def test_quantile_is_numpys(case, q):
    weights, values, group_id = case
    got = bootstrap.bootstrap_quantile(weights, values, group_id, q)
    expected = each_draw(lambda x: np.quantile(x, q), weights, values, group_id)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("alpha", QUANTILES)
def test_tail_mean_is_of_values_up_to_the_draws_quantile(case, alpha):
    weights, values, group_id = case
    got = bootstrap.bootstrap_tail_mean(weights, values, group_id, alpha)
    expected = each_draw(lambda x: x[x <= np.quantile(x, alpha)].mean(), weights, values, group_id)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("threshold", [-9.0, -0.25, 0.0, 9.0])
def test_share_at_most_counts_ties(case, threshold):
    weights, values, group_id = case
    got = bootstrap.bootstrap_share_at_most(weights, values, group_id, threshold)
    expected = each_draw(lambda x: np.mean(x <= threshold), weights, values, group_id)
    np.testing.assert_allclose(got, expected, rtol=1e-15)


def test_median_of_medians_is_over_drawn_scopes(case, rng):
    weights, values, group_id = case
    scope_id = rng.choice([-7, 2, 3, 90], len(values))
    got = bootstrap.bootstrap_median_of_medians(weights, values, group_id, scope_id)
    expected = []
    for rows in rows_of(weights, group_id):
        rows = rows[~np.isnan(values[rows])]
        expected.append(median_of_medians(values[rows], scope_id[rows]) if rows.size else np.nan)
    np.testing.assert_allclose(got, expected, rtol=1e-15, atol=1e-16)


def test_median_of_medians_leaves_out_a_scope_that_was_not_drawn():
    weights = np.array([[1, 1, 1], [0, 3, 0], [0, 2, 1], [3, 0, 0]], np.int32)
    values, group_id = np.array([1.0, 2.0, 6.0, 7.0]), np.array([0, 1, 1, 2])
    got = bootstrap.bootstrap_median_of_medians(weights, values, group_id, np.array([0, 0, 1, 2]))
    # Medians by scope: (1.5, 6, 7), (2, 6, -), (2, 6, 7), (1, -, -).
    np.testing.assert_array_equal(got, [6.0, 4.0, 6.0, 1.0])


def test_many_equal_values_and_large_weights():
    values = np.repeat([0.5, 0.5, -1.0, 2.0], [9, 9, 3, 3])
    group_id = np.tile([0, 1, 2], 8)
    weights = np.array([[3, 0, 0], [0, 1, 2], [10**8, 1, 10**9]], np.int32)
    medians = bootstrap.bootstrap_quantile(weights, values, group_id, 0.5)
    np.testing.assert_array_equal(medians, 0.5)
    tails = bootstrap.bootstrap_tail_mean(weights, values, group_id, 0.05)
    np.testing.assert_array_equal(tails, -1.0)


def test_undefined_is_nan():
    weights = np.array([[2, 0], [1, 1], [0, 2]], np.int32)
    empty, nothing = np.zeros(0), np.zeros(0, int)
    missing, group_id = np.array([np.nan, np.nan, 5.0]), np.array([0, 0, 1])
    statistics = [
        lambda v, g: bootstrap.bootstrap_quantile(weights, v, g, 0.5),
        lambda v, g: bootstrap.bootstrap_tail_mean(weights, v, g, 0.1),
        lambda v, g: bootstrap.bootstrap_share_at_most(weights, v, g, 5.0) * 5,
        lambda v, g: bootstrap.bootstrap_median_of_medians(weights, v, g, np.zeros_like(g)),
    ]
    for statistic in statistics:
        np.testing.assert_array_equal(statistic(empty, nothing), [np.nan] * 3)
        np.testing.assert_array_equal(statistic(missing, group_id), [np.nan, 5.0, 5.0])


def test_statistics_move_as_geometry_says(rng):
    """Equivariant under scaling by a power of two, blind to the order of rows and group names."""
    weights = bootstrap.draw_group_weights(12, draws=60, seed=5)
    values, group_id = rng.normal(size=200), rng.integers(0, 12, 200)
    order, names = rng.permutation(200), rng.permutation(12)
    for statistic, q in [
        (bootstrap.bootstrap_quantile, 0.3),
        (bootstrap.bootstrap_tail_mean, 0.1),
    ]:
        base = statistic(weights, values, group_id, q)
        np.testing.assert_array_equal(statistic(weights, 4 * values, group_id, q), 4 * base)
        moved = statistic(weights[:, np.argsort(names)], values[order], names[group_id[order]], q)
        np.testing.assert_allclose(moved, base, rtol=1e-12)
        float32 = statistic(weights, jnp.asarray(values, jnp.float32), jnp.asarray(group_id), q)
        np.testing.assert_allclose(float32, base, rtol=1e-6)


def test_memory_is_bounded(rng, monkeypatch):
    """2,000 draws of 200,000 rows: 1.6 GB as weights per row; a block and the rows here."""
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", 1 << 22)
    n, n_groups = 200_000, 50
    weights = bootstrap.draw_group_weights(n_groups, draws=2000, seed=0)
    values, group_id = rng.normal(size=n), rng.integers(0, n_groups, n)
    many = np.ones((2000, 4000), np.int32)
    rows, few = 80 * n, 1 << 18
    calls = [
        (lambda: bootstrap.bootstrap_quantile(weights, values, group_id, 0.5), rows),
        (lambda: bootstrap.bootstrap_tail_mean(weights, values, group_id, 0.1), rows),
        (lambda: bootstrap.bootstrap_ratio(many, many[0], many[0]), few),
        (lambda: bootstrap.draw_group_weights(4000, draws=2000, seed=0), many.nbytes + few),
    ]
    for call, beside_a_block in calls:
        tracemalloc.start()
        try:
            call()
            assert tracemalloc.get_traced_memory()[1] < bootstrap.BLOCK_BYTES + beside_a_block
        finally:
            tracemalloc.stop()


# Intervals, differences, ranks


@pytest.mark.parametrize(("level", "low", "high"), [(0.95, 0.025, 0.975), (0.5, 0.25, 0.75)])
def test_interval_is_of_percentiles(rng, level, low, high):
    draws = rng.normal(size=(3, 401))
    draws[1, :200] = np.nan  # just under half
    draws[2, :201] = np.nan  # just over half
    got = intervals.interval(draws, level=level)
    for row in (0, 1):
        defined = draws[row][~np.isnan(draws[row])]
        expected = np.quantile(defined, [low, high])
        np.testing.assert_array_equal([got.low[row], got.high[row]], expected)
        alone = intervals.interval(draws[row], level=level)
        np.testing.assert_array_equal(alone, expected)
    assert np.isnan([got.low[2], got.high[2]]).all()


def test_interval_of_few_draws():
    assert intervals.interval([2.0]) == (2.0, 2.0)
    assert intervals.interval([np.nan, 2.0]) == (2.0, 2.0)  # exactly half are defined
    for draws in ([], [np.nan], [np.nan, np.nan, 2.0]):
        assert np.isnan(intervals.interval(draws)).all()


def test_paired_difference_is_over_shared_draws(rng):
    a, b = rng.normal(size=(2, 300))
    b[:5] = a[:5]
    a[10:30] = np.nan
    b[20:40] = np.nan
    got = intervals.paired_difference(a, b)
    difference = (a - b)[~np.isnan(a - b)]
    assert len(difference) == 270
    np.testing.assert_allclose(got.mean, difference.mean(), rtol=1e-12)
    np.testing.assert_array_equal(got[1:3], np.quantile(difference, [0.025, 0.975]))
    assert got.share_positive == (difference > 0).sum() / 270
    back = intervals.paired_difference(b, a)
    np.testing.assert_allclose([back.low, back.high], [-got.high, -got.low], rtol=1e-12)
    assert back.share_positive + got.share_positive == pytest.approx(265 / 270)
    several = intervals.paired_difference(np.stack([a, a]), np.stack([b, a]))
    assert several.share_positive.tolist() == [got.share_positive, 0.0]
    assert several.high[1] == several.mean[1] == 0.0


def test_paired_difference_is_nan_when_draws_are_missing(rng):
    a, b = rng.normal(size=(2, 10))
    a[:3], b[3:6] = np.nan, np.nan
    assert np.isnan(intervals.paired_difference(a, b)).all()
    assert np.isnan(intervals.paired_difference([], [])).all()


def test_shared_draws_make_differences_sharp(rng):
    """A shift common to all draws cancels; with draws of another seed it does not."""
    group_id = np.repeat(np.arange(30), 20)
    values = rng.normal(size=30)[group_id] + 0.1 * rng.normal(size=600)
    better = values + 0.1
    weights, other = (bootstrap.draw_group_weights(30, draws=500, seed=s) for s in (0, 1))
    base = bootstrap.bootstrap_quantile(weights, values, group_id, 0.5)
    shared = intervals.paired_difference(
        bootstrap.bootstrap_quantile(weights, better, group_id, 0.5), base
    )
    apart = intervals.paired_difference(
        bootstrap.bootstrap_quantile(other, better, group_id, 0.5), base
    )
    np.testing.assert_allclose(shared[:3], 0.1, rtol=1e-9)
    assert shared.share_positive == 1.0
    assert apart.low < 0.0


def test_rank_stability_is_of_average_ranks(rng):
    stats = pytest.importorskip("scipy.stats")
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


def test_rank_one_is_the_largest():
    got = intervals.rank_stability([[0.9, 0.9, 0.1], [0.5, 0.5, 0.5], [0.9, 0.1, 0.9]], level=0.0)
    np.testing.assert_allclose(got.mean_rank, [5.5 / 3, 7 / 3, 5.5 / 3])
    np.testing.assert_array_equal(got.low, [1.5, 2.0, 1.5])  # level 0: the median
    np.testing.assert_allclose(got.top_share, [0.5, 0.0, 0.5])


def test_rank_stability_of_one_model_and_of_too_few_draws():
    alone = intervals.rank_stability([[0.3, 0.1]])
    np.testing.assert_array_equal(np.ravel(alone), 1.0)
    missing = intervals.rank_stability([[0.3, np.nan, np.nan], [0.1, 0.2, 0.4]])
    assert np.isnan(missing).all()
    assert intervals.rank_stability(np.zeros((0, 4))).mean_rank.shape == (0,)


@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_coverage_of_the_group_bootstrap(effect):
    """Rows of a group share an effect: resampling groups covers the truth, resampling rows not.

    240 experiments: the standard error of a coverage of .95 is .014, and a percentile interval
    over 30 groups is known to cover somewhat less.
    """
    rng = np.random.default_rng(11)
    n_groups, rows = 30, 12
    group_id = np.repeat(np.arange(n_groups), rows)
    by_group = bootstrap.draw_group_weights(n_groups, draws=400, seed=2)
    by_row = bootstrap.draw_group_weights(n_groups * rows, draws=400, seed=2)
    hits = np.zeros(3)
    for _ in range(240):
        values = effect * rng.normal(size=n_groups)[group_id] + rng.normal(size=len(group_id))
        for i, draws in enumerate(
            [
                bootstrap.bootstrap_quantile(by_group, values, group_id, 0.5),
                bootstrap.bootstrap_share_at_most(by_group, values, group_id, 0.0) - 0.5,
                bootstrap.bootstrap_quantile(by_row, values, np.arange(len(values)), 0.5),
            ]
        ):
            low, high = intervals.interval(draws)
            hits[i] += low <= 0.0 <= high
    coverage = hits / 240
    assert ((coverage[:2] > 0.88) & (coverage[:2] < 0.99)).all()
    assert coverage[2] < 0.7 if effect else coverage[2] > 0.88


# The peer


def test_equals_croma_draw_by_draw(rng):
    """croma draws the same groups from the same seed, one draw at a time."""
    croma = pytest.importorskip("croma.metrics.bootstrap")
    group_id = rng.integers(0, 14, 400)
    scope_id = rng.integers(0, 5, 400)
    models = rng.normal(size=(3, 14))[:, group_id] + rng.normal(size=(3, 400))
    models[1:] += [[0.1], [0.4]]
    weights = bootstrap.draw_group_weights(14, draws=300, seed=21)
    medians = np.stack([bootstrap.bootstrap_quantile(weights, m, group_id, 0.5) for m in models])

    theirs = croma.bootstrap_pooled_median(models[0], group_id, n_boot=300, seed=21)
    # np.median is the mean of the middle two, a quantile their interpolation: an ulp apart.
    np.testing.assert_allclose(
        intervals.interval(medians[0]), (theirs.lo, theirs.hi), rtol=1e-13, atol=1e-15
    )

    theirs = croma.paired_cluster_bootstrap_delta(
        models[0], models[1], group_id, subset_ids=scope_id, n_boot=300, seed=21
    )
    paired = [bootstrap.bootstrap_median_of_medians(weights, m, group_id, scope_id) for m in models]
    ours = intervals.paired_difference(paired[1], paired[0])
    np.testing.assert_allclose(ours[1:3], (theirs.lo, theirs.hi), rtol=1e-12, atol=1e-14)

    theirs = croma.paired_rank_stability(dict(enumerate(models)), group_id, n_boot=300, seed=21)
    ranks = intervals.rank_stability(medians)
    np.testing.assert_allclose(ranks.mean_rank, list(theirs.mean_rank.values()), rtol=1e-13)
    for i, j in [(0, 1), (1, 2)]:
        share = intervals.paired_difference(medians[i], medians[j]).share_positive
        assert share == pytest.approx(theirs.pairwise_win[i, j])


# Refusals


def test_what_does_not_fit_is_refused():
    weights = np.ones((4, 3), np.int32)
    values, group_id = np.zeros(5), np.array([0, 1, 2, 2, 1])
    with pytest.raises(checks.InputError, match=r"numerator: expected shape \(3\)"):
        bootstrap.bootstrap_ratio(weights, np.zeros(4), np.zeros(3))
    with pytest.raises(checks.InputError, match="denominator"):
        bootstrap.bootstrap_ratio(weights, np.zeros(3), np.zeros((3, 1)))
    with pytest.raises(TypeError, match="weights: expected an integer"):
        bootstrap.bootstrap_quantile(weights / 2, values, group_id, 0.5)
    with pytest.raises(checks.InputError, match="group_id: expected shape"):
        bootstrap.bootstrap_tail_mean(weights, values, group_id[:4], 0.5)
    with pytest.raises(TypeError, match="group_id"):
        bootstrap.bootstrap_quantile(weights, values, values, 0.5)
    for wrong in (group_id + 1, group_id - 1):
        with pytest.raises(checks.InputError, match=r"group_id: expected ids in \[0, 3\)"):
            bootstrap.bootstrap_share_at_most(weights, values, wrong, 0.0)
    with pytest.raises(checks.InputError, match="scope_id"):
        bootstrap.bootstrap_median_of_medians(weights, values, group_id, group_id[:2])
    for q in (-0.1, 1.1, np.nan):
        with pytest.raises(checks.InputError, match="q: expected a share"):
            bootstrap.bootstrap_quantile(weights, values, group_id, q)
    with pytest.raises(checks.InputError, match="alpha"):
        bootstrap.bootstrap_tail_mean(weights, values, group_id, 10)
    with pytest.raises(checks.InputError, match="level"):
        intervals.interval(values, level=95)
    with pytest.raises(checks.InputError, match="draws_b"):
        intervals.paired_difference(values, values[:1])
    with pytest.raises(checks.InputError, match="draws: expected shape"):
        intervals.rank_stability(values)
