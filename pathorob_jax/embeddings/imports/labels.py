"""Labels of the rows of a source: its own, or those of a manifest that ``row_join`` joins."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import table_files
from pathorob_jax.data.manifest import (
    CENTER,
    CLASS,
    PATCH,
    REQUIRED,
    SLIDE,
    Manifest,
    as_manifest,
)
from pathorob_jax.data.names import canonical
from pathorob_jax.embeddings.imports.row_join import FLAGS, GROUP, RowJoin, Table, X, Y
from pathorob_jax.embeddings.imports.source import Source


class Joined(NamedTuple):
    """Rows with labels.

    Attributes:
        rows: the labelled rows.
        positions: int64[len(rows)] row of the source that each belongs to.
        how: what was joined how, in words.
    """

    rows: Manifest
    positions: np.ndarray
    how: list[str]


def read_labels(manifest: Any, columns: Mapping[str, str]) -> Table:
    """A manifest of a file (CSV, Parquet), a table of Python, or a ``Manifest``.

    Raises:
        FileNotFoundError: no such file.
        InputError: it is no table, or a column that was named is missing.
    """
    lines = None
    if isinstance(manifest, Manifest):
        where, table = manifest.source, manifest.table
    elif isinstance(manifest, str):
        where = manifest
        table, lines = table_files.read_table(where, needed=_needed(columns))
    else:
        where = "manifest"
        table = table_files.as_table(manifest, source=where, needed=_needed(columns))
    return Table(where, _texts(table, where, _needed(columns)), lines, table.num_rows)


def _needed(columns: Mapping[str, str]) -> list[str]:
    return [canonical(columns.get(name, name)) for name in (*REQUIRED, GROUP)] + [X, Y]


def _texts(table: pa.Table, where: str, needed: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    names = [canonical(name) for name in table.column_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{where}: expected each column once, found {twice} more than once.")
    kept = set(table_files.text_columns(table.schema, needed))
    out = {}
    for name, own in zip(names, table.column_names, strict=True):
        try:
            if own in kept:
                out[name] = table_files.as_text(table.column(own))
        except table_files.UNREADABLE as error:
            if name in needed:
                kind = table.schema.field(own).type
                raise table_files.not_text(where, name, kind, error) from error
    return out


def join(source: Source, manifest: Table | None, columns: Mapping[str, str]) -> Joined:
    """Give the rows of a source their labels.

    Args:
        source: the rows.
        manifest: the labels; None: those that the tool wrote itself.
        columns: our column name -> the name that the user gave.

    Raises:
        InputError: a patch, slide or label is missing on one side, a key is ambiguous, keys
            disagree, or a rule of manifests is broken.
    """
    own = _own_columns(source)
    if manifest is None:
        positions = np.arange(len(source))
        how = [f"labels are {source.where}'s own"]
        picked, taken = positions, {}
        table = Table(source.where, own, None, len(source))
    else:
        table = manifest
        _check_table(source, own, table, columns)
        picked, positions, how = RowJoin(source, own, table, columns).find()
        taken = {n: _take(c, picked) for n, c in table.columns.items()}
    mine = {n: _take(c, positions) for n, c in own.items() if n not in taken}
    merged = mine | taken
    wanted = {}
    for name in (CLASS, CENTER, SLIDE, PATCH):
        wanted[name] = _find(name, merged, source, columns, table.where)
    slides, patches = source.slides(), source.patches()
    if wanted[SLIDE] is None and slides is not None:
        merged[SLIDE], wanted[SLIDE] = _take(slides, positions), SLIDE
    group = columns.get(GROUP)
    if group is not None and canonical(group) not in merged:
        raise InputError(
            f"{table.where}: expected a column {group!r} ({FLAGS[GROUP]}), found {list(merged)}."
        )
    if wanted[SLIDE] is None:
        wanted[SLIDE] = canonical(group or GROUP) if canonical(group or GROUP) in merged else None
        if wanted[SLIDE] is not None:
            how.append(f"slides are the groups of column {wanted[SLIDE]!r}")
    if wanted[PATCH] is None:
        if patches is None:
            in_file = slides is not None
            whole = pa.chunked_array([pa.array(range(len(source))).cast(pa.string())])
            patches = source.row_numbers() if in_file else whole
            how.append("patch ids are row numbers" + (" of each slide's file" if in_file else ""))
        merged[PATCH], wanted[PATCH] = _take(patches, positions), PATCH
    for name in (CLASS, CENTER, SLIDE):
        if wanted[name] is None:
            raise InputError(_lacking(name, source, manifest, list(merged), columns))
    coords = source.coords()
    if coords is not None:
        for axis, values in zip((X, Y), coords.T, strict=True):
            merged[axis] = table_files.as_text(pa.chunked_array([pa.array(values[positions])]))
    rows = as_manifest(
        pa.table(merged),
        source=table.where,
        columns={name: have for name, have in wanted.items() if have},
        source_rows=picked,
        source_lines=table.lines,
    )
    return Joined(rows, positions, how)


def _check_table(
    source: Source, own: Mapping[str, Any], table: Table, columns: Mapping[str, str]
) -> None:
    """Check a manifest before it is joined: what is wrong with it is said first."""
    there = dict(own) | table.columns
    wanted = {n: _find(n, there, source, columns, table.where) for n in REQUIRED}
    for name in (CLASS, CENTER):
        if wanted[name] is None:
            raise InputError(_lacking(name, source, table, list(there), columns))
    if all(have in table.columns for have in wanted.values()):
        as_manifest(
            pa.table(table.columns),
            source=table.where,
            columns={name: have for name, have in wanted.items() if have},
            source_lines=table.lines,
        )


def _own_columns(source: Source) -> dict[str, pa.ChunkedArray]:
    """Columns that the tool wrote, as text."""
    out = {}
    for name in source.column_names():
        if any(ord(sign) < 32 for sign in name):
            continue
        try:
            out[canonical(name)] = table_files.as_text(source.column(name))
        except table_files.UNREADABLE:
            continue
    return out


def _find(
    name: str,
    merged: Mapping[str, Any],
    source: Source,
    columns: Mapping[str, str],
    where: str,
) -> str | None:
    """The column that stands for ours: the user's, ours, or the tool's; None: there is none."""
    given = columns.get(name, name)
    if canonical(given) in merged:
        return canonical(given)
    if given != name:
        raise InputError(
            f"{where}: expected a column {given!r} ({FLAGS[name]}), found {list(merged)}."
        )
    own = source.names.get(name)
    return own if own in merged else None


def _lacking(
    name: str,
    source: Source,
    manifest: Table | None,
    found: list[str],
    columns: Mapping[str, str],
) -> str:
    if manifest is None:
        return (
            f"{source.where}: has no column {columns.get(name, name)!r}, found {found}. Give "
            f"--manifest with the labels, or name the column with {FLAGS[name]}."
        )
    return (
        f"{manifest.where}: expected columns {[columns.get(n, n) for n in REQUIRED]}, missing "
        f"[{columns.get(name, name)!r}], found {list(manifest.columns)}. Name yours with "
        f"{FLAGS[name]}, or rename it."
    )


def _take(column: pa.ChunkedArray, rows: np.ndarray) -> pa.ChunkedArray:
    """Rows of a column; the column itself, which is not copied, where they are all of it."""
    if len(rows) == len(column) and np.array_equal(rows, np.arange(len(rows))):
        return column
    return column.take(pa.array(rows))
