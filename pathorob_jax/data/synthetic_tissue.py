"""Synthetic tissue before staining: nuclei, fibres and glands as concentrations of two stains.

``draw_tissue`` draws the ``Tissue`` of a tile from a ``Morphology`` and the indices of the tile. It
does not depend on a medical centre. Values are the same on every machine: NumPy guarantees the
streams of ``RandomState``; fields use only correctly rounded operations (+ - * / sqrt, elementwise,
no sums whose order may vary); and angles come from a table rounded far above the last bit of libm.
"""

import dataclasses
import hashlib
import math
from typing import NamedTuple

import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError

ARRANGEMENTS = ("fibres", "glands", "sheet")
_SPRITE_PX = 24_000  # pixels of nuclei drawn at once
_N_ANGLES = 1024
_ANGLES = np.array(
    [
        [round(4096 * f(2 * math.pi * i / _N_ANGLES)) / 4096 for f in (math.cos, math.sin)]
        for i in range(_N_ANGLES)
    ],
    np.float32,
)


@dataclasses.dataclass(frozen=True)
class Morphology:
    """Biology of one class. Lengths in pixels of 0.5 µm (20x), staining 1.0 = a typical nucleus.

    Attributes:
        name: the biological class.
        arrangement: "fibres" (along wavy fibres), "glands" (in rings about lumina), "sheet".
        spacing_px: mean distance between neighbouring nuclei; the density is its inverse square.
        radius_px: mean nuclear radius (of the circle with the same area).
        elongation: long over short nuclear axis.
        size_variation: relative half-range of the radii (anisokaryosis).
        irregularity: 0 for elliptic outlines, about 0.3 for lobed ones.
        chromatin: haematoxylin concentration of nuclei.
        granularity: relative contrast of the chromatin texture.
        vesicularity: share of chromatin that has moved from the interior to the membrane.
        nucleoli: probability of a prominent nucleolus.
        eosin: eosin concentration of cytoplasm and matrix.
        basophilia: haematoxylin concentration outside nuclei.
        gaps: share of the matrix that is empty glass (clefts, retraction).
    """

    name: str
    arrangement: str
    spacing_px: float
    radius_px: float
    elongation: float = 1.2
    size_variation: float = 0.15
    irregularity: float = 0.05
    chromatin: float = 0.9
    granularity: float = 0.25
    vesicularity: float = 0.2
    nucleoli: float = 0.0
    eosin: float = 0.45
    basophilia: float = 0.08
    gaps: float = 0.1

    def __post_init__(self):
        checks.check_known(self.arrangement, ARRANGEMENTS, what=f"arrangement of {self.name!r}")
        if not (self.radius_px >= 1 and self.spacing_px >= 4 and self.elongation >= 1):
            raise InputError(
                f"class {self.name!r}: expected radius_px >= 1, spacing_px >= 4, elongation >= 1, "
                f"found {self.radius_px}, {self.spacing_px}, {self.elongation}."
            )


class Tissue(NamedTuple):
    """A tile before it is stained: concentrations in hundredths, uint8[px, px], and nuclei."""

    haematoxylin: np.ndarray
    eosin: np.ndarray
    nucleus_mask: np.ndarray  # bool[px, px]


class _Nuclei(NamedTuple):
    """float32[n, 2] centres and unit long axes (x, y), float32[n] semi-axes."""

    center: np.ndarray
    axis: np.ndarray
    long_px: np.ndarray
    short_px: np.ndarray


def random_stream(*key: int | str) -> np.random.RandomState:
    """A reproducible random stream for each key; streams of neighbouring keys are unrelated."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, "<u4"))


def _uniform(rs: np.random.RandomState, *shape: int) -> np.ndarray:
    """float32 in [-1, 1)."""
    return (rs.random_sample(shape) * 2 - 1).astype(np.float32)


def _noise(rs: np.random.RandomState, px: int, pitch_px: int) -> np.ndarray:
    """Smooth value noise in [0, 1], float32[px, px], with one independent value per pitch."""
    at = np.arange(px) + rs.randint(pitch_px)
    cell = at // pitch_px
    grid = rs.randint(0, 256, (cell[-1] + 2, cell[-1] + 2)).astype(np.float32) / 255
    part = (at % pitch_px).astype(np.float32) / pitch_px
    part = part * part * (3 - 2 * part)
    rows = grid[cell]
    rows += (grid[cell + 1] - rows) * part[:, None]
    step = (rows[:, 1:] - rows[:, :-1]).take(cell, axis=1)
    step *= part
    step += rows.take(cell, axis=1)
    return step


def _fibres(rs: np.random.RandomState, px: int) -> tuple[np.ndarray, np.ndarray]:
    """Wavy fibres: float32[px, px] across-coordinate in pixels, and strand density in [0, 1]."""
    angle = rs.randint(_N_ANGLES)
    along, across = _ANGLES[angle], _ANGLES[(angle + _N_ANGLES // 4) % _N_ANGLES]
    at = np.arange(px, dtype=np.float32)
    wave = _noise(rs, px, 72) * 34
    wave += _noise(rs, px, 31) * 9
    t = wave + (across[0] * at)[None, :] + (across[1] * at)[:, None]
    u = t * (1 / 7) + 4096  # the offset keeps truncation equal to floor
    v = (wave + (along[0] * at)[None, :] + (along[1] * at)[:, None]) * (1 / 46) + 4096
    ui, vi = u.astype(np.int32), v.astype(np.int32)
    u -= ui
    v -= vi
    table = (rs.randint(0, 256, (64, 64)) / 255).astype(np.float32)
    here = ((ui & 63) * 64 + (vi & 63)).astype(np.intp)
    corners = [np.roll(table, (-i, -j), (0, 1)).ravel() for i in (0, 1) for j in (0, 1)]
    low, low_v, high, high_v = (corner.take(here) for corner in corners)
    low += (low_v - low) * v
    high += (high_v - high) * v
    return t, low + (high - low) * u


def _jittered(rs: np.random.RandomState, px: int, pitch_px: float, jitter: float) -> np.ndarray:
    """Points of a jittered hexagonal lattice over the tile and one pitch beyond, float32[n, 2]."""
    rows = np.arange(-1, int(px / (pitch_px * 0.866)) + 2, dtype=np.float32)
    cols = np.arange(-1, int(px / pitch_px) + 2, dtype=np.float32)
    x = cols[None, :] + 0.5 * (rows % 2)[:, None]
    y = np.repeat(rows * 0.866, cols.size).reshape(x.shape)
    points = np.stack([x, y], -1).reshape(-1, 2)
    points += _uniform(rs, points.shape[0], 2) * jitter
    return (points + rs.random_sample(2).astype(np.float32)) * pitch_px


def _make_nuclei(
    rs: np.random.RandomState, m: Morphology, center: np.ndarray, axis: np.ndarray
) -> _Nuclei:
    n = center.shape[0]
    radius = m.radius_px * (1 + m.size_variation * _uniform(rs, n))
    root = np.sqrt(1 + (m.elongation - 1) * (1 + 0.35 * _uniform(rs, n)))
    return _Nuclei(center, axis, radius * root, radius / root)


def _random_axes(rs: np.random.RandomState, n: int) -> np.ndarray:
    return _ANGLES[rs.randint(0, _N_ANGLES, n)]


def _fibre_nuclei(
    rs: np.random.RandomState, m: Morphology, across: np.ndarray, spacing_px: float
) -> _Nuclei:
    """Nuclei that lie along the level lines of the across-coordinate."""
    px = across.shape[0]
    center = _jittered(rs, px, spacing_px, 0.42)
    x, y = np.clip(center.astype(np.int32), 1, px - 2).T
    gx, gy = across[y, x + 1] - across[y, x - 1], across[y + 1, x] - across[y - 1, x]
    norm = np.sqrt(gx * gx + gy * gy) + 1e-3
    axis = np.stack([-gy / norm, gx / norm], -1) + _uniform(rs, center.shape[0], 2) * 0.12
    axis /= np.sqrt(axis[:, :1] * axis[:, :1] + axis[:, 1:] * axis[:, 1:])
    return _make_nuclei(rs, m, center, axis.astype(np.float32))


def _glands(
    rs: np.random.RandomState, m: Morphology, px: int, spacing_px: float
) -> tuple[np.ndarray, _Nuclei]:
    """Glands: float32[px, px] radial coordinate (1 at the base, 0 in the lumen), ring nuclei."""
    rho = np.full((px, px), 9, np.float32)
    at = np.arange(px, dtype=np.float32)
    pitch = 104.0
    center, axis = [], []
    for x, y in _jittered(rs, px, pitch, 0.08):
        e2, f2, e3, size = _uniform(rs, 4) * np.array([0.13, 0.13, 0.06, 0.12], np.float32)
        radius = 0.47 * pitch * (1 + size)

        def outline(c, s, e2=e2, f2=f2, e3=e3, radius=radius):
            return radius * (1 + e2 * (c * c - s * s) + f2 * (2 * c * s)
                             + e3 * (c * (c * c - 3 * s * s)))  # fmt: skip

        n = max(int(6.28 * 0.76 * radius / spacing_px), 5)
        angle = (np.arange(n) * _N_ANGLES // n + rs.randint(_N_ANGLES)
                 + rs.randint(-_N_ANGLES // (5 * n), _N_ANGLES // (5 * n) + 1, n))  # fmt: skip
        unit = _ANGLES[angle % _N_ANGLES]
        reach = outline(unit[:, 0], unit[:, 1]) * (0.77 + 0.05 * _uniform(rs, n))
        center.append(np.stack([x, y]) + unit * reach[:, None])
        axis.append(unit)
        lo = [max(int(v - 1.4 * radius), 0) for v in (x, y)]
        hi = [max(min(int(v + 1.4 * radius) + 1, px), 0) for v in (x, y)]
        if lo[0] >= hi[0] or lo[1] >= hi[1]:
            continue
        dx, dy = (at[lo[0] : hi[0]] - x)[None, :], (at[lo[1] : hi[1]] - y)[:, None]
        distance = np.sqrt(dx * dx + dy * dy) + 1e-3
        view = rho[lo[1] : hi[1], lo[0] : hi[0]]
        np.minimum(view, distance / outline(dx / distance, dy / distance), out=view)
    return rho, _make_nuclei(rs, m, np.concatenate(center).astype(np.float32), np.concatenate(axis))


def _paste(rs: np.random.RandomState, m: Morphology, nuclei: _Nuclei, px: int) -> np.ndarray:
    """Draw nuclei: float32[2, px, px], coverage in [0, 1] and chromatin relative to typical."""
    margin = 1.1 + 0.7 * m.irregularity
    reach = float(np.max(nuclei.long_px, initial=1)) * margin + 2
    near = np.flatnonzero(((nuclei.center > -reach) & (nuclei.center < px + reach)).all(1))
    near = near[np.argsort(-nuclei.long_px[near], kind="stable")]
    nuclei = _Nuclei(*(field[near] for field in nuclei))
    n, pad = near.size, 2 * int(reach) + 4
    bend = m.irregularity * _uniform(rs, 3, n)
    shade = 1 + 0.22 * _uniform(rs, n)
    spot = _uniform(rs, 4, n)
    canvas = np.zeros((2, px + 2 * pad, px + 2 * pad), np.float32)
    # Few nuclei of one size at a time, so that their windows are small and fit the CPU cache.
    start = 0
    while start < n:
        half = int(float(nuclei.long_px[start]) * margin) + 1
        edge = 2 * half + 2
        some = slice(start, start + max(_SPRITE_PX // (edge * edge), 1))
        start = some.stop
        center, axis, long_px, short_px = (field[some] for field in nuclei)
        corner = (center + pad).astype(np.int32) - (half + pad)
        at = np.arange(edge, dtype=np.float32)
        shift = corner.astype(np.float32) - center
        dx, dy = (at + shift[:, :1])[:, None, :], (at + shift[:, 1:])[:, :, None]
        ax, ay = axis[:, 0, None, None], axis[:, 1, None, None]
        long_px, short_px = long_px[:, None, None], short_px[:, None, None]
        u = (ax / long_px) * dx + (ay / long_px) * dy
        v = (ax / short_px) * dy - (ay / short_px) * dx
        sprite = _sprite(m, u, v, short_px / long_px, short_px, *(
            field[..., some, None, None] for field in (bend, shade, spot)))  # fmt: skip
        for (x, y), one in zip((corner + pad).tolist(), sprite, strict=True):
            view = canvas[:, y : y + edge, x : x + edge]
            np.maximum(view, one, out=view)
    return canvas[:, pad : pad + px, pad : pad + px]


def _sprite(
    m: Morphology,
    u: np.ndarray,
    v: np.ndarray,
    ratio: np.ndarray,
    short_px: np.ndarray,
    bend: np.ndarray,
    shade: np.ndarray,
    spot: np.ndarray,
) -> np.ndarray:
    """Nuclei in their own coordinates (1 at the outline): float32[n, 2, w, w], as in _paste."""
    q = u * u
    vv = v * v
    cubic = u * (q - 3 * vv)
    cubic *= bend[2]
    q += vv
    lobes = (bend[0] * u + bend[1] * v) * q
    lobes += cubic
    lobes /= 0.5 + 0.5 * q  # far from the outline the square must exceed the cubic
    lobes += q
    sprite = np.empty((u.shape[0], 2, *u.shape[1:]), np.float32)
    # The outline is soft over a fixed width in pixels, for any size of nucleus.
    np.clip((1 - lobes) * (short_px * 0.36) + 0.5, 0, 1, out=sprite[:, 0])
    np.minimum(lobes, 1, out=lobes)
    lobes *= lobes
    profile = (shade * m.vesicularity) * lobes
    profile += shade * (1 - m.vesicularity)
    if m.nucleoli:
        du, dv = u - 0.4 * spot[0], (v - 0.4 * spot[1]) * ratio
        size = 0.2 + 0.06 * spot[2]
        shown = 0.8 * (spot[3] < 2 * m.nucleoli - 1)
        du *= du
        dv *= dv
        profile += shown * np.clip(1.5 - (du + dv) * (1.5 / (size * size)), 0, 1)
    np.multiply(profile, sprite[:, 0], out=sprite[:, 1])
    return sprite


def draw_tissue(
    morphology: Morphology,
    *,
    px: int,
    seed: int,
    class_idx: int,
    slide_idx: int,
    tile_idx: int,
    slide_strength: float,
) -> Tissue:
    """Draw the tissue of a tile. It does not depend on the centre that stains and scans it.

    Args:
        morphology: morphology of the class.
        px: edge of the tile.
        seed: seed of all random draws; the seed and the next three indices determine the tile.
        class_idx: the class.
        slide_idx: the slide of that class.
        tile_idx: the tile of that slide.
        slide_strength: size of the random shifts of density, nuclear size and stain of the slide.
    """
    of_slide = _uniform(random_stream(seed, "slide", class_idx, slide_idx), 4) * slide_strength
    rs = random_stream(seed, "tile", class_idx, slide_idx, tile_idx)
    of_tile = _uniform(rs, 3)
    m = dataclasses.replace(
        morphology,
        radius_px=max(morphology.radius_px * (1 + 0.05 * float(of_slide[0])), 1),
        chromatin=morphology.chromatin * (1 + 0.06 * float(of_slide[1])),
        eosin=morphology.eosin * (1 + 0.06 * float(of_slide[2] + of_tile[0])),
    )
    spacing_px = m.spacing_px * (1 + 0.05 * float(of_slide[3]) + 0.07 * float(of_tile[1]))
    low, mid, fine = _noise(rs, px, 61), _noise(rs, px, 17), _noise(rs, px, 3)
    gland: tuple[np.ndarray, np.ndarray] | None = None  # inside, lumen
    if m.arrangement == "sheet":
        center = _jittered(rs, px, spacing_px, 0.34)
        nuclei = _make_nuclei(rs, m, center, _random_axes(rs, center.shape[0]))
        matrix = 0.6 * mid + 0.4 * _noise(rs, px, 7)
        open_at = low * 0.45 + matrix * 0.55
    else:
        across, strands = _fibres(rs, px)
        matrix = open_at = strands
        if m.arrangement == "fibres":
            nuclei = _fibre_nuclei(rs, m, across, spacing_px)
        else:
            rho, nuclei = _glands(rs, m, px, spacing_px)
            lumen = np.clip((0.32 + 0.12 * mid - rho) * 9, 0, 1)
            gland = np.clip((1.03 - rho) * 16, 0, 1), lumen
    # Empty glass where the matrix is thinnest; ``gaps`` is a share of its range, with a soft cut.
    glass = np.clip((m.gaps * 1.25 - open_at) * 7, 0, 1)
    eosin = m.eosin * (0.45 + matrix * 0.95)
    base = m.basophilia * (0.5 + mid)
    if gland is not None:
        inside, lumen = gland
        glass *= 1 - inside
        glass = np.maximum(glass, lumen)
        apical = m.eosin * (0.5 + 0.45 * mid)
        eosin += (apical - eosin) * inside
        base *= 0.3 + inside
    cover, chromatin = _paste(rs, m, nuclei, px)
    keep = 1 - glass
    eosin *= keep * (1 - 0.55 * cover)
    clumps = 1 + 2 * m.granularity * (0.6 * fine + 0.4 * _noise(rs, px, 5) - 0.5)
    haematoxylin = base * keep * (1 - cover) + m.chromatin * chromatin * clumps
    thickness = (0.88 + 0.24 * low) * 100

    def level(field: np.ndarray) -> np.ndarray:
        return np.clip(field * thickness + 0.5, 0, 255).astype(np.uint8)

    return Tissue(level(haematoxylin), level(eosin * (0.9 + 0.2 * fine)), cover > 0.5)
