"""Records on disk: versioned JSON, with the draws in a separate file.

The path of a record is ``<root>/<model>/<dataset>/<metric>.json``; records over several datasets
are in ``<root>/<model>/``. A record is written atomically, with null for undefined values, and read
back as the same record. Two equal runs may differ only in ``provenance``.
"""

import io
import zipfile
from typing import Any

import numpy as np

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.plain import as_plain, from_plain
from pathorob_jax.results import registry
from pathorob_jax.results.apd import ApdAggregate
from pathorob_jax.results.record import Outcome, Record
from pathorob_jax.results.summary import Summary

OVER_DATASETS = (ApdAggregate, Summary)
SCHEMA_VERSION = 1


def result_path(root: str, result: Any) -> str:
    """Path of a record: ``<root>/<model>/<dataset>/<metric>.json``, or without the dataset."""
    if isinstance(result, OVER_DATASETS):
        return files.join(root, result.model, f"{result.metric}.json")
    return files.join(root, result.model, result.dataset, f"{result.metric}.json")


def write_result(root: str, result: Any) -> str:
    """Write a record, replacing an older one atomically; returns its path."""
    path = result_path(root, result)
    files.write_json(path, as_json(result))
    return path


def as_json(result: Any) -> dict[str, Any]:
    """A record as plain values for JSON; undefined numbers are None."""
    record = {"schema_version": SCHEMA_VERSION, "metric": result.metric}
    return {**record, **as_plain(result)}


def write_outcome(root: str, outcome: Outcome) -> str:
    """Write a record, and its draws as ``<metric>.draws.npz`` next to it; return its path."""
    path = write_result(root, outcome.record)
    if outcome.draws:
        sink = io.BytesIO()
        arrays: dict[str, Any] = {"key": np.array(outcome.draws_key), **outcome.draws}
        np.savez(sink, **arrays)
        files.write_bytes(_draws_path(path), sink.getvalue())
    return path


def read_draws(root: str, result: Any) -> Outcome:
    """Read the draws of a record; the result has none if their file is missing.

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


def read_result(path: str) -> Any:
    """Read a record back.

    Raises:
        InputError: the schema version differs, the metric is unknown, or a key is missing.
    """
    value = files.read_json(path)
    version = value.pop("schema_version", None) if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: expected schema_version {SCHEMA_VERSION}, found {version}. Run "
            "experiments.evaluate again to rewrite it."
        )
    metric = value.pop("metric", None)
    known = record_classes()
    if metric not in known:
        raise InputError(f"{path}: unknown metric {metric!r}; known: {sorted(known)}.")
    mend = "Run experiments.evaluate again to rewrite it."
    return from_plain(known[metric], value, where=path, stored=True, mend=mend)


def record_classes() -> dict[str, type[Record]]:
    """Classes of all records by metric, including records over several datasets."""
    classes: list[type[Record]] = [kind.record for kind in registry.KINDS.values()]
    classes += OVER_DATASETS
    return {record.metric: record for record in classes}


def read_results(root: str) -> list[Any]:
    """All records under ``root``, sorted by model; records of one dataset come first, by its name.

    Raises:
        FileNotFoundError: there are no records.

    >>> import numpy as np, pathorob_jax as pr
    >>> rows = {"slide_id": np.arange(48) // 4, "patch_id": np.arange(48)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 24}
    >>> rows |= {"medical_center": ["A"] * 24 + ["B"] * 24}
    >>> x = np.random.default_rng(0).normal(size=(48, 8))
    >>> _ = pr.evaluate_embeddings(x, rows, k=5, model="mine", output="results")
    >>> [record] = pr.read_results("results")
    >>> record.model, record.metric
    ('mine', 'robustness_index')
    """
    records = [r for model in files.list_folders(root) for r in read_model_results(root, model)]
    if not records:
        raise FileNotFoundError(
            f"{root}: no results found; expected <results>/<model>/<dataset>/<metric>.json, which "
            "experiments.evaluate writes."
        )
    return records


def read_model_results(root: str, model: str) -> list[Any]:
    """All records of one model: by dataset and metric, then records over several datasets."""
    top = files.join(root, model)
    folders = [files.join(top, dataset) for dataset in files.list_folders(top)]
    known = record_classes()
    return [
        read_result(files.join(folder, name))
        for folder in [*folders, top]
        if files.exists(folder)
        for name in files.list_files(folder, ".json")
        if name.removesuffix(".json") in known
    ]
