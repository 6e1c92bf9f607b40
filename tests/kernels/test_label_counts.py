"""Agreement counts and majority votes against plain Python."""

import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from pathorob_jax.kernels.neighbors import label_counts


@pytest.fixture(params=[(5, 3), (40, 9), (700, 12)])
def case(request, rng):
    """Random neighbours (some absent, trailing), two labels, cells that leave some rows out."""
    n, k = request.param
    indices = rng.integers(0, n, (n, k))
    indices[np.arange(k)[None, :] >= rng.integers(0, k + 1, n)[:, None]] = -1
    first, second = rng.integers(0, 3, n), rng.integers(0, 2, n)
    cell = rng.integers(-1, 4, n)
    return indices, first, second, cell


def test_agreement_counts_every_neighbour_once(case):
    indices, first, second, cell = case
    got = label_counts.count_agreement(
        *(jnp.asarray(a, jnp.int32) for a in (indices, first, second, cell)), n_cells=4
    )
    n, k = indices.shape
    expected = np.zeros((4, 4, k), int)
    decisive = np.full(n, k)
    for i in range(n):
        for rank, j in enumerate(indices[i]):
            if j < 0:
                continue
            kind = 2 * (first[i] != first[j]) + (second[i] != second[j])
            if kind in (1, 2):
                decisive[i] = min(decisive[i], rank)
            if cell[i] >= 0:
                expected[cell[i], kind, rank] += 1
    np.testing.assert_array_equal(got.counts, expected)
    np.testing.assert_array_equal(got.first_decisive, decisive)


def test_votes_equal_plain_counting(case):
    indices, label, _, cell = case
    grid = [1, 2, indices.shape[1]]
    got = label_counts.count_votes(
        *(jnp.asarray(a, jnp.int32) for a in (indices, label, cell, grid)), n_labels=3, n_cells=4
    )
    for g, k in enumerate(grid):
        votes = [oracles.vote(row, label, k) for row in indices]
        for c in range(4):
            mine = [i for i in range(len(votes)) if cell[i] == c and votes[i] is not None]
            assert got.voted[c, g] == len(mine)
            assert got.correct[c, g] == sum(votes[i] == label[i] for i in mine)


def test_a_tied_vote_goes_to_the_smallest_label():
    # Neighbours of row 0 have labels 2, 1: one vote each.
    indices = jnp.asarray([[2, 1], [-1, -1], [-1, -1]], jnp.int32)
    for own, correct in ((1, 1), (2, 0)):
        label = jnp.asarray([own, 1, 2], jnp.int32)
        cell = jnp.asarray([0, -1, -1], jnp.int32)
        got = label_counts.count_votes(
            indices, label, cell, jnp.asarray([2]), n_labels=3, n_cells=1
        )
        assert got.correct[0, 0] == correct
