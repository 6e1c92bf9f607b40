"""Tiles in Parquet files: their manifest, their links, and a reader with bounded memory.

Row groups may hold more than memory, and more than Arrow can hold in one array (2 GiB). So images
are read in batches of a few rows, in ascending order, and columns that nobody asked for not at all.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import tile_paths
from pathorob_jax.data.class_labels import decode_class_labels
from pathorob_jax.data.decode import TileError
from pathorob_jax.data.tile_paths import AllowPaths

IMAGE_COLUMN = "image"
# Rows of a batch: those of about so many bytes by the file's own account. Not fewer, because the
# threads of a step ask for rows that lie so far apart; not more, because equal images may be stored
# once.
BATCH_BYTES, MIN_BATCH_ROWS, MAX_BATCH_ROWS = 16 * 2**20, 64, 256
# The newest batches are kept while they are smaller than this together; two are always.
CACHE_BYTES = 16 * 2**20
# A step may reach from the end of one row group to the beginning of the next.
GROUPS_AT_A_TIME = 2
# Without a buffer, or with pre_buffer, pyarrow reads a column of a whole row group at once.
BUFFER_BYTES = 2**20
# What pyarrow raises for damaged files; names inside them may no longer be valid text.
PARQUET_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError)


class RowGroup(NamedTuple):
    """Row group ``group`` of file ``file``: its rows, its first row there, rows of a batch."""

    file: int
    group: int
    n_rows: int
    start: int
    batch_rows: int


class Link(NamedTuple):
    """An image that is a file of its own: its row in the Parquet file ``file``, and its path."""

    file: int
    row: int
    path: str


class ParquetTable(NamedTuple):
    """What is read of the Parquet files of a tileset when it is opened.

    Attributes:
        table: the columns that can be labels, all files one below the other.
        groups: the row groups, in the order of the rows.
        links: images without bytes but with a path, in the order of the rows.
        stats: size and time of change of each file.
    """

    table: pa.Table
    groups: list[RowGroup]
    links: list[Link]
    stats: list[tuple[int, int]]


def open_parquet(path: str, names: Sequence[str], *, needed: Sequence[str]) -> ParquetTable:
    """Read the labels of the Parquet files of a tileset, without the bytes of its images.

    Args:
        path: folder of the tileset.
        names: its Parquet files.
        needed: columns that are read whatever their type.

    Raises:
        InputError: a file cannot be read, has no images, or has other columns than the first.
    """
    fs, inner = files.filesystem(path)
    found = ParquetTable(pa.table({}), [], [], [])
    tables = []
    for index, name in enumerate(names):
        shown = files.join(path, name)
        try:
            info = fs.get_file_info(files.join(inner, name))
            with _open_file(shown) as file:
                _check_image_column(file.schema_arrow, shown)
                table = file.read(columns=_label_columns(file.schema_arrow, needed))
                table.validate(full=True)  # invalid text fails later, without the file's name
                groups = list(_list_groups(file, index))
                found.links.extend(_list_links(file, groups))
        except PARQUET_ERRORS as error:
            raise unreadable(shown, error) from error
        try:
            tables.append(decode_class_labels(table))
        except InputError as error:
            raise InputError(f"{shown}: {error}") from error
        found.groups.extend(groups)
        found.stats.append((info.size or 0, info.mtime_ns or 0))
    try:
        # Permissive, because a file without rows has columns of type null.
        return found._replace(table=pa.concat_tables(tables, promote_options="permissive"))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"{path}: expected the same columns in all Parquet files ({error}). Write them anew "
            "with one schema."
        ) from error


def make_schema(columns: Sequence[str]) -> pa.Schema:
    """Columns of a Parquet file of tiles: ``image``, and text columns of these names.

    Metadata tell the ``datasets`` library which column has images.
    """
    types = {IMAGE_COLUMN: {"_type": "Image"}}
    types |= {name: {"dtype": "string", "_type": "Value"} for name in columns}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema(
        [(IMAGE_COLUMN, image), *((name, pa.string()) for name in columns)],
        metadata={"huggingface": json.dumps({"info": {"features": types}})},
    )


def unreadable(name: str, error: Exception) -> InputError:
    """The error for a file that is no whole Parquet file."""
    mend = "Fetch it again."
    if isinstance(error, pa.ArrowNotImplementedError):
        mend = "The file may be whole: write it anew with pyarrow, in smaller row groups."
    return InputError(f"{name}: cannot be read as Parquet ({error}). {mend}")


def _open_file(name: str) -> pq.ParquetFile:
    fs, inner = files.filesystem(name)
    return pq.ParquetFile(
        fs.open_input_file(inner),
        buffer_size=BUFFER_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,
    )


def _check_image_column(schema: pa.Schema, name: str) -> None:
    field = schema.field(IMAGE_COLUMN) if schema.names.count(IMAGE_COLUMN) == 1 else None
    if field is None or not _is_image(field.type):
        found = schema.names if field is None else field.type
        raise InputError(
            f"{name}: expected a column {IMAGE_COLUMN!r} of structs of 'bytes' and 'path' (the "
            f"Image feature of Hugging Face datasets), found {found}. If the file is no part of "
            "the tileset, move it out of the folder."
        )


def _is_image(kind: pa.DataType) -> bool:
    """True for structs of bytes and optionally a path, which has type null if no row has one."""
    if not pa.types.is_struct(kind):
        return False
    types = {field.name: field.type for field in kind}
    of_bytes = (pa.binary(), pa.large_binary(), pa.binary_view(), pa.null())
    of_path = (pa.string(), pa.large_string(), pa.string_view(), pa.null())
    return types.get("bytes") in of_bytes and types.get("path", pa.null()) in of_path


def _label_columns(schema: pa.Schema, needed: Sequence[str]) -> list[str]:
    """Columns whose values can be text. Others may be large, and nobody asked for them."""
    return [f.name for f in schema if f.name in needed or not _is_opaque(f.type)]


def _is_opaque(kind: pa.DataType) -> bool:
    """True for nested and binary types, and for dictionaries and extensions of those."""
    if isinstance(kind, pa.BaseExtensionType):
        return _is_opaque(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _is_opaque(kind.value_type)
    is_binary = (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
    return is_binary or pa.types.is_nested(kind)


def _list_groups(file: pq.ParquetFile, index: int) -> Iterator[RowGroup]:
    start = 0
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        size = sum(column.total_uncompressed_size for column in _image_columns(about))
        per_row = max(1, size // max(1, about.num_rows))
        batch_rows = min(MAX_BATCH_ROWS, max(MIN_BATCH_ROWS, BATCH_BYTES // per_row))
        yield RowGroup(index, group, about.num_rows, start, batch_rows)
        start += about.num_rows


def _image_columns(about: pq.RowGroupMetaData) -> list[pq.ColumnChunkMetaData]:
    columns = [about.column(i) for i in range(about.num_columns)]
    return [c for c in columns if c.path_in_schema.split(".")[0] == IMAGE_COLUMN]


def _list_links(file: pq.ParquetFile, groups: Sequence[RowGroup]) -> Iterator[Link]:
    """Images without bytes but with a path. Where the file says that there are none, none is read.

    Bytes are read only where a row group has some and lacks some.
    """
    if "path" not in {field.name for field in file.schema_arrow.field(IMAGE_COLUMN).type}:
        return
    for group in groups:
        missing = _count_missing_bytes(file, group)
        if missing == 0:
            continue
        column = f"{IMAGE_COLUMN}.path" if missing == group.n_rows else IMAGE_COLUMN
        row = group.start
        for images in _iter_images(file, group, column):
            paths = pc.struct_field(images, "path").to_pylist()
            empty = [True] * len(paths)
            if column == IMAGE_COLUMN:
                empty = pc.is_null(pc.struct_field(images, "bytes")).to_pylist()
            for i, path in enumerate(paths):
                if path and empty[i]:
                    yield Link(group.file, row + i, path)
            row += len(images)


def _iter_images(
    file: pq.ParquetFile, group: RowGroup, column: str = IMAGE_COLUMN
) -> Iterator[pa.ChunkedArray]:
    """The image column of a row group, ``batch_rows`` rows at a time."""
    batches = file.iter_batches(group.batch_rows, row_groups=[group.group], columns=[column])
    for start in range(0, group.n_rows, group.batch_rows):
        wanted = min(group.batch_rows, group.n_rows - start)
        pieces: list[pa.Array] = []
        while sum(map(len, pieces)) < wanted:
            batch = next(batches, None)
            if batch is None:
                raise pa.ArrowInvalid("fewer rows than its footer declares")
            pieces.append(batch.column(0))
        yield pa.chunked_array(pieces)


def _count_missing_bytes(file: pq.ParquetFile, group: RowGroup) -> int | None:
    """Rows of a group whose image has no bytes, by the file's own account; None: not told."""
    columns = _image_columns(file.metadata.row_group(group.group))
    path = f"{IMAGE_COLUMN}.bytes"
    column = next((column for column in columns if column.path_in_schema == path), None)
    stats = None if column is None else column.statistics
    return stats.null_count if stats is not None and stats.has_null_count else None


class ParquetTiles:
    """Reader of Parquet files in batches of rows. The newest batches are kept in memory.

    A batch is reached through those before it in its row group: ascending rows are read once.
    """

    def __init__(
        self,
        path: str,
        names: Sequence[str],
        groups: Sequence[RowGroup],
        rows: np.ndarray,
        allow_paths: AllowPaths,
    ):
        """Args: folder, files, row groups, row of the files of each tile, links to follow."""
        self._path, self._names, self._groups, self._rows = path, names, groups, rows
        self._allow_paths = allow_paths
        self._starts = np.cumsum([0] + [g.n_rows for g in groups])
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        # By row group: the next batch, and an iterator of the batches from there on.
        self._reading: OrderedDict[int, tuple[int, Iterator[pa.ChunkedArray]]] = OrderedDict()
        self._cache: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()

    def read(self, row: int) -> tuple[bytes, str]:
        """Encoded bytes of a tile, and its name; see ``TileReader``."""
        at = int(self._rows[row])
        index = int(np.searchsorted(self._starts, at, side="right")) - 1
        inside = at - int(self._starts[index])
        group = self._groups[index]
        file = files.join(self._path, self._names[group.file])
        batch, place = divmod(inside, group.batch_rows)
        try:
            value = self._batch(index, batch)[place].as_py()
        except PARQUET_ERRORS as error:
            raise unreadable(f"{file} row group {group.group}", error) from error
        name = f"{file} row {group.start + inside}"
        if value is not None and value.get("bytes") is not None:
            return value["bytes"], name
        if value is None or not value.get("path"):
            raise TileError(name, f"the {IMAGE_COLUMN!r} column is empty", "Remove the row.")
        [target] = tile_paths.resolve(
            self._path, [value["path"]], allow=self._allow_paths, where=[name]
        )
        return tile_paths.read_image(target), target

    def _batch(self, index: int, batch: int) -> pa.ChunkedArray:
        # ParquetFile is not thread-safe: reading holds a lock, decoding does not.
        with self._lock:
            if (index, batch) not in self._cache:
                self._read_on(index, batch)
            self._cache.move_to_end((index, batch))
            return self._cache[index, batch]

    def _read_on(self, index: int, batch: int) -> None:
        """Read a row group up to a batch; from its beginning if the batch lies behind."""
        at, images = self._reading.pop(index, (batch + 1, iter(())))
        if at > batch:
            group = self._groups[index]
            name = files.join(self._path, self._names[group.file])
            at, images = 0, _iter_images(_open_file(name), group)
        for number in range(at, batch + 1):
            self._cache[index, number] = next(images)
            self._drop_old()
        self._reading[index] = (batch + 1, images)
        if len(self._reading) > GROUPS_AT_A_TIME:
            self._reading.popitem(last=False)

    def _drop_old(self) -> None:
        while len(self._cache) > 2 and sum(c.nbytes for c in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)

    def __getstate__(self) -> dict[str, Any]:
        held = ("_lock", "_reading", "_cache")
        return {k: v for k, v in self.__dict__.items() if k not in held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()
