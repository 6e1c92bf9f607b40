"""Pairs of rows that are measured once, whichever way round and however often they are given."""

from typing import NamedTuple

import numpy as np

from pathorob_jax.core.typing import Int


class DistinctPairs(NamedTuple):
    """Distinct pairs in ascending order, the lower row first.

    Attributes:
        first: int64[U] rows.
        second: int64[U] rows.
        place: int64[P] place of each given pair among the distinct ones.
    """

    first: Int[np.ndarray, " U"]
    second: Int[np.ndarray, " U"]
    place: Int[np.ndarray, " P"]


def find_distinct(
    first: Int[np.ndarray, " P"], second: Int[np.ndarray, " P"], n: int
) -> DistinctPairs:
    """Distinct pairs of n rows."""
    keys = np.minimum(first, second).astype(np.int64) * n + np.maximum(first, second)
    order = np.argsort(keys)
    keys = keys[order]
    is_new = np.diff(keys, prepend=-1) > 0
    place = np.empty(len(keys), np.int64)
    place[order] = np.cumsum(is_new) - 1
    low, high = np.divmod(keys[is_new], n)
    return DistinctPairs(low, high, place)
