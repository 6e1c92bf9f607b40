"""Read batches of decoded tiles ahead of their consumer.

``read_batches`` yields uint8 tiles in the order of a plan of rows. Order and values are the same
for any number of threads and processes. grain prepares a few steps ahead, in this process or in
worker processes. Each process decodes the tiles of all its steps in one thread pool, so that the
tiles being decoded are adjacent in the plan and memory does not grow with the length of the plan.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import grain
import numpy as np
from absl import flags

from pathorob_jax.core import checks, hosts
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.decode import TileError, decode_tile
from pathorob_jax.data.tileset import BadImage, TileReader, Tileset

OnBadImage = Literal["error", "skip"]

NO_ROW = -1
# With two steps at a time the threads stay busy from one step to the next.
STEPS_AT_A_TIME, STEPS_AHEAD, STEPS_AHEAD_OF_WORKERS = 2, 4, 2


class Batch(NamedTuple):
    """Tiles of one step.

    Attributes:
        images: uint8[B, H, W, 3]; black where masked.
        rows: int64[B] rows of the tileset; ``NO_ROW`` for padding.
        mask: bool[B] True for tiles; False for padding and for bad images.
        bad: the bad images, in the order of the rows.
        read_s: seconds of reading and decoding, summed over tiles, threads and processes.
    """

    images: np.ndarray
    rows: np.ndarray
    mask: np.ndarray
    bad: tuple[BadImage, ...]
    read_s: float


def plan_batches(n_rows: int, *, batch_size: int) -> np.ndarray:
    """int64[steps, batch_size]: all rows in order, then ``NO_ROW``."""
    rows = np.arange(-(-n_rows // batch_size) * batch_size, dtype=np.int64)
    rows[n_rows:] = NO_ROW
    return rows.reshape(-1, batch_size)


def tile_shape(tileset: Tileset, *, on_bad_image: OnBadImage = "error") -> tuple[int, int, int]:
    """Shape (H, W, 3) that all tiles must have: that of the first tile that can be decoded.

    Args:
        tileset: the tiles.
        on_bad_image: with "skip", bad images before that tile are skipped.

    Raises:
        InputError: the first tile is bad; with "skip": all tiles are bad.
    """
    first = None
    for row in range(len(tileset)):
        try:
            height, width, channels = decode_tile(*tileset.reader.read(row)).shape
            return height, width, channels
        except TileError as error:
            if on_bad_image == "error":
                raise
            first = first or error
    raise InputError(
        f"{tileset.path}: expected images, found none that can be used among {len(tileset)}; "
        f"the first: {first}"
    )


def read_batches(
    tileset: Tileset,
    plan: np.ndarray,
    *,
    workers: int = 0,
    threads: int | None = None,
    on_bad_image: OnBadImage = "error",
    shape: tuple[int, int, int] | None = None,
) -> Iterator[Batch]:
    """Decode the tiles of a plan ahead of the consumer, in the order of the plan.

    Args:
        tileset: the tiles.
        plan: int64[steps, B] rows in any order; rows may repeat; ``NO_ROW`` for padding.
        workers: number of decoding processes; 0: decode in threads of this process. Order and
            values do not depend on it. A script that uses workers needs the usual
            ``if __name__ == "__main__"`` guard.
        threads: decoding threads (per worker); None: as many as cores, divided among workers.
        on_bad_image: what to do with an image that cannot be decoded, is missing, or has another
            size than ``shape``: "error" ends the run, "skip" masks it and lists it in its batch.
            A Parquet file that cannot be read is always an error.
        shape: (H, W, 3) of every tile; None: ``tile_shape`` of the tileset.

    Raises:
        TileError: an image is bad.
        InputError: a Parquet file cannot be read; all images are bad.
        UsageError: ``on_bad_image`` is neither.
    """
    checks.check_known(on_bad_image, ("error", "skip"), what="on_bad_image")
    if not plan.size:
        return iter(())
    shape = shape or tile_shape(tileset, on_bad_image=on_bad_image)
    threads = threads or max(1, hosts.n_cores() // max(workers, 1))
    source = _PlannedBatches(tileset.reader, plan, shape, threads, on_bad_image)
    options = grain.ReadOptions(num_threads=STEPS_AT_A_TIME, prefetch_buffer_size=STEPS_AHEAD)
    dataset = grain.MapDataset.source(source).to_iter_dataset(options)
    if workers:
        # grain's workers read an absl flag even if no absl app has parsed flags (grain 0.2).
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=STEPS_AHEAD_OF_WORKERS
            )
        )
    return iter(dataset)


class _PlannedBatches:
    """Random-access source of the decoded steps of a plan."""

    def __init__(
        self,
        reader: TileReader,
        plan: np.ndarray,
        shape: tuple[int, int, int],
        threads: int,
        on_bad_image: OnBadImage,
    ):
        self._reader, self._plan, self._shape = reader, plan, shape
        self._threads, self._on_bad_image = threads, on_bad_image
        self._start()

    def _start(self) -> None:
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, step: Any) -> Batch:
        rows = self._plan[step].astype(np.int64)
        images = np.zeros((len(rows), *self._shape), np.uint8)
        with self._lock:  # one step after the other, because readers keep few row groups
            filled = self._pool.map(self._fill, rows.tolist(), images)
        done = list(filled)
        bad = tuple(found for found, _ in done if found is not None)
        mask = (rows != NO_ROW) & np.asarray([found is None for found, _ in done])
        return Batch(images, rows, mask, bad, sum(seconds for _, seconds in done))

    def _fill(self, row: int, image: np.ndarray) -> tuple[BadImage | None, float]:
        """Decode a row into ``image``; return what is wrong with it, and the seconds taken."""
        if row == NO_ROW:
            return None, 0.0
        start = time.perf_counter()
        bad = None
        try:
            image[:] = self._decode(row)
        except TileError as error:
            if self._on_bad_image == "error":
                raise
            bad = BadImage(row, error.name, error.reason)
        return bad, time.perf_counter() - start

    def _decode(self, row: int) -> np.ndarray:
        data, name = self._reader.read(row)
        image = decode_tile(data, name)
        if image.shape != self._shape:
            raise TileError(
                name,
                f"expected {self._shape[1]} x {self._shape[0]} pixels like the first tile of the "
                f"tileset, found {image.shape[1]} x {image.shape[0]}",
                "Bring all tiles to one size.",
            )
        return image

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_pool", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()
        parent = multiprocessing.parent_process()
        if parent is not None:  # a worker must not outlive a parent that was killed
            threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: Any) -> None:
    parent.join()
    os._exit(1)
