"""Read whole files and write them atomically, on local disk, ``gs://`` or ``s3://``.

A written file is either complete or absent. These functions are for sidecar files, tables and
reports; large arrays are streamed by TensorStore and pyarrow instead.
"""

import json
import lzma
import math
import os
import re
import struct
import tempfile
import tokenize
import zipfile
import zlib
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from pathorob_jax.core import faults
from pathorob_jax.core.checks import InputError

REMOTE = ("gs", "s3")
# Ending of a file that ``write_bytes`` has not renamed yet.
PARTIAL = ".partial"
# What json, zipfile, zlib, NumPy and pyarrow raise for files that are damaged, lie about their
# sizes, or are of another format. Whoever reads an artefact catches these and names the file.
UNREADABLE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError, EOFError),
    *(MemoryError, RuntimeError, SyntaxError, Warning, pa.ArrowException, struct.error),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


def is_remote(path: str) -> bool:
    """True for ``gs://...`` and ``s3://...``."""
    return "://" in path


def join(path: str, *parts: str) -> str:
    """``path/part/part``, for local and remote paths.

    Raises:
        InputError: the path is empty, and would become the root.
    """
    if not path:
        raise InputError(f"{'/'.join(parts)}: expected the folder that holds it, found no name.")
    return "/".join([path.rstrip("/"), *parts]) if path != "/" else "/" + "/".join(parts)


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a path, and the path as that filesystem expects it.

    Raises:
        InputError: pyarrow does not know the scheme of the URL.
    """
    if "\0" in path:
        raise InputError(f"{path!r}: expected a path, which has no NUL.")
    if re.match(r"^[a-z][a-z0-9]+:/(?!/)", path):
        raise InputError(f"{path}: expected two slashes after the scheme, as in gs://bucket/...")
    if not is_remote(path):
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))
    try:
        # Of the other schemes that pyarrow knows, hf:// would ask a hub with the user's token.
        if path.partition("://")[0] not in REMOTE:
            raise ValueError("another scheme")
        return pafs.FileSystem.from_uri(path.rstrip("/"))
    except (pa.ArrowInvalid, ValueError) as error:
        raise InputError(
            f"{path}: expected a local path, gs://bucket/... or s3://bucket/... ({error})."
        ) from error


def exists(path: str) -> bool:
    """True if there is a file (or a non-empty folder) at ``path``."""
    fs, inner = filesystem(path)
    return fs.get_file_info(inner).type != pafs.FileType.NotFound


def changed_ns(path: str) -> int:
    """When the file at ``path`` was changed, in ns, by the clock of its disk or object store."""
    fs, inner = filesystem(path)
    info = fs.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(f"{path}: no such file.")
    return int(info.mtime_ns or 0)


def check_there(path: str, what: str = "file") -> None:
    """Raise FileNotFoundError if there is nothing at ``path``."""
    if not exists(path):
        raise FileNotFoundError(f"{path}: no such {what}.")


def list_files(path: str, suffix: str = "") -> list[str]:
    """Names of the files directly under ``path`` that end in ``suffix``, sorted.

    Raises:
        FileNotFoundError: ``path`` is not a folder.
    """
    fs, inner = filesystem(path)
    info = fs.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(f"{path}: no such folder.")
    if info.type == pafs.FileType.File:
        raise FileNotFoundError(f"{path}: expected a folder, found a file.")
    selector = pafs.FileSelector(inner)
    return sorted(
        entry.base_name
        for entry in fs.get_file_info(selector)
        if entry.type == pafs.FileType.File and entry.base_name.endswith(suffix)
    )


def list_folders(path: str) -> list[str]:
    """Names of the folders directly under ``path``, sorted; empty if ``path`` is missing."""
    fs, inner = filesystem(path)
    selector = pafs.FileSelector(inner, allow_not_found=True)
    return sorted(
        entry.base_name
        for entry in fs.get_file_info(selector)
        if entry.type == pafs.FileType.Directory
    )


def read_bytes(path: str) -> bytes:
    """Contents of the file at ``path``."""
    fs, inner = filesystem(path)
    if fs.get_file_info(inner).type != pafs.FileType.File:
        raise FileNotFoundError(f"{path}: no such file.")
    with fs.open_input_file(inner) as stream:
        return stream.read()


def write_bytes(path: str, data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, never a partial file.

    A local file is written next to the target, flushed to disk and renamed. Object stores make an
    upload visible only when it is complete.

    Raises:
        WriteError: the disk is full, read-only or fails; the message names the path.
    """
    with faults.writing(path):
        _write_bytes(path, data)


def _write_bytes(path: str, data: bytes) -> None:
    fs, inner = filesystem(path)
    if is_remote(path):
        with fs.open_output_stream(inner) as stream:
            stream.write(data)
        return
    folder = os.path.dirname(inner)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        prefix=f".{os.path.basename(inner)}.", suffix=PARTIAL, dir=folder
    )
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, inner)
    except BaseException:
        os.unlink(temporary)
        raise


def sweep(path: str) -> None:
    """Remove what killed calls of ``write_bytes`` have left directly under a local folder.

    The caller must be the only writer there.
    """
    if not is_remote(path) and os.path.isdir(path):
        for name in os.listdir(path):
            if name.startswith(".") and name.endswith(PARTIAL):
                os.unlink(os.path.join(path, name))


def remove(path: str) -> None:
    """Delete the file at ``path`` if it exists."""
    fs, inner = filesystem(path)
    if fs.get_file_info(inner).type == pafs.FileType.File:
        fs.delete_file(inner)


def _umask() -> int:
    """The umask of the process. POSIX cannot read it without setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str, value: Any) -> None:
    """Write ``value`` as JSON with keys in order. NaN is refused: undefined values are null."""
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: str) -> Any:
    """The JSON value at ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file cannot be parsed, or holds NaN, an infinity or half a surrogate pair.
    """
    data = read_bytes(path)
    try:
        value = json.loads(data, parse_constant=_as_finite, parse_float=_as_finite)
        if b"\\u" in data:  # half a surrogate pair could not be written again
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UNREADABLE as error:
        raise InputError(f"{path}: expected JSON, found {describe(error)}.") from error


def _as_finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text}")
    return value


def put_folder(fresh: str, path: str, *, aside: str) -> None:
    """Move a finished local folder to its place.

    Args:
        fresh: the folder.
        path: its place. What is there already is moved to ``aside``, and back if the move fails.
        aside: a path on the same disk where nothing is.
    """
    replaces = os.path.isdir(path)
    if replaces:
        os.replace(path, aside)
    try:
        os.replace(fresh, path)
    except OSError:
        if replaces:
            os.replace(aside, path)
        raise


def describe(error: BaseException) -> str:
    """What an error says, in one short line for a message; its class if it says nothing."""
    # TensorStore adds its whole specification and the lines of its own source in brackets.
    text = re.sub(r"\s*\[(tensorstore_spec|source locations)=.*", "", str(error), flags=re.DOTALL)
    lines = text.strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
