"""Quantiles as NumPy defines them, and quotients, both NaN where undefined.

The input arrays use NaN for undefined values. The quantiles equal ``np.quantile`` of the defined
values to the last bit. The parts of that computation (the two ranks, and the position between them)
are separate functions, for callers that find the values at those ranks without sorting. Everything
is NumPy in float64 on the host.
"""

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Float, Int


def quantile_of_defined(values: Float[np.ndarray, "*S n"], q: float) -> Float[np.ndarray, "*S"]:
    """Quantile along the last axis of the values that are not NaN (NumPy's "linear" definition).

    Args:
        values: float64[..., n].
        q: in [0, 1], checked by the caller.

    Returns:
        float64[...]; NaN where no value is defined.
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
    """Position of quantile q among n sorted values.

    Args:
        n: integer or float[...] number of values; 0 is treated as 1.
        q: in [0, 1].

    Returns:
        The ranks (from 0) just below and just above the quantile, and the fraction of the way from
        the lower rank to the upper one; float64[...] each.
    """
    position = np.maximum((n - 1) * q, 0)
    low = np.floor(position)
    return low, np.maximum(np.minimum(low + 1, n - 1), 0), position - low


def interpolate(
    low: Float[np.ndarray, "*S"], high: Float[np.ndarray, "*S"], t: Float[np.ndarray, "*S"]
) -> Float[np.ndarray, "*S"]:
    """Interpolate between low and high, starting from the nearer end.

    NumPy does the same, so the results agree to the last bit.

    Args:
        low: float64[...].
        high: float64[...].
        t: float64[...] fraction of the way from low to high, in [0, 1).
    """
    step = high - low
    return np.where(t >= 0.5, high - step * (1.0 - t), low + step * t)


def divide(
    above: Float[np.ndarray, "..."] | Int[np.ndarray, "..."],
    below: Float[np.ndarray, "..."] | Int[np.ndarray, "..."],
) -> Float[np.ndarray, "..."]:
    """Quotient of two arrays that broadcast, float64[...]; NaN where the denominator is 0."""
    out = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    return np.divide(above, below, out=out, where=below != 0)


def check_share(value: float, *, name: str) -> None:
    """Check that a value is a share.

    Raises:
        InputError: ``value`` is outside [0, 1] or NaN.
    """
    if not 0.0 <= value <= 1.0:
        raise InputError(f"{name}: expected a share in [0, 1], found {value}.")
