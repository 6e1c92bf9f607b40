"""The base class of all records.

A record is a frozen dataclass, one class per JSON file. An undefined number is NaN in memory and
null on disk. Every ``ci95`` is [low, high] and holds its number, or None if it is undefined.
``provenance`` records the inputs and settings of the computation.
"""

import textwrap
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

MAX_LINES, MAX_WIDTH = 15, 100


class Record:
    """Base class of records, with a headline number and a short description.

    Attributes:
        metric: name of the metric, and of the JSON file.
        headline: field of the headline number.
        shapes: lengths of lists, for ``results.shapes``.
    """

    metric: ClassVar[str]
    headline: ClassVar[str]
    shapes: ClassVar[Mapping[str, str]] = {}
    warnings: list[str]

    @property
    def value(self) -> float:
        """The headline number; NaN if it is undefined."""
        return float(getattr(self, self.headline))

    @property
    def where(self) -> str:
        """Model and dataset, in words."""
        return f"{getattr(self, 'model', '')} on {getattr(self, 'dataset', '')}"

    def describe(self) -> str:
        """Describe the record in one line: model, dataset, the headline number and its support."""
        return (
            f"{self.where}: {self.metric} {self.value:.4f}{format_ci(getattr(self, 'ci95', None))}"
        )

    def __str__(self) -> str:
        texts = [self.describe(), *(f"warning: {text}" for text in self.warnings)]
        lines = [line for text in texts for line in wrap(text)]
        if len(lines) > MAX_LINES:
            lines = [*lines[: MAX_LINES - 1], f"... and {len(lines) - MAX_LINES + 1} lines more"]
        return "\n".join(lines)

    __repr__ = __str__


class Outcome(NamedTuple):
    """A record and its draws, for comparisons.

    Attributes:
        record: the record, which is written as JSON.
        draws_key: identifies the groups and draws; statistics with equal keys share draws.
        draws: float64[draws] of each headline number.
        is_checked: False for a record that was read from a file without a digest.
        note: why draws that lie beside the record's file are not used; empty: they are.
    """

    record: Any
    draws_key: str = ""
    draws: Mapping[str, np.ndarray] = {}
    is_checked: bool = True
    note: str = ""


class ListsRepr:
    """A part of a record with long lists or mappings; ``repr`` shows their names and lengths."""

    def __repr__(self) -> str:
        parts = (
            f"{name}[{len(value)}]" if isinstance(value, list | dict) else f"{name}={value!r}"
            for name, value in vars(self).items()
        )
        return "\n".join(wrap(f"{type(self).__name__}({', '.join(parts)})"))


def wrap(text: str) -> list[str]:
    """Lines of at most ``MAX_WIDTH`` characters, all but the first indented."""
    return textwrap.wrap(text, MAX_WIDTH, subsequent_indent="    ")


def format_ci(ends: Any) -> str:
    """An interval with three decimals, after a space; empty if there is not exactly one."""
    return " [{:.3f}, {:.3f}]".format(*ends) if isinstance(ends, list) else ""
