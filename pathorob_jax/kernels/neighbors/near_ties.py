"""Exact neighbours from those of a float32 search.

The input is the neighbour lists of a float32 search, a few ranks longer than wanted. The result is
the wanted neighbours in the order (exact distance, row), whatever the rows.

Products of float32 rows have rounding errors of about 1e-7 to 1e-6, so two neighbours may be
swapped whose distances differ by no more. Three cases follow:

- Neighbours whose distances differ by more are in order already.
- If the last rank that was fetched lies farther from rank k than the errors reach, the k nearest
  are among the fetched; only near ones are sorted again (``exact_order``).
- Otherwise nearer rows may not have been fetched: near-equal tiles, or a model whose embeddings
  all point one way. The row is searched again in float64 (``exact_search``).
"""

import numpy as np
from absl import logging

from pathorob_jax.core import scratch
from pathorob_jax.core.typing import Int
from pathorob_jax.kernels.neighbors import exact_search
from pathorob_jax.kernels.neighbors.exact_order import order_runs
from pathorob_jax.kernels.neighbors.exact_rows import Rows
from pathorob_jax.kernels.neighbors.tiles import DEFAULT_BUDGET_BYTES, PADDING_GROUP, Neighbors

UNIT32 = 2.0**-24
SAMPLED_ROWS = 32
# Lists that are sorted at a time, which bounds memory.
SORTED_LISTS = 4096
# The bound is at least this many times the largest error among the sampled rows.
SAFETY = 3


def fetched(k: int) -> int:
    """Ranks to fetch for k wanted: more for deep lists, whose ranks lie near each other."""
    return k + 4 + k // 16


def settle_near_ties(
    rows: Rows,
    labels: Int[np.ndarray, "L N"],
    lists: list[Neighbors],
    ks: tuple[int, ...],
    *,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    part: slice = slice(None),
) -> list[Neighbors]:
    """Return the nearest neighbours in the order (exact distance, row).

    Time grows with the number of neighbours that lie within float32's rounding of the next rank,
    and with the rows that are searched again. On 2 cores a million pairs of 1,536 dimensions take a
    few seconds; a search of all rows again takes about nine times the float32 search.

    Args:
        rows: all rows.
        labels: int[1 or 3, N] as the search had them. Lists of rows of ``PADDING_GROUP`` are cut to
            length and not sorted.
        lists: lists [N, K] of a float32 search, K >= ``fetched(k)``.
        ks: neighbours wanted of each list.
        budget_bytes: memory for distances in float64.
        part: rows whose lists are settled; those of other rows are cut to length.

    Returns:
        Lists [N, k]; distances of settled runs are exact distances, rounded to float32.
    """
    out = [_cut(found, k) for found, k in zip(lists, ks, strict=True)]
    wanted = labels[0] != PADDING_GROUP
    if rows.n < 3 or not wanted.any():
        return out
    # That of all lists, so that a part is settled as the whole.
    error = rounding_error(rows, lists[0], ks[0], wanted)
    own = np.zeros(rows.n, bool)
    own[part] = True
    wanted = wanted & own
    again = []
    for found, settled, k in zip(lists, out, ks, strict=True):
        with np.errstate(invalid="ignore"):  # absent neighbours: inf - inf
            last, at_k = (scratch.column(found.distances, place) for place in (-1, k - 1))
            reached = last - at_k <= 2 * error
        again.append(wanted & reached)
        sort_near(rows, np.flatnonzero(wanted & ~reached), found, settled, k, error)
    queries = np.flatnonzero(np.any(again, axis=0))
    if queries.size:
        logging.info("neighbours: %d of %d rows are searched again", queries.size, rows.n)
        exact = exact_search.search(rows, labels, queries, ks, budget_bytes=budget_bytes)
        for reached, settled, found in zip(again, out, exact, strict=True):
            at = reached[queries]
            settled.indices[queries[at]] = found.indices[at]
            settled.distances[queries[at]] = found.distances[at]
    return out


def _cut(found: Neighbors, k: int) -> Neighbors:
    """A copy of the k nearest, in memory or in scratch files as the lists are."""
    out = Neighbors(*(scratch.empty_like(a, (len(a), k)) for a in found))
    for part in scratch.parts(*found, *out, n_rows=SORTED_LISTS):
        for target, source in zip(out, found, strict=True):
            target[part] = source[part, :k]
    return out


def rounding_error(
    rows: Rows,
    neighbors: Neighbors,
    k: int,
    wanted: np.ndarray,
    row_of: Int[np.ndarray, " L"] | None = None,
) -> float:
    """Bound of the error of the distances of a float32 search.

    A bound proven for any order of the sums, D 2^-24, would be some fifty times too wide. Errors of
    sums grow like sqrt(D): where all products have one sign (a common direction) the largest of
    30,000 were 1.0 to 1.2 times (4 + sqrt(D)) 2^-24 for D from 64 to 1,536, elsewhere a tenth of
    it. The bound is that, or ``SAFETY`` times the largest error of the neighbours of
    2 x ``SAMPLED_ROWS`` rows, if that is more: rows spread evenly, and those of the nearest
    neighbours, whose errors are the largest.

    Args:
        rows: all rows.
        neighbors: lists [L, K] of the search.
        k: neighbours wanted.
        wanted: bool[L] lists that count.
        row_of: int[L] row of each list; None: list i is of row i.
    """
    idx = np.flatnonzero(wanted)
    at_k = scratch.column(neighbors.distances, k - 1)[idx]
    nearest = np.argsort(at_k, kind="stable")[:SAMPLED_ROWS]
    spread = np.linspace(0, len(idx) - 1, SAMPLED_ROWS).astype(np.int64)
    sample = np.unique(idx[np.concatenate([nearest, spread])])
    row, rank = np.nonzero(neighbors.indices[sample] >= 0)
    candidate = neighbors.indices[sample][row, rank]
    found = neighbors.distances[sample][row, rank].astype(np.float64)
    query = sample if row_of is None else row_of[sample]
    largest = np.abs(rows.distances(query[row], candidate) - found).max(initial=0.0)
    return max((4 + rows.dim**0.5) * UNIT32, SAFETY * float(largest))


def sort_near(
    rows: Rows,
    queries: Int[np.ndarray, " Q"],
    found: Neighbors,
    settled: Neighbors,
    k: int,
    error: float,
    row_of: Int[np.ndarray, " L"] | None = None,
) -> None:
    """Sort the runs of near distances among the first k ranks, and the run that crosses rank k.

    Args:
        rows: all rows.
        queries: lists to sort.
        found: lists [L, K > k] of a float32 search.
        settled: lists [L, k], changed in place.
        k: neighbours wanted.
        error: bound of the error of a distance.
        row_of: int[L] row of each list; None: list i is of row i.
    """
    for start in range(0, len(queries), SORTED_LISTS):
        part = queries[start : start + SORTED_LISTS]
        _sort_some(rows, part, found, settled, k, error, row_of)
        scratch.give_back(*found, *settled)


def _sort_some(
    rows: Rows,
    queries: Int[np.ndarray, " Q"],
    found: Neighbors,
    settled: Neighbors,
    k: int,
    error: float,
    row_of: Int[np.ndarray, " L"] | None,
) -> None:
    """``sort_near`` of so few lists that their copies are small."""
    distances = found.distances[queries]
    with np.errstate(invalid="ignore"):
        close = np.diff(distances, axis=1) <= 2 * error
    some = np.flatnonzero(close[:, :k].any(axis=1))
    if not some.size:
        return
    queries, close, distances = queries[some], close[some], distances[some].astype(np.float64)
    indices = found.indices[queries]
    width = indices.shape[1]
    run = np.cumsum(np.pad(~close, ((0, 0), (1, 0))), axis=1)
    run += np.arange(len(run))[:, None] * width  # runs of different rows differ
    near = np.pad(close, ((0, 0), (1, 0))) | np.pad(close, ((0, 0), (0, 1)))
    row, rank = np.nonzero(near)
    query = queries if row_of is None else row_of[queries]
    indices[row, rank], distances[row, rank] = order_runs(
        rows, query[row], indices[row, rank], run[row, rank]
    )
    settled.indices[queries] = indices[:, :k]
    settled.distances[queries] = distances[:, :k]
