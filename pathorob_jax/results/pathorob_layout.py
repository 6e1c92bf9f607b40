"""Results in the tree of files that PathoROB's own scripts write, for notebooks that read it.

Below a folder: ``robustness_index/<model>/<dataset>/<options>/`` with ``results_summary.json`` and
``balanced-accuracies-bio.csv``; ``apd/<model>/`` with ``<dataset>_raw.json``,
``<dataset>_summary.json`` and ``aggregated_summary.json``; ``clustering_score/<model>/<dataset>/``
with ``results_summary.json``, ``aris.csv`` and ``silhouette_scores.csv``. Its pickle of neighbour
frequencies is not written. Undefined numbers are ``null`` in JSON and empty in CSV.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pathorob_jax.core import files
from pathorob_jax.core.plain import as_plain
from pathorob_jax.results.apd import ApdAggregate, ApdResult
from pathorob_jax.results.clustering_score import ClusteringResult
from pathorob_jax.results.probes import ProbesResult
from pathorob_jax.results.robustness_index import RobustnessIndexResult

INDEX, APD, CLUSTERING = "robustness_index", "apd", "clustering_score"
FOLDERS = (INDEX, APD, CLUSTERING)
SUMMARY = "results_summary.json"
# Of --k_opt_param in the name of the options' folder: the published k, the best of the grid.
_PUBLISHED, _AUTO = 0, -1


def list_files(records: Iterable[Any]) -> dict[str, bytes]:
    """The files of some records: path below the folder -> contents.

    Records of other metrics are left out. The AUC of the centre in ``results_summary.json`` is that
    of ``probes.json``, null where it is not among the records.
    """
    records = list(records)
    auc = {(r.model, r.dataset): r.center_auc for r in records if isinstance(r, ProbesResult)}
    found: dict[str, bytes] = {}
    for record in records:
        if isinstance(record, RobustnessIndexResult):
            folder = f"{INDEX}/{record.model}/{record.dataset}/{_options(record)}"
            of_center = auc.get((record.model, record.dataset), math.nan)
            found[f"{folder}/{SUMMARY}"] = _json(_index_summary(record, of_center))
            found[f"{folder}/balanced-accuracies-bio.csv"] = _csv(
                ("k", "bal_acc", "std"), _balanced_accuracies(record)
            )
        elif isinstance(record, ApdResult):
            start = f"{APD}/{record.model}/{record.dataset}"
            found[f"{start}_raw.json"] = _json(_apd_raw(record))
            found[f"{start}_summary.json"] = _json(_apd_summary(record))
        elif isinstance(record, ApdAggregate):
            found[f"{APD}/{record.model}/aggregated_summary.json"] = _json(_aggregate(record))
        elif isinstance(record, ClusteringResult):
            folder = f"{CLUSTERING}/{record.model}/{record.dataset}"
            found[f"{folder}/{SUMMARY}"] = _json(_clustering_summary(record))
            found[f"{folder}/aris.csv"] = _csv(
                ("combination", "trial", "ari_bio", "ari_mc", "clustering_score"), _aris(record)
            )
            found[f"{folder}/silhouette_scores.csv"] = _csv(
                ("combination", "K", "silhouette_score"), _silhouettes(record)
            )
    return found


def write_tree(records: Iterable[Any], output: str) -> list[str]:
    """Write the files of some records below ``output``; each replaces an older one atomically.

    Returns:
        Paths of the files.

    Raises:
        WriteError: the disk is full or fails.
    """
    found = list_files(records)
    for path, data in found.items():
        files.write_bytes(files.join(output, path), data)
    return [files.join(output, path) for path in found]


def _options(record: RobustnessIndexResult) -> str:
    """The name of the folder: ``<max_patches_per_combi>_<k_opt_param>``."""
    patches = record.provenance.get("settings", {}).get("max_patches_per_combi")
    k = {"published": _PUBLISHED, "auto": _AUTO}.get(record.k_rule, record.k)
    return f"{-1 if patches is None else patches}_{k}"


def _index_summary(record: RobustnessIndexResult, center_auc: float) -> dict[str, Any]:
    return {
        "k_opt": record.k,
        "balanced_accuracy": record.balanced_accuracy,
        "robustness_index": record.robustness_index,
        "ID_performance": record.id_performance,
        "OOD_performance": record.ood_performance,
        "generalization_index": record.generalization_index,
        "bio_vs_confounding": record.bio_vs_confounding,
        "confounder_insensitivity": record.confounder_insensitivity,
        "normalized_confounder_insensitivity": record.normalized_confounder_insensitivity,
        "prediction_performance": record.prediction_performance,
        "confounder_log_reg_AUC": center_auc,
    }


def _balanced_accuracies(record: RobustnessIndexResult) -> list[tuple[Any, ...]]:
    """Rows at the operating k, or at all k of the grid where k was chosen from it.

    The deviation is over subsets; of a paired design it is known at the operating k only.
    """
    over_subsets = [group.recall for group in record.per_subset.values()]

    def deviation(k: int) -> float:
        if record.design != "paired":
            return 0.0
        return float(np.std(over_subsets)) if k == record.k and over_subsets else math.nan

    points = {record.k: record.balanced_accuracy}
    if record.k_rule == "auto":
        points = dict(zip(record.curve.k, record.curve.balanced_accuracy, strict=True)) | points
    return [
        (k, points[k], math.nan if math.isnan(points[k]) else deviation(k)) for k in sorted(points)
    ]


def _apd_raw(record: ApdResult) -> dict[str, Any]:
    return {
        "ID_test_accuracies": record.id_accuracies,
        "OOD_test_accuracies": record.ood_accuracies,
    }


def _apd_summary(record: ApdResult) -> dict[str, Any]:
    return {
        "apd_id": record.apd_id,
        "apd_ood": record.apd_ood,
        "ID_test_accuracy_means": record.id_accuracy_means,
        "OOD_test_accuracy_means": record.ood_accuracy_means,
    }


def _aggregate(record: ApdAggregate) -> dict[str, Any]:
    return {
        "aggregation_datasets": record.datasets,
        "apd_id": record.apd_id,
        "ci_id": record.ci_id,
        "apd_ood": record.apd_ood,
        "ci_ood": record.ci_ood,
    }


def _clustering_summary(record: ClusteringResult) -> dict[str, Any]:
    ks = [combination.k for combination in record.combinations]
    return {
        "clustering_score_mean": record.clustering_score,
        "clustering_score_mean_std": record.clustering_score_std,
        "Ks": {"min": min(ks), "median": float(np.median(ks)), "max": max(ks)} if ks else None,
        "num_combinations": len(ks),
        "num_trials": record.trials,
    }


def _aris(record: ClusteringResult) -> list[tuple[Any, ...]]:
    return [
        (_name(combination), trial, biology, center, biology - center)
        for combination in record.combinations
        for trial, (biology, center) in enumerate(
            zip(combination.ari_biology, combination.ari_center, strict=True)
        )
    ]


def _silhouettes(record: ClusteringResult) -> list[tuple[Any, ...]]:
    return [
        (_name(combination), k, score)
        for combination in record.combinations
        for k, score in zip(record.k_grid, combination.silhouettes, strict=False)
    ]


def _name(combination: Any) -> str:
    return "-".join([*combination.classes, *combination.centers])


def _json(value: dict[str, Any]) -> bytes:
    text = json.dumps(as_plain(value), indent=4, ensure_ascii=False, allow_nan=False)
    return text.encode()


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return stream.getvalue().encode()


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value
