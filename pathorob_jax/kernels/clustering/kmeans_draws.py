"""Rows that are initial centres, drawn as scikit-learn draws them."""

from typing import Literal

import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Float, Int
from pathorob_jax.kernels.clustering.kmeans_points import Points

Init = Literal["random", "k-means++"]


def draw_inits(
    points: Points, n_clusters: int, *, seed: int, n_init: int, init: Init
) -> list[Int[np.ndarray, " K"]]:
    """Draw the rows that scikit-learn's ``KMeans`` takes as initial centres of each run.

    Returns:
        int64[n_clusters] for each of the ``n_init`` runs, drawn in sequence from one generator.

    Raises:
        InputError: a number of clusters that is not between 1 and the number of rows.
    """
    checks.check_known(init, ("random", "k-means++"), what="init")
    if not 1 <= n_clusters <= len(points.x):
        raise InputError(
            f"n_clusters: expected 1 to {len(points.x)}, the number of rows, found {n_clusters}."
        )
    generator = np.random.RandomState(seed)
    n = len(points.x)
    if init == "k-means++":
        from sklearn.cluster import kmeans_plusplus

        drawn = [
            kmeans_plusplus(points.x, n_clusters, random_state=generator)[1] for _ in range(n_init)
        ]
        return [np.asarray(d) for d in drawn]
    # scikit-learn uses this dtype, and its rounding decides which row is drawn.
    share = np.full(n, 1 / n, np.float32)
    below = np.cumsum(share, dtype=np.float64)
    below /= below[-1]
    return [_choose(generator, n_clusters, share, below) for _ in range(n_init)]


def _choose(
    generator: np.random.RandomState,
    size: int,
    share: Float[np.ndarray, " N"],
    below: Float[np.ndarray, " N"],
) -> Int[np.ndarray, " K"]:
    """Draw what ``generator.choice(N, size, replace=False, p=share)`` draws, in less time.

    ``choice`` looks random numbers up in the cumulative shares, and again without the rows found
    while some fell on one row. It checks and sums the shares in each call; here they are the same
    for all runs.

    Args:
        generator: advanced as by ``choice``.
        size: number of rows.
        share: float32[N] probabilities.
        below: float64[N] cumulative probabilities.
    """
    found: list[int] = []
    while len(found) < size:
        if found:
            left = share.astype(np.float64)
            left[found] = 0
            below = np.cumsum(left)
            below /= below[-1]
        rows = below.searchsorted(generator.random_sample(size - len(found)), side="right")
        found.extend(dict.fromkeys(rows.tolist()))
    return np.array(found, np.int64)
