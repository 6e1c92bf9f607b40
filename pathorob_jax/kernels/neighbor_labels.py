"""What the labels of neighbours say: agreement counts per rank, and majority votes.

Enters: neighbour indices and integer labels. Leaves: integer counts. Both are matrix products of
0/1 indicators, tiled over rows; counts in a tile stay under 2^24 and are thus exact in float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pathorob_jax.typing import Array, Bool, Float, Int

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
    """Majority votes at several k.

    Attributes:
        correct: int32[C, G] queries of a label that their k neighbours vote into it.
        voted: int32[C, G] queries of a label that have any neighbour.
    """

    correct: Int[Array, "C G"]
    voted: Int[Array, "C G"]


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

    def tile(rows: tuple[Array, ...]) -> tuple[Array, Array]:
        idx, first, second, cell = rows
        here = idx >= 0
        same_first = first_id[idx] == first[:, None]
        same_second = second_id[idx] == second[:, None]
        kinds = jnp.stack(
            [
                here & same_first & same_second,
                here & same_first & ~same_second,
                here & ~same_first & same_second,
                here & ~same_first & ~same_second,
            ]
        ).astype(jnp.float32)
        in_cell = jax.nn.one_hot(cell, n_cells, dtype=jnp.float32)
        counts = jnp.einsum("nc,tnk->ctk", in_cell, kinds, precision=lax.Precision.HIGHEST)
        decisive = here & (same_first != same_second)
        rank = jnp.where(decisive.any(1), jnp.argmax(decisive, axis=1), idx.shape[1])
        return counts.astype(jnp.int32), rank.astype(jnp.int32)

    padded = [
        _tiles(a, fill)
        for a, fill in zip(
            (neighbor_idx, first_id, second_id, cell_id), (-1, -1, -1, -1), strict=True
        )
    ]

    def step(total: Array, rows: tuple[Array, ...]) -> tuple[Array, Array]:
        counts, rank = tile(rows)
        return total + counts, rank

    zero = jnp.zeros((n_cells, 4, neighbor_idx.shape[1]), jnp.int32)
    counts, ranks = lax.scan(step, zero, tuple(padded))
    return Agreement(counts, ranks.reshape(-1)[: neighbor_idx.shape[0]])


@functools.partial(jax.jit, static_argnames=("n_labels",))
def count_votes(
    neighbor_idx: Int[Array, "N K"],
    label_id: Int[Array, " N"],
    query_mask: Bool[Array, " N"],
    k_grid: Int[Array, " G"],
    *,
    n_labels: int,
) -> Votes:
    """Count queries that a majority of their k nearest neighbours puts in their own label.

    Ties go to the smallest label. A query without any neighbour has no vote.

    Args:
        neighbor_idx: int32[N, K] rows, -1 absent.
        label_id: int32[N] in [0, n_labels).
        query_mask: bool[N] queries to count.
        k_grid: int32[G] values of k, at most K.
        n_labels: number of labels.
    """
    rank = jnp.arange(neighbor_idx.shape[1])
    within: Float[Array, "K G"] = (rank[:, None] < k_grid[None, :]).astype(jnp.float32)

    def step(total: Votes, rows: tuple[Array, ...]) -> tuple[Votes, None]:
        idx, label, mask = rows
        of_neighbor = jnp.where(idx >= 0, label_id[idx], -1)
        is_label = of_neighbor[None, :, :] == jnp.arange(n_labels)[:, None, None]
        votes = jnp.einsum(
            "cnk,kg->cng",
            is_label.astype(jnp.float32),
            within,
            precision=lax.Precision.HIGHEST,
        )
        own = (label[None, :] == jnp.arange(n_labels)[:, None]) & mask[None, :]
        has_vote = (votes.sum(0) > 0)[None, :, :] & own[:, :, None]
        hit = has_vote & (jnp.argmax(votes, axis=0) == label[:, None])[None, :, :]
        return Votes(total.correct + hit.sum(1), total.voted + has_vote.sum(1)), None

    zero = jnp.zeros((n_labels, k_grid.shape[0]), jnp.int32)
    tiles = (_tiles(neighbor_idx, -1), _tiles(label_id, -1), _tiles(query_mask, False))
    return lax.scan(step, Votes(zero, zero), tiles)[0]


def _tiles(array: Array, fill: int) -> Array:
    """[N, ...] -> [tiles, rows, ...], the last tile padded with ``fill``."""
    rows = min(TILE_ROWS, array.shape[0])
    n_tiles = -(-array.shape[0] // rows)
    pad = [(0, n_tiles * rows - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    padded = jnp.pad(array, pad, constant_values=fill)
    return padded.reshape(n_tiles, rows, *array.shape[1:])
