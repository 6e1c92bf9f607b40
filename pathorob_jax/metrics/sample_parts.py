"""Samples some at a time: counting and weighing lists of neighbours then needs little memory."""

from collections.abc import Iterator

PART_ROWS = 8192


def split_samples(n: int) -> Iterator[slice]:
    """Slices of at most ``PART_ROWS`` of n samples, in order."""
    for start in range(0, n, PART_ROWS):
        yield slice(start, start + PART_ROWS)
