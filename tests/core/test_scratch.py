"""Arrays in scratch files: values stay when pages are given back; a full disk is one message."""

import os
import pathlib

import numpy as np
import pytest

from pathorob_jax.core import scratch
from pathorob_jax.core.checks import InputError


def resident_bytes():
    """Of the whole process, as Linux counts it."""
    line = next(
        line
        for line in pathlib.Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    return int(line.split()[1]) * 1024


def test_pages_are_given_back_and_values_stay():
    array = scratch.empty((1 << 12, 1 << 12), np.int32)  # 64 MiB
    assert not array.any()
    before = resident_bytes()
    array[:] = np.arange(1 << 12)
    assert resident_bytes() - before < 2**27
    filled = resident_bytes()
    scratch.give_back(array[5:, :3])  # a view is of the same file
    assert filled - resident_bytes() > 2**25
    np.testing.assert_array_equal(array[-1], np.arange(1 << 12))
    np.testing.assert_array_equal(scratch.column(array, -1), np.full(1 << 12, (1 << 12) - 1))
    np.testing.assert_array_equal(scratch.head(array, 3), array[:, :3])
    assert not scratch.is_scratch(scratch.head(array, 3))


def test_parts_of_an_array_in_a_file_need_the_memory_of_one():
    array = scratch.empty((1 << 13, 1 << 12), np.int32)
    before, largest = resident_bytes(), 0
    for part in scratch.parts(array, n_rows=256):
        array[part] = 1
        largest = max(largest, resident_bytes() - before)
    assert largest < 2**24 < array.nbytes / 4
    assert int(array.sum()) == array.size


def test_what_is_like_an_array_lies_where_it_does():
    inside, outside = np.ones((4, 3), np.int32), scratch.empty((4, 3), np.int32)
    for array, is_there in ((inside, False), (outside, True), (outside[:2], True)):
        assert scratch.is_scratch(array) is is_there
        assert scratch.is_scratch(scratch.empty_like(array, (2, 2))) is is_there
        filled = scratch.full_like(array, np.inf, np.float32)
        assert (filled.shape, filled.dtype) == (array.shape, np.float32)
        assert np.isinf(filled).all()
        assert scratch.is_scratch(filled) is is_there
    assert not scratch.is_scratch(outside.copy())
    assert scratch.head(inside, 2).base is inside
    assert scratch.empty((0, 5), np.int32).shape == (0, 5)
    assert list(scratch.parts(inside, n_rows=3)) == [slice(0, 3), slice(3, 6)]


def test_a_full_disk_is_one_message(monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(InputError, match=r"no room for a scratch file of 48 bytes .*Set TMPDIR"):
        scratch.empty((4, 3), np.int32)
