"""Tiles of a neighbour search: the scores of two tiles, and the lists that they improve.

The functions take blocks of rows on one device and return the best neighbours so far of each row.
The modules ``search``, ``ring``, ``stream`` and ``batched`` decide which rows lie on which device
and in which order tiles meet. All of them score and select with this module, so their results agree
bit for bit. ``host`` uses it for the scores and selects on the host.

This works because the rounding of a product depends only on the shape of the tile, not on the
positions of the rows in it or on which operand they are. On CPU this holds for all tiles of a
multiple of ``MIN_TILE_ROWS`` rows, whatever their size (tested); on other platforms the searches
rely on tiles of one shape.
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
# Per score of a pair of tiles: the score, its masked and transposed copies, and the merge with the
# lists so far; one byte for each of three masks.
BYTES_PER_SCORE = 24
# Measured on CPU: small tiles stay in cache, but long selections are cheaper in large tiles.
# On an H200 larger tiles than the budget holds were not faster.
CPU_TILE_ROWS, LARGE_TILE_ROWS, LONG_K = 1024, 4096, 256
# Products of other sizes may be compiled so that the two sides of a pair round differently.
MIN_TILE_ROWS = 64
PADDING_GROUP = -1
# Selection, measured on CPU (docs/performance.md). Up to k = BLOCK_K, the blocks of columns with
# the largest maxima are chosen first. From k = LEAST_LONG_K on, a tile from which no row takes more
# than SHORT_SELECTION columns is merged through a selection of that length.
BLOCK_K, BLOCK_COLUMNS = 16, 16
LEAST_LONG_K, LEAST_LONG_WIDTH, SHORT_SELECTION = 64, 512, 8

Found = tuple[Array, Array]  # closeness and indices of the best neighbours so far, each [R, K]
Lists = tuple[Found, ...]


class Neighbors(NamedTuple):
    """The k nearest rows of other groups.

    Attributes:
        indices: int32[N, K] row positions, nearest first; -1 where a row has fewer than K eligible
            neighbours (at the end of the list).
        distances: float32[N, K] cosine distance 1 - cos in [0, 2], ascending; inf where absent.
    """

    indices: Int[np.ndarray, "N K"]
    distances: Float[np.ndarray, "N K"]


class Block(NamedTuple):
    """Rows on a device.

    Attributes:
        x: float32[R, D] embeddings; padding rows are zero.
        labels: int32[1 or 3, R] groups, and the two labels that define the types;
            ``PADDING_GROUP`` marks rows that are no row's neighbour.
        scale: float32[R] inverse norms from ``inverse_norms``.
        rows: int32[R] row numbers in the whole set, ascending; -1 for the padding of a last tile.
    """

    x: Float[Array, "R D"]
    labels: Int[Array, "L R"]
    scale: Float[Array, " R"]
    rows: Int[Array, " R"]


class Tile(NamedTuple):
    """Rows of a block from ``start`` on; ``own`` marks the rows that no earlier tile holds."""

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
    """Number of rows of a tile, such that a pair of tiles fits in the budget.

    It is a multiple of ``MIN_TILE_ROWS`` that divides n rows as evenly as possible, or n if n is
    smaller.

    Raises:
        InputError: not even ``MIN_TILE_ROWS`` rows fit.
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
    """float32[R] of 1 / |x_i|; 0 for a padding row.

    The squared norms are the diagonals of small products like those of the tiles: the rounding of a
    plain sum of squares would depend on how many rows are summed in one call.
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
    """Tile ``number`` of a block; the last tile overlaps the previous one."""
    start = jnp.minimum(number * tile, block.rows.shape[0] - tile)
    own = start + jnp.arange(tile) >= number * tile
    rows = Block(
        x=lax.dynamic_slice_in_dim(block.x, start, tile),
        labels=lax.dynamic_slice_in_dim(block.labels, start, tile, axis=1),
        scale=lax.dynamic_slice_in_dim(block.scale, start, tile),
        rows=lax.dynamic_slice_in_dim(block.rows, start, tile),
    )
    return Tile(rows, start, own)


def score_tiles(a: Tile, b: Tile) -> Float[Array, "tile tile"]:
    """Closeness cos - 1 of each pair of rows: minus the cosine distance, at most 0.

    Scaling the products instead of the rows saves a second copy of the embeddings. Rows whose
    products are exact in float32 (counts, one-hot) also keep exact ties.
    """
    product = _multiply(a.block.x, b.block.x)
    # The scales are multiplied first, so that both sides of a pair round in the same way.
    cosine = product * (a.block.scale[:, None] * b.block.scale[None, :])
    # The result is at most 0.0, and never -0.0, which top_k would rank below 0.0.
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
    """Improve a block's lists with pairs of its tiles, in the given order; (-1, -1) is skipped.

    Args:
        block: rows.
        found: lists so far of all rows of the block.
        pairs: tile numbers (i <= j). Each tile must meet the others in ascending order, which keeps
            equal distances in the order of their rows.
        tile: number of rows of a tile.
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
    """Improve the lists of two blocks with all pairs of their tiles.

    Args:
        a: rows of one block, whole tiles.
        b: rows of another block, whole tiles.
        found_a: lists so far of a's rows, all from rows before b.
        found_b: lists so far of b's rows: all from rows before a, or from rows after a if
            ``descending``.
        tile: number of rows of a tile.
        descending: whether b's tiles meet the tiles of a in descending order.
        first_a: tiles of a before this one are skipped.
        stop_b: tiles of b from this one on are skipped; None: no tile is skipped.
    """
    n_a, n_b = (block.rows.shape[0] // tile for block in (a, b))
    order = np.arange(n_a)[::-1] if descending else np.arange(n_a)
    pairs = np.stack(np.meshgrid(order, np.arange(n_b), indexing="ij"), axis=-1).reshape(-1, 2)
    stop_b = n_b if stop_b is None else stop_b

    def step(found: tuple[Lists, Lists], pair: Array) -> tuple[tuple[Lists, Lists], None]:
        tile_a, tile_b = cut_tile(a, pair[0], tile), cut_tile(b, pair[1], tile)
        wanted = (pair[0] >= first_a) & (pair[1] < stop_b)
        wanted &= (tile_a.block.rows[0] >= 0) & (tile_b.block.rows[0] >= 0)
        closeness = lax.cond(wanted, score_tiles, _no_scores, tile_a, tile_b)
        lists_a = _improve_if(wanted, found[0], tile_a, tile_b, closeness)
        lists_b = _improve_if(wanted, found[1], tile_b, tile_a, closeness.T, before=descending)
        return (lists_a, lists_b), None

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
    """Apply ``improve`` to the lists of the queries' tile, in place, where ``wanted``.

    Only the tile's lists pass through the conditional, because each conditional copies its
    operands.
    """
    tile = queries.own.shape[0]
    tile_lists = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, queries.start, tile), found)
    better = lax.cond(
        wanted,
        functools.partial(improve, before=before),
        lambda tile_lists, *_: tile_lists,
        *(tile_lists, queries, columns, closeness),
    )
    return jax.tree.map(
        lambda a, b: lax.dynamic_update_slice_in_dim(a, b, queries.start, 0), found, better
    )


def improve(
    found: Lists, queries: Tile, columns: Tile, closeness: Array, *, before: bool = False
) -> Lists:
    """Merge the closeness [tile, tile] of queries and columns into the lists of the queries.

    Args:
        found: lists so far of the queries, one or three: neighbours of any type, those that share
            the first label but not the second, and those that share the second but not the first.
        queries: tile whose lists are improved.
        columns: tile of candidate neighbours.
        closeness: scores of the two tiles.
        before: whether the rows of the columns come before all rows offered so far, instead of
            after them. The lower row wins among equal distances.
    """
    eligible = (columns.block.labels[0] != PADDING_GROUP)[None, :]
    types = [mask & eligible for mask in type_masks(queries, columns, n_types=len(found))]
    return tuple(
        _improve_list(best, jnp.where(mask, closeness, -jnp.inf), columns.block.rows, before=before)
        for best, mask in zip(found, types, strict=True)
    )


def type_masks(a: Tile, b: Tile, *, n_types: int) -> list[Bool[Array, "tile tile"]]:
    """Masks of the pairs of different groups and, if ``n_types`` is 3, of each of the two types.

    The masks are symmetric: they do not check whether a row may be a neighbour
    (``PADDING_GROUP``).
    """
    same = a.block.labels[:, :, None] == b.block.labels[:, None, :]
    other_group = ~same[0] & a.own[:, None] & b.own[None, :]
    if n_types == 1:
        return [other_group]
    first_only, second_only = same[1] & ~same[2], ~same[1] & same[2]
    return [other_group, other_group & first_only, other_group & second_only]


def _improve_list(found: Found, scores: Array, columns: Array, *, before: bool) -> Found:
    """Merge scores [tile, tile] with the rows ``columns`` into lists [tile, K]."""
    k, width = found[0].shape[1], scores.shape[1]

    def merge(new: Found) -> Found:
        return merge_lists(new, found, k) if before else merge_lists(found, new, k)

    def merge_some(length: int) -> Found:
        best, position = select(scores, length)
        return merge((best, columns[position]))

    def merge_all() -> Found:
        return merge((scores, jnp.broadcast_to(columns[None, :], scores.shape)))

    if k <= BLOCK_K:
        return merge_some(min(k, width))
    if k < LEAST_LONG_K or width < LEAST_LONG_WIDTH:
        return merge_all()
    # The further the search has come, the fewer columns still enter a list.
    last = found[0][:, -1:]
    enters = (scores >= last) & (scores > -jnp.inf) if before else scores > last
    few = jnp.max(jnp.sum(enters, axis=1)) <= SHORT_SELECTION
    return lax.cond(few, lambda: merge_some(SHORT_SELECTION), merge_all)


def merge_lists(first: Found, second: Found, k: int) -> Found:
    """The k best entries of two lists; ``first`` wins among equals."""
    # top_k takes the earlier entry among equals.
    best, position = lax.top_k(jnp.concatenate([first[0], second[0]], axis=1), k)
    indices = jnp.concatenate([first[1], second[1]], axis=1)
    return best, jnp.take_along_axis(indices, position, axis=1)


def select(scores: Float[Array, "Q C"], k: int) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """The k largest scores of each row and their columns, the lower column first among equals.

    A short selection first takes the blocks of columns with the k largest maxima, which contain the
    k largest scores; a long selection inspects every column.
    """
    n, width = scores.shape
    if k > BLOCK_K or width % BLOCK_COLUMNS or width < 2 * k * BLOCK_COLUMNS:
        return lax.top_k(scores, k)
    blocks = scores.reshape(n, width // BLOCK_COLUMNS, BLOCK_COLUMNS)
    _, chosen = lax.top_k(blocks.max(axis=2), k)
    chosen = jnp.sort(chosen, axis=1)
    few = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(n, -1)
    best, position = lax.top_k(few, k)
    block = jnp.take_along_axis(chosen, position // BLOCK_COLUMNS, axis=1)
    return best, block * BLOCK_COLUMNS + position % BLOCK_COLUMNS


def nothing_found(n: int, k: int) -> Found:
    """Empty lists: closeness [n, k] of -inf and indices [n, k] of -1."""
    return jnp.full((n, k), -jnp.inf, jnp.float32), jnp.full((n, k), -1, jnp.int32)


def to_host(found: tuple[ArrayLike, ArrayLike], k: int) -> Neighbors:
    """``Neighbors`` with k columns; columns beyond the length of the list are absent."""
    closeness, indices = (np.asarray(a) for a in found)
    n, kept = indices.shape
    out = Neighbors(np.full((n, k), -1, np.int32), np.full((n, k), np.inf, np.float32))
    out.indices[:, :kept] = np.where(np.isneginf(closeness), -1, indices)
    out.distances[:, :kept] = 0.0 - closeness  # never -0.0
    return out
