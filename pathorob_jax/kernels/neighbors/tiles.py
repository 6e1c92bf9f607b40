"""Tiles of a neighbour search: scores of two tiles, and lists that they improve.

Enters: blocks of rows that lie on one device. Leaves: for each row the best neighbours so far. What
lies on which device, and in which order tiles meet, is for ``neighbors``, ``neighbors_ring``,
``neighbors_stream`` and ``neighbors_batched``; all score and select by what is here, so that their
answers agree bit for bit. ``neighbors_host`` scores by it too, and selects on the host.

Why they can: a product's rounding depends on the tile's shape alone, not on the rows' places in it
nor on the side that they stand on. On CPU that holds for all tiles of a multiple of
``MIN_TILE_ROWS`` rows, whatever their size (tested); elsewhere tiles of one shape are relied on.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Array, ArrayLike, Bool, Float, Int

DEFAULT_BUDGET_BYTES = 256 * 2**20
# A pair of tiles: scores, masked, turned, with what was found before; a byte each for three masks.
BYTES_PER_SCORE = 24
# Measured on CPU: small tiles stay in cache, but long selections are cheaper in large ones.
# Accelerators want large products; not measured there.
CPU_TILE_ROWS, LARGE_TILE_ROWS, LONG_K = 1024, 4096, 256
# Products of other sizes are compiled in ways that need not round both sides of a pair alike.
MIN_TILE_ROWS = 64
PADDING_GROUP = -1
# Selection, measured on CPU (docs/performance.md). Up to BLOCK_K the blocks of columns with the
# largest maxima are chosen first; from LEAST_LONG_K on, a tile from which no row takes more than
# SHORT_SELECTION columns is merged by a selection of that length.
BLOCK_K, BLOCK_COLUMNS = 16, 16
LEAST_LONG_K, LEAST_LONG_WIDTH, SHORT_SELECTION = 64, 512, 8

Found = tuple[Array, Array]  # closeness and indices of the best so far, each [R, K]
Lists = tuple[Found, ...]


class Neighbors(NamedTuple):
    """The k nearest rows of other groups.

    Attributes:
        indices: int32[N, K] row positions, nearest first; -1 where a row has fewer than K eligible
            neighbours (trailing).
        distances: float32[N, K] cosine distance 1 - cos in [0, 2], ascending; inf where absent.
    """

    indices: Int[np.ndarray, "N K"]
    distances: Float[np.ndarray, "N K"]


class Block(NamedTuple):
    """Rows on a device.

    Attributes:
        x: float32[R, D] embeddings; rows of padding are zero.
        labels: int32[1 or 3, R] groups, and the two labels of types; ``PADDING_GROUP`` marks rows
            that are nobody's neighbour.
        scale: float32[R] inverse norms, of ``inverse_norms``.
        rows: int32[R] their numbers in the whole set, ascending; -1 fills a last tile.
    """

    x: Float[Array, "R D"]
    labels: Int[Array, "L R"]
    scale: Float[Array, " R"]
    rows: Int[Array, " R"]


class Tile(NamedTuple):
    """Rows of a block, from ``start`` on; ``own`` are those that no earlier tile holds."""

    block: Block
    start: Int[Array, ""]
    own: Bool[Array, " tile"]


def tile_rows(
    n: int,
    *,
    k: int,
    budget_bytes: int,
    platform: str,
    bytes_per_score: int = BYTES_PER_SCORE,
) -> int:
    """Rows of a tile, so that a pair of tiles keeps to the budget.

    A multiple of ``MIN_TILE_ROWS`` that cuts n rows as evenly as that allows, or n if less.

    Raises:
        InputError: not even ``MIN_TILE_ROWS`` fit.
    """
    fitting = int((budget_bytes / bytes_per_score) ** 0.5)
    least = min(MIN_TILE_ROWS, n)
    if fitting < least:
        raise InputError(
            f"budget_bytes: a pair of tiles of {least} rows needs {bytes_per_score * least**2} "
            f"bytes, found {budget_bytes}; raise it."
        )
    if n <= MIN_TILE_ROWS:
        return n
    largest = CPU_TILE_ROWS if platform == "cpu" and k <= LONG_K else LARGE_TILE_ROWS
    largest = min(largest, fitting // MIN_TILE_ROWS * MIN_TILE_ROWS)
    even = _round_up(-(-n // -(-n // largest)))
    return even if even <= n else _round_up(-(-n // 2))


def _round_up(rows: int) -> int:
    return -(-rows // MIN_TILE_ROWS) * MIN_TILE_ROWS


def inverse_norms(x: Float[Array, "R D"]) -> Float[Array, " R"]:
    """float32[R] of 1 / |x_i|; 0 for a row of padding.

    Read off small products like those of the tiles, since a plain sum of squares is rounded in ways
    that depend on how many rows are summed together.
    """
    n = x.shape[0]
    size = min(MIN_TILE_ROWS, n)
    starts = jnp.minimum(jnp.arange(-(-n // size)) * size, n - size)

    def norms2(start: Array) -> Array:
        rows = lax.dynamic_slice_in_dim(x, start, size)
        return jnp.diagonal(_multiply(rows, rows))

    whole, last = n // size * size, n % size
    blocks = lax.map(norms2, starts)
    norm2 = jnp.concatenate([blocks.reshape(-1)[:whole], blocks[-1, size - last :]])
    return jnp.where(norm2 > 0, lax.rsqrt(norm2), 0.0)


def cut_tile(block: Block, number: Array, tile: int) -> Tile:
    """Tile ``number`` of a block; the last one overlaps the one before it."""
    start = jnp.minimum(number * tile, block.rows.shape[0] - tile)
    own = start + jnp.arange(tile) >= number * tile
    here = Block(
        x=lax.dynamic_slice_in_dim(block.x, start, tile),
        labels=lax.dynamic_slice_in_dim(block.labels, start, tile, axis=1),
        scale=lax.dynamic_slice_in_dim(block.scale, start, tile),
        rows=lax.dynamic_slice_in_dim(block.rows, start, tile),
    )
    return Tile(here, start, own)


def score_tiles(a: Tile, b: Tile) -> Float[Array, "tile tile"]:
    """Closeness cos - 1 of each pair of rows, at most 0: minus the cosine distance.

    Scaling products instead of rows saves a second copy of the embeddings, and leaves rows whose
    products are exact in float32 (counts, one-hot) with exact ties.
    """
    product = _multiply(a.block.x, b.block.x)
    # The scales first, so that both sides of a pair see the same rounding.
    cosine = product * (a.block.scale[:, None] * b.block.scale[None, :])
    # cosine - 1 is 0.0 at most, never -0.0 (which top_k would rank below 0.0).
    return jnp.minimum(cosine - 1.0, 0.0)


def _multiply(a: Float[Array, "A D"], b: Float[Array, "B D"]) -> Float[Array, "A B"]:
    return lax.dot_general(
        a,
        b,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def search_within(block: Block, found: Lists, pairs: Int[ArrayLike, "P 2"], *, tile: int) -> Lists:
    """Improve a block's lists by pairs of its own tiles, in their order; (-1, -1) is none.

    Args:
        block: rows.
        found: best so far of all rows of the block.
        pairs: tile numbers (i <= j). Each tile must meet the others in ascending order, which keeps
            equals in the order of their rows.
        tile: rows of a tile.
    """

    def step(found: Lists, pair: Array) -> tuple[Lists, None]:
        a, b = (cut_tile(block, pair[i], tile) for i in (0, 1))
        wanted = (pair[0] >= 0) & (b.block.rows[0] >= 0)
        closeness = lax.cond(wanted, score_tiles, _no_scores, a, b)
        found = _improve_if(wanted, found, a, b, closeness)
        found = _improve_if(wanted & (pair[0] < pair[1]), found, b, a, closeness.T)
        return found, None

    return lax.scan(step, found, jnp.asarray(pairs, jnp.int32))[0]


def search_between(
    a: Block,
    b: Block,
    found_a: Lists,
    found_b: Lists,
    *,
    tile: int,
    descending: bool = False,
    first_a: ArrayLike = 0,
    stop_b: ArrayLike | None = None,
) -> tuple[Lists, Lists]:
    """Improve the lists of two blocks by the pairs of their tiles.

    Args:
        a: rows of one block, whole tiles.
        b: rows of another.
        found_a: best so far of a's rows, all from rows before b.
        found_b: best so far of b's rows: all from rows before a, or if ``descending`` from rows
            after a.
        tile: rows of a tile.
        descending: order in which b's tiles meet those of a.
        first_a: tiles of a before that one are left out.
        stop_b: tiles of b from that one on are left out; None: none.
    """
    n_a, n_b = (block.rows.shape[0] // tile for block in (a, b))
    order = np.arange(n_a)[::-1] if descending else np.arange(n_a)
    pairs = np.stack(np.meshgrid(order, np.arange(n_b), indexing="ij"), axis=-1).reshape(-1, 2)
    stop_b = n_b if stop_b is None else stop_b

    def step(found: tuple[Lists, Lists], pair: Array) -> tuple[tuple[Lists, Lists], None]:
        one, other = cut_tile(a, pair[0], tile), cut_tile(b, pair[1], tile)
        wanted = (pair[0] >= first_a) & (pair[1] < stop_b)
        wanted &= (one.block.rows[0] >= 0) & (other.block.rows[0] >= 0)
        closeness = lax.cond(wanted, score_tiles, _no_scores, one, other)
        of_a = _improve_if(wanted, found[0], one, other, closeness)
        of_b = _improve_if(wanted, found[1], other, one, closeness.T, before=descending)
        return (of_a, of_b), None

    return lax.scan(step, (found_a, found_b), jnp.asarray(pairs, jnp.int32))[0]


def _no_scores(a: Tile, b: Tile) -> Float[Array, "tile tile"]:
    return jnp.zeros((a.own.shape[0], b.own.shape[0]), jnp.float32)


def _improve_if(
    wanted: Array,
    found: Lists,
    queries: Tile,
    columns: Tile,
    closeness: Array,
    *,
    before: bool = False,
) -> Lists:
    """``improve`` the lists of the queries' tile in place.

    Only the tile's lists pass through the condition: whole ones would be copied by each.
    """
    tile = queries.own.shape[0]
    here = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, queries.start, tile), found)
    better = lax.cond(
        wanted,
        functools.partial(improve, before=before),
        lambda here, *_: here,
        *(here, queries, columns, closeness),
    )
    return jax.tree.map(
        lambda a, b: lax.dynamic_update_slice_in_dim(a, b, queries.start, 0), found, better
    )


def improve(
    found: Lists, queries: Tile, columns: Tile, closeness: Array, *, before: bool = False
) -> Lists:
    """Merge closeness [tile, tile] of queries and columns into the lists of the queries.

    Args:
        found: best so far of the queries, one list or three: of any type, of those that share the
            first label and not the second, and the reverse.
        queries: tile whose lists are improved.
        columns: tile that is offered.
        closeness: scores of the two.
        before: the columns' rows lie before all that were offered so far; else after them. Among
            equals the lower row wins.
    """
    eligible = (columns.block.labels[0] != PADDING_GROUP)[None, :]
    types = [mask & eligible for mask in type_masks(queries, columns, n_types=len(found))]
    return tuple(
        _improve_list(one, jnp.where(mask, closeness, -jnp.inf), columns.block.rows, before=before)
        for one, mask in zip(found, types, strict=True)
    )


def type_masks(a: Tile, b: Tile, *, n_types: int) -> list[Bool[Array, "tile tile"]]:
    """Pairs of two groups: all, and where wanted those of each of the two types.

    The same from both sides; rows that may not be a neighbour are not looked at.
    """
    same = a.block.labels[:, :, None] == b.block.labels[:, None, :]
    other_group = ~same[0] & a.own[:, None] & b.own[None, :]
    if n_types == 1:
        return [other_group]
    first_only, second_only = same[1] & ~same[2], ~same[1] & same[2]
    return [other_group, other_group & first_only, other_group & second_only]


def _improve_list(found: Found, scores: Array, columns: Array, *, before: bool) -> Found:
    """Merge scores [tile, tile] against ``columns`` into lists [tile, K]."""
    k, width = found[0].shape[1], scores.shape[1]

    def merge(new: Found) -> Found:
        return merge_lists(new, found, k) if before else merge_lists(found, new, k)

    def merge_some(length: int) -> Found:
        best, at = select(scores, length)
        return merge((best, columns[at]))

    def merge_all() -> Found:
        return merge((scores, jnp.broadcast_to(columns[None, :], scores.shape)))

    if k <= BLOCK_K:
        return merge_some(min(k, width))
    if k < LEAST_LONG_K or width < LEAST_LONG_WIDTH:
        return merge_all()
    # The longer the search, the fewer columns still enter a list.
    last = found[0][:, -1:]
    enters = (scores >= last) & (scores > -jnp.inf) if before else scores > last
    few = jnp.max(jnp.sum(enters, axis=1)) <= SHORT_SELECTION
    return lax.cond(few, lambda: merge_some(SHORT_SELECTION), merge_all)


def merge_lists(first: Found, second: Found, k: int) -> Found:
    """The k best of two lists; ``first`` wins among equals."""
    # top_k takes the earlier among equals.
    best, at = lax.top_k(jnp.concatenate([first[0], second[0]], axis=1), k)
    return best, jnp.take_along_axis(jnp.concatenate([first[1], second[1]], axis=1), at, axis=1)


def select(scores: Float[Array, "Q C"], k: int) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """The k largest of each row and their columns, the lower column first among equals.

    A short selection takes the blocks of columns with the k largest maxima, which hold the k
    largest scores; a long one looks at every column.
    """
    n, width = scores.shape
    if k > BLOCK_K or width % BLOCK_COLUMNS or width < 2 * k * BLOCK_COLUMNS:
        return lax.top_k(scores, k)
    blocks = scores.reshape(n, width // BLOCK_COLUMNS, BLOCK_COLUMNS)
    _, chosen = lax.top_k(blocks.max(axis=2), k)
    chosen = jnp.sort(chosen, axis=1)
    few = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(n, -1)
    best, at = lax.top_k(few, k)
    place = jnp.take_along_axis(chosen, at // BLOCK_COLUMNS, axis=1)
    return best, place * BLOCK_COLUMNS + at % BLOCK_COLUMNS


def nothing_found(n: int, k: int) -> Found:
    """Closeness [n, k] of -inf and indices of -1."""
    return jnp.full((n, k), -jnp.inf, jnp.float32), jnp.full((n, k), -1, jnp.int32)


def to_host(found: tuple[ArrayLike, ArrayLike], k: int) -> Neighbors:
    """``Neighbors`` of k columns; those past the list's own are absent."""
    closeness, indices = (np.asarray(a) for a in found)
    n, kept = indices.shape
    out = Neighbors(np.full((n, k), -1, np.int32), np.full((n, k), np.inf, np.float32))
    out.indices[:, :kept] = np.where(np.isneginf(closeness), -1, indices)
    out.distances[:, :kept] = 0.0 - closeness  # never -0.0
    return out
