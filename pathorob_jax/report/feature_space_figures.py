"""Figures of the feature space: class and centre by principal component."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from pathorob_jax.report import figure_layout
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.results.feature_space import FeatureSpaceResult

_WIDTH = 9.5
_CLASS, _CENTER, _ALL = "#0072B2", "#D55E00", "#4D4D4D"


def draw_components(dataset: str, records: Sequence[FeatureSpaceResult]) -> Figure:
    """Draw eta^2 of class and centre by component, and the cumulative variance, for each model.

    Args:
        dataset: dataset named in the title.
        records: records of this dataset, in the order in which models are shown.
    """
    n_columns = min(len(records), 3)
    n_rows = math.ceil(len(records) / n_columns)
    left, gap_x, gap_y, top, bottom = 0.55, 0.25, 0.5, 0.75, 0.45
    width = min((_WIDTH - left - 0.2 - (n_columns - 1) * gap_x) / n_columns, 4.5)
    panel = min(0.6 * width, 2.0)
    height = top + n_rows * panel + (n_rows - 1) * gap_y + bottom
    figure = Figure(figsize=(_WIDTH, height))
    last = max((len(r.variance_share or []) for r in records), default=1)
    limits = figure_layout.k_limits([1, max(last, 2)])
    for number, record in enumerate(records):
        row, column = divmod(number, n_columns)
        x, y = left + column * (width + gap_x), height - top - (row + 1) * panel - row * gap_y
        place = (x / _WIDTH, y / height, width / _WIDTH, panel / height)
        axes = figure.add_axes(place)
        _draw_panel(axes, record, limits)
        axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"] if column == 0 else [])
        below = number + n_columns >= len(records)
        axes.tick_params(axis="x", labelbottom=below)
        if below:
            axes.set_xlabel("principal component (log scale)", fontsize=7)
    figure.legend(
        [
            Line2D([], [], color=_CLASS, linewidth=1.4),
            Line2D([], [], color=_CENTER, linewidth=1.4),
            Line2D([], [], color=_ALL, linewidth=1, linestyle=(0, (3, 2))),
        ],
        ["η² of the class", "η² of the centre", "share of all variance up to the component"],
        loc="upper left",
        bbox_to_anchor=(0.05, 1 - 0.22 / height),
        ncols=3,
        fontsize=7.5,
        borderaxespad=0,
    )
    title = figure_layout.shorten(name_dataset(dataset), length=60)
    figure.text(left / _WIDTH, 1 - 0.17 / height, title, fontweight="bold", fontsize=9)
    return figure


def _draw_panel(axes: Axes, record: FeatureSpaceResult, limits: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_ylim(0, 1.02)
    ticks = figure_layout.k_ticks(limits, max_ticks=5)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    share = record.variance_share or []
    component = np.arange(1, len(share) + 1)
    for values, color, style, wide in (
        (record.cumulative_variance, _ALL, (0, (3, 2)), 1.0),
        (record.eta2_class, _CLASS, "-", 1.2),
        (record.eta2_center, _CENTER, "-", 1.2),
    ):
        if values is not None:
            shown = figure_layout.thin_points(component.tolist(), keep=1, max_points=200)
            y = np.asarray(values)[shown]
            axes.plot(component[shown], y, color=color, linestyle=style, linewidth=wide)
    if record.eta2_class is None:
        axes.text(0.5, 0.5, "undefined", ha="center", va="center", transform=axes.transAxes)
    name = figure_layout.shorten(record.model, length=24)
    axes.set_title(name, fontsize=8, loc="left", pad=3)
