"""Rows in the form that k-means needs: their inner products, or the rows themselves."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pathorob_jax.core.typing import Array, ArrayLike, Float, Int
from pathorob_jax.kernels.clustering import kmeans_steps as steps

DEFAULT_BUDGET_BYTES = 1024 * 2**20
# Rows per dimension up to which inner products are used. They are larger than the rows, but on CPU
# only they allow centres to be moved by rows.
CPU_ROWS_PER_DIM, ROWS_PER_DIM = 8, 2
# Rows of a product in float64 on the host.
ROWS_PER_PRODUCT = 512


@dataclass(frozen=True, eq=False)
class Points:
    """Rows in the form that the runs need; see ``prepare_points``.

    Attributes:
        x: float32[N, D] on the host, centred unless spherical.
        rows: float32[N, N] inner products, or [N, D] the rows, on the device.
        norm2: float32[N] squared norms, on the device.
        variance: variance of the features, averaged over features.
        is_gram: whether ``rows`` are inner products.
        spherical: whether rows are assigned by the cosine to a centre.
    """

    x: Float[np.ndarray, "N D"]
    rows: Array
    norm2: Array
    variance: float
    is_gram: bool
    spherical: bool

    @property
    def products(self) -> Float[np.ndarray, "N N"]:
        """``rows`` on the host, not copied on CPU."""
        return np.asarray(self.rows)

    @property
    def device(self) -> jax.Device:
        """Device on which the runs are computed."""
        return next(iter(self.rows.devices()))


def prepare_points(
    x: Float[ArrayLike, "N D"],
    *,
    spherical: bool = False,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
) -> Points:
    """Centre the rows and put their inner products on the device, once for all runs.

    Args:
        x: float[N, D], finite; unit rows if spherical.
        spherical: do not centre the rows, and compare directions.
        budget_bytes: the inner products [N, N] are used if they are no larger than twice the rows
            (eight times on CPU) and no larger than half of this budget; otherwise the rows are
            used.
    """
    # A copy, which is centred below. scikit-learn also centres, to keep the digits of distances.
    rows = np.array(x, np.float32)
    n, dim = rows.shape
    mean = rows.mean(axis=0, dtype=np.float64)
    if not spherical:
        rows -= mean.astype(np.float32)
    spread = float(np.einsum("nd,nd->", rows, rows, dtype=np.float64)) / n
    if spherical:
        spread -= float(mean @ mean)
    [device] = jax.device_put(np.zeros(0, np.float32)).devices()
    most = CPU_ROWS_PER_DIM if device.platform == "cpu" else ROWS_PER_DIM
    is_gram = n <= most * dim and 4 * n * n <= budget_bytes // 2
    if is_gram and device.platform == "cpu":
        products = multiply_rows(rows, steps.find_first_equal(rows))
        on_device, norm2 = jax.device_put((products, np.diagonal(products).copy()), device)
    elif is_gram:
        on_device = steps.make_gram(jax.device_put(rows, device), steps.find_first_equal(rows))
        norm2 = jnp.diagonal(on_device)
    else:
        on_device = jax.device_put(rows, device)
        norm2 = jnp.sum(on_device * on_device, axis=1)
    return Points(rows, on_device, norm2, max(spread, 0.0) / dim, is_gram, spherical)


def multiply_rows(
    x: Float[np.ndarray, "N D"], first_equal: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "N N"]:
    """Inner products of float32 rows, summed in float64 on the host and rounded once.

    All distances of all runs are sums of these products, and decide between close centres. Sums in
    float32 were wrong by up to 8e-6 of a squared norm (3,072 dimensions); here each product is the
    nearest float32.

    Args:
        x: float32[N, D].
        first_equal: int32[N] from ``find_first_equal``. Equal rows get bitwise equal products.

    Returns:
        float32[N, N]. Needs 8 N D bytes meanwhile.
    """
    n = len(x)
    rows = x.astype(np.float64)
    products = np.empty((n, n), np.float32)
    for start in range(0, n, ROWS_PER_PRODUCT):
        block = rows[start : start + ROWS_PER_PRODUCT] @ rows[start:].T
        products[start : start + ROWS_PER_PRODUCT, start:] = block
        products[start:, start : start + ROWS_PER_PRODUCT] = block.T
    if (first_equal == np.arange(n)).all():
        return products
    return products[first_equal][:, first_equal]
