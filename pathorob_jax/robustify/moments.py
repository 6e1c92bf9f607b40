"""Counts, means and second moments of embeddings by cell (class and centre), in one pass.

Every method for embeddings is fitted from these numbers alone, so that the rows are read once, in
blocks, and memory does not grow with their number. Sums are in float64 and are taken about the mean
of the first block, which keeps the digits of variances where the mean is large.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Array, Float, Int

Scatter = Literal["none", "total", "center"]
# float32 rows of a block; their float64 copy and squares take four times as much.
BLOCK_BYTES = 2**26


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of C x M cells of D dimensions.

    Attributes:
        n: int64[C, M] rows of a cell.
        mean: float64[C, M, D] mean; 0 where a cell is empty.
        squares: float64[C, M, D] sum of squared deviations from the cell's mean.
        scatter: float64[S, D, D] sums of products of deviations: S = 1, about the mean of all rows;
            S = M, about the mean of a centre's rows; None: not measured.
    """

    n: Int[np.ndarray, "C M"]
    mean: Float[np.ndarray, "C M D"]
    squares: Float[np.ndarray, "C M D"]
    scatter: Float[np.ndarray, "S D D"] | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.n.sum())

    @property
    def overall_mean(self) -> Float[np.ndarray, " D"]:
        """float64[D] mean of all rows."""
        return np.einsum("cm,cmd->d", self.n, self.mean) / self.n_rows

    def of_centers(self) -> "Moments":
        """The same with all classes in one: n [1, M], mean [1, M, D]."""
        n = self.n.sum(0)
        mean = np.einsum("cm,cmd->md", self.n, self.mean) / np.maximum(n, 1)[:, None]
        between = np.einsum("cm,cmd->md", self.n, (self.mean - mean[None]) ** 2)
        squares = self.squares.sum(0) + between
        return Moments(n[None], mean[None], squares[None], self.scatter)


def measure_moments(
    read: Callable[[np.ndarray], np.ndarray],
    class_id: Int[np.ndarray, " N"],
    center_id: Int[np.ndarray, " N"],
    *,
    n_classes: int,
    n_centers: int,
    scatter: Scatter = "none",
    block_bytes: int = BLOCK_BYTES,
) -> Moments:
    """Measure the moments of N rows in one pass.

    Args:
        read: returns the float32[n, D] embeddings of row numbers int64[n].
        class_id: int[N] in [0, n_classes).
        center_id: int[N] in [0, n_centers).
        n_classes: C.
        n_centers: M.
        scatter: whether to sum products of dimensions too, over all rows or by centre.
        block_bytes: memory for the float32 rows of a block.

    Raises:
        InputError: there are no rows.
    """
    n_rows = len(class_id)
    if not n_rows:
        raise InputError("rows: expected one or more to fit a robustifier on, found none.")
    cell = np.asarray(class_id, np.int64) * n_centers + np.asarray(center_id)
    order = np.argsort(center_id, kind="stable") if scatter == "center" else np.arange(n_rows)
    borders = np.flatnonzero(np.diff(np.asarray(center_id)[order])) + 1
    parts = np.split(order, borders) if scatter == "center" else [order]
    dim = read(order[:1]).shape[1]
    size = max(1, min(block_bytes // (4 * dim), max(map(len, parts))))
    blocks = [part[i : i + size] for part in parts for i in range(0, len(part), size)]
    n_cells = n_classes * n_centers
    with jax.enable_x64(True):
        origin = jnp.asarray(np.asarray(read(blocks[0]), np.float64).mean(0))
        sums = jnp.zeros((2, n_cells, dim), jnp.float64)
        n_scatter = {"none": 0, "total": 1, "center": n_centers}[scatter]
        products = jnp.zeros((n_scatter, dim, dim), jnp.float64)
        for rows in blocks:
            x = np.zeros((size, dim), np.float32)
            x[: len(rows)] = read(rows)
            cells = np.full(size, -1, np.int32)
            cells[: len(rows)] = cell[rows]
            sums = _add_sums(sums, x, cells, origin)
            if n_scatter:
                place = int(center_id[rows[0]]) if scatter == "center" else 0
                products = _add_products(products, x, cells, origin, place)
        total, squares = (np.asarray(a) for a in sums)
        about_origin = np.asarray(origin)
        measured = np.asarray(products)
    n = np.bincount(cell, minlength=n_cells)
    filled = np.maximum(n, 1)[:, None]
    shift = total / filled
    mean = np.where(n[:, None] > 0, about_origin + shift, 0.0)
    squares = np.maximum(squares - total * shift, 0.0)
    shape = (n_classes, n_centers)
    moments = Moments(n.reshape(shape), mean.reshape(*shape, dim), squares.reshape(*shape, dim))
    if not n_scatter:
        return moments
    by_place = total.reshape(*shape, dim).sum(0)
    weight = n.reshape(shape).sum(0)
    if scatter == "total":
        by_place, weight = by_place.sum(0, keepdims=True), weight.sum(keepdims=True)
    between = np.einsum("sd,se->sde", by_place, by_place / np.maximum(weight, 1)[:, None])
    return Moments(moments.n, moments.mean, moments.squares, measured - between)


@functools.partial(jax.jit, donate_argnums=0)
def _add_sums(
    sums: Float[Array, "2 cells D"],
    x: Float[Array, "B D"],
    cell: Int[Array, " B"],
    origin: Float[Array, " D"],
) -> Float[Array, "2 cells D"]:
    """Add the sums and sums of squares of a block's rows to their cells; cell -1 is padding."""
    deviation = x.astype(jnp.float64) - origin[None, :]
    member = (jnp.arange(sums.shape[1])[:, None] == cell[None, :]).astype(jnp.float64)
    return sums + jnp.stack([_dot(member, deviation), _dot(member, deviation**2)])


@functools.partial(jax.jit, donate_argnums=0)
def _add_products(
    products: Float[Array, "S D D"],
    x: Float[Array, "B D"],
    cell: Int[Array, " B"],
    origin: Float[Array, " D"],
    place: Int[Array, ""],
) -> Float[Array, "S D D"]:
    """Add the products of a block's dimensions to one of the matrices."""
    deviation = jnp.where((cell >= 0)[:, None], x.astype(jnp.float64) - origin[None, :], 0)
    return products.at[place].add(_dot(deviation.T, deviation))


def _dot(a: Array, b: Array) -> Array:
    return lax.dot(a, b, precision=lax.Precision.HIGHEST)
