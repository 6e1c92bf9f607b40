"""Pictures of a few patches of a map, each beside its nearest of two kinds.

SO: of its class at other centres. OS: of other classes at its centre. Where OS looks more alike
than SO, the reader sees what the index counts.
"""

import base64
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging
from markupsafe import Markup, escape
from PIL import Image

from pathorob_jax.data import decode
from pathorob_jax.data.decode import TileError
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.results.map_files import N_NEAREST, NEAREST

# Patches of a map that are shown, and the side of a picture in pixels.
N_SHOWN, SIDE = 4, 96
_QUALITY = 70


def draw_tiles(table: pa.Table, tiles: Tileset, order: np.ndarray) -> Markup:
    """A few patches, evenly spread over classes and centres, with their nearest.

    Args:
        table: map, as of ``map_files.read_map``.
        tiles: tileset that holds the patches.
        order: rows of the map by class and centre, in the order of its points.
    """
    if NEAREST[0] not in table.column_names:
        return Markup("<p>No tiles: the map is of an older version; make it again.</p>")
    keys = zip(tiles.manifest.column(SLIDE), tiles.manifest.column(PATCH), strict=True)
    places = {(str(slide), str(patch)): row for row, (slide, patch) in enumerate(keys)}
    rows = table.select([SLIDE, PATCH, CLASS, CENTER]).to_pylist()
    nearest = np.stack([table.column(name).to_numpy() for name in NEAREST], axis=1)
    # The middles of equal parts: no patch is chosen for how it looks.
    chosen = np.unique((np.arange(N_SHOWN) + 0.5) * len(order) / N_SHOWN).astype(int)
    parts = []
    for point in np.unique(chosen):
        row = int(order[point])
        try:
            parts.append(_draw_patch(rows, row, nearest[row], tiles, places, int(point)))
        except (KeyError, TileError) as error:
            logging.warning("%s: no picture of a patch of a map (%s).", tiles.path, error)
    if not parts:
        return Markup("<p>No tiles: the tileset has not the patches of this map.</p>")
    words = (
        "Patches and their nearest in the embedding, outside their slide: blue frames, of the same "
        "class at other centres (SO); orange frames, of other classes at the same centre (OS)."
    )
    return Markup("".join(['<div class="patches">', f"<p>{words}</p>", *parts, "</div>"]))


def _draw_patch(
    rows: list[dict[str, Any]],
    row: int,
    nearest: np.ndarray,
    tiles: Tileset,
    places: dict[tuple[str, str], int],
    point: int,
) -> str:
    groups: list[tuple[str, Iterable[int]]] = [("", [row])]
    groups += [("so-tile", nearest[:N_NEAREST]), ("os-tile", nearest[N_NEAREST:])]
    parts = [f'<div class="tiles" data-point="{point}">']
    for kind, members in groups:
        parts.append(f'<div class="{kind}">')
        for member in members:
            if member >= 0:
                one = rows[int(member)]
                words = f"{one[CLASS]}, {one[CENTER]}"
                picture = _encode(tiles, places[str(one[SLIDE]), str(one[PATCH])])
                label = f"Patch of slide {one[SLIDE]}: {words}"
                parts.append(
                    f'<figure><img alt="{escape(label)}" title="{escape(label)}" '
                    f'src="data:image/jpeg;base64,{picture}">'
                    f'<figcaption dir="auto">{escape(words)}</figcaption></figure>'
                )
        parts.append("</div>")
    return "".join([*map(str, parts), "</div>"])


def _encode(tiles: Tileset, row: int) -> str:
    tile = decode.decode_tile(*tiles.reader.read(row), image_range=tiles.image_range)
    stream = io.BytesIO()
    Image.fromarray(tile).resize((SIDE, SIDE)).save(stream, "JPEG", quality=_QUALITY)
    return base64.b64encode(stream.getvalue()).decode()
