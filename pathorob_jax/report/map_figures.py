"""Maps of embeddings as markup, coloured by class and by centre side by side.

A map is two sets of points (t-SNE, principal components), each drawn twice. The points of a class
at a centre are one path, so that a map of 2,000 patches takes less than 60 kB. The page's script
says what lies under the pointer. Readers should compare whether the colours are separated in the
left column (classes) or in the right column (centres).
"""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from absl import logging
from markupsafe import Markup, escape

from pathorob_jax.core import digests, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.report import figure_layout, palette
from pathorob_jax.report.map_tiles import draw_tiles
from pathorob_jax.report.section import encode_name
from pathorob_jax.results.attention_files import FOLDER as ATTENTION_FOLDER
from pathorob_jax.results.map_files import WHOLE, read_map

SIDE, MARGIN = 1000, 24
# Of a result folder.
MAPS = "maps"
_METHODS = (("tsne", "t-SNE"), ("pca", "principal components"))
_BY = ((CLASS, "biological class", "k"), (CENTER, "medical centre", "z"))


class MapView(NamedTuple):
    """A map.

    Attributes:
        model: of the embeddings.
        words: which rows it shows.
        is_checked: False if its table was read from a file without a digest.
        markup: the map.
        path: of its own page, relative to the folder of the report, without suffix.
    """

    model: str
    words: str
    is_checked: bool
    markup: Markup
    path: str


def list_pictures(results: str, model: str, dataset: str) -> list[str]:
    """Paths of the tables that a report draws beside records: maps, and what classifiers see."""
    folder = files.join(results, model, dataset)
    tops = [files.join(folder, name) for name in (MAPS, ATTENTION_FOLDER)]
    return [path for top in tops if files.exists(top) for path in _list_tables(top)]


def _list_tables(folder: str) -> Iterator[str]:
    yield from (files.join(folder, name) for name in sorted(files.list_files(folder, ".parquet")))
    for name in files.list_folders(folder):
        yield from _list_tables(files.join(folder, name))


def list_maps(
    results: str, model: str, dataset: str, tiles: Tileset | None = None
) -> list[MapView]:
    """Draw every map of a model on a dataset; a damaged one is left out with a warning.

    Args:
        results: root of the results, with ``<model>/<dataset>/maps/*.parquet``.
        model: model of the maps.
        dataset: dataset of the maps.
        tiles: tileset of the patches, for pictures of a few and of their nearest; None: none.

    Returns:
        The maps, that of the whole dataset first; empty if there are none.
    """
    folder = files.join(results, model, dataset, MAPS)
    if not files.exists(folder):
        return []
    names = [name.removesuffix(".parquet") for name in files.list_files(folder, ".parquet")]
    views = []
    for name in sorted(names, key=lambda name: (name != WHOLE, name)):
        try:
            found = read_map(files.join(folder, f"{name}.parquet"))
        except InputError as error:
            logging.warning("%s The report has no such map.", error)
            continue
        place = [encode_name(part) for part in (model, dataset, name)]
        # The other names are combination_<number>.
        words = "whole dataset" if name == WHOLE else name.replace("_", " ")
        markup = draw_map(f"{model}: {found.title}", found.table, tiles)
        path = files.join("figures/maps", *place)
        views.append(MapView(model, words, found.is_checked, markup, path))
    return views


def draw_map(title: str, table: pa.Table, tiles: Tileset | None = None) -> Markup:
    """Draw four pictures: t-SNE on top, principal components below; class left, centre right.

    Args:
        title: of the map, for screen readers.
        table: columns of ``map_files.read_map``.
        tiles: tileset of the patches; None: no pictures of them.
    """
    columns = {n: [str(v) for v in table.column(n).to_pylist()] for n in (CLASS, CENTER, SLIDE)}
    names = {n: sorted(set(values)) for n, values in columns.items()}
    ids = {n: np.searchsorted(names[n], columns[n]) for n in columns}
    # By class, centre and slide: each cell is one run of rows, and each of its slides too.
    order = np.lexsort((ids[SLIDE], ids[CENTER], ids[CLASS]))
    pairs = np.stack([ids[CLASS][order], ids[CENTER][order]], axis=1)
    starts = np.flatnonzero(np.r_[True, (np.diff(pairs, axis=0) != 0).any(axis=1)])
    cells = [order[a:b] for a, b in zip(starts, [*starts[1:], len(order)], strict=True)]
    mark = f"m{digests.digest(repr((title, table.num_rows)).encode())[:8]}"
    data = {
        "id": mark,
        "classes": names[CLASS],
        "centers": names[CENTER],
        "slides": names[SLIDE],
        "cells": [
            [int(ids[CLASS][rows[0]]), int(ids[CENTER][rows[0]]), _runs(ids[SLIDE][rows])]
            for rows in cells
        ],
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for sign, written in (("&", "&amp;"), ("'", "&#39;"), ("<", "&lt;")):
        text = text.replace(sign, written)
    parts = [f'<div class="map" data-map=\'{text}\'><svg class="defs" width="0" height="0" ']
    parts.append('aria-hidden="true"><defs>')
    for key, _ in _METHODS:
        xy = np.stack([table.column(f"{key}_{i}").to_numpy() for i in (1, 2)], axis=1)
        places = place_points(xy)
        for number, rows in enumerate(cells):
            parts.append(f'<path id="{mark}{key[0]}{number}" d="{write_path(places[rows])}"/>')
    parts.append("</defs></svg>")
    for key, method in _METHODS:
        for column, words, prefix in _BY:
            by = (column, words, prefix)
            parts += _draw_picture(title, (key, method), by, names, ids, cells, mark)
    parts.append('<p class="said" aria-live="polite"></p>')
    if tiles is not None:
        parts.append(draw_tiles(table, tiles, order))
    return Markup("".join([*map(str, parts), "</div>"]))


def _draw_picture(
    title: str,
    method: tuple[str, str],
    by: tuple[str, str, str],
    names: dict[str, list[str]],
    ids: dict[str, np.ndarray],
    cells: Sequence[np.ndarray],
    mark: str,
) -> Iterator[str]:
    (key, method_words), (column, words, prefix) = method, by
    label = _drawable(f"{title}: {method_words}, by {words}")
    ends = f"{-MARGIN} {-MARGIN} {SIDE + 2 * MARGIN} {SIDE + 2 * MARGIN}"
    yield (
        f'<figure><svg viewBox="{ends}" role="img" tabindex="0" data-method="{key[0]}" '
        f'aria-label="{escape(label)}">'
    )
    for number, rows in enumerate(cells):
        style = class_of(prefix, int(ids[column][rows[0]]))
        yield f'<use class="{style}" href="#{mark}{key[0]}{number}"/>'
    yield '<circle class="here" r="18" cx="-999" cy="-999"/></svg>'
    yield f"<figcaption><b>{method_words}, by {words}</b> "
    if key == _METHODS[0][0]:
        for i, name in enumerate(names[column]):
            yield (
                '<span dir="auto"><svg class="swatch" viewBox="-12 -12 24 24" aria-hidden="true">'
                f'<path class="{class_of(prefix, i)}" d="M0 0z"/></svg>'
                f"{escape(_drawable(name))}</span>"
            )
    yield "</figcaption></figure>"


def class_of(prefix: str, number: int) -> str:
    """Class of a value by its place: its colour, then its shape."""
    colors = palette.CLASS_COLORS if prefix == "k" else palette.CENTER_COLORS
    shape = number // len(colors) % len(palette.SHAPES)
    return f"{prefix}{number % len(colors)} s{shape}"


def place_points(xy: np.ndarray) -> np.ndarray:
    """int64[N, 2] within a square of ``SIDE``, to one scale, upwards as on a graph."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    scale = SIDE / (float((high - low).max()) or 1.0)
    places = (xy - (low + high) / 2) * scale + SIDE / 2
    places[:, 1] = SIDE - places[:, 1]
    return np.rint(places).astype(np.int64)


def write_path(places: np.ndarray) -> str:
    """A dot at each place: a closed line of no length, from the place before."""
    steps = np.diff(places, axis=0, prepend=[[0, 0]]).tolist()
    return "".join(f"m{dx}{'' if dy < 0 else ' '}{dy}z" for dx, dy in steps)


def _drawable(text: str) -> str:
    """A text without characters that no page can hold."""
    return figure_layout.shorten(text, length=10_000)


def _runs(values: np.ndarray) -> list[int]:
    """Runs of equal values as value, length, value, length ..."""
    starts = np.flatnonzero(np.r_[True, np.diff(values) != 0])
    lengths = np.diff(np.r_[starts, len(values)])
    return [int(v) for pair in zip(values[starts], lengths, strict=True) for v in pair]
