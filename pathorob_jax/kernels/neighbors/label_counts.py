"""Counts of neighbour labels: the type of each neighbour, and majority votes.

The functions take neighbour indices and integer labels, and count in integers on the host, in
blocks of rows. Every metric that uses neighbours counts types and votes with this module.
"""

import numpy as np

from pathorob_jax.core import scratch
from pathorob_jax.core.typing import Bool, Int

# Whether two rows agree in the first label, and whether they agree in the second.
SAME_SAME, SAME_OTHER, OTHER_SAME, OTHER_OTHER = range(4)
ABSENT = -1
BLOCK_ROWS = 1024


def neighbor_types(
    neighbor_idx: Int[np.ndarray, "N K"],
    first_id: Int[np.ndarray, " N"],
    second_id: Int[np.ndarray, " N"],
) -> Int[np.ndarray, "N K"]:
    """Type of every neighbour: in which of two labels it agrees with its query.

    Args:
        neighbor_idx: int[N, K] rows, -1 where there is no neighbour.
        first_id: int[N] first label.
        second_id: int[N] second label.

    Returns:
        int8[N, K] of ``SAME_SAME``, ``SAME_OTHER``, ``OTHER_SAME``, ``OTHER_OTHER``; ``ABSENT``
        where there is no neighbour.
    """
    types = np.empty(neighbor_idx.shape, np.int8)
    for rows in scratch.parts(neighbor_idx, n_rows=BLOCK_ROWS):
        idx = neighbor_idx[rows]
        other_first = first_id[idx] != first_id[rows, None]
        other_second = second_id[idx] != second_id[rows, None]
        types[rows] = np.where(idx < 0, ABSENT, 2 * other_first + other_second)
    return types


def count_types_by_rank(
    types: Int[np.ndarray, "N K"], cell_id: Int[np.ndarray, " N"], *, n_cells: int
) -> Int[np.ndarray, "cells 4 K"]:
    """int64[n_cells, 4, K]: number of queries per cell, type of neighbour, and rank.

    Args:
        types: int8[N, K] of ``neighbor_types``.
        cell_id: int[N] in [0, n_cells).
        n_cells: number of cells.
    """
    k = types.shape[1]
    counts = np.zeros(n_cells * 4 * k, np.int64)
    for start in range(0, len(types), BLOCK_ROWS):
        block, cell = types[start : start + BLOCK_ROWS], cell_id[start : start + BLOCK_ROWS]
        place = (cell.astype(np.int64)[:, None] * 4 + block) * k + np.arange(k)
        counts += np.bincount(place[block != ABSENT], minlength=len(counts))
    return counts.reshape(n_cells, 4, k)


def count_types(types: Int[np.ndarray, "N K"], *, k: int) -> Int[np.ndarray, "4 N"]:
    """int64[4, N]: number of neighbours of each type among the k nearest of every query."""
    return np.stack([(types[:, :k] == kind).sum(1) for kind in range(4)])


def first_decisive(types: Int[np.ndarray, "N K"]) -> Int[np.ndarray, " N"]:
    """int64[N]: first rank (from 0) whose neighbour shares exactly one label; K if none does."""
    out = np.empty(len(types), np.int64)
    for rows in scratch.parts(types, n_rows=BLOCK_ROWS):
        decisive = (types[rows] == SAME_OTHER) | (types[rows] == OTHER_SAME)
        out[rows] = np.where(decisive.any(1), decisive.argmax(1), types.shape[1])
    return out


def majority_votes(
    neighbor_idx: Int[np.ndarray, "N K"],
    label_id: Int[np.ndarray, " N"],
    k_grid: Int[np.ndarray, " G"],
    *,
    n_labels: int,
) -> tuple[Bool[np.ndarray, "N G"], Bool[np.ndarray, "N G"]]:
    """Whether the majority of the k nearest neighbours has the query's label.

    Ties go to the smallest label. A query without neighbours has no vote.

    Args:
        neighbor_idx: int[N, K] rows, -1 where there is no neighbour.
        label_id: int[N] in [0, n_labels).
        k_grid: int[G] values of k, ascending, each at most K.
        n_labels: number of labels.

    Returns:
        bool[N, G] correct votes, and bool[N, G] queries that have a vote.
    """
    shape = (len(neighbor_idx), len(k_grid))
    right, voted = np.zeros(shape, bool), np.zeros(shape, bool)
    for rows in scratch.parts(neighbor_idx, n_rows=BLOCK_ROWS):
        idx, label = neighbor_idx[rows], label_id[rows]
        place = np.arange(len(idx))[:, None] * n_labels + label_id[idx]
        votes = np.zeros(len(idx) * n_labels, np.int64)
        counted = 0
        for i, k in enumerate(k_grid):
            part = slice(counted, k)
            votes += np.bincount(place[:, part][idx[:, part] >= 0], minlength=len(votes))
            table = votes.reshape(-1, n_labels)
            voted[rows, i] = table.any(1)
            right[rows, i] = voted[rows, i] & (table.argmax(1) == label)
            counted = k
    return right, voted
