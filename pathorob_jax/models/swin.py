"""Swin transformer with a convolutional stem in Flax NNX, the network of CTransPath.

From normalised images the network computes the normalised tokens of the last stage and, if
requested, every stage by name. It follows ``ctran.py`` of the TransPath authors with timm 0.5.4:
three convolutions with batch norm embed the patches, attention is within windows of the map, every
second block shifts the windows by half of their side, and each stage but the last ends with merging
2 x 2 tokens. Products take operands of the compute dtype and accumulate in float32; norms, softmax
and the residual stream are float32.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.typing import Array, Float
from pathorob_jax.models.layers import LayerNorm, Linear, gelu, product
from pathorob_jax.models.ranges import check_numbers
from pathorob_jax.models.resnet import MAX_STAGES, BatchNorm, Conv
from pathorob_jax.models.vit import Tokens

PATCH_PX = 4  # two convolutions of stride 2
OTHER_REGION = -100.0  # added to the scores of tokens that only the cyclic shift made adjacent


@dataclass(frozen=True)
class SwinConfig:
    """Architecture of a Swin transformer with a convolutional stem.

    Attributes:
        image_px: side of the input; the map of every stage must be a whole number of windows.
        width: width of the tokens of the first stage; it doubles from stage to stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: side of a window in tokens.
        mlp_ratio: hidden width of the MLP in units of the width of the stage.
        eps: epsilon of every LayerNorm.
        batch_norm_eps: epsilon of the batch norms of the stem.
    """

    image_px: int
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    mlp_ratio: int = 4
    eps: float = 1e-5
    batch_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_numbers(self, what="SwinConfig", layers=("depths", "heads", "mlp_ratio"))
        if len(self.depths) > MAX_STAGES:
            raise UsageError(f"SwinConfig.depths: expected at most {MAX_STAGES} stages.")
        if len(self.depths) != len(self.heads):
            raise UsageError(
                "SwinConfig: expected one entry of heads for each of depths, "
                f"found {len(self.heads)} and {len(self.depths)}."
            )
        last = PATCH_PX * 2 ** (len(self.depths) - 1)
        for what, whole, part in (
            ("width must be a multiple of 8 (the stem begins with an eighth)", self.width, 8),
            ("image_px must be a multiple of the last windows", self.image_px, last * self.window),
            *(
                (f"the width of stage {i} must be a multiple of its heads", width, heads)
                for i, (width, heads) in enumerate(zip(self.widths, self.heads, strict=True))
            ),
        ):
            if whole % part:
                raise UsageError(f"SwinConfig: {what}, found {whole} and {part}.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the tokens of each stage."""
        return tuple(self.width * 2**i for i in range(len(self.depths)))

    @property
    def dim(self) -> int:
        """Width D of the tokens of the last stage."""
        return self.widths[-1]

    def make(self, *, rngs: nnx.Rngs) -> "Swin":
        """The network with random weights."""
        return Swin(self, rngs=rngs)


class Stem(nnx.Module):
    """Convolutions that map 4 x 4 pixels and their surroundings to a token."""

    def __init__(self, config: SwinConfig, *, rngs: nnx.Rngs):
        narrow, wide = config.width // 8, config.width // 4
        self.conv1 = Conv(3, 3, narrow, rngs=rngs)
        self.bn1 = BatchNorm(narrow)
        self.conv2 = Conv(3, narrow, wide, rngs=rngs)
        self.bn2 = BatchNorm(wide)
        self.conv3 = Conv(1, wide, config.width, bias=True, rngs=rngs)
        self.norm = LayerNorm(config.width, rngs=rngs)


class Block(nnx.Module):
    """Pre-norm transformer block; ``position_bias`` [(2 window - 1)^2, heads] by offset."""

    def __init__(self, config: SwinConfig, dim: int, heads: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(0.02)
        hidden = config.mlp_ratio * dim
        self.norm1 = LayerNorm(dim, rngs=rngs)
        self.qkv = Linear(dim, 3 * dim, rngs=rngs)
        self.position_bias = nnx.Param(init(rngs.params(), ((2 * config.window - 1) ** 2, heads)))
        self.proj = Linear(dim, dim, rngs=rngs)
        self.norm2 = LayerNorm(dim, rngs=rngs)
        self.fc1 = Linear(dim, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, dim, rngs=rngs)


class Stage(nnx.Module):
    """Blocks of one width, then merging of tokens (except after the last stage)."""

    def __init__(self, config: SwinConfig, index: int, *, rngs: nnx.Rngs):
        dim = config.widths[index]
        self.blocks = nnx.Dict(
            {
                str(i): Block(config, dim, config.heads[index], rngs=rngs)
                for i in range(config.depths[index])
            }
        )
        merges = index < len(config.depths) - 1
        self.merge_norm = LayerNorm(4 * dim, rngs=rngs) if merges else None
        self.merge = Linear(4 * dim, 2 * dim, bias=False, rngs=rngs) if merges else None


class Swin(nnx.Module):
    """The network. ``config`` is static; all else is parameters and running statistics.

    Call it on float32[B, S, S, 3]; ``stages=True`` also returns every stage by name: ``stem``
    [B, S / 4, S / 4, width] and ``stage0``, ``stage1``, ... (after the last block of each, before
    tokens are merged).
    """

    def __init__(self, config: SwinConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config, rngs=rngs)
        self.stages = nnx.Dict(
            {str(i): Stage(config, i, rngs=rngs) for i in range(len(config.depths))}
        )
        self.norm = LayerNorm(config.dim, rngs=rngs)

    def __call__(
        self, images: Float[Array, "B S S 3"], *, dtype: Any = jnp.float32, stages: bool = False
    ) -> tuple[Tokens, dict[str, Array]]:
        """Tokens of the last stage, and the named stages (empty unless requested).

        Args:
            images: float32, normalised.
            dtype: type of the operands of products.
            stages: whether to return the stages.
        """
        config = self.config
        x = _embed(self.stem, images, config, dtype)
        out = {"stem": x}
        for i, depth in enumerate(config.depths):
            stage = self.stages[str(i)]
            for j in range(depth):
                # A single window is not shifted.
                shift = config.window // 2 if j % 2 and x.shape[1] > config.window else 0
                x = _block(stage.blocks[str(j)], x, config, shift, dtype)
            out[f"stage{i}"] = x
            if stage.merge is not None and stage.merge_norm is not None:
                x = stage.merge(stage.merge_norm(_gather_fours(x), config.eps), dtype)
        x = self.norm(x, config.eps)
        return Tokens(None, x.reshape(x.shape[0], -1, x.shape[3])), (out if stages else {})


def _embed(stem: Stem, images: Array, config: SwinConfig, dtype: Any) -> Array:
    x = jax.nn.relu(stem.bn1(stem.conv1(images, dtype, stride=2), config.batch_norm_eps))
    x = jax.nn.relu(stem.bn2(stem.conv2(x, dtype, stride=2), config.batch_norm_eps))
    return stem.norm(stem.conv3(x, dtype), config.eps)


def _block(block: Block, x: Array, config: SwinConfig, shift: int, dtype: Any) -> Array:
    side, window = x.shape[1], config.window
    y = jnp.roll(block.norm1(x, config.eps), (-shift, -shift), axis=(1, 2))
    y = _attention(block, _to_windows(y, window), _scores_mask(side, window, shift), dtype)
    x = x + jnp.roll(_from_windows(y, side, window), (shift, shift), axis=(1, 2))
    hidden = gelu(block.fc1(block.norm2(x, config.eps), dtype, within=True), dtype)
    return x + block.fc2(hidden, dtype, within=True)


def _attention(block: Block, x: Array, mask: np.ndarray, dtype: Any) -> Array:
    """Softmax attention within windows of float32[B, n, T, D]; ``mask`` [n, T, T] is added."""
    batch, n_windows, n_tokens, dim = x.shape
    table = block.position_bias[...]
    heads = table.shape[1]
    qkv = block.qkv(x, dtype, within=True).reshape(
        batch, n_windows, n_tokens, 3, heads, dim // heads
    )
    query, key, value = qkv.transpose(3, 0, 1, 4, 2, 5)
    scores = product("bnhqd,bnhkd->bnhqk", query * (dim // heads) ** -0.5, key, dtype)
    offsets = _offsets(round(n_tokens**0.5))
    bias = table[offsets].transpose(2, 0, 1)
    scores = scores + bias[None, None] + mask[None, :, None]
    mixed = product("bnhqk,bnhkd->bnhqd", jax.nn.softmax(scores, axis=-1), value, dtype)
    return block.proj(mixed.transpose(0, 1, 3, 2, 4).reshape(x.shape), dtype, within=True)


def _to_windows(x: Array, window: int) -> Array:
    """[B, S, S, D] -> [B, windows, tokens of a window, D], both row by row."""
    batch, side, _, dim = x.shape
    n = side // window
    split = x.reshape(batch, n, window, n, window, dim).transpose(0, 1, 3, 2, 4, 5)
    return split.reshape(batch, n * n, window * window, dim)


def _from_windows(x: Array, side: int, window: int) -> Array:
    """The inverse of ``_to_windows``."""
    batch, dim, n = x.shape[0], x.shape[-1], side // window
    split = x.reshape(batch, n, n, window, window, dim).transpose(0, 1, 3, 2, 4, 5)
    return split.reshape(batch, side, side, dim)


def _offsets(window: int) -> np.ndarray:
    """int[T, T]: row of the bias table for each query and key, by their offset."""
    row, column = np.divmod(np.arange(window * window), window)
    rows = row[:, None] - row[None, :] + window - 1
    columns = column[:, None] - column[None, :] + window - 1
    return rows * (2 * window - 1) + columns


def _scores_mask(side: int, window: int, shift: int) -> np.ndarray:
    """float32[windows, T, T]: ``OTHER_REGION`` between tokens that are not adjacent in the map."""
    # After the shift the last windows have the first rows of the map after its last rows.
    part = np.where(np.arange(side) < side - shift, 0, 1)
    part = part + (np.arange(side) >= side - window)
    region = part[:, None] * 3 + part[None, :]
    n = side // window
    windows = region.reshape(n, window, n, window).transpose(0, 2, 1, 3).reshape(n * n, -1)
    differs = windows[:, :, None] != windows[:, None, :]
    return np.where(differs, OTHER_REGION, 0.0).astype(np.float32)


def _gather_fours(x: Array) -> Array:
    """Concatenate 2 x 2 tokens: upper left, lower left, upper right, lower right."""
    batch, side, _, dim = x.shape
    fours = x.reshape(batch, side // 2, 2, side // 2, 2, dim).transpose(0, 1, 3, 4, 2, 5)
    return fours.reshape(batch, side // 2, side // 2, 4 * dim)
