"""Whether neighbours share a label more often than chance would have it.

The nearest neighbours of embeddings that belong to other rows (a table that was shuffled) share
neither the class nor the centre more often than any two rows of different slides do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathorob_jax.core import scratch
from pathorob_jax.core.typing import Int

NEAREST = 10
PERMUTATIONS = 40
# Standard deviations above chance that count as a signal, and the largest effect that may go
# unseen: the share of the way from chance to neighbours that all agree.
DEVIATIONS, UNSEEN = 3.5, 0.2


class Agreement(NamedTuple):
    """How many of the nearest neighbours have the label of their row.

    Attributes:
        observed: share in [0, 1], pooled over rows and scopes.
        expected: the same if every row of another group were equally likely to be a neighbour.
        deviation: standard deviation of ``observed`` when labels are dealt to rows at random.
    """

    observed: float
    expected: float
    deviation: float

    @property
    def at_chance(self) -> bool:
        """No more agreement than by chance, although a fifth of the possible would have shown."""
        limit = DEVIATIONS * self.deviation
        return (
            self.observed < self.expected + limit and limit <= (1 - self.expected) * UNSEEN
        )  # False where NaN


def measure_agreement(
    neighbor_idx: Sequence[Int[np.ndarray, "N K"]],
    label_id: Sequence[Int[np.ndarray, " N"]],
    group_id: Sequence[Int[np.ndarray, " N"]],
    *,
    occurrences: float = 1.0,
    seed: int = 0,
) -> Agreement:
    """Measure the agreement among the ``NEAREST`` neighbours of each row.

    Args:
        neighbor_idx: int32[N, K] neighbours of each scope, nearest first, -1 where there is none.
        label_id: int32[N] label of each row.
        group_id: int32[N] slide of each row; rows of one slide are never neighbours.
        occurrences: in how many scopes a patch lies, on average. Its neighbours recur there, so
            that the share varies as if there were fewer rows.
        seed: seed of the permutations.

    Returns:
        The agreement; NaN if there are no neighbours.
    """
    rng = np.random.default_rng(seed)
    n_same, n_by_chance, n_pairs = 0, 0.0, 0
    permuted = np.zeros(PERMUTATIONS)
    for idx, label, group in zip(neighbor_idx, label_id, group_id, strict=True):
        nearest = scratch.head(idx, NEAREST)
        there = nearest >= 0
        n_pairs += int(there.sum())
        n_same += int(((label[nearest] == label[:, None]) & there).sum())
        n_by_chance += float(there.sum(1) @ _expected_shares(label, group))
        for i in range(PERMUTATIONS):
            dealt = rng.permutation(label)
            permuted[i] += ((dealt[nearest] == dealt[:, None]) & there).sum()
    if not n_pairs:
        return Agreement(np.nan, np.nan, np.nan)
    deviation = float(np.std(permuted / n_pairs, ddof=1)) * np.sqrt(occurrences)
    return Agreement(n_same / n_pairs, n_by_chance / n_pairs, deviation)


def _expected_shares(
    label_id: Int[np.ndarray, " N"], group_id: Int[np.ndarray, " N"]
) -> np.ndarray:
    """float64[N]: share of the rows of other groups that have a row's label; 0 without any."""
    pair = label_id.astype(np.int64) * (int(group_id.max()) + 1) + group_id
    _, position, sizes = np.unique(pair, return_inverse=True, return_counts=True)
    own = np.bincount(group_id)[group_id]
    same = np.bincount(label_id)[label_id] - sizes[position]
    return same / np.maximum(len(label_id) - own, 1)
