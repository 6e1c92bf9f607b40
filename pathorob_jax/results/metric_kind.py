"""The definition of a metric in one object.

A ``MetricKind`` names the record of a metric, its headline numbers, how it is computed, which
settings must be equal for two models to be comparable, and its section of the report. Each metric
defines one in ``results/<metric>.py``; ``results/registry.py`` lists them, and all other code loops
over that list. The functions that compute and draw are in higher subpackages; they are named here
as "module:function" and imported when first needed.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pathorob_jax.core.checks import UsageError
from pathorob_jax.kernels.bootstrap.intervals import UNBOUNDED, Bounds
from pathorob_jax.results.over_datasets import Mean, MeanOf, mean_of_draws
from pathorob_jax.results.record import Outcome, Record

Reference = str | Callable[..., Any]
"""A function, or its place as "module:function"."""


@dataclass(frozen=True)
class Headline:
    """A headline number, shown in tables over models and datasets.

    Attributes:
        field: field of the record.
        title: title of the number.
        higher_is_better: whether a larger value is better.
        scale: the value at which the centre dominates and the value at which biology dominates;
            None: there is no such scale.
        percent: whether it is shown in per cent.
        compared_as: name of the statistic in comparisons of models draw by draw; empty: models are
            not compared by it.
        in_overview: whether the first table of the report has a column for it.
        in_summary: whether ``summary.json`` has its mean over PathoROB's datasets.
        mean: function that computes the mean over datasets, with its interval; see ``average``.
        bounds: smallest and largest value that the number can have.
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
    bounds: Bounds = UNBOUNDED

    def __post_init__(self) -> None:
        if self.compared_as and not self.higher_is_better:
            raise UsageError(
                f"{self.field}: the comparison of models ranks the highest number first; compare a "
                "number of which more is better, or leave compared_as empty."
            )

    def average(self, outcomes: Sequence[Outcome]) -> Mean:
        """Mean over the datasets of one model, its interval within ``bounds``."""
        value, ci95 = self.mean(outcomes, self.field)
        low, high = self.bounds
        return Mean(value, ci95 and [max(ci95[0], min(low, value)), min(ci95[1], max(high, value))])


@dataclass(frozen=True)
class MetricKind:
    """The definition of a metric.

    Attributes:
        record: class of its record.
        title: title of the metric.
        headlines: headline numbers; the first one determines the order of models.
        evaluate: reference to the function (``evaluation.run.Evaluation``) -> ``Outcome``.
        comparable: (name, function of a record) pairs; the values must be equal between models.
        section: reference to the function (collection, draw) -> ``report.section.Section``; None: a
            table of all numbers.
        tables: reference to the function (collection, dataset) -> (heading, what a row is, table)
            of each table that documents show; None: one of all numbers.
        table: stem of its CSV file; empty: the metric's name.
        pair: function of a record before and one after robustification -> before, after and the
            interval of the difference, by field, over what both records have; None: the headline
            numbers, and their shared draws.
        many_tasks: whether it is computed as many tasks, which several processes can share through
            a folder.
    """

    record: type[Record]
    title: str
    headlines: tuple[Headline, ...]
    evaluate: Reference
    comparable: tuple[tuple[str, Callable[[Any], Any]], ...] = ()
    section: Reference | None = None
    tables: Reference | None = None
    table: str = ""
    pair: Callable[[Any, Any], dict[str, tuple[float, float, list[float] | None]]] | None = None
    many_tasks: bool = False

    @property
    def name(self) -> str:
        """Name of the metric."""
        return self.record.metric


def resolve(reference: Reference) -> Callable[..., Any]:
    """Import the function that a reference "module:function" names."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
