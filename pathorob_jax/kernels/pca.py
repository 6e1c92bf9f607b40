"""Exact principal component analysis, by the smaller of the two matrices of inner products.

``principal_components`` takes rows [N, D] and returns their coordinates along the first components
and the share of the variance that each component explains; ``principal_axes`` returns the
directions of all components.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import Array, ArrayLike, Float


class Pca(NamedTuple):
    """Rows in their principal components.

    Attributes:
        coordinates: float64[N, C] of the centred rows; components in order of decreasing variance.
        explained: float64[C] share of the total variance; NaN if all rows are equal.
    """

    coordinates: Float[np.ndarray, "N C"]
    explained: Float[np.ndarray, " C"]


class Axes(NamedTuple):
    """The directions of all principal components that have variance.

    Attributes:
        directions: float64[D, C], columns of unit length, of any sign; components in order of
            decreasing variance.
        explained: float64[C] share of the total variance, all above 0; C is 0 if all rows are
            equal.
    """

    directions: Float[np.ndarray, "D C"]
    explained: Float[np.ndarray, " C"]


def principal_components(x: Float[ArrayLike, "N D"], n_components: int) -> Pca:
    """The first principal components, in float64.

    They are the eigenvectors of X X^T (N <= D) or X^T X. The sign of a component is chosen so that
    its loading with the largest absolute value is positive.

    Args:
        x: float[N, D], finite.
        n_components: C, at most min(N, D).

    Raises:
        InputError: more components than min(N, D).

    Reference: scikit-learn's ``PCA(svd_solver="full")``. Differs: components without variance,
    whose directions are arbitrary, have coordinate 0.
    """
    n, dim = np.shape(x)
    if not 1 <= n_components <= min(n, dim):
        raise InputError(
            f"n_components: expected 1 to {min(n, dim)} for {n} rows of {dim} dimensions, found "
            f"{n_components}."
        )
    with jax.enable_x64(True):
        return Pca(*map(np.asarray, _components(to_device(x, dtype=np.float64), n=n_components)))


def principal_axes(x: Float[ArrayLike, "N D"]) -> Axes:
    """The directions of all principal components, in float64, as of ``principal_components``.

    Components whose variance is within rounding error of 0 are left out: they have no direction.

    Args:
        x: float[N, D], finite.
    """
    with jax.enable_x64(True):
        found = map(np.asarray, _axes(to_device(x, dtype=np.float64)))
    directions, explained, is_real = found
    return Axes(directions[:, is_real], explained[is_real])


@functools.partial(jax.jit, static_argnames=("n",))
def _components(x: Array, *, n: int) -> tuple[Array, Array]:
    x, variances, vectors, is_real, total = _decompose(x)
    variances, vectors, is_real = variances[:n], vectors[:, :n], is_real[:n]
    length = jnp.where(is_real, jnp.sqrt(variances), 0)
    if _is_wide(x):
        loadings = _dot(x.T, vectors)
        coordinates = vectors * length[None, :]
    else:
        loadings = vectors
        coordinates = jnp.where(is_real[None, :], _dot(x, vectors), 0)
    largest = jnp.argmax(jnp.abs(loadings), axis=0)
    sign = jnp.sign(jnp.take_along_axis(loadings, largest[None, :], axis=0))
    return coordinates * sign, jnp.where(is_real, variances, 0) / total


@jax.jit
def _axes(x: Array) -> tuple[Array, Array, Array]:
    x, variances, vectors, is_real, total = _decompose(x)
    if _is_wide(x):
        length = jnp.where(is_real, jnp.sqrt(variances), 1)
        vectors = _dot(x.T, vectors) / length[None, :]
    return vectors, variances / total, is_real


def _decompose(x: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Centred rows, variances and eigenvectors of the smaller matrix of products, falling.

    The fourth value tells which variances are not within rounding error of 0, and the last is the
    sum of squares.
    """
    x = x - x.mean(0)[None, :]
    products = _dot(x, x.T) if _is_wide(x) else _dot(x.T, x)
    variances, vectors = jnp.linalg.eigh(products)
    variances = jnp.maximum(variances[::-1], 0)
    total = (x * x).sum()
    # A variance within rounding error of 0 has no direction.
    is_real = variances > x.shape[0] * jnp.finfo(x.dtype).eps * total
    return x, variances, vectors[:, ::-1], is_real, total


def _is_wide(x: Array) -> bool:
    return x.shape[0] <= x.shape[1]


def _dot(a: Array, b: Array) -> Array:
    return lax.dot(a, b, precision=lax.Precision.HIGHEST)
