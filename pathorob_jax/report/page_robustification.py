"""Section of robustified models: each beside its parent, and the methods of a parent together."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.report import csv_tables, palette, tile_figures
from pathorob_jax.report.section import Block, Draw, Section, encode_name, file_name
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Row,
    Table,
    format_interval,
    format_number,
    format_share,
    format_signed,
    number_cell,
    sort_key,
)
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.robustification import (
    ACCURACY,
    AFTER,
    AUC,
    BEFORE,
    INDEX,
    STORED,
    CenterChange,
    Paired,
    RobustificationResult,
    helped,
    list_losses,
)
from pathorob_jax.robustify.tile_examples import Example, read_examples

PROBES = (("linear", "linear"), ("knn", "neighbours"), ("mlp", "network"))
COLUMNS = [
    "robustness index",
    "biology, AUC",
    "biology, neighbours",
    "effective rank",
    "variance removed",
    "neighbours kept",
    *(f"centre left, {words}" for _, words in PROBES),
    "V of the fit",
]
NAMES = {INDEX: "robustness index", AUC: "biology, AUC", ACCURACY: "biology, neighbours"}
T = TypeVar("T")
WHY_RESIDUAL = "undefined; the warnings say why"


def build_section(collection: Collection, draw: Draw) -> Section:
    """One table for each parent and dataset, one row per robustified model."""
    groups = group_by_parent(collection)
    every = [record for records in groups.values() for record in records]
    context = {
        "groups": [
            _describe_group(*key, found)
            | {"tiles": [_describe_tiles(collection.root, r, draw) for r in found if r.is_of_tiles]}
            for key, found in groups.items()
        ]
    }
    tables = {
        "robustification_pairs.csv": csv_tables.format_pairs(every),
        "robustification_centers.csv": csv_tables.format_center_changes(every),
    }
    links = (("robustification", "robustification"),)
    answer = " ".join(write_answer(*key, found) for key, found in groups.items())
    return Section([Block("robustification.jinja", context, links)], tables, answer)


def group_by_parent(
    collection: Collection,
) -> dict[tuple[str, str], list[RobustificationResult]]:
    """Records by (parent, dataset), the largest gain first."""
    groups: dict[tuple[str, str], list[RobustificationResult]] = {}
    for record in collection.of_kind(RobustificationResult):
        groups.setdefault((record.parent, record.dataset), []).append(record)
    return {key: sorted(found, key=_by_gain) for key, found in sorted(groups.items())}


def _by_gain(record: RobustificationResult) -> tuple[float, str]:
    return (-record.gain if math.isfinite(record.gain) else math.inf, record.model)


def write_answer(parent: str, dataset: str, records: Sequence[RobustificationResult]) -> str:
    """The verdict on the method that helped most, or that none did.

    A method whose fit used the classes of the same rows comes after those that did not.
    """
    helpful = [r for r in records if helped(r.paired)]
    helpful.sort(key=lambda record: not record.is_honest)
    where = f"{parent} on {name_dataset(dataset)}"
    if helpful:
        return f"Robustifying {where}: {helpful[0].verdict}"
    if len(records) == 1:
        return f"Robustifying {where}: {records[0].verdict}"
    return f"Robustifying {where}: none of {len(records)} methods helped."


def _describe_group(
    parent: str, dataset: str, records: Sequence[RobustificationResult]
) -> dict[str, Any]:
    return {
        "title": f"{parent} on {name_dataset(dataset)}",
        "table": build_changes(parent, records),
        "verdicts": [(record.model, record.verdict) for record in records],
        "centers": build_centers(records),
        "classes": build_classes(records),
        "numbers": build_numbers(records),
    }


def _describe_tiles(root: str | None, record: RobustificationResult, draw: Draw) -> dict[str, Any]:
    """Tiles before and after of a stain method; or why there are none."""
    found: list[Example] = []
    why = "there are no pictures beside the record"
    try:
        if root is not None:
            found = read_examples(files.join(root, record.model, record.dataset))
    except InputError as error:
        why = f"{files.join(record.model, record.dataset)}: {str(error).rpartition(': ')[2]}"
    title = f"{record.model} on {name_dataset(record.dataset)}"
    if not found:
        return {"title": title, "why": why.rstrip(".")}
    return {
        "title": title,
        "table": tile_figures.build_outcomes(found),
        "pictures": draw(
            f"{file_name('tiles', record.dataset)}_{encode_name(record.model)}",
            f"Tiles before and after {record.method}, {title}",
            lambda: tile_figures.draw_examples(title, found),
        ),
    }


def build_changes(parent: str, records: Sequence[RobustificationResult]) -> Table:
    """What was bought and lost: the parent first, then one row per robustified model."""
    rows = [Row(parent, "before", _cells_before(records[0]))]
    for record in records:
        notes = [f"fit on {record.fit_on.replace('_', ' ')}"]
        notes += ["saw the classes"] if record.used_labels else []
        rows.append(Row(record.model, "\n".join(notes), _cells_after(record)))
    return Table("Before and after", COLUMNS, rows)


def _cells_before(record: RobustificationResult) -> list[Cell]:
    biology, paired = record.biology, record.paired
    index = paired[INDEX].before
    return [
        Cell(format_number(index), background=palette.heat(index), sort=sort_key(index)),
        number_cell(paired[AUC].before),
        number_cell(paired[ACCURACY].before),
        _rank_cell(biology.effective_rank[BEFORE]),
        Cell(UNDEFINED),
        Cell(UNDEFINED),
        *(
            number_cell(record.residual_center[name].auc_before, why=WHY_RESIDUAL)
            for name, _ in PROBES
        ),
        Cell(UNDEFINED),
    ]


def _cells_after(record: RobustificationResult) -> list[Cell]:
    biology, paired, lost = record.biology, record.paired, list_losses(record.paired)
    index = paired[INDEX].after
    cells = [
        Cell(
            format_number(index),
            note=_change(paired[INDEX]),
            background=palette.heat(index),
            sort=sort_key(index),
        )
    ]
    cells += [
        Cell(
            format_number(paired[name].after),
            note=_change(paired[name]),
            warning="lost" if name in lost else "",
            sort=sort_key(paired[name].after),
        )
        for name in (AUC, ACCURACY)
    ]
    cells.append(_rank_cell(biology.effective_rank[AFTER]))
    for share in (biology.variance_removed, biology.neighbors_kept):
        cells.append(Cell(_percent(share), sort=sort_key(share)))
    stored = "\nas stored" if record.residual_rows == STORED else ""
    for name, _ in PROBES:
        residual = record.residual_center[name]
        known = math.isfinite(residual.auc)
        cells.append(
            Cell(
                format_number(residual.auc),
                title="" if known else WHY_RESIDUAL,
                note=f"chance ≤ {format_number(residual.null.p95)}{stored}" if known else "",
                sort=sort_key(residual.auc),
            )
        )
    v = record.cramers_v_fit
    return [*cells, Cell(f"{v:.2f}" if math.isfinite(v) else UNDEFINED, sort=sort_key(v))]


def build_centers(records: Sequence[RobustificationResult]) -> Table:
    """Centres by models: how far the centre moved, its scale, and its index before and after."""

    def show(change: CenterChange) -> Cell:
        index = change.robustness_index
        return Cell(
            _arrow(index),
            note=f"shift {change.shift:.2f}\nscale × {change.scale:.2f}",
            background=palette.heat(index[AFTER]),
            sort=sort_key(index[AFTER]),
        )

    why = "this model's rows hold no such centre"
    rows = _rows_by_name([r.per_center for r in records], show, why=why)
    return Table("Centres", [record.model for record in records], rows)


def _rows_by_name(
    columns: Sequence[Mapping[str, T]], show: Callable[[T], Cell], *, why: str, note: str = ""
) -> list[Row]:
    """One row for each name of any column; a column without it has a dash, and ``why``."""
    return [
        Row(
            NAMES.get(name, name),
            note,
            [show(c[name]) if name in c else Cell(UNDEFINED, title=why) for c in columns],
        )
        for name in dict.fromkeys(name for column in columns for name in column)
    ]


def build_classes(records: Sequence[RobustificationResult]) -> Table:
    """Classes and centres by models: AUC of the class, and the neighbours' vote, after less before.

    The rows of a class are its own area and recall; those of a centre are over its classes.
    """

    def show(scores: tuple[dict[str, float], dict[str, float]]) -> Cell:
        area, vote = scores
        return Cell(
            _arrow(area),
            note=f"neighbours\n{_arrow(vote)}",
            sort=sort_key(area[AFTER] - area[BEFORE]),
        )

    rows = []
    for kind, areas, votes in (
        ("class", "auc_per_class", "knn_recall_per_class"),
        ("centre", "auc_per_center", "knn_balanced_accuracy_per_center"),
    ):
        columns = []
        for record in records:
            by_name = getattr(record.biology, areas), getattr(record.biology, votes)
            columns.append(
                {n: (by_name[0][n], by_name[1][n]) for n in by_name[0] if n in by_name[1]}
            )
        why = f"this model's rows hold no such {kind}"
        rows += _rows_by_name(columns, show, why=why, note=kind)
    return Table("Biology by class and centre", [record.model for record in records], rows)


def build_numbers(records: Sequence[RobustificationResult]) -> Table:
    """Paired numbers by models: the difference with its interval."""

    def show(number: Paired) -> Cell:
        return Cell(
            format_signed(number.difference),
            note=_ends(number),
            title=f"{format_number(number.before)} → {format_number(number.after)}",
            sort=sort_key(number.difference),
        )

    why = "no record of this metric before and after"
    rows = _rows_by_name([r.paired for r in records], show, why=why)
    return Table("Differences", [record.model for record in records], rows)


def _change(number: Paired) -> str:
    ends = _ends(number)
    return format_signed(number.difference) + (f"\n{ends}" if ends else "")


def _ends(number: Paired) -> str:
    return format_interval(number.ci95)


def _arrow(values: dict[str, float]) -> str:
    return f"{format_number(values[BEFORE])} → {format_number(values[AFTER])}"


def _rank_cell(value: float) -> Cell:
    return Cell(f"{value:.1f}" if math.isfinite(value) else UNDEFINED, sort=sort_key(value))


def _percent(share: float) -> str:
    """A share that may be negative, where variance was added."""
    if not share < 0:
        return format_share(share)
    return f"−{format_share(-share)}" if share <= -0.0005 else "0 %"
