"""The record of the feature space, and its ``MetricKind``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pathorob_jax.kernels.bootstrap.intervals import SHARE
from pathorob_jax.results.metric_kind import Headline, MetricKind
from pathorob_jax.results.record import ListsRepr, Record, format_ci


@dataclass(frozen=True, repr=False)
class CosineSpread(ListsRepr):
    """Cosines between rows: mean and standard deviation over all pairs of two rows.

    The other fields are means over pairs of rows of different slides, by whether the class and the
    centre are the same. With subsets, all are means over subsets.
    """

    mean: float
    sd: float
    same_class_same_center: float
    same_class_other_center: float
    other_class_same_center: float
    other_class_other_center: float


@dataclass(frozen=True, repr=False)
class SubsetSpace(ListsRepr):
    """Numbers of one subset of two classes and two centres."""

    cell_size: int
    class_variance: float
    center_variance: float
    class_in_first: float
    center_in_first: float
    effective_rank: float


@dataclass(frozen=True, repr=False)
class FeatureSpaceResult(Record):
    """``feature_space.json``: where class and centre lie in the space of the embeddings.

    The rows are those of the robustness index, cut to ``cell_size`` rows of each class at each
    centre (0: a cell is empty, and all rows are taken as they are), centred and not scaled. Lists
    are by principal component, in order of decreasing variance: ``variance_share`` of the total
    variance, and the shares ``eta2_...`` of the component's own variance that lie between classes,
    between centres, and in their interaction; ``cumulative_variance``, ``cumulative_class`` and
    ``cumulative_center`` are the shares of all variance, and of that of the class and the centre,
    up to the component.

    ``class_variance``, ``center_variance`` and ``interaction_variance`` are shares of the total
    variance (the sums of ``variance_share`` * ``eta2_...``); ``class_share`` is class / (class +
    centre). Of the ``first`` components: ``variance_in_first`` is their share of all variance,
    ``class_in_first`` and ``center_in_first`` theirs of the variance of the class and of the
    centre, ``first_eta2_class`` and ``first_eta2_center`` the shares of their variance that lie
    between classes and centres. ``effective_rank`` is exp of the entropy of ``variance_share``,
    ``participation_ratio`` 1 / the sum of its squares. ``cosine`` is of the rows as they are
    (``raw``) and of the ``centered`` rows.

    With subsets, each counts the same, whatever its size and variance (docs/consequences.md).
    """

    metric: ClassVar[str] = "feature_space"
    headline: ClassVar[str] = "class_share"
    shapes: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (
            *("eta2_class", "eta2_center", "eta2_interaction", "variance_share"),
            *("cumulative_variance", "cumulative_class", "cumulative_center"),
        ),
        "components",
    )

    model: str
    dataset: str
    design: str
    class_share: float
    ci95: list[float] | None
    class_variance: float
    class_variance_ci95: list[float] | None
    center_variance: float
    center_variance_ci95: list[float] | None
    interaction_variance: float
    interaction_variance_ci95: list[float] | None
    first: int
    variance_in_first: float
    variance_in_first_ci95: list[float] | None
    class_in_first: float
    class_in_first_ci95: list[float] | None
    center_in_first: float
    center_in_first_ci95: list[float] | None
    first_eta2_class: float
    first_eta2_class_ci95: list[float] | None
    first_eta2_center: float
    first_eta2_center_ci95: list[float] | None
    effective_rank: float
    participation_ratio: float
    n_samples: int
    n_available: int
    n_slides: int
    cell_size: int
    eta2_class: list[float] | None
    eta2_center: list[float] | None
    eta2_interaction: list[float] | None
    variance_share: list[float] | None
    cumulative_variance: list[float] | None
    cumulative_class: list[float] | None
    cumulative_center: list[float] | None
    cosine: dict[str, CosineSpread]
    per_subset: dict[str, SubsetSpace]
    warnings: list[str]
    provenance: dict[str, Any]

    @property
    def support(self) -> float:
        """Share of the rows that are left in equal cells."""
        return self.n_samples / self.n_available if self.cell_size else 0.0

    def describe(self) -> str:
        """Describe the variance of class and centre, where the centre's lies, and the rank."""
        return (
            f"{self.where}: of the variance {self.class_variance:.1%} lies between classes and "
            f"{self.center_variance:.1%} between centres (class share {self.class_share:.4f}"
            f"{format_ci(self.ci95)}); the first {self.first} components hold "
            f"{self.variance_in_first:.1%} of all variance, {self.class_in_first:.1%} of the "
            f"class's and {self.center_in_first:.1%} of the centre's; effective rank "
            f"{self.effective_rank:.1f}"
        )


KIND = MetricKind(
    record=FeatureSpaceResult,
    title="feature space",
    headlines=(
        Headline(
            "class_share",
            "class share of variance",
            scale=(0.0, 1.0),
            compared_as="class share of variance",
            bounds=SHARE,
        ),
        Headline(
            "center_variance",
            "variance between centres",
            higher_is_better=False,
            in_overview=False,
            bounds=SHARE,
        ),
        Headline(
            "center_in_first",
            "centre's variance in the first components",
            higher_is_better=False,
            in_overview=False,
            bounds=SHARE,
        ),
    ),
    evaluate="pathorob_jax.evaluation.feature_space:make_feature_space",
    comparable=(
        ("designs", lambda record: record.design),
        ("numbers of balanced patches", lambda record: record.n_samples),
    ),
    section="pathorob_jax.report.page_feature_space:build_section",
    tables="pathorob_jax.report.page_feature_space:build_tables",
)
