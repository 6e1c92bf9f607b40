"""Tables as people have them, as columns of text: CSV, Parquet, data frames, mappings.

Nothing here knows what a column means. A column that cannot be text is left out, unless it is
needed.
"""

import csv
import io
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pathorob_jax.core import digests, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.class_labels import decode_class_labels
from pathorob_jax.data.names import canonical, canonical_column

# What pyarrow and Python raise for damaged files, for sizes that a damaged file claims, and for
# values that cannot be text.
UNREADABLE = (pa.ArrowException, OSError, MemoryError, UnicodeError, TypeError, ValueError)
DELIMITERS = (",", ";", "\t", "|")
MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
# Spreadsheets may name the delimiter in a line of its own before the header.
NAMED_DELIMITER = re.compile(r"sep=(.)[\r\n]*\Z", re.IGNORECASE)
ROWS_AT_ONCE = 65_536
SAVE_ANEW = "Save it as CSV UTF-8."


class SourceTable(NamedTuple):
    """A table, and the line of the file on which each row begins.

    Attributes:
        table: columns by name; what they hold is as in the source.
        lines: int64[N], counted from 1; None if the source has no lines.
    """

    table: pa.Table
    lines: np.ndarray | None


def read_table(path: str, *, needed: Collection[str]) -> SourceTable:
    """Read a file of columns.

    Args:
        path: ``.csv`` or ``.parquet``, local, ``gs://`` or ``s3://``.
        needed: names of columns that are read whatever their type.

    Raises:
        FileNotFoundError: no such file.
        InputError: the file is no such table; the message names file and line.
    """
    ending = path.lower().rpartition(".")[2]
    if not files.exists(path):
        raise FileNotFoundError(f"{path}: no such manifest.")
    try:
        if ending == "csv":
            return _read_csv(path, files.read_bytes(path), needed)
        if ending == "parquet":
            return SourceTable(_read_parquet(path, needed), None)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as a table ({_describe(error)}).") from error
    raise InputError(f"{path}: expected a .csv or .parquet manifest.")


def as_table(data: Any, *, source: str, needed: Collection[str]) -> pa.Table:
    """Any table of Python as an Arrow table; columns that Arrow cannot hold are left out.

    Args:
        data: an object with ``__arrow_c_stream__`` (pyarrow, pandas, polars ...) or a mapping of
            column name -> values.
        source: name of the table for messages.
        needed: names of columns that are not left out.

    Raises:
        InputError: the data is no table, or a needed column cannot be read.
    """
    try:
        return decode_class_labels(pa.table(dict(data) if isinstance(data, Mapping) else data))
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except UNREADABLE as error:
        # Not a table at all, or one with columns of Python objects: those of a mapping or of a data
        # frame are looked at one by one.
        if not hasattr(data, "items"):
            raise _no_table(source, data, error) from error
    arrays, names = [], []
    for name, values in data.items():
        try:
            array = _as_array(values)
        except UNREADABLE as error:
            if canonical(str(name)) in needed:
                kind = getattr(values, "dtype", "values")
                raise not_text(source, str(name), kind, error) from error
            continue
        arrays.append(array)
        names.append(str(name))
    try:
        return pa.Table.from_arrays(arrays, names=names)
    except UNREADABLE as error:
        raise _no_table(source, data, error) from error


def text_columns(schema: pa.Schema, needed: Collection[str]) -> list[str]:
    """Columns of a file that can be text, and the needed ones: what need not be read is left."""
    return [f.name for f in schema if canonical(f.name) in needed or not _is_opaque(f.type)]


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of any flat type as canonical names; NaN and missing values are null.

    Raises:
        pa.ArrowException, TypeError or UnicodeError: its values cannot be text.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        column = pa.chunked_array([c.storage for c in column.chunks], type=kind.storage_type)
        if kind.extension_name == "arrow.uuid":
            texts = [value and str(uuid.UUID(bytes=value)) for value in column.to_pylist()]
            return pa.chunked_array([pa.array(texts, pa.string())])
        return as_text(column)
    if pa.types.is_dictionary(kind):
        return as_text(column.cast(kind.value_type))
    if pa.types.is_run_end_encoded(kind):
        return as_text(pa.chunked_array([pc.run_end_decode(c) for c in column.chunks]))
    if pa.types.is_nested(kind):
        raise TypeError("nested")
    if pa.types.is_float16(kind):
        column = column.cast(pa.float32())
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if _is_binary(kind):
        column = column.cast(pa.binary())
    text = column.cast(pa.string())
    text.validate(full=True)  # strings of a file may be other than UTF-8
    return canonical_column(text)


def not_text(source: str, name: str, found: Any, error: Exception) -> InputError:
    """What to raise for a needed column that cannot be text."""
    return InputError(
        f"{source}: column {name!r}: expected text or numbers, found {found} ({_describe(error)})."
    )


def fingerprint(table: pa.Table) -> str:
    """Hex sha256 of all columns, by name, and their values as text in row order."""
    parts = []
    for name in sorted(table.column_names):
        column = pc.fill_null(table.column(name).cast(pa.string()), "")
        blocks = pa.table([column], [name]).to_batches(max_chunksize=ROWS_AT_ONCE)
        cells = digests.digest_joined(_as_bytes(block.column(0)) for block in blocks)
        parts += [name.encode(), cells.encode()]
    return digests.digest(*parts)


def _as_bytes(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """int64[N] lengths of texts in UTF-8, and their bytes one behind the other."""
    _, offsets, joined = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    held = np.frombuffer(joined or b"", np.uint8)
    return np.diff(ends).astype(np.int64), held[ends[0] : ends[-1]]


def _is_opaque(kind: pa.DataType) -> bool:
    """Whether a column that is not needed is left out for its type alone."""
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name != "arrow.uuid":
        kind = kind.storage_type
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    return pa.types.is_nested(kind) or _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _as_array(values: Any) -> pa.Array:
    try:
        return pa.array(values, from_pandas=True)
    except UNREADABLE:
        listed = list(values)
        if not all(value is None or isinstance(value, uuid.UUID) for value in listed):
            raise
        return pa.array([value and str(value) for value in listed], pa.string())


def _no_table(source: str, data: Any, error: Exception) -> InputError:
    return InputError(
        f"{source}: expected a table (Arrow PyCapsule object or mapping of equally long columns), "
        f"found {type(data).__name__} ({_describe(error)})."
    )


def _describe(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _read_parquet(path: str, needed: Collection[str]) -> pa.Table:
    fs, inner = files.filesystem(path)
    with fs.open_input_file(inner) as stream, pq.ParquetFile(stream) as file:
        table = file.read(columns=text_columns(file.schema_arrow, needed))
    try:
        return decode_class_labels(table)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read_csv(path: str, data: bytes, needed: Collection[str]) -> SourceTable:
    encoding = next((MARKS[mark] for mark in MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:4]:
        raise InputError(f"{path}: looks like UTF-16 without a byte order mark. {SAVE_ANEW}")
    try:
        skipped, delimiter = _find_delimiter(data, encoding, needed)
        return _read_rows(path, _records(path, data, encoding, delimiter, skipped))
    except UnicodeError as error:
        raise _not_encoded(path, data, encoding) from error


def _lines(data: bytes, encoding: str, skipped: int) -> io.TextIOWrapper:
    text = io.TextIOWrapper(io.BytesIO(data), encoding=encoding, newline="")
    for _ in range(skipped):
        text.readline()
    return text


def _find_delimiter(data: bytes, encoding: str, needed: Collection[str]) -> tuple[int, str]:
    """Lines before the header, and the delimiter.

    It is the first of ``DELIMITERS`` by which the header has all needed columns; if there is none,
    that by which it has the most columns.
    """
    named = NAMED_DELIMITER.match(_lines(data, encoding, 0).readline())
    if named:
        return 1, named.group(1)
    headers = {}
    for delimiter in DELIMITERS:
        try:
            rows = csv.reader(_lines(data, encoding, 0), delimiter=delimiter, strict=True)
            headers[delimiter] = next((row for row in rows if row), [])
        except csv.Error:  # quotes that stand elsewhere than at the borders of its cells
            headers[delimiter] = []
    for delimiter, header in headers.items():
        if set(needed) <= set(map(canonical, header)):
            return 0, delimiter
    return 0, max(headers, key=lambda delimiter: len(headers[delimiter]))


def _records(
    path: str, data: bytes, encoding: str, delimiter: str, skipped: int
) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the line on which it begins."""
    rows = csv.reader(_lines(data, encoding, skipped), delimiter=delimiter, strict=True)
    while True:
        line = rows.line_num + skipped + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}: line {line}: {_explain(error)}") from error
        if any(cell and not cell.isspace() for cell in row):
            yield line, row


def _explain(error: csv.Error) -> str:
    text = str(error)
    if "field larger" in text:
        return (
            f"a cell has more than {csv.field_size_limit():,} characters. Close its quote, or "
            "leave the column out."
        )
    if "end of data" in text:
        return "a quote is opened and never closed. Close it, or write a quote in a cell twice."
    return (
        f"cannot be split into cells ({text}). A cell with quotes stands in quotes, and every "
        "quote in it is written twice."
    )


def _read_rows(path: str, records: Iterator[tuple[int, list[str]]]) -> SourceTable:
    _, header = next(records, (0, []))
    if not header:
        raise InputError(f"{path}: Empty CSV file: expected a line of column names.")
    width = len(header)
    while width > 1 and not header[width - 1].strip():
        width -= 1  # delimiters behind the last column
    columns: list[list[pa.Array]] = [[] for _ in range(width)]
    lines: list[np.ndarray] = []
    block: list[list[str]] = []
    begins: list[int] = []

    def flush() -> None:
        for column, cells in zip(columns, zip(*block, strict=True), strict=True):
            column.append(pa.array(cells, pa.string()))
        lines.append(np.asarray(begins, np.int64))
        block.clear()
        begins.clear()

    for line, row in records:
        extra = row[width:]
        if len(row) < width or (len(row) > len(header) and any(cell.strip() for cell in extra)):
            raise InputError(
                f"{path}: line {line}: expected {width} cells, as in the header, found {len(row)}. "
                "Fill the row up; a cell that holds the delimiter stands in quotes."
            )
        begins.append(line)
        block.append(row[:width])
        if len(block) == ROWS_AT_ONCE:
            flush()
    if block:
        flush()
    chunked = [pa.chunked_array(column, pa.string()) for column in columns]
    table = pa.Table.from_arrays(chunked, names=header[:width])
    return SourceTable(table, np.concatenate(lines or [np.zeros(0, np.int64)]))


def _not_encoded(path: str, data: bytes, encoding: str) -> InputError:
    """What to raise for bytes that are no text in their encoding."""
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-8"):
            before = data[: error.start]
            line = len(re.findall(rb"\r\n|\r|\n", before)) + 1
            found = data[error.start : error.start + 1].hex()
            return InputError(f"{path}: line {line}: invalid UTF-8 (byte {found}). {SAVE_ANEW}")
    return InputError(f"{path}: ends inside a character of {encoding.upper()}. {SAVE_ANEW}")
