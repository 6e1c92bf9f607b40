"""Read the header of safetensors files, believe none of it, and read one tensor at a time."""

import json
import math
import os
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from pathorob_jax.core.checks import InputError

_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64, "C128": 128,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
# Types that are read; all others are only counted, and refused by name where they are weights.
_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_MAX_HEADER_BYTES = 10**8
_MAX_DEPTH = 8  # a header has three levels
_MAX_SIZE = 2**48


@dataclass(frozen=True)
class StoredTensor:
    """Position of a tensor in a safetensors file.

    Attributes:
        path: the file.
        dtype: type in the names of safetensors.
        shape: its shape.
        offset: of its first byte in the file.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def kind(self) -> str:
        """Type in NumPy's names; in those of safetensors where NumPy has none."""
        known = _DTYPES.get(self.dtype)
        return self.dtype if known is None else np.dtype(known).name

    @property
    def n_bytes(self) -> int:
        """Bytes in the file."""
        return -(-math.prod(self.shape) * _BITS[self.dtype] // 8)

    def read(self) -> np.ndarray:
        """The tensor.

        Raises:
            InputError: NumPy has no such type, or the file became shorter.
        """
        if self.dtype not in _DTYPES:
            raise InputError(f"{self.path}: tensors of type {self.dtype} cannot be read.")
        # Read, not mapped: mapped pages of a large file would count as memory of this process.
        count = math.prod(self.shape)
        found = np.fromfile(self.path, _DTYPES[self.dtype], count, offset=self.offset)
        if found.size != count:
            raise InputError(f"{self.path}: became shorter while it was read.")
        return found.reshape(self.shape)


def read_header(path: str) -> dict[str, StoredTensor]:
    """Positions of all tensors; they must fill the file exactly.

    Raises:
        InputError: the file is no safetensors file, is truncated, or its header contradicts itself.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        n_header = int.from_bytes(stream.read(8), "little")
        if size < 8 or n_header > min(size - 8, _MAX_HEADER_BYTES):
            raise InputError(f"{path}: no safetensors file, or truncated in its header.")
        text = stream.read(n_header)
    header = _parse(path, text)
    header.pop("__metadata__", None)
    stored = {key: _check_entry(path, key, entry, 8 + n_header) for key, entry in header.items()}
    ordered = dict(sorted(stored.items(), key=lambda item: (item[1].offset, item[1].n_bytes)))
    end = 8 + n_header
    for key, tensor in ordered.items():
        if tensor.offset != end:
            raise InputError(f"{path}: {key!a} does not begin where the tensor before it ends.")
        end += tensor.n_bytes
    if end != size:
        raise InputError(
            f"{path}: expected {end} bytes by its header, found {size}; truncated? Fetch it again."
        )
    return ordered


def _parse(path: str, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice!a} stands there twice")
        return found

    try:
        if _depth(text) > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        header = json.loads(text, object_pairs_hook=unique)
        if not isinstance(header, dict):
            raise TypeError(f"expected names of tensors, found {type(header).__name__}")
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: no safetensors file: its header cannot be read ({str(error)[:200]})."
        ) from error
    return header


def _depth(text: bytes) -> int:
    """An upper bound of the nesting of a JSON text; brackets inside strings count too."""
    bytes_ = np.frombuffer(text, np.uint8)
    opened = (bytes_ == ord("{")) | (bytes_ == ord("["))
    closed = (bytes_ == ord("}")) | (bytes_ == ord("]"))
    steps = opened.astype(np.int32) - closed
    return int(np.cumsum(steps).max(initial=0))


def _check_entry(path: str, key: str, entry: Any, start: int) -> StoredTensor:
    """The position that an entry of the header gives."""

    def refuse(why: str) -> InputError:
        return InputError(f"{path}: no safetensors file: tensor {key[:200]!a} {why}.")

    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise refuse("lacks its dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise refuse(f"is of the type {str(dtype)[:40]!a}, which is not known")
    if not _are_sizes(shape):
        raise refuse(f"has a shape that is no list of sizes: {str(shape)[:80]}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise refuse(f"has offsets that are no two positions: {str(offsets)[:80]}")
    stored = StoredTensor(path, dtype, tuple(shape), start + offsets[0])
    if offsets[1] - offsets[0] != stored.n_bytes:
        raise refuse(
            f"needs {stored.n_bytes} bytes by its shape, {offsets[1] - offsets[0]} by its offsets"
        )
    return stored


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < _MAX_SIZE for value in values
    )
