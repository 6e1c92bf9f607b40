"""Near neighbours in the order of float64, where float32 cannot tell."""

import numpy as np
import oracles
import pytest

from pathorob_jax.kernels.neighbors import near_ties
from pathorob_jax.kernels.neighbors.search import Neighbors, find_neighbors


@pytest.mark.parametrize("scale", [1.0, 0.03])
def test_lists_are_those_of_float64(rng, scale):
    # A common direction brings all rows near each other: float32 swaps many of them.
    x = (np.ones(128) + scale * rng.normal(size=(1500, 128))).astype(np.float32)
    slide = np.arange(1500) // 10
    k = 200
    found = find_neighbors(x, slide, k=k + near_ties.MARGIN)
    expected, distances = oracles.nearest(x, slide, k)
    raw = (found.indices[:, :k] != expected).any(1).mean()
    assert raw > (0.005 if scale == 1.0 else 0.9)
    got = near_ties.settle_near_ties(x, found, k=k)
    np.testing.assert_array_equal(got.indices, expected)
    np.testing.assert_allclose(got.distances, distances, rtol=2e-6, atol=1e-6)
    assert (np.diff(got.distances, axis=1) >= 0).all()


def test_equal_rows_keep_the_order_of_rows_and_absent_ones_stay_last(rng):
    x = rng.normal(size=(30, 7)).astype(np.float32)[np.arange(30) % 3]
    group = np.arange(30) // 20  # rows of the first group have ten others, of the second twenty
    found = find_neighbors(x, group, k=14)
    got = near_ties.settle_near_ties(x, found, k=12)
    expected, _ = oracles.nearest(x, group, 12)
    np.testing.assert_array_equal(got.indices, expected)
    np.testing.assert_array_equal(got.indices[:20, 10:], -1)
    assert np.isinf(got.distances[:20, 10:]).all()


def test_what_is_far_apart_is_left_as_it_is():
    distances = np.array([[0.1, 0.2, 0.3, np.inf]], np.float32)
    given = Neighbors(np.array([[3, 1, 2, -1]], np.int32), distances)
    got = near_ties.settle_near_ties(np.zeros((4, 2), np.float32), given, k=3)
    assert got.indices.tolist() == [[3, 1, 2]]
    np.testing.assert_array_equal(got.distances, distances[:, :3])
