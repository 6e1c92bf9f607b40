"""Neighbour search for embeddings that fit neither on a device nor in host memory.

The input is an array whose rows are read in slices. ``find_neighbors_streamed`` returns what
``search.find_neighbors`` returns for the same rows, ``search`` what ``search.search`` does, bit for
bit.

Rows are cut into blocks of whole tiles. Block i stays on the device while the blocks after it pass
through; each pair of blocks is multiplied once, for the lists of both. A thread reads and sends the
next block while the device multiplies. The lists of all rows lie in scratch files of the host; the
lists of a block travel to the device and back with it. At most four blocks exist at a time (the one
that stays, the one being processed, the one arriving, and its copy on the host) and the lists of
three.

On a CPU there is no device memory to save: ``host.search`` keeps tiles of rows in memory instead.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from pathorob_jax.core import checks, scratch
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Array, ArrayLike, Int
from pathorob_jax.kernels.neighbors import host, near_ties, tiles
from pathorob_jax.kernels.neighbors.exact_rows import Rows
from pathorob_jax.kernels.neighbors.search import TypedNeighbors
from pathorob_jax.kernels.neighbors.tiles import (
    DEFAULT_BUDGET_BYTES,
    PADDING_GROUP,
    Block,
    Lists,
    Neighbors,
)

DEFAULT_BLOCK_BYTES = 512 * 2**20
BLOCKS_HELD, LISTS_HELD = 4, 3


def find_neighbors_streamed(
    embeddings: Any,
    group_id: Int[ArrayLike, " N"],
    *,
    k: int,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    device: jax.Device | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Neighbors:
    """Like ``search.find_neighbors``, for embeddings that are read repeatedly in slices.

    Args:
        embeddings: float32[N, D], any object with ``shape`` and slices of rows: ``numpy.memmap``, a
            TensorStore array, a zarr array. All rows are read N / (rows per block) / 2 times, and a
            few times more where near neighbours are settled.
        group_id: int32[N], see ``search.find_neighbors``.
        k: neighbours wanted.
        budget_bytes: memory for a pair of tiles.
        block_bytes: memory for blocks and their lists, in addition to ``budget_bytes`` and the
            result.
        device: None: the first local device.
        on_progress: called with the number of rows finished since the last call; the numbers sum
            to N.

    Raises:
        InputError: shapes differ, or a budget is too small for one tile pair or one block.
        TypeError: group_id is not of integer dtype.
    """
    labels = np.asarray(group_id)[None, :]
    [found] = _find(embeddings, labels, (k,), budget_bytes, block_bytes, device, on_progress)
    return found


def find_typed_neighbors_streamed(
    embeddings: Any,
    group_id: Int[ArrayLike, " N"],
    first_id: Int[ArrayLike, " N"],
    second_id: Int[ArrayLike, " N"],
    *,
    k: int,
    m: int,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    device: jax.Device | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> TypedNeighbors:
    """Like ``search.find_typed_neighbors``, for embeddings that are read repeatedly in slices.

    Args:
        embeddings: see ``find_neighbors_streamed``.
        group_id: see ``search.find_neighbors``.
        first_id: int32[N] first label.
        second_id: int32[N] second label.
        k: neighbours of any type.
        m: neighbours of each of the two types.
        budget_bytes: see ``find_neighbors_streamed``.
        block_bytes: see ``find_neighbors_streamed``.
        device: see ``find_neighbors_streamed``.
        on_progress: see ``find_neighbors_streamed``.
    """
    labels = np.stack([np.asarray(a) for a in (group_id, first_id, second_id)])
    return TypedNeighbors(
        *_find(embeddings, labels, (k, m, m), budget_bytes, block_bytes, device, on_progress)
    )


def _find(
    embeddings: Any,
    labels: Int[np.ndarray, "L N"],
    ks: tuple[int, ...],
    budget_bytes: int,
    block_bytes: int,
    device: jax.Device | None,
    on_progress: Callable[[int], None] | None,
) -> list[Neighbors]:
    """Find one exact list of neighbours for each of ``ks``; on a CPU the host keeps the lists."""
    checks.check_integer(labels, name="group_id")
    shape = embeddings.shape[:1]
    checks.check_shape(labels.shape[1:], shape, name="group_id", why="to match embeddings")
    rows = Rows(embeddings, budget_bytes=budget_bytes)
    rows.check_directions(labels[0] != PADDING_GROUP)
    device = device or jax.local_devices()[0]
    search_on = host.search if device.platform == "cpu" else search
    found = search_on(
        embeddings,
        labels,
        tuple(map(near_ties.fetched, ks)),
        budget_bytes=budget_bytes,
        block_bytes=block_bytes,
        device=device,
        on_progress=on_progress,
    )
    return near_ties.settle_near_ties(rows, labels, found, ks, budget_bytes=budget_bytes)


def search(
    embeddings: Any,
    labels: Int[np.ndarray, "L N"],
    ks: tuple[int, ...],
    *,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    device: jax.Device | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Neighbors]:
    """Find neighbours in float32, one list per row or three, of rows that are read in slices.

    Args:
        embeddings: see ``find_neighbors_streamed``.
        labels: int32[1, N] groups; or int32[3, N] groups and the two labels that define the types.
        ks: lengths of the lists: (k,), or (k, m, m) with types.
        budget_bytes: see ``find_neighbors_streamed``.
        block_bytes: see ``find_neighbors_streamed``.
        device: see ``find_neighbors_streamed``.
        on_progress: see ``find_neighbors_streamed``.
    """
    n, dim = embeddings.shape
    checks.check_shape(labels.shape[1:], (n,), name="group_id", why="to match embeddings")
    device = device or jax.local_devices()[0]
    tile = tiles.tile_rows(n, k=max(ks), budget_bytes=budget_bytes, platform=device.platform)
    kept = [min(k, n) for k in ks]
    row_bytes = 4 * dim * BLOCKS_HELD + 8 * sum(kept) * LISTS_HELD
    size = _block_rows(n, row_bytes, tile, block_bytes)
    starts = range(0, n, size)
    # Until the end of the search, ``distances`` holds closeness.
    out = [
        Neighbors(scratch.empty((n, k), np.int32), scratch.empty((n, k), np.float32)) for k in ks
    ]
    for o in out:
        for part in scratch.parts(*o, n_rows=size):
            o.indices[part], o.distances[part] = -1, -np.inf

    def read(start: int) -> Block:
        return _read_block(embeddings, labels, start, size, device)

    within, between = _make_searches(tile)
    order = [(i, j) for i in starts for j in starts if i <= j]
    with ThreadPoolExecutor(1) as reader:
        arriving = reader.submit(read, 0)
        for place, (i, j) in enumerate(order):
            block = arriving.result()
            if place + 1 < len(order):
                arriving = reader.submit(read, order[place + 1][1])
            lists = _get_lists(out, kept, j, size, device)
            if i == j:
                staying, staying_lists = block, within(block, lists)
            else:
                staying_lists, passing_lists = between(staying, block, staying_lists, lists)
                _put_lists(out, j, passing_lists)
            if j == starts[-1]:
                _put_lists(out, i, staying_lists)
            scratch.give_back(*(a for o in out for a in o))
            if on_progress is not None:
                jax.block_until_ready(staying_lists)
                on_progress(n * (place + 1) // len(order) - n * place // len(order))
    for o in out:
        for part in scratch.parts(*o, n_rows=size):
            closeness = o.distances[part]
            o.indices[part][np.isneginf(closeness)] = -1
            np.subtract(np.float32(0.0), closeness, out=closeness)
    return out


def _block_rows(n: int, row_bytes: int, tile: int, block_bytes: int) -> int:
    """Number of rows of a block, a multiple of the tile.

    Raises:
        InputError: not even one tile fits.
    """
    n_tiles = block_bytes // (row_bytes * tile)
    if n_tiles < 1:
        raise InputError(
            f"block_bytes: blocks of one tile of {tile} rows need {row_bytes * tile} bytes, found "
            f"{block_bytes}; raise it."
        )
    return tile * min(n_tiles, -(-n // tile))


def _read_block(
    embeddings: Any,
    labels: Int[np.ndarray, "L N"],
    start: int,
    size: int,
    device: jax.Device,
) -> Block:
    """Put ``size`` rows from ``start`` on, padded at the end of the set, on the device."""
    n = embeddings.shape[0]
    stop = min(start + size, n)
    n_padding = size - (stop - start)

    def send(array: np.ndarray, axis: int, filler: int) -> Array:
        pad = [(0, 0)] * array.ndim
        pad[axis] = (0, n_padding)
        padded = np.pad(array, pad, constant_values=filler) if n_padding else array
        return jax.device_put(padded, device)

    x = send(np.asarray(embeddings[start:stop], np.float32), 0, 0)
    return Block(
        x,
        send(labels[:, start:stop].astype(np.int32), 1, PADDING_GROUP),
        _inverse_norms(x),
        send(np.arange(start, stop, dtype=np.int32), 0, -1),
    )


_inverse_norms = jax.jit(tiles.inverse_norms)


def _get_lists(
    out: list[Neighbors], ks: list[int], start: int, size: int, device: jax.Device
) -> Lists:
    """Put the lists of a block's rows on the device."""

    def get(array: np.ndarray, k: int, filler: float) -> Array:
        part = array[start : start + size, :k]
        n_padding = size - len(part)
        part = np.pad(part, ((0, n_padding), (0, 0)), constant_values=filler)
        return jax.device_put(part, device)

    return tuple(
        (get(o.distances, k, -np.inf), get(o.indices, k, -1)) for o, k in zip(out, ks, strict=True)
    )


def _put_lists(out: list[Neighbors], start: int, found: Lists) -> None:
    for o, (closeness, indices) in zip(out, found, strict=True):
        n_rows, k = min(len(closeness), len(o.indices) - start), closeness.shape[1]
        o.distances[start : start + n_rows, :k] = np.asarray(closeness)[:n_rows]
        o.indices[start : start + n_rows, :k] = np.asarray(indices)[:n_rows]


@functools.cache
def _make_searches(tile: int) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """Two jitted functions that donate their lists: search within a block, and between two blocks.

    The first is (block, its lists) -> lists; the second is (block that stays, passing block, lists
    of both) -> lists of both.
    """

    def within(block: Block, found: Lists) -> Lists:
        n_tiles = block.rows.shape[0] // tile
        pairs = np.stack(np.triu_indices(n_tiles), axis=1).astype(np.int32)
        return tiles.search_within(block, found, pairs, tile=tile)

    between = functools.partial(tiles.search_between, tile=tile)
    return jax.jit(within, donate_argnums=1), jax.jit(between, donate_argnums=(2, 3))
