"""Families of models: poolings of one encoder, and checkpoints of one training run.

A pooling is read from the identity of the store behind a record; without one (imported embeddings)
from the end of the model's name, where models differ in nothing else. A checkpoint is read from the
model's name: a word for a step and a number (``run_step5000``, ``vit-epoch_12``, ``a.ckpt0007.b``);
what is left of the name is the run.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from pathorob_jax.results.collection import Collection
from pathorob_jax.results.compare_models import Comparison

POOLINGS = ("cls", "mean", "clsmean", "head")
# A name that ends in no pooling, beside names that do.
DEFAULT = "default"
_STEP = re.compile(
    r"(?:^|[-_. /])(?P<word>steps?|iterations?|iters?|epochs?|checkpoint|ckpt|training)"
    r"[-_=. ]?(?P<number>\d+)(?P<thousands>k)?(?=$|[-_. /])",
    re.IGNORECASE,
)


class Checkpoint(NamedTuple):
    """A model as a checkpoint: what its run is called, the word for its step, and the step."""

    run: str
    word: str
    step: int


class Agreement(NamedTuple):
    """Whether two poolings put the encoders in one order.

    Attributes:
        poolings: both.
        n: encoders with a number by either.
        kendall: tau-b over encoders; NaN for fewer than two, or where all are level.
        spearman: rho; NaN where tau-b is.
        n_pairs: pairs of encoders.
        swapped: pairs that are in the other order by the other pooling.
        swapped_apart: of those, pairs told apart by either pooling, on opposite sides.
    """

    poolings: tuple[str, str]
    n: int
    kendall: float
    spearman: float
    n_pairs: int
    swapped: list[tuple[str, str]]
    swapped_apart: list[tuple[str, str]]


class PoolingStudy(NamedTuple):
    """Encoders with several poolings: their numbers and ranks by pooling, and the agreements.

    Attributes:
        poolings: all, in the order of ``POOLINGS``, then by name.
        models: by encoder and pooling, the model's name.
        values: by encoder and pooling, the number; NaN where undefined.
        ranks: by encoder and pooling, the rank among encoders with that pooling; 1 is the highest.
        agreements: one for each two poolings that two encoders share.
    """

    poolings: list[str]
    models: dict[str, dict[str, str]]
    values: dict[str, dict[str, float]]
    ranks: dict[str, dict[str, float]]
    agreements: list[Agreement]


class Run(NamedTuple):
    """Checkpoints of one training run, the earliest first; ``word`` is that for a step."""

    name: str
    word: str
    steps: list[int]
    models: list[str]


def read_checkpoint(model: str) -> Checkpoint | None:
    """The checkpoint that a model's name speaks of; None if it speaks of none.

    >>> read_checkpoint("vit_s_step5k_cls")
    Checkpoint(run='vit_s_cls', word='step', step=5000)
    >>> read_checkpoint("h_optimus_1")
    """
    found = list(_STEP.finditer(model))
    if not found:
        return None
    last = found[-1]
    step = int(last["number"]) * (1000 if last["thousands"] else 1)
    before, after = model[: last.start()].strip("-_. /"), model[last.end() :].strip("-_. /")
    word = last["word"].lower().removesuffix("s")
    return Checkpoint("_".join(filter(None, (before, after))), word, step)


def name_family(model: str) -> str:
    """Name of an encoder without its pooling, its step of training, and what made it robust.

    >>> name_family("vit_s_step5k_cls+combat")
    'vit_s'
    >>> name_family("uni2_h_clsmean")
    'uni2_h'
    """
    plain = model.partition("+")[0]
    found = read_checkpoint(plain)
    run = found.run if found is not None else plain
    for pooling in POOLINGS:
        run = run.removesuffix(f"_{pooling}")
    return run or model


def find_runs(models: Sequence[str]) -> list[Run]:
    """Runs of which there are at least two checkpoints, by name."""
    by_run: dict[tuple[str, str], dict[int, str]] = {}
    for model in models:
        found = read_checkpoint(model)
        if found is not None:
            by_run.setdefault((found.run, found.word), {}).setdefault(found.step, model)
    return [
        Run(name, word, sorted(by_step), [by_step[step] for step in sorted(by_step)])
        for (name, word), by_step in sorted(by_run.items())
        if len(by_step) > 1
    ]


def find_poolings(
    models: Sequence[str], identities: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, str]]:
    """Encoders of which there are several poolings: by encoder and pooling, the model's name.

    Args:
        models: names of models.
        identities: of the models whose stores say how the encoder was used, that use.
    """
    by_encoder: dict[str, dict[str, str]] = {}
    for model in models:
        if model in identities:
            identity = identities[model]
            rest = {name: value for name, value in identity.items() if name != "pooling"}
            # An encoder run as PathoROB did may differ in preprocessing too.
            key, pooling = json.dumps(rest, sort_keys=True), str(identity["pooling"])
        else:
            stem, _, end = model.rpartition("_")
            named = bool(stem) and end in POOLINGS
            key, pooling = (stem, end) if named else (model, DEFAULT)
        by_encoder.setdefault(key, {}).setdefault(pooling, model)
    found = [by_pooling for by_pooling in by_encoder.values() if len(by_pooling) > 1]
    return {_name_encoder(by_pooling): by_pooling for by_pooling in found}


def _name_encoder(models: Mapping[str, str]) -> str:
    """The shortest of the names, without its pooling: one of them may be the encoder's own."""
    shortest = min(models.items(), key=lambda item: (len(item[1]), item[1]))
    pooling, name = shortest
    return name.removesuffix(f"_{pooling}")


def read_identities(collection: Collection) -> dict[str, dict[str, Any]]:
    """How each model's encoder was used, of the models whose records say so."""
    found: dict[str, dict[str, Any]] = {}
    for kind in collection.kinds:
        for record in collection.of_kind(kind.record):
            store = record.provenance.get("store", {})
            use = store.get("identity", {}).get("encoder") if isinstance(store, Mapping) else None
            if isinstance(use, Mapping) and use.get("pooling"):
                found.setdefault(record.model, dict(use))
    return found


def study_poolings(
    models: Mapping[str, Mapping[str, str]],
    values: Mapping[str, float],
    comparison: Comparison | None,
) -> PoolingStudy | None:
    """Whether the order of encoders depends on the pooling.

    Args:
        models: by encoder and pooling, the model (``find_poolings``).
        values: the number of each model.
        comparison: comparison of the models by that number; None: none share draws.

    Returns:
        The study; None unless two encoders share two poolings.
    """
    present = {pooling for by_pooling in models.values() for pooling in by_pooling}
    order = {pooling: place for place, pooling in enumerate(POOLINGS)}
    poolings = sorted(present, key=lambda name: (order.get(name, len(order)), name))
    numbers = {
        encoder: {pooling: values.get(name, math.nan) for pooling, name in by_pooling.items()}
        for encoder, by_pooling in models.items()
    }
    apart = {} if comparison is None else find_sides(comparison)
    agreements = [
        _agree(pair, models, numbers, apart) for pair in itertools.combinations(poolings, 2)
    ]
    agreements = [found for found in agreements if found.n > 1]
    if not agreements:
        return None
    ranks: dict[str, dict[str, float]] = {encoder: {} for encoder in models}
    for pooling in poolings:
        known = [e for e in models if math.isfinite(numbers[e].get(pooling, math.nan))]
        placed = stats.rankdata([-numbers[encoder][pooling] for encoder in known])
        for encoder, rank in zip(known, placed, strict=True):
            ranks[encoder][pooling] = float(rank)
    return PoolingStudy(
        poolings, {e: dict(named) for e, named in models.items()}, numbers, ranks, agreements
    )


def find_sides(comparison: Comparison) -> dict[tuple[str, str], int]:
    """Models that are told apart: 1 if the first is ahead, -1 if it is behind."""
    sides: dict[tuple[str, str], int] = {}
    for pair in comparison.pairs:
        if pair.is_apart:
            side = 1 if pair.difference > 0 else -1
            sides[pair.model_a, pair.model_b] = side
            sides[pair.model_b, pair.model_a] = -side
    return sides


def _agree(
    poolings: tuple[str, str],
    models: Mapping[str, Mapping[str, str]],
    values: Mapping[str, Mapping[str, float]],
    apart: Mapping[tuple[str, str], int],
) -> Agreement:
    one, two = poolings
    both = [
        encoder
        for encoder, own in values.items()
        if all(math.isfinite(own.get(pooling, math.nan)) for pooling in poolings)
    ]
    x, y = ([values[encoder][pooling] for encoder in both] for pooling in poolings)
    kendall = spearman = math.nan
    if len(both) > 1 and len(set(x)) > 1 and len(set(y)) > 1:
        kendall = float(stats.kendalltau(x, y).statistic)
        spearman = float(stats.spearmanr(x, y).statistic)
    pairs = list(itertools.combinations(range(len(both)), 2))
    swapped = [(both[i], both[j]) for i, j in pairs if np.sign(x[i] - x[j]) * (y[i] - y[j]) < 0]
    clear = [
        (a, b)
        for a, b in swapped
        if apart.get((models[a][one], models[b][one]), 0)
        * apart.get((models[a][two], models[b][two]), 0)
        < 0
    ]
    return Agreement(poolings, len(both), kendall, spearman, len(pairs), swapped, clear)
