"""Sets of rows by their best matches against float64, with ties, on every mesh; and packing."""

import numpy as np
import oracles
import pytest

from pathorob_jax.kernels.neighbors import set_matches
from pathorob_jax.kernels.neighbors.set_matches import find_nearest_sets, match_sets, pack_blocks


def brute(x, set_id):
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    cosine = unit @ unit.T
    n = set_id.max() + 1
    best = np.array([[cosine[np.ix_(set_id == a, set_id == b)].max(1).mean() for b in range(n)]
                     for a in range(n)])  # fmt: skip
    return (best + best.T) / 2


def nearest(similarity, group_id, k):
    """The k most similar sets of other groups; similarities equal to ten digits are ties."""
    out = np.full((len(group_id), k), -1)
    for q, row in enumerate(np.round(similarity, 10)):
        others = [s for s in range(len(row)) if group_id[s] != group_id[q]]
        others = sorted(others, key=lambda s: (-row[s], s))[:k]
        out[q, : len(others)] = others
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "dim"),
    [
        pytest.param([5, 1, 7, 3, 3, 2], 8, id="small"),
        pytest.param([300] * 5 + [31], 16, id="blocks of whole sets", marks=pytest.mark.slow),
        pytest.param([40, 700, 9, 161, 300], 16, id="sets of many blocks"),
    ],
)
def test_similarity_equals_a_brute_force(rng, mesh, sizes, dim):
    set_id = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    x = rng.normal(size=(len(set_id), dim)).astype(np.float32) + 0.5
    # Blocks of 128 rows.
    got = match_sets(x, set_id, budget_bytes=16 * 128**2, mesh=mesh)
    expected = brute(x, set_id)
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(got, got.T)
    told = []
    one = match_sets(x, set_id, budget_bytes=16 * 128**2, on_progress=told.append)
    np.testing.assert_array_equal(got, one)  # whatever the devices
    assert sum(told) == len(x)


@pytest.mark.slow
def test_ties_and_near_ties_are_settled(rng, mesh):
    """Small integers: many sets are equally similar, and float32 cannot tell."""
    sizes = rng.integers(1, 5, 30)
    set_id = np.repeat(np.arange(30), sizes)
    x = rng.integers(0, 2, (len(set_id), 5)).astype(np.float32)
    x[x.sum(1) == 0] = 1
    x *= rng.choice([1, 3, 0.7], (len(x), 1)).astype(np.float32)  # cosines do not see lengths
    exact = np.sign(x)
    group_id = np.arange(30) // 2
    similarity = brute(exact, set_id)
    for k in (1, 4, 29):
        got = find_nearest_sets(x, set_id, group_id, k=k, mesh=mesh)
        np.testing.assert_array_equal(got.indices, nearest(similarity, group_id, k))
        there = got.indices >= 0
        row, _ = np.nonzero(there)
        np.testing.assert_allclose(
            got.distances[there], 1 - similarity[row, got.indices[there]], atol=1e-6
        )
        assert np.isinf(got.distances[~there]).all()
    assert (nearest(similarity, group_id, 29) < 0).any()


def test_distances_that_float32_cannot_tell_apart(rng):
    """Sets that differ by 1e-8 in similarity: the order is that of float64."""
    one = rng.normal(size=16)
    x = np.concatenate([one + 3e-4 * rng.normal(size=(4, 16)) for _ in range(12)])
    x = x.astype(np.float32)
    set_id, group_id = np.repeat(np.arange(12), 4), np.arange(12)
    similarity = brute(x, set_id)
    got = find_nearest_sets(x, set_id, group_id, k=11)
    expected = [[s for s in np.argsort(-row, kind="stable") if s != q]
                for q, row in enumerate(similarity)]  # fmt: skip
    np.testing.assert_array_equal(got.indices, expected)
    assert np.ptp(similarity) < 3e-7


def test_sets_of_one_row_are_rows(rng):
    x = rng.normal(size=(50, 12)).astype(np.float32)
    group_id = np.arange(50) // 5
    got = find_nearest_sets(x, np.arange(50), group_id, k=7)
    np.testing.assert_array_equal(got.indices, oracles.nearest(x, group_id, 7)[0])


def test_sets_of_one_group_have_no_neighbours(rng):
    x = rng.normal(size=(50, 12)).astype(np.float32)
    got = find_nearest_sets(x, np.arange(50), np.zeros(50, int), k=7)
    np.testing.assert_array_equal(got.indices, np.full((50, 7), -1))
    assert np.isinf(got.distances).all()


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[300] * 68, [30] * 200, [1] * 70, [5000, 3, 2000], [17]])
def test_blocks_hold_every_row_once_and_little_else(sizes):
    set_id = np.repeat(np.arange(len(sizes)), sizes)
    blocks = pack_blocks(set_matches.list_members(set_id, len(sizes)), largest=1344)
    rows = blocks.rows[blocks.is_row]
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(set_id)))
    unit = blocks.rows.shape[1] // blocks.unit_set.shape[1]
    for block, names in enumerate(blocks.sets):
        place = np.repeat(blocks.unit_set[block], unit)
        np.testing.assert_array_equal(set_id[blocks.rows[block]], names[place])
        assert (np.diff(place) >= 0).all()
    assert blocks.rows.size <= max(1.1 * len(set_id), len(set_id) + 1344)
