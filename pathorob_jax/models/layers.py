"""Layers that several networks share: products, LayerNorm, attention.

Products take operands of the compute dtype and accumulate in float32. Norms, softmax and the
residual stream are float32 for any type of the parameters.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from pathorob_jax.core import checks
from pathorob_jax.core.typing import Array, Float

SHIFT_CHANNELS = 16
Attention = Literal["products", "xla", "cudnn"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
# What cuDNN's flash attention supports on every GPU that has it.
FLASH_CAPABILITY, FLASH_HEAD_DIM, FLASH_HEAD_DIM_STEP = 8.0, 128, 8
_GIVEN: ContextVar[Attention | None] = ContextVar("attention", default=None)


class LayerNorm(nnx.Module):
    """Scale and bias of a LayerNorm."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        del rngs  # so that all layers are constructed alike
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Array, eps: float) -> Array:
        """float32, over the last axis.

        One pass over the data (E[y^2] - E[y]^2), on values shifted by the mean of a few channels:
        as fast as without the shift, and without the loss of digits for |mean| >> std. Several
        channels, because a single one may be an outlier, as they occur in trained networks.
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

    def __call__(self, x: Array, dtype: Any, *, within: bool = False) -> Array:
        """float32[..., out] from operands of ``dtype``.

        Args:
            x: float[..., in].
            dtype: of the operands.
            within: whether this is a product within a block, whose sums accelerators round to
                ``dtype`` before the bias is added (``rounds_sums``); not for the last product of a
                network, which is its answer.
        """
        narrow = dtype if within and rounds_sums() else jnp.float32
        out = product("...i,io->...o", x, self.kernel[...], dtype, narrow)
        out = out.astype(jnp.float32)
        if self.bias is None:
            return out
        bias = self.bias[...].astype(jnp.float32)
        return out + bias.reshape((1,) * (out.ndim - 1) + (-1,))


def rounds_sums() -> bool:
    """Whether sums within blocks are rounded to the operands' type, by the default device.

    Accelerators write them, and the next step reads them, in half the time; sums are float32 in the
    product. The error of embeddings was the same (0.65 % of their length in ViT-S and ViT-B, beside
    float32). On CPU, products with a result of 16 bits are slow.
    """
    return jax.default_backend() != "cpu"


def product(equation: str, a: Array, b: Array, dtype: Any, narrow: Any = jnp.float32) -> Array:
    """Einsum of operands in ``dtype`` with float32 sums; float32 operands keep all their bits.

    The result is float32, or rounded to ``narrow``.
    """
    return jnp.einsum(
        equation,
        a.astype(dtype),
        b.astype(dtype),
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=narrow,
    )


def gelu(x: Array, dtype: Any) -> Array:
    """GELU: x times the normal distribution function of x; the next product takes it as ``dtype``.

    For 16 bits by the error function, as in PyTorch: on CPU up to 4 times as fast as by its
    complement, which keeps the last digits of float32 where x is far below 0.
    """
    if dtype == jnp.float32:
        return jax.nn.gelu(x, approximate=False)
    return 0.5 * x * (1 + lax.erf(x * np.float32(0.5**0.5)))


def attend(
    query: Float[Array, "B T H d"],
    key: Float[Array, "B S H d"],
    value: Float[Array, "B S H d"],
    dtype: Any,
) -> Float[Array, "B T E"]:
    """Softmax attention without mask or bias, for queries that are scaled already.

    softmax(Q K^T) V of each head, heads concatenated: float32[B, T, H * d]. In every implementation
    the operands of both products have type ``dtype``, sums and softmax are float32. The result of
    cuDNN is rounded to ``dtype``, as the following product would do.
    """
    batch, n_tokens, heads, head_dim = query.shape
    chosen = attention_implementation(dtype, n_queries=n_tokens, head_dim=head_dim)
    if chosen == "products":
        mixed = _attend_by_products(query, key, value, dtype)
    else:
        mixed = _attend_fused(query, key, value, dtype, chosen)
    return mixed.reshape(batch, n_tokens, heads * head_dim)


def attention_implementation(dtype: Any, *, n_queries: int, head_dim: int) -> Attention:
    """The implementation of ``attend`` on the default device, chosen while a program is traced.

    ``cudnn`` (flash attention through ``jax.nn.dot_product_attention``) on NVIDIA GPUs from Ampere
    on, for bfloat16 operands and heads of up to 128 channels in steps of 8; not for a single query,
    which gains nothing. ``products`` (two batched products with the scores between them in memory)
    elsewhere: on CPU the fastest of those measured, 1.35 (float32) to 1.7 (bfloat16) times
    the speed of ``xla``; TPUs and AMD GPUs were not measured.
    """
    given = _GIVEN.get()
    if given is not None:
        return given
    fits = head_dim <= FLASH_HEAD_DIM and head_dim % FLASH_HEAD_DIM_STEP == 0
    if fits and n_queries > 1 and dtype == jnp.bfloat16 and _has_flash_attention():
        return "cudnn"
    return "products"


@contextlib.contextmanager
def use_attention(implementation: Attention) -> Iterator[None]:
    """Use this implementation in programs traced in this context, for tests and benchmarks.

    It is needed if a program runs on another kind of device than the default one. Compiled programs
    are not affected.

    Raises:
        UsageError: unknown name.
    """
    checks.check_known(implementation, ATTENTIONS, what="attention")
    token = _GIVEN.set(implementation)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def _has_flash_attention() -> bool:
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return False
    return float(device.compute_capability) >= FLASH_CAPABILITY


def _attend_by_products(query: Array, key: Array, value: Array, dtype: Any) -> Array:
    # Heads before tokens: XLA's CPU products are slow if a batch axis is between the others.
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    scores = product("bhqd,bhkd->bhqk", query, key, dtype)
    mixed = product("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), value, dtype)
    return mixed.transpose(0, 2, 1, 3)


def _attend_fused(
    query: Array, key: Array, value: Array, dtype: Any, implementation: Literal["xla", "cudnn"]
) -> Array:
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    with jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default"):
        mixed = jax.nn.dot_product_attention(
            query, key, value, scale=1.0, implementation=implementation
        )
    return mixed.astype(jnp.float32)
