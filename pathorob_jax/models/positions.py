"""Rotary positions of patches, as DINOv3 has them.

Enters: the side of the grid and the periods. Leaves: cosines and sines of every patch, and queries
and keys turned by them. Patch centres lie in [-1, 1]; half of each head's pairs turn with the row,
half with the column; class token and registers are not turned.
"""

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.typing import Array, Float


def make_periods(head_dim: int, theta: float) -> Float[np.ndarray, " d"]:
    """float32[head_dim // 4]: theta^(4 j / head_dim), the periods that DINOv3 starts from."""
    exponents = np.arange(0, 1, 4 / head_dim, dtype=np.float32)
    return np.float32(theta) ** exponents


def make_rotation(
    side: int, periods: Float[Array, " d"], dtype: Literal["float32", "bfloat16"]
) -> tuple[Array, Array]:
    """Cosine and sine, float32[side * side, head_dim] each.

    Angles are 2 pi (coordinate) / period, rows first, then columns, then both again (the second
    halves of the pairs). Every step is rounded to ``dtype``: some encoders were trained so.
    """
    centres = _round(jnp.arange(side, dtype=jnp.float32) + 0.5, dtype)
    coords = _round(2 * _round(centres / side, dtype) - 1, dtype)
    around = _round(2 * math.pi * coords, dtype)
    turns = _round(around[:, None] / _round(periods.astype(jnp.float32), dtype)[None, :], dtype)
    rows = jnp.repeat(turns, side, axis=0)
    columns = jnp.tile(turns, (side, 1))
    angles = jnp.concatenate([rows, columns, rows, columns], axis=1)
    return _round(jnp.cos(angles), dtype), _round(jnp.sin(angles), dtype)


def rotate(
    x: Float[Array, "B T H d"], cos: Array, sin: Array, dtype: Literal["float32", "bfloat16"]
) -> Float[Array, "B T H d"]:
    """Queries or keys with their last len(cos) tokens turned; all of it rounded to ``dtype``."""
    n_prefix = x.shape[1] - cos.shape[0]
    x = _round(x, dtype)
    patches = x[:, n_prefix:]
    low, high = jnp.split(patches, 2, axis=-1)
    across = jnp.concatenate([-high, low], axis=-1)
    along = _round(patches * cos[None, :, None, :], dtype)
    turned = _round(along + _round(across * sin[None, :, None, :], dtype), dtype)
    return jnp.concatenate([x[:, :n_prefix], turned], axis=1)


def _round(x: Array, dtype: Literal["float32", "bfloat16"]) -> Array:
    """float32 with the digits of ``dtype``; a cast back and forth may be optimised away."""
    return x if dtype == "float32" else lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
