"""Tilesets: encoded images and their manifest.

A tileset is a folder (local, ``gs://``, ``s3://``) of Parquet files with an ``image`` column in the
format of the Hugging Face ``datasets`` Image feature, or of image files next to a ``manifest.csv``
with a ``path`` column. An open ``Tileset`` has the manifest and a reader of the encoded tiles.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathorob_jax.core import digests, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.decode import TileError
from pathorob_jax.data.manifest import Manifest, as_manifest, read_manifest
from pathorob_jax.data.names import spell_as_files

IMAGE_COLUMN, PATH_COLUMN = "image", "path"
FOLDER_MANIFEST = "manifest.csv"
CACHED_ROW_GROUPS = 2
# What pyarrow raises for damaged files; names inside them may no longer be valid text.
PARQUET_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)


class BadImage(NamedTuple):
    """A tile that could not be used.

    Attributes:
        row: row of the tileset, and of the array of a store made from it.
        name: the file of the tile, or the file and row.
        reason: what is wrong with it.
    """

    row: int
    name: str
    reason: str


class TileReader(Protocol):
    """Reads encoded tiles by row of the tileset. Thread-safe and picklable."""

    def read(self, row: int) -> tuple[bytes, str]:
        """Encoded bytes of a tile, and its name for messages.

        Raises:
            TileError: there are no bytes: the cell is empty or the file is missing.
            InputError: a file of many tiles cannot be read.
        """
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Tileset:
    """Encoded images and the manifest of their patches.

    Attributes:
        path: folder of the tileset.
        manifest: each patch once; row i is tile ``rows[i]`` of the reader.
        reader: encoded tiles.
        fingerprint: hex sha256 of the manifest and of the name and size of every file.
    """

    path: str
    manifest: Manifest
    reader: TileReader
    fingerprint: str

    def __repr__(self) -> str:
        return f"Tileset({self.manifest.source}: {len(self)} tiles)"

    def __len__(self) -> int:
        return len(self.manifest)


def open_tileset(path: str, *, columns: dict[str, str] | None = None) -> Tileset:
    """Open a tileset in either format.

    Raises:
        FileNotFoundError: no such folder.
        InputError: the folder has neither format, or its manifest breaks a rule.

    >>> import pathorob_jax as pr
    >>> from pathorob_jax.data.synthetic_tiles import SyntheticConfig, write_tileset
    >>> write_tileset("tiles", SyntheticConfig(n_slides=1, n_tiles=2, tile_px=32))
    32
    >>> tileset = pr.open_tileset("tiles")
    >>> len(tileset), tileset.manifest.column("medical_center")[0]
    (32, 'North Hospital')
    """
    parquet = files.list_files(path, ".parquet")
    if parquet:
        return _open_parquet(path, parquet, columns)
    if FOLDER_MANIFEST in files.list_files(path, ".csv"):
        return _open_folder(path, columns)
    raise InputError(
        f"{path}: expected a tileset (Parquet files with an {IMAGE_COLUMN!r} column, or image "
        f"files and a {FOLDER_MANIFEST} with a {PATH_COLUMN!r} column), found neither."
    )


def _open_parquet(path: str, names: Sequence[str], columns: dict[str, str] | None) -> Tileset:
    fs, inner = files.filesystem(path)
    tables, groups, sizes = [], [], []
    for index, name in enumerate(names):
        file_path = files.join(inner, name)
        try:
            with pq.ParquetFile(fs.open_input_file(file_path)) as file:
                _check_image_column(file.schema_arrow, files.join(path, name))
                flat = [f.name for f in file.schema_arrow if not pa.types.is_nested(f.type)]
                tables.append(file.read(columns=flat))
                tables[-1].validate(
                    full=True
                )  # otherwise invalid text fails later, without the name of the file
                rows = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        except PARQUET_ERRORS as error:
            raise _unreadable(files.join(path, name), error) from error
        starts = np.cumsum([0, *rows]).tolist()
        groups += [_RowGroup(index, g, n, starts[g]) for g, n in enumerate(rows)]
        sizes.append(fs.get_file_info(file_path).size)
    try:
        # Permissive, because a file without rows has columns of type null.
        table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"{path}: expected the same columns in all Parquet files ({error}). Write them anew "
            "with one schema."
        ) from error
    manifest = as_manifest(table, source=path, columns=columns).unique_patches()
    reader = _ParquetTiles(path, tuple(names), groups, manifest.source_rows)
    return _tileset(path, manifest, reader, list(zip(names, sizes, strict=True)))


def _check_image_column(schema: pa.Schema, name: str) -> None:
    field = schema.field(IMAGE_COLUMN) if IMAGE_COLUMN in schema.names else None
    if field is None or not _is_image(field.type):
        found = schema.names if field is None else field.type
        raise InputError(
            f"{name}: expected a column {IMAGE_COLUMN!r} of structs of 'bytes' and 'path' (the "
            f"Image feature of Hugging Face datasets), found {found}."
        )


def _is_image(kind: pa.DataType) -> bool:
    """True for structs of bytes and optionally a path, which has type null if no row has one."""
    if not pa.types.is_struct(kind):
        return False
    types = {field.name: field.type for field in kind}
    of_bytes = (pa.binary(), pa.large_binary(), pa.binary_view(), pa.null())
    of_path = (pa.string(), pa.large_string(), pa.string_view(), pa.null())
    return types.get("bytes") in of_bytes and types.get("path", pa.null()) in of_path


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: cannot be read as Parquet ({error}). Fetch it again.")


def _read_file(name: str) -> bytes:
    try:
        return files.read_bytes(name)
    except FileNotFoundError as error:
        raise TileError(
            name,
            "no such file, though the tileset lists it",
            "Put it back, or leave its row out of the tileset.",
        ) from error
    except OSError as error:  # network or permissions, not the image
        raise InputError(f"{name}: cannot be read ({error}). Mend that and run again.") from error


def _open_folder(path: str, columns: dict[str, str] | None) -> Tileset:
    source = files.join(path, FOLDER_MANIFEST)
    manifest = read_manifest(source, columns=columns).unique_patches()
    paths = spell_as_files(path, manifest.column(PATH_COLUMN).tolist())
    reader = _FileTiles(path, tuple(paths))
    fs, inner = files.filesystem(path)
    sizes = [info.size or 0 for info in fs.get_file_info([files.join(inner, p) for p in paths])]
    return _tileset(path, manifest, reader, list(zip(paths, sizes, strict=True)))


def _tileset(
    path: str, manifest: Manifest, reader: TileReader, listing: Sequence[tuple[str, int]]
) -> Tileset:
    listed = digests.digest(*(f"{name}:{size}".encode() for name, size in listing))
    fingerprint = digests.digest(manifest.fingerprint().encode(), listed.encode())
    return Tileset(path, manifest, reader, fingerprint)


class _FileTiles:
    """Reader of one image file per row."""

    def __init__(self, path: str, names: Sequence[str]):
        self._path, self._names = path, names

    def read(self, row: int) -> tuple[bytes, str]:
        name = files.join(self._path, self._names[row])
        return _read_file(name), name


class _RowGroup(NamedTuple):
    """Row group ``group`` of file ``file``: its rows, and its first row in that file."""

    file: int
    group: int
    n_rows: int
    start: int


class _ParquetTiles:
    """Reader of Parquet files by row group. The last few groups are kept in memory."""

    def __init__(
        self,
        path: str,
        names: Sequence[str],
        groups: Sequence[_RowGroup],
        rows: np.ndarray,
    ):
        self._path, self._names, self._groups, self._rows = path, names, groups, rows
        self._starts = np.cumsum([0] + [g.n_rows for g in groups])
        self._lock = threading.Lock()
        self._files: dict[int, pq.ParquetFile] = {}
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def read(self, row: int) -> tuple[bytes, str]:
        at = int(self._rows[row])
        index = int(np.searchsorted(self._starts, at, side="right")) - 1
        inside = at - int(self._starts[index])
        group = self._groups[index]
        file = files.join(self._path, self._names[group.file])
        try:
            value = self._column(index)[inside].as_py()
        # Fewer rows than the footer declares, or a path that is not valid text.
        except (IndexError, UnicodeDecodeError) as error:
            raise _unreadable(f"{file} row group {group.group}", error) from error
        name = f"{file} row {group.start + inside}"
        if value is None or (value.get("bytes") is None and not value.get("path")):
            raise TileError(name, f"the {IMAGE_COLUMN!r} column is empty", "Remove the row.")
        if value.get("bytes") is not None:
            return value["bytes"], name
        linked = value["path"]
        if not (os.path.isabs(linked) or files.is_remote(linked)):
            linked = files.join(self._path, linked)
        return _read_file(linked), linked

    def _column(self, index: int) -> pa.ChunkedArray:
        # ParquetFile is not thread-safe: reading holds a lock, decoding does not.
        with self._lock:
            if index not in self._cache:
                file, group, *_ = self._groups[index]
                name = files.join(self._path, self._names[file])
                try:
                    if file not in self._files:
                        fs, inner = files.filesystem(name)
                        self._files = {file: pq.ParquetFile(fs.open_input_file(inner))}
                    column = self._files[file].read_row_group(group, columns=[IMAGE_COLUMN])
                except PARQUET_ERRORS as error:
                    raise _unreadable(f"{name} row group {group}", error) from error
                self._cache[index] = column[IMAGE_COLUMN]
                if len(self._cache) > CACHED_ROW_GROUPS:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(index)
            return self._cache[index]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_files", "_cache")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._files, self._cache = {}, OrderedDict()
