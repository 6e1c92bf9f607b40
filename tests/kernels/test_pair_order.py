"""Distances of pairs do not depend on where rows lie, compiled as users compile them."""

import numpy as np
import pytest
from row_sources import Elsewhere

from pathorob_jax.kernels.neighbors import pair_distances

pytestmark = pytest.mark.optimized


def test_rows_in_blocks_have_the_distances_of_rows_in_memory_to_the_bit(rng):
    """Of pairs given either way round; a fused multiply and subtract rounds one row of the two."""
    x = rng.normal(size=(300, 512)).astype(np.float32)
    lists = rng.integers(0, 300, (300, 20)).astype(np.int32)
    got = pair_distances.list_distances(Elsewhere(x), lists)
    np.testing.assert_array_equal(got, pair_distances.list_distances(x, lists))
