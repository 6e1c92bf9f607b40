"""Summaries of bootstrap draws: intervals, paired differences, ranks of models.

The input is statistics with one value per draw, from ``draws`` or any other resampling. The
functions return a percentile interval, the difference of two statistics, or the ranks of several.
Draws in which a statistic is undefined (NaN) are left out; if more than half are undefined, the
result is NaN. Statistics that are compared must come from the same draws, so that their common
variation cancels.
"""

from typing import NamedTuple

import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.typing import Array, Float
from pathorob_jax.kernels.bootstrap.quantiles import check_share, divide, quantile_of_defined


class Interval(NamedTuple):
    """Percentile interval.

    Attributes:
        low: float64[...] lower end; NaN where undefined.
        high: float64[...] upper end; NaN where undefined.
    """

    low: Float[np.ndarray, "..."]
    high: Float[np.ndarray, "..."]


class Difference(NamedTuple):
    """Difference of two statistics over shared draws. All fields are NaN where undefined.

    Attributes:
        mean: float64[...] mean over draws (not the estimate from all rows, which the caller has).
        low: float64[...] lower end of the percentile interval.
        high: float64[...] upper end.
        share_positive: float64[...] share of draws with a difference above 0, in [0, 1]; ties do
            not count.
    """

    mean: Float[np.ndarray, "..."]
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
    """

    mean_rank: Float[np.ndarray, " models"]
    low: Float[np.ndarray, " models"]
    high: Float[np.ndarray, " models"]
    top_share: Float[np.ndarray, " models"]


def interval(draws: Float[np.ndarray, "*S draws"] | Array, *, level: float = 0.95) -> Interval:
    """Percentile interval of a bootstrapped statistic.

    Args:
        draws: float[..., draws]; NaN draws are left out.
        level: coverage in [0, 1]; .95 gives the 2.5 and 97.5 % quantiles (NumPy's "linear").

    Returns:
        ``Interval``, NaN at both ends if more than half of the draws are NaN or there are no draws.

    Raises:
        InputError: ``level`` is out of range.
    """
    check_share(level, name="level")
    draws = np.asarray(draws, np.float64)
    enough = _has_enough(draws)
    # Rounded because (1 - .95) / 2 is .025000000000000022.
    tail = round((1.0 - level) / 2.0, 12)
    low, high = (
        np.where(enough, quantile_of_defined(draws, q), np.nan)[()] for q in (tail, 1.0 - tail)
    )
    return Interval(low, high)


def percentile_interval(draws: Float[np.ndarray, " draws"] | Array) -> list[float] | None:
    """[low, high] of the 95 % percentile interval; None if too few draws are defined."""
    ends = [float(end) for end in interval(draws)]
    return ends if np.isfinite(ends).all() else None


def paired_difference(
    draws_a: Float[np.ndarray, "*S draws"] | Array,
    draws_b: Float[np.ndarray, "*S draws"] | Array,
    *,
    level: float = 0.95,
) -> Difference:
    """Compare two statistics draw by draw; both must come from the same weights.

    Args:
        draws_a: float[..., draws].
        draws_b: float[..., draws], same shape.
        level: coverage of the interval, in [0, 1].

    Returns:
        ``Difference`` a - b over the draws in which both are defined; NaN if fewer than half of the
        draws are.

    Raises:
        InputError: shapes differ or ``level`` is out of range.
    """
    a, b = np.asarray(draws_a, np.float64), np.asarray(draws_b, np.float64)
    checks.check_shape(b.shape, a.shape, name="draws_b", why="(draws are paired with draws_a)")
    difference = a - b
    low, high = interval(difference, level=level)
    defined = ~np.isnan(difference)
    n = np.where(_has_enough(difference), defined.sum(-1), 0)
    mean = divide(np.where(defined, difference, 0.0).sum(-1), n)
    return Difference(mean[()], low, high, divide((difference > 0).sum(-1), n)[()])


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
    for values, out in zip(draws, ranks, strict=True):
        # Models with larger values, plus half of the other models that tie.
        out[:] = 0.5 + (draws > values).sum(0) + 0.5 * (draws == values).sum(0)
    ranks[:, ~complete] = np.nan
    low, high = interval(ranks, level=level)
    n = np.where(_has_enough(ranks), complete.sum(), 0)
    is_top = (draws == draws.max(axis=0, initial=-np.inf)) & complete
    top = is_top / np.maximum(is_top.sum(0), 1)
    return RankStability(
        mean_rank=divide(ranks[:, complete].sum(1), n),
        low=low,
        high=high,
        top_share=divide(top.sum(1), n),
    )


def _has_enough(draws: np.ndarray) -> np.ndarray:
    """Whether at least half of the draws, and at least one, are defined; along the last axis."""
    n_defined = (~np.isnan(draws)).sum(-1)
    return (n_defined > 0) & (2 * n_defined >= draws.shape[-1])
