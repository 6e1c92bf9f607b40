"""Order neighbours whose distances are too near for float32, in float64.

Enters: neighbours as a float32 search lists them, a few more than wanted. Leaves: the wanted ones,
in the order (exact distance, row).

Products of float32 rows round by a few 1e-7, so that now and then two neighbours are swapped, and
one at the border of k is a wrong one: rare, but enough to turn a vote. Such swaps happen only among
neighbours that lie within rounding of each other; just these distances are computed again.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pathorob_jax.core.hosts import n_cores
from pathorob_jax.core.typing import Float, Int
from pathorob_jax.kernels.neighbors.search import Neighbors

# Twice the largest error of a float32 cosine that was seen (9e-7, rows near each other); no proof.
TOLERANCE = 2.0**-19
# Neighbours to search for beyond those wanted, so that the border is settled too.
MARGIN = 4
CHUNK_PAIRS = 256


def settle_near_ties(
    embeddings: Float[np.ndarray, "N D"], neighbors: Neighbors, *, k: int
) -> Neighbors:
    """The k nearest in the order (float64 distance, row).

    Memory: rows of ``CHUNK_PAIRS`` pairs in float64 for each core. Time grows with the pairs that
    lie within ``TOLERANCE`` of their neighbour in rank: few, unless distances are all nearly equal.

    Args:
        embeddings: float32[N, D] with N at least the lists' rows.
        neighbors: lists [R, K] of the rows 0 to R - 1, K >= k; K = k + ``MARGIN`` settles rank k.
        k: neighbours wanted.

    Returns:
        ``Neighbors`` [R, k]; distances of runs that were settled are the exact ones, rounded.
    """
    indices, distances = (np.array(a) for a in neighbors)
    with np.errstate(invalid="ignore"):  # absent ones: inf - inf
        close = np.diff(distances, axis=1) <= TOLERANCE
    affected = np.flatnonzero(close[:, :k].any(axis=1))
    if affected.size:
        close = close[affected]
        run = np.cumsum(np.pad(~close, ((0, 0), (1, 0))), axis=1)
        near = np.pad(close, ((0, 0), (1, 0))) | np.pad(close, ((0, 0), (0, 1)))
        at, rank = np.nonzero(near)
        values = distances[affected].astype(np.float64)
        values[at, rank] = _exact_distances(embeddings, affected[at], indices[affected][at, rank])
        # Absent neighbours (-1, inf) are runs of their own, at the end.
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
