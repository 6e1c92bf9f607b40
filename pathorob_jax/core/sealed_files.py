"""Files that carry a digest of their contents and their schema version.

A file that was damaged, cut or edited is refused when it is read, by its name. The callers say
what to do about it.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from pathorob_jax.core import digests, files
from pathorob_jax.core.checks import InputError

DIGEST, SCHEMA = "digest", "schema_version"
NOT_AS_WRITTEN = "not as it was written (its digest differs)"


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Write a mapping, which holds its schema version, with the digest of all of it."""
    files.write_json(path, dict(value) | {DIGEST: digests.digest_json(value)})


def read_json(path: str, *, schema_version: int) -> dict[str, Any]:
    """Read a mapping back, without its digest.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is no JSON mapping, is of another schema, has no digest, or is not as
            it was written.
    """
    return unseal(path, files.read_json(path), schema_version=schema_version)


def unseal(path: str, value: Any, *, schema_version: int) -> dict[str, Any]:
    """A mapping that was read from ``path``, without its digest; errors as of ``read_json``."""
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a mapping, found {type(value).__name__}.")
    rest = {name: item for name, item in value.items() if name != DIGEST}
    if rest.get(SCHEMA) != schema_version:
        raise InputError(f"{path}: expected schema {schema_version}, found {rest.get(SCHEMA)!r}.")
    if value.get(DIGEST) != digests.digest_json(rest):
        raise InputError(f"{path}: {NOT_AS_WRITTEN}.")
    return rest


def write_arrays(
    path: str, arrays: Mapping[str, Any], *, schema_version: int, compressed: bool = False
) -> None:
    """Write arrays as ``.npz``, atomically, with the schema version and a digest of them all."""
    whole = {name: np.asarray(array) for name, array in arrays.items()}
    whole[SCHEMA] = np.array(schema_version)
    whole[DIGEST] = np.array(digests.digest_arrays(whole))
    sink = io.BytesIO()
    save: Any = np.savez_compressed if compressed else np.savez
    save(sink, **whole)
    # Bytes, no view of the sink: a failed write keeps it in its traceback, and collecting a sink
    # whose view is still there ends Python 3.12 by a signal.
    files.write_bytes(path, sink.getvalue())


def read_arrays(path: str, *, schema_version: int) -> dict[str, np.ndarray]:
    """Read arrays back, without schema version and digest.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is no ``.npz``, is of another schema, has no digest, or is not as it
            was written.
    """
    arrays = load_npz(path)
    found = arrays.pop(DIGEST, None)
    if found is None or str(found) != digests.digest_arrays(arrays):
        raise InputError(f"{path}: {NOT_AS_WRITTEN}.")
    version = arrays.pop(SCHEMA, None)
    if version is None or str(version) != str(schema_version):
        raise InputError(f"{path}: expected schema {schema_version}, found {version}.")
    return arrays


def load_npz(path: str) -> dict[str, np.ndarray]:
    """All members of an ``.npz``, by name; no digest is asked for.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file cannot be read as ``.npz``.
    """
    loaded = parse_numpy(path, files.read_bytes(path))
    if isinstance(loaded, np.ndarray):
        raise InputError(f"{path}: cannot be read as .npz (it holds a single array).")
    return loaded


def parse_numpy(path: str, data: bytes) -> dict[str, np.ndarray] | np.ndarray:
    """The members of an ``.npz`` or the array of an ``.npy``, from the bytes of the file.

    Raises:
        InputError: the bytes are neither.
    """
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except files.UNREADABLE as error:
        # NumPy's own text recommends to unpickle the file.
        why = "it holds Python objects" if "pickle" in str(error) else files.describe(error)
        raise InputError(f"{path}: cannot be read as .npy or .npz ({why}).") from error
