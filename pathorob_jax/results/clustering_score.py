"""The record of the clustering score, and its ``MetricKind``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pathorob_jax.results.metric_kind import Headline, MetricKind
from pathorob_jax.results.record import ListsRepr, Record, format_ci


@dataclass(frozen=True, repr=False)
class ClusteringCombination(ListsRepr):
    """Clusters of two classes and two centres.

    Lists of silhouettes follow the ``k_grid`` of ``ClusteringResult`` up to ``k_max``; lists of
    agreement are over trials. ``composition[cluster]`` counts the patches of the selection's best
    clustering with ``k`` clusters: first class in the first and second centre, then the second
    class. The mutual informations are means over trials.
    """

    ci95_of: ClassVar[str] = "clustering_score"
    shapes: ClassVar[Mapping[str, str]] = {
        **{"classes": "2", "centers": "2", "composition": "k 4"},
        **{"ari_biology": "trials", "ari_center": "trials"},
    }

    name: str
    classes: list[str]
    centers: list[str]
    n_samples: int
    k: int
    k_max: int
    silhouettes: list[float]
    ari_biology: list[float]
    ari_center: list[float]
    clustering_score: float
    clustering_score_std: float
    ci95: list[float] | None
    clustering_score_at_n_classes: float
    nmi_biology: float
    nmi_center: float
    ami_biology: float
    ami_center: float
    composition: list[list[int]]


@dataclass(frozen=True, repr=False)
class ClusteringResult(Record):
    """``clustering_score.json``: whether clusters follow biology (arXiv:2507.17845).

    The score is the adjusted Rand index of k-means clusters with the biological class minus that
    with the medical centre, averaged over trials and then over ``combinations`` of two classes and
    two centres. K is chosen by silhouette in each combination, with the distance ``distance``.
    ``clustering_score_std`` is the noise of the seed (see its ``_meaning``), ``ci95`` the
    interval for other slides, with the clusters as they are. ``clustering_score_at_n_classes``
    uses as many clusters as classes. ``n_at_k_max`` is the number of combinations with the largest
    K tried.
    """

    metric: ClassVar[str] = "clustering_score"
    headline: ClassVar[str] = "clustering_score"

    model: str
    dataset: str
    clustering_score: float
    clustering_score_std: float
    clustering_score_std_meaning: str
    ci95: list[float] | None
    clustering_score_at_n_classes: float
    ari_biology: float
    ari_center: float
    nmi_biology: float
    nmi_center: float
    ami_biology: float
    ami_center: float
    distance: str
    k_grid: list[int]
    trials: int
    n_at_k_max: int
    n_samples: int
    n_slides: int
    combinations: list[ClusteringCombination]
    warnings: list[str]
    provenance: dict[str, Any]

    @property
    def support(self) -> float:
        """Share of the combinations whose score is defined."""
        if not self.combinations:
            return math.nan
        undefined = sum(math.isnan(c.clustering_score) for c in self.combinations)
        return 1 - undefined / len(self.combinations)

    def describe(self) -> str:
        """Describe the score, the numbers of clusters, and the agreement with class and centre."""
        ks = sorted(c.k for c in self.combinations)
        return (
            f"{self.where}: clustering score {self.clustering_score:+.4f}{format_ci(self.ci95)} "
            f"over {len(ks)} combinations, K {ks[0]} to {ks[-1]}; agreement with biology "
            f"{self.ari_biology:.4f}, with the centre {self.ari_center:.4f}"
        )


KIND = MetricKind(
    record=ClusteringResult,
    title="clustering score",
    headlines=(
        Headline(
            "clustering_score",
            "clustering score",
            scale=(-1.0, 1.0),
            compared_as="clustering score",
            bounds=(-1.5, 1.5),
        ),
    ),
    evaluate="pathorob_jax.evaluation.clustering_score:make_clustering_score",
    comparable=(
        ("distances", lambda record: record.distance),
        ("grids of K", lambda record: f"{min(record.k_grid)}–{max(record.k_grid)}"),
        ("numbers of trials", lambda record: record.trials),
    ),
    section="pathorob_jax.report.page_clustering_score:build_section",
    table="clustering",
    many_tasks=True,
)
