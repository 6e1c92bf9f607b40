"""What the house knows of a metric, in one object: a metric is entered once.

A ``MetricKind`` names the record of a metric, its headline numbers, how it is computed, what must
be equal for two models to be comparable, and its section of the report. Each metric defines one in
``results/<metric>.py``; ``results/registry.py`` lists them, and everything else loops over that
list. The functions that compute and that draw live in higher wings and are named here as
"module:function"; they are imported when they are first needed.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pathorob_jax.results.over_datasets import MeanOf, mean_of_draws
from pathorob_jax.results.record import Record

Reference = str | Callable[..., Any]
"""A function, or its place as "module:function"."""


@dataclass(frozen=True)
class Headline:
    """A number that speaks for a model, in tables over models and datasets.

    Attributes:
        field: of the record.
        title: in words.
        higher_is_better: direction.
        scale: the value at which the centre rules, and that at which biology does; None: neither.
        percent: whether it is shown in per cent.
        compared_as: name of the statistic where models are compared draw by draw; empty: they are
            not.
        in_overview: whether the report's first table has a column for it.
        in_summary: whether ``summary.json`` holds its mean over PathoROB's datasets.
        mean: mean over datasets, with its interval.
    """

    field: str
    title: str
    higher_is_better: bool = True
    scale: tuple[float, float] | None = None
    percent: bool = False
    compared_as: str = ""
    in_overview: bool = True
    in_summary: bool = True
    mean: MeanOf = mean_of_draws


@dataclass(frozen=True)
class MetricKind:
    """All that is known of a metric.

    Attributes:
        record: class of its record.
        title: in words.
        headlines: numbers that speak for a model; the first one orders models.
        evaluate: (``evaluation.run.Evaluation``) -> ``Outcome``.
        comparable: (what, function of a record) that must be equal between models.
        section: (collection, draw) -> ``report.section.Section``; None: a table of all numbers.
        table: stem of its CSV file; empty: the metric's name.
        many_tasks: whether it is computed in many tasks, which several processes share through a
            folder.
    """

    record: type[Record]
    title: str
    headlines: tuple[Headline, ...]
    evaluate: Reference
    comparable: tuple[tuple[str, Callable[[Any], Any]], ...] = ()
    section: Reference | None = None
    table: str = ""
    many_tasks: bool = False

    @property
    def name(self) -> str:
        """Name of the metric."""
        return self.record.metric


def resolve(reference: Reference) -> Callable[..., Any]:
    """The function that a reference means."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
