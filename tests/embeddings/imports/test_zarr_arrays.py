"""Zarr: strings, which TensorStore does not read, and arrays at a URL."""

import gzip
import json
import struct
import zlib

import numpy as np
import pytest

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.embeddings.imports import zarr_arrays


def vlen_utf8(*texts):
    parts = [text.encode() for text in texts]
    return struct.pack("<I", len(parts)) + b"".join(struct.pack("<I", len(p)) + p for p in parts)


def write_v2(path, *, n, step, chunks, compressor=None, dtype="|O", fill=None):
    """An array of strings of Zarr 2, or of other values in one piece."""
    path.mkdir()
    meta = {
        "zarr_format": 2,
        "shape": n if isinstance(n, list) else [n],
        "chunks": step if isinstance(step, list) else [step],
        "dtype": dtype,
        "filters": [{"id": "vlen-utf8"}] if dtype == "|O" else None,
        "compressor": compressor and {"id": compressor},
        "fill_value": fill,
        "order": "C",
    }
    (path / ".zarray").write_text(json.dumps(meta))
    for name, data in chunks.items():
        (path / name).write_bytes(data)
    return str(path)


@pytest.mark.parametrize(("name", "pack"), [("zlib", zlib.compress), ("gzip", gzip.compress)])
def test_strings_of_zarr_2(tmp_path, name, pack):
    chunks = {"0": pack(vlen_utf8("a", "tumör")), "2": pack(vlen_utf8("e", ""))}
    path = write_v2(tmp_path / "s", n=5, step=2, chunks=chunks, compressor=name, fill="none")
    values = zarr_arrays.read_values(path)
    assert values.tolist() == ["a", "tumör", "none", "none", "e"], "the second was not written"


def test_strings_of_zarr_3_with_a_checksum(tmp_path):
    meta = {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": "string",
        "shape": [2],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
        "codecs": [{"name": "vlen-utf8"}, {"name": "gzip"}, {"name": "crc32c"}],
    }
    (tmp_path / "c").mkdir()
    (tmp_path / "zarr.json").write_text(json.dumps(meta))
    (tmp_path / "c" / "0").write_bytes(gzip.compress(vlen_utf8("a", "b")) + b"CRC.")
    assert zarr_arrays.read_values(str(tmp_path)).tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("compressor", "part"),
    [
        ("lz4", "s: strings compressed with lz4 are not read. Write them with zstd"),
        ("blosc", r"s: cannot be read \(a chunk of 2147483648 bytes\)"),
    ],
)
def test_strings_that_cannot_be_unpacked(tmp_path, compressor, part):
    data = struct.pack("<II", 0, 2**31) + bytes(8)
    path = write_v2(tmp_path / "s", n=1, step=1, chunks={"0": data}, compressor=compressor)
    with pytest.raises(InputError, match=part):
        zarr_arrays.read_values(path)


def test_an_array_at_a_url(tmp_path, monkeypatch, rng):
    x = rng.normal(size=(2, 3)).astype(np.float32)
    chunks = {"0.0": x.tobytes()}
    path = write_v2(tmp_path / "x", n=[2, 3], step=[2, 3], chunks=chunks, dtype="<f4")
    local = files.filesystem
    monkeypatch.setattr(files, "filesystem", lambda url: local(url.removeprefix("file://")))
    np.testing.assert_array_equal(zarr_arrays.read_values(f"file://{path}"), x)
