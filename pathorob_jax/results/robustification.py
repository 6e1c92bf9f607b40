"""The record of what a robustifier bought and cost, its verdict, and its ``MetricKind``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pathorob_jax.kernels.bootstrap.intervals import SIGNED
from pathorob_jax.results.metric_kind import Headline, MetricKind
from pathorob_jax.results.record import Record
from pathorob_jax.robustify.parent import NAMED_ROWS

BEFORE, AFTER = "before", "after"
# Rows that the residual centre is probed in, see ``RobustificationResult``.
CROSS_FIT, STORED = "cross_fit", "stored"
INDEX, AUC, ACCURACY = "robustness_index", "biology_auc", "biology_knn_balanced_accuracy"
# A fall of a biology score up to this counts as none, however narrow its interval.
TOLERATED_LOSS = 0.01


@dataclass(frozen=True)
class Paired:
    """A number before and after, and the 95 % interval of the difference over shared draws."""

    before: float
    after: float
    difference: float
    ci95: list[float] | None


@dataclass(frozen=True)
class Null:
    """A probe's areas with centres permuted over slides: their mean and 95th percentile."""

    mean: float
    p95: float


@dataclass(frozen=True)
class ResidualCenter:
    """Area of one probe of the centre after robustification, before it, and with permuted centres.

    0.5 is chance; an area below 0.5 stays as it is.
    """

    auc: float
    auc_before: float
    null: Null


@dataclass(frozen=True)
class Biology:
    """What became of biology; each mapping but those by class and centre has before and after.

    ``auc`` is the macro one-vs-rest area of a logistic probe that is trained on half of the slides
    and scored on the other half. ``knn_balanced_accuracy`` is of the vote of k neighbours of other
    slides. ``variance_removed`` is 1 - total variance after / before. ``neighbors_kept`` is the
    mean share of the 11 nearest rows of the own centre and other slides that stay.
    """

    auc: dict[str, float]
    auc_per_class: dict[str, dict[str, float]]
    auc_per_center: dict[str, dict[str, float]]
    knn_balanced_accuracy: dict[str, float]
    knn_recall_per_class: dict[str, dict[str, float]]
    knn_balanced_accuracy_per_center: dict[str, dict[str, float]]
    effective_rank: dict[str, float]
    variance_removed: float
    neighbors_kept: float


@dataclass(frozen=True)
class CenterChange:
    """How one centre moved.

    ``shift`` is the length of the change of its mean, in root mean square distances of all rows to
    their mean before. ``scale`` is the spread of its rows about their mean, after / before.
    """

    shift: float
    scale: float
    robustness_index: dict[str, float]


@dataclass(frozen=True, repr=False)
class RobustificationResult(Record):
    """``robustification.json``: a robustified model beside its parent, on one dataset.

    ``gain`` is the robustness index after less that before, ``ci95`` its interval over shared draws
    of slides. ``paired`` has this and other numbers. ``residual_center`` is of rows that the fit
    did not see (``residual_rows``: ``cross_fit``, the method fitted anew on each half of the slides
    for the other; ``stored``, the embeddings as they are, whose fit used other rows or cannot be
    repeated on halves).
    """

    metric: ClassVar[str] = "robustification"
    headline: ClassVar[str] = "gain"

    model: str
    dataset: str
    parent: str
    method: str
    fit_on: str
    covariates: str
    used_labels: bool
    cramers_v_fit: float
    k: int
    gain: float
    ci95: list[float] | None
    verdict: str
    residual_rows: str
    residual_center: dict[str, ResidualCenter]
    biology: Biology
    paired: dict[str, Paired]
    per_center: dict[str, CenterChange]
    n_samples: int
    n_slides: int
    warnings: list[str]
    provenance: dict[str, Any]

    @property
    def is_of_tiles(self) -> bool:
        """Whether the method changed images, and not embeddings."""
        return self.fit_on == NAMED_ROWS

    @property
    def is_honest(self) -> bool:
        """Whether the fit did without the classes of the rows that it is judged by."""
        return not self.used_labels or self.fit_on == "cross_fit"

    def describe(self) -> str:
        """Describe the verdict."""
        return f"{self.where}: {self.verdict}"


def gained(paired: Mapping[str, Paired]) -> bool:
    """Whether the index rose by more than its interval: the lower end of the difference is above 0.

    Without draws there is no interval, and nothing is known to have risen.
    """
    ends = paired[INDEX].ci95
    return ends is not None and ends[0] > 0


def list_losses(paired: Mapping[str, Paired]) -> list[str]:
    """Biology scores that fell by more than 0.01, and by more than their interval if it is known.

    The scores are the area of the logistic probe and the balanced accuracy of the neighbours' vote.
    """
    lost = []
    for name in (AUC, ACCURACY):
        number = paired[name]
        sure = number.ci95 is None or number.ci95[1] < 0
        if number.difference < -TOLERATED_LOSS and sure:
            lost.append(name)
    return lost


def list_unknown(paired: Mapping[str, Paired]) -> list[str]:
    """Scores without which nobody can say whether it helped, and whose difference is undefined."""
    return [name for name in (INDEX, AUC, ACCURACY) if not math.isfinite(paired[name].difference)]


def helped(paired: Mapping[str, Paired]) -> bool:
    """Whether the index rose by more than its interval and biology is known to be kept."""
    return gained(paired) and not list_losses(paired) and not list_unknown(paired)


def write_verdict(
    method: str,
    paired: Mapping[str, Paired],
    residual: Mapping[str, ResidualCenter],
    *,
    residual_rows: str = CROSS_FIT,
    saw_classes: bool = False,
) -> str:
    """One sentence that says whether robustification helped.

    It helped where the index rose by more than its interval (``gained``) and no biology score was
    lost (``list_losses``). Where a score is undefined, it cannot be judged.

    Args:
        method: how it was robustified.
        paired: numbers before and after.
        residual: areas of the probes of the centre.
        residual_rows: rows that ``residual`` is of, ``cross_fit`` or ``stored``.
        saw_classes: the fit used the classes of the rows that are evaluated.
    """
    index, lost = paired[INDEX], list_losses(paired)
    change = f"{_number(index.before)} → {_number(index.after)} ({_signed(index.difference)}"
    if index.ci95 is not None:
        change += ", 95 % interval {} to {}".format(*map(_signed, index.ci95))
    change = f"robustness index {change})"
    scores = ((AUC, "AUC"), (ACCURACY, "accuracy of neighbours"))
    changes = ", ".join(f"{words} {_signed(paired[name].difference)}" for name, words in scores)
    biology = f"biology {'lost' if lost else 'kept'} ({changes})"
    if unknown := list_unknown(paired):
        names = " and ".join(name.replace("_", " ") for name in unknown)
        said = f"cannot be judged: the difference of {names} is undefined"
    elif index.ci95 is None:
        said = f"cannot be judged without an interval: {change}, {biology}"
    elif helped(paired):
        said = f"helped: {change}, {biology}"
    else:
        said = f"did not help: {change}, {biology}"
    if saw_classes:
        said += "; its fit used the classes of these patches"
    left = [r.auc for r in residual.values() if math.isfinite(r.auc)]
    if left:
        where = "on slides that a fit did not see" if residual_rows == CROSS_FIT else "as it is"
        said += f"; {where}, a probe reads the centre with AUC {_number(max(left))}"
    return f"{method} {said}."


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "undefined"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−") if math.isfinite(value) else "undefined"


KIND = MetricKind(
    record=RobustificationResult,
    title="robustification",
    headlines=(
        Headline("gain", "gain of the index", in_overview=False, in_summary=False, bounds=SIGNED),
    ),
    evaluate="pathorob_jax.evaluation.robustification:make_robustification",
    comparable=(("k", lambda record: record.k),),
    section="pathorob_jax.report.page_robustification:build_section",
)
