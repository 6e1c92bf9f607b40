"""Schedules of training splits in which class and centre are more and more associated.

A schedule is a table of training slides per class and centre for each split: one that was
published, or one that ``schedule_from_manifest`` makes for any dataset.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE, Manifest
from pathorob_jax.data.names import canonical

# Default of ``schedule_from_manifest``: number of splits.
MAX_SPLITS = 8
# Test slides of a cell: as many, or where slides are few as few.
TEST_SLIDES = (2, 1)
VALIDATION_SLIDES = 1

Table = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class AssociationSchedule:
    """Training splits of constant size and increasing association of class and centre.

    Attributes:
        classes: order of the first axis of the tables.
        centers: order of the second axis.
        slides: ``slides[s][class][center]`` training slides of split s.
        rows_per_slide: training patches per slide.
        held_rows: further patches of each training slide that validate; 0: a slide of its own
            validates. Both choose settings only, and test slides are neither.
    """

    classes: tuple[str, ...]
    centers: tuple[str, ...]
    slides: tuple[Table, ...]
    rows_per_slide: int
    held_rows: int = 0

    def __post_init__(self) -> None:
        for name in ("classes", "centers"):
            object.__setattr__(self, name, tuple(map(canonical, getattr(self, name))))
        shape = (len(self.slides), len(self.classes), len(self.centers))
        found = np.shape(self.slides)
        if found != shape or min(shape) < 2:
            raise InputError(
                "schedule: expected slides[split][class][center] for two or more of each, found "
                f"shape {found} for {len(self.classes)} classes and {len(self.centers)} centres."
            )
        totals = np.sum(self.slides, axis=(1, 2))
        if np.min(self.slides) < 0 or totals[0] == 0 or (totals != totals[0]).any():
            raise InputError(
                "schedule: expected numbers of slides with one positive sum for all splits, found "
                f"the sums {totals.tolist()}."
            )
        if np.sum(self.slides, axis=2).min() == 0:
            raise InputError("schedule: expected slides of every class in every split.")
        if self.rows_per_slide < 1:
            raise InputError(f"rows_per_slide: expected at least 1, found {self.rows_per_slide}.")
        if self.held_rows < 0:
            raise InputError(f"held_rows: expected 0 or more, found {self.held_rows}.")

    @property
    def n_splits(self) -> int:
        """Number of splits; the first has no association."""
        return len(self.slides)

    @property
    def n_training_rows(self) -> int:
        """Number of rows of every training split."""
        return int(np.sum(self.slides[0])) * self.rows_per_slide

    @property
    def most_slides(self) -> int:
        """Largest number of training slides of a cell in any split."""
        return int(np.max(self.slides))

    @property
    def validation_slides(self) -> int:
        """Slides of each cell that only validate."""
        return 0 if self.held_rows else VALIDATION_SLIDES

    def cramers_v(self) -> tuple[float, ...]:
        """Cramer's V of class and centre in each training split, in [0, 1]."""
        return tuple(cramers_v(split) for split in self.slides)


def cramers_v(table: Sequence[Sequence[int]] | np.ndarray) -> float:
    """Cramer's V of a contingency table; NaN if only one row or column is not empty."""
    counts = np.asarray(table, np.float64)
    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    if min(counts.shape) < 2:
        return float("nan")
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / counts.sum()
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    return float(np.sqrt(chi2 / (counts.sum() * (min(counts.shape) - 1))))


def schedule_from_manifest(
    rows: Manifest,
    *,
    classes: Sequence[str] | None = None,
    centers: Sequence[str] | None = None,
    slides_per_cell: int | None = None,
    rows_per_slide: int | None = None,
    test_slides: int | None = None,
    max_splits: int = MAX_SPLITS,
) -> AssociationSchedule:
    """Make a schedule for any dataset, from equal cells to each class at its home centre.

    With C classes and M centres, the home of class i is centre floor(i M / C) (with more centres
    than classes: all centres j with floor(j C / M) = i). In the first split every cell has n
    slides. From split to split, slides move from the other cells of a class to its home. So every
    class has M n slides in every split, and V increases from 0 to 1 if all classes have equally
    many homes and all centres equally many classes.

    Args:
        rows: rows of the dataset.
        classes: classes to tell apart, two or more; None: all.
        centers: in-domain centres, two or more; None: ordered by the slides of their rarest class,
            the first centres that give the most training rows. All others are out of domain.
        slides_per_cell: n; None: as many as all cells allow.
        rows_per_slide: patches per slide; None: the number that gives the most training rows.
        test_slides: slides per cell that no split uses for training or validation, at least 1;
            None: 2, or 1 where there are too few. Where that is not enough either, no slide
            validates alone: of the patches of each training slide some do (``held_rows``).
        max_splits: largest number of splits, at least 2.

    Raises:
        UsageError: an unknown class or centre, or an argument out of range.
        InputError: a cell has too few slides; the message contains the table.
    """
    for name, value, least in (
        ("slides_per_cell", slides_per_cell, 1),
        ("rows_per_slide", rows_per_slide, 1),
        ("test_slides", test_slides, 1),
        ("max_splits", max_splits, 2),
    ):
        if value is not None and value < least:
            raise UsageError(f"{name}: expected at least {least}, found {value}.")
    classes = _chosen(rows, CLASS, classes)
    names = _chosen(rows, CENTER, centers)
    # Sorted, so that slides with at least r rows are counted by bisection.
    sizes = {cell: np.sort(list(n.values())) for cell, n in _rows_of_slides(rows).items()}
    empty = np.zeros(0, np.int64)

    def count(center: str, n_rows: int) -> list[int]:
        """Slides of each class with at least ``n_rows`` rows."""
        by_class = [sizes.get((name, center), empty) for name in classes]
        return [len(rows) - int(np.searchsorted(rows, n_rows)) for rows in by_class]

    groups = [names]
    if centers is None:
        ranked = sorted(names, key=lambda name: (-min(count(name, 1)), name))
        groups = [tuple(sorted(ranked[:m])) for m in range(2, len(ranked) + 1)]
    steps = [rows_per_slide] if rows_per_slide else np.unique(np.concatenate([*sizes.values()]))
    tests = TEST_SLIDES if test_slides is None else (test_slides,)
    found: tuple[int, int, tuple[str, ...], int] | None = None
    for n_tests, n_validation in [*((n, VALIDATION_SLIDES) for n in tests), (tests[-1], 0)]:
        spare = n_tests + n_validation
        for group in groups:
            for step in (int(s) for s in steps):
                fewest = min(min(count(name, step)) for name in group)
                n = slides_per_cell or _most_slides_per_cell(
                    fewest - spare, len(classes), len(group)
                )
                wanted = _home_slides(n, len(classes), len(group)) + spare
                size = n * len(group) * step
                fits = n and wanted <= fewest and (n_validation or step > 1)
                if fits and (found is None or size >= found[0]):
                    found = (size, n, group, step)
        if found is not None:
            break
    if found is None:
        group, n_rows = groups[0], rows_per_slide or 1
        table = "; ".join(
            f"{c}: {dict(zip(classes, count(c, n_rows), strict=True))}" for c in group
        )
        # Of a slide with one row no other row can validate.
        spare = tests[-1] + (VALIDATION_SLIDES if rows_per_slide == 1 else 0)
        wanted = _home_slides(slides_per_cell or 1, len(classes), len(group)) + spare
        least_rows = 1 if rows_per_slide == 1 else max(n_rows, 2)
        lower = {
            "--slides_per_cell": slides_per_cell,
            "--rows_per_slide": rows_per_slide,
            "--test_slides": test_slides,
        }
        given = [flag for flag, value in lower.items() if (value or 1) > 1]
        mend = f"Lower {' or '.join(given)}, or leave" if given else "Leave"
        raise InputError(
            f"{rows.source}: expected {wanted} slides with {least_rows} or more patches in "
            f"every cell of {len(classes)} classes and {len(group)} centres ({tests[-1]} of them "
            f"for testing), found {table}. {mend} out the classes or centres with the fewest "
            "(--apd_classes, --apd_centers), or add slides."
        )
    _, n, group, step = found
    most = _home_slides(n, len(classes), len(group))
    held = 0 if n_validation else max(1, step // (most + 1))
    levels = np.unique(np.linspace(0, n, min(max_splits, n + 1)).round().astype(int))
    tables = tuple(_associate(n, int(d), len(classes), len(group)) for d in levels)
    return AssociationSchedule(classes, group, tables, step - held, held)


def _associate(n: int, moved: int, n_classes: int, n_centers: int) -> Table:
    """Slides of all cells: n each, minus ``moved`` slides that go to the homes of the class."""
    table = np.full((n_classes, n_centers), n)
    for i in range(n_classes):
        homes = _homes(i, n_classes, n_centers)
        table[i] -= moved
        table[i, homes] += moved
        share, rest = divmod(moved * (n_centers - len(homes)), len(homes))
        table[i, homes] += share
        table[i, homes[:rest]] += 1
    return tuple(tuple(int(v) for v in row) for row in table)


def _homes(i: int, n_classes: int, n_centers: int) -> list[int]:
    if n_classes >= n_centers:
        return [i * n_centers // n_classes]
    return [j for j in range(n_centers) if j * n_classes // n_centers == i]


def _home_slides(n: int, n_classes: int, n_centers: int) -> int:
    """Largest number of slides of a cell, reached in the last split."""
    return int(np.max(_associate(n, n, n_classes, n_centers)))


def _most_slides_per_cell(limit: int, n_classes: int, n_centers: int) -> int:
    """Largest n whose last split needs at most ``limit`` slides of a cell; 0: none."""
    n = max(limit, 0)
    while n and _home_slides(n, n_classes, n_centers) > limit:
        n -= 1
    return n


def _chosen(rows: Manifest, column: str, names: Sequence[str] | None) -> tuple[str, ...]:
    """The requested names, or all of a column. There must be two or more, and all must occur."""
    known = rows.factorize(column).names
    chosen = known if names is None else tuple(map(canonical, names))
    unknown = sorted(set(chosen) - set(known))
    if unknown or len(set(chosen)) != len(chosen):
        raise UsageError(
            f"{column}: expected names out of {list(known)}, each once, found {list(chosen)}."
        )
    if len(chosen) < 2:
        raise InputError(
            f"{rows.source}: expected two or more values of {column}, found {list(chosen)}; with "
            "one, class and centre cannot be associated."
        )
    return chosen


def _rows_of_slides(rows: Manifest) -> dict[tuple[str, str], dict[str, int]]:
    """Rows of each slide of each (class, centre), slides in order of first appearance."""
    out: dict[tuple[str, str], dict[str, int]] = {}
    columns = (rows.column(name) for name in (CLASS, CENTER, SLIDE))
    for bio, center, slide in zip(*columns, strict=True):
        cell = out.setdefault((bio, center), {})
        cell[slide] = cell.get(slide, 0) + 1
    return out
