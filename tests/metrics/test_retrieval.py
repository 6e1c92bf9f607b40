"""Case retrieval against a brute force in float64, with ties; and votes of two peers."""

import collections
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from pathorob_jax.metrics import apd, retrieval

KS = (1, 3, 5, 10)


def draw_lists(rng, n=80, depth=14, n_classes=3, n_blocks=7):
    """Neighbours in other blocks, some lists short, some empty."""
    block = rng.integers(0, n_blocks, n)
    idx = np.full((n, depth), -1)
    for i in range(n):
        others = rng.permutation(np.flatnonzero(block != block[i]))
        length = rng.choice([0, 2, 7, depth], p=[0.05, 0.1, 0.25, 0.6])
        idx[i, : min(length, len(others))] = others[:length]
    return retrieval.Lists(idx, rng.integers(0, n_classes, n), block)


def brute(labels, own, k):
    """Vote (smallest mode), hit, average precision / k, optimistic vote of one query."""
    near = [label for label in labels[:k] if label >= 0]
    if not near:
        return [np.nan] * 4
    counts = collections.Counter(near)
    modes = [label for label in counts if counts[label] == max(counts.values())]
    hits, precision = 0, Fraction(0)
    for rank, label in enumerate(near, 1):
        if label == own:
            hits += 1
            precision += Fraction(hits, rank)
    return [min(modes) == own, hits > 0, float(precision / k), own in modes]


def test_scores_equal_those_of_a_brute_force(rng):
    lists = draw_lists(rng)
    labels = lists.labels()
    got = retrieval.score_queries(labels, lists.label_id, KS, n_classes=3)
    for i, row in enumerate(labels):
        for g, k in enumerate(KS):
            np.testing.assert_allclose(
                got[:, i, g], brute(row, lists.label_id[i], k), rtol=1e-14, equal_nan=True
            )
    means = retrieval.average(got, lists.label_id, n_classes=3)
    np.testing.assert_allclose(means.all, np.nanmean(got, axis=1), rtol=1e-13)
    by_class = [np.nanmean(got[:, lists.label_id == c], axis=1) for c in range(3)]
    np.testing.assert_allclose(means.balanced, np.mean(by_class, axis=0), rtol=1e-13)


def test_votes_of_thunder_and_of_patho_bench(rng):
    """THUNDER: scipy's mode, the smallest label. Patho-Bench: the true label among the modes."""
    labels, own = rng.integers(0, 4, (200, 10)), rng.integers(0, 4, 200)
    for k in KS:
        votes = retrieval.find_votes(labels, own, (k,), n_classes=4)
        np.testing.assert_array_equal(votes.called_id[:, 0], stats.mode(labels[:, :k], axis=1).mode)
        modes = [np.flatnonzero(np.bincount(r) == np.bincount(r).max()) for r in labels[:, :k]]
        expected = [label in mode for label, mode in zip(own, modes, strict=True)]
        np.testing.assert_array_equal(votes.is_mode[:, 0], expected)


def test_fewer_neighbors_than_k():
    """Two neighbours, k = 5: they vote, and the average precision is over 5. Without any: none."""
    labels = np.array([[1, 0, -1], [-1, -1, -1], [1, 1, -1]])
    got = retrieval.score_queries(labels, np.array([1, 1, 0]), (1, 5), n_classes=2)
    np.testing.assert_array_equal(got[:, 0, 1], [0, 1, 1 / 5, 1])  # a tie: the smaller, 0
    assert np.isnan(got[:, 1]).all()
    np.testing.assert_array_equal(got[:, 2], 0)
    means = retrieval.average(got, np.array([1, 1, 0]), n_classes=2)
    np.testing.assert_allclose(means.all[:, 1], [0, 1 / 2, 1 / 10, 1 / 2])
    nothing = retrieval.average(got[:, 1:2], np.array([1]), n_classes=2)
    assert np.isnan(nothing.all).all()
    assert np.isnan(nothing.balanced).all()


def test_each_block_left_out_equals_a_new_count(rng):
    lists = draw_lists(rng)
    got = retrieval.leave_out(lists, KS, n_classes=3, n_blocks=7)
    for block in range(7):
        scores, label = [], []
        for i in np.flatnonzero(lists.block_id != block):
            row = lists.neighbor_idx[i]
            there = row[row >= 0]
            left = [lists.label_id[j] for j in there if lists.block_id[j] != block]
            part = []
            for k in KS:
                values = brute(left, lists.label_id[i], k)
                if left:
                    values[2] *= min(len(there), k) / min(len(left), k)
                part.append(values)
            scores.append(np.array(part, float).T)
            label.append(lists.label_id[i])
        stacked = np.moveaxis(np.array(scores), 0, 1)
        expected = retrieval.average(stacked, np.array(label), n_classes=3)
        for mine, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(mine[..., block], theirs, rtol=1e-12, atol=1e-15)


def test_answers_and_nearest_are_counted(rng):
    called, label, center = rng.integers(-1, 2, (3, 50)), *rng.integers(0, 2, (2, 50))
    got = retrieval.count_answers(called, label, center, n_classes=2, n_centers=2)
    for s in range(3):
        there = called[s] >= 0
        expected = apd.count_calls(
            called[s][there], label[there], center[there], n_classes=2, n_centers=2
        )
        np.testing.assert_array_equal(got[s], expected)
    cell, nearest = rng.integers(0, 4, 50), rng.integers(-1, 4, (3, 50))
    got = retrieval.count_nearest(nearest, cell, n_cells=4)
    for s, a, b in np.ndindex(got.shape):
        assert got[s, a, b] == ((cell == a) & (nearest[s] == b)).sum()


def test_wrong_answers_by_hand():
    """Two classes, two centres; the database of the second split is fully associated."""
    slides = np.array([[[1, 1], [1, 1]], [[2, 0], [0, 2]]])  # [S, C, M]
    nearest = np.zeros((2, 2, 2, 2, 2), int)  # centre, class -> centre, class
    nearest[0, 0, 0, 0] = 6, 3  # right; wrong, from the own centre
    nearest[0, 0, 0, 1] = 2, 1  # right; wrong, from the other centre
    nearest[1, 1, 0, 1, 1] = 8  # class 0 at centre 1: all wrong, from the own centre
    nearest[1, 0, 0, 1, 1] = 2  # class 0 at centre 0: wrong, and class 1 is at centre 1 alone
    got = retrieval.find_wrong_answers(nearest, slides)
    np.testing.assert_allclose(got.share, [4 / 12, 1])
    np.testing.assert_allclose(got.from_own_center, [3 / 4, 8 / 10])
    np.testing.assert_allclose(got.expected, [1 / 2, 8 / 10])
    none = retrieval.find_wrong_answers(np.zeros_like(nearest), slides)
    assert np.isnan(none).all()


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_pooled_rows_keep_equal_directions(rng, n):
    rows = rng.integers(-4, 5, (n, 6)).astype(np.float32)
    x = np.concatenate([rows, 2 * rows[::-1]])
    got = retrieval.pool_rows(x, [np.arange(n), n + np.arange(n)])
    np.testing.assert_array_equal(got[1], 2 * got[0])
    mean = rows.mean(axis=0, dtype=np.float64)
    shrunk = n / 2 ** np.ceil(np.log2(n))
    assert 0.5 < shrunk <= 1
    np.testing.assert_allclose(got[0], mean * shrunk, rtol=1e-6, atol=1e-7)
