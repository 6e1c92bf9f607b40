"""Cosine distances of selected pairs, without the loss of digits of 1 - cos.

Enters: embeddings and neighbour indices. Leaves: the same neighbours with distances that are right
to float32's relative precision also where they are small, in the order (distance, row).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.kernels.neighbors import DEFAULT_BUDGET_BYTES, Neighbors
from pathorob_jax.typing import Array, ArrayLike, Float, Int


def refine_distances(
    embeddings: Float[ArrayLike, "N D"],
    neighbors: Neighbors,
    *,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
) -> Neighbors:
    """Recompute the distances of neighbours as |u - v|^2 / 2 of unit vectors.

    A cosine near 1 keeps few digits of 1 - cos: at a distance of 0.01 float32 leaves an error of
    1e-5 relative, which margins between distances would inherit. The difference of the vectors does
    not cancel that way.

    Args:
        embeddings: float32[N, D], as the search took them.
        neighbors: int32[N, K] indices (-1 absent).
        budget_bytes: memory for the gathered vectors of a tile of rows.

    Returns:
        ``Neighbors`` of the same sets, sorted anew by (distance, row).
    """
    n, dim = np.shape(embeddings)
    k = neighbors.indices.shape[1]
    tile = int(np.clip(budget_bytes // (8 * k * dim), 1, n))
    distances, indices = _refine(
        jnp.asarray(embeddings, jnp.float32), jnp.asarray(neighbors.indices), tile=tile
    )
    return Neighbors(np.asarray(indices), np.asarray(distances))


@functools.partial(jax.jit, static_argnames=("tile",))
def _refine(
    x: Float[Array, "N D"], indices: Int[Array, "N K"], *, tile: int
) -> tuple[Float[Array, "N K"], Int[Array, "N K"]]:
    n, k = indices.shape
    norm2 = jnp.sum(x * x, axis=1)
    inverse_norm = jnp.where(norm2 > 0, lax.rsqrt(norm2), 0.0)  # 0: a row of padding

    def refine(rows: Array) -> Array:
        idx = indices[rows]
        here = x[rows] * inverse_norm[rows][:, None]
        there = x[idx] * inverse_norm[idx][:, :, None]
        distance = 0.5 * jnp.sum((here[:, None, :] - there) ** 2, axis=2)
        return jnp.where(idx >= 0, distance, jnp.inf)

    n_tiles = -(-n // tile)
    rows = jnp.minimum(jnp.arange(n_tiles * tile), n - 1).reshape(n_tiles, tile)
    distances = lax.map(refine, rows).reshape(-1, k)[:n]
    # Absent ones go last: their distance is inf.
    order = jnp.where(indices >= 0, indices, jnp.iinfo(jnp.int32).max)
    distances, order = lax.sort((distances, order), dimension=1, num_keys=2)
    return distances, jnp.where(jnp.isinf(distances), -1, order)
