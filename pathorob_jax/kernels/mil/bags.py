"""Bags of tiles in one array, and their rows with padding and masks.

Tiles of all bags lie one after the other, so that a bag is a range of rows. Nothing is padded until
a step reads bags of several sizes together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Array, ArrayLike, Bool, Float, Int


class BagRows(NamedTuple):
    """Tiles of B bags.

    Attributes:
        x: float32[N, D] tiles, ordered by bag.
        starts: int64[B + 1]; bag b holds the rows from ``starts[b]`` up to ``starts[b + 1]``. The
            number of a bag is its identity: draws of its tiles depend on it.
    """

    x: Float[ArrayLike, "N D"]
    starts: Int[np.ndarray, " B+1"]


class SortedBags(NamedTuple):
    """Bags, and where their rows were.

    Attributes:
        bags: the bags, in ascending order of their number.
        row_idx: int64[N] for each row of ``bags.x``, its place in the array before.
    """

    bags: BagRows
    row_idx: Int[np.ndarray, " N"]


def sort_into_bags(x: Float[np.ndarray, "N D"], bag_id: Int[np.ndarray, " N"]) -> SortedBags:
    """Order tiles by bag; those of one bag stay in their order.

    Args:
        x: float32[N, D]; not copied if its rows are in order.
        bag_id: int[N] number of the bag of each tile, in [0, B).

    Raises:
        InputError: lengths differ, a number below B has no tile, or a tile is not finite.
        TypeError: numbers are not of integer dtype.
    """
    bag_id = np.asarray(bag_id)
    checks.check_integer(bag_id, name="bag_id")
    checks.check_shape(bag_id.shape, (len(x),), name="bag_id", why="(one per tile)")
    if len(bag_id) and bag_id.min() < 0:
        raise InputError(f"bag_id: expected numbers of 0 or more, found {bag_id.min()}.")
    bad, word = checks.find_bad_rows(x, need_direction=False)
    if bad.size:
        raise InputError(f"x: {bad.size} of {len(x)} tiles have {word} (the first is {bad[0]}).")
    order = np.argsort(bag_id, kind="stable")
    ordered = x if (np.diff(order) == 1).all() else x[order]
    starts = np.concatenate([[0], np.cumsum(np.bincount(bag_id))]).astype(np.int64)
    bags = BagRows(ordered, starts)
    check_bags(bags)
    return SortedBags(bags, order)


def check_bags(bags: BagRows) -> None:
    """Raise InputError unless there are bags and none is empty."""
    starts = np.asarray(bags.starts)
    checks.check_integer(starts, name="starts")
    checks.check_shape(np.shape(bags.x), (None, None), name="x", why="(tiles, dimensions)")
    checks.check_shape(starts.shape, (None,), name="starts", why="(one more than bags)")
    n = np.shape(bags.x)[0]
    if len(starts) < 2 or starts[0] != 0 or starts[-1] != n:
        raise InputError(
            f"starts: expected the first row of each bag, from 0, and then the {n} rows of x; "
            f"found {starts[:1]} to {starts[-1:]}."
        )
    sizes = np.diff(starts)
    if (sizes < 1).any():
        empty = np.flatnonzero(sizes < 1)
        raise InputError(
            f"bags: {len(empty)} of {len(sizes)} have no tile (the first is number {empty[0]}); "
            "leave them and their labels out."
        )


def bag_sizes(bags: BagRows) -> Int[np.ndarray, " B"]:
    """Number of tiles of each bag."""
    return np.diff(np.asarray(bags.starts))


def rows_of(bags: BagRows, subset: Int[np.ndarray, " T"]) -> Int[np.ndarray, " R"]:
    """int64[R] rows of the tiles of some bags, bag after bag."""
    starts, sizes = np.asarray(bags.starts)[subset], bag_sizes(bags)[subset]
    return np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())


def draw_rows(
    key: Array, start: Int[Array, ""], size: Int[Array, ""], *, n_rows: int, most: int
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """Rows of one bag for a step: all, or ``n_rows`` of them drawn without replacement.

    What is drawn depends on the key and the bag alone, not on ``most``.

    Args:
        key: random key of this bag in this epoch.
        start: first row of the bag.
        size: number of its tiles.
        n_rows: number of rows returned.
        most: tiles of the largest bag; at most ``n_rows`` if no bag has to be drawn from.

    Returns:
        int32[n_rows] rows, and a mask that is False for padding (which repeats the last row).
    """
    place = jnp.arange(n_rows)
    mask = place < size
    if most > n_rows:
        lot = jax.random.bits(key, (most,)) >> 1
        drawn = jax.lax.top_k(
            jnp.where(jnp.arange(most) < size, lot.astype(jnp.int32), -1), n_rows
        )[1]
        place = jnp.where(size > n_rows, drawn, place)
    return start + jnp.minimum(place, size - 1), mask
