"""The index and its companions: brute force, values that follow from geometry, properties."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import oracles
import pytest

from pathorob_jax.kernels.neighbors.search import find_neighbors
from pathorob_jax.metrics import neighbor_tally
from pathorob_jax.metrics import robustness_index as ri


def tally(x, bio, center, slide, grid):
    found = find_neighbors(np.asarray(x, np.float32), np.asarray(slide), k=max(grid))
    return neighbor_tally.tally_neighbors(
        found.indices,
        np.asarray(bio, np.int32),
        np.asarray(center, np.int32),
        np.asarray(slide, np.int32),
        n_bio=int(np.max(bio)) + 1,
        n_center=int(np.max(center)) + 1,
        k_grid=grid,
    )


def random_case(rng, n=60, n_bio=3, n_center=2, n_slides=4):
    bio, center = rng.integers(0, n_bio, n), rng.integers(0, n_center, n)
    slide = center * n_slides + rng.integers(0, n_slides, n)
    x = rng.normal(size=(n, 8)) + np.eye(8)[bio] + np.eye(8)[3 + center]
    return x.astype(np.float32), bio, center, slide


def grid_of_tiles(bio_effect, center_effect, rng, per_cell=6):
    """Two classes x two centres, two slides a cell, with effects along axes of their own."""
    bio, center, slide = (
        a.ravel() for a in np.meshgrid([0, 1], [0, 1], np.arange(2 * per_cell), indexing="ij")
    )
    slide = (bio * 2 + center) * 2 + slide // per_cell
    x = rng.normal(scale=0.01, size=(len(bio), 16))
    x[:, 0] += 1
    x[:, 1] += bio_effect * (2 * bio - 1)
    x[:, 2] += center_effect * (2 * center - 1)
    return x, bio, center, slide


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 4, 11, 60])
def test_equals_brute_force(rng, k):
    x, bio, center, slide = random_case(rng)
    got = ri.measure([tally(x, bio, center, slide, [k])], k)
    indices, _ = oracles.nearest(x, slide, k)
    assert got.companions.robustness_index == oracles.robustness_index(indices, bio, center, k)
    assert got.support == oracles.support(indices, bio, center, k)
    np.testing.assert_allclose(got.recall, oracles.balanced_accuracy(indices, bio, k), rtol=1e-12)
    types = oracles.neighbor_types(indices, bio, center, k)
    shares = [np.mean([t == name for _, t in types]) for name in ("ss", "so", "os", "oo")]
    np.testing.assert_allclose(got.fractions, shares, rtol=1e-12)


def test_classes_and_centers_equal_brute_force(rng):
    x, bio, center, slide = random_case(rng, n=80)
    k = 7
    tallies = [tally(x, bio, center, slide, [1, k])]
    indices, _ = oracles.nearest(x, slide, k)
    types = oracles.neighbor_types(indices, bio, center, k)
    votes = np.array([oracles.vote(row, bio, k) for row in indices])
    by_class = ri.measure_classes(tallies, [("a", "b", "c")], k)
    by_center = ri.measure_centers(tallies, [("m", "n")], k)
    for names, label, measured in (("abc", bio, by_class), ("mn", center, by_center)):
        for i, name in enumerate(names):
            mine = [t for q, t in types if label[q] == i]
            expected = mine.count("so") / (mine.count("so") + mine.count("os"))
            got = measured[name]
            assert got.n_samples == np.sum(label == i)
            np.testing.assert_allclose(got.companions.robustness_index, expected, rtol=1e-12)
    np.testing.assert_allclose(by_class["b"].recall, np.mean(votes[bio == 1] == 1), rtol=1e-12)
    inside = [np.mean(votes[(center == 1) & (bio == c)] == c) for c in range(3)]
    np.testing.assert_allclose(by_center["n"].recall, np.mean(inside), rtol=1e-12)


def test_eligible_pairs_are_what_k_infinite_counts(rng):
    x, bio, center, slide = random_case(rng)
    counted = ri.measure([tally(x, bio, center, slide, [60])], 60)
    eligible = neighbor_tally.count_eligible(bio, center, slide, n_bio=3, n_center=2).sum((0, 1))
    np.testing.assert_allclose(counted.fractions, eligible / eligible.sum(), rtol=1e-12)
    # Groups that span centres and classes (a scanner, a batch) are subtracted just as exactly.
    group = rng.integers(0, 5, len(bio))
    pairs = np.zeros((3, 2, 4), int)
    for i in range(len(bio)):
        for j in range(len(bio)):
            if group[i] != group[j]:
                pairs[bio[i], center[i], 2 * (bio[i] != bio[j]) + (center[i] != center[j])] += 1
    by_cell = neighbor_tally.count_eligible(bio, center, group, n_bio=3, n_center=2)
    np.testing.assert_array_equal(by_cell, pairs)


def test_biology_that_dominates_gives_one_and_a_dominant_center_zero(rng):
    # Own slide left out, a cell has 6 rows of its own; the next nearest share the larger effect.
    for effects, expected in (((1.0, 0.3), 1.0), ((0.3, 1.0), 0.0)):
        x, bio, center, slide = grid_of_tiles(*effects, rng)
        got = ri.measure([tally(x, bio, center, slide, [12])], 12)
        assert got.companions.robustness_index == expected
        assert got.support == 1.0


def test_equal_effects_give_one_half():
    # Exact by symmetry: swapping class and centre maps the configuration onto itself.
    x = np.array([[1, s * 0.5, t * 0.5] for s in (-1, 1) for t in (-1, 1)], np.float32)
    got = ri.measure([tally(x, [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 2, 3], [2])], 2)
    assert got.companions.robustness_index == 0.5


def test_companions_of_known_counts():
    got = ri.companions(np.array([40.0, 30.0, 10.0, 20.0]))
    assert got.robustness_index == 30 / 40
    assert got.prediction_performance == 70 / 100
    assert got.id_performance == 40 / 50
    assert got.ood_performance == 30 / 50
    assert got.bio_vs_confounding == 70 / 50
    assert got.confounder_insensitivity == 50 / 50
    assert got.generalization_index == (30 / 50) / (40 / 50)


def test_undefined_is_nan_with_no_support(rng):
    # Every neighbour shares both labels: neither SO nor OS, nothing decides.
    x, bio, center, slide = grid_of_tiles(3.0, 2.0, rng)
    got = ri.measure([tally(x, bio, center, slide, [3])], 3)
    assert np.isnan(got.companions.robustness_index)
    assert np.isnan(got.companions.ood_performance)
    assert got.support == 0.0
    assert got.fractions == (1.0, 0.0, 0.0, 0.0)


@pytest.mark.slow
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=15, deadline=None)
def test_swapping_class_and_center_mirrors_the_index(seed):
    rng = np.random.default_rng(seed)
    x, bio, center, _ = random_case(rng, n=30, n_bio=2)
    slide = np.arange(30) // 2
    one = ri.measure([tally(x, bio, center, slide, [5])], 5)
    other = ri.measure([tally(x, center, bio, slide, [5])], 5)
    hypothesis.assume(one.support > 0)
    np.testing.assert_allclose(
        other.companions.robustness_index, 1 - one.companions.robustness_index, rtol=1e-12
    )
    assert one.support == other.support


@pytest.mark.slow
def test_random_embeddings_sit_at_the_value_of_the_label_counts(rng):
    n = 1200
    bio, center = np.arange(n) % 3, np.arange(n) // 3 % 2
    slide = np.arange(n)
    got = ri.measure([tally(rng.normal(size=(n, 32)), bio, center, slide, [20])], 20)
    chance = ri.companions(
        neighbor_tally.count_eligible(bio, center, slide, n_bio=3, n_center=2).sum((0, 1))
    ).robustness_index
    # About 24,000 x (1/6 + 1/3) decisive pairs: three standard deviations of a share are 0.013;
    # hubs correlate them, hence twice that.
    assert abs(got.companions.robustness_index - chance) < 0.03
    assert abs(chance - (1 / 6) / (1 / 6 + 1 / 3)) < 1e-3


def test_padding_rows_change_nothing(rng):
    x, bio, center, slide = random_case(rng)
    one = tally(x, bio, center, slide, [1, 5])
    padded = np.concatenate([x, np.zeros((9, 8), np.float32)])
    found = find_neighbors(padded, np.concatenate([slide, np.full(9, -1)]), k=5)
    other = neighbor_tally.tally_neighbors(
        found.indices[: len(bio)], bio, center, slide, n_bio=3, n_center=2, k_grid=[1, 5]
    )
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_best_k_is_the_first_maximum():
    base = tally(np.eye(4) + 1, [0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 2, 3], [1, 2, 3])

    def with_correct(correct):
        shape = (2, 1, 3)
        return base._replace(correct=np.broadcast_to(correct, shape), voted=np.full(shape, 10))

    assert ri.best_k([with_correct([5, 9, 9])], k_max=3) == 2
    assert ri.best_k([with_correct([5, 9, 10])], k_max=2) == 2
    # The mean over scopes decides, not the sum of hits.
    assert ri.best_k([with_correct([9, 2, 0]), with_correct([5, 10, 0])], k_max=3) == 1


@pytest.mark.slow
def test_scopes_weigh_counts_but_accuracy_is_their_mean(rng):
    cases = [random_case(rng, n=n, n_bio=2) for n in (20, 50)]
    tallies = [tally(*case, [3]) for case in cases]
    got = ri.measure(tallies, 3)
    types, accuracies = [], []
    for x, bio, center, slide in cases:
        indices, _ = oracles.nearest(x, slide, 3)
        types += [t for _, t in oracles.neighbor_types(indices, bio, center, 3)]
        accuracies.append(oracles.balanced_accuracy(indices, bio, 3))
    pooled = types.count("so") / (types.count("so") + types.count("os"))
    np.testing.assert_allclose(got.companions.robustness_index, pooled, rtol=1e-12)
    np.testing.assert_allclose(got.recall, np.mean(accuracies), rtol=1e-12)


@pytest.mark.slow
def test_where_os_cannot_occur_the_index_is_undefined_not_one(rng):
    # One slide a centre: without the own slide no row of the own centre is left.
    bio, center = np.arange(60) % 2, np.arange(60) // 2 % 3
    got = ri.measure([tally(rng.normal(size=(60, 8)), bio, center, center, [5])], 5)
    assert np.isnan(got.companions.robustness_index)
    # One such centre among others: the whole is defined, that centre is not.
    slide = np.where(center == 0, 99, np.arange(60))
    tallies = [tally(rng.normal(size=(60, 8)), bio, center, slide, [5])]
    centers = ri.measure_centers(tallies, [("a", "b", "c")], 5)
    assert np.isnan(centers["a"].companions.robustness_index)
    assert np.isfinite(centers["b"].companions.robustness_index)
    assert np.isfinite(ri.measure(tallies, 5).companions.robustness_index)
