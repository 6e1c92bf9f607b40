"""Results of several models on several datasets: lookup, order and comparison."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from pathorob_jax.core.checks import InputError
from pathorob_jax.models.names import is_control
from pathorob_jax.results import registry
from pathorob_jax.results.compare_models import Comparison, Entry, compare_all
from pathorob_jax.results.metric_kind import Headline, MetricKind
from pathorob_jax.results.over_datasets import group_by_confounder
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import OVER_DATASETS, read_outcomes
from pathorob_jax.results.robustness_index import RobustnessIndexResult


class ModelMean(NamedTuple):
    """A headline number of one model over all datasets of one confounder.

    Attributes:
        value: NaN where undefined.
        ci95: None where undefined.
        why: reason why the value is undefined; empty otherwise.
    """

    value: float
    ci95: list[float] | None
    why: str


class Collection:
    """Records by class, model and dataset, and the order in which models are shown.

    Attributes:
        root: folder of the results, for what lies beside records; None: there is none.
    """

    def __init__(self, outcomes: Iterable[Outcome], *, root: str | None = None) -> None:
        self.root = root
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
        classes = {record for record, _, _ in self._outcomes}
        self.kinds = [kind for kind in registry.KINDS.values() if kind.record in classes]
        """Metrics that there are results of, in the order in which they are shown."""
        self.models = sorted({model for _, model, _ in self._outcomes}, key=self._rank)
        """Models, the highest mean first; controls come last."""

    @classmethod
    def read(cls, root: str) -> "Collection":
        """All records of single datasets under ``root``, with their draws.

        Raises:
            FileNotFoundError: there are no results.
            InputError: a record cannot be read, or two have the same model and dataset.
        """
        found = read_outcomes(root)
        return cls((o for o in found if not isinstance(o.record, OVER_DATASETS)), root=root)

    @property
    def all_outcomes(self) -> list[Outcome]:
        """All records with their draws, in the order in which they were given."""
        return list(self._outcomes.values())

    def datasets(self, record: Any, confounder: str | None = None) -> list[str]:
        """Datasets with a record of this class, sorted; of one confounder, or of all (None)."""
        found = sorted({dataset for kind, _, dataset in self._outcomes if kind is record})
        return found if confounder is None else group_by_confounder(found).get(confounder, [])

    def confounders(self, record: Any) -> list[str]:
        """Confounders by which datasets were scored; the medical centre is empty and first."""
        return list(group_by_confounder(self.datasets(record)))

    def all_datasets(self) -> list[str]:
        """Datasets with any record, sorted."""
        return sorted({dataset for _, _, dataset in self._outcomes})

    def get(self, record: Any, model: str, dataset: str) -> Any | None:
        """The record of a model on a dataset, if there is one."""
        outcome = self._outcomes.get((record, model, dataset))
        return None if outcome is None else outcome.record

    def outcome(self, record: Any) -> Outcome:
        """A record of the collection with its draws."""
        return self._outcomes[type(record), record.model, record.dataset]

    def outcomes(self, dataset: str) -> list[Outcome]:
        """Records of a dataset with their draws, in the order of metrics and models."""
        keys = [(kind.record, model, dataset) for kind in self.kinds for model in self.models]
        return [self._outcomes[key] for key in keys if key in self._outcomes]

    def of_dataset(self, record: Any, dataset: str) -> list[Any]:
        """Records of a dataset, in the order of models."""
        records = (self.get(record, model, dataset) for model in self.models)
        return [r for r in records if r is not None]

    def of_model(self, record: Any, model: str, confounder: str | None = None) -> list[Any]:
        """Records of a model, in the order of datasets; of one confounder, or of all (None)."""
        datasets = self.datasets(record, confounder)
        records = (self.get(record, model, dataset) for dataset in datasets)
        return [r for r in records if r is not None]

    def of_kind(self, record: Any) -> list[Any]:
        """All records of a class, by dataset in the order of models."""
        return [r for dataset in self.datasets(record) for r in self.of_dataset(record, dataset)]

    def mean(
        self, kind: MetricKind, headline: Headline, model: str, confounder: str | None = None
    ) -> ModelMean:
        """Mean of a headline number over all datasets for which any model has a record.

        Datasets by another confounder are the same patches again and are never averaged with them.

        Args:
            kind: metric.
            headline: number.
            model: model.
            confounder: whose datasets; None: the first of ``confounders``.
        """
        if confounder is None:
            confounder = self.confounders(kind.record)[0]
        datasets = self.datasets(kind.record, confounder)
        outcomes = {d: self._outcomes.get((kind.record, model, d)) for d in datasets}
        known = [outcome for outcome in outcomes.values() if outcome is not None]
        lacking = [dataset for dataset, outcome in outcomes.items() if outcome is None]
        if lacking or not known:
            return ModelMean(math.nan, None, f"not evaluated on {', '.join(lacking)}")
        values = [getattr(outcome.record, headline.field) for outcome in known]
        unknown = [d for d, v in zip(datasets, values, strict=True) if not math.isfinite(v)]
        if unknown:
            return ModelMean(math.nan, None, f"undefined on {', '.join(unknown)}")
        return ModelMean(*headline.average(known), "")

    def entries(self, kind: MetricKind, headline: Headline) -> dict[str, list[Entry]]:
        """Entries by which models are compared, by dataset."""
        by_dataset: dict[str, list[Entry]] = {d: [] for d in self.datasets(kind.record)}
        for dataset, entries in by_dataset.items():
            for record in self.of_dataset(kind.record, dataset):
                outcome = self._outcomes[kind.record, record.model, dataset]
                drawn = outcome.draws.get(headline.field)
                value = getattr(record, headline.field)
                # Draws are of cases where these hold several slides; only some records count them.
                n_slides = getattr(record, "n_groups", getattr(record, "n_slides", 0))
                entries.append(Entry(record.model, value, outcome.draws_key, drawn, n_slides))
        return by_dataset

    def compare(self) -> list[Comparison]:
        """Compare models by each number that is compared; empty for a single model."""
        if len(self.models) < 2:
            return []
        return [
            comparison
            for kind in self.kinds
            for headline in kind.headlines
            if headline.compared_as
            for comparison in compare_all(
                headline.compared_as, self.entries(kind, headline), bounds=headline.bounds
            )
        ]

    @property
    def encoders(self) -> list[str]:
        """Models that are no controls, in their order."""
        return [model for model in self.models if not is_control(model)]

    @property
    def controls(self) -> list[str]:
        """Controls, in their order."""
        return [model for model in self.models if is_control(model)]

    @property
    def candidates(self) -> list[str]:
        """Models that are set against each other: encoders; controls where there is none."""
        return self.encoders or self.models

    def chance(self, model: str, confounder: str) -> float:
        """Index of an embedding without structure on the patches of a model, which labels decide.

        The mean over the datasets of a confounder; NaN where one of them is lacking or unknown.
        """
        datasets = self.datasets(RobustnessIndexResult, confounder)
        found = self.of_model(RobustnessIndexResult, model, confounder)
        if not found or len(found) < len(datasets):
            return math.nan
        return sum(record.null_random_features for record in found) / len(found)

    def chances(self, confounder: str) -> list[float]:
        """The least and the greatest chance of the models; empty if none is known."""
        found = [self.chance(model, confounder) for model in self.models]
        known = [value for value in found if math.isfinite(value)]
        return [min(known), max(known)] if known else []

    def _rank(self, model: str) -> tuple[bool, bool, float, str]:
        """Complete models by decreasing mean, then the others by what they have, then controls."""
        last = is_control(model)
        if not self.kinds:
            return (last, True, math.inf, model)
        kind = self.kinds[0]
        [first, *_] = kind.headlines
        sign = -1 if first.higher_is_better else 1
        mean = self.mean(kind, first, model).value
        if math.isfinite(mean):
            return (last, False, sign * mean, model)
        values = [getattr(record, first.field) for record in self.of_model(kind.record, model)]
        known = [value for value in values if math.isfinite(value)]
        return (last, True, sign * sum(known) / len(known) if known else math.inf, model)
