"""Zarr arrays of version 2 and 3, read by TensorStore; strings, unknown to it, are decoded.

A string array has chunks of ``vlen-utf8``: the number of strings, then each with its length before
it, compressed as bytes.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import tensorstore as ts

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.embeddings.imports import source as sources
from pathorob_jax.embeddings.imports.source import reading

MARKS = ("zarr.json", ".zarray", ".zgroup")


def is_zarr(path: str) -> bool:
    """Whether there is an array or a group at the path."""
    return any(files.exists(files.join(path, mark)) for mark in MARKS)


def attributes(path: str) -> dict[str, Any]:
    """Attributes of an array or a group of either version; empty if there are none."""
    if files.exists(files.join(path, "zarr.json")):
        return dict(files.read_json(files.join(path, "zarr.json")).get("attributes") or {})
    found = files.join(path, ".zattrs")
    return dict(files.read_json(found)) if files.exists(found) else {}


def is_array(path: str) -> bool:
    """Whether there is an array at the path, not a group."""
    if files.exists(files.join(path, ".zarray")):
        return True
    meta = files.join(path, "zarr.json")
    return files.exists(meta) and files.read_json(meta).get("node_type") == "array"


def children(path: str) -> list[str]:
    """Names of the arrays and groups of a group."""
    return [name for name in files.list_folders(path) if is_zarr(files.join(path, name))]


def open_numbers(path: str) -> ts.TensorStore:
    """An array of numbers.

    Raises:
        InputError: it is damaged, or of another type.
    """
    v3 = files.exists(files.join(path, "zarr.json"))
    spec = {"driver": "zarr3" if v3 else "zarr", "kvstore": _kvstore(path)}
    with reading(path):
        return ts.open(spec, open=True, read=True, context=_context()).result()


def _context() -> ts.Context:
    return ts.Context({"cache_pool": {"total_bytes_limit": 2**26}})


def _kvstore(path: str) -> Any:
    if files.is_remote(path):
        return path.rstrip("/") + "/"
    return {"driver": "file", "path": files.filesystem(path)[1].rstrip("/") + "/"}


def read_values(path: str) -> np.ndarray:
    """A whole array of one or two axes, of numbers or of strings (object)."""
    with reading(path):
        meta = _read_meta(path)
        if _is_string(meta):
            return _read_strings(path, meta)
        return np.asarray(open_numbers(path).read().result())


def _read_meta(path: str) -> dict[str, Any]:
    name = "zarr.json" if files.exists(files.join(path, "zarr.json")) else ".zarray"
    return dict(files.read_json(files.join(path, name)))


def _is_string(meta: Mapping[str, Any]) -> bool:
    kind = meta.get("data_type", meta.get("dtype"))
    return kind == "string" or (kind == "|O" and "vlen-utf8" in json.dumps(meta.get("filters")))


def _read_strings(path: str, meta: Mapping[str, Any]) -> np.ndarray:
    v3 = meta.get("zarr_format") == 3
    [n] = meta["shape"]
    if v3:
        [step] = meta["chunk_grid"]["configuration"]["chunk_shape"]
        encoding = meta.get("chunk_key_encoding") or {}
        names = [str(c) if encoding.get("name") == "v2" else f"c/{c}" for c in range(-(-n // step))]
        codecs = [c for c in meta["codecs"] if c["name"] not in ("vlen-utf8", "bytes")]
    else:
        [step] = meta["chunks"]
        names = [str(c) for c in range(-(-n // step))]
        codecs = [{"name": meta["compressor"]["id"]}] if meta.get("compressor") else []
    fill = meta.get("fill_value") or ""
    out = np.full(n, fill, object)
    for c, name in enumerate(names):
        chunk = files.join(path, name)
        if not files.exists(chunk):
            continue
        data = files.read_bytes(chunk)
        for codec in reversed(codecs):
            data = _decode(path, data, codec["name"])
        part = _strings(data)
        out[c * step : (c + 1) * step] = part[: min(step, n - c * step)]
    return out


def _decode(path: str, data: bytes, codec: str) -> bytes:
    if codec in ("zlib", "gzip"):
        return zlib.decompress(data, zlib.MAX_WBITS | 32)
    if codec == "zstd":
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            return bytes(stream.read())
    if codec == "blosc":
        return _decode_blosc(data)
    if codec == "crc32c":
        return data[:-4]
    raise InputError(f"{path}: strings compressed with {codec} are not read. Write them with zstd.")


def _decode_blosc(data: bytes) -> bytes:
    """By TensorStore: the bytes as the only chunk of an array in memory."""
    size = struct.unpack("<I", data[4:8])[0]
    if size > 2**30:
        raise ValueError(f"a chunk of {size} bytes")
    meta = {
        "zarr_format": 2,
        "shape": [size],
        "chunks": [size],
        "dtype": "|u1",
        "compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 0},
        "fill_value": None,
        "filters": None,
        "order": "C",
    }
    context = ts.Context()
    store = ts.KvStore.open({"driver": "memory", "path": "x/"}, context=context).result()
    store.write(".zarray", json.dumps(meta).encode()).result()
    store.write("0", data).result()
    array = ts.open(
        {"driver": "zarr", "kvstore": {"driver": "memory", "path": "x/"}}, context=context
    )
    return bytes(np.asarray(array.result().read().result()))


def _strings(data: bytes) -> list[str]:
    n, at, out = struct.unpack("<I", data[:4])[0], 4, []
    for _ in range(n):
        size = struct.unpack("<I", data[at : at + 4])[0]
        out.append(data[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return out


def taker(path: str, axes: int = 2) -> sources.Take:
    """A ``take`` of the rows of an array of numbers ([N, D] or [1, N, D])."""
    array = open_numbers(path)
    rows_of = array[0] if axes == 3 else array

    def take(rows: np.ndarray) -> np.ndarray:
        return sources.read_runs(rows, lambda a, b: np.asarray(rows_of[a:b].read().result()))

    return take


def digest(path: str) -> str:
    """Hex sha256 of all files of an array or a group."""
    return sources.digest_files(path, _all_files(path))


def _all_files(path: str) -> list[str]:
    fs, inner = files.filesystem(path)
    entries = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
    start = len(inner.rstrip("/")) + 1
    return sorted(e.path[start:] for e in entries if e.type == pafs.FileType.File)


def shape_of(path: str) -> tuple[int, ...]:
    """Shape of an array, of numbers or of strings."""
    with reading(path):
        return tuple(_read_meta(path)["shape"])
