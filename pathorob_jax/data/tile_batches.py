"""Read batches of decoded tiles ahead of their consumer.

``read_batches`` yields uint8 tiles in the order of a plan of rows. Order and values are the same
for any number of threads and processes. grain prepares a few steps ahead, in this process or in
worker processes. Each process decodes the tiles of all its steps in one thread pool, so that the
tiles being decoded are adjacent in the plan and memory does not grow with the length of the plan.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol

import grain
import numpy as np
from absl import flags

from pathorob_jax.core import checks, hosts
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.decode import TileError, decode_tile, image_size
from pathorob_jax.data.tileset import BadImage, Tileset

OnBadImage = Literal["error", "skip"]

NO_ROW = -1
# With two steps at a time the threads stay busy from one step to the next.
STEPS_AT_A_TIME, STEPS_AHEAD, STEPS_AHEAD_OF_WORKERS = 2, 4, 2


class Plan(Protocol):
    """The rows of each step."""

    def __len__(self) -> int:
        """Number of steps."""
        ...

    def __getitem__(self, step: Any) -> np.ndarray:
        """int[B]: rows of a step."""
        ...


class OddTile(NamedTuple):
    """A tile of another size than the others.

    Attributes:
        at: its place in the batch.
        name: the file of the tile, or the file and row.
        image: uint8[H, W, 3].
    """

    at: int
    name: str
    image: np.ndarray


class Batch(NamedTuple):
    """Tiles of one step.

    Attributes:
        images: uint8[B, H, W, 3]; black where masked.
        rows: int64[B] rows of the tileset; ``NO_ROW`` for padding.
        mask: bool[B] True for tiles; False for padding, bad images and odd tiles.
        bad: the bad images, in the order of the rows.
        odd: the tiles of other sizes, in the order of the rows.
        digests: uint64[B] beginning of the sha256 of the bytes of each tile, as they were read; 0
            where there were none.
        read_s: seconds of reading and decoding, summed over tiles, threads and processes.
    """

    images: np.ndarray
    rows: np.ndarray
    mask: np.ndarray
    bad: tuple[BadImage, ...]
    odd: tuple[OddTile, ...]
    digests: np.ndarray
    read_s: float


def plan_batches(n_rows: int, *, batch_size: int) -> np.ndarray:
    """int64[steps, batch_size]: all rows in order, then ``NO_ROW``."""
    rows = np.arange(-(-n_rows // batch_size) * batch_size, dtype=np.int64)
    rows[n_rows:] = NO_ROW
    return rows.reshape(-1, batch_size)


def digest_tile(data: bytes) -> np.uint64:
    """What a record keeps of the bytes of a tile: the first 8 bytes of their sha256."""
    return np.uint64(int.from_bytes(hashlib.sha256(data).digest()[:8], "little"))


def tile_shape(tileset: Tileset, *, on_bad_image: OnBadImage = "error") -> tuple[int, int, int]:
    """Shape (H, W, 3) of the first tile that can be decoded.

    Args:
        tileset: the tiles.
        on_bad_image: with "skip", bad images before that tile are skipped.

    Raises:
        InputError: the first tile is bad; with "skip": all tiles are bad.
    """
    first = None
    for row in range(len(tileset)):
        try:
            data, name = tileset.reader.read(row)
            image = decode_tile(data, name, image_range=tileset.image_range)
            return image.shape[0], image.shape[1], image.shape[2]
        except TileError as error:
            if on_bad_image == "error":
                raise
            first = first or error
    raise InputError(
        f"{tileset.path}: expected images, found none that can be used among {len(tileset)}; "
        f"the first: {first}"
    )


def are_mixed(tileset: Tileset, shape: tuple[int, int, int]) -> bool:
    """Whether a few tiles, far apart in the tileset, are not all of one size."""
    for row in tileset.sample:
        try:
            if image_size(tileset.reader.read(row)[0]) not in (None, shape[:2]):
                return True
        except TileError:
            continue
    return False


def steps_ahead(workers: int) -> int:
    """How many steps ``read_batches`` may be ahead of its consumer."""
    return max(STEPS_AT_A_TIME + STEPS_AHEAD, workers * (1 + STEPS_AHEAD_OF_WORKERS))


def read_batches(
    tileset: Tileset,
    plan: Plan,
    *,
    workers: int = 0,
    threads: int | None = None,
    on_bad_image: OnBadImage = "error",
    shape: tuple[int, int, int] | None = None,
    mixed: bool = False,
) -> Iterator[Batch]:
    """Decode the tiles of a plan ahead of the consumer, in the order of the plan.

    Args:
        tileset: the tiles.
        plan: int64[steps, B] rows in any order; rows may repeat; ``NO_ROW`` for padding. An array,
            or what has a length and gives the rows of a step when it is asked.
        workers: number of decoding processes; 0: decode in threads of this process. Order and
            values do not depend on it. A script that uses workers needs the usual
            ``if __name__ == "__main__"`` guard.
        threads: decoding threads (per worker); None: as many as cores, divided among workers.
        on_bad_image: what to do with an image that cannot be decoded, is missing, or has another
            size than ``shape``: "error" ends the run, "skip" masks it and lists it in its batch.
            A Parquet file that cannot be read is always an error.
        shape: (H, W, 3) of every tile; None: ``tile_shape`` of the tileset.
        mixed: tiles may be of any size; those of other sizes than ``shape`` are the batch's ``odd``
            ones.

    Raises:
        TileError: an image is bad.
        InputError: a Parquet file cannot be read; all images are bad; a decoding process was
            killed.
        UsageError: ``on_bad_image`` is neither.
    """
    checks.check_known(on_bad_image, ("error", "skip"), what="on_bad_image")
    if not len(plan):
        return iter(())
    shape = shape or tile_shape(tileset, on_bad_image=on_bad_image)
    threads = threads or max(1, hosts.n_cores() // max(workers, 1))
    source = _PlannedBatches(tileset, plan, shape, threads, on_bad_image, mixed=mixed)
    options = grain.ReadOptions(num_threads=STEPS_AT_A_TIME, prefetch_buffer_size=STEPS_AHEAD)
    dataset = grain.MapDataset.source(source).to_iter_dataset(options)
    if not workers:
        return iter(dataset)
    # grain's workers read an absl flag even if no absl app has parsed flags (grain 0.2).
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return _from_workers(
        dataset.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=STEPS_AHEAD_OF_WORKERS
            ),
            worker_init_fn=_ignore_interrupts,
        )
    )


def _ignore_interrupts(*_: int) -> None:
    """Ctrl-C reaches all processes of a terminal: the parent ends the run, and its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _from_workers(dataset: Any) -> Iterator[Batch]:
    """The batches of worker processes.

    Raises:
        InputError: a worker was killed.
    """
    batches = iter(dataset)
    try:
        # Workers inherit the mask, which holds while they import their libraries.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            batch = next(batches, None)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while batch is not None:
            yield batch
            batch = next(batches, None)
    except RuntimeError as error:
        if "exit code" not in str(error):
            raise
        raise InputError(
            f"workers: a process that decodes images was killed ({error}). The usual reason is too "
            "little memory, or too little shared memory (/dev/shm): lower --workers or "
            "--batch_size, and give the same command again."
        ) from error
    finally:
        batches.close()


class _Decoded(NamedTuple):
    """What came of a row besides its pixels."""

    bad: BadImage | None = None
    odd: tuple[str, np.ndarray] | None = None
    digest: np.uint64 = np.uint64(0)
    seconds: float = 0.0


class _PlannedBatches:
    """Random-access source of the decoded steps of a plan."""

    def __init__(
        self,
        tileset: Tileset,
        plan: Plan,
        shape: tuple[int, int, int],
        threads: int,
        on_bad_image: OnBadImage,
        *,
        mixed: bool,
    ):
        self._reader, self._image_range = tileset.reader, tileset.image_range
        self._plan, self._shape, self._mixed = plan, shape, mixed
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
        with self._lock:  # one step after the other, because readers keep few rows
            filled = self._pool.map(self._fill, rows.tolist(), images)
        done = list(filled)
        bad = tuple(one.bad for one in done if one.bad is not None)
        odd = tuple(OddTile(at, *one.odd) for at, one in enumerate(done) if one.odd is not None)
        mask = (rows != NO_ROW) & np.asarray([one.bad is None and one.odd is None for one in done])
        digests = np.asarray([one.digest for one in done], np.uint64)
        return Batch(images, rows, mask, bad, odd, digests, sum(one.seconds for one in done))

    def _fill(self, row: int, image: np.ndarray) -> _Decoded:
        """Decode a row into ``image``, if it has that size."""
        if row == NO_ROW:
            return _Decoded()
        start = time.perf_counter()
        done = _Decoded()
        try:
            data, name = self._reader.read(row)
            done = done._replace(digest=digest_tile(data))
            pixels = decode_tile(data, name, image_range=self._image_range)
            if pixels.shape == self._shape:
                image[:] = pixels
            elif self._mixed:
                done = done._replace(odd=(name, pixels))
            else:
                raise TileError(
                    name,
                    f"expected {self._shape[1]} x {self._shape[0]} pixels like the first tile of "
                    f"the tileset, found {pixels.shape[1]} x {pixels.shape[0]}",
                    "Bring all tiles to one size.",
                )
        except TileError as error:
            if self._on_bad_image == "error":
                raise
            done = done._replace(bad=BadImage(row, error.name, error.reason))
        return done._replace(seconds=time.perf_counter() - start)

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
