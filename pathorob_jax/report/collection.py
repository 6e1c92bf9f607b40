"""All results of a report in their order.

Enters: records with their draws. Leaves: a board to look them up in by kind, model and dataset, the
order of models, and what several datasets say together.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.metrics.apd import Aggregate, aggregate_drops, performance_drops
from pathorob_jax.results.compare_models import Entry, mean_draws
from pathorob_jax.results.records import (
    ApdResult,
    ClusteringResult,
    MarginsResult,
    ProbesResult,
    RobustnessIndexResult,
)
from pathorob_jax.results.result_files import Outcome, percentile_interval

# The number of each kind of record that speaks for a model; the first kind found orders them.
HEADLINES: dict[Any, str] = {
    RobustnessIndexResult: "robustness_index",
    ApdResult: "apd_id",
    ClusteringResult: "clustering_score",
    MarginsResult: "croma",
    ProbesResult: "ood_biology_auc",
}


class Board:
    """The records by kind, model and dataset, and the order in which they are shown."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self._outcomes: dict[tuple[Any, str, str], Outcome] = {}
        for outcome in outcomes:
            record = outcome.record
            key = (type(record), record.model, record.dataset)
            if key in self._outcomes:
                raise InputError(
                    f"results: expected one {record.metric}.json for model {record.model!r} on "
                    f"dataset {record.dataset!r}, found two; remove the folder that was copied."
                )
            self._outcomes[key] = outcome
        kinds = {kind for kind, _, _ in self._outcomes}
        self._first = next((kind for kind in HEADLINES if kind in kinds), RobustnessIndexResult)
        self.models = sorted({model for _, model, _ in self._outcomes}, key=self._rank)

    def datasets(self, kind: Any) -> list[str]:
        """Datasets with a record of this kind, sorted."""
        return sorted({dataset for of, _, dataset in self._outcomes if of is kind})

    def get(self, kind: Any, model: str, dataset: str) -> Any | None:
        """The record of a model on a dataset, if there is one."""
        outcome = self._outcomes.get((kind, model, dataset))
        return None if outcome is None else outcome.record

    def of_dataset(self, kind: Any, dataset: str) -> list[Any]:
        """The dataset's records in the order of models."""
        found = (self.get(kind, model, dataset) for model in self.models)
        return [record for record in found if record is not None]

    def of_model(self, kind: Any, model: str) -> list[Any]:
        """The model's records in the order of datasets."""
        found = (self.get(kind, model, dataset) for dataset in self.datasets(kind))
        return [record for record in found if record is not None]

    def of_kind(self, kind: Any) -> list[Any]:
        """All records of a kind, by dataset in the order of models."""
        return [r for dataset in self.datasets(kind) for r in self.of_dataset(kind, dataset)]

    def mean(self, kind: Any, model: str) -> float:
        """Unweighted mean over all datasets of the report; NaN when one lacks a value."""
        values = [getattr(record, HEADLINES[kind]) for record in self.of_model(kind, model)]
        if not values or len(values) < len(self.datasets(kind)):
            return math.nan
        return sum(values) / len(values)

    def mean_interval(self, kind: Any, model: str) -> list[float] | None:
        """95 % interval of the mean: draws of the datasets added one by one."""
        if not math.isfinite(self.mean(kind, model)):
            return None
        outcomes = [self._outcomes[kind, model, dataset] for dataset in self.datasets(kind)]
        drawn = mean_draws([outcome.draws.get(HEADLINES[kind]) for outcome in outcomes])
        return None if drawn is None else percentile_interval(drawn)

    def entries(self, kind: Any) -> dict[str, list[Entry]]:
        """By dataset, what models are compared by."""
        field = HEADLINES[kind]
        out: dict[str, list[Entry]] = {dataset: [] for dataset in self.datasets(kind)}
        for dataset, found in out.items():
            for record in self.of_dataset(kind, dataset):
                drawn = self._outcomes[kind, record.model, dataset]
                value = getattr(record, field)
                found.append(Entry(record.model, value, drawn.draws_key, drawn.draws.get(field)))
        return out

    def chance(self, dataset: str) -> float:
        """The index of an embedding without structure: it follows from label counts alone."""
        records = self.of_dataset(RobustnessIndexResult, dataset)
        values = [r.null_random_features for r in records if math.isfinite(r.null_random_features)]
        return sum(values) / len(values) if values else math.nan

    def mean_chance(self) -> float:
        """Mean of ``chance`` over datasets; NaN where one is unknown."""
        values = [self.chance(dataset) for dataset in self.datasets(RobustnessIndexResult)]
        return sum(values) / len(values) if values else math.nan

    def _rank(self, model: str) -> tuple[bool, float, str]:
        """Complete models by falling mean; the others after them, by what they have."""
        mean = self.mean(self._first, model)
        if math.isfinite(mean):
            return (False, -mean, model)
        found = self.of_model(self._first, model)
        known = [getattr(record, HEADLINES[self._first]) for record in found]
        known = [value for value in known if math.isfinite(value)]
        return (True, -sum(known) / len(known) if known else math.inf, model)


def aggregate(records: Sequence[ApdResult], side: str) -> Aggregate | None:
    """The drop of one model over datasets with its interval; None where it is undefined.

    Args:
        records: of one model.
        side: ``id`` or ``ood``.
    """
    drops = [performance_drops(getattr(record, f"{side}_accuracies")) for record in records]
    if not drops or not np.isfinite(np.concatenate(drops)).all():
        return None
    # Single values shifted to a common mean are all equal: they would give the width 0.
    return aggregate_drops(drops) if max(map(len, drops)) > 1 else None
