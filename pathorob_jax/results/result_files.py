"""Records on disk: versioned JSON, and the bootstrap draws beside it.

A record lies at ``<root>/<model>/<dataset>/<metric>.json``, one over several datasets in
``<root>/<model>/``. It is written atomically, with null for what is undefined, and read back as the
same record. ``provenance`` is the only part in which two equal runs may differ.
"""

import dataclasses
import io
import math
import types
import typing
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.results import registry
from pathorob_jax.results.apd import ApdAggregate
from pathorob_jax.results.record import Outcome, Record
from pathorob_jax.results.summary import Summary

OVER_DATASETS = (ApdAggregate, Summary)
SCHEMA_VERSION = 1


def result_path(root: str, result: Any) -> str:
    """Where a record lies: ``<root>/<model>/<dataset>/<metric>.json``, no dataset for several."""
    if isinstance(result, OVER_DATASETS):
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
    values = dataclasses.asdict(result)
    for field in dataclasses.fields(result):
        if field.metadata.get("omit_empty") and not values[field.name]:
            del values[field.name]
    return record | _plain(values)


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
    known = record_classes()
    if metric not in known:
        raise InputError(f"{path}: unknown metric {metric!r}; known: {sorted(known)}.")
    return _record(known[metric], value, path)


def record_classes() -> dict[str, type[Record]]:
    """Classes of all records by metric, those over several datasets included."""
    classes: list[type[Record]] = [kind.record for kind in registry.KINDS.values()]
    classes += OVER_DATASETS
    return {record.metric: record for record in classes}


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
    known = record_classes()
    return [
        read_result(files.join(folder, name))
        for folder in [*folders, top]
        if files.exists(folder)
        for name in files.list_files(folder, ".json")
        if name.removesuffix(".json") in known
    ]


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
    fields = dataclasses.fields(kind)
    missing = sorted(
        f.name for f in fields if f.name not in value and f.default_factory is dataclasses.MISSING
    )
    if missing:
        raise InputError(f"{path}: lacks the keys {missing}; run experiments.evaluate again.")
    return kind(**{f.name: _typed(f.type, value[f.name], path) for f in fields if f.name in value})


def _typed(annotation: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(annotation):
        return _record(annotation, value, path)
    if annotation is float:
        return math.nan if value is None else value
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is types.UnionType and value is not None and len(arguments) == 2:
        return _typed(arguments[0], value, path)
    if origin is list and arguments[0] is not Any:
        return [_typed(arguments[0], item, path) for item in value]
    if origin is dict and arguments[1] is not Any:
        return {key: _typed(arguments[1], item, path) for key, item in value.items()}
    return value
