"""Stain normalisation of tiles on the device: Reinhard and Macenko, uint8 -> uint8.

Both estimate a few numbers of the tiles and map the pixels to those of a target. Estimation and
application are apart, so that the numbers may be those of a tile, of its slide or of its centre.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.typing import Array, Bool, Float, Int, UInt8

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

TRANSMITTED = 240.0  # Io, the light that glass lets through
MIN_DENSITY = 0.15  # beta: a pixel with a channel below is background
ANGLE_PERCENTILES = (1.0, 99.0)
CONCENTRATION_PERCENTILE = 99.0
MIN_STAIN_PIXELS, MIN_STAIN_SHARE = 500, 0.01
MIN_STAIN_ANGLE_DEG = 5.0


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


class Stains(NamedTuple):
    """Haematoxylin and eosin of B tiles.

    Attributes:
        vectors: float32[B, 3, 2] optical density of the two stains in R, G, B, of length 1.
        density: float32[B, 2] 99th percentile of the concentrations of the two.
        n_pixels: int32[B] pixels that are not background.
        usable: bool[B] whether the tile shows two stains.
    """

    vectors: Float[Array, "B 3 2"]
    density: Float[Array, "B 2"]
    n_pixels: Int[Array, " B"]
    usable: Bool[Array, " B"]


@functools.partial(jax.jit, static_argnames="tissue_only")
def measure_colors(tiles: UInt8[Array, "B H W 3"], *, tissue_only: bool = True) -> ColorStatistics:
    """Mean and standard deviation of the tissue's CIELAB.

    Args:
        tiles: uint8[B, H, W, 3].
        tissue_only: leave out pixels lighter than ``BACKGROUND_LIGHTNESS``.
    """
    lab = _rgb_to_lab(tiles)
    mask = _tissue(lab[0]) if tissue_only else jnp.ones(tiles.shape[:3], bool)
    n = mask.sum((1, 2), dtype=jnp.int32)
    safe = jnp.maximum(n, 1).astype(jnp.float32)
    means, stds = [], []
    for channel, origin in zip(lab, LAB_ORIGIN, strict=True):
        # One pass, about a typical value: the channel is computed once. Rows first, so that no
        # float32 sum has many terms.
        value = jnp.where(mask, channel - origin, 0.0)
        shift = value.sum(2).sum(1) / safe
        square = (value * value).sum(2).sum(1) / safe
        means.append(shift + origin)
        stds.append(jnp.sqrt(jnp.maximum(square - shift * shift, 0.0)))
    mean, std = jnp.stack(means, axis=1), jnp.stack(stds, axis=1)
    share = n / (tiles.shape[1] * tiles.shape[2])
    return ColorStatistics(mean, std, n, (share >= MIN_TISSUE_SHARE) & (std[:, 0] >= MIN_SPREAD))


@functools.partial(jax.jit, static_argnames="tissue_only")
def apply_reinhard(
    tiles: UInt8[Array, "B H W 3"],
    source: ColorStatistics,
    target_mean: Float[Array, " 3"],
    target_std: Float[Array, " 3"],
    *,
    tissue_only: bool = True,
) -> UInt8[Array, "B H W 3"]:
    """Give tiles the mean and spread of the target in CIELAB (Reinhard et al. 2001).

    Args:
        tiles: uint8[B, H, W, 3].
        source: statistics of each tile, or of its slide or centre.
        target_mean: float[3].
        target_std: float[3].
        tissue_only: background keeps its bytes.

    Returns:
        uint8[B, H, W, 3]; tiles that are not ``usable`` as they are.

    Reference: torchstain 1.4.1 with ``tissue_only=False``. Differs: a tile of one colour is left as
    it is (there it turns black).
    """
    lab = _rgb_to_lab(tiles)
    factor = target_std[None, :] / jnp.maximum(source.std, 1e-6)
    offset = target_mean[None, :] - source.mean * factor
    wanted = [
        channel * factor[:, i, None, None] + offset[:, i, None, None]
        for i, channel in enumerate(lab)
    ]
    out = (_lab_to_rgb(*wanted) * 255).astype(jnp.uint8)  # truncates, as the packages do
    change = jnp.broadcast_to(source.usable[:, None, None], tiles.shape[:3])
    change = change & _tissue(lab[0]) if tissue_only else change
    return jnp.where(change[..., None], out, tiles)


def find_stains(tiles: UInt8[Array, "B H W 3"]) -> Stains:
    """Estimate the two stains of each tile (Macenko et al. 2009).

    Args:
        tiles: uint8[B, H, W, 3].

    Reference: torchstain 1.4.1 (Io 240, alpha 1, beta 0.15). Differs: eigenvectors point towards
    positive red, whatever sign LAPACK gives them; tiles without two stains are marked.
    """
    with jax.enable_x64(True):  # the small sums and the eigenvectors are in float64
        return _find_stains(tiles)


@jax.jit
def _find_stains(tiles: Array) -> Stains:
    n_tiles = tiles.shape[0]
    density = _optical_density(tiles).reshape(n_tiles, -1, 3)
    opaque = (density >= MIN_DENSITY).all(2)
    n = opaque.sum(1, dtype=jnp.int32)
    weight = opaque.astype(jnp.float32)[..., None]
    count = jnp.maximum(n, 2).astype(jnp.float64)
    mean = (density * weight).sum(1, dtype=jnp.float64) / count[:, None]
    deviation = (density - mean.astype(jnp.float32)[:, None, :]) * weight
    covariance = _pairs(deviation) / (count - 1)[:, None, None]
    _, vectors = jnp.linalg.eigh(covariance)
    plane = vectors[:, :, 1:] * jnp.where(vectors[:, :1, 1:] < 0, -1.0, 1.0)
    along = jnp.einsum(
        "bnc,bcp->bpn", density, plane.astype(jnp.float32), precision=lax.Precision.HIGHEST
    )
    angle = jnp.arctan2(along[:, 1], along[:, 0])
    limits = _percentiles(angle, opaque, jnp.array(ANGLE_PERCENTILES))
    ends = jnp.einsum("bcp,bpe->bce", plane, jnp.stack([jnp.cos(limits), jnp.sin(limits)], axis=1))
    first_is_h = (ends[:, 0, 0] > ends[:, 0, 1])[:, None, None]
    stains = jnp.where(first_is_h, ends, ends[:, :, ::-1])
    concentration = _unmix(density, stains)
    everyone = jnp.ones(concentration.shape[2], bool)
    most = jnp.stack(
        [
            _percentiles(
                concentration[:, s],
                jnp.broadcast_to(everyone, opaque.shape),
                jnp.array([CONCENTRATION_PERCENTILE]),
            )[:, 0]
            for s in range(2)
        ],
        axis=1,
    )
    cosine = (stains[:, :, 0] * stains[:, :, 1]).sum(1)
    usable = (
        (n >= MIN_STAIN_PIXELS)
        & (n >= MIN_STAIN_SHARE * opaque.shape[1])
        & (stains > 0).all((1, 2))
        & (cosine < np.cos(np.deg2rad(MIN_STAIN_ANGLE_DEG)))
        & (most > 0).all(1)
    )
    return Stains(stains.astype(jnp.float32), most.astype(jnp.float32), n, usable)


@jax.jit
def apply_macenko(
    tiles: UInt8[Array, "B H W 3"],
    source: Stains,
    target_vectors: Float[Array, "3 2"],
    target_density: Float[Array, " 2"],
) -> UInt8[Array, "B H W 3"]:
    """Stain tiles as the target is stained: same concentrations, other colours and strength.

    Args:
        tiles: uint8[B, H, W, 3].
        source: stains of each tile, or of its slide or centre.
        target_vectors: float[3, 2].
        target_density: float[2].

    Returns:
        uint8[B, H, W, 3]; tiles that are not ``usable`` as they are.
    """
    density = _optical_density(tiles).reshape(tiles.shape[0], -1, 3)
    concentration = _unmix(density, source.vectors)
    ratio = target_density[None, :] / jnp.where(source.usable[:, None], source.density, 1.0)
    wanted = jnp.einsum(
        "bsn,cs->bnc",
        concentration * ratio.astype(jnp.float32)[:, :, None],
        target_vectors.astype(jnp.float32),
        precision=lax.Precision.HIGHEST,
    )
    light = jnp.minimum(TRANSMITTED * jnp.exp(-wanted), 255.0)
    out = light.astype(jnp.uint8).reshape(tiles.shape)  # truncates, as the packages do
    return jnp.where(source.usable[:, None, None, None], out, tiles)


def _optical_density(tiles: Array) -> Array:
    """float32 -ln((I + 1) / Io) of uint8 values."""
    return -jnp.log((tiles.astype(jnp.float32) + 1.0) / TRANSMITTED)


def _pairs(deviation: Array) -> Array:
    """float64[B, 3, 3] sums of products of the three channels."""
    parts = [
        (deviation[..., i] * deviation[..., j]).sum(1, dtype=jnp.float64)
        for i in range(3)
        for j in range(3)
    ]
    return jnp.stack(parts, axis=1).reshape(-1, 3, 3)


def _unmix(density: Array, stains: Array) -> Array:
    """float32[B, 2, n] least squares concentrations of two stains."""
    stains = stains.astype(jnp.float64 if stains.dtype == jnp.float64 else jnp.float32)
    a = (stains[:, :, 0] ** 2).sum(1)
    b = (stains[:, :, 0] * stains[:, :, 1]).sum(1)
    c = (stains[:, :, 1] ** 2).sum(1)
    determinant = a * c - b * b
    safe = jnp.where(determinant > 0, determinant, 1.0)[:, None]
    rows = [
        (c[:, None] * stains[:, :, 0] - b[:, None] * stains[:, :, 1]) / safe,
        (a[:, None] * stains[:, :, 1] - b[:, None] * stains[:, :, 0]) / safe,
    ]
    inverse = jnp.stack(rows, axis=1).astype(jnp.float32)
    return jnp.einsum("bnc,bsc->bsn", density, inverse, precision=lax.Precision.HIGHEST)


def _percentiles(values: Array, mask: Array, percentiles: Array) -> Array:
    """float64[B, P] percentiles of the values inside a mask, interpolated as NumPy does.

    The two neighbouring order statistics are found exactly, by bisection over the bits of the
    values: 32 counts in place of a sort.
    """
    n = jnp.maximum(mask.sum(1), 1)
    place = (n - 1)[:, None].astype(jnp.float64) * (percentiles[None, :] / 100.0)
    low = jnp.floor(place).astype(jnp.int32)
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    # Floats in the order of unsigned integers: flip all bits of negative ones, the sign of others.
    key = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    key = jnp.where(mask, key, jnp.uint32(0xFFFFFFFF))

    def count_below(limit: Array) -> Array:
        return (key[:, None, :] < limit[:, :, None]).sum(2, dtype=jnp.int32)

    def narrow(step: Array, found: Array) -> Array:
        trial = found | (jnp.uint32(1) << (31 - step).astype(jnp.uint32))
        return jnp.where(count_below(trial) <= low, trial, found)

    found = lax.fori_loop(0, 32, narrow, jnp.zeros(low.shape, jnp.uint32))
    up_to = (key[:, None, :] <= found[:, :, None]).sum(2, dtype=jnp.int32)
    above = jnp.where(key[:, None, :] > found[:, :, None], key[:, None, :], 0xFFFFFFFF).min(2)
    following = jnp.where((up_to > low + 1) | (low + 1 >= n[:, None]), found, above)

    def as_float(k: Array) -> Array:
        raw = jnp.where(k >> 31 == 1, k ^ jnp.uint32(1 << 31), ~k)
        return lax.bitcast_convert_type(raw, jnp.float32).astype(jnp.float64)

    first, second = as_float(found), as_float(following)
    return first + (second - first) * (place - low)


def _tissue(lightness: Array) -> Array:
    return lightness < BACKGROUND_LIGHTNESS


def _rgb_to_lab(tiles: Array) -> tuple[Array, Array, Array]:
    """Three float32[B, H, W] channels of CIELAB (L 0 to 100) of uint8 sRGB."""
    rgb = [_to_linear(tiles[..., i].astype(jnp.float32) / 255.0) for i in range(3)]
    x, y, z = (
        jnp.where(v > 0.008856, _power(v, 1 / 3), 7.787 * v + 16.0 / 116.0)
        for v in _mix(rgb, RGB_TO_XYZ / WHITE[:, None])
    )
    return 116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)


def _lab_to_rgb(lightness: Array, a: Array, b: Array) -> Array:
    """float32[B, H, W, 3] sRGB in [0, 1] of three channels of CIELAB."""
    y = (lightness + 16.0) / 116.0
    xyz = [
        jnp.where(f > 0.2068966, f * f * f, (f - 16.0 / 116.0) / 7.787)
        for f in (a / 500.0 + y, y, y - b / 200.0)
    ]
    rgb = jnp.stack(_mix(xyz, XYZ_TO_RGB * WHITE[None, :]), axis=-1)
    curve = 1.055 * _power(jnp.maximum(rgb, 0.0031308), 1 / 2.4) - 0.055
    return jnp.clip(jnp.where(rgb > 0.0031308, curve, 12.92 * rgb), 0, 1)


def _to_linear(value: Array) -> Array:
    return jnp.where(value > 0.04045, _power((value + 0.055) / 1.055, 2.4), value / 12.92)


def _power(base: Array, exponent: float) -> Array:
    """Power of positive numbers; exp and log are vectorised on CPU, pow and cbrt are not."""
    return jnp.exp(jnp.log(jnp.maximum(base, 1e-12)) * exponent)


def _mix(channels: list[Array], matrix: np.ndarray) -> list[Array]:
    """The three channels of ``values @ matrix.T``, without a product of shape [..., 3]."""
    return [
        float(p) * channels[0] + float(q) * channels[1] + float(r) * channels[2]
        for p, q, r in matrix
    ]
