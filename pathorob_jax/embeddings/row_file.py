"""Embeddings of a view in a scratch file, for searches of more rows than memory holds.

A view's rows lie in other order than those of the store, whose chunks are read as a whole, and a
store may be far away. So the rows are written once, in the order of the view, to a file of float32
without a name in the folder for temporary files (``TMPDIR``). It is gone when it is closed, however
the process ends.
"""

import os
import tempfile
import weakref
from collections.abc import Sequence
from typing import IO

import numpy as np

from pathorob_jax.core import aligned, checks, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Float, Int
from pathorob_jax.embeddings.store import Store
from pathorob_jax.kernels.neighbors.row_source import RowSource

# Bytes of embeddings that are copied at a time.
COPY_BYTES = 2**26


class RowFile(RowSource):
    """float32[N, D] rows in a file of their bytes; see ``RowSource``."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._row_bytes = 4 * shape[1]
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the object
        weakref.finalize(self, self._file.close)

    def read(self, start: int, stop: int) -> Float[np.ndarray, "R D"]:
        """float32[stop - start, D]; CPU devices share its memory."""
        out = aligned.empty_aligned((stop - start, self.shape[1]))
        self._fill(out.reshape(-1).view(np.uint8).data, start * self._row_bytes)
        return out

    def take(self, rows: Int[np.ndarray, " R"]) -> Float[np.ndarray, "R D"]:
        """float32[R, D] of rows in any order."""
        out = aligned.empty_aligned((len(rows), self.shape[1]))
        data = out.reshape(-1).view(np.uint8).data
        for i, row in enumerate(np.asarray(rows).tolist()):
            at = i * self._row_bytes
            self._fill(data[at : at + self._row_bytes], row * self._row_bytes)
        return out

    def write(self, rows: Int[np.ndarray, " R"], values: Float[np.ndarray, "R D"]) -> None:
        """Put rows where they belong."""
        data = np.ascontiguousarray(values, np.float32)
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        for part in np.split(np.arange(len(rows)), cuts):
            if len(part):
                _write_all(
                    self._file.fileno(),
                    data[part[0] : part[-1] + 1],
                    int(rows[part[0]]) * self._row_bytes,
                )

    def _fill(self, target: memoryview, at: int) -> None:
        while target:
            n_read = os.preadv(self._file.fileno(), [target], at)
            if not n_read:
                raise InputError("the file of rows ends early: it was cut while it was read.")
            target, at = target[n_read:], at + n_read


def _write_all(handle: int, values: np.ndarray, at: int) -> None:
    data = values.reshape(-1).view(np.uint8).data
    while data:
        n_written = os.pwrite(handle, data, at)
        data, at = data[n_written:], at + n_written


def copy_rows(store: Store, rows: Int[np.ndarray, " R"]) -> RowFile:
    """Copy embeddings of a store to a ``RowFile``, each chunk read once.

    Args:
        store: embeddings.
        rows: int64[R] rows of the store's manifest, in the order wanted.

    Raises:
        InputError: an embedding has no direction, or the disk has no room for the file.
    """
    if store.is_on_disk:
        store = store.caching(0)  # what is read once need not stay
    found = RowFile((len(rows), store.dim))
    order = np.argsort(rows, kind="stable")
    bad: list[int] = []
    try:
        for part in _split(store, rows[order]):
            where = order[part]
            embeddings = store.read(rows[where])
            some, _ = checks.find_bad_rows(embeddings)
            bad += where[some].tolist()
            found.write(where, embeddings)
    except OSError as error:
        size = 4 * found.shape[0] * found.shape[1]
        raise InputError(
            f"{tempfile.gettempdir()}: the {size} bytes of embeddings cannot be written there "
            f"({files.describe(error)}). Set TMPDIR to a folder on a disk with room, or "
            "give --search=memory."
        ) from error
    if bad:
        store.refuse_bad(
            rows, np.sort(bad), checks.find_bad_rows(found.take(np.array([min(bad)])))[1]
        )
    return found


def _split(store: Store, rows: Int[np.ndarray, " R"]) -> Sequence[np.ndarray]:
    """Places of ascending rows, cut where chunks of the store end, ``COPY_BYTES`` at a time."""
    chunk_rows = int(store.info.get("chunk_rows", 1024))
    step = max(1, COPY_BYTES // (4 * store.dim * chunk_rows)) * chunk_rows
    ends = np.arange(step, int(rows.max(initial=0)) + 1, step)
    borders = np.searchsorted(rows, ends)
    return [part for part in np.split(np.arange(len(rows)), borders) if len(part)]
