"""What all records have in common.

A record is a frozen dataclass, one class per JSON file. A number that is undefined is NaN in memory
and null on disk. Every ``ci95`` is [low, high], or None where too few draws are defined.
``provenance`` says what a record was computed from.
"""

import textwrap
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

MAX_LINES, MAX_WIDTH = 15, 100


class Record:
    """What all records share: a headline number, and a short text for people.

    Attributes:
        metric: name of the metric, and of the JSON file.
        headline: field of the number that speaks for the record.
    """

    metric: ClassVar[str]
    headline: ClassVar[str]
    warnings: list[str]

    @property
    def value(self) -> float:
        """The headline number; NaN where it is undefined."""
        return float(getattr(self, self.headline))

    @property
    def where(self) -> str:
        """Model and dataset, in words."""
        return f"{getattr(self, 'model', '')} on {getattr(self, 'dataset', '')}"

    def describe(self) -> str:
        """One line for people: model, dataset, the number and what it rests on."""
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
    """A record and what it can be compared by.

    Attributes:
        record: what is written as JSON.
        draws_key: names the groups and draws; statistics of equal keys were drawn together.
        draws: float64[draws] of each headline number.
    """

    record: Any
    draws_key: str = ""
    draws: Mapping[str, np.ndarray] = {}


class ListsRepr:
    """A part of a record that holds long lists; its text names them with their lengths."""

    def __repr__(self) -> str:
        parts = (
            f"{name}[{len(value)}]" if isinstance(value, list) else f"{name}={value!r}"
            for name, value in vars(self).items()
        )
        return "\n".join(wrap(f"{type(self).__name__}({', '.join(parts)})"))


def wrap(text: str) -> list[str]:
    """Lines of at most ``MAX_WIDTH`` characters, all but the first indented."""
    return textwrap.wrap(text, MAX_WIDTH, subsequent_indent="    ")


def format_ci(ends: Any) -> str:
    """An interval in three decimals, after a space; empty where there is no single one."""
    return " [{:.3f}, {:.3f}]".format(*ends) if isinstance(ends, list) else ""
