"""Nearest rows in many databases that share their parts, for queries that lie in none of them.

Rows come in parts of equal size, and each database is a set of whole parts. All queries are
multiplied with all parts once, in tiles, and the nearest rows of each part are selected once. Every
database then takes its nearest from those of its parts, so that many databases cost little more
than one.

The lists are exact: in the order (exact distance, row), as those of ``search.find_neighbors``.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core import checks
from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import Array, Bool, Int
from pathorob_jax.kernels.neighbors import exact_search, near_ties
from pathorob_jax.kernels.neighbors.exact_rows import Rows
from pathorob_jax.kernels.neighbors.tiles import (
    DEFAULT_BUDGET_BYTES,
    MIN_TILE_ROWS,
    PADDING_GROUP,
    Neighbors,
)

QUERY_ROWS = 1024
# Per score of a tile: the score, and what the selection copies.
BYTES_PER_SCORE = 16


class Parts(NamedTuple):
    """Parts of databases.

    Attributes:
        rows: int[P, n] rows of each part.
        group_id: int[P] group of each part; its rows are no neighbours of queries of the group.
        members: bool[S, P] parts of each database.
    """

    rows: Int[np.ndarray, "P n"]
    group_id: Int[np.ndarray, " P"]
    members: Bool[np.ndarray, "S P"]


def find_in_parts(
    rows: Rows,
    query_idx: Int[np.ndarray, " Q"],
    query_group: Int[np.ndarray, " Q"],
    parts: Parts,
    *,
    k: int,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
) -> Int[np.ndarray, "S Q k"]:
    """Find the k nearest rows by cosine distance of each query in each database.

    It computes on the default device, which holds the rows of all parts. Memory on the device, in
    addition: ``budget_bytes``.

    Args:
        rows: all rows, each with a direction in float32.
        query_idx: int[Q] rows that are queries; none lies in a part.
        query_group: int[Q] group of each query, numbered as those of the parts.
        parts: parts and databases.
        k: neighbours wanted.
        budget_bytes: memory for the scores of a tile.

    Returns:
        int32[S, Q, k] rows, nearest first, the lower row first among equals; -1 where a database
        has fewer rows of other groups.

    Raises:
        InputError: a row has no direction, or shapes differ.
    """
    n_databases, n_parts = parts.members.shape
    checks.check_shape(parts.rows.shape, (n_parts, None), name="rows", why="to match members")
    checks.check_shape(parts.group_id.shape, (n_parts,), name="group_id", why="to match members")
    checks.check_shape(query_group.shape, query_idx.shape, name="query_group", why="(one each)")
    used = np.zeros(rows.n, bool)
    used[query_idx] = used[parts.rows.reshape(-1)] = True
    rows.check_directions(used)
    found = _search(rows, query_idx, query_group, parts, near_ties.fetched(k), budget_bytes)
    settled = Neighbors(*(np.array(a[:, :k]) for a in found))
    if settled.indices.size:
        row_of = np.tile(query_idx, n_databases)
        every = np.ones(len(row_of), bool)
        error = near_ties.rounding_error(rows, found, k, every, row_of)
        with np.errstate(invalid="ignore"):  # absent neighbours: inf - inf
            reached = found.distances[:, -1] - found.distances[:, k - 1] <= 2 * error
        near_ties.sort_near(rows, np.flatnonzero(~reached), found, settled, k, error, row_of)
        for database in range(n_databases):
            own = slice(database * len(query_idx), (database + 1) * len(query_idx))
            again = np.flatnonzero(reached[own])
            if again.size:
                settled.indices[own][again] = _search_again(
                    rows, query_idx[again], query_group[again], parts, database, k, budget_bytes
                )
    return settled.indices.reshape(n_databases, len(query_idx), k)


def _search(
    rows: Rows,
    query_idx: Int[np.ndarray, " Q"],
    query_group: Int[np.ndarray, " Q"],
    parts: Parts,
    depth: int,
    budget_bytes: int,
) -> Neighbors:
    """Lists [S * Q, depth] of a float32 search, database by database."""
    flat = parts.rows.reshape(-1)
    shape = (len(parts.members), len(query_idx), depth)
    indices, distances = np.full(shape, -1, np.int32), np.full(shape, np.inf, np.float32)
    x, scale = map(to_device, _take(rows, flat))
    groups = to_device(parts.group_id, dtype=np.int32)
    members = to_device(parts.members, dtype=bool)
    fitting = budget_bytes // (BYTES_PER_SCORE * max(len(flat), 1)) // MIN_TILE_ROWS
    n_tiles = -(-len(query_idx) // min(QUERY_ROWS, max(fitting, 1) * MIN_TILE_ROWS))
    # As even as possible, so that little is padded.
    tile = max(1, -(-len(query_idx) // max(n_tiles, 1) // MIN_TILE_ROWS)) * MIN_TILE_ROWS
    for start in range(0, len(query_idx), tile):
        part = slice(start, start + tile)
        queries, query_scale = _take(rows, query_idx[part])
        n = len(queries)
        padding = tile - n
        closeness, position = (
            np.asarray(a)[:, :n]
            for a in _search_tile(
                np.pad(queries, ((0, padding), (0, 0))),
                np.pad(query_scale, (0, padding)),
                np.pad(query_group[part].astype(np.int32), (0, padding)),
                x,
                scale,
                groups,
                members,
                depth=depth,
            )
        )
        width = closeness.shape[2]
        absent = np.isneginf(closeness)
        indices[:, part, :width] = np.where(absent, -1, flat[position])
        distances[:, part, :width] = 0.0 - closeness
    return Neighbors(indices.reshape(-1, depth), distances.reshape(-1, depth))


def _take(rows: Rows, idx: Int[np.ndarray, " L"]) -> tuple[np.ndarray, np.ndarray]:
    """float32[L, D] rows and float32[L] of their inverse lengths."""
    return rows.take(idx), rows.inverse_norms[idx].astype(np.float32)


@functools.partial(jax.jit, static_argnames="depth")
def _search_tile(
    queries: Array,
    query_scale: Array,
    query_group: Array,
    x: Array,
    scale: Array,
    groups: Array,
    members: Array,
    *,
    depth: int,
) -> tuple[Array, Array]:
    """Closeness cos - 1 and place among the rows of all parts, each [S, queries, depth]."""
    n_queries, n_parts = len(queries), len(groups)
    n = len(x) // n_parts
    product = lax.dot_general(queries, x, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    cosine = product * (query_scale[:, None] * scale[None, :])
    closeness = jnp.minimum(cosine - 1.0, 0.0).reshape(n_queries, n_parts, n)
    best, position = lax.top_k(closeness, min(depth, n))
    own = query_group[:, None] == groups[None, :]
    best = jnp.where(own[:, :, None], -jnp.inf, best)
    place = (position + (jnp.arange(n_parts) * n)[None, :, None]).reshape(n_queries, -1)

    def search(member: Array) -> tuple[Array, Array]:
        masked = jnp.where(member[None, :, None], best, -jnp.inf).reshape(n_queries, -1)
        found, at = lax.top_k(masked, min(depth, masked.shape[1]))
        return found, jnp.take_along_axis(place, at, axis=1)

    return lax.map(search, members)


def _search_again(
    rows: Rows,
    query_idx: Int[np.ndarray, " Q"],
    query_group: Int[np.ndarray, " Q"],
    parts: Parts,
    database: int,
    k: int,
    budget_bytes: int,
) -> Int[np.ndarray, "Q k"]:
    """Search some queries in one database in float64."""
    member = parts.members[database]
    held = np.isin(query_group, parts.group_id[member])
    out = np.empty((len(query_idx), k), np.int32)
    # Queries whose group has rows in the database are searched group by group.
    cases = [(~held, member)] + [
        (held & (query_group == group), member & (parts.group_id != group))
        for group in np.unique(query_group[held])
    ]
    for chosen, allowed in cases:
        if not chosen.any():
            continue
        labels = np.full((1, rows.n), PADDING_GROUP, np.int32)
        labels[0, parts.rows[allowed].reshape(-1)] = PADDING_GROUP + 1
        [exact] = exact_search.search(
            rows, labels, query_idx[chosen], (k,), budget_bytes=budget_bytes
        )
        out[chosen] = exact.indices
    return out
