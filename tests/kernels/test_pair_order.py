"""Distances of pairs do not depend on where rows lie, compiled as users compile them."""

import numpy as np
import pytest

from pathorob_jax.kernels.neighbors import pair_distances
from pathorob_jax.kernels.neighbors.row_source import RowSource

pytestmark = pytest.mark.optimized


class Elsewhere(RowSource):
    """Rows of an array as those of a file, in blocks of 64."""

    block_rows = 64

    def __init__(self, x):
        self._x, self.shape = x, x.shape

    def read(self, start, stop):
        return self._x[start:stop].copy()

    def take(self, rows):
        return self._x[rows]


def test_rows_in_blocks_have_the_distances_of_rows_in_memory_to_the_bit(rng):
    """Of pairs given either way round; a fused multiply and subtract rounds one row of the two."""
    x = rng.normal(size=(300, 512)).astype(np.float32)
    lists = rng.integers(0, 300, (300, 20)).astype(np.int32)
    got = pair_distances.list_distances(Elsewhere(x), lists)
    np.testing.assert_array_equal(got, pair_distances.list_distances(x, lists))
