"""Synthetic multi-centre H&E-like tiles with known biology and acquisition.

A ``SyntheticConfig`` describes tissue classes (appearance and arrangement of nuclei) and medical
centres (stain vectors, white balance, blur, JPEG quality). ``render_tile`` returns uint8 RGB;
``write_tileset`` writes a tileset of Parquet files. The tiles serve to test robustness metrics
where the truth is known: tissue depends only on (seed, class, slide, tile); staining and scanning
by a centre come afterwards.

Pixels are the same on every machine: tissue is (see ``synthetic_tissue``), staining uses small
tables that are rounded far above the last bit of libm, and blur is integer arithmetic. The JPEG
bytes depend on the JPEG library that Pillow uses.
"""

import dataclasses
import functools
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pathorob_jax.core import faults, files, locks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.progress import Progress
from pathorob_jax.data.parquet_tiles import make_schema
from pathorob_jax.data.synthetic_tissue import Morphology, draw_tissue, random_stream

_ROWS_PER_FILE, _ROWS_PER_GROUP = 512, 256
_COLUMNS = ("slide_id", "patch_id", "biological_class", "medical_center")
_OD_STEPS = 200  # table entries per unit of optical density
_MIN_TILE_PX = 16
_SIDECAR = "_synthetic.json"  # readers of Parquet folders skip names that begin with _


@dataclasses.dataclass(frozen=True)
class CenterSignature:
    """Acquisition of one medical centre: staining and scanning.

    Attributes:
        name: the medical centre.
        haematoxylin: optical density (base 10) in R, G, B per unit of concentration.
        eosin: optical density (base 10) in R, G, B per unit of concentration.
        haematoxylin_strength: factor on the concentration of haematoxylin.
        eosin_strength: factor on the concentration of eosin.
        white: R, G, B of empty glass, in [0, 1].
        blur_passes: number of 3 x 3 binomial filters (each adds half a pixel² of variance).
        jpeg_quality: 1..95, Pillow's scale.
    """

    name: str
    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    haematoxylin_strength: float = 1.0
    eosin_strength: float = 1.0
    white: tuple[float, float, float] = (0.96, 0.96, 0.96)
    blur_passes: int = 1
    jpeg_quality: int = 85

    def __post_init__(self):
        if not (self.blur_passes >= 0 and 1 <= self.jpeg_quality <= 95):
            raise InputError(
                f"centre {self.name!r}: expected blur_passes >= 0 and jpeg_quality in 1..95, "
                f"found {self.blur_passes} and {self.jpeg_quality}."
            )


CLASSES = (
    Morphology(
        "stroma", "fibres", spacing_px=36, radius_px=5.2, elongation=3.8, size_variation=0.2,
        chromatin=0.95, granularity=0.2, vesicularity=0.1, eosin=0.42, basophilia=0.04, gaps=0.24,
    ),
    Morphology(
        "gland", "glands", spacing_px=12.5, radius_px=6.6, elongation=1.7, size_variation=0.12,
        irregularity=0.05, chromatin=0.85, granularity=0.3, eosin=0.36, basophilia=0.12, gaps=0.22,
    ),
    Morphology(
        "tumor", "sheet", spacing_px=31, radius_px=11, elongation=1.35, size_variation=0.34,
        irregularity=0.24, chromatin=0.85, granularity=0.55, vesicularity=0.4, nucleoli=0.75,
        eosin=0.38, basophilia=0.16, gaps=0.2,
    ),
    Morphology(
        "lymphocytes", "sheet", spacing_px=16, radius_px=6.2, elongation=1.1, size_variation=0.14,
        irregularity=0.05, chromatin=1.1, granularity=0.4, vesicularity=0.05, eosin=0.24,
        basophilia=0.06, gaps=0.34,
    ),
)  # fmt: skip
CENTERS = (
    CenterSignature(
        "North Hospital", haematoxylin=(0.61, 0.73, 0.30), eosin=(0.07, 0.86, 0.40),
        haematoxylin_strength=0.95, white=(0.97, 0.94, 0.96), blur_passes=1, jpeg_quality=90,
    ),
    CenterSignature(
        "Lakeside Clinic", haematoxylin=(0.74, 0.65, 0.22), eosin=(0.30, 0.74, 0.24),
        haematoxylin_strength=0.95, white=(0.92, 0.93, 0.97), blur_passes=3, jpeg_quality=80,
    ),
    CenterSignature(
        "Saint Orla", haematoxylin=(0.68, 0.66, 0.32), eosin=(0.14, 0.72, 0.40),
        haematoxylin_strength=0.66, eosin_strength=0.62, white=(0.98, 0.98, 0.97), blur_passes=2,
        jpeg_quality=70,
    ),
    CenterSignature(
        "Harbor Institute", haematoxylin=(0.60, 0.70, 0.48), eosin=(0.16, 0.70, 0.60),
        haematoxylin_strength=1.2, eosin_strength=1.15, white=(0.97, 0.94, 0.88), blur_passes=0,
        jpeg_quality=95,
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """A tileset: ``n_slides`` slides per class and centre, ``n_tiles`` tiles per slide.

    Attributes:
        classes: tissue of each class; names are unique among classes and centres together.
        centers: acquisition of each centre.
        n_slides: slides of each (class, centre) cell.
        n_tiles: tiles of each slide.
        tile_px: edge of a tile; changes the field of view, not the magnification.
        seed: seed of all random draws.
        slide_strength: size of the random shifts of density, nuclear size and stain of each slide;
            1 = up to about 10 %, 0 = none.
    """

    classes: tuple[Morphology, ...] = CLASSES
    centers: tuple[CenterSignature, ...] = CENTERS
    n_slides: int = 3
    n_tiles: int = 24
    tile_px: int = 256
    seed: int = 0
    slide_strength: float = 1.0

    def __post_init__(self):
        if not self.classes or not self.centers:
            raise InputError("classes and centers: expected at least one of each.")
        named = [*(c.name for c in self.classes), *(c.name for c in self.centers)]
        names = [_slug(name) for name in named]
        shared = sorted({name for name in names if names.count(name) > 1})
        if shared or "" in names:
            raise InputError(
                "classes and centers: expected names that differ from one another in letters or "
                f"digits, found more than once or empty: {', '.join(shared) or repr('')}."
            )
        lowest = {"n_slides": 1, "n_tiles": 1, "tile_px": _MIN_TILE_PX, "seed": 0}
        for field, low in lowest.items():
            if getattr(self, field) < low:
                raise InputError(f"{field}: expected >= {low}, found {getattr(self, field)}.")
        if not 0 <= self.slide_strength <= 5:
            raise InputError(f"slide_strength: expected 0..5, found {self.slide_strength}.")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@functools.lru_cache(maxsize=64)
def _transmittance(white: float, n: int) -> np.ndarray:
    """uint8[n]: pixel value behind an optical density of i / 200."""
    table = [round(255 * white * 10 ** (-i / _OD_STEPS)) for i in range(n)]
    return np.clip(np.array(table), 0, 255).astype(np.uint8)


def _stain(config: SyntheticConfig, *, class_idx: int, center_idx: int, slide_idx: int) -> list:
    """[3][2] integers: optical density in R, G, B of a level of each stain, in 1/256 table steps.

    Includes the random shift of the slide in strength and colour of both stains.
    """
    center = config.centers[center_idx]
    rs = random_stream(config.seed, "stain", class_idx, center_idx, slide_idx)
    shift = (rs.random_sample((2, 4)) * 2 - 1) * config.slide_strength
    gains = (center.haematoxylin_strength, center.eosin_strength)
    return [
        [
            round(2.56 * _OD_STEPS * max(vector[channel] + 0.035 * float(own[channel]), 0)
                  * gain * (1 + 0.12 * float(own[3])))
            for vector, gain, own in zip(
                (center.haematoxylin, center.eosin), gains, shift, strict=True)
        ]
        for channel in range(3)
    ]  # fmt: skip


def _blur(pixels: np.ndarray) -> np.ndarray:
    """One 3 x 3 binomial filter with repeated borders, uint8 -> uint8, in integer arithmetic."""
    wide = np.pad(pixels, ((1, 1), (0, 0), (0, 0)), mode="edge").astype(np.uint16)
    rows = wide[:-2] + wide[2:]
    rows += wide[1:-1] << 1
    wide = np.pad(rows, ((0, 0), (1, 1), (0, 0)), mode="edge")
    out = wide[:, :-2] + wide[:, 2:]
    out += wide[:, 1:-1] << 1
    return ((out + 8) >> 4).astype(np.uint8)


def render_tile(
    config: SyntheticConfig, *, class_idx: int, center_idx: int, slide_idx: int, tile_idx: int
) -> np.ndarray:
    """Render one tile as scanned by a centre, before JPEG compression.

    Args:
        config: the tileset.
        class_idx: position in ``config.classes``.
        center_idx: position in ``config.centers``.
        slide_idx: a slide of the class, >= 0. Its tissue does not depend on ``center_idx``: the
            same slide can be rendered by any centre. In the tileset each centre has different
            slides, from ``center_idx * n_slides`` on.
        tile_idx: a tile of the slide, >= 0.

    Returns:
        uint8[tile_px, tile_px, 3], RGB, equal on every machine.
    """
    tissue = draw_tissue(
        config.classes[class_idx],
        px=config.tile_px,
        seed=config.seed,
        class_idx=class_idx,
        slide_idx=slide_idx,
        tile_idx=tile_idx,
        slide_strength=config.slide_strength,
    )
    center = config.centers[center_idx]
    weights = _stain(config, class_idx=class_idx, center_idx=center_idx, slide_idx=slide_idx)
    h, e = tissue.haematoxylin.astype(np.int32), tissue.eosin.astype(np.int32)
    pixels = np.empty((config.tile_px, config.tile_px, 3), np.uint8)
    for channel, (of_h, of_e) in enumerate(weights):
        table = _transmittance(center.white[channel], (255 * (of_h + of_e) >> 8) + 1)
        pixels[:, :, channel] = table[(h * of_h + e * of_e) >> 8]
    for _ in range(center.blur_passes):
        pixels = _blur(pixels)
    return pixels


class _Cell(NamedTuple):
    """The origin of a tile of the tileset; indices as in ``render_tile``."""

    class_idx: int
    center_idx: int
    slide_idx: int
    tile_idx: int


def _cells(config: SyntheticConfig) -> Iterator[_Cell]:
    """All tiles in row order: by centre, class, slide, tile."""
    for center_idx in range(len(config.centers)):
        for class_idx in range(len(config.classes)):
            for slide_idx in range(config.n_slides):
                for tile_idx in range(config.n_tiles):
                    own_idx = center_idx * config.n_slides + slide_idx
                    yield _Cell(class_idx, center_idx, own_idx, tile_idx)


def _row(config: SyntheticConfig, cell: _Cell) -> dict:
    """A row of the tileset: the encoded tile and its labels."""
    center, morphology = config.centers[cell.center_idx], config.classes[cell.class_idx]
    slide = cell.slide_idx - cell.center_idx * config.n_slides + 1
    slide_id = f"{_slug(center.name)}-{_slug(morphology.name)}-{slide:02d}"
    patch_id = f"{cell.tile_idx:04d}"
    stream = io.BytesIO()
    pixels = render_tile(config, **cell._asdict())
    Image.fromarray(pixels).save(stream, "JPEG", quality=center.jpeg_quality)
    return {
        "image": {"bytes": stream.getvalue(), "path": f"{slide_id}-{patch_id}.jpg"},
        "slide_id": slide_id,
        "patch_id": patch_id,
        "biological_class": morphology.name,
        "medical_center": center.name,
    }


def _write_files(folder: str, config: SyntheticConfig) -> int:
    cells = list(_cells(config))
    schema, n_files = make_schema(_COLUMNS), -(-len(cells) // _ROWS_PER_FILE)
    with Progress("synthesize", total=len(cells), unit="tile") as progress:
        for i in range(n_files):
            path = files.join(folder, f"train-{i:05d}-of-{n_files:05d}.parquet")
            of_file = cells[i * _ROWS_PER_FILE :][:_ROWS_PER_FILE]
            with pq.ParquetWriter(path, schema, compression="none") as writer:
                for start in range(0, len(of_file), _ROWS_PER_GROUP):
                    rows = []
                    for cell in of_file[start:][:_ROWS_PER_GROUP]:
                        rows.append(_row(config, cell))
                        progress.update(1)
                    writer.write_table(pa.Table.from_pylist(rows, schema))
    # Written last: a folder with this file is a complete tileset of this module.
    files.write_json(files.join(folder, _SIDECAR), _about(config, len(cells)))
    return len(cells)


def _about(config: SyntheticConfig, n_tiles: int) -> dict:
    return {"schema_version": 1, "n_tiles": n_tiles, "config": dataclasses.asdict(config)}


def is_written(path: str, config: SyntheticConfig) -> bool:
    """Whether the whole tileset of a configuration is at ``path``."""
    where, wanted = files.join(path, _SIDECAR), _about(config, n_tiles(config))
    try:
        return bool(files.read_json(where) == json.loads(json.dumps(wanted)))
    except (InputError, OSError):
        return False


def n_tiles(config: SyntheticConfig) -> int:
    """Number of tiles of a tileset."""
    return sum(1 for _ in _cells(config))


def draw_sample(config: SyntheticConfig, n: int) -> Iterator[dict]:
    """At most ``n`` rows of a tileset, from all over it, drawn as they are asked for."""
    cells = list(_cells(config))
    yield from (_row(config, cell) for cell in cells[:: -(-len(cells) // n)])


def write_tileset(path: str, config: SyntheticConfig, *, overwrite: bool = False) -> int:
    """Write a tileset of Parquet files, completely or not at all.

    Columns: ``image`` (struct of JPEG ``bytes`` and ``path``, the Image feature of the ``datasets``
    library) and the strings ``slide_id, patch_id, biological_class, medical_center``. Rows are
    ordered by centre, class, slide, tile. The file ``_synthetic.json`` records the configuration.

    Args:
        path: a local folder; new or empty.
        config: the tileset.
        overwrite: replace a tileset that this function wrote at ``path`` before.

    Returns:
        Number of tiles.

    Raises:
        InputError: ``path`` is remote, a file, or a folder with content that may not be replaced;
            another process writes it, or it cannot be written.
    """
    if files.is_remote(path):
        raise InputError(f"{path}: expected a local folder; write there and copy it.")
    path = os.path.realpath(os.path.expanduser(path))
    if os.path.lexists(path) and not os.path.isdir(path):
        raise InputError(f"{path}: expected a folder or nothing, found a file.")
    found = sorted(os.listdir(path)) if os.path.isdir(path) else []
    if found and not overwrite:
        raise InputError(
            f"{path}: expected no folder or an empty one, found {len(found)} entries "
            f"({found[0]}, ...); choose another path or allow overwriting."
        )
    if found and _SIDECAR not in found:
        raise InputError(
            f"{path}: expected a synthetic tileset to overwrite, found a folder without "
            f"{_SIDECAR}; nothing was removed. Choose another path."
        )
    parent, name = os.path.split(path)
    work = files.join(parent, f".{name}.partial")
    with faults.writing(path):
        lock = locks.acquire(files.join(parent, f".{name}.lock"), doing="writing this tileset")
        try:
            # What a killed run left.
            shutil.rmtree(work, ignore_errors=True)
            os.makedirs(work)
            return _write_and_move(path, work, config)
        finally:
            lock.release()


def _write_and_move(path: str, work: str, config: SyntheticConfig) -> int:
    """Write a tileset in the folder ``work``, which is removed, and move it to ``path``."""
    try:
        fresh = files.join(work, "new")
        os.mkdir(fresh)
        n_tiles = _write_files(fresh, config)
        files.put_folder(fresh, path, aside=files.join(work, "old"))
    finally:
        shutil.rmtree(work)
    return n_tiles
