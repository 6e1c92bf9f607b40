"""Section of case retrieval: answers at each level, and what a biased database does to them."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pathorob_jax.report import csv_tables, figures
from pathorob_jax.report.directional_errors import ModelErrors, build_errors
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
    format_share,
    number_cell,
    sort_key,
)
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.retrieval import (
    LEVELS,
    RetrievalDrop,
    RetrievalLevel,
    RetrievalResult,
    RetrievalSchedule,
)

LEVEL_WORDS = {
    "patch": "patches",
    "slide": "slides, mean embeddings",
    "slide_set": "slides, sets of patches",
}
MEASURES = (
    ("balanced_vote_accuracy", "vote"),
    ("balanced_top_k_accuracy", "among k"),
    ("balanced_map", "mAP"),
)
SCHEDULED = ("patch", "slide")
WHY_LEVEL = "undefined: no query has a neighbour; see the warnings"
WHY_DROP = "undefined: there are no such queries, or an accuracy is undefined"
NO_SCHEDULE = "no schedule; the warnings say why"


def build_section(collection: Collection, draw: Draw) -> Section:
    """Tables by level and k, curves over the association, wrong answers and their directions."""
    every = collection.of_kind(RetrievalResult)
    datasets = collection.datasets(RetrievalResult)
    context = {"datasets": [_dataset_part(collection, dataset, draw) for dataset in datasets]}
    tables = {
        "retrieval_levels.csv": csv_tables.format_retrieval_levels(every),
        "retrieval_schedule.csv": csv_tables.format_retrieval_schedule(every),
    }
    blocks = [Block("retrieval.jinja", context, (("retrieval", "case retrieval"),))]
    return Section(blocks, tables, write_answer(collection))


def _dataset_part(collection: Collection, dataset: str, draw: Draw) -> dict[str, Any]:
    records = collection.of_dataset(RetrievalResult, dataset)
    scheduled = [record for record in records if record.schedule is not None]
    curves = [
        (
            LEVEL_WORDS[level],
            draw(
                file_name(f"retrieval_{level}", dataset),
                f"Accuracy of the nearest of {LEVEL_WORDS[level]} by association on "
                f"{name_dataset(dataset)}",
                functools.partial(_draw, dataset, collection.models, scheduled, level),
            ),
        )
        for level in SCHEDULED
        if scheduled
    ]
    return {
        "name": name_dataset(dataset),
        "levels": [(LEVEL_WORDS[level], build_level(records, level)) for level in LEVELS],
        "curves": curves,
        "drops": [(LEVEL_WORDS[level], build_drops(scheduled, level)) for level in SCHEDULED],
        "directions": [
            (LEVEL_WORDS[level], build_errors(_errors_of(scheduled, level))) for level in SCHEDULED
        ],
    }


def build_tables(collection: Collection, dataset: str) -> list[tuple[str, str, Table]]:
    """(heading, what a row is, table) of the tables of a dataset, for documents."""
    records = collection.of_dataset(RetrievalResult, dataset)
    scheduled = [record for record in records if record.schedule is not None]
    tables = [
        (f"Among {LEVEL_WORDS[level]}", "model", build_level(records, level)) for level in LEVELS
    ]
    for level in SCHEDULED:
        if scheduled:
            heading = f"Balanced and unbalanced database, {LEVEL_WORDS[level]}"
            tables.append((heading, "model", build_drops(scheduled, level)))
            curves = build_curves(scheduled, level)
            tables.append((f"Accuracy by Cramér’s V, {LEVEL_WORDS[level]}", "model", curves))
        errors = build_errors(_errors_of(scheduled, level))
        if errors.rows:
            heading = f"Directional errors in domain, {LEVEL_WORDS[level]}"
            tables.append((heading, "found, at centre", errors))
    return tables


def write_answer(collection: Collection) -> str:
    """Say which models' searches lose least and most in an unbalanced database."""
    return answer_by_confounder(collection, RetrievalResult, lambda c: _answer(collection, c))


def _answer(collection: Collection, confounder: str) -> str:
    found = []
    for model in collection.candidates:
        records = collection.of_model(RetrievalResult, model, confounder)
        ends = [
            [s.patch.id_accuracy_means[0][i] for i in (0, -1)]
            for s in (record.schedule for record in records)
            if s is not None
        ]
        if ends and len(ends) == len(records) and np.isfinite(ends).all():
            first, last = np.mean(ends, axis=0)
            found.append((first - last, model, first, last))
    if not found:
        return ""
    found.sort()
    parts = [
        f"with {model} from {format_number(first)} to {format_number(last)}"
        for _, model, first, last in found
    ]
    how = name_ends(parts, [format_number(lost) for lost, *_ in found])
    return (
        "In a database where every class comes mostly from one "
        f"{confounder or 'centre'}, the share of searches whose nearest patch has the right class "
        f"changes {how} (balanced database to unbalanced, same centres)."
    )


def _draw(
    dataset: str, models: Sequence[str], records: Sequence[RetrievalResult], level: str
) -> Panels:
    """Accuracy of the nearest neighbour along the splits."""
    curves = []
    for record in records:
        schedule = _schedule_of(record)
        drop: RetrievalDrop = getattr(schedule, level)
        curves.append(
            figures.AssociationCurve(
                record.model,
                schedule.cramers_v,
                drop.id_accuracy_means[0],
                drop.ood_accuracy_means[0],
            )
        )
    return figures.draw_by_association(
        name_dataset(dataset),
        models,
        curves,
        chances=[_schedule_of(record).chance for record in records],
        has_ood=any(_schedule_of(record).n_ood_test_rows for record in records),
        measure="balanced accuracy",
    )


def _errors_of(records: Sequence[RetrievalResult], level: str) -> list[ModelErrors]:
    """Errors of the nearest neighbour of every model that has some."""
    found = []
    for record in records:
        schedule = _schedule_of(record)
        errors = getattr(schedule, level).directional_errors
        found.append(ModelErrors(record.model, schedule.cramers_v, errors))
    return [one for one in found if one.errors]


def _schedule_of(record: RetrievalResult) -> RetrievalSchedule:
    if record.schedule is None:
        raise ValueError("the record has no schedule")
    return record.schedule


def build_level(records: Sequence[RetrievalResult], level: str) -> Table:
    """Class-balanced numbers of a level by k, with intervals; one row per model."""
    rows = []
    ks = records[0].k if records else []
    for record in records:
        part: RetrievalLevel = getattr(record, level)
        cells = []
        for name, _ in MEASURES:
            ends = part.intervals[name]
            for value, interval in zip(getattr(part, name), ends, strict=True):
                cells.append(number_cell(value, why=WHY_LEVEL, interval=interval))
        rows.append(Row(record.model, f"{part.n_queries:,} queries", cells))
    columns = [f"{words}, k = {k}" for _, words in MEASURES for k in ks]
    return Table(LEVEL_WORDS[level], columns, rows)


def build_drops(records: Sequence[RetrievalResult], level: str) -> Table:
    """Accuracy in balanced and unbalanced databases, drops, and where wrong answers come from."""
    rows = []
    v = [math.nan] * 2
    for record in records:
        schedule = _schedule_of(record)
        v = [schedule.cramers_v[0], schedule.cramers_v[-1]]
        drop: RetrievalDrop = getattr(schedule, level)
        cells = []
        for means in (drop.id_accuracy_means[0], drop.ood_accuracy_means[0]):
            cells += [number_cell(means[i], why=WHY_DROP) for i in (0, -1)]
        for side in ("id", "ood"):
            value = getattr(drop, f"drop_{side}")[0]
            note = format_percent_interval(getattr(drop, f"drop_{side}_intervals")[0])
            cells.append(_text_cell(value, format_percent(value), WHY_DROP, note))
        for i in (0, -1):
            share, expected = drop.own_center_share[i], drop.own_center_expected[i]
            ends = drop.own_center_intervals[i]
            note = f"[{format_share(ends[0])}, {format_share(ends[1])}], " if ends else ""
            note += f"by chance {format_share(expected)}, of {format_share(drop.wrong_share[i])}"
            why = "undefined: no answer is wrong"
            cells.append(_text_cell(share, format_share(share), why, note))
        rows.append(Row(record.model, f"{schedule.repetitions} repetitions", cells))
    columns = [
        f"accuracy {words}, {kind} database"
        for words in ("in domain", "out of domain")
        for kind in ("balanced", "unbalanced")
    ]
    columns += ["drop, in domain", "drop, out of domain"]
    columns += [f"wrong answers from the own centre, V = {format_v(end)}" for end in v]
    return Table(LEVEL_WORDS[level], columns, rows)


def build_curves(records: Sequence[RetrievalResult], level: str) -> Table:
    """Accuracy of the nearest neighbour at every split, two rows per model."""
    rows = []
    for record in records:
        drop: RetrievalDrop = getattr(_schedule_of(record), level)
        for words, means in (
            ("in domain", drop.id_accuracy_means[0]),
            ("out of domain", drop.ood_accuracy_means[0]),
        ):
            cells = [number_cell(value, why=WHY_DROP) for value in means]
            rows.append(Row(record.model, words, cells))
    v = _schedule_of(records[0]).cramers_v if records else []
    return Table(LEVEL_WORDS[level], [f"V = {format_v(value)}" for value in v], rows)


def _text_cell(value: float, text: str, why: str, note: str) -> Cell:
    if not math.isfinite(value):
        return Cell(UNDEFINED, title=why)
    return Cell(text, note=note, sort=sort_key(value))
