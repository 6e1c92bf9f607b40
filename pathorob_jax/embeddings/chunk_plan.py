"""Plan the steps of an extraction, and collect embeddings into the chunks of a store.

``plan_blocks`` returns the rows of each step for the missing chunks; a ``Sink`` takes the
embeddings of each step and writes chunks as soon as they are full. A chunk is a whole number of
blocks, so that neither the blocks of the plan nor the bytes of a chunk depend on which chunks are
missing or on the number of devices.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
import tensorstore as ts

from pathorob_jax.data.tile_batches import NO_ROW, plan_batches
from pathorob_jax.data.tileset import BadImage
from pathorob_jax.embeddings import tile_record
from pathorob_jax.embeddings.size_sorting import Step
from pathorob_jax.embeddings.store_writer import StoreWriter

WRITES_IN_FLIGHT = 4
# A chunk is one file, and the most that is lost when a run is killed.
MAX_CHUNKS = 8192
# Where tiles differ in size, the last block of each size in a chunk is filled up with black tiles.
BLOCKS_IF_MIXED = 16


def chunk_rows(n_rows: int, batch_size: int, *, mixed: bool = False) -> int:
    """Rows of a chunk: a multiple of the batch size, independent of the number of devices.

    Args:
        n_rows: rows of the tileset.
        batch_size: rows of a block.
        mixed: whether tiles are known to differ in size.
    """
    wanted = -(-n_rows // MAX_CHUNKS)
    blocks = max(1, -(-wanted // batch_size))
    if mixed:
        blocks = max(blocks, min(BLOCKS_IF_MIXED, -(-n_rows // batch_size)))
    return batch_size * blocks


def plan_blocks(
    chunks: Sequence[int], *, n_rows: int, chunk_rows: int, batch_size: int, n_devices: int
) -> np.ndarray:
    """Rows to read for each step: ``batch_size`` consecutive rows per device.

    Args:
        chunks: chunks to embed, ascending.
        n_rows: rows of the tileset.
        chunk_rows: rows of a chunk, a multiple of ``batch_size``.
        batch_size: rows of a block.
        n_devices: blocks of a step.

    Returns:
        int64[steps, n_devices * batch_size], ``NO_ROW`` for padding.
    """
    blocks = plan_batches(n_rows, batch_size=batch_size)
    chunk_of = np.arange(len(blocks)) // (chunk_rows // batch_size)
    blocks = blocks[np.isin(chunk_of, chunks)]
    short = -len(blocks) % n_devices
    blocks = np.concatenate([blocks, np.full((short, batch_size), NO_ROW, np.int64)])
    return blocks.reshape(-1, n_devices * batch_size)


class _Filling:
    """A chunk whose rows are coming in."""

    def __init__(self, rows: slice, dim: int, dtype: np.dtype):
        self.embeddings = np.zeros((rows.stop - rows.start, dim), dtype)
        self.digests = np.zeros(rows.stop - rows.start, np.uint64)
        self.bad: list[BadImage] = []
        self.outcomes: np.ndarray | None = None
        self.left = rows.stop - rows.start


class Sink:
    """Collects the rows of this process's missing chunks of a store, and writes full chunks."""

    def __init__(self, writer: StoreWriter, chunks: Sequence[int]):
        self._writer = writer
        self._wanted = np.zeros(-(-int(writer.info["n_rows"]) // writer.chunk_rows), bool)
        self._wanted[list(chunks)] = True
        self._filling: dict[int, _Filling] = {}
        self._writing: deque[ts.WriteFutures] = deque()

    def wants(self, rows: np.ndarray) -> np.ndarray:
        """bool[n]: which rows belong to these chunks."""
        return (rows != NO_ROW) & self._wanted[rows // self._writer.chunk_rows]

    def add(self, step: Step, embeddings: np.ndarray, outcomes: np.ndarray | None = None) -> None:
        """Add the embeddings of a step, in any order of the rows.

        Args:
            step: the tiles.
            embeddings: float[B, D].
            outcomes: uint8[B] what a stain method made of the tiles; None: there was none.
        """
        chunk_of = step.rows // self._writer.chunk_rows
        for chunk in np.unique(chunk_of[self.wants(step.rows)]).tolist():
            rows = self._writer.chunk_slice(chunk)
            if chunk not in self._filling:
                self._filling[chunk] = _Filling(rows, embeddings.shape[1], embeddings.dtype)
            filling, mine = self._filling[chunk], chunk_of == chunk
            filling.embeddings[step.rows[mine] - rows.start] = embeddings[mine]
            filling.digests[step.rows[mine] - rows.start] = step.digests[mine]
            bad = [b for b in step.bad if rows.start <= b.row < rows.stop]
            filling.bad += bad
            if outcomes is not None:
                if filling.outcomes is None:
                    filling.outcomes = np.full(len(filling.digests), tile_record.NO_OUTCOME)
                usable = mine & ~np.isin(step.rows, [b.row for b in bad])
                filling.outcomes[step.rows[usable] - rows.start] = outcomes[usable]
            filling.left -= int(mine.sum())
            if not filling.left:
                self._write(chunk, self._filling.pop(chunk))

    def _write(self, chunk: int, filled: _Filling) -> None:
        bad = sorted(filled.bad, key=lambda bad: bad.row)
        tile_record.write_record(self._writer, chunk, filled.digests, outcomes=filled.outcomes)
        self._writing.append(self._writer.write(chunk, filled.embeddings, bad=bad))
        if len(self._writing) > WRITES_IN_FLIGHT:
            self._writer.wait(self._writing.popleft())

    def finish(self) -> None:
        """Return once all writes are durable."""
        for writing in self._writing:
            self._writer.wait(writing)
