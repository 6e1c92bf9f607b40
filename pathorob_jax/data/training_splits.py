"""Training splits whose class grows associated with the centre, and the rows that they draw.

Enters: a table of slides per class and centre for each split (published, or made here for any
manifest), and the rows of a dataset. Leaves: for each repetition the training and validation rows
of every split, and the test rows that all of them share.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE, Manifest

SEED_RANGE = 10_000
# Of a schedule made here: splits, and slides of a cell that no split trains on.
MAX_SPLITS, TEST_SLIDES = 8, 2
# Draws of held-out slides where slides hold several classes: how many are sought, and tries.
HELD_OUT_LISTS, HELD_OUT_TRIES = 32, 2_000
_VALIDATION_SLIDES = 1

Table = tuple[tuple[int, ...], ...]
# Of each centre: lists of slides, one of which a repetition keeps for testing.
HeldOut = Mapping[str, Sequence[Sequence[str]]]


@dataclass(frozen=True)
class AssociationSchedule:
    """Training splits of constant size and growing association of class and centre.

    Attributes:
        classes: order of the table's first axis.
        centers: order of its second.
        slides: ``slides[s][class][center]`` training slides of split s.
        rows_per_slide: patches per slide.
    """

    classes: tuple[str, ...]
    centers: tuple[str, ...]
    slides: tuple[Table, ...]
    rows_per_slide: int

    def __post_init__(self) -> None:
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

    @property
    def n_splits(self) -> int:
        """Splits, the first without association."""
        return len(self.slides)

    @property
    def n_training_rows(self) -> int:
        """Rows of every training split."""
        return int(np.sum(self.slides[0])) * self.rows_per_slide

    @property
    def most_slides(self) -> int:
        """Most training slides that a cell has in any split."""
        return int(np.max(self.slides))

    def cramers_v(self) -> tuple[float, ...]:
        """Cramer's V of class and centre in each training split, in [0, 1]."""
        return tuple(cramers_v(split) for split in self.slides)


def cramers_v(table: Sequence[Sequence[int]] | np.ndarray) -> float:
    """Cramer's V of a contingency table; NaN when it has one row or column that is not empty."""
    counts = np.asarray(table, np.float64)
    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    if min(counts.shape) < 2:
        return float("nan")
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / counts.sum()
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    return float(np.sqrt(chi2 / (counts.sum() * (min(counts.shape) - 1))))


@dataclass(frozen=True, eq=False)
class Repetition:
    """Rows of one repetition, as positions in the in-domain rows.

    Attributes:
        number: from 0.
        seed: of its draws.
        schedule: which the splits come from.
        cells: ``cells[class][center]`` int64[n] rows of a cell, whole slides in drawn order.
        test_starts: ``test_starts[class][center]`` where the test rows of a cell start.
    """

    number: int
    seed: int
    schedule: AssociationSchedule
    cells: tuple[tuple[np.ndarray, ...], ...]
    test_starts: Table

    def training(self, split: int) -> np.ndarray:
        """int64[n] rows to train on: the first of each cell; centres outer, classes inner."""
        return self._rows(lambda i, j: slice(self._n_training(split, i, j)))

    def validation(self, split: int) -> np.ndarray:
        """int64[n] rows to choose on, those after the training rows of each cell.

        The share of a slide's rows that the cell has of the most training slides; at least one row
        of a cell that is trained on.
        """

        def part(i: int, j: int) -> slice:
            n = self._n_training(split, i, j)
            return slice(n, n + max(n // self.schedule.most_slides, min(n, 1)))

        return self._rows(part)

    def test(self) -> np.ndarray:
        """int64[n] rows of slides that no split trains or chooses on."""
        return self._rows(lambda i, j: slice(self.test_starts[i][j], None))

    def _n_training(self, split: int, i: int, j: int) -> int:
        return self.schedule.slides[split][i][j] * self.schedule.rows_per_slide

    def _rows(self, part: Callable[[int, int], slice]) -> np.ndarray:
        cells = itertools.product(range(len(self.schedule.centers)), range(len(self.cells)))
        return np.concatenate([self.cells[i][j][part(i, j)] for j, i in cells])


def draw_repetitions(
    rows: Manifest,
    schedule: AssociationSchedule,
    *,
    seed: int,
    repetitions: int,
    held_out: HeldOut | None = None,
) -> Iterator[Repetition]:
    """The repetitions' rows, in order; each shuffles on what the one before it left.

    Slides of a cell are shuffled whole. Where slides hold several classes, a repetition first draws
    the slides of each centre that are kept for testing, for all classes alike.

    Args:
        rows: in-domain rows; those of other classes or centres are left out, as are slides with
            fewer rows of a class than ``rows_per_slide``, and rows of a slide beyond that number.
        schedule: splits.
        seed: of the repetitions' own seeds.
        repetitions: how many, at least 1.
        held_out: lists to draw from; None: where a slide holds several classes, they are sought
            here, else nothing needs to be kept.

    Raises:
        UsageError: no or too many repetitions.
        InputError: a cell has too few slides, or no split of the slides serves all classes.

    Reference: PathoROB's downstream splits. Differs: its test cases are moved in the order of a
    set of strings, which changes with the process; here in sorted order.
    """
    if not 1 <= repetitions <= SEED_RANGE:
        raise UsageError(f"repetitions: expected 1 to {SEED_RANGE}, found {repetitions}.")
    cells = _slides_of_cells(rows, schedule)
    _check_cells(rows, schedule, cells)
    if held_out is None and _share_slides(cells):
        held_out = _find_held_out(rows, schedule, cells, seed)
    return _draw(rows, schedule, cells, seed=seed, repetitions=repetitions, held_out=held_out)


def schedule_from_manifest(
    rows: Manifest,
    *,
    classes: Sequence[str] | None = None,
    centers: Sequence[str] | None = None,
    slides_per_cell: int | None = None,
    rows_per_slide: int | None = None,
    test_slides: int = TEST_SLIDES,
    max_splits: int = MAX_SPLITS,
) -> AssociationSchedule:
    """A schedule for any dataset: from every cell alike to each class at its own centre.

    With C classes and M centres, class i is at home at centre floor(i M / C) (with more centres
    than classes: at those j with floor(j C / M) = i). In the first split every cell has n slides;
    from split to split all other cells give slides to the home of their class. So every class has M
    n slides throughout, and V rises from 0 to 1 where all classes and centres have a home alike.

    Args:
        rows: of the dataset.
        classes: to tell apart, two or more; None: all.
        centers: in-domain, two or more; None: those that, taken in the order of their scarcest
            class, give the most training rows. All others are out of domain.
        slides_per_cell: n; None: as many as all cells allow.
        rows_per_slide: patches of each slide; None: the number that gives the most training rows.
        test_slides: of every cell, that no split trains or chooses on, at least 1.
        max_splits: most splits, at least 2.

    Raises:
        UsageError: an unknown class or centre, or an argument out of range.
        InputError: a cell has too few slides; the message has the table.
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
    # Sorted, so that slides with r rows or more are counted by bisection.
    sizes = {cell: np.sort(list(n.values())) for cell, n in _rows_of_slides(rows).items()}
    empty = np.zeros(0, np.int64)

    def count(center: str, n_rows: int) -> list[int]:
        """Slides of each class with at least so many rows."""
        found = [sizes.get((name, center), empty) for name in classes]
        return [len(f) - int(np.searchsorted(f, n_rows)) for f in found]

    groups = [names]
    if centers is None:
        ranked = sorted(names, key=lambda name: (-min(count(name, 1)), name))
        groups = [tuple(sorted(ranked[:m])) for m in range(2, len(ranked) + 1)]
    steps = [rows_per_slide] if rows_per_slide else np.unique(np.concatenate([*sizes.values()]))
    best: tuple[int, int, tuple[str, ...], int] | None = None
    for group in groups:
        for step in (int(s) for s in steps):
            fewest = min(min(count(name, step)) for name in group)
            n = slides_per_cell or _most_slides_per_cell(
                fewest - _VALIDATION_SLIDES - test_slides, len(classes), len(group)
            )
            wanted = _home_slides(n, len(classes), len(group)) + _VALIDATION_SLIDES + test_slides
            size = n * len(group) * step
            if n and wanted <= fewest and (best is None or size >= best[0]):
                best = (size, n, group, step)
    if best is None:
        n_rows, n_slides = rows_per_slide or 1, slides_per_cell or 1
        group = groups[0]
        wanted = _home_slides(n_slides, len(classes), len(group)) + _VALIDATION_SLIDES + test_slides
        table = "; ".join(
            f"{c}: {dict(zip(classes, count(c, n_rows), strict=True))}" for c in group
        )
        raise InputError(
            f"{rows.source}: expected {wanted} slides with {n_rows} or more rows in every cell of "
            f"{len(classes)} classes and {len(group)} centres ({test_slides} of them for testing), "
            f"found {table}. Leave classes or centres out, or lower slides_per_cell, "
            "rows_per_slide or test_slides."
        )
    _, n, group, step = best
    levels = np.unique(np.linspace(0, n, min(max_splits, n + 1)).round().astype(int))
    tables = tuple(_associate(n, int(d), len(classes), len(group)) for d in levels)
    return AssociationSchedule(classes, group, tables, step)


def _associate(n: int, moved: int, n_classes: int, n_centers: int) -> Table:
    """Slides of all cells: n each, but every other cell gives ``moved`` to its class's homes."""
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
    """Most slides of a cell, in the last split."""
    return int(np.max(_associate(n, n, n_classes, n_centers)))


def _most_slides_per_cell(limit: int, n_classes: int, n_centers: int) -> int:
    """Largest n whose last split needs at most ``limit`` slides of a cell; 0: none."""
    n = max(limit, 0)
    while n and _home_slides(n, n_classes, n_centers) > limit:
        n -= 1
    return n


def _chosen(rows: Manifest, column: str, names: Sequence[str] | None) -> tuple[str, ...]:
    """The names asked for, or all of a column; two or more that occur."""
    known = rows.factorize(column).names
    chosen = known if names is None else tuple(names)
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


class _Run(NamedTuple):
    """The rows of a slide in a cell that may be drawn."""

    slide: str
    rows: np.ndarray


def _slides_of_cells(rows: Manifest, schedule: AssociationSchedule) -> list[list[list[_Run]]]:
    """``[class][center]`` runs of rows, slides in order of first appearance."""
    found: dict[tuple[str, str], dict[str, list[int]]] = {}
    columns = (rows.column(name) for name in (CLASS, CENTER, SLIDE))
    for i, (bio, center, slide) in enumerate(zip(*columns, strict=True)):
        found.setdefault((bio, center), {}).setdefault(slide, []).append(i)
    n = schedule.rows_per_slide
    return [
        [
            [
                _Run(slide, np.asarray(positions[:n]))
                for slide, positions in found.get((bio, center), {}).items()
                if len(positions) >= n
            ]
            for center in schedule.centers
        ]
        for bio in schedule.classes
    ]


def _check_cells(
    rows: Manifest, schedule: AssociationSchedule, cells: list[list[list[_Run]]]
) -> None:
    least = schedule.most_slides + _VALIDATION_SLIDES + 1
    short = [
        f"{bio} at {center}: {len(cells[i][j])}"
        for i, bio in enumerate(schedule.classes)
        for j, center in enumerate(schedule.centers)
        if len(cells[i][j]) < least
    ]
    if short:
        raise InputError(
            f"{rows.source}: the schedule needs {least} slides with {schedule.rows_per_slide} or "
            f"more rows of every class at every centre, found {'; '.join(short)}. Give the whole "
            "metadata file, or a schedule that these rows allow (schedule_from_manifest)."
        )


def _share_slides(cells: list[list[list[_Run]]]) -> bool:
    """Whether a slide lies in cells of several classes."""
    slides = [run.slide for row in cells for cell in row for run in cell]
    return len(set(slides)) < len(slides)


def _find_held_out(
    rows: Manifest, schedule: AssociationSchedule, cells: list[list[list[_Run]]], seed: int
) -> HeldOut:
    """Lists of slides per centre that leave every cell slides to test and enough to train on."""
    rng = random.Random(seed)
    out: dict[str, list[list[str]]] = {}
    for j, center in enumerate(schedule.centers):
        inside = [[run.slide for run in row[j]] for row in cells]
        slides = sorted(set().union(*inside))
        lists: set[tuple[str, ...]] = set()
        for _ in range(HELD_OUT_TRIES):
            rng.shuffle(slides)
            kept: set[str] = set()
            for slide in slides:
                # A slide is worth keeping when one of its classes has none kept yet.
                if any(slide in cell and not kept & set(cell) for cell in inside):
                    kept.add(slide)
            left = min(len(set(cell) - kept) for cell in inside)
            if left >= schedule.most_slides + _VALIDATION_SLIDES:
                lists.add(tuple(sorted(kept)))
            if len(lists) == HELD_OUT_LISTS:
                break
        if not lists:
            raise InputError(
                f"{rows.source}: slides of centre {center} hold several classes, and no choice of "
                "test slides was found that leaves "
                f"{schedule.most_slides + _VALIDATION_SLIDES} other slides of every class; found "
                f"{dict(zip(schedule.classes, map(len, inside), strict=True))} slides. Use fewer "
                "slides_per_cell."
            )
        out[center] = [list(slides) for slides in sorted(lists)]
    return out


def _draw(
    rows: Manifest,
    schedule: AssociationSchedule,
    cells: list[list[list[_Run]]],
    *,
    seed: int,
    repetitions: int,
    held_out: HeldOut | None,
) -> Iterator[Repetition]:
    n_rows, first_test = schedule.rows_per_slide, schedule.most_slides + _VALIDATION_SLIDES
    for number, own in enumerate(random.Random(seed).sample(range(SEED_RANGE), repetitions)):
        rng = random.Random(own)
        kept: dict[str, list[str]] = {}
        for center in schedule.centers if held_out is not None else ():
            lists = (held_out or {})[center]
            kept[center] = sorted(set(lists[rng.randint(0, len(lists) - 1)]))
        starts = np.full((len(cells), len(schedule.centers)), first_test * n_rows)
        for j, center in enumerate(schedule.centers):
            for i, row in enumerate(cells):
                rng.shuffle(row[j])
                if held_out is None:
                    continue
                inside = {run.slide for run in row[j]}
                last = [slide for slide in kept[center] if slide in inside]
                for slide in last:
                    k = next(k for k, run in enumerate(row[j]) if run.slide == slide)
                    row[j].append(row[j].pop(k))
                # Slides between may be trained on in the cell of another class.
                starts[i, j] = (len(row[j]) - len(last)) * n_rows
                if len(row[j]) - len(last) < first_test or not last:
                    raise InputError(
                        f"{rows.source}: of {len(row[j])} slides of {schedule.classes[i]} at "
                        f"{center}, {len(last)} are kept for testing; expected at least one, and "
                        f"{first_test} others. Give the lists that belong to these rows."
                    )
        yield Repetition(
            number=number,
            seed=own,
            schedule=schedule,
            cells=tuple(tuple(np.concatenate([r.rows for r in cell]) for cell in c) for c in cells),
            test_starts=tuple(tuple(int(v) for v in row) for row in starts),
        )
