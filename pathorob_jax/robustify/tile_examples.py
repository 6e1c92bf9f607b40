"""Tiles before and after a stain normalisation, as small pictures of every centre.

``<folder>/examples/<i>.png`` shows tiles of one centre, before above after; ``examples.json`` names
the centres, the tissue of these tiles, and what became of all tiles. They are written where the
tiles are at hand: into a store that is extracted with a robustifier, and into a normalised tileset.
"""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pathorob_jax.core import digests, files, sealed_files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Array, UInt8
from pathorob_jax.data import decode
from pathorob_jax.data.decode import TileError
from pathorob_jax.data.manifest import CENTER
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.robustify import reinhard

FOLDER, INFO = "examples", "examples.json"
SCHEMA_VERSION = 1
# Tiles of a centre, and the side of one in pixels; centres beyond these have no picture.
N_TILES, TILE_PX, MAX_CENTERS = 6, 96, 12

Normalize = Callable[[np.ndarray, np.ndarray], tuple[Array, Array]]
"""uint8[n, H, W, 3] and their rows -> uint8[n, H, W, 3], and what became of each."""


class Example(NamedTuple):
    """Tiles of one centre.

    Attributes:
        center: its name.
        counts: all tiles of the centre by what became of them.
        tissue_before: share of tissue of each tile that is shown.
        tissue_after: the same, normalised.
        image: uint8[2 H, n W, 3] tiles before, above the same after.
    """

    center: str
    counts: dict[str, int]
    tissue_before: list[float]
    tissue_after: list[float]
    image: UInt8[np.ndarray, "h w 3"]


def write_examples(
    folder: str, tileset: Tileset, normalize: Normalize, counts: dict[str, dict[str, int]]
) -> None:
    """Write tiles of every centre before and after.

    Args:
        folder: of the store or tileset.
        tileset: the tiles as they are.
        normalize: of a fitted robustifier.
        counts: ``tile_transform.count_outcomes`` of all tiles.
    """
    found = []
    centers = tileset.manifest.factorize(CENTER)
    for i, name in enumerate(centers.names[:MAX_CENTERS]):
        tiles = _read_spread(tileset, np.flatnonzero(centers.ids == i))
        pairs = [
            (tile, np.asarray(normalize(tile[None], np.array([row]))[0])[0]) for row, tile in tiles
        ]
        columns = [np.concatenate([_shrink(tile) for tile in pair]) for pair in pairs]
        picture = np.concatenate(columns, axis=1) if columns else np.zeros((0, 0, 3), np.uint8)
        data = _encode(picture) if columns else b""
        files.write_bytes(files.join(folder, FOLDER, f"{i}.png"), data)
        found.append(
            {
                "center": name,
                "counts": counts[name],
                "tissue_before": [_tissue_share(before) for before, _ in pairs],
                "tissue_after": [_tissue_share(after) for _, after in pairs],
                "sha256": digests.digest(data),
            }
        )
    value = {"schema_version": SCHEMA_VERSION, "centers": found}
    sealed_files.write_json(files.join(folder, FOLDER, INFO), value)


def read_examples(folder: str) -> list[Example]:
    """Read the pictures of a store, a tileset or a result back; none if there are none.

    Raises:
        InputError: they are not as they were written.
    """
    path = files.join(folder, FOLDER, INFO)
    if not files.exists(path):
        return []
    value = sealed_files.read_json(path, schema_version=SCHEMA_VERSION)
    out = []
    for i, about in enumerate(value["centers"]):
        place = files.join(folder, FOLDER, f"{i}.png")
        data = files.read_bytes(place) if files.exists(place) else None
        if data is None or digests.digest(data) != about["sha256"]:
            raise InputError(f"{place}: {sealed_files.NOT_AS_WRITTEN}.")
        if data:
            fields = {name: about[name] for name in Example._fields[:-1]}
            out.append(Example(**fields, image=np.asarray(Image.open(io.BytesIO(data)))))
    return out


def copy_examples(source: str, target: str) -> bool:
    """Copy the pictures of a store to a result; whether there are some.

    Raises:
        InputError: they are not as they were written.
    """
    if not read_examples(source):
        return False
    names = files.list_files(files.join(source, FOLDER))
    for name in sorted(names, key=lambda name: name == INFO):
        data = files.read_bytes(files.join(source, FOLDER, name))
        files.write_bytes(files.join(target, FOLDER, name), data)
    return True


def _read_spread(
    tileset: Tileset, rows: np.ndarray
) -> list[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
    """A few of the rows, far apart, with their tiles; those that cannot be decoded are left out."""
    wanted = np.unique(np.linspace(0, len(rows) - 1, min(N_TILES, len(rows))).round().astype(int))
    out: list[Any] = []
    for row in rows[wanted].tolist():
        try:
            tile = decode.decode_tile(*tileset.reader.read(row), image_range=tileset.image_range)
        except TileError:
            continue
        out.append((row, tile))
    return out


def _shrink(tile: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    picture = Image.fromarray(tile)
    return np.asarray(picture.resize((TILE_PX, TILE_PX), Image.Resampling.BOX))


def _tissue_share(tile: UInt8[np.ndarray, "H W 3"]) -> float:
    found = reinhard.measure_colors(tile[None])
    return float(found.n_pixels[0]) / (tile.shape[0] * tile.shape[1])


def _encode(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "PNG", optimize=True)
    return sink.getvalue()
