"""The vision branch of BEiT-3 as MUSK uses it, in Flax NNX: a ViT with sub-norms at two scales.

From normalised images the network computes the tokens of the ViT and, in ``Tokens.head``, the
embedding that MUSK's authors use for linear probes (``ms_aug`` in their ``modeling.py``): the class
token of the image, concatenated with the mean of the class tokens of its four quarters, each
enlarged to the full input.
"""

from dataclasses import dataclass
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from pathorob_jax.core.typing import Array, Float
from pathorob_jax.models.vit import Tokens, ViT, ViTConfig

SCALE = 2
CUBIC_A = -0.75  # of torch's bicubic interpolation without antialiasing; Pillow's is -0.5


@dataclass(frozen=True)
class Beit3Config(ViTConfig):
    """Architecture of the vision branch: the fields of its ViT, with sub-norms by default."""

    sub_norm: bool = True

    def make(self, *, rngs: nnx.Rngs) -> "Beit3":
        """The network with random weights."""
        return Beit3(self, rngs=rngs)


class Beit3(ViT):
    """The network; parameters, call and stages are those of ``ViT``."""

    def __call__(
        self, images: Float[Array, "B S S 3"], *, dtype: Any = jnp.float32, stages: bool = False
    ) -> tuple[Tokens, dict[str, Array]]:
        """Tokens with the embedding at two scales, and the named stages (empty unless requested).

        Stages and tokens are those of the whole image. Under ``jit`` the quarters cost nothing if
        ``Tokens.head`` is not used.

        Args:
            images: float32, normalised.
            dtype: type of the operands of products.
            stages: whether to return the stages.
        """
        tokens, out = super().__call__(images, dtype=dtype, stages=stages)
        closer, _ = super().__call__(_quarters(images), dtype=dtype)
        whole, parts = cast(Array, tokens.cls), cast(Array, closer.cls)  # a ViT has both
        mean = jnp.mean(parts.reshape(-1, *whole.shape), axis=0)
        return tokens._replace(head=jnp.concatenate([whole, mean], axis=-1)), out


def _quarters(images: Array) -> Array:
    """[B, S, S, 3] -> [4 B, S, S, 3]: quarters enlarged by bicubic interpolation, B of each."""
    batch, side = images.shape[:2]
    kernel = jnp.asarray(_enlargement(side))
    for equation in ("ph,bhwc->bpwc", "pw,bhwc->bhpc"):
        images = jnp.einsum(equation, kernel, images, precision=lax.Precision.HIGHEST)
    parts = images.reshape(batch, SCALE, side, SCALE, side, 3).transpose(1, 3, 0, 2, 4, 5)
    return parts.reshape(SCALE * SCALE * batch, side, side, 3)


def _enlargement(side: int) -> np.ndarray:
    """float32[2 S, S]: weights of the pixels of a row in each pixel of the enlarged row.

    Cubic convolution over four pixels; beyond the border the last pixel is repeated.
    """
    center = (np.arange(SCALE * side) + 0.5) / SCALE - 0.5
    first = np.floor(center).astype(int) - 1
    weights = np.zeros((SCALE * side, side))
    for tap in range(4):
        distance = np.abs(center - (first + tap))
        inner = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance**2 + 1
        outer = CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
        pixel = np.clip(first + tap, 0, side - 1)
        np.add.at(weights, (np.arange(SCALE * side), pixel), np.where(distance <= 1, inner, outer))
    return weights.astype(np.float32)
