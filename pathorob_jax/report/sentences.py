"""What can be said of a report in words.

Enters: a board. Leaves: the answer in a few sentences, the warnings that a reader should see before
comparing numbers, and the names of datasets.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pathorob_jax.report.collection import HEADLINES, Board
from pathorob_jax.report.palette import LOW_SUPPORT
from pathorob_jax.report.table_cells import format_number, format_percent
from pathorob_jax.results.records import ApdResult, ClusteringResult, RobustnessIndexResult


def write_answer(board: Board) -> list[str]:
    """The report in a few sentences, for the first screen."""
    out = []
    if board.datasets(RobustnessIndexResult):
        out.append(_answer_index(board))
    if board.datasets(ApdResult):
        out.append(_answer_drop(board))
    if board.datasets(ClusteringResult):
        out.append(_answer_clusters(board))
    return out


def _answer_index(board: Board) -> str:
    datasets = board.datasets(RobustnessIndexResult)
    where = f"on {name_dataset(datasets[0])}" if len(datasets) == 1 else "on average over datasets"
    indexed = [m for m in board.models if board.of_model(RobustnessIndexResult, m)]
    means = [(m, board.mean(RobustnessIndexResult, m)) for m in indexed]
    ranked = [(m, value) for m, value in means if math.isfinite(value)]
    if not ranked:
        return "No model has an index on every dataset of this report; see the table for reasons."
    chance = board.mean_chance()
    if not math.isfinite(chance):
        return f"Highest: {ranked[0][0]}, {ranked[0][1]:.3f} {where}; chance is undefined."
    beside = f"(without any structure it would be {chance:.2f})"
    if len(ranked) == 1:
        model, value = ranked[0]
        rules = "biology and the medical centre weigh the same"
        if value != chance:
            sides = ("biology", "the medical centre")
            stronger, weaker = sides if value > chance else sides[::-1]
            rules = f"{stronger} outweighs {weaker}"
        return f"In {model}, {rules}: robustness index {value:.3f} {where} {beside}."
    n_biology = sum(value > chance for _, value in ranked)
    (first, high), (last, low) = ranked[0], ranked[-1]
    n_left = len(indexed) - len(ranked)
    left = f" Left out, because a value is missing: {n_left} (see the table)." if n_left else ""
    return (
        f"Biology outweighs the medical centre (index above {chance:.2f}, what an embedding "
        f"without structure gives) in {n_biology} of {len(ranked)} models {where}. "
        f"Highest: {first}, {high:.3f}. Lowest: {last}, {low:.3f}.{left}"
    )


def _answer_drop(board: Board) -> str:
    """Which model's classifier loses least and most when class and centre are confounded."""
    means = [(m, board.mean(ApdResult, m)) for m in board.models]
    ranked = sorted((-value, m) for m, value in means if math.isfinite(value))
    if not ranked:
        return "No model has a performance drop on every dataset; see the table for reasons."
    said = [f"with {model} by {format_percent(-less)}" for less, model in ranked]
    how = f"least {said[0]}, most {said[-1]}" if len(said) > 1 else said[0]
    return (
        "Where training data confound class and centre, a classifier’s accuracy at the same "
        f"centres changes {how} (average performance drop)."
    )


def _answer_clusters(board: Board) -> str:
    """Which model's clusters follow biology most and least."""
    means = [(m, board.mean(ClusteringResult, m)) for m in board.models]
    ranked = sorted((-value, m) for m, value in means if math.isfinite(value))
    if not ranked:
        return "No model has a clustering score on every dataset; see the table for reasons."
    said = [f"{model}, {format_number(-less)}" for less, model in ranked]
    ends = "Clusters follow biology (1) rather than the centre (−1)"
    if len(said) == 1:
        return f"{ends} by this score: {said[0]}."
    return f"{ends} most with {said[0]}, and least with {said[-1]}."


def collect_warnings(board: Board) -> list[tuple[str, str, str]]:
    """Warnings as (dataset, text, models), equal texts gathered, and what the report noticed."""
    found: list[tuple[str, str, str]] = []
    datasets = sorted({d for kind in HEADLINES for d in board.datasets(kind)})
    for dataset in datasets:
        texts: dict[str, list[str]] = {}
        for kind in HEADLINES:
            for record in board.of_dataset(kind, dataset):
                for text in record.warnings:
                    # Each names a share of its own; they are gathered below.
                    if not text.startswith("support "):
                        texts.setdefault(text, []).append(record.model)
        records = board.of_dataset(RobustnessIndexResult, dataset)
        weak = [r.model for r in records if is_weak(r.support)]
        if weak:
            texts["The index rests on less than half of the samples (support below 50 %)."] = weak
        shown = {r.model for kind in HEADLINES for r in board.of_dataset(kind, dataset)}
        name = name_dataset(dataset)
        gathered = {text: list(dict.fromkeys(models)) for text, models in texts.items()}
        found += [(name, text, _name_models(m, len(shown))) for text, m in gathered.items()]
        for kind, what, read in _COMPARABLE:
            values: dict[Any, list[str]] = {}
            for record in board.of_dataset(kind, dataset):
                values.setdefault(read(record), []).append(record.model)
            if len(values) > 1:
                parts = join_distinct(f"{v} ({_name_models(m)})" for v, m in values.items())
                text = f"Models were scored with different {what}, {parts}; compare with care."
                found.append((name, text, ""))
    return found


def name_dataset(dataset: str) -> str:
    """A dataset as the page names it; ``data@column`` was scored with that column as confounder."""
    name, confounder = split_dataset(dataset)
    return f"{name} by {confounder}" if confounder else name


def split_dataset(dataset: str) -> tuple[str, str]:
    """Name and confounder; the latter is empty where it is the medical centre."""
    name, at, confounder = dataset.rpartition("@")
    return (name, confounder) if at and name and confounder else (dataset, "")


def is_weak(support: float) -> bool:
    """True where the index speaks for less than half of the samples, or for none."""
    return not support >= LOW_SUPPORT


def join_distinct(words: Iterable[str], *, limit: int = 4) -> str:
    """Distinct words in order of appearance, separated by commas."""
    words = list(dict.fromkeys(words))
    return ", ".join(words[:limit]) + (", …" if len(words) > limit else "")


def _name_models(models: Sequence[str], n_all: int = -1) -> str:
    """Few models by name, many by number."""
    if len(models) == n_all and n_all > 1:
        return "all models"
    return ", ".join(models) if len(models) <= 3 else f"{len(models)} models"


_COMPARABLE: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = (
    (RobustnessIndexResult, "k", lambda record: record.k),
    (RobustnessIndexResult, "designs", lambda record: record.design),
    (RobustnessIndexResult, "numbers of patches", lambda record: record.n_samples),
    (RobustnessIndexResult, "numbers of groups", lambda record: record.n_groups),
    (ClusteringResult, "distances", lambda record: record.distance),
    (ClusteringResult, "grids of K", lambda r: f"{min(r.k_grid)}–{max(r.k_grid)}"),
    (ClusteringResult, "numbers of trials", lambda record: record.trials),
    (ApdResult, "numbers of repetitions", lambda record: record.repetitions),
    (ApdResult, "series of splits", lambda r: f"V {', '.join(f'{v:.2f}' for v in r.cramers_v)}"),
)
