"""Agreement of labelings: adjusted Rand index, normalised and adjusted mutual information.

The functions take contingency tables of clusters against classes and return one number per table.
Tables of many labelings are counted at once on the device. The scores are computed on the host with
NumPy in float64, which is exact while products of numbers of pairs stay below 2^53.

For weighted groups of rows (all but one), tables are sums of tables by group: a product on
the device, in float32, whose sums of squares are accurate to 1e-6.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import special

from pathorob_jax.core.typing import Array, Float, Int

# Number of table cells in a block of draws.
BLOCK_CELLS = 2**23


class MutualInformation(NamedTuple):
    """Mutual information of each table; 1 if both labelings are trivial.

    Attributes:
        normalized: float64[...] in [0, 1].
        adjusted: float64[...] at most 1, about 0 by chance.
    """

    normalized: Float[np.ndarray, "*S"]
    adjusted: Float[np.ndarray, "*S"]


@functools.partial(jax.jit, static_argnames=("n_clusters", "n_cells"))
def count_tables(
    labels: Int[Array, "T N"], cell_id: Int[Array, " N"], *, n_clusters: int, n_cells: int
) -> Int[Array, "T K C"]:
    """Count the rows of each cluster in each cell, for each labeling.

    Args:
        labels: int32[T, N] in [0, n_clusters).
        cell_id: int32[N] in [0, n_cells).
        n_clusters: rows of a table.
        n_cells: columns.

    Returns:
        int32[T, K, C], exact for fewer than 2^24 rows.
    """
    cells = jax.nn.one_hot(cell_id, n_cells, dtype=jnp.float32)

    def count(label: Array) -> Array:
        is_in = (label[None, :] == jnp.arange(n_clusters)[:, None]).astype(jnp.float32)
        return lax.dot(is_in, cells, precision=lax.Precision.HIGHEST).astype(jnp.int32)

    return lax.map(count, labels)


def adjusted_rand(tables: Int[np.ndarray, "*S K C"]) -> Float[np.ndarray, "*S"]:
    """Adjusted Rand index of each table, in [-0.5, 1]; 1 if both labelings are trivial and equal.

    Reference: scikit-learn's ``adjusted_rand_score``.
    """
    t = np.asarray(tables, np.float64)
    n = t.sum((-2, -1))
    both = (t**2).sum((-2, -1))
    first, second = (t.sum(-1) ** 2).sum(-1), (t.sum(-2) ** 2).sum(-1)
    # Ordered pairs of rows: together in both, in the first or the second only, in neither.
    tp, fp, fn = both - n, second - both, first - both
    tn = n**2 - both - fp - fn
    below = (tp + fn) * (fn + tn) + (tp + fp) * (fp + tn)
    trivial = (fn == 0) & (fp == 0)
    return np.where(trivial, 1.0, 2 * (tp * tn - fn * fp) / np.where(trivial, 1.0, below))


def mutual_information(tables: Int[np.ndarray, "*S K C"]) -> MutualInformation:
    """Mutual information of each table, divided by the mean of both entropies.

    Reference: scikit-learn's ``normalized_mutual_info_score``, ``adjusted_mutual_info_score``.
    """
    t = np.asarray(tables, np.int64)
    flat = t.reshape(-1, *t.shape[-2:])
    out = np.ones((2, len(flat)))
    for i, table in enumerate(flat):
        first, second = table.sum(1), table.sum(0)
        sides = [side[side > 0] for side in (first, second)]
        lengths = {len(side) for side in sides}
        if lengths in ({1}, {0}):
            continue
        n = table.sum()
        some = table > 0
        ratio = table[some] * n / np.outer(first, second)[some]
        information = max(float((table[some] / n * np.log(ratio)).sum()), 0.0)
        entropies = [-float((side / n * np.log(side / n)).sum()) for side in sides]
        mean = float(np.mean(entropies))
        eps = np.finfo(np.float64).eps
        out[0, i] = information / mean if information > eps else 0.0
        if lengths == {n}:
            continue
        expected = _expected_information(*sides)
        below = mean - expected
        out[1, i] = (information - expected) / (min(below, -eps) if below < 0 else max(below, eps))
    return MutualInformation(*out.reshape(2, *t.shape[:-2]))


def _expected_information(first: Int[np.ndarray, " K"], second: Int[np.ndarray, " C"]) -> float:
    """Mean mutual information of all labelings with these numbers of rows, none of them 0.

    Cells of such tables are hypergeometric (Vinh et al. 2010, equation 24a). Logarithms of
    factorials err by 1e-16 of their size: by 1e-12 of the mean for some thousand rows, by 1e-11
    for fifty thousand. Memory: some 100 bytes for each row. Scikit-learn computes it alike;
    importing its function takes a second.
    """
    sizes = tuple(second.tolist())
    out = 0.0
    for a in first.tolist():
        out += _expected_part(a, sizes)
    return out


# Labelings of one combination share the second sizes, and many of the first.
@functools.lru_cache(maxsize=4096)
def _expected_part(a: int, second: tuple[int, ...]) -> float:
    """Part of ``_expected_information`` that a cluster of ``a`` rows adds."""
    sizes = np.array(second)
    n = int(sizes.sum())
    log_factorial = _log_factorials(n)
    least, most = np.maximum(1, a + sizes - n), np.minimum(a, sizes)
    lengths = most - least + 1  # at most n together
    b = np.repeat(sizes, lengths)
    both = np.arange(len(b)) - np.repeat(np.cumsum(lengths) - lengths - least, lengths)
    log_share = log_factorial[a] + log_factorial[b] + log_factorial[n - a]
    log_share += log_factorial[n - b] - log_factorial[n] - log_factorial[both]
    for count in (a - both, b - both, n - a - b + both):
        log_share -= log_factorial[count]
    return float((both / n * np.log(n * both / (a * b)) * np.exp(log_share)).sum())


@functools.lru_cache(maxsize=1)
def _log_factorials(n: int) -> Float[np.ndarray, " n+1"]:
    """Logarithms of the factorials of 0 to n, float64[n + 1]."""
    return np.asarray(special.gammaln(np.arange(1.0, n + 2)))


def drawn_rand_difference(
    weights: Int[np.ndarray, "draws G"], tables: Int[np.ndarray, "G T K A B"]
) -> Float[np.ndarray, " draws"]:
    """Rand index with the first label minus that with the second, mean over labelings, per draw.

    Args:
        weights: int32[draws, G] number of times that each group of rows is drawn.
        tables: int[G, T, K, A, B] rows of each group, by labeling, cluster and two labels.

    Returns:
        float64[draws]; NaN if the drawn rows have a single value of either label.
    """
    n_groups, *shape = tables.shape
    block = int(np.clip(BLOCK_CELLS // max(int(np.prod(shape)), 1), 1, len(weights)))
    flat = jax.device_put(tables.reshape(n_groups, -1).astype(np.float32))
    out = np.empty(len(weights))
    for start in range(0, len(weights), block):
        # The last block is padded, so that all blocks have one shape.
        rows = np.minimum(np.arange(start, start + block), len(weights) - 1)
        drawn = _draw(weights[rows].astype(np.float32), flat, shape=tuple(shape))
        out[start : start + block] = np.asarray(drawn)[: len(weights) - start]
    return out


@functools.partial(jax.jit, static_argnames=("shape",))
def _draw(weights: Array, tables: Array, *, shape: tuple[int, ...]) -> Array:
    """Differences of one block of draws, [B]."""
    drawn = lax.dot(weights, tables, precision=lax.Precision.HIGHEST).reshape(-1, *shape)
    clusters = (drawn.sum((-2, -1)) ** 2).sum(-1)
    n = drawn[:, 0].sum((-3, -2, -1))
    pairs = n * (n - 1)

    def index(by_label: Array) -> tuple[Array, Array]:
        """Adjusted Rand index [B, T] of tables [B, T, K, C], and whether two labels remain."""
        label = by_label[:, 0].sum(1)
        first, second = clusters - n[:, None], ((label**2).sum(-1) - n)[:, None]
        together = (by_label**2).sum((-2, -1)) - n[:, None]
        expected = first * (second / pairs[:, None])
        return (together - expected) / ((first + second) / 2 - expected), (label > 0).sum(-1) > 1

    (first, first_varies), (second, second_varies) = index(drawn.sum(-1)), index(drawn.sum(-2))
    return jnp.where(first_varies & second_varies, (first - second).mean(1), jnp.nan)
