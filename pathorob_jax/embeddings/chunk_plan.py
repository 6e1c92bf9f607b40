"""Plan the steps of an extraction, and collect embeddings into the chunks of a store.

A ``GrowingPlan`` has the rows of each step, for chunks that this process takes one after the other;
a ``Sink`` takes the embeddings of each step and writes chunks as soon as they are full. A chunk is
a whole number of blocks, so that neither the blocks of the plan nor the bytes of a chunk depend on
which chunks are missing or on the number of devices.
"""

import os
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore as ts

from pathorob_jax.data.tile_batches import NO_ROW
from pathorob_jax.data.tileset import BadImage
from pathorob_jax.embeddings import tile_record
from pathorob_jax.embeddings.size_sorting import Step
from pathorob_jax.embeddings.store_writer import StoreWriter

WRITES_IN_FLIGHT = 4
# A chunk is one file, and the most that is lost when a run is killed.
MAX_CHUNKS = 8192
# Where tiles differ in size, the last block of each size in a chunk is filled up with black tiles.
BLOCKS_IF_MIXED = 16
# How often a reader that is ahead of the plan looks for its next step.
LOOK_EVERY_S = 0.005
_PADDING, _NOT_PLANNED = -(2**31), -(2**31) - 1


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


class GrowingPlan:
    """The rows of each step, planned while others are read already; for ``read_batches``.

    ``batch_size`` consecutive rows per device, ``NO_ROW`` for padding. A step that is not planned
    yet is waited for; after the last one come steps of ``NO_ROW`` alone. The numbers of the blocks
    lie in a file of the machine, because decoding processes read them too.
    """

    def __init__(
        self, folder: str, *, n_rows: int, chunk_rows: int, batch_size: int, n_devices: int
    ):
        """Begin a plan of no steps.

        Args:
            folder: local folder for its file.
            n_rows: rows of the tileset.
            chunk_rows: rows of a chunk, a multiple of ``batch_size``.
            batch_size: rows of a block.
            n_devices: blocks of a step.
        """
        self._n_rows, self._batch_size = n_rows, batch_size
        self._blocks_of_chunk = chunk_rows // batch_size
        n_blocks = -(-n_rows // batch_size)
        self._shape = (-(-n_blocks // n_devices) + 1, n_devices)
        self._path = os.path.join(folder, "plan")
        self._blocks = np.memmap(self._path, np.int64, "w+", shape=self._shape)
        self._blocks[:] = _NOT_PLANNED
        self._waiting: deque[int] = deque()
        self._n_planned = 0
        self._is_ended = False

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, step: int) -> np.ndarray:
        """int64[n_devices * batch_size]: rows of a step."""
        while (self._blocks[step] == _NOT_PLANNED).any():
            time.sleep(LOOK_EVERY_S)
        starts = np.array(self._blocks[step]) * self._batch_size
        rows = starts[:, None] + np.arange(self._batch_size)
        rows[(rows < 0) | (rows >= self._n_rows)] = NO_ROW
        return rows.reshape(-1)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_blocks", "_waiting")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._blocks = np.memmap(self._path, np.int64, "r", shape=self._shape)

    def grow(self, n_steps: int, chunks: Iterator[int]) -> None:
        """Plan until there are so many steps, or no chunk is left.

        Args:
            n_steps: number of steps.
            chunks: where the next chunks come from, ascending; drawn when needed.
        """
        n_devices = self._shape[1]
        while self._n_planned < n_steps and not self._is_ended:
            while len(self._waiting) < n_devices:
                chunk = next(chunks, None)
                if chunk is None:
                    break
                first = chunk * self._blocks_of_chunk
                last = min(first + self._blocks_of_chunk, -(-self._n_rows // self._batch_size))
                self._waiting += range(first, last)
            if not self._waiting:
                self.end()
                return
            blocks = [self._waiting.popleft() for _ in range(min(n_devices, len(self._waiting)))]
            blocks += [_PADDING] * (n_devices - len(blocks))
            self._blocks[self._n_planned] = blocks
            self._n_planned += 1

    def end(self) -> None:
        """Let nobody wait for more steps."""
        self._blocks[self._n_planned :] = _PADDING
        self._is_ended = True


class _Filling:
    """A chunk whose rows are coming in."""

    def __init__(self, rows: slice, dim: int, dtype: np.dtype):
        self.embeddings = np.zeros((rows.stop - rows.start, dim), dtype)
        self.digests = np.zeros(rows.stop - rows.start, np.uint64)
        self.bad: list[BadImage] = []
        self.outcomes: np.ndarray | None = None
        self.left = rows.stop - rows.start


class Sink:
    """Collects the rows of the chunks of a store that this process has taken; writes full ones."""

    def __init__(self, writer: StoreWriter):
        self._writer = writer
        self._wanted = np.zeros(-(-int(writer.info["n_rows"]) // writer.chunk_rows), bool)
        self._filling: dict[int, _Filling] = {}
        self._writing: deque[ts.WriteFutures] = deque()

    def want(self, chunk: int) -> None:
        """Expect the rows of a chunk."""
        self._wanted[chunk] = True

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
        self._wanted[chunk] = False
        if self._writer.is_superseded():
            return
        bad = sorted(filled.bad, key=lambda bad: bad.row)
        tile_record.write_record(self._writer, chunk, filled.digests, outcomes=filled.outcomes)
        self._writing.append(self._writer.write(chunk, filled.embeddings, bad=bad))
        if len(self._writing) > WRITES_IN_FLIGHT:
            self._writer.wait(self._writing.popleft())

    def finish(self) -> None:
        """Return once all writes are durable."""
        for writing in self._writing:
            self._writer.wait(writing)
        self._writing.clear()
