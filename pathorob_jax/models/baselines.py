"""Two encoders without weights: one measures the stain, the other the nuclei.

Each maps a batch of RGB tiles to a short float32 vector per tile, which depends on that tile only.
They mark the two ends of the scale of robustness: ``color_stats`` places tiles of one medical
centre close together, ``nuclear_texture`` tiles of one biological class. A benchmark that cannot
separate the two does not work; a large encoder that scores below ``nuclear_texture`` encodes
something other than tissue.

Entries are centred and scaled by constants, which are rounded typical values of H&E tiles at 20x
(0.5 µm per pixel), found without labels, so that cosine distance uses all of them. Each statistic
is defined for every image; the docstrings give its value if there is no stain or no contrast.
"""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Array, Float, UInt8

MIN_TILE_PX = 32
_TISSUE_OD = 0.15  # optical density summed over R, G, B; below this is glass
_QUANTILE_GRID = 64  # quantiles are computed over about this many evenly spaced pixels per side

# Haematoxylin from optical density in R, G, B: first column of the inverse of the stain matrix of
# Ruifrok and Johnston (2001), as in scikit-image's hed_from_rgb.
_HAEMATOXYLIN_FROM_OD = (1.878, -0.066, -0.602)
_BOX_PX = (1, 2, 4, 8, 16)  # radii in pixels of the halved image (1 µm), here and below
_EROSION_PX = (1, 2, 3, 4)
_DILATION_PX = (2, 4, 7)
_COHERENCE_PX = (2, 8)
_DENSITY_PX = (8, 16)
_CHROMATIN_PX = (2, 4)


def _entries(
    name: str, keys: Iterable[object], centers: tuple[float, ...], scale: float
) -> list[tuple[str, float, float]]:
    """(name, centre, scale) of each entry of a block."""
    return [(f"{name}_{k}", center, scale) for k, center in zip(keys, centers, strict=True)]


COLOR_STATS_ENTRIES = (
    *_entries("haematoxylin_share", "rgb", (0.37, 0.42, 0.21), 0.05),
    *_entries("eosin_share", "rgb", (0.18, 0.52, 0.30), 0.05),
    *_entries("haematoxylin_od", "rgb", (0.52, 0.60, 0.32), 0.3),
    *_entries("eosin_od", "rgb", (0.10, 0.28, 0.16), 0.3),
)
NUCLEAR_TEXTURE_ENTRIES = (
    *_entries("area", (30, 50, 70), (0.38, 0.27, 0.15), 0.1),
    ("skewness", 1.2, 1.0),
    *_entries("band", _BOX_PX[:-1], (0.20, 0.29, 0.30, 0.22), 0.05),
    *_entries("eroded", _EROSION_PX, (0.42, 0.14, 0.04, 0.01), 0.1),
    *_entries("dilated", _DILATION_PX, (0.62, 0.82, 0.95), 0.15),
    *_entries("coherence", (*_COHERENCE_PX, "tile"), (0.65, 0.34, 0.18), 0.2),
    *_entries("density_sd", _DENSITY_PX, (0.11, 0.05), 0.05),
    *_entries("chromatin_sd", _CHROMATIN_PX, (0.22, 0.34), 0.1),
)


def _check(images: Array) -> None:
    if images.dtype != jnp.uint8:
        raise TypeError(f"images: expected dtype uint8, found {images.dtype}.")
    if images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < MIN_TILE_PX:
        raise InputError(
            f"images: expected shape (B, H, W, 3) with H and W >= {MIN_TILE_PX}, "
            f"found {images.shape}."
        )


def _optical_density(pixels: Array) -> Array:
    """-log10 of the transmittance of values in 0..255: 0 for white, 2.41 for black."""
    return -jnp.log10((pixels.astype(jnp.float32) + 1) / 256)


def _thin(fields: Array) -> Array:
    """Every n-th pixel of [B, H, W, ...] in both directions, which is enough for quantiles."""
    step = max(min(fields.shape[1:3]) // _QUANTILE_GRID, 1)
    return fields[:, ::step, ::step]


def _standardize(raw: Array, entries: tuple) -> Array:
    center, scale = (jnp.array([entry[i] for entry in entries], jnp.float32) for i in (1, 2))
    return (raw - center[None, :]) / scale[None, :]


@jax.jit
def color_stats(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B D"]:
    """Colours of the two stains in each tile, which depend on laboratory and scanner.

    In an H&E tile, the pixels in which red has the largest share of optical density have the most
    haematoxylin relative to eosin; those with the smallest share have the least. The colours of the
    two ends hardly depend on the amount of either stain, and so depend little on biology. Expect a
    low robustness index: neighbours come from the same centre.

    Args:
        images: uint8[B, H, W, 3], RGB, H and W >= 32.

    Returns:
        float32[B, len(COLOR_STATS_ENTRIES)], standardised; blocks of three (R, G, B) each:
        shares of optical density at the haematoxylin end, the same at the eosin end (an end is the
        outermost 4 % of the stained pixels; without any, all shares are 1/3), mean optical density
        at the haematoxylin end, the same at the eosin end (without stained pixels 0).

    Raises:
        TypeError, InputError: while tracing, for another dtype or shape.
    """
    _check(images)
    od = _optical_density(_thin(images).reshape(images.shape[0], -1, 3))
    total = od.sum(-1)
    red = jnp.where(total > _TISSUE_OD, od[:, :, 0] / jnp.maximum(total, _TISSUE_OD), jnp.nan)
    low, high = jnp.nanquantile(red, jnp.array([0.04, 0.96]), axis=1)
    shares, densities = [], []
    for end in (red >= high[:, None], red <= low[:, None]):  # NaN is in neither
        summed = (od * end[:, :, None]).sum(1)
        share = summed / jnp.maximum(summed.sum(1), _TISSUE_OD)[:, None]
        shares.append(jnp.where(end.any(1)[:, None], share, 1 / 3))
        densities.append(summed / jnp.maximum(end.sum(1), 1)[:, None])
    return _standardize(jnp.concatenate(shares + densities, 1), COLOR_STATS_ENTRIES)


def _window(field: Array, radius_px: int, reduce: str) -> Array:
    """Sum, minimum or maximum over a (2r + 1)-pixel square, clipped at the border: [B, H, W]."""
    init, op = {
        "sum": (0.0, jax.lax.add),
        "min": (jnp.inf, jax.lax.min),
        "max": (-jnp.inf, jax.lax.max),
    }[reduce]
    size = 2 * radius_px + 1
    for window in ((1, size, 1), (1, 1, size)):
        field = jax.lax.reduce_window(field, init, op, window, (1, 1, 1), "SAME")
    return field


def _box(field: Array, radius_px: int) -> Array:
    """Mean over the part of a (2r + 1)-pixel square inside the image: [B, H, W]."""

    def n_covered(n_px: int) -> Array:
        at = jnp.arange(n_px)
        return 1 + jnp.minimum(at, radius_px) + jnp.minimum(n_px - 1 - at, radius_px)

    rows, columns = n_covered(field.shape[1]), n_covered(field.shape[2])
    return _window(field, radius_px, "sum") / rows[None, :, None] / columns[None, None, :]


def _mean(field: Array) -> Array:
    return field.mean((1, 2))


def _coherence(xx: Array, yy: Array, xy: Array, pool: Callable[[Array], Array]) -> Array:
    """Structure tensors pooled by ``pool``: 1 if gradients share an axis, 0 if not."""
    difference, twice, energy = pool(xx - yy), pool(2 * xy), pool(xx + yy)
    length = jnp.sqrt(difference * difference + twice * twice)
    if length.ndim == 3:
        length, energy = _mean(length), _mean(energy)
    return length / jnp.maximum(energy, 1e-5)


def _haematoxylin(images: Array) -> Array:
    """Haematoxylin at half resolution, float32[B, H // 2, W // 2], relative to the tile's nuclei.

    0 is the 10th percentile of the tile, 1 its 98th, which cancels stain strength and thickness. A
    range below 0.05 counts as 0.05, so that noise on an empty tile stays small.
    """
    batch, height, width = images.shape[0], images.shape[1] // 2, images.shape[2] // 2
    pixels = images[:, : 2 * height, : 2 * width].astype(jnp.float32)
    pixels = pixels.reshape(batch, height, 2, width, 2, 3).mean((2, 4))
    od = _optical_density(pixels)
    r, g, b = _HAEMATOXYLIN_FROM_OD
    field = r * od[..., 0] + g * od[..., 1] + b * od[..., 2]
    low, high = jnp.quantile(_thin(field).reshape(batch, -1), jnp.array([0.1, 0.98]), axis=1)
    span = jnp.maximum(high - low, 0.05)
    return jnp.clip((field - low[:, None, None]) / span[:, None, None], -0.5, 1.5)


@jax.jit
def nuclear_texture(images: UInt8[Array, "B H W 3"]) -> Float[Array, "B D"]:
    """Amount, size, shape, order and texture of nuclei in each tile, which depend on morphology.

    Measured on haematoxylin (fixed colour deconvolution) relative to the nuclei of the tile, at
    half resolution. Stain and its strength cancel to first order; blur and JPEG of usual strength
    change only the finest entries. Expect a high robustness index.

    Args:
        images: uint8[B, H, W, 3], RGB, H and W >= 32; lengths below are in pixels of the halved
            image, 1 µm at 20x.

    Returns:
        float32[B, len(NUCLEAR_TEXTURE_ENTRIES)], standardised; blocks in order:
        area (3): share of the tile above 30, 50, 70 % of the nuclear level;
        skewness (1): of haematoxylin (few nuclei: large);
        band (4): shares of the contrast between boxes of radius 1-2, 2-4, 4-8, 8-16;
        eroded (4): share of the nuclear area left by erosion with radius 1 to 4 (nuclear size);
        dilated (3): share of the tile covered after dilation with radius 2, 4, 7 (spacing);
        coherence (3): structure tensor's anisotropy in boxes of radius 2 (nuclear shape), 8
        (neighbouring nuclei) and over the tile (common direction), 0..1;
        density_sd (2): variation of nuclear area between boxes of radius 8, 16 (order, nests);
        chromatin_sd (2): contrast inside nuclei against boxes of radius 2, 4.
        Without contrast the bands are 1/4 each, everything else 0 before standardisation.

    Raises:
        TypeError, InputError: while tracing, for another dtype or shape.
    """
    _check(images)
    field = _haematoxylin(images)
    boxes = [_box(field, radius_px) for radius_px in _BOX_PX]
    deviation = field - _mean(field)[:, None, None]
    variance = _mean(deviation * deviation)
    cube = _mean(deviation * deviation * deviation)
    sd = [jnp.sqrt(_mean((a - b) ** 2)) + 1e-4 for a, b in zip(boxes[:-1], boxes[1:], strict=True)]

    nuclei = jax.nn.sigmoid((boxes[0] - 0.45) * 20)  # share of each pixel that is nucleus
    area = jnp.maximum(_mean(nuclei), 1e-2)
    densities = [_box(nuclei, radius_px) for radius_px in _DENSITY_PX]

    smooth = boxes[0]
    dx = smooth[:, 1:-1, 2:] - smooth[:, 1:-1, :-2]
    dy = smooth[:, 2:, 1:-1] - smooth[:, :-2, 1:-1]
    tensor = (dx * dx, dy * dy, dx * dy)

    raw = [
        *(_mean(jax.nn.sigmoid((field - level) * 20)) for level in (0.3, 0.5, 0.7)),
        cube / jnp.maximum(variance * jnp.sqrt(variance), 1e-5),
        *(band / sum(sd) for band in sd),
        *(_mean(_window(nuclei, radius_px, "min")) / area for radius_px in _EROSION_PX),
        *(_mean(_window(nuclei, radius_px, "max")) for radius_px in _DILATION_PX),
        *(_coherence(*tensor, functools.partial(_box, radius_px=r)) for r in _COHERENCE_PX),
        _coherence(*tensor, _mean),
        *(jnp.sqrt(jnp.maximum(_mean(d * d) - _mean(d) ** 2, 0)) for d in densities),
        *(
            jnp.sqrt(_mean(nuclei * (field - boxes[_BOX_PX.index(r)]) ** 2) / area)
            for r in _CHROMATIN_PX
        ),
    ]
    return _standardize(jnp.stack(raw, 1), NUCLEAR_TEXTURE_ENTRIES)
