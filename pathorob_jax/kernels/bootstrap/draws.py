"""Group bootstrap: how much a statistic varies when whole groups of rows are resampled.

The rows of a group (a slide) are not independent, so whole groups are drawn with replacement. A
draw is a row of integer weights: how often each group was drawn. No statistic is computed from
scratch for a draw: a ratio of sums is a matrix product, an order statistic is a rank among values
that are sorted once. Each function returns one value per draw; the module ``intervals`` turns these
into intervals.

The module uses NumPy in float64 on the host instead of JAX: counts and integer sums are exact up to
2^53 (without 64-bit values, JAX is exact up to 2^24 or 2^31), quantiles equal ``np.quantile`` to
the last bit, and no shape has to be compiled.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.typing import Array, Float, Int
from pathorob_jax.kernels.bootstrap.quantiles import (
    check_share,
    divide,
    find_ranks,
    interpolate,
    quantile_of_defined,
)

# Upper bound for the temporary arrays of one block of draws, in bytes.
BLOCK_BYTES = 1 << 23


class _SortedRows(NamedTuple):
    """Rows with a defined value, sorted by ascending value.

    Attributes:
        values: float64[n].
        group_id: int64[n].
    """

    values: Float[np.ndarray, " n"]
    group_id: Int[np.ndarray, " n"]


def draw_group_weights(n_groups: int, *, draws: int, seed: int) -> Int[np.ndarray, "draws G"]:
    """Draw G groups with replacement from G groups, and count how often each one is drawn.

    The same seed and number of groups give the same draws on every machine with the same NumPy
    (PCG64; a test pins them). A smaller number of draws gives the first rows of a larger one.
    Statistics that are compared must share the same weights: draw once, over all groups of the
    scope.

    Args:
        n_groups: G >= 0.
        draws: number of draws.
        seed: seed of ``np.random.default_rng``.

    Returns:
        int32[draws, G]; every row sums to G.
    """
    weights = np.zeros((draws, n_groups), np.int32)
    rng = np.random.default_rng(seed)
    for block in _blocks(draws, bytes_per_draw=3 * 8 * n_groups):
        rows = block.stop - block.start
        picks = rng.integers(max(n_groups, 1), size=(rows, n_groups))
        picks += np.arange(rows)[:, None] * n_groups
        counts = np.bincount(picks.ravel(), minlength=rows * n_groups)
        weights[block] = counts.reshape(rows, n_groups)
    return weights


def bootstrap_ratio(
    weights: Int[np.ndarray, "draws G"] | Array,
    numerator: Float[np.ndarray, "*S G"] | Int[np.ndarray, "*S G"] | Array,
    denominator: Float[np.ndarray, "*S G"] | Int[np.ndarray, "*S G"] | Array,
) -> Float[np.ndarray, "*S draws"]:
    """Ratio of two sums over groups, per draw.

    Args:
        weights: int32[draws, G] from ``draw_group_weights``.
        numerator: integer or float[..., G] sum per group; integers are summed exactly while the
            drawn sums stay below 2^53. A NaN makes every draw NaN.
        denominator: integer or float[..., G], as ``numerator``.

    Returns:
        float64[..., draws]; NaN where the drawn denominator is 0.

    Raises:
        InputError: the last axes differ in length.
        TypeError: ``weights`` are not integers.
    """
    weights = _check_weights(weights)
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    for name, sums in (("numerator", above), ("denominator", below)):
        checks.check_shape(
            sums.shape[-1:], (weights.shape[1],), name=name, why="(last axis: groups of weights)"
        )
    shape = np.broadcast_shapes(above.shape, below.shape)[:-1]
    out = np.full((*shape, len(weights)), np.nan)
    for block in _blocks(len(weights), bytes_per_draw=2 * 8 * weights.shape[1]):
        drawn = weights[block].T.astype(np.float64)
        out[..., block] = divide(above @ drawn, below @ drawn)
    return out


def bootstrap_quantile(
    weights: Int[np.ndarray, "draws G"] | Array,
    values: Float[np.ndarray, " n"] | Array,
    group_id: Int[np.ndarray, " n"] | Array,
    q: float,
) -> Float[np.ndarray, " draws"]:
    """Quantile of the drawn rows, per draw: ``np.quantile(np.repeat(values, drawn), q)``.

    Args:
        weights: int32[draws, G] from ``draw_group_weights``.
        values: float[n], finite or NaN; NaN rows are left out (report the support alongside).
        group_id: int32[n] in [0, G).
        q: in [0, 1]; .5 is the median. NumPy's "linear" definition.

    Returns:
        float64[draws]; NaN where no row was drawn.

    Raises:
        InputError: lengths differ, an id or q is out of range.
        TypeError: weights or ids are not integers.
    """
    weights, values, group_id = _check_rows(weights, values, group_id)
    check_share(q, name="q")
    return _quantile(weights, _sort(values, group_id), q)


def bootstrap_tail_mean(
    weights: Int[np.ndarray, "draws G"] | Array,
    values: Float[np.ndarray, " n"] | Array,
    group_id: Int[np.ndarray, " n"] | Array,
    alpha: float,
) -> Float[np.ndarray, " draws"]:
    """Lower-tail mean (LTM), per draw: mean of the drawn rows up to the draw's alpha quantile.

    Rows equal to the quantile count.

    Args:
        weights: int32[draws, G] from ``draw_group_weights``.
        values: float[n], finite or NaN; NaN rows are left out.
        group_id: int32[n] in [0, G).
        alpha: in [0, 1]; 1 gives the mean of all drawn rows.

    Returns:
        float64[draws]; NaN where no row was drawn.

    Raises:
        InputError: lengths differ, an id or alpha is out of range.
        TypeError: weights or ids are not integers.
    """
    weights, values, group_id = _check_rows(weights, values, group_id)
    check_share(alpha, name="alpha")
    rows = _sort(values, group_id)
    quantile = _quantile(weights, rows, alpha)
    # Rows before this position are at or below the quantile, whether they were drawn or not.
    end = np.searchsorted(rows.values, quantile, side="right")
    total, count = np.zeros((2, len(weights)))
    for draw, weight in enumerate(weights):
        drawn = weight[rows.group_id[: end[draw]]]
        total[draw], count[draw] = drawn @ rows.values[: end[draw]], drawn.sum()
    return divide(total, count)


def bootstrap_share_at_most(
    weights: Int[np.ndarray, "draws G"] | Array,
    values: Float[np.ndarray, " n"] | Array,
    group_id: Int[np.ndarray, " n"] | Array,
    threshold: float,
) -> Float[np.ndarray, " draws"]:
    """Share of the drawn rows at or below a threshold, per draw; F(0) at threshold 0.

    Args:
        weights: int32[draws, G] from ``draw_group_weights``.
        values: float[n]; NaN rows are left out of both counts.
        group_id: int32[n] in [0, G).
        threshold: in the unit of ``values``; rows equal to it count.

    Returns:
        float64[draws] in [0, 1]; NaN where no row was drawn.

    Raises:
        InputError: lengths differ or an id is out of range.
        TypeError: weights or ids are not integers.
    """
    weights, values, group_id = _check_rows(weights, values, group_id)
    n_groups = weights.shape[1]
    at_most, rows = (
        np.bincount(group_id[which], minlength=n_groups)
        for which in (values <= threshold, ~np.isnan(values))
    )
    return bootstrap_ratio(weights, at_most, rows)


def bootstrap_median_of_medians(
    weights: Int[np.ndarray, "draws G"] | Array,
    values: Float[np.ndarray, " n"] | Array,
    group_id: Int[np.ndarray, " n"] | Array,
    scope_id: Int[np.ndarray, " n"] | Array,
) -> Float[np.ndarray, " draws"]:
    """Median over scopes of the median of their drawn rows, per draw.

    Groups are drawn once for all scopes, so a group with rows in several scopes is drawn equally
    often in all of them. A scope without a drawn row is left out of that draw.

    Args:
        weights: int32[draws, G] from ``draw_group_weights``.
        values: float[n], finite or NaN; NaN rows are left out.
        group_id: int32[n] in [0, G).
        scope_id: int32[n], any integers.

    Returns:
        float64[draws]; NaN where no row was drawn.

    Raises:
        InputError: lengths differ or an id is out of range.
        TypeError: weights or ids are not integers.
    """
    weights, values, group_id = _check_rows(weights, values, group_id)
    scope_id = np.asarray(scope_id)
    checks.check_shape(scope_id.shape, values.shape, name="scope_id", why="(one per value)")
    checks.check_integer(scope_id, name="scope_id")
    order = np.argsort(scope_id, kind="stable")
    scopes = np.split(order, np.flatnonzero(np.diff(scope_id[order])) + 1)
    medians = np.full((len(weights), len(scopes)), np.nan)
    for s, rows in enumerate(scopes):
        # A scope has rows of few groups; the product needs no others.
        present, local_id = np.unique(group_id[rows], return_inverse=True)
        medians[:, s] = _quantile(weights[:, present], _sort(values[rows], local_id), 0.5)
    return quantile_of_defined(medians, 0.5)


def _check_weights(weights: np.ndarray | Array) -> np.ndarray:
    weights = np.asarray(weights)
    checks.check_shape(weights.shape, (None, None), name="weights", why="[draws, G]")
    checks.check_integer(weights, name="weights")
    return weights


def _check_rows(
    weights: np.ndarray | Array, values: np.ndarray | Array, group_id: np.ndarray | Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arguments as NumPy arrays, values in float64."""
    weights, values, group_id = _check_weights(weights), np.asarray(values), np.asarray(group_id)
    checks.check_shape(values.shape, (None,), name="values", why="[n]")
    checks.check_shape(group_id.shape, values.shape, name="group_id", why="(one per value)")
    checks.check_integer(group_id, name="group_id")
    if group_id.size and not (group_id.min() >= 0 and group_id.max() < weights.shape[1]):
        raise checks.InputError(
            f"group_id: expected ids in [0, {weights.shape[1]}), the groups of weights, found "
            f"{group_id.min()}..{group_id.max()}; factorise the groups over all rows first."
        )
    return weights, values.astype(np.float64), group_id


def _blocks(draws: int, *, bytes_per_draw: int) -> Iterator[slice]:
    """Slices of draws whose temporary arrays stay below BLOCK_BYTES, at least one draw each.

    Callers must count the arrays that a loop assigns twice: the old array lives until the new one
    is assigned.
    """
    rows = max(1, BLOCK_BYTES // max(bytes_per_draw, 1))
    for start in range(0, draws, rows):
        yield slice(start, min(start + rows, draws))


def _sort(values: np.ndarray, group_id: np.ndarray) -> _SortedRows:
    defined = np.flatnonzero(~np.isnan(values))
    order = defined[np.argsort(values[defined])]
    return _SortedRows(values[order], group_id[order])


def _quantile(weights: np.ndarray, rows: _SortedRows, q: float) -> np.ndarray:
    """Quantile per draw; see ``bootstrap_quantile``."""
    n, draws = len(rows.values), len(weights)
    if not n:
        return np.full(draws, np.nan)
    n_drawn = weights @ np.bincount(rows.group_id, minlength=weights.shape[1])
    low, high, t = find_ranks(n_drawn, q)
    position = np.zeros((2, draws), np.int64)
    for draw, weight in enumerate(weights):
        # How often the rows up to each position were drawn; one draw fits in the cache.
        drawn_up_to = weight[rows.group_id].cumsum()
        position[:, draw] = drawn_up_to.searchsorted((low[draw], high[draw]), side="right")
    below, above = rows.values[np.minimum(position, n - 1)]
    return np.where(n_drawn > 0, interpolate(below, above, t), np.nan)
