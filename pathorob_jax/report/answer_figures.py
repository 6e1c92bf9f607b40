"""Figures of the first screen: accuracy by robustness, and the checkpoints of a run."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from pathorob_jax.report import panels
from pathorob_jax.report.over_models_figures import (
    Point,
    draw_intervals,
    make_mark,
    name_points,
    round_axis,
)
from pathorob_jax.report.panels import Axis, Line, Panels

# With more models only those on the front, and the least robust, are named.
MAX_NAMED = 14
_WIDTH, _HEIGHT = 560.0, 330.0
# A part of the width in which names of the most accurate models stand.
_ROOM = 0.08


class Follow(NamedTuple):
    """A number over the steps of a run: its title, values (NaN: undefined) and intervals."""

    title: str
    values: Sequence[float]
    ci95: Sequence[Sequence[float] | None]


def draw_front(points: Sequence[Point], x: str, y: str, chances: Sequence[float]) -> Panels:
    """Draw models as points with their intervals; the front is a line, its models are squares.

    Args:
        points: models with two finite numbers.
        x: title of the first number.
        y: title of the second.
        chances: the least and the greatest second number of an embedding without structure; empty
            if unknown.
    """
    across = round_axis(x, [p.x for p in points], [p.x_ends for p in points])
    up = round_axis(y, [p.y for p in points], [p.y_ends for p in points])
    if len(points) == 1:
        across, up = panels.unit_axis(x), panels.unit_axis(y)
    else:
        across = across._replace(high=across.high + _ROOM * (across.high - across.low))
    lines = draw_intervals(points)
    marks = [make_mark(p, "centre" if p.is_on_front else "soft", p.is_on_front) for p in points]
    front = sorted((p.x, p.y) for p in points if p.is_on_front)
    for (x1, y1), (x2, y2) in itertools.pairwise(front):
        lines.append(Line([x1, x1, x2], [y1, y2, y2], "centre"))
    named = list(points)
    if len(points) > MAX_NAMED:
        lowest = min(points, key=lambda p: (p.is_control, p.y)).model
        named = [p for p in points if p.is_on_front or p.is_control or p.model == lowest]
    rules = sorted({round(c, 3) for c in chances if up.low < c < up.high})
    drawn = panels.Panel(
        "",
        "",
        lines,
        (),
        marks,
        name_points(named, across, up, gap=0.04),
        y_rules=rules,
        x=across,
        y=up,
    )
    keys = [("soft", "encoder")] if len(points) > 1 else []
    keys += [("centre", "on the front, a square")] if front and len(points) > 1 else []
    keys += [("soft", "control, hollow")] if any(p.is_control for p in points) else []
    return Panels("", across, up, [drawn], keys, width=_WIDTH, height=_HEIGHT, left=44.0)


def draw_follow(word: str, steps: Sequence[int], followed: Sequence[Follow]) -> Panels:
    """Draw numbers of a run over its steps, one panel each, with intervals where there are any.

    Args:
        word: what a step is called.
        steps: ascending.
        followed: numbers, one value a step.
    """
    across = round_axis(word, steps, [])
    drawn = []
    for one in followed:
        lines = [
            Line([step, step], ends, "context")
            for step, ends in zip(steps, one.ci95, strict=True)
            if ends is not None
        ]
        lines.append(Line(steps, one.values, "soft", has_dots=True))
        up = round_axis(one.title, one.values, one.ci95)
        drawn.append(panels.Panel(one.title, "", lines, x=across, y=up))
    up = Axis("number", 0.0, 1.0, [])
    return Panels("", across, up, drawn, width=300.0, height=170.0, left=44.0)
