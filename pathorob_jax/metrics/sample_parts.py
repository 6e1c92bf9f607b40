"""Samples some at a time: counting and weighing lists of neighbours then needs little memory."""

from collections.abc import Iterator

import numpy as np

from pathorob_jax.core import scratch

PART_ROWS = 8192


def split_samples(n: int, *lists: np.ndarray) -> Iterator[slice]:
    """Slices of at most ``PART_ROWS`` of n samples, in order.

    Args:
        n: number of samples.
        *lists: what is read of them; pages of arrays in scratch files are given back after each.
    """
    for start in range(0, n, PART_ROWS):
        yield slice(start, start + PART_ROWS)
        scratch.give_back(*lists)
