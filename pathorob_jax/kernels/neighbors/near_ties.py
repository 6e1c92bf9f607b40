"""Order neighbours in float64 where float32 cannot tell their distances apart.

The input is the neighbour lists of a float32 search, a few ranks longer than wanted. The result is
the wanted neighbours in the order (exact distance, row).

Products of float32 rows have rounding errors of a few 1e-7. Occasionally two neighbours are
swapped, and a wrong row takes rank k; this is rare but can change a majority vote. Only neighbours
whose distances differ by no more than the rounding error can be swapped, so only those distances
are computed again.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pathorob_jax.core.hosts import n_cores
from pathorob_jax.core.typing import Float, Int
from pathorob_jax.kernels.neighbors.search import Neighbors

# Twice the largest float32 error observed (9e-7, in the cosine of rows near each other); an
# empirical bound, not a proven one.
TOLERANCE = 2.0**-19
# Extra neighbours to search for, so that rank k is settled too.
MARGIN = 4
CHUNK_PAIRS = 256


def settle_near_ties(
    embeddings: Float[np.ndarray, "N D"], neighbors: Neighbors, *, k: int
) -> Neighbors:
    """Return the k nearest neighbours in the order (float64 distance, row).

    Memory: the rows of ``CHUNK_PAIRS`` pairs in float64 for each core. Time grows with the number
    of neighbours that lie within ``TOLERANCE`` of the next rank: few, unless all distances are
    nearly equal.

    Args:
        embeddings: float32[N, D] with N >= R.
        neighbors: lists [R, K] of the rows 0 to R - 1, K >= k; K = k + ``MARGIN`` settles rank k.
        k: neighbours wanted.

    Returns:
        ``Neighbors`` [R, k]; the distances of settled runs are the float64 distances, rounded to
        float32.
    """
    indices, distances = (np.array(a) for a in neighbors)
    with np.errstate(invalid="ignore"):  # absent neighbours: inf - inf
        close = np.diff(distances, axis=1) <= TOLERANCE
    affected = np.flatnonzero(close[:, :k].any(axis=1))
    if affected.size:
        close = close[affected]
        run = np.cumsum(np.pad(~close, ((0, 0), (1, 0))), axis=1)
        near = np.pad(close, ((0, 0), (1, 0))) | np.pad(close, ((0, 0), (0, 1)))
        row, rank = np.nonzero(near)
        values = distances[affected].astype(np.float64)
        values[row, rank] = _exact_distances(
            embeddings, affected[row], indices[affected][row, rank]
        )
        # Each absent neighbour (-1, inf) is a separate run at the end.
        order = np.lexsort((indices[affected], values, run), axis=1)
        indices[affected] = np.take_along_axis(indices[affected], order, axis=1)
        distances[affected] = np.take_along_axis(values, order, axis=1)
    return Neighbors(indices[:, :k], distances[:, :k])


def _exact_distances(
    embeddings: Float[np.ndarray, "N D"],
    first: Int[np.ndarray, " P"],
    second: Int[np.ndarray, " P"],
) -> Float[np.ndarray, " P"]:
    out = np.empty(len(first))

    def measure(start: int) -> None:
        part = slice(start, start + CHUNK_PAIRS)
        a, b = (embeddings[rows[part]].astype(np.float64) for rows in (first, second))
        dot, norm_a, norm_b = (np.einsum("pd,pd->p", u, v) for u, v in ((a, b), (a, a), (b, b)))
        out[part] = np.maximum(1.0 - dot / np.sqrt(norm_a * norm_b), 0.0)

    with ThreadPoolExecutor(n_cores()) as pool:
        for _ in pool.map(measure, range(0, len(first), CHUNK_PAIRS)):
            pass
    return out
