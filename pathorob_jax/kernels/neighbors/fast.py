"""Neighbour search with bfloat16 products and the exact result of the float32 search.

The search returns the same lists as ``search.search``, and the number of rows whose lists
could not be proven correct.

Rows are rounded to bfloat16 and their products are summed in float32. These scores select
``MARGIN`` more candidates per list than needed, and the candidates are scored again in float32. A
bound proves that the rows left out lie farther away: if x' is x rounded, then

    |x.y - x'.y'| <= |x - x'| |y| + |x'| |y - y'|

(Cauchy-Schwarz). The rounding errors of both sums add to it, each at most gamma = D u times the sum
of absolute products, in whatever order the terms are added. A row is proven if its k-th candidate
is nearer than the last candidate's bfloat16 distance minus that bound. The other rows are searched
again in float32, as queries against all rows.

The order and the distances of the candidates equal those of the float32 search because their
products round as the products of its tiles do. This is a property of the backend, which the search
tests on a few rows first; where it does not hold, all rows are searched in float32. CPU has this
property; other backends were not tried.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import Array, ArrayLike, Bool, Float, Int
from pathorob_jax.kernels.neighbors import tiles
from pathorob_jax.kernels.neighbors.tiles import Block, Found, Lists, Neighbors, Tile

MARGIN = 20
# Rows whose candidates are multiplied in one product. List lengths are multiples of eight, so eight
# lists give a multiple of ``MIN_TILE_ROWS`` columns, and such products round as tiles do.
RANKED_ROWS = 8
PAIRS_PER_CALL = 16


def search(
    embeddings: Float[ArrayLike, "N D"],
    labels: Int[np.ndarray, "L N"],
    ks: tuple[int, ...],
    *,
    budget_bytes: int = tiles.DEFAULT_BUDGET_BYTES,
    device: jax.Device | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[list[Neighbors], int]:
    """Find neighbours in the order of float32, mostly with bfloat16 products.

    Args:
        embeddings: float32[N, D], with the requirements of ``search.find_neighbors``.
        labels: int32[1, N] groups; or int32[3, N] groups and the two labels that define the types.
        ks: lengths of the lists: (k,), or (k, m, m) with types.
        budget_bytes: memory for a pair of tiles, in addition to the embeddings, their rounded copy
            and the lists.
        device: None: the first local device.
        on_progress: called with the number of rows finished since the last call; the numbers sum
            to N.

    Returns:
        The lists, and the number of rows that were not proven and therefore searched in float32
        (all rows if the products of candidates and of tiles round differently on this backend).
    """
    n = np.shape(embeddings)[0]
    device = device or jax.local_devices()[0]
    tile = tiles.tile_rows(n, k=max(ks), budget_bytes=budget_bytes, platform=device.platform)
    x = to_device(embeddings, jax.sharding.SingleDeviceSharding(device))
    block = Block(
        x,
        jax.device_put(labels.astype(np.int32), device),
        _inverse_norms(x),
        jax.device_put(np.arange(n, dtype=np.int32), device),
    )
    wanted = tuple(min(k, n) for k in ks)
    if not _rounds_alike(block, tile=tile):
        lists = _search_all(block, wanted, tile, on_progress)
        return [tiles.to_host(f, k) for f, k in zip(lists, ks, strict=True)], n
    lengths = tuple(-(-(k + MARGIN) // RANKED_ROWS) * RANKED_ROWS for k in wanted)
    rounded, bound = _round(block)
    candidates = _search_all(rounded, lengths, tile, on_progress)
    del rounded
    lists, proven = _rank(block, candidates, bound, wanted)
    unproven = np.flatnonzero(~np.asarray(proven))
    out = [tiles.to_host(f, k) for f, k in zip(lists, ks, strict=True)]
    if 2 * unproven.size > n:  # the search of all rows multiplies half of all pairs
        lists = _search_all(block, wanted, tile, None)
        out = [tiles.to_host(f, k) for f, k in zip(lists, ks, strict=True)]
    else:
        for start in range(0, unproven.size, tile):
            rows = unproven[start : start + tile]
            padded = np.pad(rows, (0, tile - rows.size), mode="edge").astype(np.int32)
            exact_lists = _search_rows(block, padded, ks=wanted)
            for neighbors, found, k in zip(out, exact_lists, ks, strict=True):
                part = tiles.to_host(found, k)
                neighbors.indices[rows] = part.indices[: rows.size]
                neighbors.distances[rows] = part.distances[: rows.size]
    return out, int(unproven.size)


_inverse_norms = jax.jit(tiles.inverse_norms)


def _search_all(
    block: Block, ks: tuple[int, ...], tile: int, on_progress: Callable[[int], None] | None
) -> Lists:
    """Search all pairs of tiles, ``PAIRS_PER_CALL`` per call."""
    n = block.rows.shape[0]
    pairs = np.stack(np.triu_indices(-(-n // tile)), axis=1).astype(np.int32)
    n_calls = -(-len(pairs) // PAIRS_PER_CALL)
    pairs = np.pad(
        pairs, ((0, n_calls * PAIRS_PER_CALL - len(pairs)), (0, 0)), constant_values=-1
    ).reshape(n_calls, PAIRS_PER_CALL, 2)
    lists = tuple(tiles.nothing_found(n, k) for k in ks)
    for done in range(n_calls):
        lists = _search_within(block, lists, pairs[done], tile=tile)
        if on_progress is not None:
            jax.block_until_ready(lists)
            on_progress(n * (done + 1) // n_calls - n * done // n_calls)
    return lists


_search_within = jax.jit(tiles.search_within, static_argnames="tile", donate_argnums=1)


@functools.partial(jax.jit, static_argnames="ks")
def _search_rows(block: Block, rows: Int[Array, " tile"], *, ks: tuple[int, ...]) -> Lists:
    """Lists of one tile of query rows, searched among all rows in float32."""
    tile, n = rows.shape[0], block.rows.shape[0]
    queries = Tile(
        Block(block.x[rows], block.labels[:, rows], block.scale[rows], rows),
        jnp.int32(0),
        jnp.ones(tile, bool),
    )

    def step(found: Lists, number: Array) -> tuple[Lists, None]:
        columns = tiles.cut_tile(block, number, tile)
        return tiles.improve(found, queries, columns, tiles.score_tiles(queries, columns)), None

    nothing = tuple(tiles.nothing_found(tile, k) for k in ks)
    return lax.scan(step, nothing, jnp.arange(-(-n // tile)))[0]


@jax.jit
def _round(block: Block) -> tuple[Block, Float[Array, " N"]]:
    """Round the block to bfloat16 and bound the difference between its scores and float32 scores.

    The bound float32[N] holds for the scores of a row with any other row. It combines the residual
    |x - x'| / |x| of the row, the largest residual of all rows, the errors of both sums, and the
    error of the scaling. u is twice the unit roundoff of float32, to cover hardware that truncates
    instead of rounding. Terms below float32's smallest normal number may be lost in both sums.
    """
    unit = 2.0**-23
    rounded = block.x.astype(jnp.bfloat16)
    residual = jnp.sqrt(jnp.sum((block.x - rounded.astype(jnp.float32)) ** 2, axis=1))
    residual *= block.scale
    dim = block.x.shape[1]
    gamma = dim * unit
    slack = 1.001 + 4 * gamma  # norms and residuals are themselves rounded
    largest = jnp.max(residual)
    bound = slack * (residual + (1 + residual) * largest)
    bound += slack * gamma * (1 + (1 + residual) * (1 + largest)) + 16 * unit
    bound += dim * 2.0**-124 * block.scale * jnp.max(block.scale)
    return block._replace(x=rounded), bound


@functools.partial(jax.jit, static_argnames="ks")
def _rank(
    block: Block, candidates: Lists, bound: Float[Array, " N"], ks: tuple[int, ...]
) -> tuple[Lists, Bool[Array, " N"]]:
    """Select the best candidates by float32 score, and tell which rows are proven."""
    n = bound.shape[0]
    n_calls = -(-n // RANKED_ROWS)
    calls = jnp.minimum(jnp.arange(n_calls * RANKED_ROWS), n - 1).reshape(n_calls, RANKED_ROWS)

    def rank_list(rows: Array, found: Found, k: int) -> tuple[Array, Array, Array]:
        closeness, idx = (a[rows] for a in found)
        absent = jnp.isneginf(closeness)
        idx = jnp.where(absent, 0, idx)
        exact = jnp.where(absent, -jnp.inf, _score_candidates(block, rows, idx))
        distance, idx = lax.sort((-exact, idx), dimension=1, num_keys=2)
        farthest = closeness[:, -1]  # of the candidates kept; -inf: no row was left out
        return -distance[:, :k], idx[:, :k], -distance[:, k - 1] > farthest + bound[rows]

    def rank(rows: Array) -> list[tuple[Array, Array, Array]]:
        return [rank_list(rows, f, k) for f, k in zip(candidates, ks, strict=True)]

    ranked = lax.map(rank, calls)
    lists = tuple(
        (closeness.reshape(-1, k)[:n], idx.reshape(-1, k)[:n])
        for (closeness, idx, _), k in zip(ranked, ks, strict=True)
    )
    proven = [
        kept.reshape(-1)[:n] | jnp.isneginf(closeness[:, -1])
        for (_, _, kept), (closeness, _) in zip(ranked, candidates, strict=True)
    ]
    return lists, functools.reduce(jnp.logical_and, proven)


def _score_candidates(
    block: Block, rows: Int[Array, " q"], idx: Int[Array, "q C"]
) -> Float[Array, "q C"]:
    """Closeness of rows and their candidates; each row is multiplied with all rows' candidates."""
    n_rows, n_candidates = idx.shape
    queries, columns = (
        Tile(
            Block(block.x[ids], block.labels[:, ids], block.scale[ids], ids),
            jnp.int32(0),
            jnp.ones(ids.shape[0], bool),
        )
        for ids in (rows, idx.reshape(-1))
    )
    scores = tiles.score_tiles(queries, columns).reshape(n_rows, n_rows, n_candidates)
    diagonal = jnp.arange(n_rows)
    return scores[diagonal, diagonal]


@functools.partial(jax.jit, static_argnames="tile")
def _rounds_alike(block: Block, *, tile: int) -> Bool[Array, ""]:
    """Whether candidate scores equal tile scores bit for bit, tested on the first rows."""
    whole = tiles.cut_tile(block, jnp.int32(0), tile)
    scores = tiles.score_tiles(whole, whole)
    rows = jnp.arange(RANKED_ROWS) % tile
    idx = jnp.arange(RANKED_ROWS * RANKED_ROWS * 4).reshape(RANKED_ROWS, -1) % tile
    return jnp.all(_score_candidates(block, rows, idx) == scores[rows[:, None], idx])
