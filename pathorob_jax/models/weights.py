"""Converted weights on disk: written once, atomically, and restored directly to their sharding.

``<weights>/<model>/`` has ``checkpoint/`` (Orbax) and ``model.json`` (encoder, source with its
sha256, conversion). The folder is renamed to its final name last, so that the remains of a killed
conversion are never loaded.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.models.parameter_sharding import ShardingOf

SCHEMA_VERSION = 1
_CHECKPOINT, _INFO = "checkpoint", "model.json"


@dataclass(frozen=True)
class Converted:
    """Weights on disk.

    Attributes:
        path: folder of the encoder.
        info: contents of ``model.json``.
    """

    path: str
    info: Mapping[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """What embeddings depend on: the digest of the source and the type on disk."""
        return {"sha256": self.info["source"]["sha256"], "dtype": self.info["dtype"]}


def save(root: str, model: str, params: Any, info: Mapping[str, Any], *, overwrite: bool) -> str:
    """Write parameters and ``model.json`` to ``<root>/<model>/``, completely or not at all.

    Args:
        root: local folder of all weights.
        model: name of the encoder.
        params: nested dict of jax.Array; NumPy arrays would be copied while they are written.
        info: plain JSON.
        overwrite: replace existing weights.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists and ``overwrite`` is not given.
    """
    path, partial = check_free(root, model, overwrite=overwrite), _partial(root, model)
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    try:
        context = ocp.Context()
        context.array.saving.use_compression = False  # compression needs a second copy in memory
        with context:
            ocp.save(os.path.join(partial, _CHECKPOINT), params)
        files.write_json(os.path.join(partial, _INFO), {"schema_version": SCHEMA_VERSION, **info})
        if os.path.exists(path):
            shutil.rmtree(path)
        os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return path


def check_free(root: str, model: str, *, overwrite: bool) -> str:
    """The folder for the weights of a model, after a check that it can be written.

    Raises:
        InputError: the folder exists and ``overwrite`` is not given.
    """
    path = os.path.join(os.path.abspath(os.path.expanduser(root)), model)
    if os.path.exists(path) and not overwrite:
        raise InputError(f"{path}: exists; give --overwrite to replace it.")
    return path


def _partial(root: str, model: str) -> str:
    return os.path.join(os.path.abspath(os.path.expanduser(root)), f".{model}.partial")


def open_converted(root: str, model: str) -> Converted:
    """Open the converted weights of an encoder.

    Raises:
        InputError: there are no weights, or they have another schema version.
    """
    path = os.path.join(os.path.abspath(os.path.expanduser(root)), model)
    info_path = os.path.join(path, _INFO)
    if not os.path.isfile(info_path):
        raise InputError(
            f"{path}: expected the folder of converted weights with its {_INFO}; make it with "
            f"python -m converters.convert --model={model} --output={root}."
        )
    info = files.read_json(info_path)
    if info.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{info_path}: expected schema_version {SCHEMA_VERSION}, found "
            f"{info.get('schema_version')!r}; convert again."
        )
    return Converted(path, info)


def restore(
    found: Converted, abstract: Any, *, dtype: str = "float32", sharding: ShardingOf | None = None
) -> Any:
    """Read the parameters, each directly to its devices.

    Args:
        found: result of ``open_converted``.
        abstract: nested dict of the shapes of the network's parameters.
        dtype: type of the parameters in memory.
        sharding: shape of a parameter -> its sharding; None: all on the default device.

    Returns:
        The nested dict of jax.Array.

    Raises:
        InputError: the checkpoint cannot be read, or its parameters differ from those of the
            network; the message lists all differences.
    """
    path = os.path.join(found.path, _CHECKPOINT)
    sharding_of = sharding or (lambda _: SingleDeviceSharding(jax.local_devices()[0]))
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=sharding_of(x.shape)),
        abstract,
    )
    try:
        stored = ocp.metadata(path).metadata
        _check_same(flatten(stored), flatten(abstract), path)
        return ocp.load(path, target)
    except (FileNotFoundError, ValueError, ocp.errors.InvalidLayoutError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({error}); convert again.") from error


def flatten(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Leaves of a nested dict by path, with parts joined by ``/``."""
    leaves = traverse_util.flatten_dict(tree)
    return {"/".join(map(str, path)): leaf for path, leaf in leaves.items()}


def _check_same(stored: Mapping[str, Any], wanted: Mapping[str, Any], path: str) -> None:
    lines = [f"missing: {name}" for name in wanted if name not in stored]
    lines += [f"unknown: {name}" for name in stored if name not in wanted]
    lines += [
        f"{name}: expected {tuple(wanted[name].shape)}, found {tuple(stored[name].shape)}"
        for name in wanted
        if name in stored and tuple(wanted[name].shape) != tuple(stored[name].shape)
    ]
    if lines:
        raise InputError(f"{path}: other parameters than the network's; " + "; ".join(lines))


def count_params(abstract: Any) -> int:
    """Number of values in all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(abstract))
