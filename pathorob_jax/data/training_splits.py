"""Rows of the training, validation and test splits that an association schedule asks for.

``draw_repetitions`` takes the rows of a dataset and a schedule, and yields for each repetition the
training and validation rows of every split, and the test rows that all splits share.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.association_schedule import AssociationSchedule, Table
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE, Manifest

SEED_RANGE = 10_000
# If slides have several classes: lists of held-out slides to find, and attempts to find them.
HELD_OUT_LISTS, HELD_OUT_TRIES = 32, 2_000

# For each centre: lists of slides. A repetition keeps the slides of one list for testing.
HeldOut = Mapping[str, Sequence[Sequence[str]]]


@dataclass(frozen=True, eq=False)
class Repetition:
    """Rows of one repetition, as positions in the in-domain rows.

    Attributes:
        number: number of the repetition, from 0.
        seed: seed of its draws.
        schedule: schedule of the splits.
        cells: ``cells[class][center]`` int64[n] rows of a cell, whole slides in drawn order.
        test_starts: ``test_starts[class][center]`` position of the first test row of a cell.
    """

    number: int
    seed: int
    schedule: AssociationSchedule
    cells: tuple[tuple[np.ndarray, ...], ...]
    test_starts: Table

    def training(self, split: int) -> np.ndarray:
        """int64[n] training rows: the first slides of each cell, ordered by centre, then class."""
        n_rows = self.schedule.rows_per_slide
        return self._rows(lambda i, j: self._slides(split, i, j)[:, :n_rows].reshape(-1))

    def validation(self, split: int) -> np.ndarray:
        """int64[n] validation rows: those after the training rows of each cell.

        Their number is proportional to the training slides of the cell, ``rows_per_slide`` for the
        most slides that any cell has, and at least one row if the cell has training rows. Where no
        slide only validates, they are the ``held_rows`` of the training slides.
        """
        n_rows = self.schedule.rows_per_slide

        def part(i: int, j: int) -> np.ndarray:
            slides = self._slides(split, i, j)
            if self.schedule.held_rows:
                return slides[:, n_rows:].reshape(-1)
            n = slides.size
            return self.cells[i][j][n : n + max(n // self.schedule.most_slides, min(n, 1))]

        return self._rows(part)

    def test(self) -> np.ndarray:
        """int64[n] rows of slides that no split uses for training or validation."""
        return self._rows(lambda i, j: self.cells[i][j][self.test_starts[i][j] :])

    def _slides(self, split: int, i: int, j: int) -> np.ndarray:
        """int64[slides, rows] of the training slides of a cell."""
        n_rows = self.schedule.rows_per_slide + self.schedule.held_rows
        n_slides = self.schedule.slides[split][i][j]
        return self.cells[i][j][: n_slides * n_rows].reshape(n_slides, n_rows)

    def _rows(self, part: Callable[[int, int], np.ndarray]) -> np.ndarray:
        cells = itertools.product(range(len(self.schedule.centers)), range(len(self.cells)))
        return np.concatenate([part(i, j) for j, i in cells])


def draw_repetitions(
    rows: Manifest,
    schedule: AssociationSchedule,
    *,
    seed: int,
    repetitions: int,
    held_out: HeldOut | None = None,
) -> Iterator[Repetition]:
    """Draw the rows of the repetitions, in order. Each shuffles the result of the previous one.

    Whole slides of a cell are shuffled. If slides have several classes, a repetition first draws
    the slides of each centre that are kept for testing, the same for all classes.

    Args:
        rows: in-domain rows. Rows of other classes or centres are left out, and so are slides with
            fewer rows of a class than ``rows_per_slide``, and rows of a slide beyond that number.
        schedule: the splits.
        seed: seed from which the seeds of the repetitions are drawn.
        repetitions: number of repetitions, at least 1.
        held_out: lists of test slides to draw from; None: if a slide has several classes, lists are
            searched here, otherwise none are needed.

    Raises:
        UsageError: no repetitions, or too many.
        InputError: a cell has too few slides, or no choice of test slides serves all classes.

    Reference: PathoROB's downstream splits. Differs: the reference moves test cases in the order of
    a set of strings, which changes from process to process; here they are sorted.
    """
    if not 1 <= repetitions <= SEED_RANGE:
        raise UsageError(f"repetitions: expected 1 to {SEED_RANGE}, found {repetitions}.")
    cells = _slides_of_cells(rows, schedule)
    _check_cells(rows, schedule, cells)
    if held_out is None and _share_slides(cells):
        held_out = _find_held_out(rows, schedule, cells, seed)
    return _draw(rows, schedule, cells, seed=seed, repetitions=repetitions, held_out=held_out)


class _Run(NamedTuple):
    """Rows of a slide within a cell that can be drawn."""

    slide: str
    rows: np.ndarray


def _slides_of_cells(rows: Manifest, schedule: AssociationSchedule) -> list[list[list[_Run]]]:
    """``[class][center]`` runs of rows, slides in order of first appearance."""
    found: dict[tuple[str, str], dict[str, list[int]]] = {}
    columns = (rows.column(name) for name in (CLASS, CENTER, SLIDE))
    for i, (bio, center, slide) in enumerate(zip(*columns, strict=True)):
        found.setdefault((bio, center), {}).setdefault(slide, []).append(i)
    n = schedule.rows_per_slide + schedule.held_rows
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
    least = schedule.most_slides + schedule.validation_slides + 1
    short = [
        f"{bio} at {center}: {len(cells[i][j])}"
        for i, bio in enumerate(schedule.classes)
        for j, center in enumerate(schedule.centers)
        if len(cells[i][j]) < least
    ]
    if short:
        per_slide = schedule.rows_per_slide + schedule.held_rows
        raise InputError(
            f"{rows.source}: the schedule needs {least} slides with {per_slide} or "
            f"more rows of every class at every centre, found {'; '.join(short)}. Give the whole "
            "metadata file, or a schedule that these rows allow (schedule_from_manifest)."
        )


def _share_slides(cells: list[list[list[_Run]]]) -> bool:
    """Whether a slide has patches of several classes."""
    slides = [run.slide for row in cells for cell in row for run in cell]
    return len(set(slides)) < len(slides)


def _find_held_out(
    rows: Manifest, schedule: AssociationSchedule, cells: list[list[list[_Run]]], seed: int
) -> HeldOut:
    """Lists of test slides per centre that leave every cell enough slides to train on."""
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
            if left >= schedule.most_slides + schedule.validation_slides:
                lists.add(tuple(sorted(kept)))
            if len(lists) == HELD_OUT_LISTS:
                break
        if not lists:
            raise InputError(
                f"{rows.source}: slides of centre {center} hold several classes, and no choice of "
                "test slides was found that leaves "
                f"{schedule.most_slides + schedule.validation_slides} other slides of every class; "
                f"found {dict(zip(schedule.classes, map(len, inside), strict=True))} slides. Lower "
                "--slides_per_cell."
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
    n_rows = schedule.rows_per_slide + schedule.held_rows
    first_test = schedule.most_slides + schedule.validation_slides
    for number, repetition_seed in enumerate(
        random.Random(seed).sample(range(SEED_RANGE), repetitions)
    ):
        rng = random.Random(repetition_seed)
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
                # Slides in between may be training slides in the cell of another class.
                starts[i, j] = (len(row[j]) - len(last)) * n_rows
                if len(row[j]) - len(last) < first_test or not last:
                    raise InputError(
                        f"{rows.source}: of {len(row[j])} slides of {schedule.classes[i]} at "
                        f"{center}, {len(last)} are kept for testing; expected at least one, and "
                        f"{first_test} others. Give the lists that belong to these rows."
                    )
        yield Repetition(
            number=number,
            seed=repetition_seed,
            schedule=schedule,
            cells=tuple(tuple(np.concatenate([r.rows for r in cell]) for cell in c) for c in cells),
            test_starts=tuple(tuple(int(v) for v in row) for row in starts),
        )
