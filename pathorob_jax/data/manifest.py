"""Manifests: the slide, patch id, biological class and medical centre of each patch.

A ``Manifest`` is read from CSV or Parquet files, or made from any object with the Arrow PyCapsule
interface or a mapping of columns, and is checked. Its cells are canonical names. Only this module
knows names of input columns; ``table_files`` reads the columns.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import table_files
from pathorob_jax.data.names import NUL, canonical

SLIDE, PATCH = "slide_id", "patch_id"
CLASS, CENTER = "biological_class", "medical_center"
SUBSET = "subset"
REQUIRED = (SLIDE, PATCH, CLASS, CENTER)
FLAG_OF = {CLASS: "--label_column", CENTER: "--center_column"}
# A longer name is a mistake: a quote that was never closed, or another column's text.
MAX_NAME = 1024


class Categories(NamedTuple):
    """A factorised column: ``names[ids[i]]`` is the value of row i; names are sorted.

    Attributes:
        ids: int32[N] in [0, len(names)).
        names: distinct values in ascending order (the numbering of scikit-learn's LabelEncoder).
    """

    ids: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Manifest:
    """Checked rows of patches. Build one with ``read_manifest`` or ``as_manifest``.

    Attributes:
        table: string columns of canonical names: always ``slide_id, patch_id, biological_class,
            medical_center``, and any other column of the input that can be text.
        source: file (or description) to name in messages.
        source_rows: int64[N] row of the source that each row comes from, to name in messages.
        source_lines: line of the file on which each row of the source begins; None: it has none.
    """

    table: pa.Table
    source: str
    source_rows: np.ndarray
    source_lines: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"Manifest({self.source}: {len(self)} rows of {self.table.num_columns} columns)"

    def __len__(self) -> int:
        return self.table.num_rows

    def __contains__(self, column: str) -> bool:
        return canonical(column) in self.table.column_names

    def column(self, name: str) -> np.ndarray:
        """object[N] of str.

        Raises:
            InputError: there is no such column.
        """
        return self._texts(name).to_numpy()

    def _texts(self, name: str) -> pa.ChunkedArray:
        if name not in self:
            raise InputError(
                f"{self.source}: expected a column {name!r}, found {self.table.column_names}."
            )
        return self.table.column(canonical(name))

    def factorize(self, name: str) -> Categories:
        """``Categories`` of a column."""
        column = self._texts(name)
        names = sorted(pc.unique(column).to_pylist())
        ids = pc.index_in(column, value_set=pa.array(names, pa.string())).to_numpy()
        return Categories(ids.astype(np.int32), tuple(names))

    @cached_property
    def keys(self) -> pa.Array:
        """string[N]: ``slide_id-patch_id``, PathoROB's name of a patch, for messages and files.

        Two patches may share it (patch ``s-1`` of slide ``a``, patch ``1`` of slide ``a-s``):
        compare ``identities``.
        """
        return self._join("-")

    @cached_property
    def identities(self) -> pa.Array:
        """string[N] that identify patches across files: the pair of slide and patch."""
        return self._join(NUL)  # which no name holds

    def _join(self, sign: str) -> pa.Array:
        joined = pc.binary_join_element_wise(self.table[SLIDE], self.table[PATCH], sign)
        return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined

    def _first_rows(self) -> np.ndarray:
        """int64[N]: the first row of the same patch."""
        return pc.index_in(self.identities, value_set=self.identities).to_numpy().astype(np.int64)

    def take(self, rows: np.ndarray) -> "Manifest":
        """The given rows (int[n], in that order)."""
        table = self.table.take(pa.array(rows, pa.int64()))
        return replace(self, table=table, source_rows=self.source_rows[rows])

    def without_subsets(self, subsets: Sequence[str]) -> "Manifest":
        """Rows whose ``subset`` is not in ``subsets``; all rows if there is no such column."""
        if not subsets or SUBSET not in self:
            return self
        left_out = set(map(canonical, subsets))
        return self.take(np.flatnonzero([s not in left_out for s in self.column(SUBSET)]))

    def unique_patches(self) -> "Manifest":
        """Each patch once, in order of first appearance, without the ``subset`` column."""
        first = np.unique(self._first_rows())
        kept = self if len(first) == len(self) else self.take(first)
        return replace(kept, table=kept.table.drop_columns([SUBSET])) if SUBSET in kept else kept

    def fingerprint(self) -> str:
        """Hex sha256 of all columns, by name, and their values in row order."""
        return table_files.fingerprint(self.table)


def read_manifest(path: str, *, columns: Mapping[str, str] | None = None) -> Manifest:
    """Read and check a manifest.

    Args:
        path: ``.csv`` or ``.parquet``, local, ``gs://`` or ``s3://``.
        columns: our column name -> name in the file, for columns that are named differently.

    Raises:
        FileNotFoundError: no such file.
        InputError: the file is not a table, or breaks a rule of ``as_manifest``.
    """
    wanted = _wanted(columns)
    table, lines = table_files.read_table(path, needed=wanted.values())
    return _checked(Manifest(table, path, np.arange(table.num_rows), lines), wanted)


def as_manifest(
    data: Any,
    *,
    source: str = "manifest",
    columns: Mapping[str, str] | None = None,
    source_rows: np.ndarray | None = None,
    source_lines: np.ndarray | None = None,
) -> Manifest:
    """Check a table and rename its columns to ours.

    Args:
        data: an object with ``__arrow_c_stream__`` (pyarrow, pandas, polars ...) or a mapping of
            column name -> values.
        source: name of the table in messages.
        columns: our column name -> name in the input, for columns that are named differently.
        source_rows: int64[N] row of the source that each row comes from; None: they are its rows.
        source_lines: line of the file on which each row of the source begins; None: it has none.

    Raises:
        InputError: a required column is missing, a cell is empty or no name, a patch appears twice
            in one subset or has two classes or centres, a slide has two centres, or a class and a
            centre have the same name.
    """
    wanted = _wanted(columns)
    table = table_files.as_table(data, source=source, needed=wanted.values())
    rows = np.arange(table.num_rows) if source_rows is None else source_rows
    return _checked(Manifest(table, source, rows, source_lines), wanted)


def relabel(manifest: Manifest, columns: Mapping[str, str] | None) -> Manifest:
    """The same rows with other columns in the place of ours.

    Raises:
        InputError: see ``as_manifest``.
    """
    return _checked(manifest, _wanted(columns)) if columns else manifest


def fingerprint_file(path: str) -> str:
    """``Manifest.fingerprint`` of a Parquet file of text as it stands, canonical or not.

    Raises:
        InputError: the file is no table.
    """
    table, _ = table_files.read_table(path, needed=())
    return table_files.fingerprint(table)


def _wanted(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Required column -> its name in the input."""
    return {name: canonical((columns or {}).get(name, name)) for name in REQUIRED}


def _checked(raw: Manifest, wanted: Mapping[str, str]) -> Manifest:
    """The rows with our columns, after all checks."""
    manifest = replace(raw, table=_our_columns(raw.table, raw.source, wanted))
    if not len(manifest):
        raise InputError(f"{manifest.source}: expected at least one row, found none.")
    _check_cells(manifest)
    _check_one_label(manifest)
    _check_once(manifest)
    _check_slides(manifest)
    _check_names(manifest, manifest)
    return manifest


def union(manifests: Sequence[Manifest]) -> Manifest:
    """All patches of the manifests, each once, in order of first appearance.

    The ``subset`` column belongs to the view of one metric and is dropped. Other columns are kept
    if all manifests have them.

    Raises:
        InputError: two manifests disagree on the class or centre of a patch or on the centre of a
            slide, or a class of one manifest and a centre of another have the same name.
    """
    merged = manifests[0].unique_patches()
    for i, manifest in enumerate(manifests[1:], 1):
        # Compare with each file, not with their union, whose rows are in no single file.
        for earlier in manifests[:i]:
            _check_fit(manifest, earlier)
        new = pc.invert(pc.is_in(manifest.identities, value_set=merged.identities))
        fresh = manifest.take(np.flatnonzero(new)).unique_patches()
        shared = [name for name in merged.table.column_names if name in fresh]
        merged = Manifest(
            pa.concat_tables([merged.table.select(shared), fresh.table.select(shared)]),
            f"{merged.source} + {manifest.source}",
            np.concatenate([merged.source_rows, fresh.source_rows]),
        )
    return merged


def locate(view: Manifest, rows: Manifest, *, relabelled: Collection[str] = ()) -> np.ndarray:
    """Positions in ``rows`` of the patches of ``view``, by slide and patch.

    Args:
        view: rows to look for.
        rows: rows to look in.
        relabelled: columns with another meaning in ``view`` (a scanner in place of the centre).

    Returns:
        int64[len(view)].

    Raises:
        InputError: a patch of ``view`` is missing, or its class or centre differs.
    """
    found = pc.index_in(view.identities, value_set=rows.identities)
    missing = np.flatnonzero(pc.is_null(found).to_numpy(zero_copy_only=False))
    if missing.size:
        first = missing[np.argmin(view.source_rows[missing])]
        raise InputError(
            f"{rows.source}: lacks {missing.size} of the {len(view)} patches of {view.source}, "
            f"the first is {view.keys[int(first)]} ({line_of(view, first)}). Extract or import "
            "the whole dataset, or give the metadata that belongs to these embeddings."
        )
    positions = found.to_numpy().astype(np.int64)
    _check_agree(view, rows.take(positions), besides=relabelled)
    return positions


def _check_agree(mine: Manifest, theirs: Manifest, *, besides: Collection[str] = ()) -> None:
    """Row i is the same patch in both: check that its class and centre agree."""
    for name in (n for n in (CLASS, CENTER) if n not in besides):
        ours, others = mine.column(name), theirs.column(name)
        differ = np.flatnonzero(ours != others)
        if differ.size:
            i = differ[0]
            raise InputError(
                f"{mine.source} and {theirs.source} disagree on the {name} of patch "
                f"{mine.keys[i]}: {ours[i]!r} ({line_of(mine, i)}) and {others[i]!r} "
                f"({line_of(theirs, i)}). Correct one of them, or use the manifest that the "
                "embeddings were made with."
            )


def _check_fit(mine: Manifest, theirs: Manifest) -> None:
    """Check that two manifests can be united."""
    found = pc.index_in(mine.identities, value_set=theirs.identities)
    known = np.flatnonzero(found.is_valid())
    _check_agree(mine.take(known), theirs.take(found.drop_null().to_numpy().astype(np.int64)))
    slides, centers = theirs.column(SLIDE), theirs.column(CENTER)
    row_of = dict(zip(slides[::-1], range(len(slides) - 1, -1, -1), strict=True))
    for i, (slide, center) in enumerate(zip(mine.column(SLIDE), mine.column(CENTER), strict=True)):
        j = row_of.get(slide)
        if j is not None and centers[j] != center:
            raise InputError(
                f"{mine.source} and {theirs.source} disagree on the medical centre of slide "
                f"{slide!r}: {center!r} ({line_of(mine, i)}) and {centers[j]!r} "
                f"({line_of(theirs, j)}). Correct one of them, or give the slides different "
                f"{SLIDE}."
            )
    _check_names(mine, theirs)
    _check_names(theirs, mine)


def _our_columns(table: pa.Table, source: str, wanted: Mapping[str, str]) -> pa.Table:
    """Rename columns, keep as text those that can be text, and refuse missing ones."""
    table = table.rename_columns([canonical(name) for name in table.column_names])
    missing = [have for have in wanted.values() if have not in table.column_names]
    if missing:
        flags = sorted(
            {FLAG_OF[n] for n, have in wanted.items() if have in missing and n in FLAG_OF}
        )
        mend = (
            f" Name yours with {' and '.join(flags)}, or rename it." if flags else " Rename yours."
        )
        if any("," in name for name in table.column_names):
            mend += " In a list of columns, a name with a comma stands in double quotes."
        raise InputError(
            f"{source}: expected columns {list(wanted.values())}, missing {missing}, "
            f"found {table.column_names}.{mend}"
        )
    twice = sorted({n for n in table.column_names if table.column_names.count(n) > 1})
    if twice:
        raise InputError(
            f"{source}: expected each column once, found {twice} more than once. Remove or rename "
            "one of each."
        )
    kept = set(table_files.text_columns(table.schema, wanted.values()))
    texts = {}
    for name in table.column_names:
        try:
            if name in kept:
                texts[name] = table_files.as_text(table.column(name))
        except table_files.UNREADABLE as error:
            if name in wanted.values():
                kind = table.schema.field(name).type
                raise table_files.not_text(source, name, kind, error) from error
    out = {name: texts[have] for name, have in wanted.items()}
    # An empty cell of another column is "".
    return pa.table(out | {n: pc.fill_null(t, "") for n, t in texts.items() if n not in out})


def line_of(manifest: Manifest, row: int) -> str:
    """Where to find a row: its line in the file (the first is line 1), else the row number."""
    row = int(manifest.source_rows[row])
    if manifest.source_lines is not None:
        return f"line {manifest.source_lines[row]}"
    return f"row {row}, counting from 0"


def _check_cells(manifest: Manifest) -> None:
    """Check that each required cell holds a name."""
    for name in REQUIRED:
        column = manifest.table.column(name)
        for found, what, mend in (
            (pc.fill_null(pc.equal(column, ""), True), "is empty", "Fill or remove them."),
            (
                pc.match_substring(pc.fill_null(column, ""), NUL),
                "holds the character NUL",
                "No name has one; write the table anew.",
            ),
            (
                pc.greater(pc.utf8_length(pc.fill_null(column, "")), MAX_NAME),
                f"has more than {MAX_NAME} characters",
                "Is a quote not closed, or is it another column? Give shorter names.",
            ),
        ):
            rows = np.flatnonzero(found.to_numpy())
            if rows.size:
                raise InputError(
                    f"{manifest.source}: column {name!r} {what} in {rows.size} rows, the first is "
                    f"{line_of(manifest, rows[0])}. {mend}"
                )


def _check_one_label(manifest: Manifest) -> None:
    """Check that a patch has one class and centre, even if it appears several times."""
    first = manifest._first_rows()
    for name in (CLASS, CENTER):
        ids, names = manifest.factorize(name)
        differ = np.flatnonzero(ids != ids[first])
        if differ.size:
            i, j = differ[0], first[differ[0]]
            raise InputError(
                f"{manifest.source}: patch {manifest.keys[int(i)]} has {name} {names[ids[j]]!r} "
                f"({line_of(manifest, j)}) and {names[ids[i]]!r} ({line_of(manifest, i)}). A patch "
                "has one of each; correct one of them."
            )


def _check_once(manifest: Manifest) -> None:
    """Check that a patch appears once in a subset (once overall if there are no subsets)."""
    first = manifest._first_rows()
    subset_id = manifest.factorize(SUBSET).ids if SUBSET in manifest else np.zeros_like(first)
    pairs = first * (int(subset_id.max()) + 1) + subset_id
    _, first_pair, pair_id = np.unique(pairs, return_index=True, return_inverse=True)
    again = np.flatnonzero(first_pair[pair_id] != np.arange(len(manifest)))
    if again.size:
        i = again[0]
        subset = f" in subset {manifest.column(SUBSET)[i]!r}" if SUBSET in manifest else ""
        raise InputError(
            f"{manifest.source}: patch {manifest.keys[int(i)]} appears twice{subset}: "
            f"{line_of(manifest, first_pair[pair_id[i]])} and {line_of(manifest, i)} "
            f"({again.size} such rows). Remove one, or give them different patch_id."
        )


def _check_slides(manifest: Manifest) -> None:
    """Check that a slide has one medical centre."""
    slides = manifest.factorize(SLIDE)
    center, centers = manifest.factorize(CENTER)
    _, first = np.unique(slides.ids, return_index=True)
    differ = np.flatnonzero(center != center[first][slides.ids])
    if differ.size:
        i, j = differ[0], first[slides.ids[differ[0]]]
        raise InputError(
            f"{manifest.source}: slide {slides.names[slides.ids[i]]!r} lies in two medical centres,"
            f" {centers[center[j]]!r} ({line_of(manifest, j)}) and {centers[center[i]]!r} "
            f"({line_of(manifest, i)}). Own-slide rows would leak into the neighbours; give the "
            "slides different slide_id."
        )


def _check_names(mine: Manifest, theirs: Manifest) -> None:
    """Check that no class of one manifest is named like a medical centre of the other."""
    shared = set(mine.factorize(CLASS).names) & set(theirs.factorize(CENTER).names)
    if shared:
        name = min(shared)
        i = np.flatnonzero(mine.column(CLASS) == name)[0]
        j = np.flatnonzero(theirs.column(CENTER) == name)[0]
        raise InputError(
            f"{name!r} names both a biological class ({mine.source}, {line_of(mine, i)}) and a "
            f"medical centre ({theirs.source}, {line_of(theirs, j)}). Rename one: tables per class "
            "and per centre would be mistaken for each other."
        )
