"""Vision transformer in Flax NNX, one module for all encoder families that are plain ViTs.

From normalised images the network computes normalised tokens (class token, patches) and, if
requested, every stage by name. Layers are stacked along a leading axis and scanned, so that compile
time does not grow with depth.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.typing import Array, Float
from pathorob_jax.models.layers import LayerNorm, Linear, attend, gelu
from pathorob_jax.models.parameter_sharding import gathered
from pathorob_jax.models.positions import make_periods, make_rotation, rotate
from pathorob_jax.models.ranges import check_numbers

__all__ = [
    "POOLINGS",
    "Block",
    "LayerNorm",
    "Linear",
    "Pooling",
    "Tokens",
    "ViT",
    "ViTConfig",
    "pool",
]

Pooling = Literal["cls", "mean", "clsmean", "head"]
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "clsmean")


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
        mlp: ``gelu`` (exact), ``quick_gelu`` (x sigmoid(1.702 x)), or ``swiglu`` (one product for
            gate and value, gate first).
        n_registers: register tokens between class token and patches.
        pos_embed: which tokens the learned position embedding covers: ``patch``, ``cls_patch``,
            ``all`` (class token, registers and patches), or ``none``.
        rope_theta: base of rotary positions as in DINOv3; None: no rotary positions.
        rope_dtype: type in which angles are computed and queries and keys are rotated.
        qkv_bias: whether the joint query-key-value product has a bias.
        qk_norm: whether a LayerNorm is applied to queries and keys of each head.
        patch_bias: whether the patch embedding has a bias.
        pre_norm: whether a LayerNorm is applied to tokens before the first block.
        sub_norm: whether each branch has another LayerNorm before its last product (BEiT-3).
        layer_scale: whether blocks scale their two branches.
        per_channel: whether the network runs on one colour at a time; the tokens of the three
            passes are concatenated to width 3 D.
        eps: epsilon of every LayerNorm.
    """

    image_px: int
    patch_px: int
    dim: int
    depth: int
    heads: int
    mlp_hidden: int
    mlp: Literal["gelu", "quick_gelu", "swiglu"] = "gelu"
    n_registers: int = 0
    pos_embed: Literal["patch", "cls_patch", "all", "none"] = "cls_patch"
    rope_theta: float | None = None
    rope_dtype: Literal["float32", "bfloat16"] = "float32"
    qkv_bias: bool = True
    qk_norm: bool = False
    patch_bias: bool = True
    pre_norm: bool = False
    sub_norm: bool = False
    layer_scale: bool = False
    per_channel: bool = False
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_numbers(self, what=type(self).__name__, zero=("n_registers",), layers=("depth",))
        for what, whole, part in (
            ("image_px must be a multiple of patch_px", self.image_px, self.patch_px),
            ("dim must be a multiple of heads", self.dim, self.heads),
        ):
            if whole % part:
                raise UsageError(f"ViTConfig: {what}, found {whole} and {part}.")
        if self.rope_theta is not None and self.head_dim % 4:
            raise UsageError(
                f"ViTConfig: rotary positions need dim / heads to be a multiple of 4, "
                f"found {self.head_dim}."
            )

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.heads

    @property
    def n_patches(self) -> int:
        """Number of patch tokens of an image."""
        return (self.image_px // self.patch_px) ** 2

    @property
    def n_pos_prefix(self) -> int:
        """Rows of the position embedding that do not belong to patches; they come first."""
        return {"patch": 0, "none": 0, "cls_patch": 1, "all": 1 + self.n_registers}[self.pos_embed]

    @property
    def n_pos(self) -> int:
        """Rows of the position embedding."""
        return 0 if self.pos_embed == "none" else self.n_patches + self.n_pos_prefix

    @property
    def final_norm(self) -> bool:
        """Whether a LayerNorm is applied to the tokens after the last block."""
        return True

    def make(self, *, rngs: nnx.Rngs) -> "ViT":
        """The network with random weights."""
        return ViT(self, rngs=rngs)


class Tokens(NamedTuple):
    """Output of a network.

    Attributes:
        cls: float32[B, D], after the final norm if there is one; None if there is no class token.
        patches: float32[B, T, D], after the final norm if there is one, without registers.
        head: float32[B, E], from the head of the network; None if it has no head.
    """

    cls: Float[Array, "B D"] | None
    patches: Float[Array, "B T D"]
    head: Float[Array, "B E"] | None = None


class Block(nnx.Module):
    """Pre-norm transformer block; the blocks of a ``ViT`` are stacked [depth, ...]."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        dim, hidden = config.dim, config.mlp_hidden
        self.norm1 = LayerNorm(dim, rngs=rngs)
        self.qkv = Linear(dim, 3 * dim, bias=config.qkv_bias, rngs=rngs)
        self.q_norm = LayerNorm(config.head_dim, rngs=rngs) if config.qk_norm else None
        self.k_norm = LayerNorm(config.head_dim, rngs=rngs) if config.qk_norm else None
        self.proj = Linear(dim, dim, rngs=rngs)
        self.norm2 = LayerNorm(dim, rngs=rngs)
        self.fc1 = Linear(dim, hidden * (2 if config.mlp == "swiglu" else 1), rngs=rngs)
        self.fc2 = Linear(hidden, dim, rngs=rngs)
        self.attended_norm = LayerNorm(dim, rngs=rngs) if config.sub_norm else None
        self.hidden_norm = LayerNorm(hidden, rngs=rngs) if config.sub_norm else None
        self.scale1 = nnx.Param(jnp.ones(dim)) if config.layer_scale else None
        self.scale2 = nnx.Param(jnp.ones(dim)) if config.layer_scale else None

    def __call__(
        self, x: Array, config: ViTConfig, dtype: Any, rotation: tuple[Array, Array] | None = None
    ) -> Array:
        """float32[B, T, D] -> float32[B, T, D]; ``rotation``: cosines and sines of patches."""
        attended = self._attention(x, config, dtype, rotation)
        if self.attended_norm is not None:
            attended = self.attended_norm(attended, config.eps)
        x = x + _scaled(self.proj(attended, dtype, within=True), self.scale1)
        hidden = self.fc1(self.norm2(x, config.eps), dtype, within=True)
        if config.mlp == "swiglu":
            gate, value = jnp.split(hidden, 2, axis=-1)
            hidden = jax.nn.silu(gate) * value
        elif config.mlp == "quick_gelu":
            hidden = hidden * jax.nn.sigmoid(1.702 * hidden)
        else:
            hidden = gelu(hidden, dtype)
        if self.hidden_norm is not None:
            hidden = self.hidden_norm(hidden, config.eps)
        return x + _scaled(self.fc2(hidden, dtype, within=True), self.scale2)

    def _attention(
        self, x: Array, config: ViTConfig, dtype: Any, rotation: tuple[Array, Array] | None
    ) -> Array:
        qkv = self.qkv(self.norm1(x, config.eps), dtype, within=True)
        batch, n_tokens, _ = qkv.shape
        split = qkv.reshape(batch, n_tokens, 3, config.heads, config.head_dim)
        query, key, value = (split[:, :, i] for i in range(3))
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query, config.eps), self.k_norm(key, config.eps)
        if rotation is not None:
            query = rotate(query, *rotation, config.rope_dtype)
            key = rotate(key, *rotation, config.rope_dtype)
        return attend(query * config.head_dim**-0.5, key, value, dtype)


class ViT(nnx.Module):
    """The network. ``config`` is static; all else is parameters.

    Call it on float32[B, S, S, 3]; ``stages=True`` also returns every stage by name: ``stem``
    [B, T, D] (tokens before the blocks) and ``blocks`` [depth, B, T, D] (after each block).
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        init = nnx.initializers.truncated_normal(0.02)
        patch_values = config.patch_px**2 * (1 if config.per_channel else 3)
        self.patch = Linear(patch_values, config.dim, bias=config.patch_bias, rngs=rngs)
        self.cls = nnx.Param(init(rngs.params(), (config.dim,)))
        self.registers = (
            nnx.Param(init(rngs.params(), (config.n_registers, config.dim)))
            if config.n_registers
            else None
        )
        self.pos_embed = (
            nnx.Param(init(rngs.params(), (config.n_pos, config.dim))) if config.n_pos else None
        )
        self.rope_periods = (
            nnx.Param(jnp.asarray(make_periods(config.head_dim, config.rope_theta)))
            if config.rope_theta is not None
            else None
        )

        @nnx.split_rngs(splits=config.depth)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make_blocks(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        self.pre_norm = LayerNorm(config.dim, rngs=rngs) if config.pre_norm else None
        self.blocks = make_blocks(rngs)
        self.norm = LayerNorm(config.dim, rngs=rngs) if config.final_norm else None

    def __call__(
        self, images: Float[Array, "B S S 3"], *, dtype: Any = jnp.float32, stages: bool = False
    ) -> tuple[Tokens, dict[str, Array]]:
        """Tokens, and the named stages (empty unless requested).

        Args:
            images: float32, normalised.
            dtype: type of the operands of products.
            stages: whether to return the stages; with ``per_channel`` they contain the batch three
                times, red first.
        """
        config = self.config
        if config.per_channel:
            images = jnp.concatenate([images[..., i : i + 1] for i in range(3)])
        x = self._embed(images, dtype)
        if self.pre_norm is not None:
            x = self.pre_norm(x, config.eps)
        out: dict[str, Array] = {"stem": x} if stages else {}
        graph, params = nnx.split(self.blocks)
        rotation = self._rotation()

        def layer(x: Array, layer_params: Any) -> tuple[Array, Array | None]:
            x = nnx.merge(graph, gathered(layer_params))(x, config, dtype, rotation)
            return x, (x if stages else None)

        x, layers = lax.scan(layer, x, params)
        if layers is not None:
            out["blocks"] = layers
        if self.norm is not None:
            x = self.norm(x, config.eps)
        if config.per_channel:
            x = jnp.concatenate(jnp.split(x, 3), axis=-1)
        return Tokens(x[:, 0], x[:, 1 + config.n_registers :]), out

    def _rotation(self) -> tuple[Array, Array] | None:
        if self.rope_periods is None:
            return None
        side = self.config.image_px // self.config.patch_px
        return make_rotation(side, self.rope_periods[...], self.config.rope_dtype)

    def _embed(self, images: Array, dtype: Any) -> Array:
        """Embed patches as tokens, with class token, registers and positions: [B, T, D]."""
        config = self.config
        batch, side = images.shape[0], config.image_px // config.patch_px
        patches = images.reshape(batch, side, config.patch_px, side, config.patch_px, -1)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, config.n_patches, -1)
        x = self.patch(patches, dtype)
        prefix = self.cls[...].astype(x.dtype)[None, :]
        pos = None if self.pos_embed is None else self.pos_embed[...]
        if pos is not None:
            x = x + pos[None, config.n_pos_prefix :, :]
        if pos is not None and config.pos_embed == "cls_patch":
            prefix = prefix + pos[:1]
        if self.registers is not None:
            prefix = jnp.concatenate([prefix, self.registers[...]])
        if pos is not None and config.pos_embed == "all":
            prefix = prefix + pos[: len(prefix)]
        prefix = jnp.broadcast_to(prefix[None, :, :], (batch, *prefix.shape))
        return jnp.concatenate([prefix, x], axis=1)


def pool(tokens: Tokens, pooling: Pooling) -> Float[Array, "B E"]:
    """One embedding per image.

    ``cls``: class token; ``mean``: mean of the patches; ``clsmean``: both, class token first;
    ``head``: output of the head of the network.
    """
    found = {"cls": tokens.cls, "head": tokens.head}
    if pooling in found:
        embedding = found[pooling]
    elif pooling == "mean":
        embedding = jnp.mean(tokens.patches, axis=1)
    elif pooling == "clsmean" and tokens.cls is not None:
        embedding = jnp.concatenate([tokens.cls, jnp.mean(tokens.patches, axis=1)], axis=-1)
    else:
        embedding = None
    if embedding is None:
        raise UsageError(f"pooling: expected one of {POOLINGS}, found {pooling!r}.")
    return embedding


def _scaled(x: Array, scale: nnx.Param | None) -> Array:
    return x if scale is None else x * scale[...][None, None, :]
