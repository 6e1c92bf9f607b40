"""Parts that several networks share: products, LayerNorm, the poolable output.

Products take operands of the compute dtype and accumulate in float32; norms, softmax and the
residual stream are float32, whatever the type of the parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from pathorob_jax.typing import Array

SHIFT_CHANNELS = 16


class LayerNorm(nnx.Module):
    """Scale and bias of a LayerNorm."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        del rngs  # so that all parts are made alike
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Array, eps: float) -> Array:
        """float32, over the last axis.

        One pass over the data (E[y^2] - E[y]^2), on values shifted by the mean of a few channels:
        as fast as unshifted and without its loss of digits where |mean| >> std. A few, because one
        alone may be the outlier that trained networks grow.
        """
        y = x - jnp.mean(x[..., :SHIFT_CHANNELS], axis=-1, keepdims=True)
        mean = jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(y * y, axis=-1, keepdims=True) - mean * mean
        normed = (y - mean) * lax.rsqrt(jnp.maximum(variance, 0.0) + eps)
        lead = (None,) * (x.ndim - 1)
        return normed * self.scale[...][*lead, :] + self.bias[...][*lead, :]


class Linear(nnx.Module):
    """Kernel [in, out] and bias [out] of a product."""

    def __init__(self, dim_in: int, dim_out: int, *, bias: bool = True, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(0.02)
        self.kernel = nnx.Param(init(rngs.params(), (dim_in, dim_out)))
        self.bias = nnx.Param(jnp.zeros(dim_out)) if bias else None

    def __call__(self, x: Array, dtype: Any) -> Array:
        """float32[..., out] from operands of ``dtype``."""
        out = product("...i,io->...o", x, self.kernel[...], dtype)
        if self.bias is None:
            return out
        return out + self.bias[...].reshape((1,) * (out.ndim - 1) + (-1,))


def product(equation: str, a: Array, b: Array, dtype: Any) -> Array:
    """Einsum of operands in ``dtype``, float32 out; float32 operands keep all their bits."""
    return jnp.einsum(
        equation,
        a.astype(dtype),
        b.astype(dtype),
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def attend(query: Array, key: Array, value: Array, dtype: Any) -> Array:
    """Softmax attention of float32[B, H, T, d] each, queries scaled already -> [B, T, H * d]."""
    scores = product("bhqd,bhkd->bhqk", query, key, dtype)
    mixed = product("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), value, dtype)
    batch, heads, n_tokens, head_dim = mixed.shape
    return mixed.transpose(0, 2, 1, 3).reshape(batch, n_tokens, heads * head_dim)
