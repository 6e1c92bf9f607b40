"""Numbers of two models from their records on disk, paired over shared draws."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.kernels.bootstrap import intervals
from pathorob_jax.results import registry
from pathorob_jax.results.metric_kind import MetricKind
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import read_outcome
from pathorob_jax.results.robustification import Paired, RobustificationResult
from pathorob_jax.results.robustness_index import RobustnessIndexResult

# Computed anew, or no number of a single model.
LEFT_OUT = (RobustnessIndexResult, RobustificationResult)


def pair(
    values: tuple[float, float],
    draws: tuple[np.ndarray, np.ndarray] | None,
    bounds: intervals.Bounds = intervals.UNBOUNDED,
) -> Paired:
    """A number before and after, with its draws on shared weights, if there are any."""
    before, after = values
    ends = None
    if draws is not None:
        apart = intervals.paired_difference((after, before), draws[1], draws[0], bounds=bounds)
        low, high = float(apart.low), float(apart.high)
        ends = [low, high] if np.isfinite([low, high]).all() else None
    return Paired(before, after, after - before, ends)


def pair_records(
    root: str,
    dataset: str,
    before: tuple[str, Mapping[str, Any]],
    after: tuple[str, Mapping[str, Any]],
) -> tuple[dict[str, Paired], list[str]]:
    """Pair the numbers of all metrics for which both models have a record under ``root``.

    Args:
        root: folder of all results.
        dataset: name of the dataset in the results.
        before: name of the parent, and the identity of its store.
        after: the same of the robustified model.

    Returns:
        Numbers by ``<metric>``, or ``<metric>.<field>`` where the field has another name; and a
        warning for each metric whose two records cannot be paired.
    """
    paired: dict[str, Paired] = {}
    warnings: list[str] = []
    for kind in registry.KINDS.values():
        paths = [files.join(root, m, dataset, f"{kind.name}.json") for m, _ in (before, after)]
        if kind.record in LEFT_OUT or not all(map(files.exists, paths)):
            continue
        try:
            was, now = (read_outcome(path) for path in paths)
        except InputError as error:
            warnings.append(f"{kind.title} before and after: {error}")
            continue
        sides = (was, before[1]), (now, after[1])
        why = _find_stranger(*sides)
        if kind.pair is not None and not why:
            try:
                found = kind.pair(was.record, now.record)
            except InputError as error:
                why = str(error)
            else:
                for name, (first, second, ends) in found.items():
                    key = f"{kind.name}.{name}"
                    paired[key] = Paired(first, second, second - first, ends)
                continue
        why = why or _find_obstacle(kind, was, now)
        if why:
            warnings.append(
                f"{kind.title} before and after: {why}; evaluate both models again with the same "
                "settings."
            )
            continue
        paired |= _pair_outcomes(kind, was, now)
    return paired, warnings


def _find_stranger(*sides: tuple[Outcome, Mapping[str, Any]]) -> str:
    """Whose record is of other embeddings, in words; empty if neither is."""
    for outcome, identity in sides:
        found = outcome.record.provenance.get("store", {}).get("identity")
        if found != identity:
            return f"the record of {outcome.record.model} is of other embeddings"
    return ""


def _find_obstacle(kind: MetricKind, *sides: Outcome) -> str:
    """Which settings of two records differ, in words; empty if none does."""
    for what, read in (*kind.comparable, ("k", lambda record: getattr(record, "k", None))):
        was, now = (read(outcome.record) for outcome in sides)
        if was != now:
            return f"scored with different {what}, {was} and {now}"
    return ""


def _pair_outcomes(kind: MetricKind, was: Outcome, now: Outcome) -> dict[str, Paired]:
    bounds = {headline.field: headline.bounds for headline in kind.headlines}
    shared = was.draws_key == now.draws_key != ""
    names = dict.fromkeys([*bounds, *(name for name in was.draws if name in now.draws)])
    out = {}
    for name in names:
        draws = None
        if shared and name in was.draws and name in now.draws:
            both = was.draws[name], now.draws[name]
            draws = both if both[0].shape == both[1].shape else None
        key = name if name == kind.name else f"{kind.name}.{name}"
        values = float(getattr(was.record, name)), float(getattr(now.record, name))
        out[key] = pair(values, draws, bounds.get(name, intervals.UNBOUNDED))
    return out
