"""Reinhard's stain normalisation on the device: mean and spread of the tissue's CIELAB.

Each function is a few programs in a row, not one: XLA would fuse them, and compute the conversion
to CIELAB again for every sum that reads it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pathorob_jax.core.typing import Array, Bool, Float, Int, UInt8
from pathorob_jax.embeddings.tile_transform import Outcome

# CIELAB of sRGB under D65, with the constants of scikit-image.
RGB_TO_XYZ = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
XYZ_TO_RGB = np.linalg.inv(RGB_TO_XYZ)
WHITE = np.array([0.95047, 1.0, 1.08883])
LAB_ORIGIN = (65.0, 15.0, -10.0)  # of H&E, roughly
# Lightness (0 to 100) from which a pixel is background.
BACKGROUND_LIGHTNESS = 80.0
# A tile with less tissue, or almost one colour, is left as it is.
MIN_TISSUE_SHARE, MIN_SPREAD = 0.05, 0.5

Lab = tuple[Array, Array, Array]


class ColorStatistics(NamedTuple):
    """CIELAB of the tissue of B tiles.

    Attributes:
        mean: float32[B, 3].
        std: float32[B, 3], divisor n.
        n_pixels: int32[B] pixels of tissue.
        usable: bool[B] whether a tile has tissue of more than one colour.
    """

    mean: Float[Array, "B 3"]
    std: Float[Array, "B 3"]
    n_pixels: Int[Array, " B"]
    usable: Bool[Array, " B"]


def measure_colors(tiles: UInt8[Array, "B H W 3"], *, tissue_only: bool = True) -> ColorStatistics:
    """Mean and standard deviation of the tissue's CIELAB.

    Args:
        tiles: uint8[B, H, W, 3].
        tissue_only: leave out pixels lighter than ``BACKGROUND_LIGHTNESS``.
    """
    return _measure(_rgb_to_lab(tiles), tissue_only=tissue_only)


def normalize_reinhard(
    tiles: UInt8[Array, "B H W 3"],
    target_mean: Float[Array, " 3"],
    target_std: Float[Array, " 3"],
    *,
    source: ColorStatistics | None = None,
    tissue_only: bool = True,
) -> tuple[UInt8[Array, "B H W 3"], UInt8[Array, " B"]]:
    """Give tiles the mean and spread of the target in CIELAB (Reinhard et al. 2001).

    Args:
        tiles: uint8[B, H, W, 3].
        target_mean: float[3].
        target_std: float[3].
        source: for each tile the statistics of its slide or centre; None: its own.
        tissue_only: background keeps its bytes.

    Returns:
        uint8[B, H, W, 3]; and uint8[B] the ``Outcome`` of each: a tile is left as it is if it has
        too little tissue, or its source is not ``usable``.

    Reference: torchstain 1.4.1 with ``tissue_only=False``. Differs: a tile of one colour is left as
    it is (there it turns black).
    """
    lab = _rgb_to_lab(tiles)
    source = source or _measure(lab, tissue_only=tissue_only)
    factor, offset = _line(source, target_mean, target_std)
    return _recolor(tiles, lab, factor, offset, source.usable, tissue_only=tissue_only)


@functools.partial(jax.jit, static_argnames="tissue_only")
def _measure(lab: Lab, *, tissue_only: bool) -> ColorStatistics:
    n_rows, n_columns = lab[0].shape[1:]
    mask = _tissue(lab[0]) if tissue_only else jnp.ones(lab[0].shape, bool)
    n = mask.sum((1, 2), dtype=jnp.int32)
    safe = jnp.maximum(n, 1).astype(jnp.float32)
    means, stds = [], []
    for channel, origin in zip(lab, LAB_ORIGIN, strict=True):
        # One pass, about a typical value. Columns first: no float32 sum has many terms, and the
        # sums of many columns are taken at once.
        value = jnp.where(mask, channel - origin, 0.0)
        shift = value.sum(1).sum(1) / safe
        square = (value * value).sum(1).sum(1) / safe
        means.append(shift + origin)
        stds.append(jnp.sqrt(jnp.maximum(square - shift * shift, 0.0)))
    mean, std = jnp.stack(means, axis=1), jnp.stack(stds, axis=1)
    share = n / (n_rows * n_columns)
    return ColorStatistics(mean, std, n, (share >= MIN_TISSUE_SHARE) & (std[:, 0] >= MIN_SPREAD))


@jax.jit
def _line(source: ColorStatistics, target_mean: Array, target_std: Array) -> tuple[Array, Array]:
    """Factor and offset, float32[B, 3] each, of every tile and channel."""
    factor = target_std[None, :] / jnp.maximum(source.std, 1e-6)
    return factor, target_mean[None, :] - source.mean * factor


@functools.partial(jax.jit, static_argnames="tissue_only")
def _recolor(
    tiles: Array, lab: Lab, factor: Array, offset: Array, usable: Array, *, tissue_only: bool
) -> tuple[Array, Array]:
    wanted = [
        channel * factor[:, i, None, None] + offset[:, i, None, None]
        for i, channel in enumerate(lab)
    ]
    rgb = _lab_to_rgb(*wanted)
    out = (rgb * 255).astype(jnp.uint8)  # truncates, as the packages do
    enough, keep = jnp.ones(usable.shape, bool), jnp.zeros(lab[0].shape, bool)
    if tissue_only:
        tissue = _tissue(lab[0])
        enough, keep = tissue.mean((1, 2)) >= MIN_TISSUE_SHARE, ~tissue
    keep = keep | ~(usable & enough)[:, None, None]
    left = jnp.where(enough, Outcome.PLAIN, Outcome.BLANK)
    outcome = jnp.where(usable & enough, Outcome.NORMALIZED, left).astype(jnp.uint8)
    return jnp.where(keep[..., None], tiles, out.transpose(1, 2, 3, 0)), outcome


def _tissue(lightness: Array) -> Array:
    return lightness < BACKGROUND_LIGHTNESS


def _linear_table() -> Float[np.ndarray, " 256"]:
    """float32[256] linear light of an sRGB value."""
    value = np.arange(256) / 255.0
    curve = ((value + 0.055) / 1.055) ** 2.4
    return np.where(value > 0.04045, curve, value / 12.92).astype(np.float32)


LINEAR = _linear_table()


@jax.jit
def _rgb_to_lab(tiles: Array) -> Lab:
    """Three float32[B, H, W] channels of CIELAB (L 0 to 100) of uint8 sRGB."""
    # Channels first: a channel is then a plane, and is read in order.
    linear = jnp.asarray(LINEAR)[tiles.transpose(3, 0, 1, 2).astype(jnp.int32)]
    x, y, z = (
        jnp.where(v > 0.008856, _power(v, 1 / 3), 7.787 * v + 16.0 / 116.0)
        for v in _mix(linear, RGB_TO_XYZ / WHITE[:, None])
    )
    return 116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)


def _lab_to_rgb(lightness: Array, a: Array, b: Array) -> Array:
    """float32[3, B, H, W] sRGB in [0, 1] of three channels of CIELAB."""
    y = (lightness + 16.0) / 116.0
    xyz = [
        jnp.where(f > 0.2068966, f * f * f, (f - 16.0 / 116.0) / 7.787)
        for f in (a / 500.0 + y, y, y - b / 200.0)
    ]
    rgb = jnp.stack(_mix(xyz, XYZ_TO_RGB * WHITE[None, :]))
    curve = 1.055 * _power(jnp.maximum(rgb, 0.0031308), 1 / 2.4) - 0.055
    return jnp.clip(jnp.where(rgb > 0.0031308, curve, 12.92 * rgb), 0, 1)


def _power(base: Array, exponent: float) -> Array:
    """Power of positive numbers; exp and log are vectorised on CPU, pow and cbrt are not."""
    return jnp.exp(jnp.log(jnp.maximum(base, 1e-12)) * exponent)


def _mix(channels: Array | list[Array], matrix: np.ndarray) -> list[Array]:
    """The three channels of ``values @ matrix.T``, without a product of shape [..., 3]."""
    return [
        float(p) * channels[0] + float(q) * channels[1] + float(r) * channels[2]
        for p, q, r in matrix
    ]
