"""Neighbour search on CPU: XLA scores the tiles, the host keeps the lists.

The lists are bit for bit those of the other searches (see ``search``).

On CPU, selecting with XLA costs as much as the products: its ``top_k`` takes about 18 ns per score
at k = 100, and each score is inspected from both sides. But once a row has k neighbours, few scores
can still enter its list: of n columns in random order, about k (1 + ln(n / k)). XLA therefore
compares every score with the bounds of both lists while the score is in cache, and the host
collects the few that enter. Where many would, as in a row's first tile, the host first selects a
score of this tile as a bound.

Rows in memory are searched in a random order, so that each tile is a random sample of all rows:
``host_lists`` then knows early how near a row must be to enter, and few do. What it promised too
early is searched again.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from pathorob_jax.core import scratch
from pathorob_jax.core.devices import default_modes
from pathorob_jax.core.hosts import n_cores
from pathorob_jax.core.typing import Array, Bool, Float, Int, UInt8
from pathorob_jax.kernels.neighbors import host_lists, tiles
from pathorob_jax.kernels.neighbors.host_lists import Bound, Lists
from pathorob_jax.kernels.neighbors.host_rows import HostRows, HostTile, shuffle
from pathorob_jax.kernels.neighbors.tiles import Neighbors, Tile

# Pairs of tiles processed at the same time: while the host works on one, the other cores multiply.
MAX_LANES = 8
# Pairs per task: they share their first tile, which is put on the device once.
TASK_PAIRS = 4
# Memory for copies of tiles of rows, and the least number of tiles that are random samples.
KEPT_BYTES = 2**27
LEAST_SAMPLES = 4
# Chance that a search in memory must search any row again, because a bound was too early.
RISK = 1e-3
# Per score of a pair of tiles, at most: the score; in XLA the masks; for a bound, the distances of
# a list, their transposed copy and its selection; the entering neighbours. A test checks the sum.
BYTES_PER_SCORE = 56
# If more than this share of a tile's scores enters, a tighter bound is computed, and the scores
# that still enter are processed in parts of at most this share, which bounds memory.
DENSE = 1 / 8


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
    about 1.5 k int64, several copies of the lists of a few hundred rows; copies of as many tiles of
    rows as ``KEPT_BYTES`` hold, at least of those of the lanes.

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
    kept_bytes = KEPT_BYTES if block_bytes is None else block_bytes
    staying = max(1, kept_bytes // (4 * dim * tile) - lanes - 1)
    in_memory = block_bytes is None
    order = shuffle(n) if in_memory and n_tiles >= LEAST_SAMPLES else None
    rows = HostRows(
        np.asarray(embeddings) if in_memory else embeddings,
        labels,
        tile,
        device,
        n_kept=staying + lanes + 1,
        order=order,
    )
    # Rows outside memory are many: their lists get less room, and are merged more often.
    spare = (64, 2) if in_memory else (16, 4)
    empty = np.empty if in_memory else scratch.empty
    lists = []
    for k in (min(k, n) for k in ks):
        room = k + max(spare[0], k // spare[1])
        risk = None if order is None else RISK / (n * len(ks) * n_tiles)
        lists.append(Lists(n, k, tile, room=room, risk=risk, empty=empty))
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
        for _ in pool.map(run, _make_tasks(n_tiles, staying)):
            pass
    # Each list is freed as it is sorted.
    found, incomplete = zip(*(lists.pop(0).finish(k, order) for k in ks), strict=True)
    again = np.unique(np.concatenate(incomplete))
    if again.size:
        logging.info("neighbours: %d of %d rows are searched again", again.size, n)
        with default_modes():
            for start in range(0, again.size, tile):
                _search_again(rows, again[start : start + tile], found)
    rows.forget()
    return list(found)


def choose_lanes(n: int, *, budget_bytes: int) -> int:
    """Number of pairs of tiles to process at the same time."""
    if n <= tiles.CPU_TILE_ROWS:
        return 1
    fitting = budget_bytes // (BYTES_PER_SCORE * tiles.MIN_TILE_ROWS**2)
    return max(1, min(MAX_LANES, n_cores(), fitting))


def _make_tasks(n_tiles: int, staying: int) -> Iterator[tuple[int, range]]:
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


def _meet(a: HostTile, b: HostTile, lists: list[Lists]) -> None:
    """Score two tiles and add the rows of each to the lists of the other where they enter."""
    for row_lists in lists:
        row_lists.begin(a)
        if a.number != b.number:
            row_lists.begin(b)
    floors = [np.stack([row_lists.floor(tile) for row_lists in lists]) for tile in (a, b)]
    pair = _score(a.tile, b.tile), a.tile, b.tile
    closeness = np.asarray(pair[0])
    enters, any_enters = map(np.asarray, _find_entering(*pair, *floors))
    share = np.count_nonzero(any_enters) / any_enters.size
    bounds = [row_lists.bound for row_lists in lists]
    if share > DENSE and _raise_floors(closeness, enters, floors, bounds):
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
        keys = host_lists.to_keys(closeness[part].ravel()[entering_at], 0)
        sides = enters[part].ravel()[entering_at]
        for i, row_lists in enumerate(lists):
            chosen = np.flatnonzero(sides & np.uint8(1 << 2 * i))
            row_lists.offer(a, row_a[chosen], keys[chosen] | b.rows[row_b[chosen]])
            if a.number != b.number:
                chosen = np.flatnonzero(sides & np.uint8(2 << 2 * i))
                query = row_b[chosen].astype(np.int16)
                chosen = chosen[np.argsort(query, kind="stable")]
                row_lists.offer(b, row_b[chosen], keys[chosen] | a.rows[row_a[chosen]])


def _search_again(
    rows: HostRows, queries: Int[np.ndarray, " Q"], found: Sequence[Neighbors]
) -> None:
    """Write the lists of at most a tile of rows anew, from all rows and without bounds."""
    tile = rows.gather(queries)
    floors = np.full((len(found), rows.tile), -np.inf, np.float32)
    kept = [min(lists.indices.shape[1], rows.embeddings.shape[0]) for lists in found]
    best = [np.full((len(queries), k), host_lists.ABSENT) for k in kept]
    for number in range(rows.n_tiles):
        other = rows.cut(number)
        closeness = _score(tile.tile, other.tile)
        enters, _ = map(
            np.asarray, _find_entering(closeness, tile.tile, other.tile, floors, floors)
        )
        keys = host_lists.to_keys(np.asarray(closeness), other.rows)
        for i, k in enumerate(kept):
            eligible = enters & np.uint8(1 << 2 * i)
            offered = np.where(eligible, keys, host_lists.ABSENT)[: len(queries)]
            offered = np.concatenate([best[i], offered], axis=1)
            best[i] = np.partition(offered, k - 1, axis=1)[:, :k]
    for lists, keys in zip(found, best, strict=True):
        host_lists.put(lists, queries, np.sort(keys, axis=1))


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
    bounds: Sequence[Bound],
) -> bool:
    """Raise the floors of lists that many scores would enter to a score of this tile.

    Args:
        closeness: scores of two tiles.
        enters: see ``_find_entering``.
        floors: floors of rows and of columns, changed in place.
        bounds: of each list: how many rows of the other tile, and the rank among them.

    Returns:
        Whether any floor was raised.
    """
    raised = False
    for bit in range(2 * len(bounds)):
        i, side = divmod(bit, 2)
        rank, n_rows = bounds[i]
        some = (slice(n_rows), slice(None)) if side else (slice(None), slice(n_rows))
        own = (enters[some] & np.uint8(1 << bit)).astype(bool)
        if np.count_nonzero(own) <= DENSE * own.size or rank >= own.shape[1 - side]:
            continue
        distances = np.where(own, -closeness[some], np.float32(np.inf))
        distances = np.ascontiguousarray(distances.T) if side else distances
        best = -np.partition(distances, rank - 1, axis=1)[:, rank - 1]
        raised |= bool((best > floors[side][i]).any())
        np.maximum(floors[side][i], best, out=floors[side][i])
    return raised
