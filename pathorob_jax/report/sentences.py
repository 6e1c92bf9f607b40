"""Sentences of the report: warnings to read before comparing numbers, and names of datasets."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pathorob_jax.core.folder_names import split_confounder
from pathorob_jax.report.palette import LOW_SUPPORT
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.robustness_index import RobustnessIndexResult


def collect_warnings(collection: Collection) -> list[tuple[str, str, str]]:
    """Warnings as (dataset, text, models), equal texts merged, with findings of the report.

    What makes models incomparable comes first, then what numbers rest on, then the rest.
    """
    warnings: list[tuple[str, str, str]] = []
    first: list[tuple[str, str, str]] = []
    for dataset in collection.all_datasets():
        records = [
            record
            for kind in collection.kinds
            for record in collection.of_dataset(kind.record, dataset)
        ]
        texts: dict[str, list[str]] = {}
        for record in records:
            for text in record.warnings:
                # Each of these texts names a different share; one text below replaces them.
                if not text.startswith("support "):
                    texts.setdefault(text, []).append(record.model)
        indices = collection.of_dataset(RobustnessIndexResult, dataset)
        weak = [r.model for r in indices if is_weak(r.support)]
        if weak:
            text = "The index rests on less than half of the samples (support below 50 %)."
            texts = {text: weak} | texts
        n_models, name = len({record.model for record in records}), name_dataset(dataset)
        merged = {text: list(dict.fromkeys(models)) for text, models in texts.items()}
        warnings += [(name, text, _name_models(m, n_models)) for text, m in merged.items()]
        first += [(name, text, "") for text in _list_differences(collection, dataset)]
        first += [(name, o.note, o.record.model) for o in collection.outcomes(dataset) if o.note]
    return [*first, *_warn_unchecked(collection), *warnings]


def _warn_unchecked(collection: Collection) -> list[tuple[str, str, str]]:
    """One warning for all records that were read from files without a digest."""
    every = [o for dataset in collection.all_datasets() for o in collection.outcomes(dataset)]
    unchecked = [o.record for o in every if not o.is_checked]
    if not unchecked:
        return []
    count = "all" if len(unchecked) == len(every) else f"{len(unchecked)} of {len(every)}"
    text = f"An older version wrote {count} results, without a digest: they are unchecked."
    datasets = join_distinct(name_dataset(r.dataset) for r in unchecked)
    return [(datasets, text, _name_models(list(dict.fromkeys(r.model for r in unchecked))))]


def _list_differences(collection: Collection, dataset: str) -> list[str]:
    """Settings that differ between models although a fair comparison needs equal ones."""
    texts = []
    for kind in collection.kinds:
        for what, read in kind.comparable:
            values: dict[Any, list[str]] = {}
            for record in collection.of_dataset(kind.record, dataset):
                values.setdefault(read(record), []).append(record.model)
            if len(values) > 1:
                parts = join_distinct(f"{v} ({_name_models(m)})" for v, m in values.items())
                texts.append(
                    f"Models were scored with different {what}; compare their "
                    f"{kind.title} with care: {parts}."
                )
    return texts


def name_dataset(dataset: str) -> str:
    """Name of a dataset on the page; ``data@column`` was scored with ``column`` as confounder."""
    name, confounder = split_confounder(dataset)
    return f"{name} by {confounder}" if confounder else name


def answer_by_confounder(collection: Collection, record: Any, answer: Callable[[str], str]) -> str:
    """One sentence for each confounder of a record class, each saying which one it is about."""
    confounders = collection.confounders(record)
    if len(confounders) == 1:
        return answer(confounders[0])
    return " ".join(f"By {c or 'medical centre'}: {answer(c)}" for c in confounders)


def is_weak(support: float) -> bool:
    """Whether the index covers less than half of the samples, or none."""
    return not support >= LOW_SUPPORT


def join_distinct(words: Iterable[str], *, limit: int = 4) -> str:
    """Distinct words in order of appearance, separated by commas."""
    words = list(dict.fromkeys(words))
    return ", ".join(words[:limit]) + (", …" if len(words) > limit else "")


def _name_models(models: Sequence[str], n_all: int = -1) -> str:
    """Name up to three models; count more."""
    if len(models) == n_all and n_all > 1:
        return "all models"
    return ", ".join(models) if len(models) <= 3 else f"{len(models)} models"


def why_undefined(support: float, n_samples: int) -> str:
    """Reason why an index is undefined."""
    if support == 0:
        return (
            f"undefined: support 0, none of the {n_samples:,} samples has a neighbour of type SO "
            "or OS among its k nearest"
        )
    return "undefined: the result holds no value"
