"""Rows to cluster, and scikit-learn's fits of them."""

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

# All sizes share few shapes: a case of another N or D is another compilation.
N, D = 300, 40


def make_rows(rng, n=N, d=D, *, clusters=0):
    """Unit rows, float32: in clusters that overlap, or (0) without structure."""
    x = rng.normal(size=(n, d)) + 1
    if clusters:
        x += 1.2 * rng.normal(size=(clusters, d))[rng.integers(clusters, size=n)]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def sklearn_fit(x, k, seed, n_init, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        options = {"init": "random"} | arguments
        return KMeans(k, random_state=seed, n_init=n_init, **options).fit(x)


def same_partition(a, b):
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))
