"""The rows of a store, a bounded number at a time, and checks of names that formats share."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import Manifest
from pathorob_jax.embeddings.store import Store

# Bytes of embeddings that are held at a time.
BLOCK_BYTES = 2**26


class Block(NamedTuple):
    """Some of the rows that are written.

    Attributes:
        start: position of the first among them.
        rows: int64[n] rows of the store's manifest.
        embeddings: float32[n, D].
    """

    start: int
    rows: np.ndarray
    embeddings: np.ndarray


def read_blocks(store: Store, rows: np.ndarray | None = None) -> Iterator[Block]:
    """The given rows of a store (None: all) in their order, a block at a time."""
    rows = np.arange(len(store)) if rows is None else rows
    n = rows_at_once(store)
    for start in range(0, len(rows), n):
        part = rows[start : start + n]
        yield Block(start, part, np.ascontiguousarray(store.read(part)))


def rows_at_once(store: Store) -> int:
    """Rows of a block."""
    return max(1, BLOCK_BYTES // (4 * store.dim))


def columns_of(manifest: Manifest, taken: str, *, form: str) -> dict[str, list[str]]:
    """Columns of a manifest, beside which the name ``taken`` is free.

    Raises:
        InputError: a column has the name that the embeddings have in this format.
    """
    if taken in manifest.table.column_names:
        raise InputError(
            f"{manifest.source}: has a column {taken!r}, which is the name of the embeddings in "
            f"--format={form}; rename the column and import or extract again."
        )
    return {name: manifest.table[name].to_pylist() for name in manifest.table.column_names}
