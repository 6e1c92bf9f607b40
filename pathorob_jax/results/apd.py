"""The records of the average performance drop, and its ``MetricKind``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.plain import APART, OMIT_EMPTY
from pathorob_jax.metrics.apd import (
    aggregate_drops,
    average_performance_drop,
    difference_interval,
    performance_drops,
)
from pathorob_jax.results.directional_errors import DirectionalErrors
from pathorob_jax.results.metric_kind import Headline, MetricKind
from pathorob_jax.results.over_datasets import group_by_confounder, mean_drop
from pathorob_jax.results.record import ListsRepr, Record, format_ci

_OF_HEAD = {
    **dict.fromkeys(("id_accuracies", "ood_accuracies"), "splits repetitions"),
    **dict.fromkeys(("id_accuracy_means", "ood_accuracy_means"), "splits"),
    **dict.fromkeys(("chosen", "validation_accuracies"), "splits repetitions"),
}


@dataclass(frozen=True, repr=False)
class HeadResult(ListsRepr):
    """The drop of one classifier on the splits of ``ApdResult``.

    Nested lists are indexed by ``[split][repetition]``. ``chosen`` is the setting chosen on the
    validation rows (``setting``: C, k or epoch). ``directional_errors`` is as in ``ApdResult``.
    """

    shapes: ClassVar[Mapping[str, str]] = _OF_HEAD

    setting: str
    apd_id: float
    apd_ood: float
    nipd_id: float
    nipd_ood: float
    id_accuracies: list[list[float]]
    ood_accuracies: list[list[float]]
    id_accuracy_means: list[float]
    ood_accuracy_means: list[float]
    chosen: list[list[float]]
    validation_accuracies: list[list[float]]
    apd_id_ci95: list[float] | None = field(default=None, metadata=OMIT_EMPTY)
    apd_ood_ci95: list[float] | None = field(default=None, metadata=OMIT_EMPTY)
    directional_errors: DirectionalErrors = field(default_factory=dict, metadata=OMIT_EMPTY)


SAW_ROWS = "saw the evaluation rows"


@dataclass(frozen=True, repr=False)
class FitAll(HeadResult):
    """The drop of a robustified store as it is: its robustifier was fitted on all rows.

    ``note`` says what that means; ``heads`` has the same for other classifiers.
    """

    note: str = SAW_ROWS
    heads: dict[str, HeadResult] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class ApdResult(Record):
    """``apd.json``: average performance drop (arXiv:2507.17845) of one model on one dataset.

    A linear probe is trained on splits of constant size with increasing Cramer's V of class and
    centre. ``apd`` is the mean over repetitions of [mean over later splits of accuracy / that of
    the first] - 1. ``nipd`` is the integral over V of the drop as a share of the room above
    ``chance``. ``id`` means held-out slides of the same centres, ``ood`` other centres. Accuracies
    are balanced; nested lists are indexed by ``[split][repetition]``. ``converged`` is of the
    chosen fits, ``converged_share`` of all fits. ``direction_id[center][class][called]`` is the
    share of such rows at each split, pooled over repetitions, including correct predictions.
    ``directional_errors[center][class]`` has the share of such rows in domain that are called what
    the centre stood for in training; empty in records of versions that had none.
    ``heads`` has the same for other classifiers. ``apd_id_ci95`` and ``apd_ood_ci95`` are for other
    slides of the same centres (``metrics.apd.drop_interval``); None with a single repetition, and
    in records of versions that had none.

    Of a robustified store, all numbers are those with its robustifier fitted again on the training
    rows of each split; a split where that is refused is null, and the drop is the mean over the
    splits that are left. ``fit_all`` has those of the store as it is; None for other stores.
    """

    metric: ClassVar[str] = "apd"
    headline: ClassVar[str] = "apd_id"
    shapes: ClassVar[Mapping[str, str]] = _OF_HEAD | {
        **{"cramers_v": "splits", "chosen_c": "splits repetitions"},
        **{"converged": "splits repetitions"},
        **dict.fromkeys(("direction_id", "direction_ood"), "splits"),
    }

    model: str
    dataset: str
    apd_id: float
    apd_ood: float
    nipd_id: float
    nipd_ood: float
    chance: float
    cramers_v: list[float]
    id_accuracies: list[list[float]]
    ood_accuracies: list[list[float]]
    id_accuracy_means: list[float]
    ood_accuracy_means: list[float]
    validation_accuracies: list[list[float]]
    chosen_c: list[list[float]]
    converged: list[list[bool | None]]
    converged_share: float
    stopping: str
    direction_id: dict[str, dict[str, dict[str, list[float | None]]]]
    direction_ood: dict[str, dict[str, dict[str, list[float | None]]]]
    heads: dict[str, HeadResult]
    repetitions: int
    seed: int
    classes: list[str]
    centers: list[str]
    ood_centers: list[str]
    slides: list[list[list[int]]]
    rows_per_slide: int
    n_training_rows: int
    n_id_test_rows: int
    n_ood_test_rows: int
    warnings: list[str]
    provenance: dict[str, Any]
    apd_id_ci95: list[float] | None = field(default=None, metadata=OMIT_EMPTY)
    apd_ood_ci95: list[float] | None = field(default=None, metadata=OMIT_EMPTY)
    directional_errors: DirectionalErrors = field(default_factory=dict, metadata=OMIT_EMPTY)
    fit_all: FitAll | None = field(default=None, metadata={**OMIT_EMPTY, **APART})

    @property
    def ci95(self) -> list[float] | None:
        """Interval of the headline number, the drop in domain."""
        return self.apd_id_ci95

    @property
    def support(self) -> float:
        """Share of the repetitions whose drop is defined."""
        drops = performance_drops(self.id_accuracies)
        return 1 - sum(map(math.isnan, drops)) / len(drops) if len(drops) else math.nan

    def describe(self) -> str:
        """Describe the drop and nIPD on both sides, and the effort."""
        return (
            f"{self.where}: performance drop in domain {self.apd_id:+.4f}"
            f"{format_ci(self.apd_id_ci95)}, out of domain {self.apd_ood:+.4f}"
            f"{format_ci(self.apd_ood_ci95)}; accuracy without association "
            f"{self.id_accuracy_means[0]:.4f}; nIPD {self.nipd_id:+.4f} and {self.nipd_ood:+.4f}; "
            f"{self.repetitions} repetitions of {len(self.cramers_v)} splits{self._describe_fit()}"
        )

    def _describe_fit(self) -> str:
        if self.fit_all is None:
            return ""
        return (
            f"; robustifier fitted again in {len(self.splits_left)} of them (fitted on all rows: "
            f"{self.fit_all.apd_id:+.4f}, {self.fit_all.apd_ood:+.4f})"
        )

    @property
    def splits_left(self) -> list[int]:
        """Numbers of the splits that have an accuracy in domain."""
        means = enumerate(self.id_accuracy_means)
        return [split for split, mean in means if not math.isnan(mean)]


@dataclass(frozen=True, repr=False)
class ApdAggregate(Record):
    """``apd_aggregate.json``: mean drop of one model over datasets of one confounder.

    ``ci`` is the half width of the 95 % interval of Masson and Loftus over all repetitions, with
    ``df`` degrees of freedom as in the reference; ``ci_textbook`` uses ``df_textbook``.
    """

    metric: ClassVar[str] = "apd_aggregate"
    headline: ClassVar[str] = "apd_id"

    model: str
    datasets: list[str]
    apd_id: float
    ci_id: float
    ci_id_textbook: float
    apd_ood: float
    ci_ood: float
    ci_ood_textbook: float
    df: int
    df_textbook: int
    warnings: list[str]

    @property
    def where(self) -> str:
        """Model and datasets, in words."""
        return f"{self.model} on {', '.join(self.datasets)}"

    def describe(self) -> str:
        """The mean drop on both sides with half widths."""
        return (
            f"{self.where}: performance drop in domain {self.apd_id:+.4f} ± {self.ci_id:.4f}, out "
            f"of domain {self.apd_ood:+.4f} ± {self.ci_ood:.4f}"
        )


def make_apd_aggregate(results: Sequence[ApdResult]) -> ApdAggregate:
    """Mean drop of one model over its datasets, with one value per repetition.

    Raises:
        InputError: there is no result, results are of several models, or a dataset is repeated,
            also by another confounder: these are the same patches.
    """
    models, names = {r.model for r in results}, [r.dataset for r in results]
    if len(by_confounder := group_by_confounder(names)) > 1:
        raise InputError(
            f"results: expected datasets by one confounder, found {list(by_confounder.values())}; "
            "the same patches by two confounders are not two datasets. Aggregate each apart."
        )
    if len(models) != 1 or len(set(names)) != len(names):
        raise InputError(
            f"results: expected one model and each dataset once, found {sorted(models)}, {names}."
        )
    in_domain, out = (
        aggregate_drops([performance_drops(getattr(r, name)) for r in results])
        for name in ("id_accuracies", "ood_accuracies")
    )
    undefined = [r.dataset for r in results if math.isnan(r.apd_ood)]
    return ApdAggregate(
        model=results[0].model,
        datasets=names,
        apd_id=in_domain.mean,
        ci_id=in_domain.ci,
        ci_id_textbook=in_domain.ci_textbook,
        apd_ood=out.mean,
        ci_ood=out.ci,
        ci_ood_textbook=out.ci_textbook,
        df=in_domain.df,
        df_textbook=in_domain.df_textbook,
        warnings=[f"apd_ood: undefined, as it is for {', '.join(undefined)}."] if undefined else [],
    )


def pair_drops(
    before: ApdResult, after: ApdResult
) -> dict[str, tuple[float, float, list[float] | None]]:
    """The drops of two models over the splits and repetitions that both have.

    Returns:
        Before, after, and the interval of the difference, by field.

    Raises:
        InputError: the two have other rows or settings.
    """
    for name in ("repetitions", "seed", "classes", "centers", "slides", "cramers_v", "stopping"):
        if getattr(before, name) != getattr(after, name):
            raise InputError(f"scored with different {name}")
    out = {}
    for domain in ("id", "ood"):
        both = [np.array(getattr(r, f"{domain}_accuracies")) for r in (before, after)]
        absent = np.isnan(both[0]) | np.isnan(both[1])
        was, now = (np.where(absent, np.nan, values) for values in both)
        ends = difference_interval(
            was,
            now,
            n_training=after.n_training_rows,
            n_test=after.n_id_test_rows,
            in_domain=domain == "id",
        )
        drops = [average_performance_drop(values) for values in (was, now)]
        out[f"apd_{domain}"] = (drops[0], drops[1], ends)
    return out


KIND = MetricKind(
    record=ApdResult,
    title="performance drop",
    headlines=(
        Headline("apd_id", "performance drop, in domain", percent=True, mean=mean_drop),
        Headline("apd_ood", "performance drop, out of domain", percent=True, mean=mean_drop),
    ),
    evaluate="pathorob_jax.evaluation.apd:make_apd",
    comparable=(
        ("numbers of repetitions", lambda record: record.repetitions),
        (
            "series of splits",
            lambda r: f"V {', '.join(f'{r.cramers_v[s]:.2f}' for s in r.splits_left)}",
        ),
    ),
    section="pathorob_jax.report.page_apd:build_section",
    pair=pair_drops,
    many_tasks=True,
)
