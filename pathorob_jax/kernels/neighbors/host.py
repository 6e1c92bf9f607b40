"""Neighbour search on CPU: XLA scores the tiles, the host keeps the lists.

The lists are bit for bit those of the other searches (see ``search``).

On CPU, selecting with XLA costs as much as the products: its ``top_k`` takes about 18 ns per score
at k = 100, and each score is inspected from both sides. But once a row has k neighbours, few scores
can still enter its list: of n columns in random order, about k (1 + ln(n / k)). XLA therefore
compares every score with the last entry of both lists while the score is in cache, and the host
collects the few that enter. Where many would, as in a row's first tile, the host first selects the
k-th best of the tile as a bound.

A neighbour is stored as one integer, ``distance bits << 32 | row``. Non-negative floats sort like
their bits, so the integers sort by (distance, row), in whatever order tiles are processed. Several
threads can therefore process different pairs of tiles at the same time.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pathorob_jax.core import scratch
from pathorob_jax.core.devices import default_modes
from pathorob_jax.core.hosts import n_cores
from pathorob_jax.core.typing import Array, ArrayLike, Bool, Float, Int, UInt8
from pathorob_jax.kernels.neighbors import tiles
from pathorob_jax.kernels.neighbors.tiles import Block, Neighbors, Tile

# Pairs of tiles processed at the same time: while the host works on one, the other cores multiply.
MAX_LANES = 8
# Pairs per task: they share their first tile, which is put on the device once.
TASK_PAIRS = 4
SORTED_ROWS = 512
# Per score of a pair of tiles, at most: the score; in XLA the masks; for a bound, the distances of
# a list, their transposed copy and its selection; the entering neighbours. A test checks the sum.
BYTES_PER_SCORE = 56
# If more than this share of a tile's scores enters, a tighter bound is computed, and the scores
# that still enter are processed in parts of at most this share, which bounds memory.
DENSE = 1 / 8
ROW_BITS = 32
LAST_ROW = np.int64(2**31 - 1)
ABSENT = (np.int64(np.float32(np.inf).view(np.int32)) << ROW_BITS) | LAST_ROW
"""Sorts after every neighbour: its distance is infinite."""


def search(
    embeddings: Any,
    labels: Int[np.ndarray, "L N"],
    ks: tuple[int, ...],
    *,
    budget_bytes: int,
    device: jax.Device,
    on_progress: Callable[[int], None] | None,
    block_bytes: int | None = None,
) -> list[Neighbors]:
    """Find one list of neighbours per row for each of ``ks``: of any type, and of the two types.

    Memory, in addition to embeddings and result: tiles within the budget; for each row a list of
    about 1.5 k int64, several copies of the lists of a few hundred rows; a copy of the rows of a
    pair for each lane, unless the embeddings come from ``aligned.empty_aligned``.

    Args:
        embeddings: float32[N, D]; other dtypes are converted tile by tile. With ``block_bytes``
            anything that has ``shape`` and slices of rows.
        labels: int32[1 or 3, N] groups, and the two labels that define the types.
        ks: lengths of the lists.
        budget_bytes: memory for the scores of pairs of tiles, for all lanes together.
        device: a CPU.
        on_progress: called with a number of rows, from any thread; the numbers sum to N.
        block_bytes: memory for tiles of rows that are read in slices: as many tiles as fit stay
            while those after them pass through. All rows are read N / (2 x rows that stay) times.
            At least one tile stays, and one passes through each lane. The lists, of 1.25 k int64,
            and the result then lie in scratch files; those of ``TASK_PAIRS`` + 1 tiles are in
            memory for each lane. None: all in memory.
    """
    n, dim = embeddings.shape
    lanes = choose_lanes(n, budget_bytes=budget_bytes)
    # k = 1 gives small tiles for long lists too: nothing is selected from a whole tile.
    tile = tiles.tile_rows(
        n,
        k=1,
        budget_bytes=budget_bytes // lanes,
        platform="cpu",
        bytes_per_score=BYTES_PER_SCORE,
    )
    n_tiles = -(-n // tile)
    if block_bytes is None:
        tasks, rows = _make_tasks(n_tiles), _Rows(np.asarray(embeddings), labels, tile, device)
    else:
        staying = max(1, block_bytes // (4 * dim * tile) - lanes - 1)
        tasks = _make_block_tasks(n_tiles, staying)
        rows = _KeptRows(embeddings, labels, tile, device, n_kept=staying + lanes + 1)
    # Rows outside memory are many: their lists get less room, and are merged more often.
    spare = (64, 2) if block_bytes is None else (16, 4)
    empty = np.empty if block_bytes is None else scratch.empty
    lists = [
        _Lists(n, min(k, n), n_tiles, spare=max(spare[0], k // spare[1]), empty=empty) for k in ks
    ]
    tell = _make_tell(on_progress, n, n_calls=n_tiles * (n_tiles + 1) // 2)

    def run(task: tuple[int, range]) -> None:
        with default_modes():
            first = rows.cut(task[0])
            for other in task[1]:
                second = rows.cut(other) if other != task[0] else first
                lower, upper = sorted((first, second), key=lambda t: t.number)
                _meet(lower, upper, lists)
                tell()
            # Once a task, since lists that were given back are faulted in again.
            scratch.give_back(*(row_lists.keys for row_lists in lists))

    run((0, range(1)))  # compiles once, before the threads start
    with ThreadPoolExecutor(lanes) as pool:
        for _ in pool.map(run, tasks):
            pass
    rows.forget()
    return [lists.pop(0).to_neighbors(k) for k in ks]  # each list is freed as it is sorted


def choose_lanes(n: int, *, budget_bytes: int) -> int:
    """Number of pairs of tiles to process at the same time."""
    if n <= tiles.CPU_TILE_ROWS:
        return 1
    fitting = budget_bytes // (BYTES_PER_SCORE * tiles.MIN_TILE_ROWS**2)
    return max(1, min(MAX_LANES, n_cores(), fitting))


def _make_tasks(n_tiles: int) -> Iterator[tuple[int, range]]:
    """All pairs of tiles (i <= j) except the first pair, each task as i and some of its j."""
    for i in range(n_tiles):
        for start in range(i or 1, n_tiles, TASK_PAIRS):
            yield i, range(start, min(start + TASK_PAIRS, n_tiles))


def _make_block_tasks(n_tiles: int, staying: int) -> Iterator[tuple[int, range]]:
    """All pairs of tiles but the first: a task is a tile that passes and some of those that stay.

    Lists hold their neighbours in the order (distance, row) whatever the order of the pairs.
    """
    for first in range(0, n_tiles, staying):
        for passing in range(first, n_tiles):
            stop = min(first + staying, passing + 1)
            for start in range(first if passing else 1, stop, TASK_PAIRS):
                yield passing, range(start, min(start + TASK_PAIRS, stop))


def _make_tell(
    on_progress: Callable[[int], None] | None, n: int, *, n_calls: int
) -> Callable[[], None]:
    """Function to call after each pair, from any thread; all calls together report n rows."""
    lock, done = threading.Lock(), itertools.count()

    def tell() -> None:
        with lock:
            i = next(done)
            if on_progress is not None:
                on_progress(n * (i + 1) // n_calls - n * i // n_calls)

    return tell


class _HostTile(NamedTuple):
    """A tile on the device and the positions of its rows; the last tile overlaps the previous one.

    Attributes:
        number: tile number.
        start: first row of the tile.
        own_start: first row that no earlier tile holds. From this row on, the tile updates lists.
        tile: rows on the device.
    """

    number: int
    start: int
    own_start: int
    tile: Tile

    @property
    def stop(self) -> int:
        return self.start + self.tile.own.shape[0]


class _Rows:
    """Embeddings on the host, whose tiles are put on the device one by one."""

    def __init__(
        self,
        embeddings: Any,
        labels: Int[np.ndarray, "L N"],
        tile: int,
        device: jax.Device,
    ) -> None:
        self.embeddings, self.labels = embeddings, labels.astype(np.int32)
        self.tile, self.device = tile, device
        self.scales: dict[int, Array] = {}

    def forget(self) -> None:
        """Free what is kept of the rows."""
        self.scales.clear()

    def cut(self, number: int) -> _HostTile:
        """Put a tile on the device."""
        own_start = number * self.tile
        start = min(own_start, self.embeddings.shape[0] - self.tile)
        rows = np.arange(start, start + self.tile, dtype=np.int32)
        x = np.asarray(self.embeddings[start : start + self.tile], np.float32)
        labels, own = self.labels[:, start : start + self.tile], rows >= own_start
        parts = jax.device_put((x, labels, rows, np.int32(start), own), self.device)
        if number not in self.scales:
            self.scales[number] = _inverse_norms(parts[0])
        block = Block(x=parts[0], labels=parts[1], scale=self.scales[number], rows=parts[2])
        return _HostTile(number, start, own_start, Tile(block, *parts[3:]))


_inverse_norms = jax.jit(tiles.inverse_norms)


class _KeptRows(_Rows):
    """Rows that are read in slices, of which the tiles that were used last are kept."""

    def __init__(
        self, embeddings: Any, labels: np.ndarray, tile: int, device: jax.Device, *, n_kept: int
    ) -> None:
        super().__init__(embeddings, labels, tile, device)
        self.kept = functools.lru_cache(n_kept)(super().cut)
        self.lock = threading.Lock()

    def cut(self, number: int) -> _HostTile:
        """A tile on the device, read if it is not among those that were used last."""
        with self.lock:  # so that two lanes do not both read it
            return self.kept(number)

    def forget(self) -> None:
        """Free what is kept of the rows; it would stay until the garbage is collected."""
        super().forget()
        self.kept.cache_clear()


class _Lists:
    """The nearest neighbours found so far, one list of k per row.

    Attributes:
        keys: int64[N, k + spare] neighbours as integers, unsorted, then ``ABSENT``.
        n_held: int32[N] number of neighbours held.
        last: int64[N] upper bound: only neighbours up to this key can still be among the k.
        locks: one per tile of rows.
    """

    def __init__(
        self,
        n: int,
        k: int,
        n_tiles: int,
        *,
        spare: int,
        empty: Callable[..., np.ndarray] = np.empty,
    ) -> None:
        self.k, self.empty = k, empty
        self.keys = empty((n, k + spare), np.int64)
        for part in scratch.parts(self.keys, n_rows=SORTED_ROWS):
            self.keys[part] = ABSENT
        self.n_held = np.zeros(n, np.int32)
        self.last = np.full(n, ABSENT)
        self.locks = [threading.Lock() for _ in range(n_tiles)]

    def floor(self, tile: _HostTile) -> Float[np.ndarray, " tile"]:
        """Smallest closeness that still enters each row's list."""
        last = self.last[tile.start : tile.stop]
        return -(last >> ROW_BITS).astype(np.int32).view(np.float32)

    def raise_floor(self, tile: _HostTile, floor: Float[np.ndarray, " tile"]) -> None:
        """Lower ``last`` to a closeness that the k-th neighbour is known to reach."""
        with self.locks[tile.number]:
            last = self.last[tile.own_start : tile.stop]
            floor = floor[tile.own_start - tile.start :]
            np.minimum(last, _to_keys(floor, LAST_ROW), out=last)

    def offer(
        self, tile: _HostTile, query: Int[np.ndarray, " P"], keys: Int[np.ndarray, " P"]
    ) -> None:
        """Add neighbours to the lists of a tile.

        Args:
            tile: tile of the queries.
            query: row within the tile, ascending; never a row that an earlier tile holds.
            keys: neighbours as integers.
        """
        own_rows = slice(tile.own_start, tile.stop)
        query = query - (tile.own_start - tile.start)
        room = self.keys.shape[1]
        with self.locks[tile.number]:
            held, n_held, last = (a[own_rows] for a in (self.keys, self.n_held, self.last))
            while len(keys):
                enters = np.flatnonzero(keys <= last[query])
                query, keys = query[enters], keys[enters]
                n_new = np.bincount(query, minlength=len(held))
                before = np.cumsum(n_new) - n_new
                position = np.arange(len(query)) + (n_held - before)[query]
                full = np.flatnonzero(n_held + n_new > room)
                if full.size:
                    fits = position < room
                    held[query[fits], position[fits]] = keys[fits]
                    query, keys = query[~fits], keys[~fits]
                else:
                    held[query, position] = keys
                    keys = keys[:0]
                n_held += n_new
                if full.size:
                    best = np.partition(held[full], self.k - 1, axis=1)
                    best[:, self.k :] = ABSENT
                    held[full], n_held[full] = best, self.k
                    last[full] = np.minimum(last[full], best[:, self.k - 1])

    def to_neighbors(self, k: int) -> Neighbors:
        """``Neighbors`` of k columns, nearest first."""
        n = len(self.keys)
        out = Neighbors(self.empty((n, k), np.int32), self.empty((n, k), np.float32))
        for part in scratch.parts(self.keys, *out, n_rows=SORTED_ROWS):
            out.indices[part], out.distances[part] = -1, np.inf
            best = np.sort(np.partition(self.keys[part], self.k - 1, axis=1)[:, : self.k], axis=1)
            out.indices[part, : self.k] = np.where(best == ABSENT, -1, best & LAST_ROW)
            out.distances[part, : self.k] = (best >> ROW_BITS).astype(np.int32).view(np.float32)
        return out


def _to_keys(closeness: Float[np.ndarray, " P"], rows: ArrayLike) -> Int[np.ndarray, " P"]:
    """Neighbours as integers that sort by (distance, row)."""
    bits = (0.0 - closeness).view(np.int32).astype(np.int64)  # the distance is never -0.0
    return (bits << ROW_BITS) | np.asarray(rows)


def _meet(a: _HostTile, b: _HostTile, lists: list[_Lists]) -> None:
    """Score two tiles and add the rows of each to the lists of the other where they enter."""
    floors = [np.stack([row_lists.floor(tile) for row_lists in lists]) for tile in (a, b)]
    ks = tuple(row_lists.k for row_lists in lists)
    pair = _score(a.tile, b.tile), a.tile, b.tile
    closeness = np.asarray(pair[0])
    enters, any_enters = map(np.asarray, _find_entering(*pair, *floors))
    share = np.count_nonzero(any_enters) / any_enters.size
    if share > DENSE and _raise_floors(closeness, enters, floors, ks):
        for row_lists, own_a, own_b in zip(lists, *floors, strict=True):
            row_lists.raise_floor(a, own_a)
            row_lists.raise_floor(b, own_b)
        enters, any_enters = map(np.asarray, _find_entering(*pair, *floors))
        share = np.count_nonzero(any_enters) / any_enters.size
    step = max(1, int(len(any_enters) * min(1.0, DENSE / max(share, DENSE))))
    for start in range(0, len(any_enters), step):
        part = slice(start, start + step)
        entering_at = np.flatnonzero(any_enters[part])
        row_a, row_b = np.divmod(entering_at.astype(np.int32), np.int32(closeness.shape[1]))
        row_a += np.int32(start)
        keys = _to_keys(closeness[part].ravel()[entering_at], 0)
        sides = enters[part].ravel()[entering_at]
        for i, row_lists in enumerate(lists):
            chosen = np.flatnonzero(sides & np.uint8(1 << 2 * i))
            row_lists.offer(a, row_a[chosen], keys[chosen] | (b.start + row_b[chosen]))
            if a.number != b.number:
                chosen = np.flatnonzero(sides & np.uint8(2 << 2 * i))
                query = row_b[chosen].astype(np.int16)
                chosen = chosen[np.argsort(query, kind="stable")]
                row_lists.offer(b, row_b[chosen], keys[chosen] | (a.start + row_a[chosen]))


# A separate program: inside a larger one, XLA may compute scores twice and round them differently.
_score = jax.jit(tiles.score_tiles)


@jax.jit
def _find_entering(
    closeness: Float[Array, "tile tile"],
    a: Tile,
    b: Tile,
    floor_a: Float[Array, "L tile"],
    floor_b: Float[Array, "L tile"],
) -> tuple[UInt8[Array, "tile tile"], Bool[Array, "tile tile"]]:
    """Which scores of two tiles enter which lists, in one pass over the scores.

    Returns:
        Bit 2 l: the column enters list l of the row; bit 2 l + 1: the row enters list l of the
        column. And whether any bit is set.
    """
    enters = jnp.zeros(closeness.shape, jnp.uint8)
    masks = tiles.type_masks(a, b, n_types=len(floor_a))
    for side, (columns, floors) in enumerate(((b, floor_a), (a, floor_b))):
        eligible = jnp.expand_dims(columns.block.labels[0] != tiles.PADDING_GROUP, side)
        for i, mask in enumerate(masks):
            above = mask & eligible & (closeness >= jnp.expand_dims(floors[i], 1 - side))
            enters |= above.astype(jnp.uint8) << (2 * i + side)
    return enters, enters > 0


def _raise_floors(
    closeness: Float[np.ndarray, "tile tile"],
    enters: UInt8[np.ndarray, "tile tile"],
    floors: Sequence[Float[np.ndarray, "L tile"]],
    ks: Sequence[int],
) -> bool:
    """Raise floors to the k-th best score in this tile, for lists that many scores would enter.

    Args:
        closeness: scores of two tiles.
        enters: see ``_find_entering``.
        floors: floors of rows and of columns, changed in place.
        ks: lengths of the lists.

    Returns:
        Whether any floor was raised.
    """
    raised = False
    for bit in range(2 * len(ks)):
        i, side = divmod(bit, 2)
        own = (enters & np.uint8(1 << bit)).astype(bool)
        if np.count_nonzero(own) <= DENSE * own.size or ks[i] >= own.shape[1 - side]:
            continue
        distances = np.where(own, -closeness, np.float32(np.inf))
        distances = np.ascontiguousarray(distances.T) if side else distances
        best = -np.partition(distances, ks[i] - 1, axis=1)[:, ks[i] - 1]
        raised |= bool((best > floors[side][i]).any())
        np.maximum(floors[side][i], best, out=floors[side][i])
    return raised
