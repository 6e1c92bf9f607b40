"""Figures of the first screen: accuracy by robustness, and the checkpoints of a run."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pathorob_jax.report import figure_layout
from pathorob_jax.report.over_models_figures import Point

_INK, _GRID, _POINT, _FRONT = "#30363D", "#E4E7EB", "#4D4D4D", "#7B3FC4"
_GRAY = "#6E7781"
# With more models only those on the front, and the least robust, are named.
MAX_NAMED = 14
_WIDTH, _HEIGHT = 5.6, 4.0


class Follow(NamedTuple):
    """A number over the steps of a run: its title, values (NaN: undefined) and intervals."""

    title: str
    values: Sequence[float]
    ci95: Sequence[Sequence[float] | None]


def draw_front(points: Sequence[Point], x: str, y: str, chance: float) -> Figure:
    """Draw models as points with their intervals; the front is a line, its models are diamonds.

    Args:
        points: models with two finite numbers.
        x: title of the first number.
        y: title of the second.
        chance: the second number of an embedding without structure; NaN if unknown.
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    axes = figure.add_axes((0.13, 0.14, 0.84, 0.84))
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    front = sorted((p.x, p.y) for p in points if p.is_on_front)
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="pre", color=_FRONT, linewidth=1.4, zorder=1)
    for p in points:
        color = _FRONT if p.is_on_front else _POINT
        for ends, is_x in ((p.x_ends, True), (p.y_ends, False)):
            if ends is not None:
                line = (ends, [p.y] * 2) if is_x else ([p.x] * 2, ends)
                axes.plot(*line, color=color, linewidth=0.9, alpha=0.45, zorder=2)
        marker = "D" if p.is_on_front else "o"
        axes.plot([p.x], [p.y], marker, color=color, markersize=5.5, zorder=3)
    axes.margins(0.08)
    if len(points) == 1:
        axes.set(xlim=(0, 1.05), ylim=(0, 1.05))
    else:
        left, right = axes.get_xlim()
        axes.set_xlim(left, right + 0.2 * (right - left))  # room for names
    low, high = axes.get_ylim()
    if low < chance < high:
        axes.axhline(chance, color=_GRAY, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
        right = axes.get_xlim()[1]
        axes.text(right, chance, "chance ", ha="right", va="bottom", fontsize=8.5, color=_GRAY)
    _name_points(axes, points)
    axes.set_xlabel(f"{x}  →", fontsize=10)
    axes.set_ylabel(f"{y}  →", fontsize=10)
    axes.tick_params(labelsize=9)
    return figure


def _name_points(axes: Axes, points: Sequence[Point]) -> None:
    """Write names beside points; a thin line leads to a name that had to move."""
    named = list(points)
    if len(points) > MAX_NAMED:
        lowest = min(points, key=lambda p: p.y).model
        named = [p for p in points if p.is_on_front or p.model == lowest]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for is_left in (True, False):
        own = [p for p in named if ((p.x - left) / (right - left) <= 0.82) == is_left]
        # A little above the point, so that names do not lie on the interval of x.
        wanted = [(p.y - low) / (high - low) + 0.028 for p in own]
        places = figure_layout.spread_labels(wanted, gap=0.055, low=0.02, high=0.98)
        for p, at, place in zip(own, wanted, places, strict=True):
            across = (p.x - left) / (right - left)
            beside = across + (0.022 if is_left else -0.022)
            if abs(place - at) > 0.02:
                [line] = axes.plot(
                    [across, beside], [at - 0.028, place], color=_GRAY, linewidth=0.5
                )
                line.set(transform=axes.transAxes, zorder=1)
            axes.text(
                beside,
                place,
                figure_layout.shorten(p.model, length=24),
                transform=axes.transAxes,
                ha="left" if is_left else "right",
                va="center",
                fontsize=9.5,
                color=_INK,
                zorder=4,
                bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.2},
            )


def draw_follow(word: str, steps: Sequence[int], followed: Sequence[Follow]) -> Figure:
    """Draw numbers of a run over its steps, one panel each, with intervals where there are any.

    Args:
        word: what a step is called.
        steps: ascending.
        followed: numbers, one value a step.
    """
    columns = min(len(followed), 3)
    rows = math.ceil(len(followed) / columns)
    figure = Figure(figsize=(9.5, 2.3 * rows + 0.3))
    for number, one in enumerate(followed):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.plot(steps, one.values, "o-", color=_INK, markersize=3.5, linewidth=1.2, zorder=3)
        for step, ends in zip(steps, one.ci95, strict=True):
            if ends is not None:
                axes.plot([step] * 2, ends, color=_INK, linewidth=1, alpha=0.5, zorder=2)
        axes.set_title(one.title, loc="left", fontsize=8.5)
        axes.set_xlabel(word, fontsize=8)
    figure.subplots_adjust(
        left=0.06,
        right=0.99,
        top=1 - 0.35 / (2.3 * rows + 0.3),
        bottom=0.45 / (2.3 * rows + 0.3),
        hspace=0.6,
        wspace=0.25,
    )
    return figure
