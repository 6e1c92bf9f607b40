"""Intervals of the numbers of a record, from their replicates without each block of slides."""

from collections.abc import Mapping

import numpy as np
from absl import logging

from pathorob_jax.kernels.bootstrap.draws import Jackknife
from pathorob_jax.kernels.bootstrap.intervals import UNBOUNDED, Bounds, find_ends

Ends = dict[str, list[float] | None]


def spread_all(
    jackknife: Jackknife, values: Mapping[str, float], replicates: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """float64[draws] of each number that has replicates."""
    return {name: jackknife.spread(values[name], found) for name, found in replicates.items()}


def find_all_ends(
    values: Mapping[str, float], draws: Mapping[str, np.ndarray], bounds: Mapping[str, Bounds]
) -> Ends:
    """[low, high] of each number that has draws; None where it is undefined."""
    return {
        name: find_ends(values[name], drawn, bounds.get(name, UNBOUNDED))
        for name, drawn in draws.items()
    }


def warn_missing(values: Mapping[str, float], ends: Ends, draws: int) -> list[str]:
    """Warn of numbers that have a value and no interval; nothing if none was asked for."""
    names = [n for n, found in ends.items() if found is None and np.isfinite(values[n])]
    if not draws or not names:
        return []
    text = (
        f"no interval for {', '.join(names)}: without one of the slides it does not exist, so that "
        "its error is unknown. Intervals need two slides of each class at each medical centre."
    )
    logging.warning("%s", text)
    return [text]
