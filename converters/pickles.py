"""Read the tensors of PyTorch's pickles with its restricted unpickler: nothing in them is executed.

What training scripts leave beside tensors (namespaces of arguments, numbers of NumPy, paths) is
replaced by objects that hold nothing.
"""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from pathorob_jax.core import pickle_checks
from pathorob_jax.core.checks import InputError

from .tensor_sets import TensorSet, make_set

# Names that pickles of training scripts have, each of which is replaced by ``_Nothing``.
_HARMLESS = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(f"pathlib.{system}Path" for system in ("Posix", "Windows")),
    *(f"pathlib._local.{system}Path" for system in ("Posix", "Windows")),
)
# What PyTorch's unpickler raises for damaged and for lying files.
_UNREADABLE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, EOFError),
    *(MemoryError, RuntimeError, AssertionError, ImportError, struct.error, zipfile.BadZipFile),
)
_MAX_KEYS = 3  # of dicts inside dicts
_N_LEGACY = 5  # pickles at the head of a file from before PyTorch 1.6


class _Nothing:
    """In the place of what no tensor is; it takes all arguments and holds none."""

    def __new__(cls, *_: Any) -> "_Nothing":
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def read_sets(path: str) -> dict[str, TensorSet]:
    """All sets of tensors in a pickle, by the path of keys that leads to them, joined by dots.

    Raises:
        InputError: the file is damaged, holds what could be executed, or no dict of tensors.
    """
    value = _load(path)
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: expected a dict of tensors, found {type(value).__name__}.")
    found = {keys: _make_set(path, tensors) for keys, tensors in _find_sets(value)}
    if not found:
        names = [key[:80] for key in value if isinstance(key, str) and key.isprintable()]
        raise InputError(
            f"{path}: expected a dict of tensors, found none under its keys "
            f"{', '.join(names[:20]) or '(it has none)'}."
        )
    return found


def _find_sets(value: Mapping[Any, Any], keys: str = "", depth: int = 0) -> Iterator[Any]:
    """Path of keys and tensors of every dict that holds tensors."""
    import torch

    tensors = {key: x for key, x in value.items() if isinstance(x, torch.Tensor)}
    if tensors and all(isinstance(key, str) for key in tensors):
        yield keys, tensors
    for key, inner in value.items():
        if isinstance(key, str) and isinstance(inner, Mapping) and depth < _MAX_KEYS:
            yield from _find_sets(inner, f"{keys}.{key}" if keys else key, depth + 1)


def _make_set(path: str, tensors: Mapping[str, Any]) -> TensorSet:
    kinds = {key: _kind(x) for key, x in tensors.items()}
    shapes = {
        key: () if kinds[key] == "nested" else tuple(map(int, x.shape))
        for key, x in tensors.items()
    }

    def read(key: str) -> np.ndarray:
        try:
            return _to_numpy(tensors[key])
        except _UNREADABLE as error:
            raise InputError(
                f"{path}: {key} ({kinds[key]}) cannot be read ({_reason(error)})."
            ) from error

    return make_set(shapes, kinds, read, what=path)


def _kind(tensor: Any) -> str:
    """Type of a tensor in words; only those of dense tensors are the names of NumPy's types."""
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return f"sparse {dtype}"
    if tensor.device.type != "cpu":
        return f"{tensor.device.type} {dtype}, without values"
    if tensor.is_quantized:
        return f"quantised {dtype}"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"{type(tensor).__name__} {dtype}"
    return dtype


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().resolve_neg().resolve_conj().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _load(path: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: reading pickles needs PyTorch: pip install 'pathorob-jax[convert]', or give "
            "the .safetensors file."
        ) from error
    _check_pickles(path)
    harmless: list[Any] = [(_Nothing, name) for name in _HARMLESS]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(harmless):
            warnings.simplefilter("ignore")  # of old formats, which are read all the same
            return _torch_load(path)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise InputError(_damaged(path, error)) from error
        raise InputError(
            f"{path}: refused: it holds more than tensors, and unpickling that could run any "
            "program. If you trust its origin, save its tensors alone elsewhere. "
            f"({_reason(error)})"
        ) from error
    except _UNREADABLE as error:
        raise InputError(_damaged(path, error)) from error


def _torch_load(path: str) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # before PyTorch 1.6


def _damaged(path: str, error: Exception) -> str:
    return f"{path}: no checkpoint of PyTorch, or truncated ({_reason(error)})."


def _reason(error: Exception) -> str:
    """The message of an error in one line; for a refused pickle, the line that names the object."""
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    return next((line for line in lines if "GLOBAL" in line), lines[0])[:200]


def _check_pickles(path: str) -> None:
    """Refuse tuples so deep that hashing one would overflow the stack, and buffers of any size."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                infos = [x for x in archive.infolist() if x.filename.endswith(".pkl")]
                if any(info.file_size > pickle_checks.MAX_PICKLE_BYTES for info in infos):
                    raise InputError(f"{path}: its pickle is larger than any of tensors' names.")
                for info in infos:
                    with archive.open(info) as stream:
                        pickle_checks.check_pickle(stream, path)
        else:
            with open(path, "rb") as stream:
                for _ in range(_N_LEGACY):
                    pickle_checks.check_pickle(stream, path)
    except InputError:
        raise
    except (*_UNREADABLE, NotImplementedError):
        return  # no pickle: PyTorch will say so
