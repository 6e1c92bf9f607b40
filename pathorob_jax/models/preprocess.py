"""Preprocessing on the device: resize, crop and normalise uint8 tiles, exactly like PIL.

``Preprocess`` maps uint8 tiles of one size to float32 network inputs. The resize is bit for bit the
antialiased resize of PIL: weights in fixed point (22 bits), each of the two passes rounded to
uint8. Normalisation uses a table made on the host, because a compiler may rewrite the division.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Array, Float, UInt8

Interpolation = Literal["bilinear", "bicubic"]
PRECISION_BITS = 22
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of an encoder by its authors; part of the encoder's spec.

    Attributes:
        resize_px: shorter side after resizing (torchvision's ``Resize(int)``); None: no resizing.
        crop_px: side of the centre crop that the network sees.
        interpolation: PIL's filter.
        mean: mean per channel, of values in [0, 1].
        std: standard deviation per channel.
        keep_aspect: whether ``resize_px`` is the shorter side; if False, it is both sides.
    """

    resize_px: int | None
    crop_px: int
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    keep_aspect: bool = True

    def __call__(self, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B S S 3"]:
        """float32[B, crop_px, crop_px, 3], normalised.

        Raises:
            InputError: the resized tile is smaller than the crop.
        """
        height, width = images.shape[1:3]
        if self.resize_px is not None:
            both = (self.resize_px, self.resize_px)
            height, width = (
                resized_shape(height, width, self.resize_px) if self.keep_aspect else both
            )
            images = resize(images, height, width, interpolation=self.interpolation)
        if min(height, width) < self.crop_px:
            raise InputError(
                f"tiles: expected at least {self.crop_px} x {self.crop_px} pixels for the crop, "
                f"found {width} x {height}; use larger tiles or an encoder that resizes."
            )
        # torchvision's CenterCrop rounds half to even.
        top = round((height - self.crop_px) / 2)
        left = round((width - self.crop_px) / 2)
        crop = images[:, top : top + self.crop_px, left : left + self.crop_px]
        table = jnp.asarray(normalisation_table(self.mean, self.std))
        return table[crop.astype(jnp.int32), jnp.arange(3)[None, None, None, :]]


def resized_shape(height: int, width: int, shorter_px: int) -> tuple[int, int]:
    """Height and width if the shorter side is ``shorter_px``, truncated as in torchvision."""
    if height <= width:
        return shorter_px, int(shorter_px * width / height)
    return int(shorter_px * height / width), shorter_px


def normalisation_table(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[np.ndarray, "256 3"]:
    """float32[256, 3]: (value / 255 - mean) / std, rounded after each step as in torchvision."""
    value = np.arange(256, dtype=np.float32) / np.float32(255)
    return (value[:, None] - np.asarray([mean], np.float32)) / np.asarray([std], np.float32)


def resize(
    images: UInt8[Array, "B H W 3"], height: int, width: int, *, interpolation: Interpolation
) -> UInt8[Array, "B height width 3"]:
    """Antialiased resize, bit for bit as PIL: horizontal pass first, uint8 after each pass.

    Since Pillow 13 PIL does the vertical pass first if ``H - height > 2 * (W - width)`` and H
    shrinks (keeping aspect: tiles more than twice as tall as wide). The order here is that of
    earlier versions, with which encoders were trained and published results computed.
    """
    images = _resize_axis(images, 2, width, interpolation)
    return _resize_axis(images, 1, height, interpolation)


def _resize_axis(images: Array, axis: int, size: int, interpolation: Interpolation) -> Array:
    if images.shape[axis] == size:
        return images
    start, weights = _taps(images.shape[axis], size, interpolation)
    shape = [1] * images.ndim
    shape[axis] = size
    # A sum over taps: each tap is taken and weighted as a whole plane.
    total = jnp.full(images.shape[:axis] + (size,) + images.shape[axis + 1 :], 0, jnp.int32)
    last = images.shape[axis] - 1
    for tap in range(weights.shape[1]):
        plane = jnp.take(images, jnp.minimum(start + tap, last), axis=axis).astype(jnp.int32)
        total += plane * weights[:, tap].reshape(shape)
    rounded = (total + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS
    return jnp.clip(rounded, 0, 255).astype(jnp.uint8)


@functools.cache
def _taps(
    size_in: int, size_out: int, interpolation: Interpolation
) -> tuple[np.ndarray, np.ndarray]:
    """First input of each output, int32[out]; and fixed-point weights, int32[out, taps]."""
    kernel, support = _KERNELS[interpolation]
    scale = size_in / size_out
    filter_scale = max(scale, 1.0)
    reach = support * filter_scale
    starts: list[int] = []
    rows: list[list[int]] = []
    for i in range(size_out):
        centre = (i + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        stop = min(int(centre + reach + 0.5), size_in)
        taps = [kernel((x - centre + 0.5) / filter_scale) for x in range(first, stop)]
        total = 0.0
        for weight in taps:  # in the order of PIL: the last bits matter
            total += weight
        scaled = [weight / total * (1 << PRECISION_BITS) for weight in taps]
        starts.append(first)
        rows.append([int(w - 0.5) if w < 0 else int(w + 0.5) for w in scaled])
    weights = np.zeros((size_out, max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        weights[i, : len(row)] = row
    return np.asarray(starts, np.int32), weights


def _bilinear(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _bicubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


_KERNELS: dict[str, tuple[Callable[[float], float], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
}
