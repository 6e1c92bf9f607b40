"""Peers that need an NVIDIA GPU: cuVS's brute-force search, and k-means of cuML and flash-kmeans.

They are measured where they are installed and a GPU is visible (extra ``bench_cuda``); elsewhere a
line says why they are left out. Each gets its rows on the host, as ours does.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from pathorob_jax.core.hosts import visible_gpus

# Peers by the names of their packages: not everybody has them, and not everywhere they work.
NEED_GPU = ("cuvs", "cuml", "flash_kmeans")
OPTIONAL = ("faiss", "torch", *NEED_GPU)
# Batches of k-means are cut where copies of the rows would take more.
BATCH_BYTES = 2**33


def why_left_out(peer: str) -> str | None:
    """Why a peer cannot be measured here; None: it can."""
    if peer in OPTIONAL and importlib.util.find_spec(peer) is None:
        return "not installed"
    if peer in NEED_GPU and not visible_gpus():
        return "needs an NVIDIA GPU"
    return None


def search_cuvs(x: np.ndarray, k: int) -> np.ndarray:
    """int64[N, k] rows of the smallest cosine distance to each row, itself included."""
    from cuvs.neighbors import brute_force
    from pylibraft.common import device_ndarray

    rows = device_ndarray(x)
    _, neighbors = brute_force.search(brute_force.build(rows, metric="cosine"), rows, k)
    indices: np.ndarray = neighbors.copy_to_host()
    return indices


def cuml_parts() -> tuple[Callable[..., Any], Callable[..., float]]:
    """KMeans and the silhouette score, in place of scikit-learn's in the same loop."""
    from cuml.cluster import KMeans
    from cuml.metrics.cluster import silhouette_score

    return functools.partial(KMeans, output_type="numpy"), silhouette_score


def cluster_with_flash(
    x: np.ndarray, k: int, n_runs: int, *, seed: int, iterations: int
) -> np.ndarray:
    """int[n_runs, N] labels of k-means from random rows, as many runs at once as fit.

    Each run takes all ``iterations``: flash-kmeans stops earlier only by a tolerance.
    """
    import torch
    from flash_kmeans import batch_kmeans_Euclid

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, rng = torch.from_numpy(x).to(device), np.random.default_rng(seed)
    at_once, labels = max(1, BATCH_BYTES // x.nbytes), []
    for first in range(0, n_runs, at_once):
        size = min(at_once, n_runs - first)
        drawn = np.stack([rng.choice(len(x), k, replace=False) for _ in range(size)])
        centers = rows[torch.from_numpy(drawn).to(device)]
        ids, _, _ = batch_kmeans_Euclid(
            rows.repeat(size, 1, 1), k, max_iters=iterations, tol=0.0, init_centroids=centers
        )
        labels.append(ids.cpu().numpy())
    return np.concatenate(labels)
