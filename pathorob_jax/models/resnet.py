"""Residual networks in Flax NNX, as in torchvision (stride in the 3 x 3 convolution).

From normalised images the network computes the pixels of the last map as tokens and, if requested,
every stage by name. It is for inference only: batch norm uses its running statistics, which are not
folded into the kernels, so that the checkpoint remains recognisable. Convolutions take
operands of the compute dtype and accumulate in float32; norms and the residual stream are float32.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from pathorob_jax.core import checks
from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.typing import Array, Float
from pathorob_jax.models.ranges import check_numbers
from pathorob_jax.models.vit import Tokens

STEM_KERNEL_PX, POOL_PX = 7, 3
MAX_STAGES = 8  # the width doubles from stage to stage


@dataclass(frozen=True)
class ResNetConfig:
    """Architecture of a residual network without its classifier.

    Attributes:
        image_px: side of the input that the authors use; other sizes work too.
        depths: blocks of each stage; the first block of every stage but the first halves the map.
        block: ``basic`` (two 3 x 3 convolutions) or ``bottleneck`` (1 x 1, 3 x 3, 1 x 1 to four
            times the width).
        width: channels of the stem, doubled from stage to stage.
        eps: epsilon of every batch norm.
    """

    image_px: int
    depths: tuple[int, ...]
    block: Literal["basic", "bottleneck"]
    width: int = 64
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_numbers(self, what="ResNetConfig", layers=("depths",))
        if len(self.depths) > MAX_STAGES:
            raise UsageError(f"ResNetConfig.depths: expected at most {MAX_STAGES} stages.")
        checks.check_known(self.block, ("basic", "bottleneck"), what="ResNetConfig: block")

    @property
    def expansion(self) -> int:
        """Output channels of a block, in units of its width."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def dim(self) -> int:
        """Channels D of the last map."""
        return self.width * 2 ** (len(self.depths) - 1) * self.expansion

    def make(self, *, rngs: nnx.Rngs) -> "ResNet":
        """The network with random weights."""
        return ResNet(self, rngs=rngs)


class Conv(nnx.Module):
    """Kernel [row, column, in, out] and bias [out] of a convolution with zero padding."""

    def __init__(
        self, size_px: int, dim_in: int, dim_out: int, *, bias: bool = False, rngs: nnx.Rngs
    ):
        init = nnx.initializers.he_normal()
        self.kernel = nnx.Param(init(rngs.params(), (size_px, size_px, dim_in, dim_out)))
        self.bias = nnx.Param(jnp.zeros(dim_out)) if bias else None

    def __call__(self, x: Array, dtype: Any, *, stride: int = 1) -> Array:
        """float32[B, ceil(H / stride), ceil(W / stride), out] from operands of ``dtype``."""
        kernel = self.kernel[...]
        pad = kernel.shape[0] // 2
        out = lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            (stride, stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )
        return out if self.bias is None else out + self.bias[...][None, None, None, :]


class BatchNorm(nnx.Module):
    """Scale and bias, and the running statistics (not counted as parameters)."""

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))
        self.mean = nnx.BatchStat(jnp.zeros(dim))
        self.variance = nnx.BatchStat(jnp.ones(dim))

    def __call__(self, x: Array, eps: float) -> Array:
        """float32[B, H, W, C], normalised by the running statistics."""
        variance = self.variance[...].astype(jnp.float32)
        factor = self.scale[...] * lax.rsqrt(variance + eps)
        shift = self.bias[...] - self.mean[...] * factor
        return x * factor[None, None, None, :] + shift[None, None, None, :]


class Block(nnx.Module):
    """Residual block; ``downsample`` maps its input to the shape of its output."""

    def __init__(self, config: ResNetConfig, dim_in: int, width: int, *, rngs: nnx.Rngs):
        dim_out = width * config.expansion
        if config.block == "bottleneck":
            self.conv1 = Conv(1, dim_in, width, rngs=rngs)
            self.conv2 = Conv(3, width, width, rngs=rngs)
            self.conv3 = Conv(1, width, dim_out, rngs=rngs)
            self.bn3 = BatchNorm(dim_out)
        else:
            self.conv1 = Conv(3, dim_in, width, rngs=rngs)
            self.conv2 = Conv(3, width, dim_out, rngs=rngs)
        self.bn1 = BatchNorm(width)
        self.bn2 = BatchNorm(width)
        resized = dim_in != dim_out
        self.downsample_conv = Conv(1, dim_in, dim_out, rngs=rngs) if resized else None
        self.downsample_bn = BatchNorm(dim_out) if resized else None


class ResNet(nnx.Module):
    """The network. ``config`` is static; all else is parameters and running statistics.

    Call it on float32[B, H, W, 3]; ``stages=True`` also returns every stage by name: ``stem``
    [B, H / 4, W / 4, width] (after the pooling) and ``stage1``, ``stage2``, ... (after the last
    block of each).
    """

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.conv1 = Conv(STEM_KERNEL_PX, 3, config.width, rngs=rngs)
        self.bn1 = BatchNorm(config.width)
        dim = config.width
        stages = {}
        for i, depth in enumerate(config.depths):
            width = config.width * 2**i
            blocks = {}
            for j in range(depth):
                blocks[str(j)] = Block(config, dim, width, rngs=rngs)
                dim = width * config.expansion
            stages[str(i + 1)] = nnx.Dict(blocks)  # torchvision counts layer1, layer2, ...
        self.stages = nnx.Dict(stages)

    def __call__(
        self, images: Float[Array, "B H W 3"], *, dtype: Any = jnp.float32, stages: bool = False
    ) -> tuple[Tokens, dict[str, Array]]:
        """Pixels of the last map as tokens, and the named stages (empty unless requested).

        Args:
            images: float32, normalised.
            dtype: type of the operands of convolutions.
            stages: whether to return the stages.
        """
        config = self.config
        x = self.conv1(images, dtype, stride=2)
        x = _max_pool(jax.nn.relu(self.bn1(x, config.eps)))
        out = {"stem": x}
        for i, depth in enumerate(config.depths):
            for j in range(depth):
                stride = 2 if i and not j else 1
                x = _block(self.stages[str(i + 1)][str(j)], x, config, stride, dtype)
            out[f"stage{i + 1}"] = x
        return Tokens(None, x.reshape(x.shape[0], -1, x.shape[3])), (out if stages else {})


def _block(block: Block, x: Array, config: ResNetConfig, stride: int, dtype: Any) -> Array:
    eps = config.eps
    if config.block == "bottleneck":
        y = jax.nn.relu(block.bn1(block.conv1(x, dtype), eps))
        y = jax.nn.relu(block.bn2(block.conv2(y, dtype, stride=stride), eps))
        y = block.bn3(block.conv3(y, dtype), eps)
    else:
        y = jax.nn.relu(block.bn1(block.conv1(x, dtype, stride=stride), eps))
        y = block.bn2(block.conv2(y, dtype), eps)
    if block.downsample_conv is not None and block.downsample_bn is not None:
        x = block.downsample_bn(block.downsample_conv(x, dtype, stride=stride), eps)
    return jax.nn.relu(x + y)


def _max_pool(x: Array) -> Array:
    """Maximum over 3 x 3 pixels with stride 2: [B, ceil(H / 2), ceil(W / 2), C]."""
    pad = POOL_PX // 2
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, POOL_PX, POOL_PX, 1),
        (1, 2, 2, 1),
        ((0, 0), (pad, pad), (pad, pad), (0, 0)),
    )
