"""Converted weights on disk: written once, atomically, and restored directly to their sharding.

``<weights>/<model>/`` has ``checkpoint/`` (Orbax) and ``model.json`` (encoder, source with its
sha256, conversion). The folder is renamed to its final name last, so that the remains of a killed
conversion are never loaded, and old weights stay until the new ones are complete. The same
parameters give the same bytes.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
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
# Files of Orbax that hold the time, and one that holds the path, of the writing.
_ORBAX_TIMES, _ORBAX_COMMIT = "_CHECKPOINT_METADATA", "commit_success.txt"
_MARGIN_BYTES = 2**20


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


def save(root: str, model: str, params: Any, info: Mapping[str, Any]) -> str:
    """Write parameters and ``model.json`` to ``<root>/<model>/``, completely or not at all.

    Weights that are there are replaced when the new ones are complete.

    Args:
        root: local folder of all weights.
        model: name of the encoder.
        params: nested dict of jax.Array; NumPy arrays would be copied while they are written.
        info: plain JSON.

    Returns:
        The folder.

    Raises:
        InputError: the folder cannot be written.
    """
    path, partial = _folder(root, model), _folder(root, f".{model}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
        _write_checkpoint(os.path.join(partial, _CHECKPOINT), params)
        files.write_json(os.path.join(partial, _INFO), {"schema_version": SCHEMA_VERSION, **info})
        _replace(root, model)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # TensorStore says with ValueError that a disk is full
        raise InputError(_cannot_write(path, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _alone() -> ocp.Context:
    """Orbax in this process alone: of several, each reads by itself."""
    context, here = ocp.Context(), jax.process_index()
    context.multiprocessing.primary_host = here
    context.multiprocessing.active_processes = {here}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{here}"
    return context


def _write_checkpoint(path: str, params: Any) -> None:
    context = ocp.Context()
    context.array.saving.use_compression = False  # compression needs a second copy in memory
    context.array.saving.use_ocdbt = False  # its files have random names
    context.array.saving.enable_write_sharding_file = False
    context.array.saving.array_metadata_store = None
    with context, _quiet_orbax():
        ocp.save(path, params)
    times = os.path.join(path, _ORBAX_TIMES)
    with open(times, encoding="utf-8") as stream:
        metadata = json.load(stream)
    fixed = dict.fromkeys(("init_timestamp_nsecs", "commit_timestamp_nsecs"), 0)
    with open(times, "w", encoding="utf-8") as stream:
        json.dump({**metadata, **fixed}, stream, sort_keys=True)
    commit = os.path.join(path, _ORBAX_COMMIT)
    if os.path.exists(commit):
        with open(commit, "w", encoding="utf-8") as stream:
            stream.write("complete\n")


def _replace(root: str, model: str) -> None:
    """Give the finished folder its name; the old one is put aside before, and deleted after."""
    path, partial = _folder(root, model), _folder(root, f".{model}.partial")
    aside = _folder(root, f".{model}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if os.path.lexists(path):
        os.rename(path, aside)
    try:
        os.rename(partial, path)
    except BaseException:
        if os.path.lexists(aside):
            os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def is_there(root: str, model: str) -> bool:
    """Whether there are converted weights of an encoder, for one who is to write there.

    Old weights that a killed replacement has left aside get their name again.

    Raises:
        InputError: something else has the name of the folder, or it cannot be written.
    """
    path, aside = _folder(root, model), _folder(root, f".{model}.old")
    try:
        if os.path.isdir(aside) and not os.path.lexists(path):
            os.rename(aside, path)
    except OSError as error:
        raise InputError(_cannot_write(path, error)) from error
    if not os.path.lexists(path):
        return False
    if not os.path.isfile(os.path.join(path, _INFO)):
        raise InputError(
            f"{path}: exists, but is no folder of converted weights; move it away, or give another "
            "--output."
        )
    return True


def check_room(root: str, n_bytes: int) -> None:
    """Check before the work that the folder can be made and has room.

    Args:
        root: folder of all weights; it is made.
        n_bytes: size of the parameters.

    Raises:
        InputError: it cannot be written, or the disk has less room.
    """
    folder = os.path.abspath(os.path.expanduser(root))
    try:
        os.makedirs(folder, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("no permission to write there, or a read-only file system")
    except OSError as error:
        raise InputError(_cannot_write(folder, error)) from error
    if free < n_bytes + _MARGIN_BYTES:
        raise InputError(
            f"{folder}: the weights need {n_bytes / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are "
            "free. Make room, or give another --output."
        )


def _cannot_write(path: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0][:200]
    return (
        f"{path}: cannot be written ({reason}); what was there is as before. Make room or change "
        "its permissions, or give another --output."
    )


def _folder(root: str, name: str) -> str:
    return os.path.join(os.path.abspath(os.path.expanduser(root)), name)


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """A block in which Orbax says nothing but errors; it logs through absl, as we do."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or f"{os.sep}orbax{os.sep}" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


def open_converted(root: str, model: str) -> Converted:
    """Open the converted weights of an encoder.

    Raises:
        InputError: there are no weights, or they have another schema version.
    """
    path = _folder(root, model)
    info_path = os.path.join(path, _INFO)
    if not os.path.isfile(info_path):
        raise InputError(
            f"{path}: expected the folder of converted weights with its {_INFO}; make it with "
            f"python -m converters.convert --model={model} --output={root}."
        )
    info = files.read_json(info_path)
    version = info.get("schema_version") if isinstance(info, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{info_path}: expected schema_version {SCHEMA_VERSION}, found {version!r}; convert "
            "again with --overwrite."
        )
    source = info.get("source")
    lacking = [key for key in ("network", "dtype") if key not in info]
    lacking += [] if isinstance(source, dict) and "sha256" in source else ["source.sha256"]
    if lacking:
        raise InputError(
            f"{info_path}: lacks {', '.join(lacking)}; convert again with --overwrite."
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
    with _reading(path):
        _check_same(flatten(ocp.metadata(path).metadata), flatten(abstract), path)
        return ocp.load(path, target)


def check_parameters(found: Converted, abstract: Any) -> None:
    """Check that the parameters on disk have the names and shapes of the network's.

    Raises:
        InputError: they differ, or the checkpoint cannot be read.
    """
    path = os.path.join(found.path, _CHECKPOINT)
    with _reading(path):
        _check_same(flatten(ocp.metadata(path).metadata), flatten(abstract), path)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """A block that reads the checkpoint at ``path``; what Orbax raises becomes an InputError."""
    try:
        with _alone(), _quiet_orbax():
            yield
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, ocp.errors.InvalidLayoutError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); convert again with --overwrite."
        ) from error


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
