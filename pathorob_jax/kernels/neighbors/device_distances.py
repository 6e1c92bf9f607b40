"""Float64 distances of pairs of rows that lie on a device.

The input is rows in float32 on the device, and pairs of them. The distances are those of
``exact_rows``, with sums in the order of the device. A GPU measures tiles of pairs; on CPU XLA
reads a single pair where it lies, in one loop, which takes less than half of the time of NumPy's
copies.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.typing import Array, Float, Int
from pathorob_jax.kernels.neighbors.pair_calls import measure_in_calls

# Pairs of a call, which share one trace, and pairs of a tile, whose rows may lie in memory twice.
CALL_PAIRS, TILE_PAIRS = 2**17, 2**13
# Fewer pairs are measured by a host in the time of some calls. (Not measured.)
LEAST_PAIRS = 2**15
# Pairs of a call on CPU, and the fewest that are worth a call.
CPU_CALL_PAIRS = 2**11


def gpu_distances(
    x: Float[Array, "N D"],
    scale: Float[Array, " N"],
    first: Int[np.ndarray, " P"],
    second: Int[np.ndarray, " P"],
    *,
    near: float,
) -> Float[np.ndarray, " P"]:
    """Cosine distances: 1 - cos, and of differences where they are below ``near``.

    The float64 rows of ``TILE_PAIRS`` pairs may lie on the device in addition.

    Args:
        x: float32[N, D] on one device.
        scale: float64[N] inverse lengths, on the same device.
        first: int[P] rows.
        second: int[P] rows.
        near: float64.

    Returns:
        float64[P].
    """
    n_pairs = len(first)
    size = min(CALL_PAIRS, 1 << (n_pairs - 1).bit_length())
    measured = []
    with jax.enable_x64(True):
        for start in range(0, n_pairs, size):
            pairs = np.zeros((2, size), np.int32)
            for row, ids in zip(pairs, (first, second), strict=True):
                part = ids[start : start + size]
                row[: len(part)] = part
            tiles = pairs.reshape(2, -1, min(TILE_PAIRS, size))
            measured.append(_measure(x, scale, tiles, np.float64(near)))
        return np.concatenate([np.asarray(a) for a in measured])[:n_pairs]


@jax.jit
def _measure(x: Array, scale: Array, pairs: Int[Array, "2 T P"], near: Array) -> Array:
    """float64[T P]."""

    def measure(pair: Array) -> Array:
        (u, v), (u_scale, v_scale) = ([a[side] for side in pair] for a in (x, scale))
        u, v = u.astype(jnp.float64), v.astype(jnp.float64)
        # Products of float32 numbers are exact in float64.
        far = 1 - (u * v).sum(1) * (u_scale * v_scale)
        difference = u * u_scale[:, None] - v * v_scale[:, None]
        return jnp.where(far < near, 0.5 * (difference * difference).sum(1), far)

    return lax.map(measure, pairs.swapaxes(0, 1)).reshape(-1)


def cpu_distances(
    x: Float[Array, "N D"],
    scale: Float[Array, " N"],
    first: Int[np.ndarray, " P"],
    second: Int[np.ndarray, " P"],
    *,
    near: float,
) -> Float[np.ndarray, " P"]:
    """``gpu_distances`` by a CPU device, on all cores, without a copy of the rows."""

    def call(program: jax.stages.Wrapped, some: slice | np.ndarray) -> Float[np.ndarray, " P"]:
        def measure(pairs: Int[np.ndarray, "2 C"]) -> Array:
            with jax.enable_x64(True):
                return program(x, scale, pairs)

        ids = first[some], second[some]
        return measure_in_calls(measure, *ids, size=CPU_CALL_PAIRS, dtype=np.float64)

    out = call(_subtract_cosine, slice(None))
    at = np.flatnonzero(out < near)
    if at.size:
        out[at] = call(_square_difference, at)
    return out


@jax.jit
def _subtract_cosine(x: Array, scale: Array, pairs: Int[Array, "2 P"]) -> Array:
    """float64[P] of 1 - cos."""

    def measure(pair: Array) -> Array:
        u, v = x[pair[0]].astype(jnp.float64), x[pair[1]].astype(jnp.float64)
        return 1 - (u * v).sum() * (scale[pair[0]] * scale[pair[1]])

    return lax.map(measure, pairs.T)


@jax.jit
def _square_difference(x: Array, scale: Array, pairs: Int[Array, "2 P"]) -> Array:
    """float64[P] of |u - v|^2 / 2 of unit rows."""

    def measure(pair: Array) -> Array:
        u, v = x[pair[0]].astype(jnp.float64), x[pair[1]].astype(jnp.float64)
        difference = u * scale[pair[0]] - v * scale[pair[1]]
        return 0.5 * (difference * difference).sum()

    return lax.map(measure, pairs.T)
