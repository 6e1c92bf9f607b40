"""Cosine distances of selected pairs, without the loss of digits of 1 - cos.

Enters: embeddings and pairs of rows. Leaves: distances that are right to float32's relative
precision also where they are small. A cosine near 1 keeps few digits of 1 - cos: at a distance of
0.01 float32 leaves an error of 1e-5 relative, which margins between distances would inherit. The
difference of the vectors does not cancel that way: d = |u - v|^2 / 2 of unit vectors.
"""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.devices import default_modes, to_device
from pathorob_jax.core.hosts import n_cores
from pathorob_jax.core.typing import Array, ArrayLike, Float, Int
from pathorob_jax.kernels.neighbors.tiles import Neighbors, inverse_norms

# Pairs of a tile stay in the processor's cache; the tiles of a call share one trace.
TILE_PAIRS, CALL_TILES = 128, 64


def pair_distances(
    embeddings: Float[ArrayLike, "N D"],
    first: Int[np.ndarray, " P"],
    second: Int[np.ndarray, " P"],
) -> Float[np.ndarray, " P"]:
    """Cosine distance of each pair.

    Memory beside the embeddings: two tiles of ``TILE_PAIRS`` rows for each core, and the pairs.

    Args:
        embeddings: float32[N, D], finite.
        first: int[P] rows.
        second: int[P] rows. Pairs of one ``first`` are best given together.

    Returns:
        float32[P]; a row that is all zero counts as the zero vector.
    """
    x = to_device(embeddings)
    if not len(first):
        return np.zeros(0, np.float32)
    n_pairs, tile = len(first), min(TILE_PAIRS, len(first))
    # Few pairs take a call of their own size, rounded up so that few sizes are compiled.
    n_tiles = min(CALL_TILES, 1 << max(-(-n_pairs // tile) - 1, 0).bit_length())
    out = np.empty(n_pairs, np.float32)
    inverse_norm = _inverse_norms(x)

    def measure(start: int) -> None:
        size = min(n_tiles * tile, n_pairs - start)
        pairs = np.zeros((2, n_tiles * tile), np.int32)
        for row, ids in zip(pairs, (first, second), strict=True):
            row[:size] = ids[start : start + size]
        with default_modes():
            measured = _measure(x, inverse_norm, jnp.asarray(pairs.reshape(2, n_tiles, tile)))
            out[start : start + size] = np.asarray(measured)[:size]

    first_call, *others = range(0, n_pairs, n_tiles * tile)
    measure(first_call)  # compiles, once for all
    with ThreadPoolExecutor(n_cores()) as pool:  # XLA runs a call on one core
        for _ in pool.map(measure, others):
            pass
    return out


def list_distances(
    embeddings: Float[ArrayLike, "N D"], indices: Int[np.ndarray, "R K"]
) -> Float[np.ndarray, "R K"]:
    """Distance of row i to each row of its list; inf where the list holds -1.

    Args:
        embeddings: float32[N, D] with N >= R.
        indices: int32[R, K] rows, -1 absent.
    """
    out = np.full(indices.shape, np.inf, np.float32)
    rows, ranks = np.nonzero(indices >= 0)
    out[rows, ranks] = pair_distances(embeddings, rows, indices[rows, ranks])
    return out


def refine_distances(embeddings: Float[ArrayLike, "N D"], neighbors: Neighbors) -> Neighbors:
    """Neighbours with ``list_distances``, sorted anew by (distance, row)."""
    distances = list_distances(embeddings, neighbors.indices)
    last = np.where(neighbors.indices < 0, np.iinfo(np.int32).max, neighbors.indices)
    order = np.lexsort((last, distances), axis=1)
    return Neighbors(
        *(np.take_along_axis(a, order, axis=1) for a in (neighbors.indices, distances))
    )


_inverse_norms = jax.jit(inverse_norms)


@jax.jit
def _measure(
    x: Float[Array, "N D"], inverse_norm: Float[Array, " N"], pairs: Int[Array, "2 T P"]
) -> Float[Array, " TP"]:
    def measure(pair: Int[Array, "2 P"]) -> Float[Array, " P"]:
        here, there = (x[rows] * inverse_norm[rows][:, None] for rows in pair)
        return 0.5 * jnp.sum((here - there) ** 2, axis=1)

    return lax.map(measure, pairs.swapaxes(0, 1)).reshape(-1)
