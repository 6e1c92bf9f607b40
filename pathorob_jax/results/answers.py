"""What the first screen of a report says: the numbers behind its sentences, of one confounder."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pathorob_jax.core.folder_names import split_confounder
from pathorob_jax.results.analyse_models import choose_accuracy, find_pareto
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.compare_models import Comparison, Pair
from pathorob_jax.results.families import (
    PoolingStudy,
    Run,
    find_poolings,
    find_runs,
    read_identities,
    study_poolings,
)
from pathorob_jax.results.model_numbers import ACCURACY, KNN_ACCURACY, read_collection
from pathorob_jax.results.over_models import APD_ID, INDEX, ModelRow, Pareto

# Numbers of a run that are followed over its steps.
FOLLOWED = (INDEX, "croma", ACCURACY, KNN_ACCURACY, APD_ID)


class RunCurve(NamedTuple):
    """Numbers of a run over its steps.

    Attributes:
        run: the checkpoints.
        values: by number, one value a checkpoint; NaN where undefined.
        ci95: the intervals, in the same form.
        best: the index of the last checkpoint against the best of those before; None: they share no
            draws.
        previous: the same against the checkpoint before.
        others: the same against each model that is no checkpoint of the run.
    """

    run: Run
    values: dict[str, list[float]]
    ci95: dict[str, list[list[float] | None]]
    best: Pair | None
    previous: Pair | None
    others: list[Pair]


class Answers(NamedTuple):
    """Numbers behind the first screen.

    Attributes:
        confounder: whose datasets; empty: the medical centre's.
        titles: titles of the numbers by name.
        rows: numbers of every model.
        chances: the least and the greatest index that an embedding without structure would have
            on the patches of a model, mean over datasets; empty if unknown.
        accuracy: name of the accuracy of the first figure; empty: there is none.
        pareto: accuracy by robustness; None: no encoder has both.
        comparisons: by statistic, the mean over datasets or the only dataset.
        poolings: whether the order of encoders depends on the pooling; None: no two share two.
        runs: training runs of which there are several checkpoints.
    """

    confounder: str
    titles: dict[str, str]
    rows: list[ModelRow]
    chances: list[float]
    accuracy: str
    pareto: Pareto | None
    comparisons: dict[str, Comparison]
    poolings: PoolingStudy | None
    runs: list[RunCurve]


def find_answers(collection: Collection, comparisons: Sequence[Comparison]) -> Answers:
    """The numbers of a collection, by the first confounder that it has.

    Args:
        collection: records, of one model or more.
        comparisons: those of ``Collection.compare``.
    """
    kinds = collection.kinds
    confounder = collection.confounders(kinds[0].record)[0] if kinds else ""
    numbers = read_collection(collection, confounder=confounder, all_models=True)
    chosen: dict[str, Comparison] = {}
    for found in comparisons:
        of = split_confounder(found.dataset)[1] if found.dataset else found.confounder
        if of == confounder:
            chosen.setdefault(found.statistic, found)
    poolings = find_poolings(collection.models, read_identities(collection))
    index = {row.model: row.values.get(INDEX, math.nan) for row in numbers.rows}
    by_index = chosen.get("robustness index")
    by_model = {row.model: row for row in numbers.rows}
    return Answers(
        confounder=confounder,
        titles=numbers.titles,
        rows=numbers.rows,
        chances=collection.chances(confounder),
        accuracy=choose_accuracy(numbers),
        pareto=find_pareto(numbers),
        comparisons=chosen,
        poolings=study_poolings(poolings, index, by_index),
        runs=[_follow(run, by_model, by_index) for run in find_runs(collection.models)],
    )


def _follow(run: Run, by_model: Mapping[str, ModelRow], comparison: Comparison | None) -> RunCurve:
    """The numbers that at least two checkpoints have, and how the last stands to other models."""
    rows = [by_model[model] for model in run.models]
    names = [
        name
        for name in FOLLOWED
        if sum(math.isfinite(row.values.get(name, math.nan)) for row in rows) > 1
    ]
    before = [row for row in rows[:-1] if math.isfinite(row.values.get(INDEX, math.nan))]

    def against(model: str) -> Pair | None:
        return None if comparison is None else find_pair(comparison, run.models[-1], model)

    others = [against(model) for model in by_model if model not in run.models]
    return RunCurve(
        run,
        {name: [row.values.get(name, math.nan) for row in rows] for name in names},
        {name: [row.ci95.get(name) for row in rows] for name in names},
        against(max(before, key=lambda row: row.values[INDEX]).model) if before else None,
        against(run.models[-2]),
        [pair for pair in others if pair is not None],
    )


def find_pair(comparison: Comparison, model_a: str, model_b: str) -> Pair | None:
    """The difference of two models, the first less the second; None: they share no draws."""
    for pair in comparison.pairs:
        if (pair.model_a, pair.model_b) == (model_a, model_b):
            return pair
        if (pair.model_a, pair.model_b) == (model_b, model_a):
            return pair.turned()
    return None
