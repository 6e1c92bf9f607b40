"""The records of case retrieval, and its ``MetricKind``."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pathorob_jax.core.plain import APART, OMIT_EMPTY
from pathorob_jax.kernels.bootstrap.intervals import SHARE
from pathorob_jax.results.directional_errors import DirectionalErrors
from pathorob_jax.results.metric_kind import Headline, MetricKind
from pathorob_jax.results.record import ListsRepr, Record, format_ci

LEVELS = ("patch", "slide", "slide_set")
_OPTIMISTIC = ("optimistic_vote_accuracy", "balanced_optimistic_vote_accuracy")
_MEANS = ("vote_accuracy", "top_k_accuracy", "map")


@dataclass(frozen=True, repr=False)
class RetrievalLevel(ListsRepr):
    """Answers of searches among patches, or among slides; lists are by k.

    ``vote_accuracy`` is of the majority vote of the k nearest (ties to the smallest class),
    ``top_k_accuracy`` the share of queries with their class among the k nearest, and ``map`` the
    mean of the sum of the precision at each hit, divided by k. They are means over all queries;
    ``balanced_...`` are means over classes. The optimistic votes are None unless asked for.
    ``intervals`` has the 95 % interval of each of these by name and k.
    """

    shapes: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("k", *_MEANS, *_OPTIMISTIC), "k"),
        **{f"balanced_{name}": "k" for name in _MEANS},
        "intervals": "k 2",
    }

    k: list[int]
    vote_accuracy: list[float]
    top_k_accuracy: list[float]
    map: list[float]
    balanced_vote_accuracy: list[float]
    balanced_top_k_accuracy: list[float]
    balanced_map: list[float]
    intervals: dict[str, list[list[float] | None]]
    n_queries: int
    n_without_neighbors: int
    optimistic_vote_accuracy: list[float] | None = field(default=None, metadata=OMIT_EMPTY)
    balanced_optimistic_vote_accuracy: list[float] | None = field(default=None, metadata=OMIT_EMPTY)


@dataclass(frozen=True, repr=False)
class RetrievalDrop(ListsRepr):
    """Balanced accuracy of the vote as class and centre are more and more associated in a database.

    Nested lists are indexed by ``[k][split][repetition]``, lists of drops by ``[k]``. ``id`` means
    held-out slides of the centres of the database, ``ood`` other centres. ``wrong_share`` is the
    share of queries in domain whose nearest neighbour is of another class, ``own_center_share``
    the share of these neighbours that are of the query's own centre, and ``own_center_expected``
    that share if a wrong neighbour were any row of the database of another class. All three, and
    ``directional_errors[center][class]``, pool the repetitions; ``own_center_intervals`` are 95 %
    intervals of ``own_center_share``.
    """

    shapes: ClassVar[Mapping[str, str]] = {
        "k": "k",
        **dict.fromkeys(("id_accuracies", "ood_accuracies"), "k splits repetitions"),
        **dict.fromkeys(("id_accuracy_means", "ood_accuracy_means"), "k splits"),
        **dict.fromkeys(("drop_id", "drop_ood", "nipd_id", "nipd_ood"), "k"),
        **dict.fromkeys(("drop_id_intervals", "drop_ood_intervals"), "k 2"),
        **dict.fromkeys(("wrong_share", "own_center_share", "own_center_expected"), "splits"),
        "own_center_intervals": "splits 2",
    }

    k: list[int]
    id_accuracies: list[list[list[float]]]
    ood_accuracies: list[list[list[float]]]
    id_accuracy_means: list[list[float]]
    ood_accuracy_means: list[list[float]]
    drop_id: list[float]
    drop_ood: list[float]
    drop_id_intervals: list[list[float] | None]
    drop_ood_intervals: list[list[float] | None]
    nipd_id: list[float]
    nipd_ood: list[float]
    wrong_share: list[float]
    own_center_share: list[float]
    own_center_intervals: list[list[float] | None]
    own_center_expected: list[float]
    directional_errors: DirectionalErrors


@dataclass(frozen=True, repr=False)
class RetrievalSchedule(ListsRepr):
    """Searches in the training rows of each split of the performance drop.

    The first split is a balanced database (V = 0), the last the least balanced. ``slides`` are by
    ``[split][class][center]``, in the order of ``classes`` and ``centers``.
    """

    shapes: ClassVar[Mapping[str, str]] = {"cramers_v": "splits", "slides": "splits"}

    cramers_v: list[float]
    patch: RetrievalDrop
    slide: RetrievalDrop
    chance: float
    classes: list[str]
    centers: list[str]
    ood_centers: list[str]
    slides: list[list[list[int]]]
    rows_per_slide: int
    repetitions: int
    schedule_seed: int
    n_training_rows: int
    n_id_test_rows: int
    n_ood_test_rows: int
    n_training_slides: int
    n_id_test_slides: int
    n_ood_test_slides: int


@dataclass(frozen=True, repr=False)
class RetrievalResult(Record):
    """``retrieval.json``: searches for cases of a query's class by cosine, own slide left out.

    ``patch``: patches among patches; ``slide``: mean embeddings of slides; ``slide_set``: slides by
    their sets of patches (mean of the best match each way). ``patch_accuracy``, ``slide_accuracy``
    and ``slide_set_accuracy`` are the class-balanced accuracies of the nearest neighbour.
    ``schedule`` has searches in databases in which class and centre are associated; None where no
    schedule can be made, and ``warnings`` say why.
    """

    metric: ClassVar[str] = "retrieval"
    headline: ClassVar[str] = "patch_accuracy"

    model: str
    dataset: str
    k: list[int]
    patch_accuracy: float
    patch_accuracy_ci95: list[float] | None
    slide_accuracy: float
    slide_accuracy_ci95: list[float] | None
    slide_set_accuracy: float
    slide_set_accuracy_ci95: list[float] | None
    classes: list[str]
    n_samples: int
    n_slides: int
    patch: RetrievalLevel = field(metadata=APART)
    slide: RetrievalLevel = field(metadata=APART)
    slide_set: RetrievalLevel = field(metadata=APART)
    schedule: RetrievalSchedule | None = field(metadata=APART)
    warnings: list[str]
    provenance: dict[str, Any]

    @property
    def ci95(self) -> list[float] | None:
        """Interval of the headline number."""
        return self.patch_accuracy_ci95

    @property
    def support(self) -> float:
        """Share of the patches that have a neighbour."""
        n = self.patch.n_queries
        return 1 - self.patch.n_without_neighbors / n if n else math.nan

    def describe(self) -> str:
        """Describe the accuracy of the nearest neighbour at each level, and its drop."""
        text = (
            f"{self.where}: the nearest has the query's class (mean over classes): patches "
            f"{self.patch_accuracy:.4f}{format_ci(self.patch_accuracy_ci95)}, slides "
            f"{self.slide_accuracy:.4f}, slides as sets {self.slide_set_accuracy:.4f}"
        )
        if self.schedule is None:
            return text
        drop = self.schedule.patch
        text += f"; drop where the database associates class and centre {drop.drop_id[0]:+.4f}"
        if self.schedule.ood_centers:
            text += f", for queries of other centres {drop.drop_ood[0]:+.4f}"
        return text


KIND = MetricKind(
    record=RetrievalResult,
    title="case retrieval",
    headlines=(
        Headline(
            "patch_accuracy",
            "retrieval, nearest patch",
            compared_as="retrieval of patches",
            in_overview=False,
            in_summary=False,
            bounds=SHARE,
        ),
        Headline(
            "slide_accuracy",
            "retrieval, nearest slide",
            in_overview=False,
            in_summary=False,
            bounds=SHARE,
        ),
    ),
    evaluate="pathorob_jax.evaluation.retrieval:make_retrieval",
    comparable=(("values of k of retrieval", lambda record: tuple(record.k)),),
    section="pathorob_jax.report.page_retrieval:build_section",
    tables="pathorob_jax.report.page_retrieval:build_tables",
    many_tasks=True,
)
