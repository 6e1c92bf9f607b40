"""Vision transformer in Flax NNX, one module for the encoder families that are plain ViTs.

Enters: normalised images. Leaves: normalised tokens (class token, patches), and every stage by
name when asked. Layers are stacked along a leading axis and scanned, so that depth costs no compile
time; products take operands of the compute dtype and accumulate in float32; norms, softmax and the
residual stream are float32.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from pathorob_jax.checks import UsageError
from pathorob_jax.typing import Array, Float

Pooling = Literal["cls", "mean", "clsmean"]
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "clsmean")
SHIFT_CHANNELS = 16


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of a plain ViT.

    Attributes:
        image_px: side of the input.
        patch_px: side of a patch.
        dim: width D of the tokens.
        depth: number of blocks.
        heads: attention heads.
        mlp_hidden: hidden width; of each half for ``swiglu``.
        mlp: ``gelu`` (exact), or ``swiglu`` (one product makes gate and value, gate first).
        n_registers: register tokens between class token and patches.
        pos_embed: which tokens the position embedding covers: ``patch``, ``cls_patch`` or ``all``
            (class token, registers and patches).
        qkv_bias: whether the joint query-key-value product has a bias.
        layer_scale: whether blocks scale their two branches.
        eps: of every LayerNorm.
    """

    image_px: int
    patch_px: int
    dim: int
    depth: int
    heads: int
    mlp_hidden: int
    mlp: Literal["gelu", "swiglu"] = "gelu"
    n_registers: int = 0
    pos_embed: Literal["patch", "cls_patch", "all"] = "cls_patch"
    qkv_bias: bool = True
    layer_scale: bool = False
    eps: float = 1e-6

    def __post_init__(self) -> None:
        for what, whole, part in (
            ("image_px must be a multiple of patch_px", self.image_px, self.patch_px),
            ("dim must be a multiple of heads", self.dim, self.heads),
        ):
            if whole % part:
                raise UsageError(f"ViTConfig: {what}, found {whole} and {part}.")

    @property
    def n_patches(self) -> int:
        """Patch tokens of an image."""
        return (self.image_px // self.patch_px) ** 2

    @property
    def n_pos(self) -> int:
        """Rows of the position embedding."""
        extra = {"patch": 0, "cls_patch": 1, "all": 1 + self.n_registers}
        return self.n_patches + extra[self.pos_embed]


class Tokens(NamedTuple):
    """Output tokens after the final norm.

    Attributes:
        cls: float32[B, D].
        patches: float32[B, T, D], registers left out.
    """

    cls: Float[Array, "B D"]
    patches: Float[Array, "B T D"]


class Block(nnx.Module):
    """Pre-norm transformer block; a ``ViT`` holds its blocks stacked [depth, ...]."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        dim, hidden = config.dim, config.mlp_hidden
        self.norm1 = LayerNorm(dim, rngs=rngs)
        self.qkv = Linear(dim, 3 * dim, bias=config.qkv_bias, rngs=rngs)
        self.proj = Linear(dim, dim, rngs=rngs)
        self.norm2 = LayerNorm(dim, rngs=rngs)
        self.fc1 = Linear(dim, hidden * (2 if config.mlp == "swiglu" else 1), rngs=rngs)
        self.fc2 = Linear(hidden, dim, rngs=rngs)
        self.scale1 = nnx.Param(jnp.ones(dim)) if config.layer_scale else None
        self.scale2 = nnx.Param(jnp.ones(dim)) if config.layer_scale else None


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
        out = _product("...i,io->...o", x, self.kernel[...], dtype)
        if self.bias is None:
            return out
        return out + self.bias[...].reshape((1,) * (out.ndim - 1) + (-1,))


class ViT(nnx.Module):
    """The network; ``config`` is static, all else are parameters.

    Call it on float32[B, S, S, 3]; ``stages=True`` also returns every stage by name: ``stem``
    [B, T, D] (tokens before the blocks) and ``blocks`` [depth, B, T, D] (after each block).
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        init = nnx.initializers.truncated_normal(0.02)
        patch_values = config.patch_px**2 * 3
        self.patch = Linear(patch_values, config.dim, rngs=rngs)
        self.cls = nnx.Param(init(rngs.params(), (config.dim,)))
        self.registers = (
            nnx.Param(init(rngs.params(), (config.n_registers, config.dim)))
            if config.n_registers
            else None
        )
        self.pos_embed = nnx.Param(init(rngs.params(), (config.n_pos, config.dim)))

        @nnx.split_rngs(splits=config.depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make_blocks(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        self.blocks = make_blocks(rngs)
        self.norm = LayerNorm(config.dim, rngs=rngs)

    def __call__(
        self, images: Float[Array, "B S S 3"], *, dtype: Any = jnp.float32, stages: bool = False
    ) -> tuple[Tokens, dict[str, Array]]:
        """Tokens, and the named stages (empty unless asked for).

        Args:
            images: float32, normalised.
            dtype: of the products' operands.
            stages: whether to return the stages.
        """
        config = self.config
        x = self._embed(images, dtype)
        out: dict[str, Array] = {"stem": x} if stages else {}
        graph, params = nnx.split(self.blocks)

        def layer(x: Array, layer_params: Any) -> tuple[Array, Array | None]:
            x = _block(nnx.merge(graph, layer_params), x, config, dtype)
            return x, (x if stages else None)

        x, layers = lax.scan(layer, x, params)
        if layers is not None:
            out["blocks"] = layers
        x = self.norm(x, config.eps)
        return Tokens(x[:, 0], x[:, 1 + config.n_registers :]), out

    def _embed(self, images: Array, dtype: Any) -> Array:
        """Patches to tokens, with class token, registers and positions: [B, T, D]."""
        config = self.config
        batch, side = images.shape[0], config.image_px // config.patch_px
        patches = images.reshape(batch, side, config.patch_px, side, config.patch_px, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, config.n_patches, -1)
        x = self.patch(patches, dtype)
        pos = self.pos_embed[...]
        prefix = self.cls[...][None, :]
        if config.pos_embed == "patch":
            x = x + pos[None, :, :]
        if config.pos_embed == "cls_patch":
            prefix = prefix + pos[:1]
            x = x + pos[None, 1:, :]
        if self.registers is not None:
            prefix = jnp.concatenate([prefix, self.registers[...]])
        if config.pos_embed == "all":
            prefix = prefix + pos[: len(prefix)]
            x = x + pos[None, len(prefix) :, :]
        prefix = jnp.broadcast_to(prefix[None, :, :], (batch, *prefix.shape))
        return jnp.concatenate([prefix, x], axis=1)


def pool(tokens: Tokens, pooling: Pooling) -> Float[Array, "B E"]:
    """One embedding per image: class token, mean of the patches, or both (class token first)."""
    mean = jnp.mean(tokens.patches, axis=1)
    if pooling == "cls":
        return tokens.cls
    if pooling == "mean":
        return mean
    if pooling == "clsmean":
        return jnp.concatenate([tokens.cls, mean], axis=-1)
    raise UsageError(f"pooling: expected one of {POOLINGS}, found {pooling!r}.")


def _block(block: Block, x: Array, config: ViTConfig, dtype: Any) -> Array:
    qkv = block.qkv(block.norm1(x, config.eps), dtype)
    attended = block.proj(_attention(qkv, config, dtype), dtype)
    x = x + _scaled(attended, block.scale1)
    hidden = block.fc1(block.norm2(x, config.eps), dtype)
    if config.mlp == "swiglu":
        gate, value = jnp.split(hidden, 2, axis=-1)
        hidden = jax.nn.silu(gate) * value
    else:
        hidden = jax.nn.gelu(hidden, approximate=False)
    return x + _scaled(block.fc2(hidden, dtype), block.scale2)


def _attention(qkv: Array, config: ViTConfig, dtype: Any) -> Array:
    """Softmax attention of float32[B, T, 3 D] -> float32[B, T, D]; softmax in float32."""
    batch, n_tokens, _ = qkv.shape
    head_dim = config.dim // config.heads
    split = qkv.reshape(batch, n_tokens, 3, config.heads, head_dim).transpose(2, 0, 3, 1, 4)
    query, key, value = split
    scores = _product("bhqd,bhkd->bhqk", query * head_dim**-0.5, key, dtype)
    mixed = _product("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), value, dtype)
    return mixed.transpose(0, 2, 1, 3).reshape(batch, n_tokens, config.dim)


def _scaled(x: Array, scale: nnx.Param | None) -> Array:
    return x if scale is None else x * scale[...][None, None, :]


def _product(equation: str, a: Array, b: Array, dtype: Any) -> Array:
    """Einsum of operands in ``dtype``, float32 out; float32 operands keep all their bits."""
    return jnp.einsum(
        equation,
        a.astype(dtype),
        b.astype(dtype),
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
