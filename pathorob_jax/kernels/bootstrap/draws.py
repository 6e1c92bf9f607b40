"""Draws of a statistic from its values with one slide left out: a jackknife that is drawn.

The rows of a group (a slide) are not independent, so whole groups are left out. Each statistic is
computed once for every group that is left out (its replicates); ``Jackknife.spread`` turns the
replicates into draws. A draw weights the change that each group makes by how often the group was
drawn, so that draws are centred on the estimate, are defined wherever the replicates are, and hold
no row twice: rows that are equal to others would be their own neighbours, their own cluster and
ties of every rank. Statistics of several models that use the same weights are paired draw by draw.

The module uses NumPy in float64 on the host.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from pathorob_jax.core import checks
from pathorob_jax.core.typing import Array, Float, Int

# Upper bound for the temporary arrays of one block of draws, in bytes.
BLOCK_BYTES = 1 << 23
# More groups are dealt into this many blocks, each left out as a whole.
MAX_BLOCKS = 500
# Fewer draws give no standard error to two digits.
MIN_DRAWS = 200
LEVEL = 0.95
# Part of the key of draws: draws of another kind are not compared with these.
DRAWS_KIND = "jackknife"


@dataclass(frozen=True, eq=False)
class Jackknife:
    """Which groups are left out together, and how often each is drawn.

    Attributes:
        block_of: int32[G] block of each group; every group is a block if there are at most
            ``MAX_BLOCKS``.
        weights: int32[draws, B] how often each block is drawn.
    """

    block_of: Int[np.ndarray, " G"]
    weights: Int[np.ndarray, "draws B"]

    @property
    def n_blocks(self) -> int:
        """B."""
        return self.weights.shape[1]

    @functools.cached_property
    def left_out(self) -> Int[np.ndarray, "B B"]:
        """int32[B, B] weights of the blocks with each of them left out in turn."""
        return np.ones((self.n_blocks,) * 2, np.int32) - np.eye(self.n_blocks, dtype=np.int32)

    def spread(
        self, value: float, replicates: Float[np.ndarray, " B"] | Array
    ) -> Float[np.ndarray, " draws"]:
        """Draws of a statistic around its estimate.

        Their variance is the jackknife's, (B - 1) / B times the sum of squares of the replicates
        about their mean, as wide as Student's t with B - 1 degrees of freedom asks: 1.96 standard
        deviations of the draws are t(0.975, B - 1) standard errors.

        Args:
            value: the estimate from all rows.
            replicates: float[B], the statistic without each block.

        Returns:
            float64[draws]; NaN if the estimate or a replicate is undefined (a group without which
            the statistic does not exist leaves its error unknown), or there is one block.

        Raises:
            InputError: the replicates are not one for each block.
        """
        replicates = np.asarray(replicates, np.float64)
        checks.check_shape(
            replicates.shape, (self.n_blocks,), name="replicates", why="(one per block left out)"
        )
        n = self.n_blocks
        if n < 2 or not np.isfinite(replicates).all():
            return np.full(len(self.weights), np.nan)
        tail = (1 + LEVEL) / 2
        wider = special.stdtrit(n - 1, tail) / special.ndtri(tail)
        change = replicates.mean() - replicates
        drawn: np.ndarray = value + wider * np.sqrt((n - 1) / n) * (self.weights @ change)
        return drawn


def plan_jackknife(n_groups: int, *, draws: int, seed: int) -> Jackknife:
    """Deal groups into blocks, and draw the blocks.

    Args:
        n_groups: G >= 0.
        draws: number of draws; 0: no intervals.
        seed: seed of the draws, and of dealing more than ``MAX_BLOCKS`` groups.
    """
    block_of = np.arange(n_groups, dtype=np.int32)
    if n_groups > MAX_BLOCKS:
        block_of = np.random.default_rng(seed).permutation(n_groups).astype(np.int32) % MAX_BLOCKS
    n_blocks = min(n_groups, MAX_BLOCKS)
    return Jackknife(block_of, draw_group_weights(n_blocks, draws=draws, seed=seed))


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


def _blocks(draws: int, *, bytes_per_draw: int) -> Iterator[slice]:
    """Slices of draws whose temporary arrays stay below BLOCK_BYTES, at least one draw each.

    Callers must count the arrays that a loop assigns twice: the old array lives until the new one
    is assigned.
    """
    rows = max(1, BLOCK_BYTES // max(bytes_per_draw, 1))
    for start in range(0, draws, rows):
        yield slice(start, min(start + rows, draws))
