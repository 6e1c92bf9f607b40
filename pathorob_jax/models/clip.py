"""Vision towers of image-text models in Flax NNX: a ViT with a head that returns the embedding.

From normalised images the network computes the tokens of the ViT and, in ``Tokens.head``, the
embedding by its head: a projection of the class token (CLIP: PLIP, QuiltNet), two layers and unit
length (KEEP), attention of one learned query over all tokens (CoCa: CONCH, CONCHv1.5, OmiCLIP), or
a correction of the class token beside the mean of the patches (Mettle, which has no texts). Two
heads take the mean of tokens: of all, then one product (iSight), or of the patches, then a
LayerNorm (PathoDuet).
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from flax import nnx

from pathorob_jax.core import checks
from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.typing import Array, Float
from pathorob_jax.models.layers import LayerNorm, Linear, attend, product
from pathorob_jax.models.vit import Tokens, ViT, ViTConfig


@dataclass(frozen=True, kw_only=True)
class ClipConfig(ViTConfig):
    """Architecture of a vision tower: its ViT and its head.

    Attributes:
        head: ``linear`` (one product of the class token, without bias), ``mlp`` (two products with
            exact GELU between them, divided by its length), ``attention`` (a learned query over all
            tokens, then a LayerNorm), ``refine`` (class token corrected by a mixture of products
            of low rank whose weights depend on it, then the mean of the patches), or, with tokens
            as they leave the last block, without the norm of the ViT: ``coca`` (``attention``, then
            a product without bias), ``token_mean`` (mean of class token and patches, then a
            product), ``mean_norm`` (mean of the patches, then a LayerNorm).
        head_out: length E of the embedding; 2 D for ``refine``, D for ``mean_norm``.
        query_heads: attention heads of the query.
        query_bias: whether the four products of the query have biases.
        head_eps: epsilon of the LayerNorms of the head.
        refine_atoms: number of products that the correction mixes.
        refine_rank: rank of each product.
        refine_hidden: hidden width of the two layers for the mixture weights, and for the shift.
    """

    head: Literal["linear", "mlp", "attention", "refine", "coca", "token_mean", "mean_norm"]
    head_out: int
    query_heads: int = 8
    query_bias: bool = False
    head_eps: float = 1e-5
    refine_atoms: int = 16
    refine_rank: int = 8
    refine_hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_known(self.head, HEADS, what="ClipConfig: head")
        if self.head in ("attention", "coca") and self.head_out % self.query_heads:
            raise UsageError(
                "ClipConfig: head_out must be a multiple of query_heads, "
                f"found {self.head_out} and {self.query_heads}."
            )
        times = {"refine": 2, "mean_norm": 1}.get(self.head)
        if times is not None and self.head_out != times * self.dim:
            raise UsageError(
                f"ClipConfig: head_out must be {times} * dim for the head {self.head!r}, "
                f"found {self.head_out} and {self.dim}."
            )

    @property
    def final_norm(self) -> bool:
        """Whether a LayerNorm is applied to the tokens after the last block."""
        return self.head not in ("coca", "token_mean", "mean_norm")

    def make(self, *, rngs: nnx.Rngs) -> "Clip":
        """The network with random weights."""
        return Clip(self, rngs=rngs)


class LinearHead(nnx.Module):
    """Projection of the class token."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.proj = Linear(config.dim, config.head_out, bias=False, rngs=rngs)

    def __call__(self, cls: Array, patches: Array, config: ClipConfig, dtype: Any) -> Array:
        """float32[B, E]."""
        return self.proj(cls, dtype)


class MlpHead(nnx.Module):
    """Two products of the class token, scaled to unit length."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.fc1 = Linear(config.dim, config.head_out, rngs=rngs)
        self.fc2 = Linear(config.head_out, config.head_out, rngs=rngs)

    def __call__(self, cls: Array, patches: Array, config: ClipConfig, dtype: Any) -> Array:
        """float32[B, E]; a vector of length 0 is not scaled."""
        x = jax.nn.gelu(self.fc1(cls, dtype), approximate=False)
        x = self.fc2(x, dtype)
        length = jnp.linalg.norm(x, axis=-1, keepdims=True)
        return x / jnp.maximum(length, 1e-12)


class AttentionHead(nnx.Module):
    """Attention of one learned query over all tokens, the contrastive pooling of CoCa."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        dim, out, bias = config.dim, config.head_out, config.query_bias
        init = nnx.initializers.truncated_normal(0.02)
        self.query = nnx.Param(init(rngs.params(), (out,)))
        self.norm_query = LayerNorm(out, rngs=rngs)
        self.norm_tokens = LayerNorm(dim, rngs=rngs)
        self.to_query = Linear(out, out, bias=False, rngs=rngs)
        self.to_key_value = Linear(dim, 2 * out, bias=False, rngs=rngs)
        # One leaf for query, key and value, as in torch's MultiheadAttention.
        self.bias = nnx.Param(jnp.zeros(3 * out)) if bias else None
        self.proj = Linear(out, out, bias=bias, rngs=rngs)
        self.norm = LayerNorm(out, rngs=rngs)

    def __call__(self, cls: Array, patches: Array, config: ClipConfig, dtype: Any) -> Array:
        """float32[B, E]."""
        eps, heads = config.head_eps, config.query_heads
        x = jnp.concatenate([cls[:, None, :], patches], axis=1)
        query = self.query[...].astype(jnp.float32)[None, None, :]
        query = self.to_query(self.norm_query(query, eps), dtype)
        key_value = self.to_key_value(self.norm_tokens(x, eps), dtype)
        if self.bias is not None:
            bias = self.bias[...][None, None, :]
            query = query + bias[..., : config.head_out]
            key_value = key_value + bias[..., config.head_out :]
        key, value = jnp.split(key_value, 2, axis=-1)
        query = jnp.broadcast_to(query, (len(x), 1, config.head_out))
        query = query * (config.head_out // heads) ** -0.5
        query, key, value = (_split_heads(y, heads) for y in (query, key, value))
        mixed = attend(query, key, value, dtype)
        return self.norm(self.proj(mixed[:, 0], dtype), eps)


class RefineHead(nnx.Module):
    """Corrected class token e, concatenated with the mean of the patches.

    e + sum_k mix_k(e) up_k down_k^T e + shift(e); mix and shift are two layers each.
    """

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        dim, hidden, atoms = config.dim, config.refine_hidden, config.refine_atoms
        init = nnx.initializers.truncated_normal(0.02)
        self.down = nnx.Param(init(rngs.params(), (atoms, dim, config.refine_rank)))
        self.up = nnx.Param(init(rngs.params(), (atoms, dim, config.refine_rank)))
        self.mix1 = Linear(dim, hidden, rngs=rngs)
        self.mix2 = Linear(hidden, atoms, rngs=rngs)
        self.shift1 = Linear(dim, hidden, rngs=rngs)
        self.shift2 = Linear(hidden, dim, rngs=rngs)

    def __call__(self, cls: Array, patches: Array, config: ClipConfig, dtype: Any) -> Array:
        """float32[B, 2 D]; always with float32 products, as its authors do."""
        exact = jnp.float32
        mix = self.mix2(jax.nn.gelu(self.mix1(cls, exact), approximate=False), exact)
        shift = self.shift2(jax.nn.gelu(self.shift1(cls, exact), approximate=False), exact)
        narrow = product("bd,kdr->bkr", cls, self.down[...], exact)
        mixed = product("bkr,kdr->bd", mix[:, :, None] * narrow, self.up[...], exact)
        return jnp.concatenate([cls + mixed + shift, jnp.mean(patches, axis=1)], axis=-1)


class CocaHead(nnx.Module):
    """Attention of one learned query with its LayerNorm, then a projection, as in open_clip."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.pool = AttentionHead(config, rngs=rngs)
        self.proj = Linear(config.head_out, config.head_out, bias=False, rngs=rngs)

    def __call__(self, cls: Array, patches: Array, config: ClipConfig, dtype: Any) -> Array:
        """float32[B, E]."""
        return self.proj(self.pool(cls, patches, config, dtype), dtype)


class TokenMeanHead(nnx.Module):
    """Projection of the mean of class token and patches."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.proj = Linear(config.dim, config.head_out, rngs=rngs)

    def __call__(self, cls: Array, patches: Array, config: ClipConfig, dtype: Any) -> Array:
        """float32[B, E]; the mean of the projected tokens is the projection of their mean."""
        mean = (cls + jnp.sum(patches, axis=1)) / (1 + patches.shape[1])
        return self.proj(mean, dtype)


class MeanNormHead(nnx.Module):
    """LayerNorm of the mean of the patches."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(config.dim, rngs=rngs)

    def __call__(self, cls: Array, patches: Array, config: ClipConfig, dtype: Any) -> Array:
        """float32[B, D]."""
        return self.norm(jnp.mean(patches, axis=1), config.eps)


HEADS = {
    "linear": LinearHead,
    "mlp": MlpHead,
    "attention": AttentionHead,
    "refine": RefineHead,
    "coca": CocaHead,
    "token_mean": TokenMeanHead,
    "mean_norm": MeanNormHead,
}


class Clip(ViT):
    """The network: a ViT with a head, whose parameters are under ``head``.

    It is called like ``ViT`` and has the same stages.
    """

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.head = HEADS[config.head](config, rngs=rngs)

    def __call__(
        self, images: Float[Array, "B S S 3"], *, dtype: Any = jnp.float32, stages: bool = False
    ) -> tuple[Tokens, dict[str, Array]]:
        """Tokens with the head's embedding, and the named stages (empty unless requested).

        Args:
            images: float32, normalised.
            dtype: type of the operands of products.
            stages: whether to return the stages.
        """
        tokens, out = super().__call__(images, dtype=dtype, stages=stages)
        cls = cast(Array, tokens.cls)  # a ViT has one
        head = self.head(cls, tokens.patches, cast(ClipConfig, self.config), dtype)
        return tokens._replace(head=head), out


def _split_heads(x: Array, heads: int) -> Array:
    """[B, T, H * d] -> [B, T, H, d]."""
    return x.reshape(*x.shape[:2], heads, -1)
