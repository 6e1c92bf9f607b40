"""The files of an embedding store: their names, and the array on disk.

A store is a folder ``<root>/<model>/<dataset>/`` of ``embeddings/`` (zarr3, sharded, checksummed),
``manifest.parquet`` (row order = array order) and ``store.json``, whose ``complete: true`` is
written last.
"""

import os
from collections.abc import Mapping
from typing import Any

import tensorstore as ts

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError

SCHEMA_VERSION = 1
INFO, MANIFEST, ARRAY = "store.json", "manifest.parquet", "embeddings"
BAD_ROWS = "bad_rows"
MAX_INNER_ROWS = 64


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


def open_array(path: str) -> ts.TensorStore:
    """Open the array of the store at ``path``. Reading a missing chunk is an error.

    Raises:
        InputError: the array cannot be opened.
    """
    spec = _base_spec(path) | {"fill_missing_data_reads": False}
    try:
        return ts.open(spec).result()
    except ValueError as error:
        raise InputError(
            f"{path}: the array cannot be opened ({first_line(error)}). Remove the "
            "folder and extract or import it again."
        ) from error


def missing_chunks(path: str, info: Mapping[str, Any]) -> list[int]:
    """Chunks without a shard on disk. A shard is either complete or absent."""
    keys = ts.KvStore.open(_kvstore(files.join(path, ARRAY))).result().list().result()
    names = [key.decode().split("/") for key in keys]
    written = {int(n[1]) for n in names if n[0] == "c" and len(n) == 3 and n[2] == "0"}
    n_chunks = -(-int(info["n_rows"]) // int(info["chunk_rows"]))
    return sorted(set(range(n_chunks)) - written)


def first_line(error: BaseException) -> str:
    """First line of an error's text, shortened for a message."""
    return str(error).splitlines()[0][:200]
