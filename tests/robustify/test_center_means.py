"""Shifts of centres against least squares over the rows."""

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.robustify import center_means
from pathorob_jax.robustify.moments import measure_moments
from pathorob_jax.robustify.transform import CenterMaps, apply_maps

C, M, D = 3, 4, 6


@pytest.fixture
def rows(rng):
    class_id, center_id = rng.integers(0, C, 250), rng.integers(0, M, 250)
    x = rng.normal(size=(250, D)) + rng.normal(size=(C, D))[class_id]
    x += 2 * rng.normal(size=(M, D))[center_id]
    return x.astype(np.float32), class_id, center_id


def moments_of(x, class_id, center_id):
    return measure_moments(lambda rows: x[rows], class_id, center_id, n_classes=C, n_centers=M)


@pytest.mark.parametrize("reference", [None, 2])
def test_center_means(rows, reference):
    x, class_id, center_id = rows
    ours = apply_maps(
        center_means.fit_center_means(moments_of(*rows), reference=reference), x, center_id
    )
    wide = x.astype(np.float64)
    target = wide.mean(0) if reference is None else wide[center_id == reference].mean(0)
    for m in range(M):
        np.testing.assert_allclose(ours[center_id == m].mean(0), target, atol=1e-6)


@pytest.mark.parametrize("reference", [None, 2])
def test_class_adjusted_means(rows, reference):
    """As least squares over the rows with the class in the design, the centre's part taken off."""
    x, class_id, center_id = rows
    maps = center_means.fit_class_adjusted_means(moments_of(*rows), reference=reference)
    design = np.concatenate([np.eye(M)[center_id], np.eye(C)[class_id][:, 1:]], axis=1)
    effects = np.linalg.lstsq(design, x.astype(np.float64), rcond=None)[0][:M]
    level = effects[center_id].mean(0) if reference is None else effects[reference]
    expected = x - effects[center_id] + level
    np.testing.assert_allclose(apply_maps(maps, x, center_id), expected, atol=2e-6)
    assert not maps.needs_class


def test_cells_that_tell_nothing_apart(rows):
    x, _, center_id = rows
    class_id = np.minimum(center_id, C - 1)
    with pytest.raises(InputError, match="determined by the centre"):
        center_means.fit_class_adjusted_means(moments_of(x, class_id, center_id))


def test_equal_on_any_number_of_devices(rng, rows, mesh):
    x, _, center_id = rows
    maps = CenterMaps(
        shift=rng.normal(size=(1, M, D)),
        scale=rng.uniform(0.5, 2, (M, D)),
        origin=rng.normal(size=D),
        right=rng.normal(size=(D, 2)),
        left=rng.normal(size=(2, D)),
    )
    one = apply_maps(maps, x, center_id)
    np.testing.assert_array_equal(apply_maps(maps, x, center_id, mesh=mesh, block_bytes=400), one)
    wide = x.astype(np.float64)
    expected = wide * maps.scale[center_id] + maps.shift[0, center_id]
    expected -= (wide - maps.origin) @ maps.right @ maps.left
    np.testing.assert_allclose(one, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_another_dimension_is_refused(rows):
    x, _, center_id = rows
    maps = center_means.fit_center_means(moments_of(*rows))
    with pytest.raises(InputError, match="expected shape"):
        apply_maps(maps, x[:, :-1], center_id)
