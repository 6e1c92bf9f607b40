"""Rows of equal direction, among which no neighbour is nearer than another.

A row and a multiple of it have one direction; in float32 the multiple is rounded, so directions
count as equal that differ by no more than such rounding.
"""

import numpy as np

from pathorob_jax.core.typing import Bool, Float
from pathorob_jax.kernels.neighbors.exact_rows import BLOCK_ROWS, Rows
from pathorob_jax.kernels.neighbors.row_source import RowSource

# Two roundings of a row to float32 move its direction by at most 2^-23.
SAME = 2.0**-22
PROJECTIONS, LOOK_AHEAD = 4, 4


def find_equal(embeddings: Float[np.ndarray, "N D"] | RowSource) -> Bool[np.ndarray, " N"]:
    """Whether the direction of each row equals that of another, |u - v| <= ``SAME``.

    Equal directions have equal projections. Rows are compared with the ``LOOK_AHEAD`` next ones in
    the order of a random projection, if all ``PROJECTIONS`` are equal too.

    Args:
        embeddings: float32[N, D], finite, no row all zero.
    """
    rows = Rows(embeddings)
    axes = np.random.default_rng(0).standard_normal((rows.dim, PROJECTIONS))
    axes /= np.linalg.norm(axes, axis=0)
    starts = range(0, rows.n, BLOCK_ROWS)
    projected = np.concatenate([rows.unit_block(start) @ axes for start in starts])
    order = np.argsort(projected[:, 0], kind="stable")
    equal = np.zeros(rows.n, bool)
    for step in range(1, LOOK_AHEAD + 1):
        first, second = order[:-step], order[step:]
        near = (np.abs(projected[first] - projected[second]) <= 1.01 * SAME).all(axis=1)
        first, second = first[near], second[near]
        same = rows.distances(first, second) <= SAME**2 / 2
        equal[first[same]] = equal[second[same]] = True
    return equal


def have_one_direction(embeddings: Float[np.ndarray, "N D"] | RowSource) -> bool:
    """Whether all rows have the direction of the first, |u - v| <= ``SAME``."""
    rows = Rows(embeddings)
    every = np.arange(rows.n)
    return bool((rows.distances(np.zeros_like(every), every) <= SAME**2 / 2).all())
