"""Tiles of rows that the host puts on a CPU device one by one, and keeps while they are in use.

``HostRows.cut`` takes a tile of rows in the order in which they are searched. A random order makes
every tile a random sample of all rows, which ``host_lists`` uses to bound lists early.
"""

import functools
import threading
from typing import Any, NamedTuple

import jax
import numpy as np

from pathorob_jax.core.aligned import empty_aligned
from pathorob_jax.core.typing import Array, Bool, Float, Int
from pathorob_jax.kernels.neighbors import tiles
from pathorob_jax.kernels.neighbors.tiles import Block, Tile

SEED = 20


class HostTile(NamedTuple):
    """A tile on the device and the places of its rows; the last tile overlaps the previous one.

    Attributes:
        number: tile number.
        start: place of its first row in the order of the search.
        own_start: first place that no earlier tile holds. From here on, the tile updates lists.
        rows: int32[tile] row numbers.
        tile: rows on the device.
    """

    number: int
    start: int
    own_start: int
    rows: Int[np.ndarray, " tile"]
    tile: Tile

    @property
    def stop(self) -> int:
        """Place after its last row."""
        return self.start + len(self.rows)


class HostRows:
    """Rows on the host, of which the tiles that were used last are kept on the device.

    Args:
        embeddings: float[N, D] with slices of rows; an array if there is an ``order``.
        labels: int[1 or 3, N] groups, and the two labels that define the types.
        tile: rows of a tile.
        device: a CPU.
        n_kept: tiles to keep.
        order: int32[N] row of each place; None: rows are searched in their own order.
    """

    def __init__(
        self,
        embeddings: Any,
        labels: Int[np.ndarray, "L N"],
        tile: int,
        device: jax.Device,
        *,
        n_kept: int,
        order: Int[np.ndarray, " N"] | None = None,
    ) -> None:
        self.embeddings, self.labels = embeddings, labels.astype(np.int32)
        self.tile, self.device, self.order = tile, device, order
        self._scales: dict[int, Array] = {}
        self._cut = functools.lru_cache(n_kept)(self._read)
        self._lock = threading.Lock()

    @property
    def n_tiles(self) -> int:
        """Number of tiles of all rows."""
        return -(-self.embeddings.shape[0] // self.tile)

    def cut(self, number: int) -> HostTile:
        """A tile on the device, read if it is not among those that were used last."""
        with self._lock:  # so that two lanes do not both read it
            return self._cut(number)

    def gather(self, rows: Int[np.ndarray, " R"]) -> HostTile:
        """At most a tile of any rows, filled up with rows that are no neighbours."""
        filled = np.resize(rows, self.tile).astype(np.int32)
        own = np.arange(self.tile) < len(rows)
        return self._place(self._copy(filled), filled, own, number=-1, start=0)

    def forget(self) -> None:
        """Free what is kept of the rows; it would stay until the garbage is collected."""
        self._scales.clear()
        self._cut.cache_clear()

    def _read(self, number: int) -> HostTile:
        own_start = number * self.tile
        start = min(own_start, self.embeddings.shape[0] - self.tile)
        places = np.arange(start, start + self.tile, dtype=np.int32)
        own = places >= own_start
        if self.order is None:
            x = np.asarray(self.embeddings[start : start + self.tile], np.float32)
            return self._place(x, places, own, number=number, start=start)
        rows = self.order[start : start + self.tile]
        return self._place(self._copy(rows), rows, own, number=number, start=start)

    def _copy(self, rows: Int[np.ndarray, " tile"]) -> Float[np.ndarray, "tile D"]:
        x = empty_aligned((len(rows), self.embeddings.shape[1]))
        if isinstance(self.embeddings, np.ndarray) and self.embeddings.dtype == x.dtype:
            # Rows are there; to look for others, NumPy would copy them twice.
            return np.take(self.embeddings, rows, axis=0, out=x, mode="clip")
        x[:] = self.embeddings[rows]
        return x

    def _place(
        self,
        x: Float[np.ndarray, "tile D"],
        rows: Int[np.ndarray, " tile"],
        own: Bool[np.ndarray, " tile"],
        *,
        number: int,
        start: int,
    ) -> HostTile:
        parts = jax.device_put((x, self.labels[:, rows], rows, np.int32(start), own), self.device)
        scale = self._scales.get(number)
        if scale is None:
            scale = _inverse_norms(parts[0])
            if number >= 0:
                self._scales[number] = scale
        block = Block(x=parts[0], labels=parts[1], scale=scale, rows=parts[2])
        return HostTile(number, start, start + int(np.argmax(own)), rows, Tile(block, *parts[3:]))


_inverse_norms = jax.jit(tiles.inverse_norms)


def shuffle(n: int) -> Int[np.ndarray, " N"]:
    """int32[N] of all rows in a random order, the same each time."""
    return np.random.default_rng(SEED).permutation(n).astype(np.int32)
