"""Section of the robustness index: its tables, figures, CSV files and answer."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pathorob_jax.core.folder_names import split_confounder
from pathorob_jax.data.protocols import PROTOCOLS
from pathorob_jax.models.names import is_control
from pathorob_jax.report import csv_tables, figures, palette, sentences
from pathorob_jax.report.answer_table import best_of, with_ends
from pathorob_jax.report.section import DETAILS, GROUPS, Block, Draw, Section, file_name
from pathorob_jax.report.sentences import is_weak, join_distinct, name_dataset, why_undefined
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Column,
    Row,
    Table,
    defined_ends,
    format_interval,
    format_number,
    format_share,
    number_cell,
    sort_key,
)
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.flatten import interval_of
from pathorob_jax.results.neighbor_counts import count_neighbors, rests_on_few
from pathorob_jax.results.robustness_index import KIND, Group, NeighborTypes, RobustnessIndexResult

HEADLINE = KIND.headlines[0]
K_RULES = {
    "published": "the published k",
    "auto": "first maximum of kNN balanced accuracy",
    "given": "given by hand",
}

COMPANIONS = (
    ("balanced_accuracy", "balanced accuracy"),
    ("prediction_performance", "prediction performance"),
    ("id_performance", "ID performance"),
    ("ood_performance", "OOD performance"),
    ("generalization_index", "generalisation index"),
    ("bio_vs_confounding", "biology vs confounding"),
    ("confounder_insensitivity", "confounder insensitivity"),
    ("normalized_confounder_insensitivity", "the same, normalised"),
    ("null_permuted_center", "index, centres permuted"),
    ("null_random_features", "index, random features"),
)


def build_section(collection: Collection, draw: Draw) -> Section:
    """The index, its curves and companion numbers, and the index by class and centre."""
    datasets = collection.datasets(RobustnessIndexResult)
    panels = [(d, collection.of_dataset(RobustnessIndexResult, d)) for d in datasets]
    indexed = [m for m in collection.models if collection.of_model(RobustnessIndexResult, m)]
    everything = collection.of_kind(RobustnessIndexResult)
    overview = draw(
        "robustness_index",
        "Robustness index of each model",
        lambda: figures.draw_index(indexed, panels),
    )
    parts = [_dataset_part(collection, dataset, records, draw) for dataset, records in panels]
    blocks = [
        Block(
            "robustness_index.jinja",
            {"index_figure": overview},
            (("index", "index"),),
        ),
        Block(
            "neighbors.jinja",
            {"sections": parts, "neighbor_types": palette.NEIGHBOR_TYPES},
            (
                ("curves", "by k"),
                ("composition", "who the neighbours are"),
                ("companions", "companion numbers"),
            ),
            DETAILS,
        ),
        Block("groups.jinja", {"sections": parts}, (("groups", "classes and centres"),), GROUPS),
    ]
    tables = {
        "curves.csv": csv_tables.format_curves(everything),
        "groups.csv": csv_tables.format_groups(everything),
    }
    return Section(blocks, tables, write_answer(collection))


def _dataset_part(
    collection: Collection, dataset: str, records: Sequence[RobustnessIndexResult], draw: Draw
) -> dict[str, Any]:
    confounder = split_confounder(dataset)[1]
    name, models = sentences.name_dataset(dataset), collection.models
    return {
        "name": name,
        "center": confounder or "centre",
        "curve": draw(
            file_name("curve", dataset),
            f"Robustness index and balanced accuracy by k on {name}",
            lambda: figures.draw_curves(dataset, models, records),
        ),
        "composition": draw(
            file_name("composition", dataset),
            f"Types of neighbours by k on {name}",
            lambda: figures.draw_composition(dataset, records),
        ),
        "companions": build_companions(records),
        "paired": any(record.per_subset for record in records),
        "classes": build_groups("Biological classes", records, "per_class"),
        "centers": build_groups(confounder or "Medical centres", records, "per_center"),
        "subsets": build_groups("Subsets", records, "per_subset"),
    }


def write_answer(collection: Collection) -> str:
    """Say for how many models biology outweighs the centre, and the highest and lowest index."""
    return sentences.answer_by_confounder(
        collection, RobustnessIndexResult, lambda c: _answer(collection, c)
    )


def _answer(collection: Collection, confounder: str) -> str:
    datasets = collection.datasets(RobustnessIndexResult, confounder)
    where = f"on {name_dataset(datasets[0])}" if len(datasets) == 1 else "on average over datasets"
    center = confounder or "the medical centre"
    candidates = collection.candidates
    indexed = [m for m in candidates if collection.of_model(RobustnessIndexResult, m, confounder)]
    means = [(m, collection.mean(KIND, HEADLINE, m, confounder).value) for m in indexed]
    # Models are in the order of the first confounder.
    ranked = sorted(((m, v) for m, v in means if math.isfinite(v)), key=lambda pair: -pair[1])
    if not ranked:
        return "No model has an index on every dataset of this report; see the table for reasons."
    controls = _write_controls(collection, confounder)
    chances = {model: collection.chance(model, confounder) for model, _ in ranked}
    judged = [(value, chances[m]) for m, value in ranked if math.isfinite(chances[m])]
    if not judged:
        highest = f"Highest: {ranked[0][0]}, {ranked[0][1]:.3f} {where}; chance is undefined."
        return f"{highest}{controls}"
    if len(ranked) == 1:
        [(value, chance)], [(model, _)] = judged, ranked
        chance_note = f"(without any structure it would be {chance:.2f})"
        rules = f"biology and {center} weigh the same"
        if value != chance:
            sides = ("biology", center)
            stronger, weaker = sides if value > chance else sides[::-1]
            rules = f"{stronger} outweighs {weaker}"
        said = f"In {model}, {rules}: robustness index {value:.3f} {where} {chance_note}."
        return f"{said}{controls}"
    n_biology = sum(value > chance for value, chance in judged)
    sure = [_is_sure(collection, model, confounder) for model, _ in ranked]
    known = [one for one in sure if one is not None]
    beyond = f", in {sum(known)} of them beyond the 95 % interval" if known else ""
    noun = "models" if collection.encoders else "controls"
    (first, high), (last, low) = ranked[0], ranked[-1]
    n_left = len(indexed) - len(ranked)
    left = f" Left out, because a value is missing: {n_left} (see the table)." if n_left else ""
    return (
        f"Biology outweighs {center} more than by chance in {n_biology} of {len(judged)} {noun} "
        f"{where}{beyond}. "
        f"{_write_chance([c for _, c in judged])} "
        f"Highest: {first}, {high:.3f}. Lowest: {last}, {low:.3f}.{left}{controls}"
        f"{_by_dataset(collection, datasets) if len(datasets) > 1 else ''}"
    )


def _write_chance(chances: Sequence[float]) -> str:
    """Chance: one number, or the range over models."""
    low, high = min(chances), max(chances)
    what = "Chance, the index of an embedding without structure, is"
    if f"{low:.2f}" == f"{high:.2f}":
        return f"{what} {low:.2f}."
    return f"{what} {low:.2f} to {high:.2f} on each model’s own patches."


def _is_sure(collection: Collection, model: str, confounder: str) -> bool | None:
    """Whether the whole interval of a model's index is above its chance; None: one is unknown."""
    records = collection.of_model(RobustnessIndexResult, model, confounder)
    ends = (
        interval_of(records[0], HEADLINE.field)
        if len(records) == 1
        else collection.mean(KIND, HEADLINE, model, confounder).ci95
    )
    chance = collection.chance(model, confounder)
    if ends is None or not math.isfinite(ends[0] + chance):
        return None
    return ends[0] > chance


def _write_controls(collection: Collection, confounder: str) -> str:
    """The index of controls, which mark the scale, and how many encoders each is above."""
    if not collection.encoders:
        return ""
    means = [(m, collection.mean(KIND, HEADLINE, m, confounder).value) for m in collection.controls]
    encoders = [collection.mean(KIND, HEADLINE, m, confounder).value for m in collection.encoders]
    encoders = [value for value in encoders if math.isfinite(value)]
    said = []
    for model, value in means:
        n_below = sum(encoder < value for encoder in encoders)
        above = f" (above {n_below} of {len(encoders)} encoders)" if n_below else ""
        if math.isfinite(value):
            said.append(f"{model} {value:.3f}{above}")
    return f" Controls (not counted): {', '.join(said)}." if said else ""


def _by_dataset(collection: Collection, datasets: Sequence[str]) -> str:
    """How many models are above their own chance on each dataset, and which is the highest."""
    parts = []
    candidates = set(collection.candidates)
    for dataset in datasets:
        every = collection.of_dataset(RobustnessIndexResult, dataset)
        records = [record for record in every if record.model in candidates]
        known = [r for r in records if math.isfinite(r.robustness_index - r.null_random_features)]
        if known:
            above = sum(r.robustness_index > r.null_random_features for r in known)
            best = max(known, key=lambda r: r.robustness_index)
            parts.append(
                f"{name_dataset(dataset)} {above} of {len(known)}, {best.model} the highest "
                f"({best.robustness_index:.3f})"
            )
    return f" Above chance by dataset: {'; '.join(parts)}." if parts else ""


def build_columns(collection: Collection) -> list[Column]:
    """The mean of each confounder with several datasets, then each dataset and its size."""
    columns = [
        Column("mean", f"unweighted, over datasets{f' by {confounder}' if confounder else ''}")
        for confounder in _averaged(collection)
    ]
    for dataset in collection.datasets(RobustnessIndexResult):
        records = collection.of_dataset(RobustnessIndexResult, dataset)
        parts = [
            *([PROTOCOLS[dataset].tissue] if dataset in PROTOCOLS else []),
            f"design {join_distinct(r.design for r in records)}",
            f"{join_distinct(f'{r.n_samples:,}' for r in records)} patches",
            f"{join_distinct(f'{r.n_slides:,}' for r in records)} slides",
            *([f"chance {format_number(shared)}"] if (shared := _shared_chance(records)) else []),
            *([f"k {records[0].k}"] if _is_one_k(records) else []),
        ]
        columns.append(Column(name_dataset(dataset), " · ".join(parts)))
    return columns


def build_index(collection: Collection) -> list[Row]:
    """Models by datasets, with a mean first for each confounder that has several datasets."""
    datasets = collection.datasets(RobustnessIndexResult)
    best = {
        dataset: best_of(
            (r.model, r.robustness_index)
            for r in collection.of_dataset(RobustnessIndexResult, dataset)
        )
        for dataset in datasets
    }
    models = [m for m in collection.models if collection.of_model(RobustnessIndexResult, m)]
    best_mean = {
        c: best_of((m, collection.mean(KIND, HEADLINE, m, c).value) for m in models)
        for c in _averaged(collection)
    }
    differing = {}
    for dataset in datasets:
        records = collection.of_dataset(RobustnessIndexResult, dataset)
        differing[dataset] = (not _shared_chance(records), not _is_one_k(records))
    rows = []
    for model in models:
        cells = [_mean_cell(collection, model, c, best_mean[c]) for c in best_mean]
        cells += [
            _index_cell(collection.get(RobustnessIndexResult, model, d), best[d], *differing[d])
            for d in datasets
        ]
        rows.append(Row(model, "", cells))
    return rows


def list_index_values(collection: Collection) -> list[dict[str, Any]]:
    """The rows of ``build_index`` for a CSV file, with support, k and chance as own columns."""
    rows = []
    for model in collection.models:
        if not collection.of_model(RobustnessIndexResult, model):
            continue
        row: dict[str, Any] = {"model": model, "control": "yes" if is_control(model) else "no"}
        for confounder in _averaged(collection):
            mean = collection.mean(KIND, HEADLINE, model, confounder)
            name = f"mean@{confounder}" if confounder else "mean"
            row |= with_ends(name, mean.value, mean.ci95)
            row[f"{name}_chance"] = collection.chance(model, confounder)
        for dataset in collection.datasets(RobustnessIndexResult):
            record = collection.get(RobustnessIndexResult, model, dataset)
            if record is not None:
                row |= with_ends(dataset, record.robustness_index, record.ci95)
                row |= {f"{dataset}_support": record.support, f"{dataset}_k": record.k}
                row[f"{dataset}_chance"] = record.null_random_features
        rows.append(row)
    return rows


def _shared_chance(records: Sequence[RobustnessIndexResult]) -> float:
    """Chance of all models on a dataset to three digits; 0 where it differs or is unknown."""
    values = {format_number(record.null_random_features) for record in records}
    return records[0].null_random_features if len(values) == 1 and UNDEFINED not in values else 0.0


def _is_one_k(records: Sequence[RobustnessIndexResult]) -> bool:
    return len({record.k for record in records}) == 1


def _averaged(collection: Collection) -> list[str]:
    """Confounders with several datasets."""
    return [
        confounder
        for confounder in collection.confounders(RobustnessIndexResult)
        if len(collection.datasets(RobustnessIndexResult, confounder)) > 1
    ]


def build_companions(records: Sequence[RobustnessIndexResult]) -> Table:
    """All companion numbers on one dataset, one row per model, with intervals below the numbers."""
    why = "undefined: its denominator is 0 or unknown"
    rows = []
    for record in records:
        cells = [_small_index_cell(record)]
        for field, _ in COMPANIONS:
            interval = record.companions_ci95.get(field)
            cell = number_cell(getattr(record, field), why=why, interval=interval)
            if rests_on_few(record, field):
                count = f"{count_neighbors(record, field):,} neighbours"
                note = f"{cell.note}\n{count}" if cell.note else count
                cell = dataclasses.replace(cell, note=note, is_faint=True)
            cells.append(cell)
        cells.append(_composition_cell(record.neighbor_types))
        rows.append(Row(record.model, "", cells))
    names = ["robustness index", *(words for _, words in COMPANIONS), "neighbours"]
    return Table("Companion numbers at the operating k", names, rows)


def build_groups(
    title: str,
    records: Sequence[RobustnessIndexResult],
    field: str,
) -> Table:
    """Classes, centres or subsets by models: the index, with its interval and recall below it."""
    by_record: list[Mapping[str, Group]] = [getattr(record, field) for record in records]
    names = list(dict.fromkeys(name for groups in by_record for name in groups))
    rows = []
    for name in names:
        groups = [groups.get(name) for groups in by_record]
        sizes = join_distinct(f"{g.n_samples:,}" for g in groups if g is not None)
        cells = [_group_cell(group) for group in groups]
        rows.append(Row(name, f"n = {sizes}", cells))
    return Table(title, [record.model for record in records], rows)


def _small_index_cell(record: RobustnessIndexResult) -> Cell:
    """The index as one coloured number, without its bar."""
    value = record.robustness_index
    return Cell(
        format_number(value),
        title=why_undefined(record.support, record.n_samples) if not math.isfinite(value) else "",
        note=format_interval(record.ci95) if math.isfinite(value) else "",
        background=palette.heat(value),
        sort=sort_key(value),
    )


def _index_cell(
    record: RobustnessIndexResult | None, best: float, with_chance: bool, with_k: bool
) -> Cell:
    if record is None:
        return Cell(UNDEFINED, title="no result: the model was not evaluated on this dataset")
    value = record.robustness_index
    rule = K_RULES.get(record.k_rule, record.k_rule)
    title = f"k = {record.k} ({rule}); largest k that every sample has: {record.k_available}"
    if not math.isfinite(value):
        title = f"{why_undefined(record.support, record.n_samples)}; {title}"
    support = f"support {format_share(record.support)}"
    weak = is_weak(record.support)
    interval = format_interval(record.ci95)
    parts = [interval] if interval else []
    parts += [] if weak else [support]
    chance = format_number(record.null_random_features)
    title += f"; chance {chance}"
    parts += [f"chance {chance}"] if with_chance and chance != UNDEFINED else []
    return Cell(
        format_number(value),
        title=title,
        note=" · ".join([*parts, *([f"k {record.k}"] if with_k else [])]),
        warning=support if weak else "",
        background=palette.heat(value),
        width=_bar_width(value),
        mark=_bar_width(record.null_random_features),
        sort=sort_key(value),
        best=value == best and not is_control(record.model),
    )


def _mean_cell(collection: Collection, model: str, confounder: str, best: float) -> Cell:
    mean = collection.mean(KIND, HEADLINE, model, confounder)
    records = collection.of_model(RobustnessIndexResult, model, confounder)
    lowest = min((record.robustness_index for record in records), default=math.nan)
    interval = format_interval(mean.ci95)
    parts = [interval] if interval else []
    return Cell(
        format_number(mean.value),
        title=f"no mean: {mean.why}" if mean.why else "",
        note="incomplete" if mean.why else " · ".join([*parts, f"lowest {lowest:.3f}"]),
        background=palette.heat(mean.value),
        width=_bar_width(mean.value),
        mark=_bar_width(collection.chance(model, confounder)),
        sort=sort_key(mean.value),
        best=mean.value == best and not is_control(model),
    )


def _composition_cell(types: NeighborTypes) -> Cell:
    """The four shares as a stacked bar; a tooltip shows the numbers."""
    values = [(kind, getattr(types, kind.key)) for kind in palette.NEIGHBOR_TYPES]
    title = ", ".join(f"{kind.key.upper()} {format_number(value)}" for kind, value in values)
    if not all(math.isfinite(value) for _, value in values):
        return Cell(UNDEFINED, title=f"undefined: {title}")
    stack = tuple((kind.color, 100 * value) for kind, value in values)
    return Cell("", title=title, stack=stack, sort=sort_key(types.so))


def _group_cell(group: Group | None) -> Cell:
    if group is None:
        return Cell(UNDEFINED, title="this model's rows hold no such group")
    value = group.robustness_index
    title = f"support {format_share(group.support)}, recall {format_number(group.recall)}"
    ends = defined_ends(group.ci95)
    if not math.isfinite(value):
        title, ends = f"{why_undefined(group.support, group.n_samples)}; {title}", None
    parts = [f"{ends[0]:.2f}–{ends[1]:.2f}"] if ends else []
    parts.append(f"{group.recall:.2f}" if math.isfinite(group.recall) else UNDEFINED)
    return Cell(
        f"{value:.2f}" if math.isfinite(value) else UNDEFINED,
        title=title,
        note="\n".join(parts),
        warning=f"support {format_share(group.support)}" if is_weak(group.support) else "",
        background=palette.heat(value),
        sort=sort_key(value),
    )


def _bar_width(value: float) -> float | None:
    """Percentage of the bar that is filled."""
    return 100 * min(max(value, 0.0), 1.0) if math.isfinite(value) else None
