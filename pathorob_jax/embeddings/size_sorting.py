"""Sort tiles by size into blocks, so that a program is compiled once for each size.

A device embeds a block: ``batch_size`` tiles of one size. Where all tiles have one size, blocks are
consecutive rows. Elsewhere the rows of a chunk are sorted by size, and what is left of each size at
the end of the chunk is filled up with black tiles. So the blocks of a chunk, and its bytes, depend
on the chunk alone: not on devices, processes or interruptions.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from absl import logging

from pathorob_jax.data.decode import TileError
from pathorob_jax.data.tile_batches import NO_ROW, Batch, OnBadImage
from pathorob_jax.data.tileset import BadImage

Shape = tuple[int, int, int]


class Step(NamedTuple):
    """One block for each device.

    Attributes:
        images: uint8[B, H, W, 3]; black for padding and for bad images.
        rows: int64[B] rows of the tileset; ``NO_ROW`` for padding.
        digests: uint64[B] of the tiles' bytes, as in ``Batch``.
        bad: bad images among the rows.
    """

    images: np.ndarray
    rows: np.ndarray
    digests: np.ndarray
    bad: tuple[BadImage, ...]


class _Tile(NamedTuple):
    row: int
    image: np.ndarray
    digest: np.uint64
    bad: BadImage | None


class SizeSorter:
    """Turns batches of rows in ascending order into steps of tiles of one size."""

    def __init__(
        self,
        *,
        shape: Shape,
        chunk_rows: int,
        batch_size: int,
        n_devices: int,
        on_bad_image: OnBadImage,
        refuse: Callable[[Shape], str],
    ):
        """What to sort by.

        Args:
            shape: (H, W, 3) of the first tile; bad images count as such.
            chunk_rows: rows of a chunk. A chunk that has begun is read to its end.
            batch_size: tiles of a block.
            n_devices: blocks of a step.
            on_bad_image: what to do with a tile of a size that is refused.
            refuse: what is wrong with a size, "" if nothing.
        """
        self._shape, self._chunk_rows = shape, chunk_rows
        self._batch_size, self._n_devices = batch_size, n_devices
        self._on_bad_image, self._refuse = on_bad_image, refuse
        self._refused: dict[Shape, str] = {shape: ""}
        self._open: dict[Shape, list[_Tile]] = {}
        self._blocks: dict[Shape, list[list[_Tile]]] = {}

    def sort(self, batches: Iterator[Batch]) -> Iterator[Step]:
        """Steps of the tiles of all batches.

        Raises:
            TileError: a size is refused, and bad images are errors.
        """
        for batch in batches:
            if not batch.odd and not self._open and not self._blocks:
                yield Step(batch.images, batch.rows, batch.digests, batch.bad)
                continue
            for tile in self._tiles(batch):
                self._put(tile)
            # Sizes that are rare wait for no more blocks than the devices take at once.
            while sum(map(len, self._blocks.values())) >= self._n_devices:
                yield self._take()
        self._close()
        while self._blocks:
            yield self._take()

    def _tiles(self, batch: Batch) -> Iterator[_Tile]:
        bad_of = {bad.row: bad for bad in batch.bad}
        odd_at = {odd.at: odd for odd in batch.odd}
        black = np.zeros(self._shape, np.uint8)
        for at, row in enumerate(batch.rows.tolist()):
            if row == NO_ROW:
                continue
            image, bad = batch.images[at], bad_of.get(row)
            if at in odd_at:
                _, name, image = odd_at[at]
                wrong = self._check(image.shape)
                if wrong and self._on_bad_image == "error":
                    raise TileError(name, wrong, "Bring all tiles to one size.")
                if wrong:
                    image, bad = black, BadImage(row, name, wrong)
            # Copied: batches of worker processes are in shared memory, which is small.
            yield _Tile(row, np.array(image), batch.digests[at], bad)

    def _check(self, shape: Shape) -> str:
        if shape not in self._refused:
            wrong = self._refuse(shape)
            if wrong:
                wrong = (
                    f"expected {self._shape[1]} x {self._shape[0]} pixels like the first tile of "
                    f"the tileset, found {shape[1]} x {shape[0]}, which cannot be embedded "
                    f"({wrong})"
                )
            else:
                logging.info(
                    "tiles of %d x %d pixels, too: compiled for these as well", shape[1], shape[0]
                )
            self._refused[shape] = wrong
        return self._refused[shape]

    def _put(self, tile: _Tile) -> None:
        shape = tile.image.shape
        tiles = self._open.setdefault(shape, [])
        tiles.append(tile)
        if len(tiles) == self._batch_size:
            self._blocks.setdefault(shape, []).append(self._open.pop(shape))
        if (tile.row + 1) % self._chunk_rows == 0:
            self._close()

    def _close(self) -> None:
        """Let the blocks of a chunk end with it."""
        for shape, tiles in self._open.items():
            self._blocks.setdefault(shape, []).append(tiles)
        self._open = {}

    def _take(self) -> Step:
        """A step of the size that has most blocks."""
        shape = max(self._blocks, key=lambda s: len(self._blocks[s]))
        blocks, left = (
            self._blocks[shape][: self._n_devices],
            self._blocks[shape][self._n_devices :],
        )
        self._blocks[shape] = left
        if not left:
            del self._blocks[shape]
        n = self._n_devices * self._batch_size
        images = np.zeros((n, *shape), np.uint8)
        rows, digests = np.full(n, NO_ROW, np.int64), np.zeros(n, np.uint64)
        for number, block in enumerate(blocks):
            for at, tile in enumerate(block, number * self._batch_size):
                images[at], rows[at], digests[at] = tile.image, tile.row, tile.digest
        bad = tuple(tile.bad for block in blocks for tile in block if tile.bad is not None)
        return Step(images, rows, digests, bad)
