"""Small pictures side by side, most of one model each, as SVG in the colours of the page.

A picture is data (``Panels``); this module turns it into markup for the page, where panels wrap to
the width of the screen, and into a file that stands alone.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

from pathorob_jax.core import digests
from pathorob_jax.models.names import is_control
from pathorob_jax.report import figure_layout, palette

_LEFT, _RIGHT, _TOP, _BOTTOM = 30.0, 8.0, 6.0, 20.0
_TITLE, _GAP, _FILE_WIDTH = 22.0, 14.0, 1000.0
# The first are drawn in the colours of models, in this order.
MODEL_KEYS = tuple(f"m{i}" for i in range(len(palette.MODEL_COLORS)))


class Axis(NamedTuple):
    """An axis: its title in words, its ends, and its ticks as (value, label)."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    is_log: bool = False

    def place(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Places of values, 0 at the low end and 1 at the high end."""
        found, ends = np.asarray(values, np.float64), np.array([self.low, self.high])
        if self.is_log:
            found, ends = np.log(found), np.log(ends)
        return (found - ends[0]) / ((ends[1] - ends[0]) or 1.0)


class Line(NamedTuple):
    """A line in the colour of ``key``, broken where a value is undefined; dots at its points.

    ``model``: by which it is filtered; empty: it always stands.
    """

    x: Sequence[float]
    y: Sequence[float]
    key: str
    has_dots: bool = False
    model: str = ""


class Area(NamedTuple):
    """The area between two lines, in the colour of ``key``."""

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    key: str


class Mark(NamedTuple):
    """A point; hollow, a square, or with a tooltip."""

    x: float
    y: float
    key: str
    is_hollow: bool = False
    is_square: bool = False
    title: str = ""
    model: str = ""


class Text(NamedTuple):
    """A text at places of the panel from 0 to 1; ``end``: it ends there."""

    x: float
    y: float
    text: str
    is_end: bool = False
    model: str = ""


class Panel(NamedTuple):
    """One picture.

    Attributes:
        name: its title; the name of a model where it shows one.
        note: after the title, such as the model's number.
        lines: lines, drawn in this order.
        areas: areas, drawn below the lines.
        marks: points, drawn above the lines.
        texts: texts within the panel.
        x_rules: dashed lines at values of x.
        y_rules: dashed lines at values of y.
        model: the model that it shows; empty: several.
        x: its own x axis; None: that of all.
        y: its own y axis; None: that of all.
    """

    name: str
    note: str = ""
    lines: Sequence[Line] = ()
    areas: Sequence[Area] = ()
    marks: Sequence[Mark] = ()
    texts: Sequence[Text] = ()
    x_rules: Sequence[float] = ()
    y_rules: Sequence[float] = ()
    model: str = ""
    x: Axis | None = None
    y: Axis | None = None


class Panels(NamedTuple):
    """Panels that share their axes and keys.

    Attributes:
        title: of all, such as the dataset.
        x: horizontal axis.
        y: vertical axis.
        panels: the pictures.
        keys: what colours mean, as (key, words).
        context: lines of all models, drawn pale in every panel.
        width: of a panel in pixels.
        height: of a panel in pixels, without its title.
        left: pixels left of the axis.
    """

    title: str
    x: Axis
    y: Axis
    panels: Sequence[Panel]
    keys: Sequence[tuple[str, str]] = ()
    context: Sequence[Line] = ()
    width: float = 220.0
    height: float = 140.0
    left: float = _LEFT


def unit_axis(title: str) -> Axis:
    """An axis from 0 to 1."""
    ticks = [(0.0, "0"), (0.5, ".5"), (1.0, "1")]
    return Axis(title, 0.0, 1.0, ticks)


def log_axis(title: str, values: Sequence[float], *, max_ticks: int = 5) -> Axis:
    """A log axis that shows all values, which are positive."""
    limits = figure_layout.k_limits(values)
    ticks = figure_layout.k_ticks(limits, max_ticks=max_ticks)
    return Axis(title, *limits, [(tick, f"{tick}") for tick in ticks], True)


def to_html(drawn: Panels, label: str) -> Markup:
    """The panels as markup; ``label`` says to screen readers what they show."""
    shared = f"p{digests.digest(f'{drawn.title}/{label}'.encode())[:8]}"
    parts = [
        f'<p class="key"><b dir="auto">{_drawable(drawn.title)}</b>',
        *_write_keys(drawn),
        "</p>",
    ]
    parts += [
        f'<svg class="defs" width="0" height="0" aria-hidden="true"><defs><g id="{shared}">',
        *_draw_shared(drawn),
        f'</g></defs></svg><div class="multiples" style="--panel:{drawn.width:.0f}px">',
    ]
    for panel in drawn.panels:
        shown = f' data-model="{escape(panel.model)}"' if panel.model else ""
        name = _name(panel)
        words = f"{label}: {name} {panel.note}".strip()
        note = f" <span>{_drawable(panel.note)}</span>" if panel.note else ""
        parts += [
            f'<div class="panel"{shown}>',
            f'<p class="name" dir="auto"><b>{_drawable(name)}</b>{note}</p>',
            f'<svg viewBox="0 0 {drawn.width:.0f} {drawn.height:.0f}" role="img" '
            f'aria-label="{_drawable(words)}">',
            *_draw_panel(drawn, panel, shared),
            "</svg></div>",
        ]
    parts.append("</div>")
    return Markup("".join(map(str, parts)))


def to_svg(drawn: Panels) -> bytes:
    """The panels as an SVG file that stands alone, in light colours."""
    across = max(1, int((_FILE_WIDTH + _GAP) // (drawn.width + _GAP)))
    across = min(across, max(len(drawn.panels), 1))
    down = math.ceil(len(drawn.panels) / across)
    top = 24.0 + 18.0 * math.ceil(max(len(drawn.keys), 1) / 2)
    step = drawn.height + _TITLE
    width = max(across * (drawn.width + _GAP), 640.0)
    height = top + down * step + 26.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}"><style>{file_style()}</style>',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
        f'<text x="8" y="16" class="title">{_drawable(drawn.title)}</text>',
    ]
    for number, (key, words) in enumerate(drawn.keys):
        row, column = divmod(number, 2)
        x, y = 8 + column * width / 2, 30.0 + 18 * row
        parts.append(
            f'<path class="{key}" d="M{x:.0f} {y:.0f}h18"/>'
            f'<text x="{x + 24:.0f}" y="{y + 4:.0f}">{_drawable(words)}</text>'
        )
    parts += ['<defs><g id="shared">', *_draw_shared(drawn), "</g></defs>"]
    for number, panel in enumerate(drawn.panels):
        row, column = divmod(number, across)
        x, y = column * (drawn.width + _GAP), top + row * step
        name = figure_layout.shorten(_name(panel), length=int(drawn.width / 7.2))
        parts.append(
            f'<g transform="translate({x:.0f} {y + _TITLE:.0f})">'
            f'<text x="{_LEFT:.0f}" y="-3"><tspan class="title">{_drawable(name)}</tspan> '
            f"{_drawable(panel.note)}</text>"
        )
        parts += [*_draw_panel(drawn, panel, "shared"), "</g>"]
    words = f"across: {drawn.x.title}; up: {drawn.y.title}"
    parts.append(f'<text x="8" y="{height - 8:.0f}" class="soft">{_drawable(words)}</text></svg>')
    return "".join(map(str, parts)).encode()


def _name(panel: Panel) -> str:
    """Title of a panel; a control is called one."""
    return f"{panel.name} (control)" if is_control(panel.model) else panel.name


def file_style() -> str:
    """Style of a file that stands alone."""
    lines = [
        "text{font:11px sans-serif;fill:#1f2328}.title{font-weight:bold}.soft{fill:#57606a}",
        ".axis{fill:none;stroke:#8a8f98}.tick{font-size:10px;fill:#57606a}",
        ".rule{stroke:#8a8f98;stroke-dasharray:3 3}.context{fill:none;stroke:#d8dee4}",
        ".l{fill:none;stroke-width:1.6}.dashed{stroke-dasharray:5 3}",
    ]
    for key, color in palette.KEY_COLORS.items():
        lines.append(f".{key}{{stroke:{color};fill:{color}}}.l.{key}{{fill:none}}")
    return "".join([*lines, ".hollow{fill:#fff!important}"])


def _write_keys(drawn: Panels) -> Iterator[str]:
    for key, words in drawn.keys:
        yield (
            f'<span><svg class="swatch" viewBox="0 0 18 8" aria-hidden="true">'
            f'<path class="{_classes(key)}" d="M0 4h18"/></svg>{_drawable(words)}</span>'
        )
    yield f"<span>→ {escape(drawn.x.title)}</span><span>↑ {escape(drawn.y.title)}</span>"


def _classes(key: str) -> str:
    """Classes of a line: a key that ends with ``-dashed`` is dashed in the colour before it."""
    color, _, dashed = key.partition("-")
    return f"l {color}{' dashed' if dashed else ''}"


def _draw_shared(drawn: Panels) -> Iterator[str]:
    """The axes, and pale lines of all models."""
    yield from _draw_axes(drawn, drawn.x, drawn.y)
    if drawn.context:
        yield f'<path class="context" d="{_path(drawn, drawn.x, drawn.y, drawn.context)}"/>'


def _draw_axes(drawn: Panels, x: Axis, y: Axis) -> Iterator[str]:
    left, right, bottom = drawn.left, drawn.width - _RIGHT, drawn.height - _BOTTOM
    yield f'<path class="axis" d="M{left:.0f} {_TOP:.0f}V{bottom:.0f}H{right:.0f}"/>'
    for value, label in x.ticks:
        [at] = _across(drawn, x, [value])
        place = f'x="{at:.0f}" y="{bottom + 13:.0f}" text-anchor="middle"'
        yield f'<text class="tick" {place}>{label}</text>'
    for value, label in y.ticks:
        [at] = _up(drawn, y, [value])
        place = f'x="{left - 4:.0f}" y="{at + 3.5:.0f}" text-anchor="end"'
        yield f'<text class="tick" {place}>{_drawable(label)}</text>'


def _draw_panel(drawn: Panels, panel: Panel, shared: str) -> Iterator[str]:
    x, y = panel.x or drawn.x, panel.y or drawn.y
    left, right, bottom = drawn.left, drawn.width - _RIGHT, drawn.height - _BOTTOM
    if panel.x or panel.y:
        yield from _draw_axes(drawn, x, y)
    else:
        yield f'<use href="#{shared}"/>'
    for area in panel.areas:
        across = _across(drawn, x, area.x)
        edges = [_up(drawn, y, values) for values in (area.low, area.high)]
        points = [*zip(across, edges[0], strict=True)]
        points += [*zip(across, edges[1], strict=True)][::-1]
        text = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        yield f'<path class="{area.key}" stroke="none" d="M{text}Z"/>'
    for at in _across(drawn, x, panel.x_rules):
        yield f'<path class="rule" d="M{at:.1f} {_TOP:.0f}V{bottom:.0f}"/>'
    for at in _up(drawn, y, panel.y_rules):
        yield f'<path class="rule" d="M{left:.0f} {at:.1f}H{right:.0f}"/>'
    for line in panel.lines:
        if path := _path(drawn, x, y, [line]):
            yield f'<path class="{_classes(line.key)}"{_of(line.model)} d="{path}"/>'
        if line.has_dots:
            dotted = zip(_across(drawn, x, line.x), _up(drawn, y, line.y), strict=True)
            dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in dotted if math.isfinite(b))
            yield f'<path class="dots {_classes(line.key)[2:]}" d="{dots}"/>' if dots else ""
    for mark in panel.marks:
        yield _draw_mark(drawn, x, y, mark)
    for said in panel.texts:
        at = left + said.x * (right - left), bottom - said.y * (bottom - _TOP)
        anchor = ' text-anchor="end"' if said.is_end else ""
        place = f'x="{at[0]:.0f}" y="{at[1] + 3:.1f}"{anchor}{_of(said.model)}'
        yield f'<text class="tick" {place}>{_drawable(said.text)}</text>'


def _draw_mark(drawn: Panels, x: Axis, y: Axis, mark: Mark) -> str:
    [a], [b] = _across(drawn, x, [mark.x]), _up(drawn, y, [mark.y])
    if not (math.isfinite(a) and math.isfinite(b)):
        return ""
    title = f"<title>{_drawable(mark.title)}</title>" if mark.title else ""
    classes = f"{mark.key}{' hollow' if mark.is_hollow else ''}"
    of = _of(mark.model)
    if mark.is_square:
        place = f'x="{a - 3:.1f}" y="{b - 3:.1f}" width="6" height="6"'
        return f'<rect class="{classes}"{of} {place}>{title}</rect>'
    return f'<circle class="{classes}"{of} cx="{a:.1f}" cy="{b:.1f}" r="3.2">{title}</circle>'


def _of(model: str) -> str:
    """Attribute by which the page filters a part of a picture."""
    return f' data-model="{escape(model)}"' if model else ""


def _across(drawn: Panels, axis: Axis, values: Sequence[float] | np.ndarray) -> np.ndarray:
    return drawn.left + axis.place(values) * (drawn.width - _RIGHT - drawn.left)


def _up(drawn: Panels, axis: Axis, values: Sequence[float] | np.ndarray) -> np.ndarray:
    places = np.clip(axis.place(values), -0.03, 1.03)
    return drawn.height - _BOTTOM - places * (drawn.height - _BOTTOM - _TOP)


def _path(drawn: Panels, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """All lines as one path; a line breaks where it is undefined."""
    parts: list[str] = []
    for line in lines:
        pen = "M"
        for a, b in zip(_across(drawn, x, line.x), _up(drawn, y, line.y), strict=True):
            if math.isfinite(a) and math.isfinite(b):
                parts.append(f"{pen}{a:.1f} {b:.1f}{'h0' if pen == 'M' else ''}")
                pen = "L"
            else:
                pen = "M"
    return "".join(parts)


def _drawable(text: str) -> Markup:
    """A text without characters that no picture can hold, escaped."""
    return escape(figure_layout.shorten(text, length=10_000))
