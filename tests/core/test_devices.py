"""Arrays are put on the device once, with the dtype that was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathorob_jax.core.aligned import empty_aligned
from pathorob_jax.core.devices import to_device


def test_dtype_is_the_one_that_was_asked_for():
    assert to_device([[1, 2]]).dtype == np.float32
    assert to_device(jnp.arange(3)).dtype == np.float32
    with jax.enable_x64(True):
        assert to_device(np.ones(3, np.float32), dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="float64 needs jax.enable_x64"):
        to_device(np.ones(3), dtype=np.float64)


def test_types_are_not_weak():
    """A weak float32 would be promoted otherwise, and traced again."""
    weak = jnp.full(3, 2.0)
    assert weak.weak_type
    assert not to_device(weak).weak_type


def test_aligned_arrays_are_not_copied():
    x = empty_aligned((64, 16))
    x[:] = 1
    placed = to_device(x)
    assert np.shares_memory(np.asarray(placed), x)
