"""Results as frozen records, and their versioned JSON on disk.

Enters: a record. Leaves: ``<root>/<model>/<dataset>/<metric>.json``, written atomically, undefined
values as null; and the same record again when read. Every record carries what it
was computed from in ``provenance``, the only part that may differ between two equal runs.
"""

import dataclasses
import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jax.sharding import Mesh

from pathorob_jax import files
from pathorob_jax.checks import InputError
from pathorob_jax.kernels import bootstrap
from pathorob_jax.provenance import software_versions

SCHEMA_VERSION = 1


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


class Outcome(NamedTuple):
    """A record and what it can be compared by.

    Attributes:
        record: what is written as JSON.
        draws_key: of the groups and draws; statistics of equal keys were drawn together.
        draws: float64[draws] of each headline number.
    """

    record: Any
    draws_key: str = ""
    draws: Mapping[str, np.ndarray] = {}


def result_path(root: str, result: Any) -> str:
    """Where a record lies: ``<root>/<model>/<dataset>/<metric>.json``, no dataset for several."""
    if isinstance(result, ApdAggregate | Summary):
        return files.join(root, result.model, f"{result.metric}.json")
    return files.join(root, result.model, result.dataset, f"{result.metric}.json")


def write_result(root: str, result: Any) -> str:
    """Write a record, replacing an older one atomically; returns its path."""
    path = result_path(root, result)
    record = {"schema_version": SCHEMA_VERSION, "metric": result.metric}
    files.write_json(path, record | _plain(dataclasses.asdict(result)))
    return path


def write_outcome(root: str, outcome: Outcome) -> str:
    """Write a record and, beside it, its draws as ``<metric>.draws.npz``; returns its path."""
    path = write_result(root, outcome.record)
    if outcome.draws:
        sink = io.BytesIO()
        arrays: dict[str, Any] = {"key": np.array(outcome.draws_key), **outcome.draws}
        np.savez(sink, **arrays)
        files.write_bytes(_draws_path(path), sink.getvalue())
    return path


def read_draws(root: str, result: Any) -> Outcome:
    """A record with its draws; without any where their file is missing.

    Raises:
        InputError: the file cannot be read.
    """
    path = _draws_path(result_path(root, result))
    if not files.exists(path):
        return Outcome(result)
    try:
        arrays = dict(np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False))
        return Outcome(result, str(arrays.pop("key")), arrays)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: cannot be read ({error}). Run experiments.evaluate again to rewrite it."
        ) from error


def _draws_path(path: str) -> str:
    return path.removesuffix(".json") + ".draws.npz"


def percentile_interval(draws: np.ndarray) -> list[float] | None:
    """95 % percentile interval; None where too few draws are defined."""
    ends = [float(end) for end in bootstrap.interval(draws)]
    return ends if np.isfinite(ends).all() else None


def read_result(path: str) -> Any:
    """Read a record back.

    Raises:
        InputError: another schema version, an unknown metric, or a missing key.
    """
    value = files.read_json(path)
    version = value.pop("schema_version", None) if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: expected schema_version {SCHEMA_VERSION}, found {version}. Run "
            "experiments.evaluate again to rewrite it."
        )
    metric = value.pop("metric", None)
    if metric not in RECORDS:
        raise InputError(f"{path}: unknown metric {metric!r}; known: {sorted(RECORDS)}.")
    return _record(RECORDS[metric], value, path)


def read_results(root: str) -> list[Any]:
    """All records under ``root``, sorted by model; those of one dataset first, by its name.

    Raises:
        FileNotFoundError: there are none.
    """
    found = [r for model in files.list_folders(root) for r in read_model_results(root, model)]
    if not found:
        raise FileNotFoundError(
            f"{root}: no results found; expected <results>/<model>/<dataset>/<metric>.json, which "
            "experiments.evaluate writes."
        )
    return found


def read_model_results(root: str, model: str) -> list[Any]:
    """All records of one model: by dataset and metric, then those over several datasets."""
    top = files.join(root, model)
    folders = [files.join(top, dataset) for dataset in files.list_folders(top)]
    return [
        read_result(files.join(folder, name))
        for folder in [*folders, top]
        if files.exists(folder)
        for name in files.list_files(folder, ".json")
        if name.removesuffix(".json") in RECORDS
    ]


def headline(result: Any) -> str:
    """One line for a person: which model on which dataset, the number and what it rests on."""
    if isinstance(result, MarginsResult):
        return (
            f"{result.model} on {result.dataset}: MaRI {result.mari:.4f} at k = {result.k}, "
            f"support {result.mari_support:.0%}; CRoMa {result.croma:+.4f}, at most 0 in "
            f"{result.croma_f0:.0%}, support {result.croma_support:.0%}"
        )
    if isinstance(result, ProbesResult):
        return (
            f"{result.model} on {result.dataset}: AUC of biology {result.biology_auc:.4f}, of the "
            f"centre {result.center_auc:.4f}, of biology at an unseen centre "
            f"{result.ood_biology_auc:.4f}; centre by {result.k} neighbours "
            f"{result.center_knn_balanced_accuracy:.4f}"
        )
    if isinstance(result, ApdResult):
        return (
            f"{result.model} on {result.dataset}: performance drop in domain {result.apd_id:+.4f}, "
            f"out of domain {result.apd_ood:+.4f}; nIPD {result.nipd_id:+.4f} and "
            f"{result.nipd_ood:+.4f}; {result.repetitions} repetitions of "
            f"{len(result.cramers_v)} splits"
        )
    if isinstance(result, ApdAggregate):
        return (
            f"{result.model} on {', '.join(result.datasets)}: performance drop in domain "
            f"{result.apd_id:+.4f} ± {result.ci_id:.4f}, out of domain {result.apd_ood:+.4f} ± "
            f"{result.ci_ood:.4f}"
        )
    if isinstance(result, Summary):
        return (
            f"{result.model}, all of PathoROB: robustness index {result.robustness_index:.4f}, "
            f"performance drop {result.apd_id:+.4f} and {result.apd_ood:+.4f}, clustering score "
            f"{result.clustering_score:+.4f}"
        )
    interval = "[{:.3f}, {:.3f}] ".format(*result.ci95) if result.ci95 else ""
    if isinstance(result, ClusteringResult):
        ks = sorted(c.k for c in result.combinations)
        return (
            f"{result.model} on {result.dataset}: clustering score {result.clustering_score:+.4f} "
            f"{interval}over {len(ks)} combinations, K {ks[0]} to {ks[-1]}; agreement with biology "
            f"{result.ari_biology:.4f}, with the centre {result.ari_center:.4f}"
        )
    return (
        f"{result.model} on {result.dataset}: robustness index {result.robustness_index:.4f} "
        f"{interval}at k = {result.k} ({result.k_rule}), support {result.support:.0%}, balanced "
        f"accuracy {result.balanced_accuracy:.4f}; nulls: centres permuted "
        f"{result.null_permuted_center:.3f}, random features {result.null_random_features:.3f}"
    )


def make_provenance(
    *, store: Mapping[str, Any], settings: Mapping[str, Any], mesh: Mesh
) -> dict[str, Any]:
    """What a number was computed from: the store's identity, settings, versions, device."""
    return {
        "store": dict(store),
        "settings": dict(settings),
        "versions": software_versions(),
        "device": {"kind": mesh.devices.flat[0].device_kind, "count": mesh.size},
    }


def _plain(value: Any) -> Any:
    """Nested numbers as Python's own, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _record(kind: Any, value: Any, path: str) -> Any:
    """Build a record from plain JSON; null becomes NaN where a float is expected."""
    names = {f.name: f.type for f in dataclasses.fields(kind)}
    missing = sorted(set(names) - set(value))
    if missing:
        raise InputError(f"{path}: lacks the keys {missing}; run experiments.evaluate again.")
    out: dict[str, Any] = {}
    for name, annotation in names.items():
        item = value[name]
        if annotation is float and item is None:
            item = math.nan
        elif item is not None and annotation in (list[float], list[float] | None):
            item = [math.nan if v is None else v for v in item]
        elif annotation == list[list[float]]:
            item = [[math.nan if v is None else v for v in row] for row in item]
        elif annotation == list[ClusteringCombination]:
            item = [_record(ClusteringCombination, v, path) for v in item]
        elif annotation == dict[str, HeadResult]:
            item = {key: _record(HeadResult, v, path) for key, v in item.items()}
        elif dataclasses.is_dataclass(annotation):
            item = _record(annotation, item, path)
        elif annotation == dict[str, Group]:
            item = {key: _record(Group, v, path) for key, v in item.items()}
        out[name] = item
    return kind(**out)
