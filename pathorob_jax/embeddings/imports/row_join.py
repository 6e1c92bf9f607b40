"""The join of a source's rows with those of a manifest.

Rows are joined by patch (``patch_id`` within its slide, or ``slide_id-patch_id``), by slide and
coordinates, by slide alone (a manifest of one row per slide), or by their order. Keys that both
sides have are always checked.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE
from pathorob_jax.data.names import NUL, canonical
from pathorob_jax.embeddings.imports.source import Source

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
            slides = own[own_slide].to_pylist()
        own_patch = _key(PATCH, own, source, columns)
        if patches is None and own_patch is not None:
            patches = own[own_patch].to_pylist()
        self.slides, self.patches = slides, patches
        self.coords = source.coords()
        self.has_xy = {X, Y} <= set(table.columns)

    def column(self, name: str) -> list[Any]:
        """A column of the manifest."""
        return list(self.table.columns[name].to_pylist())

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

    def manifest_slides(self) -> list[str]:
        """Slides of the manifest as the source names them."""
        assert self.slide is not None
        column = self.table.columns[self.slide]
        cut = pc.replace_substring_regex(column, "(?i)" + SLIDE_ENDINGS, "")
        there = set(self.slides or ())
        given, short = column.to_pylist(), cut.to_pylist()
        out = [s if s in there or t not in there else t for s, t in zip(given, short, strict=True)]
        if out != given:
            self.how.append("endings of slide files in the manifest were passed over")
        for row, slide in enumerate(out):
            if not slide:
                raise InputError(
                    f"{self.table.where}: column {self.slide!r} is empty, {self.table.at(row)}. "
                    "Fill or remove the row."
                )
        return out

    def by_patch(self) -> tuple[np.ndarray, np.ndarray]:
        """By patch id within the slide; by ``slide-patch`` or a bare id where no slide is known."""
        assert self.patch is not None
        assert self.patches is not None
        ids = self.column(self.patch)
        if self.slides is not None and self.slide is not None:
            mine = [f"{s}{NUL}{p}" for s, p in zip(self.manifest_slides(), ids, strict=True)]
            theirs = [f"{s}{NUL}{p}" for s, p in zip(self.slides, self.patches, strict=True)]
            return self.look_up(mine, theirs, "slide and patch id")
        if self.slide is not None:
            full = [f"{s}-{p}" for s, p in zip(self.column(self.slide), ids, strict=True)]
            known = set(self.patches)
            n_full = sum(key in known for key in full)
            if n_full and n_full >= sum(id in known for id in ids):
                return self.look_up(full, self.patches, f"{SLIDE}-{PATCH}")
        self.check_bare(ids)
        return self.look_up(ids, self.patches, PATCH)

    def check_bare(self, ids: Sequence[str]) -> None:
        """Refuse a bare id of patches on two slides."""
        if self.slide is None:
            return
        first: dict[str, int] = {}
        slides = self.column(self.slide)
        for row, id in enumerate(ids):
            other = first.setdefault(id, row)
            if slides[other] != slides[row]:
                raise InputError(
                    f"{self.table.where}: patch {id!r} is of slide {slides[other]!r} "
                    f"({self.table.at(other)}) and of slide {slides[row]!r} "
                    f"({self.table.at(row)}), and {self.source.where} names patches without their "
                    f"slide. Name them {SLIDE}-{PATCH} there."
                )

    def by_place(self) -> tuple[np.ndarray, np.ndarray]:
        """By slide, x and y, compared as the source stores them."""
        assert self.slides is not None
        assert self.coords is not None
        xy = self.manifest_places()
        mine = [
            f"{s}{NUL}{x}{NUL}{y}" for s, (x, y) in zip(self.manifest_slides(), xy, strict=True)
        ]
        theirs = [
            f"{s}{NUL}{x}{NUL}{y}"
            for s, (x, y) in zip(self.slides, self.coords.tolist(), strict=True)
        ]
        return self.look_up(mine, theirs, "slide, x and y")

    def manifest_places(self) -> list[list[Any]]:
        """X and y of the manifest in the source's type."""
        assert self.coords is not None
        try:
            values = [np.asarray(self.column(axis), np.float64) for axis in (X, Y)]
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
        return list(typed.tolist())

    def by_number(self) -> tuple[np.ndarray, np.ndarray]:
        """By slide and number of the row in its file, which the manifest has as patch id."""
        assert self.slides is not None
        assert self.patch is not None
        numbers = self.source.row_numbers()
        ids = self.column(self.patch)
        mine = [f"{s}{NUL}{p}" for s, p in zip(self.manifest_slides(), ids, strict=True)]
        theirs = [f"{s}{NUL}{p}" for s, p in zip(self.slides, numbers, strict=True)]
        return self.look_up(mine, theirs, "slide and number of the row in its file (from 0)")

    def by_slide(self) -> tuple[np.ndarray, np.ndarray]:
        """All patches of a slide have the labels of its one row."""
        assert self.slides is not None
        mine = self.manifest_slides()
        first: dict[str, int] = {}
        for row, slide in enumerate(mine):
            other = first.setdefault(slide, row)
            if other != row:
                raise InputError(
                    f"{self.table.where}: slide {slide!r} has two rows ({self.table.at(other)}, "
                    f"{self.table.at(row)}) and no column names their patches. Give one row per "
                    f"slide, or patches by {FLAGS[PATCH]} or by columns x and y."
                )
        there = set(self.slides)
        absent = [slide for slide in first if slide not in there]
        if absent:
            raise self.absent(len(absent), len(first), "slides", absent[0], first[absent[0]])
        row_of = np.asarray([first.get(slide, -1) for slide in self.slides], np.int64)
        positions = np.flatnonzero(row_of >= 0)
        self.how.append(f"labels joined by slide ({len(first)} slides)")
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
        for name, mine, theirs in (
            ("slide", self.slide, self.slides),
            ("patch", self.patch, self.patches),
        ):
            if mine is None or theirs is None:
                continue
            for row, (a, b) in enumerate(zip(self.column(mine), theirs, strict=True)):
                if a != b:
                    raise InputError(
                        f"{self.table.where}: {name} {a!r} ({self.table.at(row)}) is {b!r} in "
                        f"{self.source.where}. Put the rows in the order of the embeddings."
                    )
        self.how.append("labels joined by the order of rows")
        rows = np.arange(n)
        return rows, rows

    def look_up(
        self, mine: Sequence[str], theirs: Sequence[str], by: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of equal keys. Each of ours must be there, and there only once."""
        keys = pa.array(theirs, pa.string())
        found = pc.index_in(pa.array(mine, pa.string()), value_set=keys)
        missing = np.flatnonzero(~found.is_valid().to_numpy(zero_copy_only=False))
        if missing.size:
            row = int(missing[0])
            raise self.absent(missing.size, len(mine), "patches", mine[row], row, by=by)
        positions = found.to_numpy().astype(np.int64)
        _, first, counts = np.unique(
            np.asarray(theirs, object).astype(str), return_index=True, return_counts=True
        )
        often = first[counts > 1]
        twice = sorted(set(often.tolist()) & set(positions.tolist()))
        if twice:
            raise InputError(
                f"{self.source.where}: holds {_say(theirs[twice[0]])} more than once, as row "
                f"{twice[0]} and later. Remove one, or name patches {SLIDE}-{PATCH}."
            )
        self.check_once(mine, positions, by)
        self.how.append(f"labels joined by {by} ({len(mine)} rows)")
        return np.arange(len(mine)), positions

    def check_once(self, mine: Sequence[str], positions: np.ndarray, by: str) -> None:
        """Two patches of the manifest must not be one row of the source."""
        if self.patch is None:
            unique, first = np.unique(positions, return_index=True)
            if len(unique) != len(positions):
                row = int(np.setdiff1d(np.arange(len(positions)), first)[0])
                raise InputError(
                    f"{self.table.where}: {_say(mine[row])} stands twice ({by}), the second time "
                    f"in {self.table.at(row)}. Remove one."
                )

    def absent(
        self, n: int, of: int, what: str, key: str, row: int, *, by: str = "slide"
    ) -> InputError:
        """What to say of keys that the source lacks."""
        known = self.slides if what == "slides" else self.patches
        near = (
            f" There are {', '.join(map(repr, dict.fromkeys(known or ())))}"[:120] if known else ""
        )
        return InputError(
            f"{self.source.where}: lacks {n} of the {of} {what} of {self.table.where} (by {by}), "
            f"the first is {_say(key)} ({self.table.at(row)}).{near + ' ...' if near else ''} "
            "Extract their features too, or leave them out of the manifest."
        )

    def check_places(self, picked: np.ndarray, positions: np.ndarray) -> None:
        """Coordinates that both sides have must agree."""
        if not self.has_xy or self.coords is None:
            return
        mine = np.asarray(self.manifest_places())[picked]
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


def _say(key: str) -> str:
    return repr(key.replace(NUL, ", "))
