"""The table of classes and centres that a robustifier is fitted on, and what it does not allow."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Int
from pathorob_jax.data.association_schedule import cramers_v

# Association of class and centre above which a fit is warned of.
HIGH_V = 0.5


@dataclass(frozen=True)
class FitTable:
    """Rows of a fit by class and centre.

    Attributes:
        classes: names of the biological classes.
        centers: names of the medical centres.
        rows: rows of each class (outer) and centre (inner).
        slides: slides of each class and centre; a slide of several classes counts in each.
        cramers_v: association of class and centre over rows; NaN with one class or centre.
        warnings: what a reader should know of the fit.
    """

    classes: list[str]
    centers: list[str]
    rows: list[list[int]]
    slides: list[list[int]]
    cramers_v: float
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        cells = [["", *self.centers]]
        for name, rows, slides in zip(self.classes, self.rows, self.slides, strict=True):
            cells.append([name, *(f"{r} ({s})" for r, s in zip(rows, slides, strict=True))])
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
        return "\n".join(line.rstrip() for line in ["rows (slides)", *lines])


def make_fit_table(
    class_id: Int[np.ndarray, " N"],
    center_id: Int[np.ndarray, " N"],
    slide_id: Int[np.ndarray, " N"],
    *,
    classes: Sequence[str],
    centers: Sequence[str],
) -> FitTable:
    """Count rows and slides of every class and centre."""
    n_classes, n_centers = len(classes), len(centers)
    rows = np.zeros((n_classes, n_centers), np.int64)
    np.add.at(rows, (class_id, center_id), 1)
    slides = np.zeros_like(rows)
    once = np.unique(np.stack([class_id, center_id, slide_id]), axis=1)
    np.add.at(slides, (once[0], once[1]), 1)
    v = cramers_v(rows)
    warnings = []
    if v > HIGH_V:
        warnings.append(
            f"class and centre of the rows of the fit are associated (Cramer's V {v:.2f}, above "
            f"{HIGH_V}): a method may take the class for the centre and remove it."
        )
    alone = [name for name, row in zip(classes, rows, strict=True) if (row > 0).sum() == 1]
    if alone and n_centers > 1:
        warnings.append(
            f"{', '.join(alone)}: rows in one centre only; what tells this class from others "
            "cannot be told from what tells that centre from others."
        )
    return FitTable(list(classes), list(centers), rows.tolist(), slides.tolist(), v, warnings)


def check_fit_table(table: FitTable, center_slides: Sequence[int], *, source: str) -> None:
    """Refuse rows from which no method can tell a centre's effect.

    Args:
        table: rows of the fit.
        center_slides: slides of each centre.
        source: name of the rows for messages.

    Raises:
        InputError: there is one centre, a centre has one row or one slide, or the class is
            determined by the centre. The message holds the table.
    """
    rows = np.array(table.rows)
    of_center = rows.sum(0)
    why = ""
    if len(table.centers) < 2:
        why = (
            f"expected two medical centres or more, found {table.centers}; with one centre there "
            "is no difference between centres to take out"
        )
    for name, n, n_slides in zip(table.centers, of_center, center_slides, strict=True):
        if n < 2 or n_slides < 2:
            what = "one row" if n < 2 else "one slide"
            why = why or (
                f"centre {name!r} has {what}, which does not tell the centre from its slide; add "
                "slides, or leave the centre out of the rows of the fit"
            )
    if not why and len(table.classes) > 1 and ((rows > 0).sum(0) == 1).all():
        why = (
            "the class is determined by the centre (each centre has rows of one class), so that "
            "taking out the centre takes out the class; fit on rows in which centres share classes"
        )
    if why:
        raise InputError(f"{source}: {why}.\n{table}")
