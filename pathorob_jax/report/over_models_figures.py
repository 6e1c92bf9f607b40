"""Figures over models: each model is a point with its name."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathorob_jax.report import figure_layout, panels
from pathorob_jax.report.figures import UNDEFINED
from pathorob_jax.report.panels import Axis, Line, Mark, Panels, Text

_WIDTH, _HEIGHT = 460.0, 380.0


class Point(NamedTuple):
    """A model by two numbers, with their intervals; marked, on a front, or a control."""

    model: str
    x: float
    y: float
    x_ends: Sequence[float] | None = None
    y_ends: Sequence[float] | None = None
    is_language: bool = False
    is_on_front: bool = False
    is_control: bool = False


class Panel(NamedTuple):
    """A panel of points: its title, the titles of the axes, and whether x is on a log scale."""

    title: str
    x: str
    y: str
    points: Sequence[Point]
    is_log: bool = False


def draw_points(found: Sequence[Panel]) -> Panels:
    """Draw panels side by side; vision-language models are blue squares."""
    drawn = [_draw_panel(panel) for panel in found]
    keys = [("soft", "model")]
    points = [point for panel in found for point in panel.points]
    if any(point.is_language for point in points):
        keys.append(("biology", "vision-language model, a square"))
    x, y = (
        Axis("; ".join(dict.fromkeys(getattr(p, name) for p in found)), 0, 1, [])
        for name in ("x", "y")
    )
    return Panels("", x, y, drawn, keys, width=_WIDTH, height=_HEIGHT, left=44.0)


def _draw_panel(panel: Panel) -> panels.Panel:
    points = panel.points
    x = round_axis(panel.x, [p.x for p in points], [p.x_ends for p in points], panel.is_log)
    y = round_axis(panel.y, [p.y for p in points], [p.y_ends for p in points])
    marks = [make_mark(p, "biology" if p.is_language else "soft", p.is_language) for p in points]
    texts = name_points(points, x, y) if points else [UNDEFINED]
    note = f"→ {panel.x}, ↑ {panel.y}"
    return panels.Panel(panel.title, note, draw_intervals(points), (), marks, texts, x=x, y=y)


def draw_intervals(points: Sequence[Point]) -> list[Line]:
    """Pale lines over the intervals of points."""
    lines = []
    for point in points:
        if point.x_ends is not None:
            lines.append(Line(point.x_ends, [point.y] * 2, "context", model=point.model))
        if point.y_ends is not None:
            lines.append(Line([point.x] * 2, point.y_ends, "context", model=point.model))
    return lines


def make_mark(point: Point, key: str, is_square: bool) -> Mark:
    """A point that tells its model and numbers."""
    tag = " (control)" if point.is_control else ""
    words = f"{point.model}{tag}: {point.x:.4g}, {point.y:.4g}"
    return Mark(
        point.x,
        point.y,
        key,
        is_hollow=point.is_control,
        is_square=is_square,
        title=words,
        model=point.model,
    )


def round_axis(
    title: str,
    values: Sequence[float],
    ends: Sequence[Sequence[float] | None],
    is_log: bool = False,
) -> Axis:
    """An axis around values and the ends of their intervals, with round ticks."""
    known = [v for v in (*values, *(e for pair in ends if pair for e in pair)) if math.isfinite(v)]
    if not known:
        return Axis(title, 0.0, 1.0, [])
    low, high = min(known), max(known)
    if is_log:
        low, high = low / 1.3, high * 1.3
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [(10.0**i * m, f"{10.0**i * m:,.0f}") for i in decades for m in (1, 3)]
        ticks = [tick for tick in ticks if low <= tick[0] <= high]
        return Axis(title, low, high, ticks[:: math.ceil(len(ticks) / 6) or 1], True)
    room = 0.06 * ((high - low) or 1.0)
    low, high = low - room, high + room
    least = (high - low) / 4
    decade = 10.0 ** math.floor(math.log10(least))
    step = next(decade * m for m in (1, 2, 5, 10) if decade * m >= least)
    first = math.ceil(low / step)
    ticks = [(i * step, f"{i * step:.6g}") for i in range(first, math.floor(high / step) + 1)]
    return Axis(title, low, high, ticks)


def name_points(points: Sequence[Point], x: Axis, y: Axis, *, gap: float = 0.032) -> list[Text]:
    """Names beside points, moved up or down where they would be nearer than ``gap``."""
    across, up = x.place([p.x for p in points]), y.place([p.y for p in points])
    texts = []
    for is_end, shift in ((False, 0.015), (True, -0.015)):
        named = np.flatnonzero((across > 0.7) == is_end).tolist()
        places = figure_layout.spread_labels(up[named].tolist(), gap=gap, low=0.01, high=0.99)
        for i, place in zip(named, places, strict=True):
            model = points[i].model
            name = figure_layout.name_model(model)
            texts.append(Text(float(across[i]) + shift, place, name, is_end, model))
    return texts
