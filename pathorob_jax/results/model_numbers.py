"""One row of numbers for each model: from records, or from a table of published numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import table_files
from pathorob_jax.metrics.apd import accuracy_interval
from pathorob_jax.models.facts import ModelFacts, find_facts
from pathorob_jax.models.names import is_control
from pathorob_jax.results import registry
from pathorob_jax.results.apd import ApdResult
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.margins import MarginsResult
from pathorob_jax.results.over_models import APD_ID, APD_OOD, INDEX, ModelRow
from pathorob_jax.results.robustification import RobustificationResult
from pathorob_jax.results.robustness_index import RobustnessIndexResult

ACCURACY, KNN_ACCURACY, CLUSTERING = "accuracy", "knn_accuracy", "clustering_score"
MODEL = "model"
# Columns of PathoROB's leaderboard, in per cent where it says so, by ours.
LEADERBOARD = {INDEX: "ri_mean", APD_ID: "apd_id_percent", APD_OOD: "apd_ood_percent"}
CLUSTERING_COLUMNS = ("clustering_camelyon", "clustering_tcga_4x4", "clustering_tolkach_esca")
# Ends of the names of columns that say more of the number before them.
SUFFIXES = ("_low", "_high", "_support", "_neighbors", "_chance")
# What a name of a robustified model has between that of its encoder and its method.
ROBUSTIFIED = "+"
_DEVIATIONS = float(special.ndtri(0.975))


class Numbers(NamedTuple):
    """Numbers of all models.

    Attributes:
        titles: title of each number by its name.
        rows: the models.
        left_out: models that do not count: robustified ones, which are none of their own, and
            controls.
    """

    titles: dict[str, str]
    rows: list[ModelRow]
    left_out: list[str]


class Extra(NamedTuple):
    """A number that is no headline: name, title, record, and its value and interval there."""

    name: str
    title: str
    record: Any
    read: Callable[[Any], tuple[float, list[float] | None]]


def _accuracy(side: str) -> Callable[[Any], tuple[float, list[float] | None]]:
    def read(record: ApdResult) -> tuple[float, list[float] | None]:
        ends = accuracy_interval(
            getattr(record, f"{side}_accuracies")[0],
            n_training=record.n_training_rows,
            n_test=record.n_id_test_rows,
            in_domain=side == "id",
        )
        return getattr(record, f"{side}_accuracy_means")[0], ends

    return read


def _field(name: str) -> Callable[[Any], tuple[float, list[float] | None]]:
    def read(record: Any) -> tuple[float, list[float] | None]:
        ends = getattr(record, f"{name}_ci95", None)
        if ends is None:
            ends = getattr(record, "companions_ci95", {}).get(name)
        return getattr(record, name), ends

    return read


EXTRAS = (
    Extra(ACCURACY, "accuracy in domain, no association", ApdResult, _accuracy("id")),
    Extra("accuracy_ood", "accuracy out of domain, no association", ApdResult, _accuracy("ood")),
    Extra("nipd_id", "nIPD in domain", ApdResult, _field("nipd_id")),
    Extra("nipd_ood", "nIPD out of domain", ApdResult, _field("nipd_ood")),
    Extra(
        KNN_ACCURACY, "accuracy of neighbours", RobustnessIndexResult, _field("balanced_accuracy")
    ),
    *(
        Extra(name, name.replace("_", " "), RobustnessIndexResult, _field(name))
        for name in (
            *("prediction_performance", "generalization_index", "confounder_insensitivity"),
            "bio_vs_confounding",
        )
    ),
    Extra("mari", "MaRI", MarginsResult, _field("mari")),
    Extra("croma_f0", "CRoMa, F(0)", MarginsResult, _field("croma_f0")),
    Extra("croma_ltm10", "CRoMa, lower-tail mean", MarginsResult, _field("croma_ltm10")),
)

EXTRAS_BY_NAME = {extra.name: extra for extra in EXTRAS}


def read_collection(
    collection: Collection,
    facts: Mapping[str, ModelFacts] | None = None,
    *,
    confounder: str = "",
    all_models: bool = False,
) -> Numbers:
    """Means over the datasets of one confounder, of every model.

    Args:
        collection: records.
        facts: facts of models beyond the registry.
        confounder: whose datasets; empty: the medical centre's.
        all_models: whether robustified models and controls are among them.
    """
    models: list[str] = []
    left_out: list[str] = []
    for model in sorted(collection.models):
        kept = all_models or counts(model)
        (models if kept else left_out).append(model)
    titles: dict[str, str] = {}
    values: dict[str, dict[str, float]] = {model: {} for model in models}
    ends: dict[str, dict[str, list[float] | None]] = {model: {} for model in models}
    for kind in collection.kinds:
        if kind.record is RobustificationResult or not collection.datasets(kind.record, confounder):
            continue
        for headline in kind.headlines:
            field = headline.field
            name = f"{kind.name}.{field}" if field in titles else field
            titles[name] = headline.title
            for model in models:
                mean = collection.mean(kind, headline, model, confounder)
                values[model][name], ends[model][name] = mean.value, mean.ci95
    for extra in EXTRAS:
        if not collection.datasets(extra.record, confounder) or extra.name in titles:
            continue
        titles[extra.name] = extra.title
        for model in models:
            found = average_extra(collection, extra, model, confounder)
            values[model][extra.name], ends[model][extra.name] = found
    rows = [
        ModelRow(model, values[model], ends[model], list_facts(find_facts(model, facts)))
        for model in models
    ]
    return Numbers(titles, rows, left_out)


def counts(model: str) -> bool:
    """Whether a model counts in what holds over models: no robustified one, and no control."""
    return ROBUSTIFIED not in model and not is_control(model)


def average_extra(
    collection: Collection, extra: Extra, model: str, confounder: str
) -> tuple[float, list[float] | None]:
    """Mean over datasets, whose errors are independent; undefined where one lacks the number."""
    datasets = collection.datasets(extra.record, confounder)
    records = [collection.get(extra.record, model, dataset) for dataset in datasets]
    if not records or any(record is None for record in records):
        return math.nan, None
    pairs = [extra.read(record) for record in records]
    value = float(np.mean([value for value, _ in pairs]))
    deviations = [deviation(ends) for _, ends in pairs]
    half = _DEVIATIONS * math.sqrt(sum(d * d for d in deviations)) / len(pairs)
    if not math.isfinite(value + half):
        return value, None
    return value, [value - half, value + half]


def deviation(ends: Sequence[float] | None) -> float:
    """Standard deviation that a 95 % interval stands for; NaN without one."""
    return math.nan if ends is None else (ends[1] - ends[0]) / (2 * _DEVIATIONS)


def list_facts(facts: ModelFacts) -> dict[str, dict[str, Any]]:
    """The facts that are known, each with its value and source."""
    return {
        name: {"value": fact.value, "source": fact.source}
        for name, fact in vars(facts).items()
        if name != "names" and fact is not None
    }


def read_table(path: str, facts: Mapping[str, ModelFacts] | None = None) -> Numbers:
    """Numbers of models from a table with a column ``model``.

    Every other column of numbers is a number of that name; ``<name>_low`` and ``<name>_high`` are
    the ends of its interval, as in ``headline.csv`` of the report, and its support and chance are
    none. The columns of PathoROB's
    leaderboard are known.

    Raises:
        InputError: there is no column ``model``, a model is named twice, or there are no numbers.
    """
    table = table_files.read_table(path, needed=[MODEL]).table
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    models = [str(model) for model in columns.pop(MODEL, [])]
    twice = sorted({model for model in models if models.count(model) > 1})
    if not models or twice:
        raise InputError(
            f"{path}: expected a column {MODEL!r} that names each model once, found "
            f"{f'{twice[0]!r} twice' if twice else sorted(columns)}."
        )
    numbers = {name: found for name, c in columns.items() if (found := _as_numbers(c)) is not None}
    values, ends = _name_columns(numbers)
    if not values:
        raise InputError(f"{path}: expected columns of numbers beside {MODEL!r}, found none.")
    rows = [
        ModelRow(
            model,
            {name: column[i] for name, column in values.items()},
            {name: ends[name][i] if name in ends else None for name in values},
            list_facts(find_facts(model, facts)),
        )
        for i, model in enumerate(models)
        if counts(model)
    ]
    known = {h.field: h.title for kind in registry.KINDS.values() for h in kind.headlines}
    known |= {extra.name: extra.title for extra in EXTRAS}
    titles = {name: known.get(name, name.replace("_", " ")) for name in values}
    return Numbers(titles, rows, [model for model in models if not counts(model)])


def _as_numbers(column: Sequence[Any]) -> list[float] | None:
    """A column as numbers, NaN where it is empty; None if it holds anything else."""
    out = []
    for text in column:
        word = "" if text is None else str(text).strip()
        try:
            out.append(float(word) if word else math.nan)
        except ValueError:
            return None
    return out


def _name_columns(
    columns: Mapping[str, list[float]],
) -> tuple[dict[str, list[float]], dict[str, list[list[float] | None]]]:
    """Columns by our names, and their intervals."""
    if LEADERBOARD[INDEX] in columns:
        return _read_leaderboard(columns)
    values = {
        name: column
        for name, column in columns.items()
        if not (name.endswith(SUFFIXES) and name.rpartition("_")[0] in columns)
    }
    ends = {
        name: [
            [low, high] if math.isfinite(low + high) else None
            for low, high in zip(columns[f"{name}_low"], columns[f"{name}_high"], strict=True)
        ]
        for name in values
        if f"{name}_low" in columns and f"{name}_high" in columns
    }
    return values, ends


def _read_leaderboard(
    columns: Mapping[str, list[float]],
) -> tuple[dict[str, list[float]], dict[str, list[list[float] | None]]]:
    """PathoROB's leaderboard: means over datasets, drops in per cent with half widths."""
    values: dict[str, list[float]] = {}
    ends: dict[str, list[list[float] | None]] = {}
    for name, column in LEADERBOARD.items():
        if column not in columns:
            continue
        scale = 100 if column.endswith("_percent") else 1
        values[name] = [value / scale for value in columns[column]]
        widths = columns.get(column.replace("_percent", "_ci95_percent"), [])
        if scale > 1 and widths:
            ends[name] = [
                [value - width / scale, value + width / scale] if math.isfinite(width) else None
                for value, width in zip(values[name], widths, strict=True)
            ]
    parts = [columns[name] for name in CLUSTERING_COLUMNS if name in columns]
    if len(parts) == len(CLUSTERING_COLUMNS):
        values[CLUSTERING] = np.mean(parts, axis=0).tolist()
    return values, ends
