"""The files of an embedding store: their names, ``store.json``, and the array on disk.

A store is a folder ``<root>/<model>/<dataset>/`` of ``embeddings/`` (zarr3, sharded, checksummed),
``manifest.parquet`` (row order = array order) and ``store.json``, whose ``complete: true`` is
written last. ``store.json`` holds the digests of itself and of the manifest, and the shape of the
array, which must have just the metadata that ``array_spec`` gives it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tensorstore as ts
from absl import logging

from pathorob_jax.core import files, sealed_files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.plain import OMIT_EMPTY, from_plain

# Version 1 is the same without digests of store.json and of the lists of bad rows.
SCHEMA_VERSION, UNCHECKED_VERSION = 2, 1
INFO, MANIFEST, ARRAY = "store.json", "manifest.parquet", "embeddings"
# Beside the store proper: two equal runs differ in it.
COST = "cost.json"
BAD_ROWS, TILES = "bad_rows", "tiles"
# Who embeds which chunks, until the store is complete (``core.leases``).
LEASES = "leases"
FOLDERS = (BAD_ROWS, TILES)
MAX_INNER_ROWS = 64


@dataclass(frozen=True)
class _BadRow:
    row: int
    name: str
    reason: str


@dataclass(frozen=True)
class _Info:
    """Types of the values in ``store.json``."""

    complete: bool
    n_rows: int
    dim: int
    chunk_rows: int
    manifest_sha256: str
    identity: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, Any]
    bad_rows: list[_BadRow] = field(default_factory=list, metadata=OMIT_EMPTY)


def has_info(path: str) -> bool:
    """Whether there is a store, complete or not, at ``path``."""
    return files.exists(files.join(path, INFO))


def read_info(path: str) -> dict[str, Any]:
    """Contents of ``store.json`` of the store at ``path``.

    Raises:
        InputError: it is of another schema, not as it was written, or no description of a store.
    """
    where = files.join(path, INFO)
    value = files.read_json(where)
    if isinstance(value, dict) and value.get(sealed_files.SCHEMA) == UNCHECKED_VERSION:
        logging.info("%s: an older version wrote it, without a digest; it is unchecked.", where)
    else:
        value = sealed_files.unseal(where, value, schema_version=SCHEMA_VERSION)
    info: _Info = from_plain(_Info, value, where=where, stored=True)
    bad = [b.row for b in info.bad_rows]
    if min(info.n_rows, info.dim, info.chunk_rows) < 1:
        raise InputError(f"{where}: expected rows, dimensions and rows of a chunk above 0.")
    if bad != sorted(set(bad)) or (bad and not 0 <= bad[0] <= bad[-1] < info.n_rows):
        raise InputError(f"{where}: expected {BAD_ROWS} in order, each once, found {bad[:5]} ...")
    return dict(value)


def write_info(path: str, info: Mapping[str, Any]) -> None:
    """Write ``store.json`` of the store at ``path``, with its digest."""
    value = dict(info) | {sealed_files.SCHEMA: SCHEMA_VERSION}
    sealed_files.write_json(files.join(path, INFO), value)


def add_cost(path: str, cost: Mapping[str, Any]) -> None:
    """Add what a pass over tiles cost to ``cost.json`` of the store at ``path``."""
    files.write_json(files.join(path, COST), {"passes": [*read_costs(path), dict(cost)]})


def read_costs(path: str) -> list[dict[str, Any]]:
    """What the passes over tiles cost that made a store; empty where that is not known."""
    try:
        found = files.read_json(files.join(path, COST))["passes"]
    except files.UNREADABLE:
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def write_bad_rows(path: str, chunk: int, rows: list[dict[str, Any]]) -> None:
    """Write the list of patches of a chunk that have no embedding."""
    value = {sealed_files.SCHEMA: SCHEMA_VERSION, "rows": rows}
    sealed_files.write_json(bad_rows_path(path, chunk), value)


def read_bad_rows(path: str) -> list[dict[str, Any]]:
    """Bad rows of all chunks, sorted by row.

    Raises:
        InputError: a list is not as it was written.
    """
    folder = files.join(path, BAD_ROWS)
    if not files.exists(folder):
        return []
    rows: list[dict[str, Any]] = []
    for name in files.list_files(folder, ".json"):
        where = files.join(folder, name)
        value = files.read_json(where)
        if not isinstance(value, list):  # an older version's is a bare list
            value = sealed_files.unseal(where, value, schema_version=SCHEMA_VERSION)["rows"]
        from_plain(list[_BadRow], value, where=where, stored=True)
        rows += value
    return sorted(rows, key=lambda bad: bad["row"])


def bad_rows_path(path: str, chunk: int) -> str:
    """File that lists the patches of a chunk that have no embedding."""
    return files.join(path, BAD_ROWS, f"{chunk}.json")


def array_spec(path: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """TensorStore spec of a new array: each chunk is one file (shard), NaN until written."""
    rows, dim = int(info["chunk_rows"]), int(info["dim"])
    inner = max(r for r in range(1, min(rows, MAX_INNER_ROWS) + 1) if rows % r == 0)
    crc: dict[str, Any] = {"name": "crc32c"}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    shard = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [inner, dim],
            "codecs": [little, crc],
            "index_codecs": [little, crc],
        },
    }
    return _base_spec(path) | {
        "metadata": {
            "shape": [int(info["n_rows"]), dim],
            "data_type": "float32",
            "fill_value": "NaN",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows, dim]}},
            "codecs": [shard],
        }
    }


def _base_spec(path: str) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": _kvstore(files.join(path, ARRAY)),
        # Otherwise rows without an embedding would look like rows that were never written.
        "store_data_equal_to_fill_value": True,
    }


def _kvstore(path: str) -> str | dict[str, str]:
    if files.is_remote(path):
        return path + "/"
    return {"driver": "file", "path": os.path.abspath(os.path.expanduser(path)) + "/"}


def open_array(path: str, info: Mapping[str, Any]) -> ts.TensorStore:
    """Open the array of the store at ``path``. Reading a missing chunk is an error.

    Raises:
        InputError: the array cannot be opened, or is not what ``info`` describes.
    """
    spec = array_spec(path, info) | {"fill_missing_data_reads": False}
    try:
        return ts.open(spec).result()
    except ValueError as error:
        raise InputError(
            f"{path}: the array cannot be opened ({files.describe(error)}). Remove the "
            "folder and extract or import it again."
        ) from error


def missing_chunks(path: str, info: Mapping[str, Any]) -> list[int]:
    """Chunks without a shard on disk. A shard is either complete or absent."""
    keys = ts.KvStore.open(_kvstore(files.join(path, ARRAY))).result().list().result()
    names = [key.decode().split("/") for key in keys]
    written = {int(n[1]) for n in names if n[0] == "c" and len(n) == 3 and n[2] == "0"}
    n_chunks = -(-int(info["n_rows"]) // int(info["chunk_rows"]))
    return sorted(set(range(n_chunks)) - written)
