"""Case retrieval: does a search bring back cases of the query's class?

From the nearest neighbours of queries and class ids, the module computes the accuracy of their
majority vote, whether the class is among the k nearest, and the mean average precision, with their
values without each block of slides; and for searches in databases in which class and centre are
associated, what is called, and from which centre wrong answers come.

Votes follow THUNDER: of the most frequent classes the smallest wins. Patho-Bench counts a vote as
right if the true class is among the most frequent (``optimistic``); its average precision at k is
the sum of the precision at each hit, divided by k.

Where a query has fewer than k neighbours, those it has vote; the average precision is still divided
by k. A query without neighbours has no answer and is left out of all means.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathorob_jax.core.typing import Bool, Float, Int
from pathorob_jax.metrics.apd import count_calls, interval_of_mean
from pathorob_jax.metrics.robustness_index import mean_defined, ratio

K_GRID = (1, 3, 5, 10)
# Neighbours that follow the K_GRID[-1] nearest in lists and take the places of those left out.
DEPTH = 20
NAMES = ("vote_accuracy", "top_k_accuracy", "map", "optimistic_vote_accuracy")
# Queries that are scored without a block at a time.
BLOCK_ROWS = 1 << 12


class Lists(NamedTuple):
    """Neighbours of Q queries that are each other's database.

    Attributes:
        neighbor_idx: int32[Q, K] nearest first; -1 where there is none. Neighbours beyond those of
            the largest k take the places of those that are left out.
        label_id: int[Q] classes in [0, C), numbered in sorted order.
        block_id: int[Q] blocks that are left out as a whole; a query's own block, if it is left
            out, takes the query with it.
    """

    neighbor_idx: Int[np.ndarray, "Q K"]
    label_id: Int[np.ndarray, " Q"]
    block_id: Int[np.ndarray, " Q"]

    def labels(self) -> Int[np.ndarray, "Q K"]:
        """int[Q, K] classes of the neighbours; -1 where there is none."""
        return np.where(self.neighbor_idx >= 0, self.label_id[self.neighbor_idx], -1)


class Means(NamedTuple):
    """Means over queries, in the order of ``NAMES`` and at each k; NaN where undefined.

    Attributes:
        all: float64[4, G, ...] over all queries.
        balanced: float64[4, G, ...] over classes of the mean over the queries of each.
    """

    all: Float[np.ndarray, "4 G ..."]
    balanced: Float[np.ndarray, "4 G ..."]


class Votes(NamedTuple):
    """Votes of the k nearest neighbours.

    Attributes:
        called_id: int[Q, G] the smallest of the most frequent classes; -1 without neighbours.
        is_mode: bool[Q, G] whether the true class is among the most frequent.
    """

    called_id: Int[np.ndarray, "Q G"]
    is_mode: Bool[np.ndarray, "Q G"]


def find_votes(
    neighbor_label: Int[np.ndarray, "Q K"],
    label_id: Int[np.ndarray, " Q"],
    k_grid: Sequence[int],
    *,
    n_classes: int,
) -> Votes:
    """Votes at each k.

    Args:
        neighbor_label: int[Q, K] classes of the neighbours, nearest first; -1 where there is none.
        label_id: int[Q] true classes.
        k_grid: values of k, ascending.
        n_classes: C.
    """
    n, every = len(label_id), np.arange(len(label_id))
    counts = np.zeros((n, n_classes), np.int64)
    called, is_mode = np.full((n, len(k_grid)), -1), np.zeros((n, len(k_grid)), bool)
    counted = 0
    for i, k in enumerate(k_grid):
        for rank in range(counted, min(k, neighbor_label.shape[1])):
            there = np.flatnonzero(neighbor_label[:, rank] >= 0)
            counts[there, neighbor_label[there, rank]] += 1
        counted = k
        most = counts.max(axis=1)
        called[:, i] = np.where(most > 0, counts.argmax(axis=1), -1)
        is_mode[:, i] = (counts[every, label_id] == most) & (most > 0)
    return Votes(called, is_mode)


def score_queries(
    neighbor_label: Int[np.ndarray, "Q K"],
    label_id: Int[np.ndarray, " Q"],
    k_grid: Sequence[int],
    *,
    n_classes: int,
    divisor: Float[np.ndarray, "Q G"] | None = None,
) -> Float[np.ndarray, "4 Q G"]:
    """Scores of every query, in the order of ``NAMES``; NaN for a query without neighbours.

    Args:
        neighbor_label: see ``find_votes``.
        label_id: see ``find_votes``.
        k_grid: see ``find_votes``.
        n_classes: see ``find_votes``.
        divisor: of the average precision; None: k.
    """
    k = np.asarray(k_grid)
    votes = find_votes(neighbor_label, label_id, k_grid, n_classes=n_classes)
    missing = k[-1] - neighbor_label.shape[1]
    nearest = np.pad(neighbor_label, ((0, 0), (0, max(missing, 0))), constant_values=-1)
    hit = nearest[:, : k[-1]] == label_id[:, None]
    hits = np.cumsum(hit, axis=1)
    precision = np.cumsum(np.where(hit, hits / np.arange(1, k[-1] + 1), 0.0), axis=1)
    scores = np.stack(
        [
            votes.called_id == label_id[:, None],
            hits[:, k - 1] > 0,
            precision[:, k - 1] / (k if divisor is None else divisor),
            votes.is_mode,
        ]
    ).astype(np.float64)
    return np.where(votes.called_id >= 0, scores, np.nan)


def average(
    scores: Float[np.ndarray, "4 Q G"], label_id: Int[np.ndarray, " Q"], *, n_classes: int
) -> Means:
    """Means of scores over queries."""
    return _reduce(*_sum_cells(scores, label_id, n_classes))


def leave_out(lists: Lists, k_grid: Sequence[int], *, n_classes: int, n_blocks: int) -> Means:
    """Means without each block, as queries and as neighbours; the last axis is the block.

    What follows in the lists takes the places of what is left out. Where nothing follows, fewer
    neighbours vote, and the average precision is divided by as much less as there are fewer.
    """
    label, block = lists.label_id.astype(np.int64), lists.block_id.astype(np.int64)
    scores = _score_lists(lists, k_grid, n_classes)
    own, n_own = (
        a.reshape(*a.shape[:2], n_classes, n_blocks)
        for a in _sum_cells(scores, label * n_blocks + block, n_classes * n_blocks)
    )
    total, n_total = (a.sum(axis=3, keepdims=True) - a for a in (own, n_own))
    for start in range(0, len(label), BLOCK_ROWS):
        query, without = _find_touched(
            lists, slice(start, start + BLOCK_ROWS), k_grid[-1], n_blocks
        )
        left = _score_without(lists, query, without, k_grid, n_classes)
        cell = label[query] * n_blocks + without
        for found, sign in ((left, 1), (scores[:, query], -1)):
            change, n_change = _sum_cells(found, cell, n_classes * n_blocks)
            total += sign * change.reshape(total.shape)
            n_total += sign * n_change.reshape(total.shape)
    return _reduce(total, n_total)


def _score_lists(lists: Lists, k_grid: Sequence[int], n_classes: int) -> Float[np.ndarray, "4 Q G"]:
    labels = lists.labels()[:, : k_grid[-1]]
    return score_queries(labels, lists.label_id, k_grid, n_classes=n_classes)


def _find_touched(
    lists: Lists, rows: slice, k: int, n_blocks: int
) -> tuple[Int[np.ndarray, " L"], Int[np.ndarray, " L"]]:
    """Pairs of a query and a block, not its own, of which one of its k nearest is."""
    nearest, own = lists.neighbor_idx[rows, :k], lists.block_id[rows, None]
    near = np.where(nearest >= 0, lists.block_id[nearest], own)
    touched = np.zeros((len(near), n_blocks), bool)
    np.put_along_axis(touched, near, True, axis=1)
    np.put_along_axis(touched, own, False, axis=1)
    query, block = np.nonzero(touched)
    return query + rows.start, block


def _score_without(
    lists: Lists,
    query: Int[np.ndarray, " L"],
    without: Int[np.ndarray, " L"],
    k_grid: Sequence[int],
    n_classes: int,
) -> Float[np.ndarray, "4 L G"]:
    """Scores of some queries without the neighbours of a block."""
    idx = lists.neighbor_idx[query]
    there = idx >= 0
    kept = there & (lists.block_id[idx] != without[:, None])
    order = np.argsort(~kept, axis=1, kind="stable")
    labels = np.where(kept, lists.label_id[idx], -1)
    labels = np.take_along_axis(labels, order, axis=1)
    k = np.asarray(k_grid)
    n_before, n_left = (np.minimum(a.sum(axis=1)[:, None], k) for a in (there, kept))
    divisor = np.where(n_left > 0, k * n_left / np.maximum(n_before, 1), 1.0)
    return score_queries(
        labels, lists.label_id[query], k_grid, n_classes=n_classes, divisor=divisor
    )


def _sum_cells(
    scores: Float[np.ndarray, "4 L G"], cell: Int[np.ndarray, " L"], n_cells: int
) -> tuple[Float[np.ndarray, "4 G cells"], Float[np.ndarray, "4 G cells"]]:
    """Sums of the defined scores of each cell, and their numbers."""
    known = ~np.isnan(scores)
    filled = np.where(known, scores, 0.0)
    sums, numbers = (
        np.stack([[np.bincount(cell, v, n_cells) for v in part.T] for part in a])
        for a in (filled, known.astype(np.float64))
    )
    return sums, numbers


def _reduce(sums: Float[np.ndarray, "4 G C ..."], numbers: Float[np.ndarray, "4 G C ..."]) -> Means:
    by_class = ratio(sums, numbers)
    return Means(
        ratio(sums.sum(axis=2), numbers.sum(axis=2)), mean_defined(np.moveaxis(by_class, 2, 0))
    )


def count_answers(
    called_id: Int[np.ndarray, "... Q"],
    label_id: Int[np.ndarray, " Q"],
    center_id: Int[np.ndarray, " Q"],
    *,
    n_classes: int,
    n_centers: int,
) -> Int[np.ndarray, "... M C C"]:
    """Like ``apd.count_calls``; queries without an answer (-1) are left out."""
    called = np.where(called_id >= 0, called_id, n_classes)
    counts = count_calls(called, label_id, center_id, n_classes=n_classes + 1, n_centers=n_centers)
    out: np.ndarray = counts[..., :n_classes, :n_classes]
    return out


def count_nearest(
    nearest_cell: Int[np.ndarray, "S Q"], cell_id: Int[np.ndarray, " Q"], *, n_cells: int
) -> Int[np.ndarray, "S cells cells"]:
    """Count the nearest neighbours of the queries of each cell by their own cell.

    Args:
        nearest_cell: int[S, Q] cell (class and centre) of the nearest neighbour; -1: there is none.
        cell_id: int[Q] cell of each query.
        n_cells: number of cells.
    """
    out = []
    for cell in nearest_cell:
        there = cell >= 0
        flat = cell_id[there].astype(np.int64) * n_cells + cell[there]
        out.append(np.bincount(flat, minlength=n_cells**2).reshape(n_cells, n_cells))
    return np.stack(out)


class WrongAnswers(NamedTuple):
    """Wrong answers of the nearest neighbour at every split; NaN where there are none.

    Attributes:
        share: float64[S] share of the queries whose nearest neighbour is of another class.
        from_own_center: float64[S] share of these neighbours that are of the query's own centre.
        expected: float64[S] the same share, if a wrong neighbour were any row of the database of
            another class.
    """

    share: Float[np.ndarray, " S"]
    from_own_center: Float[np.ndarray, " S"]
    expected: Float[np.ndarray, " S"]


def find_wrong_answers(
    nearest: Int[np.ndarray, "S M C M C"], slides: Int[np.ndarray, "S C M"]
) -> WrongAnswers:
    """Where the wrong answers of queries of the schedule's centres come from.

    Args:
        nearest: int[S, M, C, M, C] queries by centre and class, and by centre and class of their
            nearest neighbour.
        slides: int[S, C, M] slides of the database, all of equally many rows.
    """
    n_splits, n_centers, n_classes = nearest.shape[:3]
    other = ~np.eye(n_classes, dtype=bool)[None, None, :, None, :]
    wrong = np.where(other, nearest, 0)
    own = np.eye(n_centers, dtype=bool)[None, :, None, :, None]
    n_wrong = wrong.sum(axis=(3, 4)).astype(np.float64)  # [S, M, C]
    # Rows of other classes, by the class of the query: of each centre, and of all.
    elsewhere = slides.sum(axis=1, keepdims=True) - slides  # [S, C, M]
    chance = ratio(elsewhere, elsewhere.sum(axis=2, keepdims=True)).swapaxes(1, 2)
    expected = np.where(n_wrong > 0, chance, 0.0) * n_wrong
    total = n_wrong.sum(axis=(1, 2))
    return WrongAnswers(
        ratio(total, nearest.reshape(n_splits, -1).sum(axis=1)),
        ratio(np.where(own, wrong, 0).reshape(n_splits, -1).sum(axis=1), total),
        ratio(expected.sum(axis=(1, 2)), total),
    )


def own_center_intervals(
    nearest: Int[np.ndarray, "R S M C M C"],
    slides: Int[np.ndarray, "S C M"],
    *,
    n_training: int,
    n_test: int,
) -> Float[np.ndarray, "S 2"]:
    """95 % intervals of ``WrongAnswers.from_own_center``, for other slides of the same centres.

    Repetitions draw from one pool of slides and share many; their spread is widened for that
    (``metrics.apd.drop_interval``). An interval has the share over all repetitions in its middle.

    Args:
        nearest: as of ``find_wrong_answers``, by repetition.
        slides: int[S, C, M] slides of the database, all of equally many rows.
        n_training: training rows of a split, or slides.
        n_test: test rows, or slides.

    Returns:
        Low and high, within [0, 1]; NaN for a single repetition, and where a repetition has no
        wrong answer.
    """
    pooled = find_wrong_answers(nearest.sum(axis=0), slides).from_own_center
    single = np.stack([find_wrong_answers(part, slides).from_own_center for part in nearest])
    out = np.full((len(pooled), 2), np.nan)
    for split, shares in enumerate(single.T):
        ends = interval_of_mean(shares, n_training=n_training, n_test=n_test, in_domain=True)
        if ends is not None:
            half = (ends[1] - ends[0]) / 2
            out[split] = np.clip([pooled[split] - half, pooled[split] + half], 0, 1)
    return out


def pool_rows(
    embeddings: Float[np.ndarray, "N D"], members: Sequence[Int[np.ndarray, " n"]]
) -> Float[np.ndarray, "S D"]:
    """float32[S, D] means of rows, times a power of two between 1/2 and 1, which no cosine sees.

    Sums are of float64 and divided by a power of two, so that means of small integers stay exact
    and equal directions stay equal.
    """
    out = np.empty((len(members), embeddings.shape[1]), np.float32)
    for i, rows in enumerate(members):
        total = embeddings[rows].sum(axis=0, dtype=np.float64)
        out[i] = np.ldexp(total, -int(np.ceil(np.log2(len(rows)))))
    return out
