"""The record of the robustness index, and its ``MetricKind``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pathorob_jax.kernels.bootstrap.intervals import SHARE
from pathorob_jax.results.metric_kind import Headline, MetricKind
from pathorob_jax.results.record import ListsRepr, Record, format_ci


@dataclass(frozen=True)
class NeighborTypes:
    """Mean composition of a k-neighbourhood; the four fractions sum to 1.

    The first letter says same or other biological class, the second same or other medical centre.
    """

    ss: float
    so: float
    os: float
    oo: float


@dataclass(frozen=True, repr=False)
class Curve(ListsRepr):
    """The robustness index as a function of k; all lists follow ``k``."""

    shapes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("k", "robustness_index", "balanced_accuracy", "support", "ss", "so", "os", "oo"), "points"
    )

    k: list[int]
    robustness_index: list[float]
    balanced_accuracy: list[float]
    support: list[float]
    ss: list[float]
    so: list[float]
    os: list[float]
    oo: list[float]


@dataclass(frozen=True)
class Group:
    """The index of one class, centre or subset, at the operating k, with its 95 % interval.

    ``recall`` is the share of its samples whose class is that of the majority of k neighbours (for
    a subset: the balanced accuracy).
    """

    ci95_of: ClassVar[str] = "robustness_index"

    n_samples: int
    robustness_index: float
    ci95: list[float] | None
    support: float
    recall: float
    ss: float
    so: float
    os: float
    oo: float


@dataclass(frozen=True, repr=False)
class RobustnessIndexResult(Record):
    """``robustness_index.json``: the index of arXiv:2507.17845 of one model on one dataset.

    ``k_rule`` tells how k was chosen (published, auto, given). ``support`` is the share of samples
    with at least one SO or OS neighbour. ``k_available`` is the largest k for which every sample
    has k neighbours. ``ci95`` is for other slides of the same centres;
    ``companions_ci95`` has the intervals of the other numbers by name. There are two nulls: the
    index of the same neighbours with centres permuted over slides, and the index of features
    without information (which follows from the label counts).
    """

    metric: ClassVar[str] = "robustness_index"
    headline: ClassVar[str] = "robustness_index"

    model: str
    dataset: str
    design: str
    robustness_index: float
    k: int
    k_rule: str
    k_available: int
    support: float
    ci95: list[float] | None
    companions_ci95: dict[str, list[float] | None]
    null_permuted_center: float
    null_random_features: float
    balanced_accuracy: float
    prediction_performance: float
    id_performance: float
    ood_performance: float
    bio_vs_confounding: float
    confounder_insensitivity: float
    normalized_confounder_insensitivity: float
    generalization_index: float
    n_samples: int
    n_slides: int
    n_groups: int
    neighbor_types: NeighborTypes
    curve: Curve
    per_class: dict[str, Group]
    per_center: dict[str, Group]
    per_subset: dict[str, Group]
    warnings: list[str]
    provenance: dict[str, Any]

    def describe(self) -> str:
        """Describe the index, its support and accuracy, and the two nulls."""
        return (
            f"{self.where}: robustness index {self.robustness_index:.4f}{format_ci(self.ci95)} "
            f"at k = {self.k} ({self.k_rule}), support {self.support:.0%}, balanced accuracy "
            f"{self.balanced_accuracy:.4f}; nulls: centres permuted "
            f"{self.null_permuted_center:.3f}, random features {self.null_random_features:.3f}"
        )


KIND = MetricKind(
    record=RobustnessIndexResult,
    title="robustness index",
    headlines=(
        Headline(
            "robustness_index",
            "robustness index",
            scale=(0.0, 1.0),
            compared_as="robustness index",
            bounds=SHARE,
        ),
    ),
    evaluate="pathorob_jax.evaluation.robustness_index:make_robustness_index",
    comparable=(
        ("k", lambda record: record.k),
        ("designs", lambda record: record.design),
        ("numbers of patches", lambda record: record.n_samples),
        ("numbers of groups", lambda record: record.n_groups),
    ),
    section="pathorob_jax.report.page_robustness_index:build_section",
)
