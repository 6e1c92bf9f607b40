"""Records on disk: versioned JSON, with the draws in a separate file.

The path of a record is ``<root>/<model>/<dataset>/<metric>.json``; records over several datasets
are in ``<root>/<model>/``, and the one over models is ``<root>/models.json``. A record is written
atomically, with null for undefined values, and read back as the same record. Two equal
runs may differ only in ``provenance``, which holds the digests of all the rest and of the draws. A
file that is not as it was written is refused by name; files of schema 1, which have no digest, are
read and marked as unchecked.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from pathorob_jax.core import digests, files, sealed_files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.plain import as_plain, from_plain
from pathorob_jax.results import folders, registry
from pathorob_jax.results.apd import ApdAggregate
from pathorob_jax.results.over_models import FILE, OverModels
from pathorob_jax.results.record import Outcome, Record
from pathorob_jax.results.shapes import check_shapes
from pathorob_jax.results.summary import Summary

OVER_DATASETS = (ApdAggregate, Summary)
# Version 1 is the same without digests.
SCHEMA_VERSION, UNCHECKED_VERSION = 2, 1
PROVENANCE, DIGEST, DRAWS_DIGEST = "provenance", "sha256", "draws_sha256"
REQUEST_DIGEST = "request_sha256"
MEND = "Run experiments.evaluate again to rewrite it."


def result_path(root: str, result: Any) -> str:
    """Path of a record: ``<root>/<model>/<dataset>/<metric>.json``, or without the dataset."""
    if isinstance(result, OverModels):
        return files.join(root, FILE)
    if isinstance(result, OVER_DATASETS):
        return files.join(root, result.model, f"{result.metric}.json")
    return files.join(root, result.model, result.dataset, f"{result.metric}.json")


def as_json(result: Any) -> dict[str, Any]:
    """A record as plain values for JSON; undefined numbers are None."""
    record = {"schema_version": SCHEMA_VERSION, "metric": result.metric}
    return {**record, **as_plain(result)}


def write_result(root: str, result: Any) -> str:
    """Write a record without draws, replacing an older one atomically; returns its path."""
    return write_outcome(root, Outcome(result))


def write_outcome(root: str, outcome: Outcome, *, request_sha256: str = "") -> str:
    """Write a record, and its draws as ``<metric>.draws.npz`` next to it; return its path.

    The draws are written first. The record holds their digest, so that draws of a run that was
    killed between the two files are not taken for those of an older record.

    Args:
        root: folder of all results.
        outcome: the record and its draws.
        request_sha256: digest of the request that it answers; "": not recorded.
    """
    path = result_path(root, outcome.record)
    record = as_json(outcome.record)
    seals = {DIGEST: _digest(record)}
    if request_sha256:
        seals[REQUEST_DIGEST] = request_sha256
    if outcome.draws:
        arrays: dict[str, Any] = {"key": np.array(outcome.draws_key), **outcome.draws}
        seals[DRAWS_DIGEST] = digests.digest_arrays(arrays)
        sealed_files.write_arrays(_draws_path(path), arrays, schema_version=SCHEMA_VERSION)
    record[PROVENANCE] = {**record.get(PROVENANCE, {}), **seals}
    files.write_json(path, record)
    if not outcome.draws:
        files.remove(_draws_path(path))
    return path


def _digest(record: Mapping[str, Any]) -> str:
    """Digest of a record as JSON, without its provenance."""
    return digests.digest_json({k: v for k, v in record.items() if k != PROVENANCE})


def _draws_path(path: str) -> str:
    return path.removesuffix(".json") + ".draws.npz"


class _Read(NamedTuple):
    """A record as read, and two digests that its file holds.

    Attributes:
        record: the record.
        draws_digest: of its draws; None: unknown, as the file has no digests.
        request_digest: of the request that it answers; "": unknown.
    """

    record: Any
    draws_digest: str | None
    request_digest: str


def read_result(path: str) -> Any:
    """Read a record back.

    Raises:
        InputError: the schema version differs, the metric is unknown, a value is missing or not of
            its type, or the file is not as it was written.
    """
    return _read(path).record


def read_outcome(path: str) -> Outcome:
    """Read a record with its draws.

    Draws that are damaged, or belong to another run than the record, are left out; ``note`` says
    why.

    Raises:
        InputError: as ``read_result``.
    """
    return read_answer(path)[0]


def read_answer(path: str) -> tuple[Outcome, str]:
    """Read a record with its draws, and the digest of the request that it answers ("": unknown).

    Raises:
        InputError: as ``read_result``.
    """
    record, expected, request = _read(path)
    is_checked = expected is not None
    draws_path = _draws_path(path)
    if not files.exists(draws_path):
        note = "its draws are missing" if expected else ""
        return Outcome(record, is_checked=is_checked, note=note), request
    try:
        key, draws = _read_draws(draws_path, expected)
    except InputError as error:
        note = str(error).rstrip(".")
        return Outcome(record, is_checked=is_checked, note=note), request
    return Outcome(record, key, draws, is_checked), request


def _read_draws(path: str, expected: str | None) -> tuple[str, dict[str, np.ndarray]]:
    """Key and draws of a file, which must have a digest (None: must have none)."""
    if expected is None:
        arrays = sealed_files.load_npz(path)
    else:
        arrays = sealed_files.read_arrays(path, schema_version=SCHEMA_VERSION)
    if sealed_files.DIGEST in arrays or expected not in (None, digests.digest_arrays(arrays)):
        raise InputError(f"{path}: belongs to another run than the record beside it.")
    key = arrays.pop("key", None)
    if key is None or key.dtype.kind != "U" or key.ndim:
        raise InputError(f"{path}: expected draws with a key, found none.")
    if any(d.dtype != np.float64 or d.ndim != 1 for d in arrays.values()):
        raise InputError(f"{path}: expected lists of draws, found other arrays.")
    return str(key), arrays


def _read(path: str) -> _Read:
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a result, found {type(value).__name__}. {MEND}")
    version = value.get("schema_version")
    if version not in (SCHEMA_VERSION, UNCHECKED_VERSION) or isinstance(version, bool):
        raise InputError(
            f"{path}: expected schema_version {SCHEMA_VERSION}, found {version!r:.80}. {MEND}"
        )
    draws_digest = None
    if version == SCHEMA_VERSION:
        draws_digest = _check_digest(path, value)
    provenance = value.get(PROVENANCE)
    request = provenance.pop(REQUEST_DIGEST, "") if isinstance(provenance, dict) else ""
    metric, known = value.get("metric"), record_classes()
    if not isinstance(metric, str) or metric not in known:
        raise InputError(f"{path}: unknown metric {metric!r:.80}; known: {sorted(known)}.")
    record = from_plain(known[metric], value, where=path, stored=True, mend=MEND)
    try:
        check_shapes(record, path)
    except InputError as error:
        raise InputError(f"{error} {MEND}") from error
    return _Read(record, draws_digest, str(request))


def _check_digest(path: str, value: dict[str, Any]) -> str:
    """Check the digest of a record, take it out, and return that of the draws; "": none."""
    provenance = value.get(PROVENANCE)
    if not isinstance(provenance, dict) or provenance.pop(DIGEST, None) != _digest(value):
        raise InputError(f"{path}: {sealed_files.NOT_AS_WRITTEN}. {MEND}")
    return str(provenance.pop(DRAWS_DIGEST, ""))


def record_classes() -> dict[str, type[Record]]:
    """Classes of all records by metric, including records over several datasets."""
    classes: list[type[Record]] = [kind.record for kind in registry.KINDS.values()]
    classes += [*OVER_DATASETS, OverModels]
    return {record.metric: record for record in classes}


def read_results(root: str) -> list[Any]:
    """All records under ``root``, sorted by model; records of one dataset come first, by its name.

    Raises:
        FileNotFoundError: there are no records.
        InputError: a record is not as it was written.

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
    return [read_result(path) for path in _list_all(root)]


def read_outcomes(root: str) -> list[Outcome]:
    """All records under ``root`` with their draws; order and errors as of ``read_results``."""
    return [read_outcome(path) for path in _list_all(root)]


def read_model_outcomes(root: str, model: str) -> list[Outcome]:
    """All records of one model: by dataset and metric, then records over several datasets."""
    return [read_outcome(path) for path in _list_model(root, model)]


def _list_all(root: str) -> list[str]:
    paths = [path for model in files.list_folders(root) for path in _list_model(root, model)]
    if not paths:
        raise folders.none_found(root)
    return paths


def _list_model(root: str, model: str) -> Iterator[str]:
    top = files.join(root, model)
    known = record_classes().keys() - {OverModels.metric}
    for folder in [*(files.join(top, dataset) for dataset in files.list_folders(top)), top]:
        if files.exists(folder):
            for name in files.list_files(folder, ".json"):
                if name.removesuffix(".json") in known:
                    yield files.join(folder, name)
