"""Figures of embedding maps, coloured by class and by centre side by side.

The tables that ``evaluation.embedding_maps`` wrote become files of the report. Readers should
compare whether the colours are separated in the left column (classes) or in the right column
(centres).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from absl import logging
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER, CLASS
from pathorob_jax.report import figure_files, figure_layout, palette
from pathorob_jax.report.section import encode_name
from pathorob_jax.results.map_files import WHOLE, read_map

_PANEL, _WIDTH, _LEGEND_LINE = 4.0, 9.5, 0.19
_MARKERS = "o^sDvPX"
_N_COLORS = 7
_METHODS = (("tsne", "t-SNE"), ("pca", "principal components"))


class MapFile(NamedTuple):
    """The figure of a map in the report.

    Attributes:
        path: relative to the folder of the report.
        words: which rows the map shows.
        is_checked: False if the table was read from a file without a digest.
    """

    path: str
    words: str
    is_checked: bool


def write_maps(results: str, model: str, dataset: str, output: str) -> list[MapFile]:
    """Draw every map of a model on a dataset; a damaged one is left out with a warning.

    Args:
        results: root of the results, with ``<model>/<dataset>/maps/*.parquet``.
        model: model of the maps.
        dataset: dataset of the maps.
        output: folder of the report.

    Returns:
        The files ``figures/maps/<model>/<dataset>/<name>``, that of the whole dataset first; empty
        if there are no maps.
    """
    folder = files.join(results, model, dataset, "maps")
    if not files.exists(folder):
        return []
    names = [name.removesuffix(".parquet") for name in files.list_files(folder, ".parquet")]
    written = []
    for name in sorted(names, key=lambda name: (name != WHOLE, name)):
        try:
            found = read_map(files.join(folder, f"{name}.parquet"))
        except InputError as error:
            logging.warning("%s The report has no such map.", error)
            continue
        with figure_files.drawing_style():
            suffix, data = figure_files.to_file(draw_map(f"{model}: {found.title}", found.table))
        place = [encode_name(part) for part in (model, dataset, name)]
        path = files.join("figures/maps", *place) + suffix
        files.write_bytes(files.join(output, path), data)
        # The other names are combination_<number>.
        words = "whole dataset" if name == WHOLE else name.replace("_", " ")
        written.append(MapFile(path, words, found.is_checked))
    return written


def draw_map(title: str, table: pa.Table) -> Figure:
    """Draw four panels: t-SNE on top, principal components below; class left, centre right.

    Args:
        title: title of the figure.
        table: columns of ``map_files.read_map``.
    """
    labels = [
        (words, [str(v) for v in table.column(name).to_pylist()])
        for name, words in ((CLASS, "biological class"), (CENTER, "medical centre"))
    ]
    n_lines = max(math.ceil(len(set(values)) / 2) for _, values in labels)
    legend = 0.3 + n_lines * _LEGEND_LINE
    height = 2 * (_PANEL + 0.3) + legend + 0.5
    figure = Figure(figsize=(_WIDTH, height))
    for row, (key, method) in enumerate(_METHODS):
        points = np.stack([table.column(f"{key}_{i}").to_numpy() for i in (1, 2)], axis=1)
        for column, (words, values) in enumerate(labels):
            x = 0.3 + column * (_PANEL + 0.6)
            y = legend + (1 - row) * (_PANEL + 0.3)
            axes = figure.add_axes((x / _WIDTH, y / height, _PANEL / _WIDTH, _PANEL / height))
            _draw_points(axes, points, values)
            axes.set_title(f"{method}, by {words}", fontsize=8, loc="left")
            if row == 1:
                axes.legend(
                    loc="upper left",
                    bbox_to_anchor=(-0.02, -0.02),
                    ncols=2,
                    fontsize=7,
                    frameon=False,
                    markerscale=2.5,
                )
    figure.text(
        0.3 / _WIDTH,
        1 - 0.22 / height,
        figure_layout.shorten(title, length=110),
        fontweight="bold",
        fontsize=9,
    )
    return figure


def _draw_points(axes: Axes, points: np.ndarray, values: Sequence[str]) -> None:
    """Draw the points of each value in its colour, in sorted order of the values."""
    value_of_point = np.asarray(values)
    for i, value in enumerate(sorted(set(values))):
        inside = value_of_point == value
        name = figure_layout.shorten(value, length=28)
        axes.plot(
            points[inside, 0],
            points[inside, 1],
            linestyle="none",
            marker=_MARKERS[i // _N_COLORS % len(_MARKERS)],
            markersize=2.2,
            markeredgewidth=0,
            alpha=0.7,
            rasterized=True,  # in an SVG thousands of points would be as many elements
            color=str(palette.line_style(i)["color"]),
            # matplotlib leaves labels that begin with an underscore out of the legend.
            label=f"\u200b{name}" if name.startswith("_") else name,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
