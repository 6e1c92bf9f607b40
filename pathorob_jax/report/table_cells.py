"""Cells, rows and tables as plain data, and the formatting of numbers.

The templates only lay the tables out.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

UNDEFINED = "–"


@dataclass(frozen=True)
class Span:
    """An interval on a track, in per cent of the track's width; ``zero`` is a line across it."""

    low: float
    high: float
    point: float
    zero: float | None = None


@dataclass(frozen=True)
class Cell:
    """One number of a table, with the note below it and its tooltip ``title``.

    ``is_faint``: it rests on too little to be read like the others.
    """

    text: str
    title: str = ""
    note: str = ""
    warning: str = ""
    background: str = ""
    width: float | None = None
    mark: float | None = None
    stack: tuple[tuple[str, float], ...] = ()
    span: Span | None = None
    sort: str = ""
    best: bool = False
    is_faint: bool = False


@dataclass(frozen=True)
class Row:
    """A table row: its name, a note below the name, and its cells."""

    name: str
    note: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """A table: its title, the names of the columns, and the rows."""

    title: str
    columns: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Column:
    """A column of a headline table.

    Attributes:
        name: its name.
        note: below the name.
        term: key of a word that is explained there (``words.WORDS``); empty: none.
        metric: name of its metric, by which it is filtered; empty: it always stands.
    """

    name: str
    note: str
    term: str = ""
    metric: str = ""


def number_cell(value: float, *, why: str = "", interval: Sequence[float] | None = None) -> Cell:
    """A number with its interval below; ``why`` is the tooltip if it is undefined."""
    defined = math.isfinite(value)
    note = format_interval(interval) if defined else ""
    return Cell(format_number(value), title="" if defined else why, note=note, sort=sort_key(value))


def format_number(value: float) -> str:
    """Three decimals; an en dash for an undefined value; no sign for a value that rounds to 0."""
    if not math.isfinite(value):
        return UNDEFINED
    text = f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def format_signed(value: float) -> str:
    """Like ``format_number``, with a plus sign before positive values."""
    text = format_number(value)
    return f"+{text}" if math.isfinite(value) and float(f"{value:.3f}") > 0 else text


def format_percent(value: float) -> str:
    """A drop in per cent, with its sign."""
    if not math.isfinite(value):
        return UNDEFINED
    return f"{100 * value:+.2f} %".replace("-", "−")


def clip_share(ends: Sequence[float] | None) -> list[float] | None:
    """An interval of a share, from 0 to 1; that of a mean is symmetric and may reach beyond."""
    return None if ends is None else [min(max(end, 0.0), 1.0) for end in ends]


def format_interval(interval: Sequence[float] | None) -> str:
    """Both ends, with spaces around the dash if an end is negative; empty if one is undefined."""
    ends = defined_ends(interval)
    if ends is None:
        return ""
    low, high = map(format_number, ends)
    return f"{low} – {high}" if min(ends) < 0 else f"{low}–{high}"


def format_percent_interval(interval: Sequence[float] | None) -> str:
    """Both ends of the interval of a drop, in per cent; empty if one is undefined."""
    ends = defined_ends(interval)
    if ends is None:
        return ""
    low, high = (format_percent(end).removesuffix(" %") for end in ends)
    return f"{low} – {high} %"


def format_share(value: float) -> str:
    """A percentage; one decimal where rounding would hide that it is not 0, 50 or 100 %."""
    if not math.isfinite(value):
        return UNDEFINED
    if 0 < value < 0.001:
        return "< 0.1 %"
    fine = 0 < value < 0.01 or 0.49 < value < 0.5 or 0.99 < value < 1
    if not fine:
        return f"{100 * value:.0f} %"
    rounded = f"{100 * value:.1f}"
    return f"{math.floor(1000 * value) / 10 if rounded in ('50.0', '100.0') else rounded} %"


def defined_ends(interval: Sequence[float] | None) -> tuple[float, float] | None:
    """Both ends of an interval; None if one is undefined."""
    if not interval or not all(math.isfinite(end) for end in interval):
        return None
    low, high = interval
    return low, high


def highest(values: Iterable[float]) -> float:
    """The largest defined value if there are at least two, else NaN."""
    values = [value for value in values if math.isfinite(value)]
    return max(values) if len(values) > 1 else math.nan


def sort_key(value: float) -> str:
    """Key by which the browser sorts, of seven digits; empty for an undefined value."""
    return f"{float(value):.7g}" if math.isfinite(value) else ""
