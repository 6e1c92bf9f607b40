"""The order (exact distance, row) of candidates whose distances lie near each other.

``order_runs`` takes runs of candidates that a coarser search could not tell apart and sorts each by
exact distance: by float64 first, and what float64 leaves undecided by double-double cosines. What
they leave, down to ``exact_rows.TIE``, is equal, and the lower row comes first.
"""

import numpy as np

from pathorob_jax.core.typing import Bool, Float, Int
from pathorob_jax.kernels.neighbors.exact_rows import TIE, Rows, distance_error


def order_runs(
    rows: Rows,
    query: Int[np.ndarray, " P"],
    candidate: Int[np.ndarray, " P"],
    run: Int[np.ndarray, " P"],
) -> tuple[Int[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Sort the candidates of each run.

    Args:
        rows: all rows.
        query: int[P] row whose neighbours the candidates are, one per run.
        candidate: int[P] rows.
        run: int[P] ascending.

    Returns:
        The candidates in order, in the places of their run, and their float64 distances; equal
        distances are equal to the last bit.
    """
    values = rows.distances(query, candidate)
    at = np.lexsort((candidate, values, run))
    candidate, values = candidate[at], values[at]
    error = distance_error(values, rows.dim)
    near = (run[1:] == run[:-1]) & (np.diff(values) <= error[1:] + error[:-1])
    member = in_runs(near)
    if member.any():
        part = np.flatnonzero(member)
        undecided = number_runs(near)[part]
        candidate[part], values[part] = _order_undecided(
            rows, query[part], candidate[part], values[part], undecided
        )
    return candidate, values


def number_runs(near: Bool[np.ndarray, " P-1"]) -> Int[np.ndarray, " P"]:
    """Number of the run of each entry, from whether each entry but the first is near the last."""
    return np.cumsum(np.concatenate([[False], ~near]))


def in_runs(near: Bool[np.ndarray, " P-1"]) -> Bool[np.ndarray, " P"]:
    """Whether each entry has another in its run."""
    return np.concatenate([near, [False]]) | np.concatenate([[False], near])


def _order_undecided(
    rows: Rows,
    query: Int[np.ndarray, " P"],
    candidate: Int[np.ndarray, " P"],
    values: Float[np.ndarray, " P"],
    run: Int[np.ndarray, " P"],
) -> tuple[Int[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Sort runs by double-double cosine; runs of one direction need none."""
    first = rows.first_equal[candidate]
    _, start, run = np.unique(run, return_index=True, return_inverse=True)
    run = run.reshape(-1)
    differs = np.flatnonzero(first != first[start][run])
    mixed = np.flatnonzero(np.isin(run, run[differs]))
    high, low = np.zeros(len(run)), np.zeros(len(run))
    high[mixed], low[mixed] = rows.cosines(query[mixed], candidate[mixed])
    at = np.lexsort((candidate, -low, -high, run))
    candidate, high, low = candidate[at], high[at], low[at]
    equal = (run[1:] == run[:-1]) & (-np.diff(high) - np.diff(low) <= TIE)
    tie = number_runs(equal)
    _, first_of_tie = np.unique(tie, return_index=True)
    return candidate[np.lexsort((candidate, tie))], values[first_of_tie][tie]
