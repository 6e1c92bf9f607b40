"""Moments of cells against NumPy in float64."""

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.robustify.moments import measure_moments

N, D, C, M = 203, 7, 3, 4


def make_rows(rng, *, offset=0.0):
    x = (rng.normal(size=(N, D)) * rng.uniform(0.5, 2, D) + offset).astype(np.float32)
    class_id, center_id = rng.integers(0, C, N), rng.integers(0, M, N)
    class_id[center_id == 1] = 0  # empty cells
    return x, class_id, center_id


def measure(x, class_id, center_id, **options):
    return measure_moments(
        lambda rows: x[rows], class_id, center_id, n_classes=C, n_centers=M, **options
    )


@pytest.mark.parametrize("block_bytes", [4 * D * 16, 2**20])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_cells(rng, block_bytes, offset):
    x, class_id, center_id = make_rows(rng, offset=offset)
    moments = measure(x, class_id, center_id, block_bytes=block_bytes)
    wide = x.astype(np.float64)
    for c in range(C):
        for m in range(M):
            mine = wide[(class_id == c) & (center_id == m)]
            assert moments.n[c, m] == len(mine)
            if not len(mine):
                assert not moments.mean[c, m].any()
                continue
            np.testing.assert_allclose(moments.mean[c, m], mine.mean(0), rtol=1e-13)
            squares = ((mine - mine.mean(0)) ** 2).sum(0)
            # Deviations are about the first block's mean, not about 0: an offset costs no digits.
            np.testing.assert_allclose(moments.squares[c, m], squares, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moments.overall_mean, wide.mean(0), rtol=1e-13)


def test_of_centers(rng):
    x, class_id, center_id = make_rows(rng)
    centers = measure(x, class_id, center_id).of_centers()
    for m in range(M):
        mine = x[center_id == m].astype(np.float64)
        np.testing.assert_allclose(centers.mean[0, m], mine.mean(0), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(centers.squares[0, m], mine.var(0) * len(mine), rtol=1e-12)


@pytest.mark.parametrize("block_bytes", [4 * D * 16, 2**20])
def test_scatter(rng, block_bytes):
    x, class_id, center_id = make_rows(rng, offset=100)
    wide = x.astype(np.float64)
    total = measure(x, class_id, center_id, scatter="total", block_bytes=block_bytes).scatter
    np.testing.assert_allclose(total[0], np.cov(wide.T) * (N - 1), rtol=1e-10, atol=1e-9)
    by_center = measure(x, class_id, center_id, scatter="center", block_bytes=block_bytes).scatter
    for m in range(M):
        mine = wide[center_id == m]
        expected = np.cov(mine.T) * (len(mine) - 1)
        np.testing.assert_allclose(by_center[m], expected, rtol=1e-10, atol=1e-9)


@pytest.mark.slow
def test_no_rows():
    nothing = np.zeros(0, np.int64)
    with pytest.raises(InputError, match="found none"):
        measure(np.zeros((0, D), np.float32), nothing, nothing)
