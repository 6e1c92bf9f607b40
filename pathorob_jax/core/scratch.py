"""Arrays that lie in a file without a name, for lists that memory need not hold as a whole.

``empty`` returns an ordinary array whose pages are those of a scratch file in the folder for
temporary files (``TMPDIR``). Whoever has gone through a part of it calls ``give_back``: its pages
leave the memory of the process, and are read again when they are needed. ``parts`` does both. All
of this does nothing to arrays in memory, so that code that goes through lists serves both.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError

# Rows of a part: a matrix of so many lists of a thousand neighbours takes 32 MB.
PART_ROWS = 8192


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of a new scratch file, which is gone with the array.

    Raises:
        InputError: the disk has no room for it.
    """
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not n_bytes:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        try:
            # All of it now: a disk that is full later would end the process by a signal.
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()}: no room for a scratch file of {n_bytes} bytes "
                f"({files.describe(error)}). Set TMPDIR to a folder on a disk with room, or give "
                "--search=memory."
            ) from error
        return np.frombuffer(mmap.mmap(file.fileno(), n_bytes), dtype).reshape(shape)


def empty_like(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array of another shape that lies where ``array`` does: in memory or in a file."""
    if _find_map(array) is None:
        return np.empty(shape, array.dtype)
    return empty(shape, array.dtype)


def is_scratch(array: np.ndarray) -> bool:
    """Whether an array lies in a scratch file."""
    return _find_map(array) is not None


def give_back(*arrays: np.ndarray) -> None:
    """Take the pages of arrays out of the memory of this process; their values stay."""
    for array in arrays:
        found = _find_map(array)
        if found is not None:
            found.madvise(mmap.MADV_DONTNEED)


def parts(*arrays: np.ndarray, n_rows: int | None = None) -> Iterator[slice]:
    """Slices of the first axis of arrays, whose pages are given back after each.

    Args:
        *arrays: arrays of equal length.
        n_rows: rows of a slice; the last one may have fewer. None: ``PART_ROWS``.
    """
    n_rows = n_rows or PART_ROWS
    for start in range(0, len(arrays[0]), n_rows):
        yield slice(start, start + n_rows)
        give_back(*arrays)


def column(array: np.ndarray, place: int) -> np.ndarray:
    """A copy of one column of a matrix."""
    out = np.empty(len(array), array.dtype)
    for part in parts(array):
        out[part] = array[part, place]
    return out


def head(array: np.ndarray, k: int) -> np.ndarray:
    """The first k columns of a matrix, in memory."""
    if not is_scratch(array):
        return array[:, :k]
    out = np.empty((len(array), min(k, array.shape[1])), array.dtype)
    for part in parts(array):
        out[part] = array[part, :k]
    return out


def full_like(array: np.ndarray, value: float, dtype: Any = None) -> np.ndarray:
    """An array of a value, of the shape of ``array``, where that lies."""
    if not is_scratch(array):
        return np.full_like(array, value, dtype=dtype)
    out = empty(array.shape, dtype or array.dtype)
    for part in parts(out):
        out[part] = value
    return out


def _find_map(array: Any) -> mmap.mmap | None:
    """The scratch file of an array or a view of one."""
    while isinstance(array, np.ndarray):
        array = array.base
    if isinstance(array, memoryview):
        array = array.obj
    return array if isinstance(array, mmap.mmap) else None
