"""What is computed, as frozen records: one class per JSON file.

Enters: nothing. Leaves: the classes, and ``RECORDS`` by metric. Undefined numbers are NaN here and
null on disk; every ``ci95`` is [low, high], None where too few draws are defined. Every record
carries what it was computed from in ``provenance``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class NeighborTypes:
    """Mean composition of a k-neighbourhood; the four fractions sum to 1.

    First letter same or other biological class, second same or other medical centre.
    """

    ss: float
    so: float
    os: float
    oo: float


@dataclass(frozen=True)
class Curve:
    """The robustness index as k grows; all lists run along ``k``."""

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

    ``recall`` is the share of its samples that a majority of k neighbours puts in their own class
    (for a subset: the balanced accuracy).
    """

    n_samples: int
    robustness_index: float
    ci95: list[float] | None
    support: float
    recall: float
    ss: float
    so: float
    os: float
    oo: float


@dataclass(frozen=True)
class RobustnessIndexResult:
    """``robustness_index.json``: the index of arXiv:2507.17845 of one model on one dataset.

    ``k_rule`` tells how k was chosen (published, auto, given); ``support`` is the share of samples
    with at least one SO or OS neighbour; ``k_available`` is the largest k that every sample has.
    ``ci95`` is the percentile interval over draws of whole slides, ``companions_ci95`` that of the
    other numbers by name. Two nulls: the index of the same
    neighbours when centres are dealt anew to slides, and of features that hold nothing (the label
    counts' own value).
    """

    metric: ClassVar[str] = "robustness_index"

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


@dataclass(frozen=True)
class MarginsCurve:
    """MaRI as k grows, at the temperature of the operating k."""

    k: list[int]
    mari: list[float]


@dataclass(frozen=True)
class MarginsResult:
    """``margins.json``: MaRI and CRoMa (arXiv:2607.25497) of one model on one dataset.

    ``mari_tau`` is the median distance of decisive neighbours at k; ``croma`` the median of the
    samples' margins (over subsets: the median of their medians), ``croma_f0`` the share of margins
    at most 0, ``croma_q10`` and ``croma_ltm10`` the 10 % quantile and the mean below it.
    """

    metric: ClassVar[str] = "margins"

    model: str
    dataset: str
    design: str
    k: int
    k_rule: str
    k_available: int
    mari: float
    mari_tau: float
    mari_support: float
    mari_ci95: list[float] | None
    croma: float
    croma_m: int
    croma_f0: float
    croma_q10: float
    croma_ltm10: float
    croma_support: float
    croma_ci95: list[float] | None
    croma_f0_ci95: list[float] | None
    croma_q10_ci95: list[float] | None
    croma_ltm10_ci95: list[float] | None
    n_samples: int
    n_slides: int
    curve: MarginsCurve
    warnings: list[str]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class ProbesResult:
    """``probes.json``: what classifiers read off the embeddings of one model on one dataset.

    Areas under the ROC curve of logistic probes, mean over folds and subsets: the biological class
    and the medical centre with slides (TCGA: cases) left out, and the class with whole centres left
    out. ``center_knn_balanced_accuracy``: the centre by a vote of k neighbours. ``ci95``: intervals
    of the four by name, over draws of whole slides with the classifiers as they are.
    """

    metric: ClassVar[str] = "probes"

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


@dataclass(frozen=True)
class HeadResult:
    """The drop of one classifier on the splits of ``ApdResult``.

    Lists of two levels run along ``[split][repetition]``. ``chosen`` is the setting that the
    validation rows chose (``setting``: C, k or epoch).
    """

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


@dataclass(frozen=True)
class ApdResult:
    """``apd.json``: average performance drop (arXiv:2507.17845) of one model on one dataset.

    A linear probe is trained on splits of constant size whose Cramer's V of class and centre grows;
    ``apd``: mean over repetitions of [mean over later splits of accuracy / that of the first] - 1;
    ``nipd``: integral over V of the drop as a share of the room above ``chance``. ``id``: held-out
    slides of the same centres, ``ood``: other centres. Accuracies are balanced; lists of two levels
    run along ``[split][repetition]``. ``converged``: of the chosen fits; ``converged_share``: of
    all. ``direction_id[center][class][called]`` is the share of such rows at each split, all
    repetitions together, right calls included. ``heads``: the same with other classifiers.
    """

    metric: ClassVar[str] = "apd"

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
    converged: list[list[bool]]
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


@dataclass(frozen=True)
class ApdAggregate:
    """``apd_aggregate.json``: mean drop of one model over datasets.

    ``ci`` is the half width of the 95 % interval of Masson and Loftus over all repetitions, with
    ``df`` degrees of freedom as the reference has it; ``ci_textbook`` with ``df_textbook``.
    """

    metric: ClassVar[str] = "apd_aggregate"

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


@dataclass(frozen=True)
class ClusteringCombination:
    """Clusters of two classes and two centres.

    Lists of silhouettes run along the ``k_grid`` of ``ClusteringResult`` up to ``k_max``, those of
    agreement over trials. ``composition[cluster]`` counts the patches of the selection's best
    clustering with ``k`` clusters: first class in the first and second centre, then the second
    class. The mutual informations are means over trials.
    """

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


@dataclass(frozen=True)
class ClusteringResult:
    """``clustering_score.json``: whether clusters follow biology (arXiv:2507.17845).

    Adjusted Rand index of k-means clusters with the biological class less that with the medical
    centre, mean over trials and then over ``combinations`` of two classes and two centres; K is
    chosen by silhouette in each (``distance`` says of what). ``clustering_score_std`` is seed noise
    (see its ``_meaning``), ``ci95`` the percentile interval over draws of whole slides.
    ``clustering_score_at_n_classes``: with as many clusters as classes. ``n_at_k_max``: how many
    combinations have the largest K that was tried.
    """

    metric: ClassVar[str] = "clustering_score"

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


@dataclass(frozen=True)
class Summary:
    """``summary.json``: PathoROB's three headline numbers of one model over its three datasets.

    ``robustness_index`` and ``clustering_score`` are unweighted means over datasets; their
    intervals add the datasets' bootstrap draws. ``apd_id`` and ``apd_ood`` are those of
    ``apd_aggregate.json``, with its interval (over repetitions). ``per_dataset`` holds what the
    means are of.
    """

    metric: ClassVar[str] = "summary"

    model: str
    datasets: list[str]
    robustness_index: float
    robustness_index_ci95: list[float] | None
    apd_id: float
    apd_id_ci95: list[float] | None
    apd_ood: float
    apd_ood_ci95: list[float] | None
    clustering_score: float
    clustering_score_ci95: list[float] | None
    per_dataset: dict[str, dict[str, float]]
    warnings: list[str]
    provenance: dict[str, Any]


RECORDS: dict[str, type] = {
    record.metric: record
    for record in (
        RobustnessIndexResult,
        MarginsResult,
        ProbesResult,
        ApdResult,
        ApdAggregate,
        ClusteringResult,
        Summary,
    )
}
