"""Neighbour counts of one scope; all are integers.

A scope is a set of rows within which neighbours are searched. The type of a neighbour has two
letters: the first says whether it has the same (S) or another (O) biological class as the sample,
the second whether it has the same or another medical centre. ``Tally`` holds the counts by cell
(class and centre of the sample), type and rank.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathorob_jax.core.typing import Int
from pathorob_jax.kernels.neighbors import label_counts
from pathorob_jax.kernels.neighbors.label_counts import (
    OTHER_OTHER,
    OTHER_SAME,
    SAME_OTHER,
    SAME_SAME,
)


class Tally(NamedTuple):
    """All counts of one scope; all integers.

    Attributes:
        types: int64[C, M, 4, K] neighbours at rank <= k (cumulative) of the samples of a (class,
            centre) cell, by type ss, so, os, oo.
        decisive: int64[C, M, K] samples of a cell with an so or os neighbour among the k nearest.
        n_samples: int64[C, M] samples of a cell.
        correct: int64[C, M, G] samples whose k-neighbour majority vote is their class.
        voted: int64[C, M, G] samples with a vote (at least one neighbour).
        eligible: int64[C, M, 4] pairs of a cell's samples with all eligible neighbours, by type.
        k_grid: int64[G] values of k of the vote.
        k_available: largest k for which every sample has k neighbours.
    """

    types: Int[np.ndarray, "C M 4 K"]
    decisive: Int[np.ndarray, "C M K"]
    n_samples: Int[np.ndarray, "C M"]
    correct: Int[np.ndarray, "C M G"]
    voted: Int[np.ndarray, "C M G"]
    eligible: Int[np.ndarray, "C M 4"]
    k_grid: Int[np.ndarray, " G"]
    k_available: int


def tally_neighbors(
    neighbor_idx: Int[np.ndarray, "N K"],
    bio_id: Int[np.ndarray, " N"],
    center_id: Int[np.ndarray, " N"],
    group_id: Int[np.ndarray, " N"],
    *,
    n_bio: int,
    n_center: int,
    k_grid: Sequence[int],
) -> Tally:
    """Count the types and votes of one scope's neighbours.

    Args:
        neighbor_idx: int32[N, K] rows of the scope, nearest first, -1 where there is none.
        bio_id: int32[N] in [0, n_bio).
        center_id: int32[N] in [0, n_center).
        group_id: int32[N] slides, the groups that the search excluded.
        n_bio: number of biological classes.
        n_center: number of medical centres.
        k_grid: values of k for the vote, ascending, each at most K.
    """
    k_max, n_cells = neighbor_idx.shape[1], n_bio * n_center
    cell = bio_id.astype(np.int64) * n_center + center_id
    types = label_counts.neighbor_types(neighbor_idx, bio_id, center_id)
    by_rank = label_counts.count_types_by_rank(types, cell, n_cells=n_cells)
    first = label_counts.first_decisive(types)
    starts = np.bincount(cell * (k_max + 1) + first, minlength=n_cells * (k_max + 1))
    decisive = np.cumsum(starts.reshape(n_cells, k_max + 1)[:, :k_max], axis=1)
    correct, voted = (
        _sum_cells(votes, cell, n_cells)
        for votes in label_counts.majority_votes(
            neighbor_idx, bio_id, np.asarray(k_grid), n_labels=n_bio
        )
    )
    return Tally(
        types=np.cumsum(by_rank, axis=2).reshape(n_bio, n_center, 4, k_max),
        decisive=decisive.reshape(n_bio, n_center, k_max),
        n_samples=np.bincount(cell, minlength=n_cells).reshape(n_bio, n_center),
        correct=correct.reshape(n_bio, n_center, -1),
        voted=voted.reshape(n_bio, n_center, -1),
        eligible=count_eligible(bio_id, center_id, group_id, n_bio=n_bio, n_center=n_center),
        k_grid=np.asarray(k_grid, np.int64),
        k_available=available_neighbors(group_id),
    )


def _sum_cells(votes: np.ndarray, cell: np.ndarray, n_cells: int) -> np.ndarray:
    """int64[n_cells, G] sums of bool[N, G] by cell."""
    sums = [np.bincount(cell, weights=column, minlength=n_cells) for column in votes.T]
    return np.stack(sums, axis=1).astype(np.int64)


def permute_centers(
    center_id: Int[np.ndarray, " N"],
    group_id: Int[np.ndarray, " N"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " N"]:
    """Permute the centres over whole groups (slides), or over rows if a group spans centres.

    With permuted centres, the index shows the value of this embedding when centres carry no
    information.
    """
    _, first, position = np.unique(group_id, return_index=True, return_inverse=True)
    if (center_id[first][position] != center_id).any():
        return rng.permutation(center_id)
    return rng.permutation(center_id[first])[position]


def available_neighbors(group_id: Int[np.ndarray, " N"]) -> int:
    """Largest k for which every row has k neighbours: N minus the rows of the largest group."""
    return len(group_id) - int(np.unique(group_id, return_counts=True)[1].max())


def count_eligible(
    bio_id: Int[np.ndarray, " N"],
    center_id: Int[np.ndarray, " N"],
    group_id: Int[np.ndarray, " N"],
    *,
    n_bio: int,
    n_center: int,
) -> Int[np.ndarray, "C M 4"]:
    """Count pairs of rows of different groups by the query's cell and type (k = infinity)."""

    def same(*columns: np.ndarray) -> np.ndarray:
        """Number of rows that share the values of each row."""
        position = np.zeros(len(bio_id), np.int64)
        for column in columns:
            _, ids = np.unique(column, return_inverse=True)
            pairs = position * (ids.max(initial=0) + 1) + ids.reshape(-1)
            _, position = np.unique(pairs, return_inverse=True)
        return np.bincount(position)[position]

    everyone = np.zeros_like(bio_id)
    total, same_bio, same_center, same_both = (
        same(*columns) - same(*columns, group_id)
        for columns in ((everyone,), (bio_id,), (center_id,), (bio_id, center_id))
    )
    out = np.zeros((n_bio * n_center, 4), np.int64)
    cell = bio_id.astype(np.int64) * n_center + center_id
    for kind, counts in (
        (SAME_SAME, same_both),
        (SAME_OTHER, same_bio - same_both),
        (OTHER_SAME, same_center - same_both),
        (OTHER_OTHER, total - same_bio - same_center + same_both),
    ):
        np.add.at(out[:, kind], cell, counts)
    return out.reshape(n_bio, n_center, 4)
