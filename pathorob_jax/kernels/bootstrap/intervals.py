"""Summaries of draws: intervals, paired differences, ranks of models.

The input is statistics with one value per draw, from ``draws`` or any other resampling, and their
estimates from all rows. An interval is the estimate +- 1.96 standard deviations of its draws,
within the statistic's range. It therefore always holds its estimate, which the percentiles of draws
do not. Draws in which a statistic is undefined (NaN) are left out; if more than half are undefined,
the result is NaN. Statistics that are compared must come from the same draws, so that their common
variation cancels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from pathorob_jax.core import checks
from pathorob_jax.core.typing import Array, ArrayLike, Float
from pathorob_jax.kernels.bootstrap.quantiles import check_share, divide, quantile_of_defined

Bounds = tuple[float, float]
"""Smallest and largest value that a statistic can have."""
UNBOUNDED: Bounds = (-np.inf, np.inf)
POSITIVE: Bounds = (0.0, np.inf)
SHARE: Bounds = (0.0, 1.0)
SIGNED: Bounds = (-1.0, 1.0)
# An area below 1/2 counts as 1 less the area.
AREA: Bounds = (0.5, 1.0)


class Interval(NamedTuple):
    """Interval of a statistic.

    Attributes:
        low: float64[...] lower end; NaN where undefined.
        high: float64[...] upper end; NaN where undefined.
    """

    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]


class Difference(NamedTuple):
    """Difference of two statistics over shared draws. All fields are NaN where undefined.

    Attributes:
        value: float64[...] difference of the estimates.
        low: float64[...] lower end of its interval.
        high: float64[...] upper end.
        share_positive: float64[...] share of draws with a difference above 0, in [0, 1]; ties do
            not count.
    """

    value: Float[np.ndarray, "..."]
    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]
    share_positive: Float[np.ndarray, "..."]


class RankStability(NamedTuple):
    """Ranks of models over shared draws; rank 1 is the largest statistic.

    All fields are NaN where undefined.

    Attributes:
        mean_rank: float64[models] in [1, models].
        low: float64[models] lower end of the percentile interval of the rank.
        high: float64[models] upper end.
        top_share: float64[models] share of draws in which the model ranks first; models that tie
            for first place share it, so the sum over models is 1.
        place_shares: float64[models, places] share of draws in which the model stands at each
            place, the first one first; models that tie share their places evenly, so that rows
            and columns sum to 1.
    """

    mean_rank: Float[np.ndarray, " models"]
    low: Float[np.ndarray, " models"]
    high: Float[np.ndarray, " models"]
    top_share: Float[np.ndarray, " models"]
    place_shares: Float[np.ndarray, "models models"]


def interval(
    value: Float[ArrayLike, "*S"] | Sequence[float],
    draws: Float[np.ndarray, "*S draws"] | Array,
    *,
    bounds: Bounds = UNBOUNDED,
    level: float = 0.95,
) -> Interval:
    """Interval of an estimate: +- normal quantile times the standard deviation of its draws.

    Args:
        value: float[...] estimates from all rows.
        draws: float[..., draws]; NaN draws are left out.
        bounds: range of the statistic; the ends stay within it.
        level: coverage in [0, 1].

    Returns:
        ``Interval`` with low <= value <= high; NaN at both ends if the estimate or more than half
        of the draws are NaN, or fewer than two draws are defined.

    Raises:
        InputError: ``level`` is out of range.
    """
    check_share(level, name="level")
    value, draws = np.asarray(value, np.float64), np.asarray(draws, np.float64)
    defined = ~np.isnan(draws)
    n = defined.sum(-1)
    enough = _has_enough(draws) & (n > 1) & np.isfinite(value)
    mean = divide(np.where(defined, draws, 0.0).sum(-1), n)
    apart = np.where(defined, draws - mean[..., None], 0.0)
    half = special.ndtri((1 + level) / 2) * np.sqrt(divide((apart**2).sum(-1), n - 1))
    # An estimate may lie outside its range by a rounding error.
    low = np.minimum(np.maximum(value - half, bounds[0]), value)
    high = np.maximum(np.minimum(value + half, bounds[1]), value)
    return Interval(np.where(enough, low, np.nan)[()], np.where(enough, high, np.nan)[()])


def find_ends(
    value: float, draws: Float[np.ndarray, " draws"] | Array, bounds: Bounds = UNBOUNDED
) -> list[float] | None:
    """[low, high] of the 95 % interval; None if it is undefined."""
    ends = [float(end) for end in interval(value, draws, bounds=bounds)]
    return ends if np.isfinite(ends).all() else None


def paired_difference(
    values: tuple[float, Float[ArrayLike, "*S"] | Sequence[float]],
    draws_a: Float[np.ndarray, "*S draws"] | Array,
    draws_b: Float[np.ndarray, "*S draws"] | Array,
    *,
    bounds: Bounds = UNBOUNDED,
    level: float = 0.95,
) -> Difference:
    """Compare two statistics draw by draw; both must come from the same weights.

    Args:
        values: estimates of a and b from all rows.
        draws_a: float[..., draws].
        draws_b: float[..., draws], same shape.
        bounds: range of either statistic.
        level: coverage of the interval, in [0, 1].

    Returns:
        ``Difference`` a - b, its interval over the draws in which both are defined; NaN if fewer
        than half of the draws are.

    Raises:
        InputError: shapes differ or ``level`` is out of range.
    """
    a, b = np.asarray(draws_a, np.float64), np.asarray(draws_b, np.float64)
    checks.check_shape(b.shape, a.shape, name="draws_b", why="(draws are paired with draws_a)")
    difference = a - b
    value = np.asarray(values[0], np.float64) - np.asarray(values[1], np.float64)
    widest = bounds[1] - bounds[0]
    low, high = interval(value, difference, bounds=(-widest, widest), level=level)
    n = np.where(_has_enough(difference), (~np.isnan(difference)).sum(-1), 0)
    return Difference(value, low, high, divide((difference > 0).sum(-1), n)[()])


def rank_stability(
    draws: Float[np.ndarray, "models draws"] | Array, *, level: float = 0.95
) -> RankStability:
    """Rank models in every draw, the largest statistic first; ties share their average rank.

    A draw in which any model is undefined is not ranked, so all ranks compare the same models. The
    caller must remove models that are never defined.

    Args:
        draws: float[models, draws] on shared weights; negate a statistic if smaller is better.
        level: coverage of the interval, in [0, 1].

    Returns:
        ``RankStability``, NaN if more than half of the draws are not ranked.

    Raises:
        InputError: ``draws`` is not a matrix, or ``level`` is out of range.
    """
    draws = np.asarray(draws, np.float64)
    checks.check_shape(draws.shape, (None, None), name="draws", why="[models, draws]")
    complete = ~np.isnan(draws).any(axis=0)
    ranks = np.full(draws.shape, np.nan)
    shares = np.zeros((len(draws), len(draws)))
    for values, out, share in zip(draws, ranks, shares, strict=True):
        ahead, tied = (draws > values).sum(0), (draws == values).sum(0)
        # Models with larger values, plus half of the other models that tie.
        out[:] = 0.5 + ahead + 0.5 * tied
        for place in range(len(draws)):
            is_there = complete & (ahead <= place) & (place < ahead + tied)
            share[place] = (1 / tied[is_there]).sum()
    ranks[:, ~complete] = np.nan
    # Rounded because (1 - .95) / 2 is .025000000000000022.
    check_share(level, name="level")
    tail = round((1.0 - level) / 2.0, 12)
    low, high = (
        np.where(_has_enough(ranks), quantile_of_defined(ranks, q), np.nan)
        for q in (tail, 1.0 - tail)
    )
    n = np.where(_has_enough(ranks), complete.sum(), 0)
    shares = divide(shares, n[:, None])
    return RankStability(
        mean_rank=divide(ranks[:, complete].sum(1), n),
        low=low,
        high=high,
        top_share=shares[:, :1].sum(1),
        place_shares=shares,
    )


def _has_enough(draws: np.ndarray) -> np.ndarray:
    """Whether at least half of the draws, and at least one, are defined; along the last axis."""
    n_defined = (~np.isnan(draws)).sum(-1)
    return (n_defined > 0) & (2 * n_defined >= draws.shape[-1])
