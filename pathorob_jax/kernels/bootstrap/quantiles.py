"""Quantiles as NumPy defines them, and quotients, that are NaN where nothing is defined.

Enters: arrays in which NaN stands for undefined. Leaves: numbers that equal ``np.quantile`` of what
is defined to the last bit; its parts (which ranks, how far between them) serve callers that find
the values at those ranks without sorting. Host NumPy in float64.
"""

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Float, Int


def quantile_of_defined(values: Float[np.ndarray, "*S n"], q: float) -> Float[np.ndarray, "*S"]:
    """Quantile along the last axis of what is not NaN.

    Args:
        values: float64[..., n].
        q: in [0, 1], checked by the caller. NumPy's "linear" definition.

    Returns:
        float64[...]; NaN where nothing is defined.
    """
    if not values.shape[-1]:
        return np.full(values.shape[:-1], np.nan)
    values = np.sort(values, axis=-1)  # NaN last
    low, high, t = find_ranks((~np.isnan(values)).sum(-1), q)
    below, above = (
        np.take_along_axis(values, rank.astype(np.intp)[..., None], -1)[..., 0]
        for rank in (low, high)
    )
    return interpolate(below, above, t)


def find_ranks(
    n: Float[np.ndarray, "*S"] | Int[np.ndarray, "*S"], q: float
) -> tuple[Float[np.ndarray, "*S"], Float[np.ndarray, "*S"], Float[np.ndarray, "*S"]]:
    """Where quantile q of n sorted values lies.

    Args:
        n: integer or float[...] numbers of values; 0 is taken as 1.
        q: in [0, 1].

    Returns:
        The ranks (from 0) of its two neighbours, and the share of the way from the lower one to
        the upper one; float64[...] each.
    """
    at = np.maximum((n - 1) * q, 0)
    low = np.floor(at)
    return low, np.maximum(np.minimum(low + 1, n - 1), 0), at - low


def interpolate(
    low: Float[np.ndarray, "*S"], high: Float[np.ndarray, "*S"], t: Float[np.ndarray, "*S"]
) -> Float[np.ndarray, "*S"]:
    """From low to high; from the nearer end as NumPy does, so that the last bit is the same.

    Args:
        low: float64[...].
        high: float64[...].
        t: float64[...] share of the way, in [0, 1).
    """
    step = high - low
    return np.where(t >= 0.5, high - step * (1.0 - t), low + step * t)


def divide(
    above: Float[np.ndarray, "..."] | Int[np.ndarray, "..."],
    below: Float[np.ndarray, "..."] | Int[np.ndarray, "..."],
) -> Float[np.ndarray, "..."]:
    """Quotient of arrays that broadcast, float64[...]; NaN where the denominator is 0."""
    out = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    return np.divide(above, below, out=out, where=below != 0)


def check_share(value: float, *, name: str) -> None:
    """Refuse what is no share.

    Raises:
        InputError: ``value`` is outside [0, 1] or NaN.
    """
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{name}: expected a share in [0, 1], found {value}.")
