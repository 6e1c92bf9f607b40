"""Section of robustified models: each beside its parent, and the methods of a parent together."""

import math
from collections.abc import Sequence
from typing import Any

from pathorob_jax.report import csv_tables, palette
from pathorob_jax.report.section import Block, Draw, Section
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
    Paired,
    RobustificationResult,
    helped,
    list_losses,
)

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
WHY_RESIDUAL = "undefined; the warnings say why"


def build_section(collection: Collection, draw: Draw) -> Section:
    """One table for each parent and dataset, one row per robustified model."""
    del draw
    groups = group_by_parent(collection)
    every = [record for records in groups.values() for record in records]
    context = {"groups": [_describe_group(*key, found) for key, found in groups.items()]}
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
    rows = []
    for center in dict.fromkeys(name for r in records for name in r.per_center):
        cells = []
        for record in records:
            change = record.per_center.get(center)
            if change is None:
                cells.append(Cell(UNDEFINED, title="this model's rows hold no such centre"))
                continue
            index = change.robustness_index
            cells.append(
                Cell(
                    f"{format_number(index[BEFORE])} → {format_number(index[AFTER])}",
                    note=f"shift {change.shift:.2f}\nscale × {change.scale:.2f}",
                    background=palette.heat(index[AFTER]),
                    sort=sort_key(index[AFTER]),
                )
            )
        rows.append(Row(center, "", cells))
    return Table("Centres", [record.model for record in records], rows)


def build_classes(records: Sequence[RobustificationResult]) -> Table:
    """Classes and centres by models: AUC of the class, and the neighbours' vote, after less before.

    The rows of a class are its own area and recall; those of a centre are over its classes.
    """
    rows = []
    for kind, areas, votes in (
        ("class", "auc_per_class", "knn_recall_per_class"),
        ("centre", "auc_per_center", "knn_balanced_accuracy_per_center"),
    ):
        for name in dict.fromkeys(n for r in records for n in getattr(r.biology, areas)):
            cells = []
            for record in records:
                area = getattr(record.biology, areas).get(name)
                vote = getattr(record.biology, votes).get(name)
                if area is None or vote is None:
                    cells.append(Cell(UNDEFINED))
                    continue
                cells.append(
                    Cell(
                        _arrow(area),
                        note=f"neighbours\n{_arrow(vote)}",
                        sort=sort_key(area[AFTER] - area[BEFORE]),
                    )
                )
            rows.append(Row(name, kind, cells))
    return Table("Biology by class and centre", [record.model for record in records], rows)


def build_numbers(records: Sequence[RobustificationResult]) -> Table:
    """Paired numbers by models: the difference with its interval."""
    rows = []
    for name in dict.fromkeys(n for r in records for n in r.paired):
        cells = []
        for record in records:
            number = record.paired.get(name)
            if number is None:
                cells.append(Cell(UNDEFINED, title="no record of this metric before and after"))
                continue
            cells.append(
                Cell(
                    format_signed(number.difference),
                    note=_ends(number),
                    title=f"{format_number(number.before)} → {format_number(number.after)}",
                    sort=sort_key(number.difference),
                )
            )
        rows.append(Row(NAMES.get(name, name), "", cells))
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
