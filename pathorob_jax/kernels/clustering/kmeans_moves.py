"""Centres moved on CPU by the rows that joined or left their clusters, or made of few rows.

Late steps of Lloyd's algorithm move few rows. The products of all rows with a cluster's sum then
change by a few rows of the inner products. Adding these one at a time costs less than a product
with all rows, and so does adding all rows of a small cluster. The host lists the rows and adds
them as a sparse matrix times the inner products; the device computes the means.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from pathorob_jax.core.typing import Array, Float, Int
from pathorob_jax.kernels.clustering.kmeans_steps import Centers, put_centers

# Columns and moved rows of one call of ``shift_centers``; a column with more is computed anew.
SHIFTED_COLUMNS, SHIFTED_ROWS = 128, 2**12


class Moves(NamedTuple):
    """Rows that clusters gained or lost, sorted by cluster and padded; see ``shift_centers``.

    Attributes:
        at: int32[S] columns of the clusters; P: no column.
        row: int32[E] rows.
        sign: float32[E] 1 if the cluster gained the row, -1 if it lost it, 0 for padding.
        cluster: int32[E] place of the cluster in ``at``; S for padding.
    """

    at: Int[np.ndarray, " S"]
    row: Int[np.ndarray, " E"]
    sign: Float[np.ndarray, " E"]
    cluster: Int[np.ndarray, " E"]


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
        moves = Moves(
            at=np.full(SHIFTED_COLUMNS, n_columns, np.int32),
            row=np.zeros(SHIFTED_ROWS, np.int32),
            sign=np.zeros(SHIFTED_ROWS, np.float32),
            cluster=np.full(SHIFTED_ROWS, SHIFTED_COLUMNS, np.int32),
        )
        n_moves = start[last] - start[first]
        moves.at[: last - first] = columns[first:last]
        moves.row[:n_moves], moves.sign[:n_moves] = row[part], sign[part]
        lengths = np.diff(start[first : last + 1])
        moves.cluster[:n_moves] = np.repeat(np.arange(last - first), lengths)
        yield moves
        first = last


def add_moves(rows: Float[np.ndarray, "N N"], moves: Moves) -> Float[np.ndarray, "S N"]:
    """Products of all rows with the sum of the rows gained less that of the rows lost, on the host.

    Args:
        rows: float32[N, N] inner products.
        moves: one call of ``list_moves``.
    """
    n_clusters = len(moves.at)
    # In int32 as the rows, else SciPy converts both.
    start = np.searchsorted(moves.cluster, np.arange(n_clusters + 1)).astype(np.int32)
    shape = (n_clusters, len(rows))
    return np.asarray(sparse.csr_array((moves.sign, moves.row, start), shape=shape) @ rows)


def add_members(
    rows: Float[np.ndarray, "N N"],
    member: Int[np.ndarray, "R N"],
    slot: Int[np.ndarray, " S"],
    cluster: Int[np.ndarray, " S"],
) -> Float[np.ndarray, "S N"]:
    """Products of all rows with the sum of a cluster's rows, on the host; 0 for a slot past R."""
    is_in = member[np.minimum(slot, len(member) - 1)] == cluster[:, None]
    is_in &= (slot < len(member))[:, None]
    return np.asarray(sparse.csr_array(is_in.astype(np.float32)) @ rows)


@functools.partial(jax.jit, donate_argnums=0)
def shift_centers(centers: Centers, changes: Array, coefficients: Array, moves: Moves) -> Centers:
    """Compute the new means of clusters from the rows that they gained or lost.

    Equals ``move_centers`` but for rounding.

    Args:
        centers: centres of the batch, each a mean; donated.
        changes: float32[S, N] result of ``add_moves``.
        coefficients: uint32[2, N] random coefficients of the marks.
        moves: rows that the clusters gained or lost.
    """
    old = jax.tree.map(lambda a: jnp.take(a, moves.at, axis=0, mode="clip"), centers)
    add = functools.partial(
        jax.ops.segment_sum,
        segment_ids=moves.cluster,
        num_segments=len(moves.at),
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
