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

from pathorob_jax.data.tile_batches import NO_ROW, Batch, plan_batches
from pathorob_jax.data.tileset import BadImage
from pathorob_jax.embeddings.store_writer import StoreWriter

WRITES_IN_FLIGHT = 4
# A chunk is one file, and the most that is lost when a run is killed.
MAX_CHUNKS = 8192


def chunk_rows(n_rows: int, batch_size: int) -> int:
    """Rows of a chunk: a multiple of the batch size, independent of the number of devices."""
    wanted = -(-n_rows // MAX_CHUNKS)
    return batch_size * max(1, -(-wanted // batch_size))


def plan_blocks(
    chunks: Sequence[int], *, n_rows: int, chunk_rows: int, batch_size: int, n_devices: int
) -> np.ndarray:
    """Rows of each step: one block of ``batch_size`` consecutive rows per device.

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


class Sink:
    """Collects the rows of this process's missing chunks of a store, and writes full chunks."""

    def __init__(self, writer: StoreWriter, chunks: Sequence[int]):
        self._writer = writer
        self._chunks = deque(chunks)
        self._wanted = np.zeros(-(-int(writer.info["n_rows"]) // writer.chunk_rows), bool)
        self._wanted[list(chunks)] = True
        self._rows: list[np.ndarray] = []
        self._bad: list[BadImage] = []
        self._writing: deque[ts.WriteFutures] = deque()

    def wants(self, rows: np.ndarray) -> np.ndarray:
        """bool[n]: which rows belong to these chunks."""
        return (rows != NO_ROW) & self._wanted[rows // self._writer.chunk_rows]

    def add(self, batch: Batch, embeddings: np.ndarray) -> None:
        """Add the embeddings of a step. Rows must come in ascending order."""
        mine = self.wants(batch.rows)
        self._rows.append(embeddings[mine])
        self._bad += [bad for bad in batch.bad if self.wants(np.asarray(bad.row))]
        while self._chunks and sum(map(len, self._rows)) >= self._length(self._chunks[0]):
            self._write(self._chunks.popleft())

    def _length(self, chunk: int) -> int:
        part = self._writer.chunk_slice(chunk)
        return part.stop - part.start

    def _write(self, chunk: int) -> None:
        rows, n = np.concatenate(self._rows), self._length(chunk)
        self._rows = [rows[n:]]
        stop = self._writer.chunk_slice(chunk).stop
        bad = [b for b in self._bad if b.row < stop]
        self._bad = [b for b in self._bad if b.row >= stop]
        self._writing.append(self._writer.write(chunk, rows[:n], bad=bad))
        if len(self._writing) > WRITES_IN_FLIGHT:
            self._writer.wait(self._writing.popleft())

    def finish(self) -> None:
        """Return once all writes are durable."""
        for writing in self._writing:
            self._writer.wait(writing)
