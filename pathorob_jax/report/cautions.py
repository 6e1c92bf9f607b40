"""What to read before numbers are compared: warnings of records, and findings of the report.

Warnings are ordered by what they do to the numbers. One that several models or datasets share is
said once; where only its numbers differ, it is said with their range.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pathorob_jax.report.sentences import is_weak, join_distinct, name_dataset
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.flatten import interval_of
from pathorob_jax.results.power import NO_WIDTH
from pathorob_jax.results.robustness_index import RobustnessIndexResult

# What a warning does to numbers, the gravest first: they can't be compared, their files are not
# proven to be whole, a number of the first screen rests on little, another number is missing or
# says nothing, or rests on little, anything else.
INCOMPARABLE, UNPROVEN, WEAK, MISSING, UNSURE, NOTE = range(6)
# Values that a warning lists itself, and their length; more are folded.
MAX_VALUES, MAX_VALUE = 3, 30
# Models that a warning names; more are counted, and named where one opens the list.
MAX_NAMED = 3
_MISSING = re.compile(r"undefined|collapsed|says nothing|cannot be fitted", re.IGNORECASE)
_UNSURE = re.compile(r"no interval|converge|cut short|too few|fewer|not the nearest", re.IGNORECASE)
_NUMBER = r"[-−+]?\d+(?:,\d{3})*(?:\.\d+)?"
_RUN = re.compile(rf"(?<![\w.]){_NUMBER}(?:, {_NUMBER})*(?!\w)")


class Caution(NamedTuple):
    """A warning of the page.

    Attributes:
        datasets: names of datasets in words.
        models: names of models, or how many; empty: it is about all.
        text: the warning.
        named: the models, where ``models`` only counts them.
        details: lines that are folded.
    """

    datasets: str
    models: str
    text: str
    named: str = ""
    details: Sequence[str] = ()


class _Found(NamedTuple):
    """A warning about one dataset, and one model or (empty) all; ``details`` are folded lines."""

    weight: int
    text: str
    dataset: str
    model: str = ""
    details: tuple[str, ...] = ()


def collect_cautions(collection: Collection) -> list[Caution]:
    """Warnings, the gravest first; equal ones once."""
    found = [*_find(collection)]
    groups: dict[tuple[int, str], list[_Found]] = {}
    for one in found:
        groups.setdefault((one.weight, _RUN.sub("#", one.text)), []).append(one)
    merged = []
    for (weight, _), group in groups.items():
        for part in _split(group):
            places = {(one.dataset, one.model) for one in part}
            merged.append((weight, -len(places), _merge(collection, part)))
    return [caution for _, _, caution in sorted(merged, key=lambda one: one[:2])]


def _find(collection: Collection) -> Iterable[_Found]:
    every = [o for dataset in collection.all_datasets() for o in collection.outcomes(dataset)]
    unchecked = sum(not outcome.is_checked for outcome in every)
    count = "all" if unchecked == len(every) else f"{unchecked} of {len(every)}"
    for dataset in collection.all_datasets():
        yield from _find_differences(collection, dataset)
        for outcome in collection.outcomes(dataset):
            record = outcome.record
            if outcome.note:
                yield _Found(INCOMPARABLE, outcome.note, dataset, record.model)
            if not outcome.is_checked:
                text = (
                    f"An older version wrote {count} results, without a digest: they are unchecked."
                )
                yield _Found(UNPROVEN, text, dataset, record.model)
            for text in record.warnings:
                # Each of these texts names a different share; one text below replaces them.
                if not text.startswith("support "):
                    yield _Found(_weigh(text), text, dataset, record.model)
        for record in collection.of_dataset(RobustnessIndexResult, dataset):
            if is_weak(record.support):
                text = "The index rests on less than half of the samples (support below 50 %)."
                yield _Found(WEAK, text, dataset, record.model)
        yield from _find_without_width(collection, dataset)


def _weigh(text: str) -> int:
    if _MISSING.search(text):
        return MISSING
    return UNSURE if _UNSURE.search(text) else NOTE


def _find_differences(collection: Collection, dataset: str) -> Iterable[_Found]:
    """Settings that differ between models although a fair comparison needs equal ones."""
    for kind in collection.kinds:
        for what, read in kind.comparable:
            values: dict[Any, list[str]] = {}
            for record in collection.of_dataset(kind.record, dataset):
                values.setdefault(read(record), []).append(record.model)
            if len(values) < 2:
                continue
            parts = tuple(f"{v} ({_name_models(m)})" for v, m in values.items())
            is_short = all(len(str(value)) <= MAX_VALUE for value in values)
            if len(values) <= MAX_VALUES and is_short:
                text = (
                    f"Models were scored with different {what}; compare their {kind.title} with "
                    f"care: {', '.join(parts)}."
                )
                yield _Found(INCOMPARABLE, text, dataset)
            else:
                n_models = sum(map(len, values.values()))
                text = (
                    f"{n_models} models were scored with {len(values)} different {what}; compare "
                    f"their {kind.title} with care."
                )
                yield _Found(INCOMPARABLE, text, dataset, "", parts)


def _find_without_width(collection: Collection, dataset: str) -> Iterable[_Found]:
    """Intervals whose ends are one number."""
    for kind in collection.kinds:
        for record in collection.of_dataset(kind.record, dataset):
            for headline in kind.headlines:
                ends = interval_of(record, headline.field)
                if ends is not None and ends[1] - ends[0] < NO_WIDTH:
                    text = (
                        f"The interval of the {headline.title} has no width: no single slide "
                        "changes the number. That is no certainty, since other slides may; its "
                        "error is unknown, and so is how many slides would tell models apart."
                    )
                    yield _Found(WEAK, text, dataset, record.model)


def _split(group: Sequence[_Found]) -> list[list[_Found]]:
    """Warnings that may be said as one: equal ones, or one of each model and dataset."""
    texts = {(one.dataset, one.model, one.text) for one in group}
    if len({text[:2] for text in texts}) == len(texts):
        return [list(group)]
    equal: dict[str, list[_Found]] = {}
    for one in group:
        equal.setdefault(one.text, []).append(one)
    return list(equal.values())


def _merge(collection: Collection, group: Sequence[_Found]) -> Caution:
    datasets = list(dict.fromkeys(one.dataset for one in group))
    every = [d for d in collection.all_datasets() if len(datasets) > 1]
    where = "all datasets" if datasets == every else join_distinct(map(name_dataset, datasets))
    concerned = {one.model for one in group if one.model}
    models = [model for model in collection.models if model in concerned]
    there = {o.record.model for d in datasets for o in collection.outcomes(d)}
    names = ""
    if models:
        is_all = len(models) == len(there) and len(models) > 1
        names = "all models" if is_all else _name_models(models)
    named = ", ".join(models) if names == f"{len(models)} models" else ""
    details = [
        f"{name_dataset(one.dataset)}: {line}" if len(datasets) > 1 else line
        for one in group
        for line in one.details
    ]
    return Caution(where, names, _say([one.text for one in group]), named, details)


def _say(texts: Sequence[str]) -> str:
    """One text for texts that differ in their numbers only, with the range of each."""
    texts = list(dict.fromkeys(texts))
    if len(texts) == 1:
        return texts[0]
    runs = [_RUN.findall(text) for text in texts]
    ranges = iter([_range(found) for found in zip(*runs, strict=True)])
    say: Callable[[re.Match[str]], str] = lambda _: next(ranges)  # noqa: E731
    return _RUN.sub(say, texts[0])


def _range(found: Sequence[str]) -> str:
    if len(set(found)) == 1:
        return found[0]
    if any(", " in run for run in found):
        return "… (not the same)"
    ordered = sorted(set(found), key=lambda text: float(text.replace(",", "").replace("−", "-")))
    return f"{ordered[0]} to {ordered[-1]}"


def _name_models(models: Sequence[str]) -> str:
    """Name up to three models; count more."""
    return ", ".join(models) if len(models) <= MAX_NAMED else f"{len(models)} models"
