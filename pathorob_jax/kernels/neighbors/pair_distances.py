"""Cosine distances of selected pairs, without the cancellation in 1 - cos.

Given embeddings and pairs of rows, the functions return distances that are accurate to float32's
relative precision even where they are small. A cosine near 1 keeps few digits of 1 - cos: at a
distance of 0.01, float32 leaves a relative error of 1e-5, and margins between distances would
inherit it. The difference of the unit vectors does not cancel in this way: d = |u - v|^2 / 2. The
entries of float32 unit vectors err by 6e-8, though, so that pairs nearer than ``NEAR`` are computed
again in float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core import scratch
from pathorob_jax.core.aligned import empty_aligned
from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import Array, ArrayLike, Float, Int
from pathorob_jax.kernels.neighbors.distinct_pairs import find_distinct
from pathorob_jax.kernels.neighbors.exact_rows import Rows, measure_sides
from pathorob_jax.kernels.neighbors.pair_calls import measure_in_calls
from pathorob_jax.kernels.neighbors.row_source import RowSource
from pathorob_jax.kernels.neighbors.tiles import Neighbors, inverse_norms

# Pairs are measured together in a tile, on CPU one by one; the tiles of a call share one trace.
TILE_PAIRS, CALL_TILES, LEAST_CALLS = 128, 64, 8
NEAR = 1e-3

Side = tuple[Array, Array]  # float32[N, D] rows and their inverse lengths


class _Block(NamedTuple):
    """Rows of a source.

    Attributes:
        number: of the block.
        x: float32[R, D] on the host.
        side: the same rows on the device, which on CPU share their memory.
    """

    number: int
    x: Float[np.ndarray, "R D"]
    side: Side


def pair_distances(
    embeddings: Float[ArrayLike, "N D"],
    first: Int[np.ndarray, " P"],
    second: Int[np.ndarray, " P"],
) -> Float[np.ndarray, " P"]:
    """Cosine distance of each pair.

    A pair that is given several times, either way round, is measured once.

    Memory, in addition to the embeddings: several int64 for each pair, and on accelerators two
    tiles of ``TILE_PAIRS`` rows.

    Args:
        embeddings: float32[N, D], finite.
        first: int[P] rows.
        second: int[P] rows.

    Returns:
        float32[P]; an all-zero row is treated as the zero vector.
    """
    x = to_device(embeddings)
    side = x, _inverse_norms(x)
    pairs = find_distinct(first, second, len(x))
    out = _measure_pairs(side, side, pairs.first, pairs.second)
    near = np.flatnonzero(out < NEAR)
    if near.size:
        out[near] = Rows(np.asarray(x)).distances(pairs.first[near], pairs.second[near])
    return out[pairs.place]


def _measure_ordered(
    held: _Block, block: _Block, first: Int[np.ndarray, " P"], second: Int[np.ndarray, " P"]
) -> Float[np.ndarray, " P"]:
    """Distances of rows of two blocks, the lower row first, as ``find_distinct`` orders pairs.

    A processor that multiplies and subtracts at once rounds the entry of one row and not that of
    the other, so that the last bit of a distance depends on the order.
    """
    if block.number < held.number:
        return _measure_pairs(block.side, held.side, second, first)
    if block.number == held.number:
        first, second = np.minimum(first, second), np.maximum(first, second)
    return _measure_pairs(held.side, block.side, first, second)


def _measure_pairs(
    side: Side, other: Side, first: Int[np.ndarray, " P"], second: Int[np.ndarray, " P"]
) -> Float[np.ndarray, " P"]:
    """Distances of rows of one side to rows of another, in float32."""
    if not len(first):
        return np.zeros(0, np.float32)
    n_pairs = len(first)
    tile = min(TILE_PAIRS, 1 << (n_pairs - 1).bit_length())
    # A short list of pairs takes smaller calls, so that every core has some, rounded up so that few
    # sizes are compiled.
    tiles_per_call = -(-n_pairs // (tile * LEAST_CALLS))
    n_tiles = min(CALL_TILES, 1 << (tiles_per_call - 1).bit_length())

    def measure(pairs: Int[np.ndarray, "2 C"]) -> Array:
        return _measure(side, other, pairs.reshape(2, n_tiles, tile))

    return measure_in_calls(measure, first, second, size=n_tiles * tile, dtype=np.float32)


def list_distances(
    embeddings: Float[ArrayLike, "N D"] | RowSource, indices: Int[np.ndarray, "R K"]
) -> Float[np.ndarray, "R K"]:
    """Distance of row i to each row in its list; inf where the list holds -1.

    Args:
        embeddings: float32[N, D] with N >= R. The rows of a ``RowSource`` are read at most R /
            (rows of a block) + 1 times, in blocks; the distances are the same to the last bit.
        indices: int32[R, K] rows, -1 absent.
    """
    if isinstance(embeddings, RowSource):
        if len(embeddings) > embeddings.block_rows:
            return _list_distances_in_blocks(embeddings, indices)
        embeddings = embeddings[:]
    out = np.full(indices.shape, np.inf, np.float32)
    rows, ranks = np.nonzero(indices >= 0)
    out[rows, ranks] = pair_distances(embeddings, rows, indices[rows, ranks])
    return out


def _list_distances_in_blocks(
    source: RowSource, indices: Int[np.ndarray, "R K"]
) -> Float[np.ndarray, "R K"]:
    """``list_distances`` with two blocks of rows in memory, three while one is read.

    Pairs are sorted by their blocks.
    """
    size, n = source.block_rows, len(source)
    out = scratch.full_like(indices, np.inf, np.float32)
    scales: dict[int, np.ndarray] = {}
    exact_scales: dict[int, np.ndarray] = {}

    def load(number: int) -> _Block:
        x = source[number * size : min((number + 1) * size, n)]
        if len(x) < size:
            padded = empty_aligned((size, source.shape[1]))
            padded[: len(x)], padded[len(x) :] = x, 0
            x = padded
        placed = to_device(x)
        if number not in scales:
            scales[number] = np.asarray(_inverse_norms(placed))
        return _Block(number, x, (placed, to_device(scales[number])))

    def exact_side(block: _Block) -> tuple[np.ndarray, np.ndarray]:
        if block.number not in exact_scales:
            exact_scales[block.number] = Rows(block.x).inverse_norms
        return block.x, exact_scales[block.number]

    for own in range(-(-len(indices) // size)):
        lists = indices[own * size : (own + 1) * size]
        rows, ranks = np.nonzero(lists >= 0)
        if not len(rows):
            continue
        found = lists[rows, ranks]
        order = np.argsort(found // size, kind="stable")
        borders = np.searchsorted(found[order] // size, np.arange(1, -(-n // size)))
        held = load(own)
        for number, at in enumerate(np.split(order, borders)):
            if not len(at):
                continue
            block = held if number == own else load(number)
            first, second = rows[at], found[at] - number * size
            distances = _measure_ordered(held, block, first, second)
            near = np.flatnonzero(distances < NEAR)
            if near.size:
                sides = exact_side(held), exact_side(block)
                distances[near] = measure_sides(sides, first[near], second[near])
            out[own * size + first, ranks[at]] = distances
        scratch.give_back(indices, out)
    return out


def refine_distances(embeddings: Float[ArrayLike, "N D"], neighbors: Neighbors) -> Neighbors:
    """Replace the distances by those of ``list_distances`` and sort again by (distance, row)."""
    distances = list_distances(embeddings, neighbors.indices)
    last = np.where(neighbors.indices < 0, np.iinfo(np.int32).max, neighbors.indices)
    order = np.lexsort((last, distances), axis=1)
    return Neighbors(
        *(np.take_along_axis(a, order, axis=1) for a in (neighbors.indices, distances))
    )


_inverse_norms = jax.jit(inverse_norms)


@jax.jit
def _measure(side: Side, other: Side, pairs: Int[Array, "2 T P"]) -> Float[Array, " TP"]:
    (x, x_scale), (y, y_scale) = side, other

    def measure(pair: Array) -> Array:  # int[2, P] or int[2]
        u = x[pair[0]] * x_scale[pair[0]][..., None]
        v = y[pair[1]] * y_scale[pair[1]][..., None]
        return 0.5 * jnp.sum((u - v) ** 2, axis=-1)

    if jax.default_backend() == "cpu":
        # XLA reads a single pair where it lies, in one loop: half the time of a tile's copies.
        return lax.map(measure, pairs.reshape(2, -1).T)
    return lax.map(measure, pairs.swapaxes(0, 1)).reshape(-1)
