"""Bags: the rows of one class on one slide, the units of slide-level prediction and retrieval."""

from typing import NamedTuple

import numpy as np

from pathorob_jax.core.typing import Int
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE, Manifest


class Bags(NamedTuple):
    """Rows by bag.

    Attributes:
        rows: one row per bag, its first, in order of first appearance; a schedule that draws from
            them has bags as its slides (``rows_per_slide`` 1).
        bag_id: int64[N] number of the bag of each row.
    """

    rows: Manifest
    bag_id: Int[np.ndarray, " N"]


def find_bags(rows: Manifest) -> Bags:
    """The bags of rows: one for each slide, or, if a slide has several classes, for each class.

    Args:
        rows: N rows, each patch once.
    """
    columns = [rows.factorize(name).ids.astype(np.int64) for name in (SLIDE, CLASS, CENTER)]
    _, first, inverse = np.unique(
        np.stack(columns, axis=1), axis=0, return_index=True, return_inverse=True
    )
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return Bags(rows.take(first[order]), rank[inverse.reshape(-1)])
