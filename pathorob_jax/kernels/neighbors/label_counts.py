"""What the labels of neighbours say: agreement counts per rank, and majority votes.

Enters: neighbour indices and integer labels. Leaves: integer counts. Both are matrix products of
0/1 indicators, tiled over rows; counts in a tile stay under 2^24 and are thus exact in float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pathorob_jax.core.typing import Array, Float, Int

# Agreement of a pair of rows in two labels, first label first.
SAME_SAME, SAME_OTHER, OTHER_SAME, OTHER_OTHER = range(4)
TILE_ROWS = 512


class Agreement(NamedTuple):
    """How neighbours agree with their query in two labels.

    Attributes:
        counts: int32[n_cells, 4, K] queries of a cell whose neighbour at that rank is same/same,
            same/other, other/same, other/other.
        first_decisive: int32[N] first rank (from 0) whose neighbour agrees in exactly one label; K
            where there is none.
    """

    counts: Int[Array, "cells 4 K"]
    first_decisive: Int[Array, " N"]


class Votes(NamedTuple):
    """Majority votes at several k, per cell of queries.

    Attributes:
        correct: int32[cells, G] queries that their k neighbours vote into their own label.
        voted: int32[cells, G] queries that have any neighbour.
    """

    correct: Int[Array, "cells G"]
    voted: Int[Array, "cells G"]


@functools.partial(jax.jit, static_argnames=("n_cells",))
def count_agreement(
    neighbor_idx: Int[Array, "N K"],
    first_id: Int[Array, " N"],
    second_id: Int[Array, " N"],
    cell_id: Int[Array, " N"],
    *,
    n_cells: int,
) -> Agreement:
    """Count, per cell of queries and rank, how neighbours agree in two labels.

    Args:
        neighbor_idx: int32[N, K] rows, -1 absent.
        first_id: int32[N] first label.
        second_id: int32[N] second label.
        cell_id: int32[N] in [0, n_cells); queries with another value (padding) are not counted.
        n_cells: number of cells.

    Returns:
        ``Agreement``. Absent neighbours count nowhere.
    """

    def step(total: Array, rows: tuple[Array, ...]) -> tuple[Array, Array]:
        idx, first, second, cell = rows
        here = idx >= 0
        same_first = first_id[idx] == first[:, None]
        same_second = second_id[idx] == second[:, None]
        kinds = [
            here & same_first & same_second,
            here & same_first & ~same_second,
            here & ~same_first & same_second,
            here & ~same_first & ~same_second,
        ]
        counts = _exact_product("nc,tnk->ctk", jax.nn.one_hot(cell, n_cells), jnp.stack(kinds))
        decisive = here & (same_first != same_second)
        rank = jnp.where(decisive.any(1), jnp.argmax(decisive, axis=1), idx.shape[1])
        return total + counts.astype(jnp.int32), rank.astype(jnp.int32)

    zero = jnp.zeros((n_cells, 4, neighbor_idx.shape[1]), jnp.int32)
    tiles = tuple(_tiles(a) for a in (neighbor_idx, first_id, second_id, cell_id))
    counts, ranks = lax.scan(step, zero, tiles)
    return Agreement(counts, ranks.reshape(-1)[: neighbor_idx.shape[0]])


@functools.partial(jax.jit, static_argnames=("n_labels", "n_cells"))
def count_votes(
    neighbor_idx: Int[Array, "N K"],
    label_id: Int[Array, " N"],
    cell_id: Int[Array, " N"],
    k_grid: Int[Array, " G"],
    *,
    n_labels: int,
    n_cells: int,
) -> Votes:
    """Count queries that a majority of their k nearest neighbours puts in their own label.

    Ties go to the smallest label. A query without any neighbour has no vote.

    Args:
        neighbor_idx: int32[N, K] rows, -1 absent.
        label_id: int32[N] in [0, n_labels).
        cell_id: int32[N] in [0, n_cells); queries with another value (padding) are not counted.
        k_grid: int32[G] values of k, at most K.
        n_labels: number of labels.
        n_cells: number of cells.
    """
    rank = jnp.arange(neighbor_idx.shape[1])
    within: Float[Array, "K G"] = (rank[:, None] < k_grid[None, :]).astype(jnp.float32)

    def step(total: Votes, rows: tuple[Array, ...]) -> tuple[Votes, None]:
        idx, label, cell = rows
        of_neighbor = jnp.where(idx >= 0, label_id[idx], -1)
        is_label = of_neighbor[None, :, :] == jnp.arange(n_labels)[:, None, None]
        votes = _exact_product("lnk,kg->lng", is_label, within)
        has_vote = votes.sum(0) > 0
        hit = has_vote & (jnp.argmax(votes, axis=0) == label[:, None])
        in_cell = jax.nn.one_hot(cell, n_cells)
        correct, voted = (
            _exact_product("nc,ng->cg", in_cell, which).astype(jnp.int32)
            for which in (hit, has_vote)
        )
        return Votes(total.correct + correct, total.voted + voted), None

    zero = jnp.zeros((n_cells, k_grid.shape[0]), jnp.int32)
    tiles = tuple(_tiles(a) for a in (neighbor_idx, label_id, cell_id))
    return lax.scan(step, Votes(zero, zero), tiles)[0]


def _exact_product(equation: str, a: Array, b: Array) -> Array:
    """Einsum of 0/1 indicators in float32, exact while counts stay under 2^24."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.einsum(equation, a, b, precision=lax.Precision.HIGHEST)


def _tiles(array: Array) -> Array:
    """[N, ...] -> [tiles, rows, ...], the last tile padded with -1 (absent, no cell)."""
    rows = min(TILE_ROWS, array.shape[0])
    n_tiles = -(-array.shape[0] // rows)
    pad = [(0, n_tiles * rows - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    padded = jnp.pad(array, pad, constant_values=-1)
    return padded.reshape(n_tiles, rows, *array.shape[1:])
