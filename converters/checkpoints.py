"""Open the checkpoints of PyTorch: one file or several, without executing code.

``open_checkpoint`` returns every set of tensors in the files, with a function to read one tensor at
a time, and the sha256 of the files.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pathorob_jax.core.checks import InputError

from . import pickles, safetensors_files
from .tensor_sets import TensorSet, make_set

_BLOCK_BYTES = 2**22
_MAX_INDEX_BYTES = 2**27
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".torch", ".tar")
SAFETENSORS, INDEX, DISTRIBUTED = ".safetensors", ".index.json", ".distcp"
ENDINGS = (SAFETENSORS, INDEX, DISTRIBUTED, *PICKLES)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one or several files.

    Attributes:
        path: the file, for messages.
        label: its name without folders, or the repo that it is from.
        paths: the files.
        sets: the sets of tensors by the path of keys that leads to them; "" if there are no keys.
        updates: LoRA tensors that stood among those of a set, by the same path.
        adapter: what was merged into the tensors, for ``model.json``; None: nothing.
    """

    path: str
    label: str
    paths: tuple[str, ...]
    sets: Mapping[str, TensorSet]
    updates: Mapping[str, TensorSet] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None
    _digests: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def digests(self) -> list[dict[str, Any]]:
        """Name, size and sha256 of each file; read once."""
        if not self._digests:
            self._digests.extend(
                {
                    "name": os.path.basename(path),
                    "bytes": os.path.getsize(path),
                    "sha256": _digest_file(path),
                }
                for path in self.paths
            )
        return self._digests


def open_checkpoint(path: str, *, label: str | None = None) -> Checkpoint:
    """Open the tensors of a local file.

    Args:
        path: ``.safetensors``, a pickle of PyTorch, or the ``.index.json`` of either.
        label: name of the checkpoint where it is kept; None: that of the file.

    Raises:
        InputError: the file is truncated, of another kind, or contains what could be executed.
        FileNotFoundError: no such file.
    """
    label = label or os.path.basename(path)
    if path.endswith(DISTRIBUTED):
        raise InputError(distributed_message(path))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file.")
    if path.endswith(INDEX):
        paths, sets = _open_index(path)
        return Checkpoint(path, label, paths, sets)
    if path.endswith((SAFETENSORS, *PICKLES)):
        return Checkpoint(path, label, (path,), _open_file(path))
    raise InputError(
        f"{path}: expected {SAFETENSORS}, {SAFETENSORS}{INDEX} or one of {', '.join(PICKLES)}."
    )


def distributed_message(path: str) -> str:
    """What to do with a checkpoint in the parts of ``torch.distributed.checkpoint``."""
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    return (
        f"{folder}: a distributed checkpoint ({DISTRIBUTED}). Make one file of it where it was "
        'trained: python -c "from torch.distributed.checkpoint.format_utils import '
        f"dcp_to_torch_save; dcp_to_torch_save('{folder}', 'checkpoint.pth')\", and give that."
    )


def _open_file(path: str) -> dict[str, TensorSet]:
    if not path.endswith(SAFETENSORS):
        return pickles.read_sets(path)
    stored = safetensors_files.read_header(path)
    return {
        "": make_set(
            {key: tensor.shape for key, tensor in stored.items()},
            {key: tensor.kind for key, tensor in stored.items()},
            lambda key: stored[key].read(),
            what=path,
        )
    }


def _open_index(path: str) -> tuple[tuple[str, ...], dict[str, TensorSet]]:
    """Open several files, by the index that lists the file of each tensor."""
    names = read_index(path)
    folder = os.path.dirname(path)
    if any(os.path.basename(name) != name for name in names.values()):
        raise InputError(f"{path}: expected names of files beside it.")
    paths = [os.path.join(folder, name) for name in sorted(set(names.values()))]
    missing = [file for file in paths if not os.path.isfile(file)]
    if missing:
        raise FileNotFoundError(f"{path}: names files that are not there: {', '.join(missing)}")
    other = [file for file in paths if not file.endswith((SAFETENSORS, *PICKLES))]
    if other:
        raise InputError(f"{path}: expected {SAFETENSORS} or pickles, found {', '.join(other)}.")
    parts = [_plain_set(file) for file in paths]
    owner = {key: part for part in parts for key in part.shapes}
    removed = sorted({name for part in parts for name in part.removed})
    found = make_set(
        {key: shape for part in parts for key, shape in part.shapes.items()},
        {key: kind for part in parts for key, kind in part.kinds.items()},
        lambda key: owner[key].read(key),
        what=path,
    )
    listed = make_set(dict.fromkeys(names, ()), dict.fromkeys(names, ""), _read_none, what=path)
    different = sorted(set(found.shapes) ^ set(listed.shapes))
    if different or len(owner) != sum(len(part.shapes) for part in parts):
        which = ", ".join(different[:20]) or "tensors that lie in two files"
        raise InputError(f"{path}: index and files differ in {which}.")
    return (path, *paths), {"": TensorSet(found.shapes, found.kinds, found.read, tuple(removed))}


def _plain_set(file: str) -> TensorSet:
    """The tensors of one file of several, which has no keys around them."""
    sets = _open_file(file)
    if list(sets) != [""]:
        raise InputError(f"{file}: expected tensors alone, found keys {', '.join(sets)}.")
    return sets[""]


def read_index(path: str) -> dict[str, str]:
    """The file of each tensor, as an index lists them.

    Raises:
        InputError: the file is no index.
    """
    try:
        if os.path.getsize(path) > _MAX_INDEX_BYTES:
            raise ValueError("too large")
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)["weight_map"]
        if not isinstance(found, dict) or not all(
            isinstance(name, str) and name and name.isprintable() for name in found.values()
        ):
            raise TypeError("no names of files")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected an index with a 'weight_map' ({str(error)[:200]})."
        ) from error
    return dict(found)


def _read_none(key: str) -> np.ndarray:
    raise KeyError(key)


def _digest_file(path: str) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            sha.update(block)
    return sha.hexdigest()
