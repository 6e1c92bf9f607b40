"""Figures of embedding maps, coloured by class and by centre side by side.

The tables that ``evaluation.embedding_maps`` wrote become PNG files. Readers should compare whether
the colours are separated in the left column (classes) or in the right column (centres).
"""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathorob_jax.core import files
from pathorob_jax.data.manifest import CENTER, CLASS
from pathorob_jax.report import figure_files, figure_layout, palette
from pathorob_jax.results.map_files import read_map

_PANEL, _WIDTH, _LEGEND_LINE = 4.0, 9.5, 0.19
_MARKERS = "o^sDvPX"
_N_COLORS = 7
_METHODS = (("tsne", "t-SNE"), ("pca", "principal components"))


def write_maps(results: str, model: str, dataset: str, output: str) -> list[str]:
    """Draw every map of a model on a dataset.

    Args:
        results: root of the results, with ``<model>/<dataset>/maps/*.parquet``.
        model: model of the maps.
        dataset: dataset of the maps.
        output: folder for the figures.

    Returns:
        Paths of the PNG files, ``<output>/map_<model>_<dataset>_<name>.png``; empty if there are no
        maps.
    """
    folder = files.join(results, model, dataset, "maps")
    if not files.exists(folder):
        return []
    written = []
    for name in files.list_files(folder, ".parquet"):
        title, table = read_map(files.join(folder, name))
        path = files.join(output, f"map_{model}_{dataset}_{name.removesuffix('.parquet')}.png")
        with figure_files.drawing_style():
            files.write_bytes(path, figure_files.to_png(draw_map(f"{model}: {title}", table)))
        written.append(path)
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
        parse_math=False,
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
            color=str(palette.line_style(i)["color"]),
            # matplotlib leaves labels that begin with an underscore out of the legend.
            label=f"\u200b{name}" if name.startswith("_") else name,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
