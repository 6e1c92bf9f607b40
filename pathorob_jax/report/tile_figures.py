"""Tiles before and after a stain normalisation: the figure and the table of one model."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from pathorob_jax.embeddings.tile_transform import Outcome
from pathorob_jax.report import figure_layout
from pathorob_jax.report.table_cells import Cell, Row, Table, format_share, sort_key
from pathorob_jax.robustify.tile_examples import N_TILES, Example

_WIDTH, _TILE, _LEFT = 9.5, 1.25, 1.85
COLUMNS = (
    (Outcome.NORMALIZED, "normalised"),
    (Outcome.BY_SLIDE, "by their slide’s stains"),
    (Outcome.BLANK, "left: too little tissue"),
    (Outcome.PLAIN, "left: one stain or colour"),
)


def draw_examples(title: str, examples: Sequence[Example]) -> Figure:
    """Draw tiles of every centre, before above after, with the share of tissue of each.

    Args:
        title: title of the figure.
        examples: tiles of one or more centres.
    """
    step = 2 * _TILE + 0.3
    height = 0.35 + step * len(examples)
    figure = Figure(figsize=(_WIDTH, height))
    for number, example in enumerate(examples):
        n = len(example.tissue_before)
        y = height - 0.35 - number * step - 2 * _TILE
        place = (_LEFT / _WIDTH, y / height, n * _TILE / _WIDTH, 2 * _TILE / height)
        axes = figure.add_axes(place)
        axes.imshow(example.image, aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        rows, columns = example.image.shape[:2]
        for i in range(1, n):
            axes.axvline(i * columns / n - 0.5, color="white", linewidth=1.2)
        axes.axhline(rows / 2 - 0.5, color="white", linewidth=1.8)
        shares = zip(example.tissue_before, example.tissue_after, strict=True)
        for i, (before, after) in enumerate(shares):
            figure.text(
                (_LEFT + (i + 0.5) * _TILE) / _WIDTH,
                (y - 0.14) / height,
                f"tissue {format_share(before)} → {format_share(after)}",
                ha="center",
                fontsize=6.5,
            )
        name = figure_layout.shorten(example.center, length=24)
        figure.text(0.08 / _WIDTH, (y + 1.5 * _TILE) / height, name, fontweight="bold", fontsize=8)
        for words, up in (("before", 1.32), ("after", 0.5)):
            figure.text(0.08 / _WIDTH, (y + up * _TILE) / height, words, fontsize=7.5)
    text = figure_layout.shorten(title, length=110)
    figure.text(0.08 / _WIDTH, 1 - 0.2 / height, text, fontweight="bold", fontsize=9)
    return figure


def build_outcomes(examples: Sequence[Example]) -> Table:
    """What became of all tiles of every centre, and the tissue of those that are shown."""
    rows = []
    for example in examples:
        total = sum(example.counts.values())
        cells = [Cell(f"{total:,}", sort=sort_key(total))]
        for outcome, _ in COLUMNS:
            n = example.counts[outcome.name.lower()]
            note = format_share(n / total) if n else ""
            cells.append(Cell(f"{n:,}", note=note, sort=sort_key(n)))
        means = [_mean(shares) for shares in (example.tissue_before, example.tissue_after)]
        cells.append(Cell(" → ".join(map(format_share, means)), sort=sort_key(means[1] - means[0])))
        rows.append(Row(example.center, "", cells))
    columns = ["tiles", *(words for _, words in COLUMNS), f"tissue of up to {N_TILES} tiles"]
    return Table("Tiles", columns, rows)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
