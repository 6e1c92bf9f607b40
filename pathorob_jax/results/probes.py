"""The record of the logistic probes, and their ``MetricKind``."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from pathorob_jax.kernels.bootstrap.intervals import AREA
from pathorob_jax.results.metric_kind import Headline, MetricKind
from pathorob_jax.results.record import Record


@dataclass(frozen=True, repr=False)
class ProbesResult(Record):
    """``probes.json``: scores of classifiers on the embeddings of one model on one dataset.

    The AUCs are areas under the ROC curve of logistic probes, averaged over folds and subsets: for
    the biological class and the medical centre with held-out slides (TCGA: cases), and for the
    class with held-out centres. ``center_knn_balanced_accuracy`` is of the vote of k neighbours for
    the centre. ``ci95`` has the intervals of the four numbers by name, for other slides, with the
    classifiers as they are.
    """

    metric: ClassVar[str] = "probes"
    headline: ClassVar[str] = "ood_biology_auc"

    model: str
    dataset: str
    design: str
    k: int
    biology_auc: float
    center_auc: float
    ood_biology_auc: float
    center_knn_balanced_accuracy: float
    ci95: dict[str, list[float] | None]
    n_folds: dict[str, int]
    n_skipped_folds: dict[str, int]
    n_samples: int
    n_slides: int
    warnings: list[str]
    provenance: dict[str, Any]

    @property
    def support(self) -> float:
        """Share of the folds of the headline probe with all labels on both sides."""
        name = self.headline.removesuffix("_auc")
        used, skipped = self.n_folds.get(name, 0), self.n_skipped_folds.get(name, 0)
        return used / (used + skipped) if used + skipped else math.nan

    def describe(self) -> str:
        """Describe the areas of the three probes, and the vote for the centre."""
        return (
            f"{self.where}: AUC of biology {self.biology_auc:.4f}, of the centre "
            f"{self.center_auc:.4f}, of biology at an unseen centre {self.ood_biology_auc:.4f}; "
            f"centre by {self.k} neighbours {self.center_knn_balanced_accuracy:.4f}"
        )


KIND = MetricKind(
    record=ProbesResult,
    title="probes",
    headlines=(
        Headline(
            "ood_biology_auc",
            "AUC biology, unseen centre",
            in_overview=False,
            in_summary=False,
            bounds=AREA,
        ),
    ),
    evaluate="pathorob_jax.evaluation.probes:make_probes",
    section="pathorob_jax.report.page_probes:build_section",
)
