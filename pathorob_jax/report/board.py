"""All records of a report in their order, and what can be said of them in words.

Enters: records. Leaves: a board to look them up in, the answer in a sentence, and the warnings that
a reader should see before comparing numbers.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pathorob_jax.checks import InputError
from pathorob_jax.report.palette import LOW_SUPPORT
from pathorob_jax.results import RobustnessIndexResult


class Board:
    """The records by model and dataset, and the order in which they are shown."""

    def __init__(self, records: Sequence[RobustnessIndexResult]) -> None:
        self._records: dict[tuple[str, str], RobustnessIndexResult] = {}
        for record in records:
            key = (record.model, record.dataset)
            if key in self._records:
                raise InputError(
                    f"results: expected one robustness_index.json for model {key[0]!r} on "
                    f"dataset {key[1]!r}, found two; remove the folder that was copied."
                )
            self._records[key] = record
        self.datasets = sorted({record.dataset for record in records})
        self.models = sorted({record.model for record in records}, key=self._rank)

    def get(self, model: str, dataset: str) -> RobustnessIndexResult | None:
        """The record of a model on a dataset, if there is one."""
        return self._records.get((model, dataset))

    def of_dataset(self, dataset: str) -> list[RobustnessIndexResult]:
        """The dataset's records in the order of models."""
        found = (self.get(model, dataset) for model in self.models)
        return [record for record in found if record is not None]

    def of_model(self, model: str) -> list[RobustnessIndexResult]:
        """The model's records in the order of datasets."""
        found = (self.get(model, dataset) for dataset in self.datasets)
        return [record for record in found if record is not None]

    def mean(self, model: str) -> float:
        """Unweighted mean over all datasets of the report; NaN when one lacks a value."""
        values = [record.robustness_index for record in self.of_model(model)]
        return sum(values) / len(values) if len(values) == len(self.datasets) else math.nan

    def chance(self, dataset: str) -> float:
        """The index of an embedding without structure: it follows from label counts alone."""
        values = [record.null_random_features for record in self.of_dataset(dataset)]
        values = [value for value in values if math.isfinite(value)]
        return sum(values) / len(values) if values else math.nan

    def _rank(self, model: str) -> tuple[bool, float, str]:
        """Complete models by falling mean; the others after them, by what they have."""
        mean = self.mean(model)
        if math.isfinite(mean):
            return (False, -mean, model)
        known = [r.robustness_index for r in self.of_model(model)]
        known = [value for value in known if math.isfinite(value)]
        return (True, -sum(known) / len(known) if known else 1.0, model)


def write_answer(board: Board) -> str:
    """The report in a sentence or two, for the first screen."""
    where = f"on {board.datasets[0]}" if len(board.datasets) == 1 else "on average over datasets"
    ranked = [(m, board.mean(m)) for m in board.models if math.isfinite(board.mean(m))]
    if not ranked:
        return "No model has an index on every dataset of this report; see the table for reasons."
    chance = sum(board.chance(d) for d in board.datasets) / len(board.datasets)
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
    n_left = len(board.models) - len(ranked)
    left = f" Left out, because a value is missing: {n_left} (see the table)." if n_left else ""
    return (
        f"Biology outweighs the medical centre (index above {chance:.2f}, what an embedding "
        f"without structure gives) in {n_biology} of {len(ranked)} models {where}. "
        f"Highest: {first}, {high:.3f}. Lowest: {last}, {low:.3f}.{left}"
    )


def collect_warnings(board: Board) -> list[tuple[str, str, str]]:
    """Warnings as (dataset, text, models), equal texts gathered, and what the report noticed."""
    found: list[tuple[str, str, str]] = []
    for dataset in board.datasets:
        records = board.of_dataset(dataset)
        texts: dict[str, list[str]] = {}
        for record in records:
            for text in record.warnings:
                texts.setdefault(text, []).append(record.model)
        weak = [r.model for r in records if is_weak(r.support)]
        if weak:
            texts["The index rests on less than half of the samples (support below 50 %)."] = weak
        found += [(dataset, text, _name_models(m, len(records))) for text, m in texts.items()]
        for what, read in _COMPARABLE:
            values: dict[Any, list[str]] = {}
            for record in records:
                values.setdefault(read(record), []).append(record.model)
            if len(values) > 1:
                parts = join_distinct(f"{v} ({_name_models(m)})" for v, m in values.items())
                text = f"Models were scored with different {what}, {parts}; compare with care."
                found.append((dataset, text, ""))
    return found


def _name_models(models: Sequence[str], n_all: int = -1) -> str:
    """Few models by name, many by number."""
    if len(models) == n_all and n_all > 1:
        return "all models"
    return ", ".join(models) if len(models) <= 3 else f"{len(models)} models"


_COMPARABLE: tuple[tuple[str, Callable[[RobustnessIndexResult], Any]], ...] = (
    ("k", lambda record: record.k),
    ("designs", lambda record: record.design),
    ("numbers of patches", lambda record: record.n_samples),
    ("numbers of groups", lambda record: record.n_groups),
)


def is_weak(support: float) -> bool:
    """True where the index speaks for less than half of the samples, or for none."""
    return not support >= LOW_SUPPORT


def join_distinct(words: Iterable[str], *, limit: int = 4) -> str:
    """Distinct words in order of appearance, separated by commas."""
    words = list(dict.fromkeys(words))
    return ", ".join(words[:limit]) + (", …" if len(words) > limit else "")
