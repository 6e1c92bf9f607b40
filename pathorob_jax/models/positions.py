"""Rotary position embeddings of patches, as in DINOv3.

``make_rotation`` returns the cosine and sine for every patch of a grid; ``rotate`` rotates queries
and keys. Patch centres are in [-1, 1]. Half of the pairs of each head rotate with the row, half
with the column. Class token and registers are not rotated.
"""

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.typing import Array, Float


def make_periods(head_dim: int, theta: float) -> Float[np.ndarray, " d"]:
    """float32[head_dim // 4]: theta^(4 j / head_dim), the initial periods of DINOv3."""
    exponents = np.arange(0, 1, 4 / head_dim, dtype=np.float32)
    return np.float32(theta) ** exponents


def make_rotation(
    side: int, periods: Float[Array, " d"], dtype: Literal["float32", "bfloat16"]
) -> tuple[Array, Array]:
    """Cosine and sine, float32[side * side, head_dim] each.

    Angles are 2 pi (coordinate) / period: rows first, then columns, then both again (the second
    halves of the pairs). Every step is rounded to ``dtype``, as in the training of some encoders.
    """
    centres = _round(jnp.arange(side, dtype=jnp.float32) + 0.5, dtype)
    coords = _round(2 * _round(centres / side, dtype) - 1, dtype)
    scaled = _round(2 * math.pi * coords, dtype)
    turns = _round(scaled[:, None] / _round(periods.astype(jnp.float32), dtype)[None, :], dtype)
    rows = jnp.repeat(turns, side, axis=0)
    columns = jnp.tile(turns, (side, 1))
    angles = jnp.concatenate([rows, columns, rows, columns], axis=1)
    return _round(jnp.cos(angles), dtype), _round(jnp.sin(angles), dtype)


def rotate(
    x: Float[Array, "B T H d"], cos: Array, sin: Array, dtype: Literal["float32", "bfloat16"]
) -> Float[Array, "B T H d"]:
    """Rotate the last len(cos) tokens of queries or keys; the result is rounded to ``dtype``."""
    n_prefix = x.shape[1] - cos.shape[0]
    x = _round(x, dtype)
    patches = x[:, n_prefix:]
    low, high = jnp.split(patches, 2, axis=-1)
    across = jnp.concatenate([-high, low], axis=-1)
    along = _round(patches * cos[None, :, None, :], dtype)
    turned = _round(along + _round(across * sin[None, :, None, :], dtype), dtype)
    return jnp.concatenate([x[:, :n_prefix], turned], axis=1)


def _round(x: Array, dtype: Literal["float32", "bfloat16"]) -> Array:
    """float32 rounded to the digits of ``dtype``; XLA may optimise away a cast back and forth."""
    return x if dtype == "float32" else lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
