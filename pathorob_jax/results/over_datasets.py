"""Means of one model over several datasets, with their intervals.

All means over datasets in ``summary.json``, ``apd_aggregate.json`` and the report are computed
here. A dataset that was scored by several confounders (``data@scanner``, ``data@stain``) holds the
same patches each time. Means are therefore over the datasets of one confounder, never over
confounders.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pathorob_jax.core.folder_names import split_confounder
from pathorob_jax.kernels.bootstrap.intervals import find_ends
from pathorob_jax.metrics.apd import Aggregate, aggregate_drops, performance_drops
from pathorob_jax.results.record import Outcome


class Mean(NamedTuple):
    """A mean over datasets.

    Attributes:
        value: the mean; NaN if the value of a dataset is undefined.
        ci95: interval of the mean; None if it is undefined.
    """

    value: float
    ci95: list[float] | None


def group_by_confounder(datasets: Iterable[str]) -> dict[str, list[str]]:
    """Datasets of each confounder, in their order; the medical centre's (empty) come first."""
    groups: dict[str, list[str]] = {}
    for dataset in datasets:
        groups.setdefault(split_confounder(dataset)[1], []).append(dataset)
    return dict(sorted(groups.items()))


MeanOf = Callable[[Sequence[Outcome], str], Mean]
"""(outcomes of one model, one for each dataset; field) -> the mean of the field."""


def mean_of_draws(outcomes: Sequence[Outcome], field: str) -> Mean:
    """Unweighted mean; its interval is over draws of slides, averaged draw by draw."""
    value = float(np.mean([getattr(outcome.record, field) for outcome in outcomes]))
    drawn = mean_draws([outcome.draws.get(field) for outcome in outcomes])
    if not math.isfinite(value) or drawn is None:
        return Mean(value, None)
    return Mean(value, find_ends(value, drawn))


def mean_draws(draws: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Draws of the mean over datasets; None if datasets lack draws or differ in their number."""
    known = [d for d in draws if d is not None and len(d)]
    if not known or len(known) < len(draws) or len({d.shape for d in known}) > 1:
        return None
    return np.mean(known, axis=0)


def mean_drop(outcomes: Sequence[Outcome], field: str) -> Mean:
    """Mean of ``apd_id`` or ``apd_ood`` over all repetitions, with their interval.

    For a single dataset, the interval is that of its record, which is for other slides. Over
    several it is the reference's, over repetitions alone.
    """
    if len(outcomes) == 1:
        record = outcomes[0].record
        return Mean(getattr(record, field), getattr(record, f"{field}_ci95"))
    aggregate = aggregate_apd([outcome.record for outcome in outcomes], field.removeprefix("apd_"))
    if aggregate is None:
        return Mean(float(np.mean([getattr(o.record, field) for o in outcomes])), None)
    return Mean(aggregate.mean, [aggregate.mean - aggregate.ci, aggregate.mean + aggregate.ci])


def aggregate_apd(records: Sequence[Any], side: str) -> Aggregate | None:
    """Drop of one model over datasets, with its interval; None if the interval is undefined.

    Args:
        records: ``ApdResult`` of one model, one per dataset.
        side: ``id`` or ``ood``.
    """
    drops = [performance_drops(getattr(record, f"{side}_accuracies")) for record in records]
    if not drops or not np.isfinite(np.concatenate(drops)).all():
        return None
    # Single values shifted to a common mean are all equal, which would give a width of 0.
    return aggregate_drops(drops) if max(map(len, drops)) > 1 else None
