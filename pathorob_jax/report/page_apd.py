"""Section of the average performance drop: its tables, figures, CSV files and answer.

Drops are shown in per cent: −5 % means that a classifier keeps 95 % of the accuracy that it has
without association of class and centre.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pathorob_jax.metrics.apd import DANN_TWIN, LINEAR, average_performance_drop
from pathorob_jax.report import csv_tables, directional_errors, figures, palette
from pathorob_jax.report.directional_errors import ModelErrors
from pathorob_jax.report.section import Block, Draw, Section, file_name
from pathorob_jax.report.sentences import answer_by_confounder, name_dataset, name_ends
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Row,
    Table,
    format_number,
    format_percent,
    format_percent_interval,
    format_share,
    number_cell,
    sort_key,
)
from pathorob_jax.results.apd import KIND, SAW_ROWS, ApdResult, HeadResult
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.over_datasets import aggregate_apd

SIDES = (("id", "in domain"), ("ood", "out of domain"))
# Names of classifiers on the page.
HEAD_WORDS = {LINEAR: "linear probe", DANN_TWIN: "dann with λ = 0"}
# Number of error directions that the page shows; the CSV table has all.
MAX_DIRECTIONS = 10


def build_section(collection: Collection, draw: Draw) -> Section:
    """Curves, drops, classifiers and directions of errors for each dataset."""
    datasets = collection.datasets(ApdResult)
    everything = collection.of_kind(ApdResult)
    context = {
        "drop_aggregates": build_aggregates(collection),
        "drops": [_dataset_part(collection, dataset, draw) for dataset in datasets],
    }
    tables = {
        "apd.csv": csv_tables.format_apd(everything),
        "apd_accuracies.csv": csv_tables.format_accuracies(everything),
        "apd_directions.csv": csv_tables.format_directions(everything),
    }
    if any(record.directional_errors for record in everything):
        errors = csv_tables.format_directional_errors(everything)
        tables["apd_directional_errors.csv"] = errors
    blocks = [Block("apd.jinja", context, (("drop", "performance drop"),))]
    return Section(blocks, tables, write_answer(collection))


def _dataset_part(collection: Collection, dataset: str, draw: Draw) -> dict[str, Any]:
    records = collection.of_dataset(ApdResult, dataset)
    errors = [ModelErrors(r.model, r.cramers_v, r.directional_errors) for r in records]
    return {
        "name": name_dataset(dataset),
        "errors": _describe_errors(dataset, collection.models, errors, draw),
        "pulls": build_pulls(records),
        "curves": draw(
            file_name("drop", dataset),
            f"Accuracy by association of class and centre on {name_dataset(dataset)}",
            lambda: figures.draw_drop(dataset, collection.models, records),
        ),
        "drops": build_drops(records),
        "refits": build_refits(records),
        "heads": build_heads(records),
        "directions": build_directions(records),
        "direction_curves": [build_direction_curves(record) for record in records],
    }


def _describe_errors(
    dataset: str, models: Sequence[str], errors: Sequence[ModelErrors], draw: Draw
) -> dict[str, Any] | None:
    """Errors that follow the centre; None: no record has any."""
    known = [one for one in errors if one.errors]
    if not known:
        return None
    return {
        "sentences": directional_errors.write_sentences(known),
        "table": directional_errors.build_errors(errors),
        "curves": draw(
            file_name("directional_errors", dataset),
            f"Share called what the centre stood for in training, on {name_dataset(dataset)}",
            lambda: directional_errors.draw_errors(dataset, models, known),
        ),
    }


def build_pulls(records: Sequence[ApdResult]) -> Table:
    """The mean pull of every classifier on the same splits, one row per model."""
    by_head: dict[str, dict[str, ModelErrors]] = {}
    for record in records:
        for name, fit_on, errors in csv_tables.list_head_errors(record):
            words = HEAD_WORDS.get(name, name) + (", fitted on all rows" if fit_on == "all" else "")
            one = ModelErrors(record.model, record.cramers_v, errors)
            by_head.setdefault(words, {})[record.model] = one
    known = [item for item in by_head.items() if any(one.errors for one in item[1].values())]
    return directional_errors.build_mean_pulls(known if len(known) > 1 else [])


def write_answer(collection: Collection) -> str:
    """Say which models' classifiers lose least and most when class and centre are confounded."""
    return answer_by_confounder(collection, ApdResult, lambda c: _answer(collection, c))


def _answer(collection: Collection, confounder: str) -> str:
    headline = KIND.headlines[0]
    found = {m: collection.mean(KIND, headline, m, confounder) for m in collection.candidates}
    ranked = sorted((-mean.value, m) for m, mean in found.items() if math.isfinite(mean.value))
    if not ranked:
        return "No model has a performance drop on every dataset; see the table for reasons."
    parts = [
        f"with {m} by {format_percent(-less)} (from {_first_accuracy(collection, m, confounder)})"
        for less, m in ranked
    ]
    how = name_ends(parts, [format_percent(-less) for less, _ in ranked])
    center, where = (confounder, "values of it") if confounder else ("centre", "centres")
    return (
        f"Where training data confound class and {center}, a classifier’s accuracy at the same "
        f"{where} changes {how} (average performance drop; in brackets the accuracy that it drops "
        "from: where there is little, little can be lost)."
    )


def _first_accuracy(collection: Collection, model: str, confounder: str) -> str:
    """Accuracy without association in domain, mean over datasets."""
    records = collection.of_model(ApdResult, model, confounder)
    return format_number(float(np.mean([r.id_accuracy_means[0] for r in records])))


def build_aggregates(collection: Collection) -> list[Table]:
    """Mean drop over the datasets of each confounder that has several, one row per model."""
    return [
        _build_aggregate(collection, confounder)
        for confounder in collection.confounders(ApdResult)
        if len(collection.datasets(ApdResult, confounder)) > 1
    ]


def _build_aggregate(collection: Collection, confounder: str) -> Table:
    datasets = collection.datasets(ApdResult, confounder)
    rows = []
    for model in collection.models:
        records = collection.of_model(ApdResult, model, confounder)
        if records:
            cells = [
                cell for side, _ in SIDES for cell in _aggregate_cells(records, datasets, side)
            ]
            names = ", ".join(r.dataset for r in records)
            note = "" if len(records) == len(datasets) else f"only {names}"
            rows.append(Row(model, note, cells))
    columns = [
        column for _, words in SIDES for column in (words, "± with df = n", "± with df = n − 1")
    ]
    by = f" by {confounder}" if confounder else ""
    return Table(f"Over all datasets{by}", columns, rows)


def build_drops(records: Sequence[ApdResult]) -> Table:
    """The drop on one dataset and its components, one row per model."""
    rows = []
    for record in records:
        cells = [drop_cell(record, side) for side, _ in SIDES]
        cells += [
            number_cell(getattr(record, f"nipd_{s}"), why=_why_nipd(record, s)) for s, _ in SIDES
        ]
        for side, _ in SIDES:
            means = getattr(record, f"{side}_accuracy_means")
            cells += [number_cell(v, why=_why(record, side)) for v in (means[0], means[-1])]
        cells.append(
            Cell(format_share(record.converged_share), sort=sort_key(record.converged_share))
        )
        rows.append(Row(record.model, _name_effort(record), cells))
    v = records[0].cramers_v if records else [math.nan]
    columns = [f"drop, {words}" for _, words in SIDES]
    columns += [f"nIPD, {words}" for _, words in SIDES]
    columns += [
        f"accuracy {words}, V = {format_v(end)}" for _, words in SIDES for end in (v[0], v[-1])
    ]
    return Table("Drop", [*columns, "fits that converged"], rows)


def _name_effort(record: ApdResult) -> str:
    left, n_splits = len(record.splits_left), len(record.cramers_v)
    note = f"{record.repetitions} repetitions"
    return note if left == n_splits else f"{note}, {left} of {n_splits} splits"


def build_refits(records: Sequence[ApdResult]) -> Table:
    """Drops of robustified models: fitted in every split, and on all rows; one row per model."""
    rows = []
    for record in records:
        if record.fit_all is None:
            continue
        refused = np.isnan(np.asarray(record.id_accuracies, np.float64))
        cells = []
        for side, _ in SIDES:
            cells.append(drop_cell(record, side))
            accuracies = np.asarray(getattr(record.fit_all, f"{side}_accuracies"), np.float64)
            same = average_performance_drop(np.where(refused, np.nan, accuracies))
            for value in (same, getattr(record.fit_all, f"apd_{side}")):
                cells.append(_percent_cell(value, why=_why(record, side)))
        rows.append(Row(record.model, _name_effort(record), cells))
    columns = [
        f"{words}, {how}"
        for _, words in SIDES
        for how in (
            "fitted in every split",
            f"on all rows, which {SAW_ROWS}, same splits",
            f"on all rows, which {SAW_ROWS}, all splits",
        )
    ]
    return Table("Refits", columns, rows)


def build_heads(records: Sequence[ApdResult]) -> Table:
    """The drop of every classifier on the same splits, one row per model."""
    names = list(dict.fromkeys(name for record in records for name in record.heads))
    rows = []
    for record in records:
        cells = []
        for name in (None, *names):
            head: ApdResult | HeadResult | None = record if name is None else record.heads.get(name)
            for side, _ in SIDES:
                if head is None:
                    cells.append(Cell(UNDEFINED, title="this head was not trained"))
                    continue
                means = getattr(head, f"{side}_accuracy_means")
                note = f"{format_number(means[0])} → {format_number(means[-1])}"
                cells.append(
                    _percent_cell(getattr(head, f"apd_{side}"), why=_why(record, side), note=note)
                )
        rows.append(Row(record.model, "", cells))
    columns = [
        f"{HEAD_WORDS.get(name, name)}, {words}" for name in (LINEAR, *names) for _, words in SIDES
    ]
    return Table("Heads", columns, rows if names else [])


def build_directions(records: Sequence[ApdResult]) -> Table:
    """In-domain errors that grow most from the first to the last split, one column per model."""
    growth: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        for center, label, called, shares in csv_tables.list_directions(record, "id"):
            rise = shares[-1] - shares[0]
            if called != label and math.isfinite(rise):
                growth.setdefault((center, label, called), []).append(rise)
    ranked = sorted(growth, key=lambda key: (-float(np.mean(growth[key])), key))
    rows = []
    for center, label, called in ranked[:MAX_DIRECTIONS]:
        cells = []
        for record in records:
            shares_by_split = record.direction_id.get(center, {}).get(label, {}).get(called)
            cells.append(_direction_cell(csv_tables.as_floats(shares_by_split or [])))
        rows.append(Row(f"{label} → {called}", center, cells))
    return Table("Errors by direction", [record.model for record in records], rows)


def build_direction_curves(record: ApdResult) -> Table:
    """The errors of one model that grow most, at every split."""
    directions = [
        (shares[-1] - shares[0], center, label, called, shares)
        for center, label, called, shares in csv_tables.list_directions(record, "id")
        if called != label and math.isfinite(shares[-1] - shares[0])
    ]
    directions.sort(key=lambda item: (-item[0], *item[1:4]))
    rows = [
        Row(f"{label} → {called}", center, [_share_cell(share) for share in shares])
        for _, center, label, called, shares in directions[:MAX_DIRECTIONS]
    ]
    return Table(record.model, [f"V = {format_v(v)}" for v in record.cramers_v], rows)


def drop_cell(record: ApdResult, side: str) -> Cell:
    """A drop with its interval."""
    value, interval = getattr(record, f"apd_{side}"), getattr(record, f"apd_{side}_ci95")
    return _percent_cell(value, why=_why(record, side), note=format_percent_interval(interval))


def format_v(value: float) -> str:
    """Cramér's V with two decimals, without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else UNDEFINED


def _aggregate_cells(
    records: Sequence[ApdResult], datasets: Sequence[str], side: str
) -> list[Cell]:
    missing = [d for d in datasets if d not in [r.dataset for r in records]]
    if missing:
        why = f"no mean: not evaluated on {', '.join(missing)}"
        return [Cell(UNDEFINED, title=why)] * 3
    aggregate = aggregate_apd(records, side)
    if aggregate is None:
        value, why = float(np.mean([getattr(r, f"apd_{side}") for r in records])), "undefined: "
        if math.isfinite(value):
            no_width = Cell(UNDEFINED, title=f"{why}one repetition has no interval")
            return [_percent_cell(value), no_width, no_width]
        return [Cell(UNDEFINED, title=f"{why}an accuracy is undefined; see the warnings")] * 3
    widths = [
        Cell(f"± {100 * ci:.3f}", title=f"t with {df} degrees of freedom", sort=sort_key(ci))
        for ci, df in (
            (aggregate.ci, aggregate.df),
            (aggregate.ci_textbook, aggregate.df_textbook),
        )
    ]
    return [_percent_cell(aggregate.mean), *widths]


def _percent_cell(value: float, *, why: str = "", note: str = "") -> Cell:
    if not math.isfinite(value):
        return Cell(UNDEFINED, title=why)
    return Cell(format_percent(value), note=note, sort=sort_key(value))


def _direction_cell(shares: Sequence[float]) -> Cell:
    if not shares or not math.isfinite(shares[-1] - shares[0]):
        return Cell(UNDEFINED, title="no such rows, or this model was given other classes")
    cell = _share_cell(shares[-1])
    note = f"from {format_share(shares[0])}"
    return Cell(cell.text, note=note, background=cell.background, sort=cell.sort)


def _share_cell(share: float) -> Cell:
    if not math.isfinite(share):
        return Cell(UNDEFINED, title="no such rows")
    return Cell(format_share(share), background=palette.tint(share), sort=sort_key(share))


def _why(record: ApdResult, side: str) -> str:
    rows = record.n_id_test_rows if side == "id" else record.n_ood_test_rows
    if not rows:
        return "undefined: there are no such test rows"
    return "undefined: an accuracy is undefined; see the warnings"


def _why_nipd(record: ApdResult, side: str) -> str:
    means = getattr(record, f"{side}_accuracy_means")
    if means and means[0] <= record.chance:
        return f"undefined: accuracy without association is at chance ({record.chance:.2f})"
    return _why(record, side)
