"""The join of a source's rows with those of a manifest.

Rows are joined by patch (``patch_id`` within its slide, or ``slide_id-patch_id``), by slide and
coordinates, by slide alone (a manifest of one row per slide), or by their order. Keys that both
sides have are always checked.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE
from pathorob_jax.data.names import NUL, canonical
from pathorob_jax.embeddings.imports.source import Source, as_numbers

GROUP, X, Y = "group_id", "x", "y"
FLAGS = {
    SLIDE: "--slide_column",
    PATCH: "--patch_column",
    CLASS: "--label_column",
    CENTER: "--center_column",
    GROUP: "--group_column",
}
# Endings of slides' files, which tools leave out of the names of theirs.
SLIDE_ENDINGS = (
    r"\.(svs|tiff?|ndpi|mrxs|scn|vms|vmu|czi|bif|dcm|isyntax|ome\.tiff?|h5|zarr|png|jpe?g)$"
)


class Table(NamedTuple):
    """A manifest as it was read: text columns by name, and where its rows come from."""

    where: str
    columns: dict[str, pa.ChunkedArray]
    lines: np.ndarray | None
    n_rows: int

    def at(self, row: int) -> str:
        """Where a row stands."""
        if self.lines is not None:
            return f"line {self.lines[row]}"
        return f"row {row}, counting from 0"


class RowJoin:
    """One manifest and one source, whose shared keys decide how they are joined."""

    def __init__(
        self,
        source: Source,
        own: Mapping[str, pa.ChunkedArray],
        table: Table,
        columns: Mapping[str, str],
    ):
        self.source, self.table = source, table
        self.how: list[str] = []
        mine = {name: _key(name, table.columns, source, columns) for name in (SLIDE, PATCH)}
        self.slide, self.patch = mine[SLIDE], mine[PATCH]
        slides, patches = source.slides(), source.patches()
        own_slide = _key(SLIDE, own, source, columns)
        if slides is None and own_slide is not None:
            slides = own[own_slide]
        own_patch = _key(PATCH, own, source, columns)
        if patches is None and own_patch is not None:
            patches = own[own_patch]
        self.slides, self.patches = slides, patches
        self.coords = source.coords()
        self.has_xy = {X, Y} <= set(table.columns)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the manifest."""
        return self.table.columns[name]

    def find(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Rows of the manifest, rows of the source, and how they were joined."""
        ways: list[tuple[bool, Callable[[], tuple[np.ndarray, np.ndarray]]]] = [
            (self.patch is not None and self.patches is not None, self.by_patch),
            (
                self.slide is not None
                and self.slides is not None
                and self.has_xy
                and self.coords is not None,
                self.by_place,
            ),
            (self.patch is not None and self.slide is not None and self.slides is not None,
             self.by_number),
            (self.patch is None and self.slide is not None and self.slides is not None,
             self.by_slide),
            (True, self.by_order),
        ]  # fmt: skip
        picked, positions = next(way for possible, way in ways if possible)()
        self.check_places(picked, positions)
        left = len(self.source) - len(np.unique(positions))
        if left:
            self.how.append(
                f"{left} of the {len(self.source)} rows of {self.source.where} have no label and "
                "are left out"
            )
        return picked, positions, self.how

    def manifest_slides(self) -> pa.ChunkedArray:
        """Slides of the manifest as the source names them."""
        assert self.slide is not None
        assert self.slides is not None
        given = pc.fill_null(self.column(self.slide), "")
        empty = np.flatnonzero(pc.equal(given, "").to_numpy())
        if empty.size:
            raise InputError(
                f"{self.table.where}: column {self.slide!r} is empty, "
                f"{self.table.at(int(empty[0]))}. Fill or remove the row."
            )
        cut = pc.replace_substring_regex(given, "(?i)" + SLIDE_ENDINGS, "")
        there = pc.unique(self.slides)
        longer = pc.and_not(pc.is_in(cut, value_set=there), pc.is_in(given, value_set=there))
        if not pc.any(longer).as_py():
            return given
        self.how.append("endings of slide files in the manifest were passed over")
        return pc.if_else(longer, cut, given)

    def by_patch(self) -> tuple[np.ndarray, np.ndarray]:
        """By patch id within the slide; by ``slide-patch`` or a bare id where no slide is known."""
        assert self.patch is not None
        assert self.patches is not None
        ids = self.column(self.patch)
        if self.slides is not None and self.slide is not None:
            mine = _joined(NUL, self.manifest_slides(), ids)
            theirs = _joined(NUL, self.slides, self.patches)
            return self.look_up(mine, theirs, "slide and patch id")
        if self.slide is not None:
            full = _joined("-", self.column(self.slide), ids)
            n_full = pc.sum(pc.is_in(full, value_set=self.patches)).as_py()
            if n_full and n_full >= pc.sum(pc.is_in(ids, value_set=self.patches)).as_py():
                return self.look_up(full, self.patches, f"{SLIDE}-{PATCH}")
        self.check_bare(ids)
        return self.look_up(ids, self.patches, PATCH)

    def check_bare(self, ids: pa.ChunkedArray) -> None:
        """Refuse a bare id of patches on two slides."""
        if self.slide is None:
            return
        slides = self.column(self.slide)
        first = _first_of_equal(ids)
        slide = _first_of_equal(slides)
        differ = np.flatnonzero(slide[first] != slide)
        if differ.size:
            row = int(differ[0])
            other = int(first[row])
            raise InputError(
                f"{self.table.where}: patch {ids[row].as_py()!r} is of slide "
                f"{slides[other].as_py()!r} ({self.table.at(other)}) and of slide "
                f"{slides[row].as_py()!r} ({self.table.at(row)}), and {self.source.where} names "
                f"patches without their slide. Name them {SLIDE}-{PATCH} there."
            )

    def by_place(self) -> tuple[np.ndarray, np.ndarray]:
        """By slide, x and y, compared as the source stores them."""
        assert self.slides is not None
        assert self.coords is not None
        mine = _joined(NUL, self.manifest_slides(), *_as_texts(self.manifest_places()))
        theirs = _joined(NUL, self.slides, *_as_texts(self.coords))
        return self.look_up(mine, theirs, "slide, x and y")

    def manifest_places(self) -> np.ndarray:
        """X and y of the manifest in the source's type, [n, 2]."""
        assert self.coords is not None
        try:
            values = [as_numbers(self.column(axis)) for axis in (X, Y)]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self.table.where}: expected numbers in columns x and y ({error}). Correct them, "
                "or rename the columns."
            ) from error
        places = np.stack(values, axis=1)
        typed = places.astype(self.coords.dtype)
        if self.coords.dtype.kind in "iu" and (typed != places).any():
            row = int(np.flatnonzero((typed != places).any(axis=1))[0])
            raise InputError(
                f"{self.table.where}: expected whole numbers in x and y, as in "
                f"{self.source.where}, found {places[row].tolist()} ({self.table.at(row)})."
            )
        return typed

    def by_number(self) -> tuple[np.ndarray, np.ndarray]:
        """By slide and number of the row in its file, which the manifest has as patch id."""
        assert self.slides is not None
        assert self.patch is not None
        mine = _joined(NUL, self.manifest_slides(), self.column(self.patch))
        theirs = _joined(NUL, self.slides, self.source.row_numbers())
        return self.look_up(mine, theirs, "slide and number of the row in its file (from 0)")

    def by_slide(self) -> tuple[np.ndarray, np.ndarray]:
        """All patches of a slide have the labels of its one row."""
        assert self.slides is not None
        mine = self.manifest_slides()
        first = _first_of_equal(mine)
        again = np.flatnonzero(first != np.arange(len(mine)))
        if again.size:
            row = int(again[0])
            raise InputError(
                f"{self.table.where}: slide {mine[row].as_py()!r} has two rows "
                f"({self.table.at(int(first[row]))}, {self.table.at(row)}) and no column names "
                f"their patches. Give one row per slide, or patches by {FLAGS[PATCH]} or by "
                "columns x and y."
            )
        absent = np.flatnonzero(~pc.is_in(mine, value_set=self.slides).to_numpy())
        if absent.size:
            row = int(absent[0])
            raise self.absent(absent.size, len(mine), "slides", mine[row].as_py(), row)
        row_of = pc.fill_null(pc.index_in(self.slides, value_set=mine), -1).to_numpy()
        row_of = row_of.astype(np.int64)
        positions = np.flatnonzero(row_of >= 0)
        self.how.append(f"labels joined by slide ({len(mine)} slides)")
        return row_of[positions], positions

    def by_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Row i belongs to row i."""
        n = len(self.source)
        if self.table.n_rows != n:
            raise InputError(
                f"{self.source.where}: expected shape ({self.table.n_rows}, any) (rows of "
                f"{self.table.where}, dimensions), found ({n}, {self.source.dim}). Give the "
                "manifest of these rows, in their order, or keys by which they are joined: "
                f"{FLAGS[SLIDE]}, {FLAGS[PATCH]}, or columns x and y."
            )
        self.how.append("labels joined by the order of rows")
        rows = np.arange(n)
        return rows, rows

    def look_up(
        self, mine: pa.ChunkedArray, theirs: pa.ChunkedArray, by: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of equal keys. Each of ours must be there, and there only once."""
        found = pc.fill_null(pc.index_in(mine, value_set=theirs), -1).to_numpy()
        missing = np.flatnonzero(found < 0)
        if missing.size:
            row = int(missing[0])
            raise self.absent(missing.size, len(mine), "patches", mine[row].as_py(), row, by=by)
        positions = found.astype(np.int64)
        first = _first_of_equal(theirs)
        often = first[first != np.arange(len(first))]
        twice = np.intersect1d(often, positions)
        if twice.size:
            raise InputError(
                f"{self.source.where}: holds {_say(theirs[int(twice[0])].as_py())} more than once, "
                f"as row {twice[0]} and later. Remove one, or name patches {SLIDE}-{PATCH}."
            )
        self.check_once(mine, positions, by)
        self.how.append(f"labels joined by {by} ({len(mine)} rows)")
        return np.arange(len(mine)), positions

    def check_once(self, mine: pa.ChunkedArray, positions: np.ndarray, by: str) -> None:
        """Two patches of the manifest must not be one row of the source."""
        if self.patch is None:
            unique, first = np.unique(positions, return_index=True)
            if len(unique) != len(positions):
                row = int(np.setdiff1d(np.arange(len(positions)), first)[0])
                key = _say(mine[row].as_py())
                raise InputError(
                    f"{self.table.where}: {key} stands twice ({by}), the second time in "
                    f"{self.table.at(row)}. Remove one."
                )

    def absent(
        self, n: int, of: int, what: str, key: str, row: int, *, by: str = "slide"
    ) -> InputError:
        """What to say of keys that the source lacks."""
        known = self.slides if what == "slides" else self.patches
        some = [] if known is None else pc.unique(known).slice(0, 20).to_pylist()
        near = f" There are {', '.join(map(repr, some))}"[:120] if some else ""
        return InputError(
            f"{self.source.where}: lacks {n} of the {of} {what} of {self.table.where} (by {by}), "
            f"the first is {_say(key)} ({self.table.at(row)}).{near + ' ...' if near else ''} "
            "Extract their features too, or leave them out of the manifest."
        )

    def check_places(self, picked: np.ndarray, positions: np.ndarray) -> None:
        """Coordinates that both sides have must agree."""
        if not self.has_xy or self.coords is None:
            return
        mine = self.manifest_places()[picked]
        differ = np.flatnonzero((mine != self.coords[positions]).any(axis=1))
        if differ.size:
            i = differ[0]
            raise InputError(
                f"{self.table.where}: x, y {mine[i].tolist()} ({self.table.at(int(picked[i]))}) "
                f"are {self.coords[positions[i]].tolist()} in {self.source.where}. Correct the "
                "manifest, or rename its columns x and y if they mean something else."
            )


def _key(
    name: str, there: Mapping[str, Any], source: Source, columns: Mapping[str, str]
) -> str | None:
    """The column of a table that holds our key; None if it has none."""
    given = canonical(columns.get(name, name))
    own = source.names.get(name)
    for candidate in (given, own, GROUP if name == SLIDE else None):
        if candidate is not None and candidate in there:
            return candidate
    return None


def _joined(sign: str, *columns: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys of several columns; a missing cell is empty."""
    filled = [pc.fill_null(column, "") for column in columns]
    return pc.binary_join_element_wise(*filled, sign)


def _first_of_equal(column: pa.ChunkedArray) -> np.ndarray:
    """int64[N]: the first row that has the same text as each row."""
    return pc.index_in(column, value_set=column).to_numpy().astype(np.int64)


def _as_texts(places: np.ndarray) -> list[pa.ChunkedArray]:
    """X and y as text that is equal where the numbers are."""
    wide = places.astype(np.float64) if places.dtype.kind == "f" else places
    return [pa.chunked_array([pa.array(axis + 0).cast(pa.string())]) for axis in wide.T]


def _say(key: str) -> str:
    return repr(key.replace(NUL, ", "))
