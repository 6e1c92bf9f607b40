"""The figures of the report.

The functions take records in the order in which models are shown, and return matplotlib figures
built without pyplot, so that no global state remains. Margins are computed from the longest name,
because automatic layout warns or collapses on very long names.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from pathorob_jax.report import figure_layout, palette
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import format_number
from pathorob_jax.results.clustering_score import ClusteringResult
from pathorob_jax.results.robustness_index import RobustnessIndexResult

OPERATING_K = "operating-k"
"""Group id of the artists that mark the operating k of a record."""

_WIDTH = 9.5
_INK = "#30363D"
_GRID = "#E4E7EB"


def draw_index(
    models: Sequence[str], panels: Sequence[tuple[str, Sequence[RobustnessIndexResult]]]
) -> Figure:
    """Draw the index of each model with its interval, one panel per dataset, one line per model.

    Args:
        models: models from top to bottom.
        panels: each dataset and its records.
    """
    return _draw_panels(models, panels, _draw_index_panel)


def draw_clusters(
    models: Sequence[str], panels: Sequence[tuple[str, Sequence[ClusteringResult]]]
) -> Figure:
    """Draw the clustering score of each model with its interval; arguments as in ``draw_index``."""
    return _draw_panels(models, panels, _draw_clusters_panel)


def _draw_panels(
    models: Sequence[str],
    panels: Sequence[tuple[str, Sequence[Any]]],
    draw: Callable[[Axes, Sequence[str], Sequence[Any]], None],
) -> Figure:
    """Draw panels side by side, three per row, with the model names on the left of each row."""
    n_columns = min(len(panels), 3)
    n_rows = math.ceil(len(panels) / n_columns)
    left = _label_width(models)
    panel_height = 0.25 * len(models) + 0.2
    height = n_rows * (panel_height + 0.85)
    gap = 0.62
    panel_width = (_WIDTH - left - n_columns * gap) / n_columns
    figure = Figure(figsize=(_WIDTH, height))
    for number, (dataset, records) in enumerate(panels):
        row, column = divmod(number, n_columns)
        x = left + column * (panel_width + gap)
        y = height - (row + 1) * (panel_height + 0.85) + 0.5
        axes = _add_axes(figure, x, y, panel_width, panel_height)
        axes.set_ylim(len(models) - 0.4, -0.6)
        draw(axes, models, records)
        title = figure_layout.shorten(name_dataset(dataset), length=40)
        axes.set_title(title, fontweight="bold")
        names = [figure_layout.shorten(m) for m in models] if column == 0 else []
        axes.set_yticks(range(len(models)) if column == 0 else [])
        axes.set_yticklabels(names, color=_INK, fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return figure


def _draw_index_panel(
    axes: Axes, models: Sequence[str], records: Sequence[RobustnessIndexResult]
) -> None:
    by_model = {record.model: record for record in records}
    axes.set_xlim(0, 1)
    chance = records[0].null_random_features if records else math.nan
    if math.isfinite(chance):
        axes.axvline(chance, color="#8A8F98", linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    for y, model in enumerate(models):
        record = by_model.get(model)
        value = record.robustness_index if record is not None else math.nan
        weak = record is not None and not record.support >= palette.LOW_SUPPORT
        text = "–"
        axes.plot([0, 1], [y, y], color=_GRID, linewidth=0.6, zorder=0)
        if record is not None and math.isfinite(value):
            text = f"{value:.3f}" + (" *" if weak else "")
            edge = "#D55E00" if value < chance else "#0072B2"
            fill = "white" if weak else palette.heat(value)
            axes.barh(y, value, height=0.62, color=fill, edgecolor=edge, linewidth=0.7, zorder=2)
            if record.ci95 is not None:
                axes.plot(record.ci95, [y, y], color=_INK, linewidth=1.4, zorder=3)
            axes.plot([value], [y], "o", color=_INK, markersize=2.6, zorder=4)
        axes.text(1.025, y, text, va="center", fontsize=7.5)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    axes.set_xlabel("centre rules ←  robustness index  → biology rules", fontsize=7)


def _draw_clusters_panel(
    axes: Axes, models: Sequence[str], records: Sequence[ClusteringResult]
) -> None:
    by_model = {record.model: record for record in records}
    axes.set_xlim(-1.03, 1.03)
    axes.axvline(0, color="#8A8F98", linewidth=0.8, zorder=1)
    for y, model in enumerate(models):
        record = by_model.get(model)
        value = record.clustering_score if record is not None else math.nan
        text = "–"
        axes.plot([-1, 1], [y, y], color=_GRID, linewidth=0.6, zorder=0)
        if record is not None and math.isfinite(value):
            text = format_number(value)
            edge = "#D55E00" if value < 0 else "#0072B2"
            fill = palette.heat((value + 1) / 2)
            axes.barh(y, value, height=0.62, color=fill, edgecolor=edge, linewidth=0.7, zorder=2)
            if record.ci95 is not None:
                axes.plot(record.ci95, [y, y], color=_INK, linewidth=1.4, zorder=3)
            axes.plot([value], [y], "o", color=_INK, markersize=2.6, zorder=4)
        axes.text(1.05, y, text, va="center", fontsize=7.5)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−.5", "0", ".5", "1"])
    axes.set_xlabel("clusters are centres ←  score  → are classes", fontsize=7)


def draw_curves(dataset: str, models: Sequence[str], records: Sequence[Any]) -> Figure:
    """Draw the index against k on top and kNN balanced accuracy for biology below, with labels.

    Args:
        dataset: dataset named in the title.
        models: all models of the report; the position of a model determines its line style.
        records: records of this dataset, in the order of ``models``.
    """
    right = _label_width([record.model for record in records])
    label_height = 0.145 * len(records)
    heights = (max(2.6, label_height + 0.2), max(1.7, label_height + 0.2))
    left, bottom, gap, top = 0.75, 0.45, 0.28, 0.4
    height = bottom + sum(heights) + gap + top
    figure = Figure(figsize=(_WIDTH, height))
    width = _WIDTH - left - right - 0.25
    lower = _add_axes(figure, left, bottom, width, heights[1])
    upper = _add_axes(figure, left, bottom + heights[1] + gap, width, heights[0])
    limits = figure_layout.k_limits([k for record in records for k in (*record.curve.k, record.k)])
    for axes, field, inches in (
        (upper, "robustness_index", heights[0]),
        (lower, "balanced_accuracy", heights[1]),
    ):
        _set_k_axis(axes, limits)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        _draw_lines(axes, models, records, field, gap=0.135 / inches)
    nulls = {record.null_random_features for record in records}
    for chance in filter(math.isfinite, nulls):
        upper.axhline(chance, color="#8A8F98", linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    upper.tick_params(axis="x", labelbottom=False)
    upper.set_ylabel("robustness index")
    lower.set_ylabel("kNN balanced accuracy,\nbiology")
    lower.set_xlabel("k, neighbours outside the sample's own slide (log scale)")
    title = figure_layout.shorten(name_dataset(dataset), length=60)
    upper.set_title(title, fontweight="bold", loc="left")
    return figure


def _draw_lines(
    axes: Axes, models: Sequence[str], records: Sequence[Any], field: str, *, gap: float
) -> None:
    lowest = min(
        (v for r in records for v in (*getattr(r.curve, field), getattr(r, field)) if v == v),
        default=0.0,
    )
    bottom = -0.02 if field == "robustness_index" else min(math.floor(lowest * 10) / 10, 0.9)
    axes.set_ylim(bottom, 1.02)
    if field == "robustness_index":
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ends = []
    for record in records:
        style: dict[str, Any] = palette.line_style(models.index(record.model))
        index = figure_layout.thin_points(record.curve.k, keep=record.k)
        k = np.asarray(record.curve.k, np.float64)[index]
        values = np.asarray(getattr(record.curve, field), np.float64)[index]
        point = getattr(record, field)
        axes.plot(k, values, linewidth=1.4, **style)
        axes.plot(
            [record.k],
            [point],
            marker="o",
            markersize=4.5,
            markerfacecolor="white",
            markeredgecolor=style["color"],
            markeredgewidth=1.3,
            linestyle="none",
            zorder=5,
            gid=OPERATING_K,
        )
        drawn = np.isfinite(values)
        if drawn.any():
            ends.append((record.model, k[drawn][-1], values[drawn][-1], style["color"]))
        elif math.isfinite(point):
            ends.append((record.model, record.k, point, style["color"]))
    _label_ends(axes, ends, gap=gap)
    if not ends:
        axes.text(0.5, 0.5, "undefined for every k", ha="center", transform=axes.transAxes)


def _label_ends(axes: Axes, ends: Sequence[tuple[str, float, float, Any]], *, gap: float) -> None:
    low, high = axes.get_ylim()
    wanted = [(value - low) / (high - low) for _, _, value, _ in ends]
    places = figure_layout.spread_labels(wanted, gap=gap, low=0.0, high=1.0)
    for (model, k, value, color), place in zip(ends, places, strict=True):
        axes.annotate(
            figure_layout.shorten(model),
            (k, value),
            xytext=(1.025, place),
            textcoords="axes fraction",
            va="center",
            color=color,
            fontsize=7.5,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.5,
                "alpha": 0.6,
                "relpos": (0, 0.5),
            },
        )


def draw_composition(dataset: str, records: Sequence[RobustnessIndexResult]) -> Figure:
    """Draw the types of neighbours by k, one small panel per model, with the operating k marked."""
    n_columns = min(len(records), 3 if len(records) < 7 else 5)
    n_rows = math.ceil(len(records) / n_columns)
    left, gap_x, gap_y, top, bottom = 0.55, 0.2, 0.42, 0.85, 0.45
    width = min((_WIDTH - left - 0.2 - (n_columns - 1) * gap_x) / n_columns, 4.5)
    panel = min(max(0.72 * width, 1.1), 2.1)
    height = top + n_rows * panel + (n_rows - 1) * gap_y + bottom
    figure = Figure(figsize=(_WIDTH, height))
    limits = figure_layout.k_limits([k for record in records for k in (*record.curve.k, record.k)])
    for number, record in enumerate(records):
        row, column = divmod(number, n_columns)
        x = left + column * (width + gap_x)
        y = height - top - (row + 1) * panel - row * gap_y
        axes = _add_axes(figure, x, y, width, panel)
        _draw_composition_panel(axes, record, limits, max_ticks=4 if n_columns > 3 else 8)
        below = number + n_columns >= len(records)
        axes.tick_params(axis="x", labelbottom=below)
        axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"] if column == 0 else [])
        if below:
            axes.set_xlabel("k")
        if column == 0:
            axes.set_ylabel("share of neighbours", fontsize=7)
    figure.legend(
        [Patch(facecolor=kind.color) for kind in palette.NEIGHBOR_TYPES]
        + [Line2D([], [], color="black", linewidth=1, linestyle=(0, (2, 2)))],
        [kind.words for kind in palette.NEIGHBOR_TYPES] + ["operating k"],
        loc="upper left",
        bbox_to_anchor=(0.05, 1 - 0.22 / height),
        ncols=3,
        fontsize=7.5,
        borderaxespad=0,
    )
    title = figure_layout.shorten(name_dataset(dataset), length=60)
    figure.text(left / _WIDTH, 1 - 0.17 / height, title, fontweight="bold", fontsize=9)
    return figure


def draw_drop(dataset: str, models: Sequence[str], records: Sequence[Any]) -> Figure:
    """Draw accuracy against the association of class and centre: in domain left, out of it right.

    Args:
        dataset: dataset named in the title.
        models: all models of the report; the position of a model determines its line style.
        records: records of this dataset, in the order of ``models``: ``ApdResult``, or anything
            with its fields ``model``, ``cramers_v``, ``id_accuracy_means``, ``ood_accuracy_means``,
            ``chance`` and ``n_ood_test_rows``.
    """
    return draw_by_association(
        name_dataset(dataset),
        models,
        [
            AssociationCurve(r.model, r.cramers_v, r.id_accuracy_means, r.ood_accuracy_means)
            for r in records
        ],
        chances=[record.chance for record in records],
        has_ood=any(record.n_ood_test_rows for record in records),
        measure="balanced accuracy",
    )


class AssociationCurve(NamedTuple):
    """A measure of one model at every split of a schedule; NaN where it is undefined.

    Attributes:
        model: name of the model.
        cramers_v: association of class and centre in the splits.
        inside: of test rows in domain.
        outside: of test rows out of domain.
    """

    model: str
    cramers_v: Sequence[float]
    inside: Sequence[float]
    outside: Sequence[float]


def draw_by_association(
    title: str,
    models: Sequence[str],
    curves: Sequence[AssociationCurve],
    *,
    chances: Sequence[float],
    has_ood: bool,
    measure: str,
) -> Figure:
    """Draw a measure against the association of class and centre, in and out of domain.

    Args:
        title: of the figure.
        models: all models of the report; the position of a model determines its line style.
        curves: one for each model shown, in the order of ``models``.
        chances: values by chance, drawn as lines.
        has_ood: whether there is anything out of domain to show.
        measure: name of the measure, in [0, 1].
    """
    right = _label_width([curve.model for curve in curves])
    left, bottom, gap, top = 0.7, 0.45, 0.2, 0.55
    panel = max(2.6, 0.145 * len(curves) + 0.2)
    known = [v for c in curves for values in (c.inside, c.outside) for v in values if v == v]
    shown = ("in domain", "out of domain")[: 2 if has_ood else 1]
    width = (_WIDTH - left - gap - right - 0.25) / len(shown)
    figure = Figure(figsize=(_WIDTH, bottom + panel + top))
    sides = [
        _add_axes(figure, left + number * (width + gap), bottom, width, panel)
        for number in range(len(shown))
    ]
    low = math.floor(10 * min([*known, *chances], default=0.0)) / 10
    for number, (axes, words) in enumerate(zip(sides, shown, strict=True)):
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(low - 0.01, 1.01)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        ends = []
        for curve in curves:
            style: dict[str, Any] = palette.line_style(models.index(curve.model))
            values = np.asarray((curve.inside, curve.outside)[number], np.float64)
            axes.plot(curve.cramers_v, values, linewidth=1.4, marker=".", markersize=4, **style)
            drawn = np.flatnonzero(np.isfinite(values))
            if drawn.size:
                last = drawn[-1]
                ends.append((curve.model, curve.cramers_v[last], values[last], style["color"]))
        for chance in sorted(set(chances)):
            axes.axhline(chance, color="#8A8F98", linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
        axes.set_title(words, loc="left", fontsize=8, pad=3)
        axes.set_xlabel("association of class and centre in training, Cramér's V")
        if number:
            axes.tick_params(axis="y", labelleft=False)
        if axes is sides[-1]:
            _label_ends(axes, ends, gap=0.135 / panel)
        if not ends:
            axes.text(0.5, 0.5, "undefined", ha="center", transform=axes.transAxes)
    sides[0].set_ylabel(measure)
    height = bottom + panel + top
    shortened = figure_layout.shorten(title, length=60)
    figure.text(left / _WIDTH, 1 - 0.2 / height, shortened, fontweight="bold", fontsize=9)
    return figure


def _draw_composition_panel(
    axes: Axes, record: RobustnessIndexResult, limits: tuple[float, float], *, max_ticks: int
) -> None:
    k, fractions = figure_layout.stack_composition(record.curve, keep=record.k)
    _set_k_axis(axes, limits, max_ticks=max_ticks)
    axes.set_ylim(0, 1)
    if k.size:
        colors = [kind.color for kind in palette.NEIGHBOR_TYPES]
        axes.stackplot(k, fractions, colors=colors, edgecolor="white", linewidth=0.4)
    else:
        axes.text(0.5, 0.5, "undefined", ha="center", va="center", transform=axes.transAxes)
    axes.axvline(
        record.k, color="black", linewidth=1, linestyle=(0, (2, 2)), zorder=5, gid=OPERATING_K
    )
    value = record.robustness_index
    index = f"{value:.2f}" if math.isfinite(value) else "–"
    name = figure_layout.shorten(record.model, length=20)
    axes.set_title(f"{name}  {index}", fontsize=8, loc="left", pad=3)


def _set_k_axis(axes: Axes, limits: tuple[float, float], *, max_ticks: int = 10) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.xaxis.set_major_locator(FixedLocator(figure_layout.k_ticks(limits, max_ticks=max_ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())


def _add_axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Add axes, placed in inches from the lower left."""
    w, h = figure.get_size_inches()
    return figure.add_axes((x / w, y / h, width / w, height / h))


def _label_width(names: Sequence[str]) -> float:
    """Inches that the longest name needs at 8 points."""
    return 0.25 + 0.068 * max(figure_layout.width(figure_layout.shorten(n)) for n in names)
