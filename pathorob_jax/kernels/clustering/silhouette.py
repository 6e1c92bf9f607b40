"""Silhouettes of many labelings of the same rows.

For rows [N, D] and labels [L, N], the module returns the silhouette of every row under every
labeling.

The cosine distance of unit vectors is |u - v|^2 / 2, so its sum over a cluster of n rows is
(n |u|^2 + sum |v|^2) / 2 - u . sum v. Two products over all clusters of all labelings are therefore
enough, linear in N. The form holds whatever row is subtracted from all; less their mean, the terms
are as short as the distances, and nothing cancels. Euclidean distances have no such form: they are
computed in tiles of rows, and each tile serves all labelings at once.
"""

import functools
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import Array, ArrayLike, Float, Int

Metric = Literal["cosine", "euclidean"]
DEFAULT_BUDGET_BYTES = 256 * 2**20
# In float64: sums, means and masks per row and cluster; distances per entry of a tile.
BYTES_PER_MEAN, BYTES_PER_DISTANCE = 48, 32


def silhouette_samples(
    x: Float[ArrayLike, "N D"],
    labels: Int[ArrayLike, "L N"],
    *,
    metric: Metric = "cosine",
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
) -> Float[np.ndarray, "L N"]:
    """Silhouette (b - a) / max(a, b) of each row under each labeling.

    a is the mean distance to the other rows of the row's cluster; b is the smallest mean distance
    to the rows of another cluster. The silhouette is 0 for a row that is alone in its cluster, and
    for a row with a = b = 0.

    Args:
        x: float[N, D], finite; for ``cosine``, no row all zero (rows are scaled to unit length).
        labels: int[L, N] cluster numbers from 0; a labeling may skip numbers.
        metric: distance between rows.
        budget_bytes: memory for a block of labelings (cosine) or a tile of rows (euclidean). The
            host also holds the result and, for euclidean, a float64 number per row, labeling and
            cluster.

    Returns:
        float64[L, N] in [-1, 1]. NaN where a labeling has one cluster, or as many as rows.

    Raises:
        InputError: shapes differ, a label is negative, or the budget does not hold one block.
        TypeError: labels are not integers.

    Reference: scikit-learn's ``silhouette_samples``, which raises where this is NaN. Differs:
    rounding; all is float64 here (differences of near rows lose their digits).
    """
    checks.check_known(metric, ("cosine", "euclidean"), what="metric")
    rows, labelings = np.asarray(x), np.atleast_2d(np.asarray(labels))
    checks.check_integer(labelings, name="labels")
    checks.check_shape(labelings.shape[1:], rows.shape[:1], name="labels", why="to match x")
    if labelings.size and labelings.min() < 0:
        raise InputError(f"labels: expected numbers from 0, found {labelings.min()}.")
    n_labelings, n = labelings.shape
    width = int(labelings.max(initial=0)) + 1
    ids = labelings.astype(np.int32)
    sizes = np.stack([np.bincount(labeling, minlength=width) for labeling in ids])
    make_sums = _cosine_sums if metric == "cosine" else _euclidean_sums
    out = np.full((n_labelings, n), np.nan)
    n_clusters = (sizes > 0).sum(1)
    is_defined = (n_clusters > 1) & (n_clusters < n)
    for i, sums in enumerate(make_sums(rows, ids, width=width, budget_bytes=budget_bytes)):
        if is_defined[i]:
            out[i] = _silhouettes(sums, ids[i], sizes[i])
    return out


def _silhouettes(
    sums: Float[np.ndarray, "N K"], ids: Int[np.ndarray, " N"], sizes: Int[np.ndarray, " K"]
) -> Float[np.ndarray, " N"]:
    """Silhouettes from the sum of distances of each row to each cluster."""
    each = np.arange(len(ids))
    own_size = sizes[ids]
    within = np.maximum(sums[each, ids], 0) / np.maximum(own_size - 1, 1)
    means = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)
    means[each, ids] = np.inf
    nearest = np.maximum(means.min(1), 0)
    largest = np.maximum(within, nearest)
    defined = (own_size > 1) & (largest > 0)
    return np.where(defined, (nearest - within) / np.where(largest > 0, largest, 1), 0.0)


def _cosine_sums(
    x: np.ndarray, ids: np.ndarray, *, width: int, budget_bytes: int
) -> Iterator[np.ndarray]:
    """Sums of cosine distances float64[N, K], one labeling at a time."""
    n_labelings, n = ids.shape
    block = budget_bytes // (BYTES_PER_MEAN * n * width)
    if block < 1:
        raise InputError(
            f"budget_bytes: {width} clusters on {n} rows need {BYTES_PER_MEAN * n * width} bytes, "
            f"found {budget_bytes}; raise it."
        )
    block = min(block, n_labelings)
    rows = x.astype(np.float64)
    rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    rows -= rows.mean(axis=0)
    norm2 = np.einsum("nd,nd->n", rows, rows)
    # Sums below what rounding leaves of equal rows are 0.
    least = 2 * (rows.shape[1] + n) * np.finfo(np.float64).eps * (norm2 + norm2.max())
    with jax.enable_x64(True):
        on_device = jax.device_put(rows)
    del rows
    for start in range(0, n_labelings, block):
        # The last block is padded, so that all blocks have one shape.
        part = ids[np.minimum(np.arange(start, start + block), n_labelings - 1)]
        with jax.enable_x64(True):
            sums = np.asarray(_cosine_block(on_device, part, width=width))
        for own, found in zip(part[: n_labelings - start], sums, strict=False):
            sizes = np.bincount(own, minlength=width)
            yield np.where(found > least[:, None] * sizes, found, 0.0)


@functools.partial(jax.jit, static_argnames=("width",))
def _cosine_block(x: Array, ids: Array, *, width: int) -> Array:
    """float64[B, N, K]: sum of |u - v|^2 / 2 of each row and the rows of each cluster."""
    is_in = (ids[:, None, :] == jnp.arange(width)[None, :, None]).astype(x.dtype)
    norm2 = jnp.sum(x * x, axis=1)
    sums = jnp.einsum("bkn,nd->bkd", is_in, x, precision=lax.Precision.HIGHEST)
    products = jnp.einsum("nd,bkd->bnk", x, sums, precision=lax.Precision.HIGHEST)
    sizes = is_in.sum(2)[:, None, :]
    lengths = (is_in * norm2[None, None, :]).sum(2)[:, None, :]
    return (sizes * norm2[None, :, None] + lengths) / 2 - products


def _euclidean_sums(
    x: np.ndarray, ids: np.ndarray, *, width: int, budget_bytes: int
) -> Iterator[np.ndarray]:
    """Sums of Euclidean distances float64[N, K], one labeling at a time."""
    n_labelings, n = ids.shape
    tile = budget_bytes // (BYTES_PER_DISTANCE * (n + n_labelings * width))
    if tile < 1:
        raise InputError(
            f"budget_bytes: a row's distances to {n} rows need "
            f"{BYTES_PER_DISTANCE * (n + n_labelings * width)} bytes, found {budget_bytes}; "
            "raise it."
        )
    tile = min(tile, n)
    with jax.enable_x64(True):
        rows = to_device(x, dtype=np.float64)
        is_in = jax.nn.one_hot(ids.T, width, dtype=jnp.float64).reshape(n, -1)
        sums = np.empty((n, n_labelings * width))
        for start in range(0, n, tile):
            first = min(start, n - tile)
            sums[first : first + tile] = _euclidean_tile(rows, is_in, first, tile=tile)
    yield from sums.reshape(n, n_labelings, width).swapaxes(0, 1)


@functools.partial(jax.jit, static_argnames=("tile",))
def _euclidean_tile(x: Array, is_in: Array, first: Array, *, tile: int) -> Array:
    """float64[tile, L K]: distances of ``tile`` rows from ``first`` on, summed by cluster."""
    norm2 = (x * x).sum(1)
    part = lax.dynamic_slice_in_dim(x, first, tile)
    part_norm2 = lax.dynamic_slice_in_dim(norm2, first, tile)
    product = lax.dot_general(part, x, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    squared = part_norm2[:, None] + norm2[None, :] - 2 * product
    is_self = (first + jnp.arange(tile))[:, None] == jnp.arange(len(x))[None, :]
    distance = jnp.where(is_self, 0.0, jnp.sqrt(jnp.maximum(squared, 0.0)))
    return lax.dot(distance, is_in, precision=lax.Precision.HIGHEST)
