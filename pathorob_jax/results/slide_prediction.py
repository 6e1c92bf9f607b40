"""The records of slide-level prediction, and their ``MetricKind``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from pathorob_jax.core.plain import APART, OMIT_EMPTY
from pathorob_jax.metrics.apd import aggregate_drops, performance_drops
from pathorob_jax.results.directional_errors import DirectionalErrors
from pathorob_jax.results.metric_kind import Headline, MetricKind
from pathorob_jax.results.over_datasets import Mean
from pathorob_jax.results.record import ListsRepr, Outcome, Record, format_ci

SIDES = ("id", "ood")
_BY_SPLIT = ("auc_id", "auc_ood", "balanced_accuracy_id", "balanced_accuracy_ood")


@dataclass(frozen=True, repr=False)
class PresetResult(ListsRepr):
    """Slide-level prediction by one preset.

    Lists are indexed by ``[split][repetition]``; of several networks a split, the mean over them.
    ``drop`` and ``nipd`` are of the balanced accuracy, as for patches; ``auc_drop`` and
    ``auc_nipd`` are of the area under the ROC curve. ``intervals`` holds those of the drops, by
    field, for other slides of the same centres (``metrics.apd.drop_interval``).
    ``directional_errors`` is of the bags in domain, by centre and class.
    """

    shapes: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys((*_BY_SPLIT, "auc_ood_by_center", "chosen"), "splits repetitions"),
        "intervals": "2",
    }

    auc_id: list[list[float]]
    auc_ood: list[list[float]]
    auc_ood_by_center: dict[str, list[list[float]]]
    balanced_accuracy_id: list[list[float]]
    balanced_accuracy_ood: list[list[float]]
    drop_id: float
    drop_ood: float
    nipd_id: float
    nipd_ood: float
    auc_drop_id: float
    auc_drop_ood: float
    auc_nipd_id: float
    auc_nipd_ood: float
    intervals: dict[str, list[float] | None]
    directional_errors: DirectionalErrors
    setting: str
    chosen: list[list[float]]
    settings: dict[str, Any]

    def mean(self, name: str) -> list[float]:
        """float[splits] mean over the repetitions of a list of the record; NaN where undefined.

        Args:
            name: ``auc_id`` and the like.
        """
        values = np.array(getattr(self, name), np.float64)
        known = ~np.isnan(values)
        n, total = known.sum(axis=1), np.where(known, values, 0).sum(axis=1)
        out = np.full(len(values), math.nan)
        means: list[float] = np.divide(total, n, out=out, where=n > 0).tolist()
        return means


@dataclass(frozen=True, repr=False)
class TableScore(ListsRepr):
    """Measures of one classifier on the test slides of a table, with intervals by measure.

    ``auc`` and ``balanced_accuracy`` of classes; ``concordance`` (Harrell's C) and ``nll`` (mean
    negative log likelihood) of survival. Intervals are for other slides (a jackknife).
    """

    shapes: ClassVar[Mapping[str, str]] = {"intervals": "2"}

    values: dict[str, float]
    intervals: dict[str, list[float] | None]
    n_training: int


@dataclass(frozen=True, repr=False)
class TablePreset(ListsRepr):
    """One preset on the slides of a table.

    ``without_added`` is trained without the slides of the added centres (None: none were named),
    and ``added`` holds what they add: the measures of ``all`` less those.
    """

    all: TableScore
    without_added: TableScore | None
    added: TableScore | None


@dataclass(frozen=True, repr=False)
class TableResult(ListsRepr):
    """Prediction of the test slides of a table that names its splits."""

    source: str
    measure: str
    classes: list[str]
    centers: list[str]
    added_centers: list[str]
    n_training: int
    n_validation: int
    n_test: int
    presets: dict[str, TablePreset]


@dataclass(frozen=True, repr=False)
class SlidePredictionResult(Record):
    """``slide_prediction.json``: slides told apart by their bags of patches, by class and centre.

    Classifiers are trained on splits of equally many slides with increasing Cramer's V of class
    and centre (the schedule of the performance drop, with bags in the place of slides), and tested
    on slides of the same centres (``id``) and of others (``ood``). ``presets`` has the results by
    preset; ``drop_id`` and ``drop_ood`` are those of ``preset``. Where no schedule can be made, or
    a table of slides names the splits, ``cramers_v`` and ``presets`` are None, and ``warnings`` say
    why; ``table`` has the results of those splits.
    """

    metric: ClassVar[str] = "slide_prediction"
    headline: ClassVar[str] = "drop_id"
    shapes: ClassVar[Mapping[str, str]] = {"cramers_v": "splits"}

    model: str
    dataset: str
    preset: str
    drop_id: float
    drop_ood: float
    drop_id_ci95: list[float] | None
    drop_ood_ci95: list[float] | None
    cramers_v: list[float] | None
    presets: dict[str, PresetResult] | None
    classes: list[str]
    centers: list[str]
    ood_centers: list[str]
    repetitions: int
    seeds: int
    seed: int
    n_bags: int
    n_training_bags: int
    n_id_test_bags: int
    n_ood_test_bags: int
    warnings: list[str]
    provenance: dict[str, Any]
    table: TableResult | None = field(default=None, metadata={**OMIT_EMPTY, **APART})

    @property
    def ci95(self) -> list[float] | None:
        """Interval of the headline number, the drop in domain."""
        return self.drop_id_ci95

    @property
    def support(self) -> float:
        """Share of the repetitions whose drop is defined."""
        if not self.presets:
            return 0.0
        drops = performance_drops(self.presets[self.preset].balanced_accuracy_id)
        return 1 - float(np.isnan(drops).mean())

    def describe(self) -> str:
        """Describe areas and drops of every preset."""
        if self.table is not None:
            found = [
                f"{name}: {self.table.measure} {preset.all.values[self.table.measure]:.4f}"
                f"{format_ci(preset.all.intervals[self.table.measure])}"
                for name, preset in self.table.presets.items()
            ]
            return f"{self.where}: {self.table.n_test} test slides, {'; '.join(found)}"
        if not self.presets:
            return f"{self.where}: slide-level prediction without a schedule"
        parts = [_describe(name, preset) for name, preset in self.presets.items()]
        return (
            f"{self.where}: slide-level prediction, {'; '.join(parts)}; {self.repetitions} "
            f"repetitions of {len(self.cramers_v or [])} splits of {self.n_training_bags} slides"
        )


def _describe(name: str, preset: PresetResult) -> str:
    auc = preset.mean("auc_id")
    return (
        f"{name}: AUC {auc[0]:.3f} to {auc[-1]:.3f} in domain, drop {preset.drop_id:+.4f}"
        f"{format_ci(preset.intervals.get('drop_id'))} and {preset.drop_ood:+.4f} out of domain"
    )


def mean_drop(outcomes: Sequence[Outcome], name: str) -> Mean:
    """Mean of ``drop_id`` or ``drop_ood`` over datasets.

    The interval of a single dataset is that of its record; over several it is over repetitions
    alone, as for patches.
    """
    records = [outcome.record for outcome in outcomes]
    value = float(np.mean([getattr(record, name) for record in records]))
    if len(records) == 1:
        return Mean(value, getattr(records[0], f"{name}_ci95"))
    side = name.removeprefix("drop_")
    if any(not record.presets or record.repetitions < 2 for record in records):
        return Mean(value, None)
    presets = [record.presets[record.preset] for record in records]
    drops = [performance_drops(getattr(p, f"balanced_accuracy_{side}")) for p in presets]
    if not np.isfinite(np.concatenate(drops)).all():
        return Mean(value, None)
    found = aggregate_drops(drops)
    return Mean(found.mean, [found.mean - found.ci, found.mean + found.ci])


KIND = MetricKind(
    record=SlidePredictionResult,
    title="slide-level prediction",
    headlines=(
        Headline(
            "drop_id",
            "slide-level drop, in domain",
            percent=True,
            in_summary=False,
            mean=mean_drop,
        ),
        Headline(
            "drop_ood",
            "slide-level drop, out of domain",
            percent=True,
            in_overview=False,
            in_summary=False,
            mean=mean_drop,
        ),
    ),
    evaluate="pathorob_jax.evaluation.slide_prediction:make_slide_prediction",
    comparable=(
        ("presets", lambda record: record.preset),
        ("numbers of repetitions", lambda record: record.repetitions),
        ("series of splits", lambda r: f"V {', '.join(f'{v:.2f}' for v in r.cramers_v or [])}"),
    ),
    section="pathorob_jax.report.page_slide_prediction:build_section",
    tables="pathorob_jax.report.page_slide_prediction:build_tables",
    many_tasks=True,
)
