"""Rows in a file without a name."""

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.embeddings.row_file import RowFile


def test_rows_are_put_where_they_belong_and_none_is_no_write():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows = RowFile((4, 3))
    rows.write(np.array([3, 0, 1]), x[[3, 0, 1]])
    rows.write(np.zeros(0, np.int64), x[:0])
    rows.write(np.array([2]), x[2:3])
    np.testing.assert_array_equal(rows.read(0, 4), x)
    np.testing.assert_array_equal(rows.take(np.array([2, 2, 0])), x[[2, 2, 0]])


def test_a_file_that_was_cut_is_said():
    rows = RowFile((4, 3))
    rows.write(np.array([0, 1]), np.ones((2, 3), np.float32))
    with pytest.raises(InputError, match="the file of rows ends early: it was cut while"):
        rows.read(0, 4)
