"""Section of the clustering score: its tables, figure, CSV files and answer."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pathorob_jax.report import csv_tables, figures, palette
from pathorob_jax.report.section import Block, Draw, Section
from pathorob_jax.report.sentences import answer_by_confounder, join_distinct, name_dataset
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Row,
    Table,
    format_interval,
    format_number,
    number_cell,
    sort_key,
)
from pathorob_jax.results.clustering_score import KIND, ClusteringCombination, ClusteringResult
from pathorob_jax.results.collection import Collection

AGREEMENTS = (
    ("ari_biology", "ARI biology"),
    ("ari_center", "ARI centre"),
    ("nmi_biology", "NMI biology"),
    ("nmi_center", "NMI centre"),
    ("ami_biology", "AMI biology"),
    ("ami_center", "AMI centre"),
)
WHY = "undefined: no combination of two classes and two centres has a score; see the warnings"


def build_section(collection: Collection, draw: Draw) -> Section:
    """The score of each model, and its components for each dataset."""
    datasets = collection.datasets(ClusteringResult)
    panels = [(d, collection.of_dataset(ClusteringResult, d)) for d in datasets]
    scored = [m for m in collection.models if collection.of_model(ClusteringResult, m)]
    figure = draw(
        "clustering_score",
        "Clustering score of each model",
        lambda: figures.draw_clusters(scored, panels),
    )
    context = {
        "clusters_figure": figure,
        "clusters": [_dataset_part(dataset, records) for dataset, records in panels],
    }
    tables = {
        "clustering_combinations.csv": csv_tables.format_combinations(
            collection.of_kind(ClusteringResult)
        )
    }
    blocks = [Block("clustering_score.jinja", context, (("clusters", "clustering score"),))]
    return Section(blocks, tables, write_answer(collection))


def _dataset_part(dataset: str, records: Sequence[ClusteringResult]) -> dict[str, Any]:
    return {
        "name": name_dataset(dataset),
        "scores": build_scores(records),
        "combinations": build_combinations(records),
        "n_at_end": sum(record.n_at_k_max for record in records),
        "n_combinations": sum(len(record.combinations) for record in records),
        "k_end": join_distinct(str(max(record.k_grid)) for record in records),
    }


def write_answer(collection: Collection) -> str:
    """Say which models' clusters follow biology most and least."""
    return answer_by_confounder(collection, ClusteringResult, lambda c: _answer(collection, c))


def _answer(collection: Collection, confounder: str) -> str:
    [headline] = KIND.headlines
    found = {m: collection.mean(KIND, headline, m, confounder) for m in collection.candidates}
    ranked = sorted((-mean.value, m) for m, mean in found.items() if math.isfinite(mean.value))
    if not ranked:
        return "No model has a clustering score on every dataset; see the table for reasons."
    parts = [f"{model}, {format_number(-less)}" for less, model in ranked]
    ends = f"Clusters follow biology (1) rather than {confounder or 'the centre'} (−1)"
    if len(parts) == 1:
        return f"{ends} by this score: {parts[0]}."
    if format_number(ranked[0][0]) == format_number(ranked[-1][0]):
        return f"{ends} equally with all {len(parts)} models: {format_number(-ranked[0][0])}."
    return f"{ends} most with {parts[0]}, and least with {parts[-1]}."


def build_scores(records: Sequence[ClusteringResult]) -> Table:
    """The score on one dataset and its components, one row per model."""
    rows = []
    for record in records:
        noise = record.clustering_score_std
        cells = [
            score_cell(record.clustering_score, record.ci95),
            Cell(f"± {noise:.3f}", sort=sort_key(noise))
            if math.isfinite(noise)
            else Cell(UNDEFINED, title="undefined: needs two trials"),
            *(number_cell(getattr(record, field), why=WHY) for field, _ in AGREEMENTS),
            number_cell(record.clustering_score_at_n_classes, why=WHY),
            _chosen_cell(record),
            _end_cell(record),
        ]
        n = len(record.combinations)
        note = f"{n} combination{'' if n == 1 else 's'}, {record.trials} trials"
        rows.append(Row(record.model, note, cells))
    columns = ["score", "seed noise", *(words for _, words in AGREEMENTS)]
    columns += ["score, K = classes", "chosen K", "K at the end of the grid"]
    return Table("Clustering score", columns, rows)


def build_combinations(records: Sequence[ClusteringResult]) -> Table:
    """Combinations by models: the score, the chosen K, and whether K is the end of the grid."""
    by_record = [
        {(tuple(c.classes), tuple(c.centers)): c for c in record.combinations} for record in records
    ]
    rows = []
    for labels in dict.fromkeys(labels for by_labels in by_record for labels in by_labels):
        combinations = [by_labels.get(labels) for by_labels in by_record]
        first = next(c for c in combinations if c is not None)
        title = f"{', '.join(first.classes)} at {', '.join(first.centers)}"
        cells = [_combination_cell(combination) for combination in combinations]
        rows.append(Row(title, f"n = {first.n_samples:,}", cells))
    return Table("Combinations", [record.model for record in records], rows)


def score_cell(value: float, interval: Sequence[float] | None) -> Cell:
    """A score from −1 to 1 on the colour scale of the index."""
    cell = number_cell(value, why=WHY, interval=interval)
    return Cell(
        cell.text,
        title=cell.title,
        note=cell.note,
        background=palette.heat((value + 1) / 2),
        sort=cell.sort,
    )


def is_at_end(combination: ClusteringCombination) -> bool:
    """Whether the chosen K is the largest one tried, so that a larger K might be better."""
    return combination.k == combination.k_max


def _chosen_cell(record: ClusteringResult) -> Cell:
    chosen = [c.k for c in record.combinations]
    if not chosen:
        return Cell(UNDEFINED, title=WHY)
    median, low, high = float(np.median(chosen)), min(chosen), max(chosen)
    note = f"{low}–{high}" if low != high else ""
    return Cell(f"{median:g}", note=note, sort=sort_key(median))


def _end_cell(record: ClusteringResult) -> Cell:
    n, total = record.n_at_k_max, len(record.combinations)
    if not n:
        return Cell("none", sort="0")
    return Cell(f"{n} of {total}", warning="K ends the grid", sort=sort_key(n))


def _combination_cell(combination: ClusteringCombination | None) -> Cell:
    if combination is None:
        return Cell(UNDEFINED, title="this model's rows hold no such combination")
    value = combination.clustering_score
    at_end = is_at_end(combination)
    interval = format_interval(combination.ci95)
    parts = [f"95 % interval {interval}"] if interval else []
    parts += [
        f"seed noise {format_number(combination.clustering_score_std)}",
        f"ARI biology {format_number(float(np.mean(combination.ari_biology)))}",
        f"ARI centre {format_number(float(np.mean(combination.ari_center)))}",
    ]
    return Cell(
        f"{value:.2f}".replace("-", "−") if math.isfinite(value) else UNDEFINED,
        title=", ".join(parts) if math.isfinite(value) else "undefined: a trial has no score",
        note=f"K {combination.k}",
        warning="K ends the grid" if at_end else "",
        background=palette.heat((value + 1) / 2),
        sort=sort_key(value),
    )
