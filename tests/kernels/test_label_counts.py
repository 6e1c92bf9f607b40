"""Types of neighbours and majority votes against plain Python."""

import numpy as np
import oracles
import pytest

from pathorob_jax.kernels.neighbors import label_counts


@pytest.fixture(params=[(5, 3), (40, 9), (700, 12)])
def case(request, rng):
    """Random neighbours (some absent, trailing), two labels, cells of rows."""
    n, k = request.param
    indices = rng.integers(0, n, (n, k))
    indices[np.arange(k)[None, :] >= rng.integers(0, k + 1, n)[:, None]] = -1
    return indices, rng.integers(0, 3, n), rng.integers(0, 2, n), rng.integers(0, 4, n)


@pytest.fixture(params=[1, 7, 1024])
def block_rows(request, monkeypatch):
    """Blocks of one row, of a few, of all."""
    monkeypatch.setattr(label_counts, "BLOCK_ROWS", request.param)


@pytest.mark.usefixtures("block_rows")
def test_types_count_every_neighbour_once(case):
    indices, first, second, cell = case
    n, k = indices.shape
    by_rank, by_row, decisive = np.zeros((4, 4, k), int), np.zeros((4, n), int), np.full(n, k)
    types = np.full((n, k), -1)
    for i in range(n):
        for rank, j in enumerate(indices[i]):
            if j < 0:
                continue
            kind = 2 * (first[i] != first[j]) + (second[i] != second[j])
            types[i, rank] = kind
            by_rank[cell[i], kind, rank] += 1
            by_row[kind, i] += rank < k - 1
            if kind in (1, 2):
                decisive[i] = min(decisive[i], rank)
    got = label_counts.neighbor_types(indices, first, second)
    np.testing.assert_array_equal(got, types)
    np.testing.assert_array_equal(label_counts.count_types_by_rank(got, cell, n_cells=4), by_rank)
    np.testing.assert_array_equal(label_counts.count_types(got, k=k - 1), by_row)
    np.testing.assert_array_equal(label_counts.first_decisive(got), decisive)


@pytest.mark.usefixtures("block_rows")
def test_votes_equal_plain_counting(case):
    indices, label, _, _ = case
    grid = np.array([1, 2, indices.shape[1]])
    right, voted = label_counts.majority_votes(indices, label, grid, n_labels=3)
    for g, k in enumerate(grid):
        votes = [oracles.vote(row, label, k) for row in indices]
        np.testing.assert_array_equal(voted[:, g], [vote is not None for vote in votes])
        np.testing.assert_array_equal(
            right[:, g], [v == own for v, own in zip(votes, label, strict=True)]
        )


@pytest.mark.slow
def test_a_tied_vote_goes_to_the_smallest_label():
    # Neighbours of row 0 have labels 2, 1: one vote each.
    indices = np.array([[2, 1], [-1, -1], [-1, -1]])
    for own, is_right in ((1, True), (2, False)):
        label = np.array([own, 1, 2])
        right, voted = label_counts.majority_votes(indices, label, np.array([2]), n_labels=3)
        assert right[:, 0].tolist() == [is_right, False, False]
        assert voted[:, 0].tolist() == [True, False, False]
