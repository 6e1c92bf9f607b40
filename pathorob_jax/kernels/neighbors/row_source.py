"""Rows that are not in memory as a whole: where searches and distances read parts of them."""

import abc

import numpy as np

from pathorob_jax.core.typing import Float, Int

BLOCK_BYTES = 2**25
BLOCK_UNIT = 64  # ``tiles.MIN_TILE_ROWS``: blocks of multiples of it round as the whole does


class RowSource(abc.ABC):
    """float32[N, D] rows outside memory; threads may read at the same time.

    Attributes:
        shape: (N, D).
        block_bytes: bytes of a block of rows; readers hold a few blocks at a time.
    """

    shape: tuple[int, int]
    block_bytes: int = BLOCK_BYTES

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Float[np.ndarray, "R D"]:
        start, stop, _ = rows.indices(len(self))
        return self.read(start, max(start, stop))

    @property
    def block_rows(self) -> int:
        """Rows of a block, a multiple of ``BLOCK_UNIT``."""
        return max(1, self.block_bytes // (4 * self.shape[1] * BLOCK_UNIT)) * BLOCK_UNIT

    @abc.abstractmethod
    def read(self, start: int, stop: int) -> Float[np.ndarray, "R D"]:
        """float32[stop - start, D] of consecutive rows, in an array of their own."""

    @abc.abstractmethod
    def take(self, rows: Int[np.ndarray, " R"]) -> Float[np.ndarray, "R D"]:
        """float32[R, D] of rows in any order, in an array of their own."""
