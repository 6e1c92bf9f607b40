"""Section of slide-level prediction: curves, drops and directional errors of bags of patches."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pathorob_jax.report import csv_tables, figures
from pathorob_jax.report.directional_errors import (
    ModelErrors,
    build_errors,
    draw_errors,
    list_rows,
    write_sentences,
)
from pathorob_jax.report.page_apd import format_v
from pathorob_jax.report.panels import Panels
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
    number_cell,
    sort_key,
)
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.slide_prediction import (
    KIND,
    SIDES,
    PresetResult,
    SlidePredictionResult,
)

SIDE_WORDS = {"id": "in domain", "ood": "out of domain"}
PRESET_WORDS = {
    "mean": "mean pooling",
    "gated": "gated attention",
    "xmil": "attention as in xMIL",
}
TABLE_WORDS = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "concordance": "Harrell’s C",
    "nll": "negative log likelihood",
}
MEASURES = ("auc", "balanced_accuracy")
UNDEFINED_WHY = "undefined; see the warnings"


def build_section(collection: Collection, draw: Draw) -> Section:
    """Curves by preset, drops and directional errors for each dataset."""
    everything = collection.of_kind(SlidePredictionResult)
    datasets = collection.datasets(SlidePredictionResult)
    context = {"slides": [_dataset_part(collection, dataset, draw) for dataset in datasets]}
    tables = {
        "slide_prediction_splits.csv": csv_tables.format_rows(_list_splits(everything)),
        "slide_prediction_errors.csv": csv_tables.format_rows(_list_errors(everything)),
    }
    if any(record.table is not None for record in everything):
        tables["slide_prediction_table.csv"] = csv_tables.format_rows(_list_table(everything))
    blocks = [Block("slide_prediction.jinja", context, (("slides", "slide-level prediction"),))]
    return Section(blocks, tables, write_answer(collection))


def _dataset_part(collection: Collection, dataset: str, draw: Draw) -> dict[str, Any]:
    records = [r for r in collection.of_dataset(SlidePredictionResult, dataset) if r.presets]
    errors = _errors_of(records)
    return {
        "name": name_dataset(dataset),
        "curves": [
            (
                PRESET_WORDS.get(preset, preset),
                draw(
                    file_name(f"slides_{preset}", dataset),
                    f"AUC of slides by association of class and centre on {name_dataset(dataset)}, "
                    f"{PRESET_WORDS.get(preset, preset)}",
                    functools.partial(_draw_auc, collection.models, records, preset),
                ),
            )
            for preset in _list_presets(records)
        ],
        "drops": build_drops(records),
        "sentences": write_sentences(errors, rows="slides"),
        "errors": build_errors(errors),
        "error_curves": errors
        and draw(
            file_name("slide_errors", dataset),
            f"Slides called what their centre stood for on {name_dataset(dataset)}",
            functools.partial(draw_errors, dataset, collection.models, errors),
        ),
        "table": build_table(collection.of_dataset(SlidePredictionResult, dataset)),
    }


def _draw_auc(
    models: Sequence[str], records: Sequence[SlidePredictionResult], preset: str
) -> Panels:
    curves = [
        figures.AssociationCurve(
            record.model, record.cramers_v or [], found.mean("auc_id"), found.mean("auc_ood")
        )
        for record, found in _with_preset(records, preset)
    ]
    return figures.draw_by_association(
        f"{name_dataset(records[0].dataset)}, {PRESET_WORDS.get(preset, preset)}",
        models,
        curves,
        chances=[0.5],
        has_ood=any(record.n_ood_test_bags for record in records),
        measure="AUC of slides",
    )


def _list_presets(records: Sequence[SlidePredictionResult]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.presets or {}))


def _with_preset(
    records: Sequence[SlidePredictionResult], preset: str
) -> list[tuple[SlidePredictionResult, PresetResult]]:
    pairs = [(record, (record.presets or {}).get(preset)) for record in records]
    return [(record, found) for record, found in pairs if found is not None]


def write_answer(collection: Collection) -> str:
    """Say which models' slides are told apart worst when class and centre are confounded."""
    return answer_by_confounder(
        collection, SlidePredictionResult, lambda confounder: _answer(collection, confounder)
    )


def _answer(collection: Collection, confounder: str) -> str:
    headline = KIND.headlines[0]
    found = {m: collection.mean(KIND, headline, m, confounder) for m in collection.candidates}
    ranked = sorted((-mean.value, m) for m, mean in found.items() if math.isfinite(mean.value))
    if not ranked:
        return "No model has a slide-level drop on every dataset; see the warnings for reasons."
    parts = [f"with {m} by {format_percent(-less)}" for less, m in ranked]
    how = name_ends(parts, [format_percent(-less) for less, _ in ranked])
    center = confounder or "centre"
    return (
        f"Where training slides confound class and {center}, the accuracy of whole slides changes "
        f"{how} (slide-level drop)."
    )


def build_tables(collection: Collection, dataset: str) -> list[tuple[str, str, Table]]:
    """(heading, what a row is, table) of the tables of a dataset, for documents."""
    records = [r for r in collection.of_dataset(SlidePredictionResult, dataset) if r.presets]
    curves = [
        (f"AUC of slides by Cramér’s V, {SIDE_WORDS[side]}", "model", table)
        for side in SIDES
        if (table := build_curves(records, side)).rows
    ]
    errors = build_errors(_errors_of(records))
    more = [("Directional errors in domain", "called, at centre", errors)] if errors.rows else []
    table = build_table(collection.of_dataset(SlidePredictionResult, dataset))
    if table.rows:
        more.append(("Slides of a table", "model", table))
    drops = [("Slide-level prediction", "model", build_drops(records))] if records else []
    return [*drops, *curves, *more]


def build_drops(records: Sequence[SlidePredictionResult]) -> Table:
    """Areas, accuracies, drops and nIPD, one row per model and preset."""
    rows = []
    for record in records:
        for name, preset in (record.presets or {}).items():
            cells = []
            for side in SIDES:
                drop = getattr(preset, f"drop_{side}")
                ends = preset.intervals.get(f"drop_{side}")
                cells.append(_percent_cell(drop, note=format_percent_interval(ends)))
            cells += [
                number_cell(getattr(preset, f"nipd_{side}"), why=UNDEFINED_WHY) for side in SIDES
            ]
            for measure in MEASURES:
                for side in SIDES:
                    means = preset.mean(f"{measure}_{side}")
                    cells.append(_ends_cell(means))
            rows.append(Row(record.model, PRESET_WORDS.get(name, name), cells))
    columns = [f"drop, {words}" for words in SIDE_WORDS.values()]
    columns += [f"nIPD, {words}" for words in SIDE_WORDS.values()]
    columns += [f"AUC, {words}" for words in SIDE_WORDS.values()]
    columns += [f"balanced accuracy, {words}" for words in SIDE_WORDS.values()]
    return Table("Slide-level prediction", columns, rows)


def build_curves(records: Sequence[SlidePredictionResult], side: str) -> Table:
    """Mean AUC at every split, one row per model and preset."""
    rows = []
    for record in records:
        for name, preset in (record.presets or {}).items():
            means = preset.mean(f"auc_{side}")
            if np.isfinite(means).any():
                cells = [number_cell(value, why=UNDEFINED_WHY) for value in means]
                rows.append(Row(record.model, PRESET_WORDS.get(name, name), cells))
    v = (records[0].cramers_v or []) if records else []
    return Table(f"AUC, {SIDE_WORDS[side]}", [f"V = {format_v(value)}" for value in v], rows)


def _errors_of(records: Sequence[SlidePredictionResult]) -> list[ModelErrors]:
    """Errors of the headline's preset of every model that has some."""
    found = [
        ModelErrors(r.model, r.cramers_v or [], (r.presets or {})[r.preset].directional_errors)
        for r in records
    ]
    return [one for one in found if one.errors]


def build_table(records: Sequence[SlidePredictionResult]) -> Table:
    """Measures on the test slides of a table, one row per model and preset."""
    rows, columns = [], []
    for record in records:
        if record.table is None:
            continue
        for name, preset in record.table.presets.items():
            measures = list(preset.all.values)
            parts = [("", preset.all)]
            if preset.without_added is not None and preset.added is not None:
                parts += [(", without added", preset.without_added), (", added", preset.added)]
            columns = [f"{TABLE_WORDS[m]}{words}" for words, _ in parts for m in measures]
            cells = [
                number_cell(part.values[m], why=UNDEFINED_WHY, interval=part.intervals[m])
                for _, part in parts
                for m in measures
            ]
            rows.append(Row(record.model, PRESET_WORDS.get(name, name), cells))
    return Table("Slides of a table", columns, rows)


def _ends_cell(means: Sequence[float]) -> Cell:
    """A measure at the least and at the greatest V."""
    first, last = means[0], means[-1]
    if not math.isfinite(last):
        return Cell(UNDEFINED, title=UNDEFINED_WHY)
    return Cell(f"{format_number(first)} → {format_number(last)}", sort=sort_key(last))


def _percent_cell(value: float, *, note: str) -> Cell:
    if not math.isfinite(value):
        return Cell(UNDEFINED, title=UNDEFINED_WHY)
    return Cell(format_percent(value), note=note, sort=sort_key(value))


def _list_splits(records: Sequence[SlidePredictionResult]) -> list[dict[str, Any]]:
    """One row per model, dataset, preset, split and repetition."""
    return [
        {"model": record.model, "dataset": record.dataset, "preset": name}
        | {"split": split, "cramers_v": v, "repetition": repetition}
        | {
            f"{measure}_{side}": getattr(preset, f"{measure}_{side}")[split][repetition]
            for measure in MEASURES
            for side in SIDES
        }
        | {"chosen": preset.chosen[split][repetition]}
        for record in records
        for name, preset in (record.presets or {}).items()
        for split, v in enumerate(record.cramers_v or [])
        for repetition in range(record.repetitions)
    ]


def _list_errors(records: Sequence[SlidePredictionResult]) -> list[dict[str, Any]]:
    """One row per model, dataset, preset, centre, class and split."""
    return [
        {"model": record.model, "dataset": record.dataset, "preset": name} | row
        for record in records
        for name, preset in (record.presets or {}).items()
        for row in list_rows(
            ModelErrors(record.model, record.cramers_v or [], preset.directional_errors)
        )
    ]


def _list_table(records: Sequence[SlidePredictionResult]) -> list[dict[str, Any]]:
    """One row per model, dataset, preset, training slides and measure."""
    rows = []
    for record in records:
        for name, preset in (record.table.presets if record.table else {}).items():
            for trained_on in ("all", "without_added", "added"):
                part = getattr(preset, trained_on)
                for measure, value in (part.values if part else {}).items():
                    low, high = part.intervals[measure] or (math.nan, math.nan)
                    row = {"model": record.model, "dataset": record.dataset, "preset": name}
                    row |= {"trained_on": trained_on, "n_training": part.n_training}
                    rows.append(
                        row | {"measure": measure, "value": value, "low": low, "high": high}
                    )
    return rows
