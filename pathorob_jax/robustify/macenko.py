"""Macenko's stain normalisation on the device: the same concentrations, in the target's stains.

Each function is a few programs in a row, not one: XLA would fuse them, and compute the optical
density again for every sum that reads it.

A tile needs four percentiles: the ends of the angles of its pixels, and the highest concentration
of each stain. All lie within one hundredth of an end, so that the k largest values hold them, k a
hundredth of the pixels: one pass over a heap, in place of a sort. Angles are ranked by a number
that grows with them and needs no arctangent.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.typing import Array, Bool, Float, Int, UInt8
from pathorob_jax.embeddings.tile_transform import Outcome

TRANSMITTED = 240.0  # Io, the light that glass lets through
MIN_DENSITY = 0.15  # beta: a pixel with a channel below is background
EXTREME = 0.01  # share of the pixels beyond the ends of the angles, and beyond the concentrations
MIN_STAIN_PIXELS, MIN_STAIN_SHARE = 500, 0.01
MIN_STAIN_ANGLE_DEG = 5.0
# Optical density -ln((I + 1) / Io) of each value.
DENSITY = -np.log((np.arange(256) + 1.0) / TRANSMITTED).astype(np.float32)


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


def find_stains(tiles: UInt8[Array, "B H W 3"]) -> Stains:
    """Estimate the two stains of each tile (Macenko et al. 2009).

    Args:
        tiles: uint8[B, H, W, 3].

    Reference: torchstain 1.4.1 (Io 240, alpha 1, beta 0.15). Differs: eigenvectors point towards
    positive red, whatever sign LAPACK gives them; tiles without two stains are marked.
    """
    return _find(_to_density(tiles))


def normalize_macenko(
    tiles: UInt8[Array, "B H W 3"],
    target_vectors: Float[Array, "3 2"],
    target_density: Float[Array, " 2"],
    *,
    source: Stains | None = None,
    fallback: Stains | None = None,
) -> tuple[UInt8[Array, "B H W 3"], UInt8[Array, " B"]]:
    """Stain tiles as the target is stained: same concentrations, other colours and strength.

    Args:
        tiles: uint8[B, H, W, 3].
        target_vectors: float32[3, 2].
        target_density: float32[2].
        source: for each tile the stains of its slide or centre; None: its own.
        fallback: for each tile the stains of its slide, which take the place of its source where it
            has too few pixels that are not background; None: there are none.

    Returns:
        uint8[B, H, W, 3]; and uint8[B] the ``Outcome`` of each: a tile is left as it is if it has
        too few pixels that are not background (none at all, with a fallback that is usable), or its
        source is not ``usable``.
    """
    density = _to_density(tiles)
    source = source or _find(density)
    if fallback is None:
        fallback = source._replace(usable=jnp.zeros(len(tiles), bool))
    return _restain(tiles, density, source, fallback, target_vectors, target_density)


def _find(density: Array) -> Stains:
    with jax.enable_x64(True):  # the small sums and the eigenvectors are in float64
        plane, n = _find_plane(density)
        stains = _find_ends(density, plane, n)
        return _weigh(density, stains, n)


@jax.jit
def _to_density(tiles: Array) -> Array:
    """float32[3, B, H, W] optical density; a channel is a plane, and is read in order."""
    return jnp.asarray(DENSITY)[tiles.transpose(3, 0, 1, 2).astype(jnp.int32)]


def _opaque(density: Array) -> Array:
    """bool[B, H, W] pixels that are not background."""
    return (density[0] >= MIN_DENSITY) & (density[1] >= MIN_DENSITY) & (density[2] >= MIN_DENSITY)


@jax.jit
def _find_plane(density: Array) -> tuple[Array, Array]:
    """float64[B, 3, 2] eigenvectors of most variance, and int32[B] pixels behind them."""
    mask = _opaque(density)
    n = mask.sum((1, 2), dtype=jnp.int32)
    count = jnp.maximum(n, 2).astype(jnp.float64)

    def add(values: Array) -> Array:  # columns first: the sums of many are taken at once
        return jnp.where(mask, values, 0.0).sum(1, dtype=jnp.float64).sum(1)

    mean = [add(plane) / count for plane in density]
    # Products of float64, less the product of the means: no digits are lost that count.
    wide = density.astype(jnp.float64)
    pairs = {
        (i, j): (add(wide[i] * wide[j]) - count * mean[i] * mean[j]) / (count - 1)
        for i in range(3)
        for j in range(i, 3)
    }
    rows = [jnp.stack([pairs[min(i, j), max(i, j)] for j in range(3)], axis=1) for i in range(3)]
    _, vectors = jnp.linalg.eigh(jnp.stack(rows, axis=1))
    return vectors[:, :, 1:] * jnp.where(vectors[:, :1, 1:] < 0, -1.0, 1.0), n


@jax.jit
def _find_ends(density: Array, plane: Array, n: Array) -> Array:
    """float64[B, 3, 2] haematoxylin and eosin: the directions of the extreme angles."""
    mask = _opaque(density)
    first, second = _project(density, plane.astype(jnp.float32))
    length = jnp.abs(first) + jnp.abs(second)
    share = first / jnp.where(length > 0, length, 1.0)
    # Grows with the angle, from -2 at -180 degrees to 2 at 180; 1 is 90 degrees.
    rank = jnp.where(second >= 0, 1.0 - share, share - 1.0)
    limits = jnp.stack(
        [
            -_extreme(jnp.where(mask, -rank, -jnp.inf), n, _angle_of_negative),
            _extreme(jnp.where(mask, rank, -jnp.inf), n, _angle_of),
        ],
        axis=1,
    )
    ends = jnp.einsum("bcp,bpe->bce", plane, jnp.stack([jnp.cos(limits), jnp.sin(limits)], axis=1))
    first_is_h = (ends[:, 0, 0] > ends[:, 0, 1])[:, None, None]
    return jnp.where(first_is_h, ends, ends[:, :, ::-1])


@jax.jit
def _weigh(density: Array, stains: Array, n: Array) -> Stains:
    """The stains with the concentrations that they reach, and whether they are two."""
    n_pixels = density.shape[2] * density.shape[3]
    everyone = jnp.full(n.shape, n_pixels, jnp.int32)
    most = jnp.stack(
        [_extreme(c, everyone, lambda value: value) for c in _project(density, _unmixing(stains))],
        axis=1,
    )
    cosine = (stains[:, :, 0] * stains[:, :, 1]).sum(1)
    usable = (
        (n >= MIN_STAIN_PIXELS)
        & (n >= MIN_STAIN_SHARE * n_pixels)
        & (stains > 0).all((1, 2))
        & (cosine < math.cos(math.radians(MIN_STAIN_ANGLE_DEG)))
        & (most > 0).all(1)
    )
    return Stains(stains.astype(jnp.float32), most.astype(jnp.float32), n, usable)


@jax.jit
def _restain(
    tiles: Array,
    density: Array,
    source: Stains,
    fallback: Stains,
    target_vectors: Array,
    target_density: Array,
) -> tuple[Array, Array]:
    n = _opaque(density).sum((1, 2), dtype=jnp.int32)
    n_pixels = density.shape[2] * density.shape[3]
    enough = (n >= MIN_STAIN_PIXELS) & (n >= MIN_STAIN_SHARE * n_pixels)
    borrows = ~enough & (n > 0) & fallback.usable
    changed = borrows | (enough & source.usable)
    vectors = jnp.where(borrows[:, None, None], fallback.vectors, source.vectors)
    most = jnp.where(borrows[:, None], fallback.density, source.density)
    ratio = target_density[None, :] / jnp.where(changed[:, None], most, 1.0)
    first, second = (
        c * ratio[:, s, None, None] for s, c in enumerate(_project(density, _unmixing(vectors)))
    )
    wanted = jnp.stack([first * row[0] + second * row[1] for row in target_vectors])
    light = jnp.minimum(TRANSMITTED * jnp.exp(-wanted), 255.0)
    out = light.astype(jnp.uint8)  # truncates, as the packages do
    left = jnp.where(enough, Outcome.PLAIN, Outcome.BLANK)
    done = jnp.where(borrows, Outcome.BY_SLIDE, Outcome.NORMALIZED)
    outcome = jnp.where(changed, done, left).astype(jnp.uint8)
    return jnp.where(changed[:, None, None, None], out.transpose(1, 2, 3, 0), tiles), outcome


def _project(density: Array, matrix: Array) -> list[Array]:
    """Two float32[B, H, W] of densities times the two columns of float32[B, 3, 2]."""
    red, green, blue = density
    columns = (matrix[:, :, p, None, None] for p in range(2))
    return [red * w[:, 0] + green * w[:, 1] + blue * w[:, 2] for w in columns]


def _unmixing(stains: Array) -> Array:
    """float32[B, 3, 2] that turns densities into least squares concentrations of two stains."""
    a = (stains[:, :, 0] ** 2).sum(1)
    b = (stains[:, :, 0] * stains[:, :, 1]).sum(1)
    c = (stains[:, :, 1] ** 2).sum(1)
    determinant = a * c - b * b
    safe = jnp.where(determinant > 0, determinant, 1.0)[:, None]
    columns = [
        (c[:, None] * stains[:, :, 0] - b[:, None] * stains[:, :, 1]) / safe,
        (a[:, None] * stains[:, :, 1] - b[:, None] * stains[:, :, 0]) / safe,
    ]
    return jnp.stack(columns, axis=2).astype(jnp.float32)


def _extreme(values: Array, n: Array, read: Callable[[Array], Array]) -> Array:
    """float64[B] percentile 99 of n values of each tile, interpolated as NumPy does.

    Args:
        values: float32[B, H, W]; those beyond the n of a tile are -inf.
        n: int32[B].
        read: what is interpolated, as a function of a value.
    """
    flat = values.reshape(len(values), -1)
    k = min(flat.shape[1], int(EXTREME * (flat.shape[1] - 1)) + 2)
    largest = lax.top_k(flat, k)[0]
    last = jnp.maximum(n, 1) - 1
    place = last.astype(jnp.float64) * (1 - EXTREME)
    low = jnp.floor(place).astype(jnp.int32)
    at = jnp.stack([last - low, jnp.maximum(last - low - 1, 0)], axis=1)
    ends = read(jnp.take_along_axis(largest, at, axis=1).astype(jnp.float64))
    return ends[:, 0] + (ends[:, 1] - ends[:, 0]) * (place - low)


def _angle_of(rank: Array) -> Array:
    """The angle of a rank of ``_find_ends``, in radians."""
    share = jnp.where(rank >= 0, 1.0 - rank, rank + 1.0)
    height = 1.0 - jnp.abs(share)
    return jnp.arctan2(jnp.where(rank >= 0, height, -height), share)


def _angle_of_negative(value: Array) -> Array:
    return -_angle_of(-value)
