"""Group bootstrap: how far a statistic moves when whole groups of rows are drawn again.

Enters: per-group sums or per-row values with the group (slide) of each row. Leaves: one statistic
per draw (``intervals`` says what becomes of draws). Rows of a group are not independent, hence
whole groups are drawn with replacement.

A draw is a row of integer weights (how often each group was drawn), so nothing is computed again
per draw. A ratio of sums is a matrix product. An order statistic is a selection in values that are
sorted once and cut into buckets: one product gives the drawn count before every bucket, and only
the bucket that holds the wanted rank is opened. That is ``G * buckets + n / buckets`` operations
per draw instead of n, and holds no draws x n array; a bisection over prefix counts per group is as
fast with few groups but holds n x G of them.

Host NumPy in float64, not JAX: counts and integer sums are exact up to 2^53 (without x64, JAX
stops at 2^24 or 2^31), quantiles equal ``np.quantile`` to the last bit, and no shape is compiled.
Measured on 2 cores, 20,400 rows, 68 groups, 2,000 draws: median 6-8 ms; a blocked cumulative sum
390 ms, bisection 7-16 ms in NumPy and 9-15 ms in JAX (and .3-.6 s to compile).
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

# Bound on the temporary arrays of one block of draws, in bytes.
BLOCK_BYTES = 1 << 23
# Cost of a row of an opened bucket, in multiplications of the product that finds the bucket. Only
# speed depends on it; measured flat from 40 to 160.
BUCKET_COST = 80


class _Buckets(NamedTuple):
    """Sorted values in equal buckets. Padding: value 0, group G (whose weight is 0), at the end.

    Attributes:
        values: float64[n] ascending, without padding.
        rows: float64[B, W] the same values by bucket.
        groups: int64[B, W] their groups.
        counts: float64[G + 1, B + 1] rows of a group before each bucket; the last column is all.
    """

    values: Float[np.ndarray, " n"]
    rows: Float[np.ndarray, "B W"]
    groups: Int[np.ndarray, "B W"]
    counts: Float[np.ndarray, "groups edges"]


def draw_group_weights(n_groups: int, *, draws: int, seed: int) -> Int[np.ndarray, "draws G"]:
    """How often each group is drawn, when G groups are drawn with replacement from G.

    The same seed and number of groups give the same draws on every machine with the same NumPy
    (PCG64; a test pins them), and fewer draws are the first rows of more. Statistics that are
    compared must share one result: draw once, over all groups of the scope.

    Args:
        n_groups: G >= 0.
        draws: number of draws.
        seed: of ``np.random.default_rng``.

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
        weights: int32[draws, G] of ``draw_group_weights``.
        numerator: integer or float[..., G] sum per group; integers are summed exactly while the
            drawn sums stay under 2^53. A NaN makes every draw NaN.
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
        weights: int32[draws, G] of ``draw_group_weights``.
        values: float[n], finite or NaN; NaN rows are left out (report their support beside it).
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
    return _select_quantile(weights, _bucket(values, group_id, weights.shape[1]), q)


def bootstrap_tail_mean(
    weights: Int[np.ndarray, "draws G"] | Array,
    values: Float[np.ndarray, " n"] | Array,
    group_id: Int[np.ndarray, " n"] | Array,
    alpha: float,
) -> Float[np.ndarray, " draws"]:
    """Mean of the drawn rows at or under that draw's own alpha quantile (LTM), per draw.

    Args:
        weights: int32[draws, G] of ``draw_group_weights``.
        values: float[n], finite or NaN; NaN rows are left out.
        group_id: int32[n] in [0, G).
        alpha: in [0, 1]; 1 is the mean of all.

    Returns:
        float64[draws]; NaN where no row was drawn.

    Raises:
        InputError: lengths differ, an id or alpha is out of range.
        TypeError: weights or ids are not integers.
    """
    weights, values, group_id = _check_rows(weights, values, group_id)
    check_share(alpha, name="alpha")
    table = _bucket(values, group_id, weights.shape[1])
    quantile = _select_quantile(weights, table, alpha)
    # Sorted rows before this position are at or under the quantile, whether drawn or not.
    position = np.searchsorted(table.values, quantile, side="right")
    n_buckets, width = table.rows.shape
    sums = _before(table, table.rows)
    out = np.full(len(weights), np.nan)
    for block, drawn in _padded_blocks(weights, table):
        bucket = np.minimum(position[block] // width, n_buckets - 1)
        opened = _open(drawn, table, bucket)
        opened *= np.arange(width) < (position[block] - bucket * width)[:, None]
        each = np.arange(len(bucket))
        count = (drawn @ table.counts)[each, bucket] + opened.sum(1)
        total = (drawn @ sums)[each, bucket] + (opened * table.rows[bucket]).sum(1)
        out[block] = divide(total, count)
    return out


def bootstrap_share_at_most(
    weights: Int[np.ndarray, "draws G"] | Array,
    values: Float[np.ndarray, " n"] | Array,
    group_id: Int[np.ndarray, " n"] | Array,
    threshold: float,
) -> Float[np.ndarray, " draws"]:
    """Share of the drawn rows at or under a threshold, per draw; F(0) at threshold 0.

    Args:
        weights: int32[draws, G] of ``draw_group_weights``.
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

    Groups are drawn once for all scopes: a group that has rows in several scopes is in all of them
    or in none. A scope without a drawn row is left out of that draw.

    Args:
        weights: int32[draws, G] of ``draw_group_weights``.
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
        # A scope has few of the groups; the product needs no others.
        present, local_id = np.unique(group_id[rows], return_inverse=True)
        table = _bucket(values[rows], local_id, len(present))
        medians[:, s] = _select_quantile(weights[:, present], table, 0.5)
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
    """Slices of draws whose temporary arrays stay under BLOCK_BYTES, one draw at least.

    Two blocks of what a loop names count: the old one lives until the new one is assigned.
    """
    rows = max(1, BLOCK_BYTES // max(bytes_per_draw, 1))
    for start in range(0, draws, rows):
        yield slice(start, min(start + rows, draws))


def _padded_blocks(weights: np.ndarray, table: _Buckets) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of draws, with their weights in float64 and a column of zeros for the padding."""
    draws, n_groups = weights.shape
    n_buckets, width = table.rows.shape
    # Weights, two rows of counts and their comparison; an opened bucket, its index and its masks.
    bytes_per_draw = 16 * (n_groups + 1) + 33 * (n_buckets + 1) + 48 * width
    for block in _blocks(draws, bytes_per_draw=bytes_per_draw):
        drawn = np.zeros((block.stop - block.start, n_groups + 1))
        drawn[:, :-1] = weights[block]
        yield block, drawn


def _bucket(values: np.ndarray, group_id: np.ndarray, n_groups: int) -> _Buckets:
    """Sort what is not NaN, and cut it into as many buckets as make a selection cheapest."""
    defined = np.flatnonzero(~np.isnan(values))
    order = defined[np.argsort(values[defined])]
    values, group_id = values[order], group_id[order]
    n = max(len(values), 1)
    n_buckets = int(np.clip(round((BUCKET_COST * n / max(n_groups, 1)) ** 0.5), 1, n))
    width = -(-n // n_buckets)
    pad = (0, n_buckets * width - len(values))
    table = _Buckets(
        values=values,
        rows=np.pad(values, pad).reshape(n_buckets, width),
        groups=np.pad(group_id.astype(np.int64), pad, constant_values=n_groups).reshape(
            n_buckets, width
        ),
        counts=np.zeros((n_groups + 1, n_buckets + 1)),
    )
    return table._replace(counts=_before(table, np.ones_like(table.rows)))


def _before(table: _Buckets, rows: np.ndarray) -> np.ndarray:
    """Sum of ``rows`` by group before each bucket: float64[G + 1, B + 1]."""
    n_groups, n_edges = table.counts.shape
    cell = table.groups * (n_edges - 1) + np.arange(n_edges - 1)[:, None]
    sums = np.bincount(cell.ravel(), rows.ravel(), minlength=n_groups * (n_edges - 1))
    return np.pad(sums.reshape(n_groups, n_edges - 1).cumsum(1), ((0, 0), (1, 0)))


def _open(drawn: np.ndarray, table: _Buckets, bucket: np.ndarray) -> np.ndarray:
    """Weight of every row of one bucket per draw: float64[draws, W]."""
    flat = table.groups[bucket]
    flat += (np.arange(len(bucket)) * drawn.shape[1])[:, None]
    return drawn.ravel().take(flat)


def _select_quantile(weights: np.ndarray, table: _Buckets, q: float) -> np.ndarray:
    """Quantile per draw; see ``bootstrap_quantile``."""
    out = np.full(len(weights), np.nan)
    for block, drawn in _padded_blocks(weights, table):
        before = drawn @ table.counts
        n_drawn = before[:, -1]
        low, high, t = find_ranks(n_drawn, q)
        below, above = (_select_rank(drawn, table, before, rank) for rank in (low, high))
        out[block] = np.where(n_drawn > 0, interpolate(below, above, t), np.nan)
    return out


def _select_rank(
    drawn: np.ndarray, table: _Buckets, before: np.ndarray, rank: np.ndarray
) -> np.ndarray:
    """The value at a rank (from 0) of each draw's sorted rows; anything where none is drawn."""
    n_buckets, width = table.rows.shape
    bucket = np.minimum((before[:, 1:] <= rank[:, None]).sum(1), n_buckets - 1)
    # Rows are counted from the start of the bucket.
    rest = rank - before[np.arange(len(rank)), bucket]
    seen = _open(drawn, table, bucket).cumsum(1)
    offset = np.minimum((seen <= rest[:, None]).sum(1), width - 1)
    return table.rows[bucket, offset]
