"""Tables with a column of embeddings: Parquet, Arrow, folders of Hugging Face ``datasets``.

The column is a list or a fixed-size list of floats. Files are read forward, a batch at a time.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import table_files
from pathorob_jax.data.class_labels import decode_class_labels
from pathorob_jax.data.manifest import PATCH, SLIDE
from pathorob_jax.embeddings.imports import source as sources
from pathorob_jax.embeddings.imports.source import Ask, Piece, Source, reading

BATCH_ROWS = 1024
NAMED = ("embedding", "embeddings", "features", "feature")


def read_parquet(ask: Ask) -> Source:
    """One file, or a folder of files in the order of their names."""
    return _read_all(ask, ".parquet", _open_parquet)


def read_arrow(ask: Ask) -> Source:
    """One Arrow file or stream (``.arrow``, ``.feather``), or a folder of them."""
    return _read_all(ask, (".arrow", ".feather"), _open_arrow)


def read_datasets(ask: Ask) -> Source:
    """A folder that ``save_to_disk`` of Hugging Face ``datasets`` wrote, with its splits or one."""
    splits = files.join(ask.path, "dataset_dict.json")
    folders = [""]
    if files.exists(splits):
        folders = [f"{name}/" for name in files.read_json(splits)["splits"]]
    paths = []
    for folder in folders:
        state = files.join(ask.path, f"{folder}state.json")
        paths += [folder + str(f["filename"]) for f in files.read_json(state)["_data_files"]]
    return _pieces_of(ask, paths, _open_arrow)


Batches = Callable[[Sequence[str]], contextlib.AbstractContextManager[Iterator[Any]]]


def _read_all(ask: Ask, ending: Any, open_file: Any) -> Source:
    endings = ending if isinstance(ending, tuple) else (ending,)
    inside = sources.is_folder(ask.path)
    return _pieces_of(ask, sources.walk(ask.path, *endings) if inside else [""], open_file)


def _pieces_of(ask: Ask, paths: Sequence[str], open_file: Any) -> Source:
    pieces = [open_file(files.join(ask.path, p) if p else ask.path, ask) for p in paths]
    return Source(ask.path, pieces, sources.digest_files(ask.path, paths))


def _open_parquet(path: str, ask: Ask) -> Piece:
    @contextlib.contextmanager
    def batches(columns: Sequence[str]) -> Iterator[Iterator[Any]]:
        with (
            sources.open_binary(path) as stream,
            pq.ParquetFile(stream, pre_buffer=False, buffer_size=2**20) as file,
        ):
            yield file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False)

    with reading(path), sources.open_binary(path) as stream, pq.ParquetFile(stream) as file:
        schema = file.schema_arrow
    return _open_table(path, schema, batches, ask)


def _open_arrow(path: str, ask: Ask) -> Piece:
    @contextlib.contextmanager
    def batches(columns: Sequence[str]) -> Iterator[Iterator[Any]]:
        with sources.open_binary(path) as stream, _ipc(stream) as reader:
            n = getattr(reader, "num_record_batches", None)
            every = iter(reader) if n is None else (reader.get_batch(i) for i in range(n))
            yield (batch.select(list(columns)) for batch in every)

    with reading(path), sources.open_binary(path) as stream, _ipc(stream) as reader:
        schema = reader.schema
    return _open_table(path, schema, batches, ask)


def _ipc(stream: Any) -> Any:
    """A reader of the file format or of the stream format."""
    magic = stream.read(6)
    stream.seek(0)
    return pa.ipc.open_file(stream) if magic == b"ARROW1" else pa.ipc.open_stream(stream)


def _open_table(path: str, schema: pa.Schema, batches: Batches, ask: Ask) -> Piece:
    column = _embedding_column(path, schema, ask.encoder)
    needed = {*ask.columns.values(), SLIDE, PATCH, "x", "y"}
    others = [n for n in table_files.text_columns(schema, needed) if n != column]
    n_rows, parts = 0, []
    with reading(path), batches(others or [column]) as found:
        for part in found:
            n_rows += len(part)
            if others and len(part):
                parts.append(part)
    columns: dict[str, Any] = {}
    if parts:
        with reading(path):
            table = pa.Table.from_batches(parts).replace_schema_metadata(schema.metadata)
            table = decode_class_labels(table)
            columns = {n: _texts(path, table.column(n), n) for n in others}
    dim = 0
    with reading(path), batches([column]) as found:
        first = next((part for part in found if len(part)), None)
        if first is not None:
            dim = _floats(path, column, first.column(0).slice(0, 1), None).shape[1]

    def blocks() -> Iterator[np.ndarray]:
        with batches([column]) as found:
            for part in found:
                if len(part):
                    yield _floats(path, column, part.column(0), dim)

    coords = None
    if {"x", "y"} <= set(columns):
        with reading(f"{path}: x, y"):
            coords = np.stack([sources.as_numbers(columns[n]) for n in ("x", "y")], axis=1)
    return Piece(
        f"{path}: {column}",
        n_rows,
        dim,
        sources.stream_blocks(blocks),
        patches=columns.get(ask.columns.get(PATCH, PATCH)),
        coords=coords,
        columns=columns,
    )


def _texts(path: str, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    try:
        return table_files.as_text(column)
    except table_files.UNREADABLE as error:
        raise table_files.not_text(path, name, column.type, error) from error


def _embedding_column(path: str, schema: pa.Schema, wanted: str | None) -> str:
    """The column of lists of floats: the one asked for, the only one, or the one named so."""
    found = [f.name for f in schema if _is_embedding(f.type)]
    named = [name for name in found if name in NAMED]
    if wanted is None and len(found) > 1 and len(named) == 1:
        return named[0]
    if not found:
        raise InputError(
            f"{path}: expected a column of lists of floats, found {schema.names}. Write each "
            "patch's embedding as one list."
        )
    return sources.choose(found, wanted, where=path, what="column")


def _is_embedding(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    listed = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in listed) and pa.types.is_floating(kind.value_type)


def _floats(path: str, name: str, column: Any, dim: int | None) -> np.ndarray:
    """float[n, D] of a list column.

    Raises:
        InputError: a list or a value is missing, or lists differ in length.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    where = f"{path}: {name}"
    if column.null_count:
        raise InputError(f"{where}: {column.null_count} rows have no embedding. Leave them out.")
    lengths = np.asarray(column.value_lengths())
    expected = int(lengths[0]) if dim is None else dim
    if not expected:
        raise InputError(f"{where}: the first row has an empty list. Leave such rows out.")
    other = lengths[lengths != expected]
    if len(other):
        raise InputError(
            f"{where}: has {other[0]} dimensions, the first row {expected}. "
            "All must come from one encoder."
        )
    values = column.flatten()
    if values.null_count:
        raise InputError(f"{where}: {values.null_count} values are missing. Extract again.")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(len(lengths), expected)
