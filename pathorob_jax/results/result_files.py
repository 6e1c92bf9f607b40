"""Results as frozen records, and their versioned JSON on disk.

Enters: a record. Leaves: ``<root>/<model>/<dataset>/<metric>.json``, written atomically, undefined
values as null; and the same record again when read. Every record carries what it
was computed from in ``provenance``, the only part that may differ between two equal runs.
"""

import io
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.plain import as_plain, from_plain
from pathorob_jax.core.provenance import software_versions
from pathorob_jax.kernels.bootstrap import intervals
from pathorob_jax.results.records import (
    RECORDS,
    ApdAggregate,
    ApdResult,
    ClusteringResult,
    MarginsResult,
    ProbesResult,
    Summary,
)

SCHEMA_VERSION = 1


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
    files.write_json(path, as_json(result))
    return path


def as_json(result: Any) -> dict[str, Any]:
    """A record as it is written: JSON of plain values, undefined ones None."""
    record = {"schema_version": SCHEMA_VERSION, "metric": result.metric}
    return {**record, **as_plain(result)}


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
    ends = [float(end) for end in intervals.interval(draws)]
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
    mend = "Run experiments.evaluate again to rewrite it."
    return from_plain(RECORDS[metric], value, where=path, stored=True, mend=mend)


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
