"""Tables of slides: a label, or a time and whether the event was seen, for each slide.

``slide_id`` names the slide; ``label``, or ``time`` and ``event``, is what is to be predicted.
Other columns may be the medical centre (else that of the patches) and ``split``, which says where a
slide belongs: ``train``, ``validation`` or ``test``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pathorob_jax.core import digests
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import table_files
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE, Manifest, as_manifest
from pathorob_jax.data.names import canonical

# Columns of a patch's place on its slide.
PLACE = ("x", "y")
LABEL, TIME, EVENT, SPLIT = "label", "time", "event", "split"
TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
EVENTS = {"0": False, "1": True, "false": False, "true": True}


@dataclass(frozen=True, eq=False, repr=False)
class SlideTable:
    """Checked rows of slides, one each. Build one with ``read_slide_table``.

    Attributes:
        source: file (or description) to name in messages.
        columns: object[N] of str by name; "" where an optional cell is empty.
    """

    source: str
    columns: dict[str, np.ndarray]

    def __repr__(self) -> str:
        return f"SlideTable({self.source}: {len(self)} slides, {', '.join(self.columns)})"

    def __len__(self) -> int:
        return len(self.slides)

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    @property
    def slides(self) -> np.ndarray:
        """object[N] names of the slides."""
        return self.columns[SLIDE]

    @property
    def is_survival(self) -> bool:
        """Whether times are to be predicted, and no labels."""
        return TIME in self.columns

    @property
    def time(self) -> np.ndarray:
        """float64[N] times of events or censoring."""
        return self.columns[TIME].astype(np.float64)

    @property
    def event(self) -> np.ndarray:
        """bool[N] whether the event was observed."""
        return np.array([EVENTS[value.lower()] for value in self.columns[EVENT]], bool)

    def in_split(self, name: str) -> np.ndarray:
        """bool[N] slides of a split."""
        return self.columns[SPLIT] == name

    def fingerprint(self) -> str:
        """Hex sha256 of all columns."""
        return digests.digest_json({name: list(c) for name, c in sorted(self.columns.items())})


def read_slide_table(data: Any) -> SlideTable:
    """Read and check a table of slides.

    Args:
        data: a ``.csv`` or ``.parquet`` file, an object with ``__arrow_c_stream__``, or a mapping
            of column name -> values.

    Raises:
        FileNotFoundError: no such file.
        InputError: a column is missing, a cell is empty or not what its column holds, a slide
            appears twice or lies in two splits, the training slides have one class or no observed
            event, or a split that is needed has no slide.
    """
    source, lines = "slide table", None
    if isinstance(data, str):
        source = data
        raw, lines = table_files.read_table(data, needed=(SLIDE,))
    else:
        raw = table_files.as_table(data, source=source, needed=(SLIDE,))
    columns = _as_columns(raw, source)
    places = _Places(source, lines)
    _check_columns(columns, source)
    for name in (SLIDE, LABEL, TIME, EVENT, SPLIT):
        if name in columns and (empty := np.flatnonzero(columns[name] == "")).size:
            raise InputError(
                f"{source}: column {name!r} is empty in {empty.size} rows, the first is "
                f"{places.name(empty[0])}. Fill or remove them."
            )
    table = SlideTable(source, columns)
    _check_values(table, places)
    _check_slides(table, places)
    if SPLIT in table:
        _check_splits(table)
    return table


class _Places:
    """Where rows of the table are found."""

    def __init__(self, source: str, lines: np.ndarray | None):
        self.source, self.lines = source, lines

    def name(self, row: int) -> str:
        if self.lines is not None:
            return f"line {self.lines[row]}"
        return f"row {row}, counting from 0"


def _as_columns(raw: pa.Table, source: str) -> dict[str, np.ndarray]:
    columns = {}
    for name in table_files.text_columns(raw.schema, ()):
        try:
            text = table_files.as_text(raw.column(name))
        except table_files.UNREADABLE:
            continue
        columns[canonical(name)] = np.array([v or "" for v in text.to_pylist()], object)
    if SLIDE not in columns or not len(columns[SLIDE]):
        raise InputError(
            f"{source}: expected a column {SLIDE!r} with one row for each slide, found "
            f"{raw.num_rows} rows of {raw.column_names}."
        )
    return columns


def _check_columns(columns: dict[str, np.ndarray], source: str) -> None:
    survival = [name for name in (TIME, EVENT) if name in columns]
    if LABEL in columns and survival:
        raise InputError(
            f"{source}: expected {LABEL!r}, or {TIME!r} and {EVENT!r}, found both; one table "
            "predicts one thing. Remove what is not to be predicted."
        )
    if LABEL not in columns and len(survival) < 2:
        raise InputError(
            f"{source}: expected a column {LABEL!r}, or {TIME!r} and {EVENT!r} for survival, found "
            f"{list(columns)}. Rename yours."
        )
    if survival and SPLIT not in columns:
        raise InputError(
            f"{source}: expected a column {SPLIT!r} ({', '.join(SPLITS)}) beside {TIME!r} and "
            f"{EVENT!r}, found {list(columns)}; for survival no schedule of classes can be drawn."
        )


def _check_values(table: SlideTable, places: _Places) -> None:
    if table.is_survival:
        for row, (time, event) in enumerate(
            zip(table.columns[TIME], table.columns[EVENT], strict=True)
        ):
            if not _is_time(time):
                raise InputError(
                    f"{table.source}: {places.name(row)}: expected a {TIME} of 0 or more, found "
                    f"{time!r}. Correct it."
                )
            if event.lower() not in EVENTS:
                raise InputError(
                    f"{table.source}: {places.name(row)}: expected {EVENT} to be 1 (observed) or 0 "
                    f"(censored), found {event!r}. Correct it."
                )
    if SPLIT in table:
        for row, split in enumerate(table.columns[SPLIT]):
            if split not in SPLITS:
                raise InputError(
                    f"{table.source}: {places.name(row)}: expected {SPLIT} to be one of "
                    f"{', '.join(SPLITS)}, found {split!r}. Correct it."
                )


def _is_time(text: str) -> bool:
    try:
        return 0 <= float(text) < np.inf
    except ValueError:
        return False


def _check_slides(table: SlideTable, places: _Places) -> None:
    first: dict[str, int] = {}
    for row, slide in enumerate(table.slides):
        before = first.setdefault(slide, row)
        if before == row:
            continue
        both = f"({places.name(before)} and {places.name(row)})"
        if SPLIT in table and table.columns[SPLIT][before] != table.columns[SPLIT][row]:
            splits = [table.columns[SPLIT][i] for i in (before, row)]
            raise InputError(
                f"{table.source}: slide {slide!r} lies in two splits, {splits[0]} and {splits[1]} "
                f"{both}; what is learned from its patches would be tested on them. Keep one row."
            )
        raise InputError(f"{table.source}: slide {slide!r} appears twice {both}. Keep one row.")


def _check_splits(table: SlideTable) -> None:
    for name in (TRAIN, TEST):
        if not table.in_split(name).any():
            raise InputError(
                f"{table.source}: expected slides of the splits {TRAIN} and {TEST}, found none of "
                f"{name}. Give some, or leave the column {SPLIT!r} out."
            )
    check_training(table, table.in_split(TRAIN), what="training slides")


def check_training(table: SlideTable, chosen: np.ndarray, *, what: str) -> None:
    """Raise InputError unless slides can be learned from.

    Args:
        table: slides.
        chosen: bool[N] the training slides.
        what: which slides they are, for the message.
    """
    if table.is_survival:
        if not table.event[chosen].any():
            raise InputError(
                f"{table.source}: none of the {int(chosen.sum())} {what} has an observed "
                f"event; survival cannot be learned from them. Add slides with {EVENT} 1."
            )
        return
    classes = sorted(set(table.columns[LABEL][chosen]))
    if len(classes) < 2:
        raise InputError(
            f"{table.source}: expected two or more classes among the {what}, found "
            f"{classes}; there is nothing to tell apart. Add slides of another class."
        )
    if SPLIT in table:
        strange = sorted(set(table.columns[LABEL]) - set(classes))
        if strange:
            raise InputError(
                f"{table.source}: none of the {what} is of {', '.join(strange)}, as other slides "
                "are; a class that was not learned cannot be called. Remove it, or add slides."
            )


def join_patches(rows: Manifest, table: SlideTable, *, center_column: str = CENTER) -> Manifest:
    """The patches of the table's slides, with the table's labels in the place of their class.

    Of survival, whose slides have no class, all patches are of one class.

    Args:
        rows: patches, of these slides and perhaps of others.
        table: slides.
        center_column: column of the table that takes the centre's place, if it has one.

    Raises:
        InputError: a slide has no patch.
    """
    place = {slide: i for i, slide in enumerate(table.slides)}
    of_row = np.array([place.get(slide, -1) for slide in rows.column(SLIDE)], np.int64)
    empty = np.setdiff1d(np.arange(len(table)), of_row)
    if empty.size:
        raise InputError(
            f"{table.source}: {empty.size} of {len(table)} slides have no patch in {rows.source}, "
            f"the first is {table.slides[empty[0]]!r}. Extract or import their patches, or remove "
            "the rows."
        )
    kept = np.flatnonzero(of_row >= 0)
    found, of_row = rows.take(kept), of_row[kept]
    columns = {name: found.column(name) for name in (SLIDE, PATCH, CENTER, *PLACE) if name in found}
    columns[CLASS] = np.full(len(kept), "slide", object)
    if LABEL in table:
        columns[CLASS] = table.columns[LABEL][of_row]
    if center_column in table:
        columns[CENTER] = table.columns[center_column][of_row]
    return as_manifest(
        {name: list(values) for name, values in columns.items()},
        source=f"{rows.source} with {table.source}",
    )
