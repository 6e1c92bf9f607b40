"""Figures over models: each model is a point with its name."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathorob_jax.report import figure_layout

_WIDTH = 9.5
_INK, _GRID = "#30363D", "#E4E7EB"
_VISION, _LANGUAGE = "#4D4D4D", "#0072B2"


class Point(NamedTuple):
    """A model by two numbers, with their intervals, whether it is marked, and on a front."""

    model: str
    x: float
    y: float
    x_ends: Sequence[float] | None = None
    y_ends: Sequence[float] | None = None
    is_language: bool = False
    is_on_front: bool = False


class Panel(NamedTuple):
    """A panel of points: its title, the titles of the axes, and whether x is on a log scale."""

    title: str
    x: str
    y: str
    points: Sequence[Point]
    is_log: bool = False


def draw_points(panels: Sequence[Panel]) -> Figure:
    """Draw panels side by side; vision-language models are blue squares."""
    left, bottom, gap, top, height = 0.65, 0.5, 0.6, 0.35, 3.6
    width = (_WIDTH - left - 0.25 - gap * (len(panels) - 1)) / len(panels)
    figure = Figure(figsize=(_WIDTH, bottom + height + top))
    total = bottom + height + top
    for number, panel in enumerate(panels):
        x = left + number * (width + gap)
        axes = figure.add_axes((x / _WIDTH, bottom / total, width / _WIDTH, height / total))
        _draw_panel(axes, panel)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if panel.is_log:
        axes.set_xscale("log")
    for point in panel.points:
        color = _LANGUAGE if point.is_language else _VISION
        if point.x_ends is not None:
            axes.plot(point.x_ends, [point.y] * 2, color=_INK, linewidth=0.5, alpha=0.45, zorder=0)
        if point.y_ends is not None:
            axes.plot([point.x] * 2, point.y_ends, color=_INK, linewidth=0.5, alpha=0.45, zorder=0)
        marker = "s" if point.is_language else "o"
        axes.plot([point.x], [point.y], marker, color=color, markersize=4.5)
    _name_points(axes, panel)
    axes.set_xlabel(panel.x, fontsize=8)
    axes.set_ylabel(panel.y, fontsize=8)
    axes.set_title(panel.title, loc="left", fontsize=8, pad=3)
    if not panel.points:
        axes.text(0.5, 0.5, "undefined", ha="center", transform=axes.transAxes)


def _name_points(axes: Axes, panel: Panel) -> None:
    """Write names beside points, moved up or down where they would overlap."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()

    def across(x: float) -> float:
        ends = (math.log(v) for v in (x, left, right)) if panel.is_log else (x, left, right)
        at, start, end = ends
        return float((at - start) / (end - start))

    for side, shift in (("left", 0.015), ("right", -0.015)):
        named = [p for p in panel.points if (across(p.x) > 0.7) == (side == "right")]
        wanted = [(point.y - low) / (high - low) for point in named]
        places = figure_layout.spread_labels(wanted, gap=0.032, low=0.01, high=0.99)
        for point, y in zip(named, places, strict=True):
            axes.text(
                across(point.x) + shift,
                y,
                figure_layout.shorten(point.model, length=20),
                transform=axes.transAxes,
                ha=side,
                va="center",
                fontsize=6,
                color=_INK,
            )
