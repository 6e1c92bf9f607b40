"""Products of rows with those problems only that use them.

Splits of a repetition share most rows, but not all. Rows that the same groups of problems use form
a segment, and a product of a segment has the columns of these groups alone. Segments are arrays of
their own, since XLA on CPU would copy a part of a larger one for each product.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.aligned import ALIGNMENT, empty_aligned
from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import Array, Bool, Int
from pathorob_jax.kernels.logistic.products import product

# More segments than this make a program that takes longer to compile than it saves.
MOST_SEGMENTS = 24
# What segments must save at least: a share of an iteration's operations, and so many of them, since
# a program of segments compiles for some seconds.
LEAST_SHARE, LEAST_SAVED = 0.1, 1e9


@functools.partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["groups"])
@dataclasses.dataclass(frozen=True)
class Segments:
    """Rows by the groups of problems that use them.

    Attributes:
        rows: [n, D] of each segment.
        groups: of each segment, the numbers of the groups that use its rows, ascending. Every group
            uses some; a batch has equally many problems of each, one group after the other.
    """

    rows: tuple[Array, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def n_groups(self) -> int:
        """G."""
        return 1 + max(map(max, self.groups))

    def multiply(self, coef: Array) -> Array:
        """Products of rows with columns, [B, L, N] of [B, L, D]; 0 where rows are not used."""
        b, n_logits, d = coef.shape
        columns = coef.reshape(self.n_groups, -1, d)
        out = jnp.zeros((self.n_groups, columns.shape[1], sum(map(len, self.rows))), coef.dtype)
        start = 0
        for x, runs in zip(self.rows, map(_find_runs, self.groups), strict=True):
            some = lax.optimization_barrier(jnp.concatenate([columns[run] for run in runs]))
            found = product("gcd,nd->gcn", some, x)
            for run in runs:
                own, found = found[: run.stop - run.start], found[run.stop - run.start :]
                out = lax.dynamic_update_slice(out, own, (run.start, 0, start))
            start += len(x)
        return out.reshape(b, n_logits, -1)

    def sum_rows(self, weights: Array) -> Array:
        """Weighted sums of the rows, [B, L, D] of [B, L, N] weights, 0 where rows are not used."""
        b, n_logits, n = weights.shape
        # Upright once for all segments, as XLA's sums of few columns want them.
        upright = lax.optimization_barrier(weights.reshape(-1, n).T).reshape(n, self.n_groups, -1)
        out = jnp.zeros((*upright.shape[1:], self.rows[0].shape[1]), weights.dtype)
        start = 0
        for x, runs in zip(self.rows, map(_find_runs, self.groups), strict=True):
            own = upright[start : start + len(x)]
            some = lax.optimization_barrier(jnp.concatenate([own[:, run] for run in runs], axis=1))
            found = product("ngc,nd->gcd", some, x)
            for run in runs:
                part, found = found[: run.stop - run.start], found[run.stop - run.start :]
                out = out.at[run].add(part)
            start += len(x)
        return out.reshape(b, n_logits, -1)


def _find_runs(groups: tuple[int, ...]) -> list[slice]:
    """Ascending numbers as slices of consecutive ones."""
    breaks = np.flatnonzero(np.diff(groups) > 1) + 1
    return [slice(int(run[0]), int(run[-1]) + 1) for run in np.split(np.array(groups), breaks)]


class Order(NamedTuple):
    """Where the rows of segments come from.

    Attributes:
        row_idx: int[N] rows, those of a segment one after the other; without rows of weight 0.
        starts: int[S] first of each segment.
        groups: as in ``Segments``.
    """

    row_idx: Int[np.ndarray, " N"]
    starts: Int[np.ndarray, " S"]
    groups: tuple[tuple[int, ...], ...]


def order_rows(is_used: Bool[np.ndarray, "G N"]) -> Order:
    """Rows by the groups that use them.

    Segments are in the order of their groups, whichever rows they have: draws of equal sizes share
    a program.

    Args:
        is_used: bool[G, N] whether a group uses a row.
    """
    _, kind = np.unique(np.packbits(is_used, axis=0), axis=1, return_inverse=True)
    row_idx = np.argsort(kind.reshape(-1), kind="stable")
    row_idx = row_idx[is_used[:, row_idx].any(axis=0)]
    starts = np.flatnonzero(np.diff(kind.reshape(-1)[row_idx], prepend=-1))
    groups = tuple(tuple(np.flatnonzero(is_used[:, row]).tolist()) for row in row_idx[starts])
    return Order(row_idx, starts, groups)


def pays(order: Order, shape: tuple[int, ...], *, n_groups: int, n_columns: int) -> bool:
    """Whether products by segments save enough of the rows [N, D] times all columns.

    Args:
        order: rows in segments.
        shape: (N, D).
        n_groups: G.
        n_columns: columns of all groups, problems times logits.
    """
    sizes = np.diff(order.starts, append=len(order.row_idx))
    own = np.dot(sizes, [len(groups) for groups in order.groups])
    share = 1 - own / (shape[0] * n_groups)
    operations = 4 * shape[0] * shape[1] * n_columns  # of an iteration
    return bool(
        len(sizes) <= MOST_SEGMENTS and share >= LEAST_SHARE and share * operations >= LEAST_SAVED
    )


def cut_bytes(rows: Array) -> int:
    """Most bytes that ``cut_rows`` takes: parts of rows that are not aligned are copies, too."""
    return rows.nbytes * (1 if rows.shape[1] * rows.itemsize % ALIGNMENT == 0 else 2)


def cut_rows(rows: Array, order: Order) -> tuple[Array, Segments]:
    """Rows [N, D] in the order of segments, and the segments.

    Neither is a copy if the rows are in this order already and XLA can use parts of them.
    """
    x = np.asarray(rows)
    if not np.array_equal(order.row_idx, np.arange(len(x))):
        x = empty_aligned((len(order.row_idx), x.shape[1]), x.dtype)
        # Rows are there; to look for others, NumPy would copy them twice.
        np.take(np.asarray(rows), order.row_idx, axis=0, out=x, mode="clip")
    parts = [to_device(part, dtype=x.dtype) for part in np.split(x, order.starts[1:])]
    return to_device(x, dtype=x.dtype), Segments(tuple(parts), order.groups)
