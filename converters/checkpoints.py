"""Read the tensors of PyTorch checkpoints one at a time, without executing code.

``open_checkpoint`` returns names and shapes of the tensors, a function to read one, and the sha256
of the files. Pickles are only read by PyTorch's restricted unpickler.
"""

import argparse
import hashlib
import json
import math
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from pathorob_jax.core.checks import InputError

_DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip
_MAX_HEADER_BYTES = 10**8
_BLOCK_BYTES = 2**22
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".torch")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one or several files.

    Attributes:
        name: name given by the user.
        paths: the files.
        shapes: shape of each tensor, in the order of the files.
        read: name -> the tensor as NumPy array, read anew; floats keep the type of the file.
    """

    name: str
    paths: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]

    def digests(self) -> list[dict[str, Any]]:
        """Name, size and sha256 of each file."""
        return [
            {
                "name": os.path.basename(path),
                "bytes": os.path.getsize(path),
                "sha256": _digest_file(path),
            }
            for path in self.paths
        ]


def open_checkpoint(path: str, *, wrappers: Iterable[str] = ()) -> Checkpoint:
    """Open the tensors of a local file.

    Args:
        path: ``.safetensors``, its ``.index.json``, or a pickle of PyTorch.
        wrappers: keys of a pickled dict that may contain the tensors.

    Raises:
        InputError: the file is truncated, of another kind, or contains more than tensors.
        FileNotFoundError: no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file.")
    if path.endswith(".index.json"):
        return _open_index(path)
    if path.endswith(".safetensors"):
        return _open_safetensors(path)
    if path.endswith(PICKLES):
        return _open_pickle(path, list(wrappers))
    raise InputError(
        f"{path}: expected .safetensors, .safetensors.index.json or one of {', '.join(PICKLES)}."
    )


@dataclass(frozen=True)
class _Stored:
    """Position of a tensor in a safetensors file."""

    path: str
    dtype: Any
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        # Read, not mapped: mapped pages of a large file would count as memory of this process.
        count = math.prod(self.shape)
        found = np.fromfile(self.path, self.dtype, count, offset=self.offset)
        if found.size != count:
            raise InputError(f"{self.path}: became shorter while it was read.")
        return found.reshape(self.shape)


def _open_safetensors(path: str) -> Checkpoint:
    stored = _read_header(path)
    shapes = {key: tensor.shape for key, tensor in stored.items()}
    return Checkpoint(path, (path,), shapes, lambda key: stored[key].read())


def _read_header(path: str) -> dict[str, _Stored]:
    """Positions of all tensors; their sizes must fill the file exactly."""
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        n_header = int.from_bytes(stream.read(8), "little")
        if size < 8 or n_header > min(size - 8, _MAX_HEADER_BYTES):
            raise InputError(f"{path}: no safetensors file, or truncated in its header.")
        try:
            header = json.loads(stream.read(n_header))
            header.pop("__metadata__", None)
            stored = {
                key: _Stored(
                    path,
                    np.dtype(_DTYPES[entry["dtype"]]),
                    tuple(int(n) for n in entry["shape"]),
                    8 + n_header + int(entry["data_offsets"][0]),
                )
                for key, entry in sorted(header.items(), key=lambda x: x[1]["data_offsets"])
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"{path}: no safetensors file: {error!r} in its header.") from error
    end = 8 + n_header
    for key, tensor in stored.items():
        if tensor.offset != end or min(tensor.shape, default=1) < 0:
            raise InputError(f"{path}: {key} does not begin where the tensor before it ends.")
        end += math.prod(tensor.shape) * tensor.dtype.itemsize
    if end != size:
        raise InputError(
            f"{path}: expected {end} bytes by its header, found {size}; truncated? Fetch it again."
        )
    return stored


def _open_index(path: str) -> Checkpoint:
    """Open several safetensors files, by the index that lists the file of each tensor."""
    try:
        with open(path, encoding="utf-8") as stream:
            names: dict[str, str] = dict(json.load(stream)["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected an index with a 'weight_map' ({error!r}).") from error
    folder = os.path.dirname(path)
    if any(os.path.basename(name) != name for name in names.values()):
        raise InputError(f"{path}: expected names of files beside it.")
    paths = [os.path.join(folder, name) for name in sorted(set(names.values()))]
    missing = [file for file in paths if not os.path.isfile(file)]
    if missing:
        raise FileNotFoundError(f"{path}: names files that are not there: {', '.join(missing)}")
    stored = {key: tensor for file in paths for key, tensor in _read_header(file).items()}
    different = sorted(set(stored) ^ set(names))
    if different:
        raise InputError(f"{path}: index and files differ in {', '.join(different)}.")
    shapes = {key: tensor.shape for key, tensor in stored.items()}
    return Checkpoint(path, (path, *paths), shapes, lambda key: stored[key].read())


def _open_pickle(path: str, wrappers: list[str]) -> Checkpoint:
    tensors = _unwrap(_unpickle(path), wrappers, path)

    def read(key: str) -> np.ndarray:
        return _to_numpy(tensors[key])

    return Checkpoint(path, (path,), {key: tuple(x.shape) for key, x in tensors.items()}, read)


def _unpickle(path: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: reading pickles needs PyTorch: pip install 'pathorob-jax[convert]', or give "
            "the .safetensors file."
        ) from error
    try:
        # Most training checkpoints have namespaces of arguments, which contain only values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return _torch_load(path)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: refused: it holds more than tensors, and unpickling that could run any "
            "program. If you trust its origin, save its tensors alone elsewhere. "
            f"({_reason(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: no checkpoint of PyTorch, or truncated ({_reason(error)})."
        ) from error


def _reason(error: Exception) -> str:
    """The message of an error in one line; for a refused pickle, the line that names the object."""
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    return next((line for line in lines if "GLOBAL" in line), lines[0])[:200]


def _torch_load(path: str) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # before PyTorch 1.6


def _unwrap(value: Any, wrappers: list[str], path: str) -> dict[str, Any]:
    """The dict of tensors, taken out of the wrappers that the schemes name."""
    for _ in range(3):
        inner = [key for key in wrappers if isinstance(value, dict) and key in value]
        inner = [key for key in inner if isinstance(value[key], dict)]
        if not inner:
            break
        value = value[inner[0]]
    if not isinstance(value, dict) or not value:
        raise InputError(f"{path}: expected a dict of tensors, found {type(value).__name__}.")
    other = [str(key) for key, x in value.items() if not hasattr(x, "numpy")]
    if other:
        raise InputError(
            f"{path}: expected tensors, also found {', '.join(other[:20])}; its tensors may lie "
            f"under another key than {', '.join(wrappers) or 'none'}."
        )
    return {str(key): x for key, x in value.items()}


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _digest_file(path: str) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            sha.update(block)
    return sha.hexdigest()
