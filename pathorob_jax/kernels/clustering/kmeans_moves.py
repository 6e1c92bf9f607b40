"""Centres moved by the rows that joined or left their clusters, on CPU.

Late steps of Lloyd's algorithm move few rows. The products of all rows with a cluster's sum then
change by a few rows of the inner products, which are added one at a time: reading them costs less
than a product with all rows. The host lists the moves, and the device adds them.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.typing import Array, Float, Int
from pathorob_jax.kernels.clustering.kmeans_steps import Centers, put_centers

# Columns and moved rows of one call of ``shift_centers``.
SHIFTED_COLUMNS, SHIFTED_ROWS = 128, 2**14


class Moves(NamedTuple):
    """Rows that clusters gained or lost, sorted by cluster and padded; see ``shift_centers``.

    Attributes:
        at: int32[S] columns of the clusters; P: no column.
        start: int32[S + 1] first move of each cluster, and the end of the last.
        row: int32[E] rows.
        sign: float32[E] 1 if the cluster gained the row, -1 if it lost it, 0 for padding.
        cluster: int32[E] place of the cluster in ``at``; S for padding.
    """

    at: Array | np.ndarray
    start: Array | np.ndarray
    row: Array | np.ndarray
    sign: Array | np.ndarray
    cluster: Array | np.ndarray


def find_moves(
    before: Int[np.ndarray, "R N"], member: Int[np.ndarray, "R N"], *, width: int
) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"], Float[np.ndarray, " E"]]:
    """Find the rows that changed cluster, on the host.

    Args:
        before: int32[R, N] previous cluster of each row; -1: none.
        member: int32[R, N] current cluster of each row.
        width: number of columns of a slot.

    Returns:
        int64[E] column of the cluster, int64[E] row, and float32[E] 1 if the cluster gained the
        row, -1 if it lost it.
    """
    moved = np.flatnonzero(before != member)
    slot, row = np.divmod(moved, before.shape[1])
    left = before.reshape(-1)[moved]
    had = np.flatnonzero(left >= 0)
    gained = slot * width + member.reshape(-1)[moved]
    column = np.concatenate([gained, slot[had] * width + left[had]])
    sign = np.ones(len(column), np.float32)
    sign[len(moved) :] = -1
    return column, np.concatenate([row, row[had]]), sign


def list_moves(
    column: Int[np.ndarray, " E"],
    row: Int[np.ndarray, " E"],
    sign: Float[np.ndarray, " E"],
    is_shifted: np.ndarray,
) -> Iterator[Moves]:
    """Sort the moves of some columns into calls of at most ``SHIFTED_COLUMNS`` of them.

    Args:
        column: int64[E] column of each move, of ``find_moves``.
        row: int64[E].
        sign: float32[E].
        is_shifted: bool[P] columns to list; none has more than ``SHIFTED_ROWS`` moves.
    """
    n_columns = len(is_shifted)
    kept = np.flatnonzero(is_shifted[column])
    order = kept[np.argsort(column[kept], kind="stable")]
    column, row, sign = column[order], row[order].astype(np.int32), sign[order]
    columns = np.flatnonzero(is_shifted).astype(np.int32)
    start = np.searchsorted(column, np.append(columns, n_columns)).astype(np.int32)
    first = 0
    while first < len(columns):
        fits = np.searchsorted(start, start[first] + SHIFTED_ROWS, side="right") - 1
        last = min(int(fits), first + SHIFTED_COLUMNS, len(columns))
        part = slice(start[first], start[last])
        place = np.repeat(np.arange(last - first), np.diff(start[first : last + 1]))
        padding = (0, SHIFTED_ROWS - len(place))
        unused = (0, SHIFTED_COLUMNS - (last - first))
        yield Moves(
            at=np.pad(columns[first:last], unused, constant_values=n_columns),
            start=np.pad(start[first : last + 1] - start[first], unused, mode="edge"),
            row=np.pad(row[part], padding),
            sign=np.pad(sign[part], padding),
            cluster=np.pad(place, padding, constant_values=SHIFTED_COLUMNS).astype(np.int32),
        )
        first = last


@functools.partial(jax.jit, donate_argnums=0)
def shift_centers(centers: Centers, rows: Array, coefficients: Array, moves: Moves) -> Centers:
    """Compute the new means of clusters from the rows that they gained or lost, one row at a time.

    Equals ``move_centers`` but for rounding. It reads one row of products for each moved row, and
    pays where few rows move.

    Args:
        centers: centres of the batch, each a mean; donated.
        rows: float32[N, N] inner products.
        coefficients: uint32[2, N] random coefficients of the marks.
        moves: rows that the clusters gained or lost.
    """
    n_clusters, n = len(moves.at), rows.shape[1]
    old = jax.tree.map(lambda a: jnp.take(a, moves.at, axis=0, mode="clip"), centers)

    def add_cluster(cluster: Array, changes: Array) -> Array:
        def add_row(move: Array, change: Array) -> Array:
            row = lax.dynamic_slice_in_dim(rows, moves.row[move], 1)
            return change + moves.sign[move] * row

        start, end = moves.start[cluster], moves.start[cluster + 1]
        change = lax.fori_loop(start, end, add_row, jnp.zeros((1, n), jnp.float32))
        return lax.dynamic_update_slice_in_dim(changes, change, cluster, axis=0)

    n_used = (moves.at < len(centers.norm2)).sum()
    # Products of all rows with the sum of the rows gained less that of the rows lost.
    changes = jnp.zeros((n_clusters, n), jnp.float32)
    changes = lax.fori_loop(0, n_used, add_cluster, changes)
    add = functools.partial(
        jax.ops.segment_sum,
        segment_ids=moves.cluster,
        num_segments=n_clusters,
        indices_are_sorted=True,
    )
    inner = add(moves.sign * changes[moves.cluster, moves.row])
    across = add(moves.sign * old.scores[moves.cluster, moves.row])
    more = add(moves.sign)
    turned = moves.sign.astype(jnp.int32).astype(jnp.uint32)
    mark = coefficients.T[moves.row] * turned[:, None]
    size = old.size + more
    share = 1 / jnp.maximum(size, 1)
    # As in move_centers, with ``changes`` in place of differences of sums.
    moved = inner - 2 * more * across + more**2 * old.norm2
    norm2 = old.size**2 * old.norm2 + 2 * old.size * across + inner
    scores = (old.size[:, None] * old.scores + changes) * share[:, None]
    new = Centers(
        scores=scores,
        norm2=norm2 * share**2,
        size=size,
        shift=jnp.maximum(moved, 0) * share**2,
        mark=old.mark + add(mark),
    )
    return put_centers(centers, moves.at, new)
