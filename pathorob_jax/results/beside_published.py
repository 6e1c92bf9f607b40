"""Every number of a collection of results, with the published one or why there is none."""

import math
from typing import NamedTuple

from pathorob_jax.results.collection import Collection
from pathorob_jax.results.flatten import interval_of
from pathorob_jax.results.published import FIELDS, MEAN_OF, Beside, find_published
from pathorob_jax.results.registry import KINDS


class Comparison(NamedTuple):
    """A number of a model, and the published one.

    Attributes:
        model: name of the model.
        field: name of the number.
        dataset: name of the dataset; "": the mean over those of PathoROB.
        value: the number here.
        ci95: its interval; None: undefined.
        beside: the published number, or why there is none.
    """

    model: str
    field: str
    dataset: str
    value: float
    ci95: list[float] | None
    beside: Beside


def compare_all(collection: Collection) -> list[Comparison]:
    """All defined numbers that boards publish, by number, model and dataset; the mean is last."""
    return [
        one
        for field in FIELDS
        for model in collection.models
        for one in compare_model(collection, model, field)
    ]


def compare_model(collection: Collection, model: str, field: str) -> list[Comparison]:
    """A number of one model on each dataset, and its mean over PathoROB's where all are there."""
    kind = FIELDS[field][0]
    records = collection.of_model(kind, model)
    found = []
    for record in records:
        value = getattr(record, field)
        if math.isfinite(value):
            ends = interval_of(record, field)
            beside = find_published([record], field)
            found.append(Comparison(model, field, record.dataset, value, ends, beside))
    of_mean = [r for r in records if r.dataset in MEAN_OF]
    headlines = {h.field: h for h in KINDS[kind.metric].headlines}
    if len(of_mean) == len(MEAN_OF) and field in headlines:
        outcomes = [collection.outcome(record) for record in of_mean]
        value, ends = headlines[field].average(outcomes)
        if math.isfinite(value):
            beside = find_published(of_mean, field)
            found.append(Comparison(model, field, "", value, ends, beside))
    return found
