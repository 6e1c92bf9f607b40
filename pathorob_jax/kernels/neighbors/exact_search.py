"""Exact neighbours of some rows among all rows, in float64.

For query rows, all distances to all rows are computed as products of float64 blocks. Every row that
may be among the k nearest, given a proven bound of the rounding errors, is a candidate, and
``exact_order`` sorts the candidates that lie within that bound of each other.

The products are those of unit rows less a common row c: d = |u' - v'|^2 / 2 with u' = u - c. Where
all rows point nearly one way, u' is short, and the rounding errors shrink with the distances.
"""

import numpy as np

from pathorob_jax.core.typing import Bool, Float, Int
from pathorob_jax.kernels.neighbors.exact_order import in_runs, number_runs, order_runs
from pathorob_jax.kernels.neighbors.exact_rows import BLOCK_ROWS, UNIT64, Rows, distance_error
from pathorob_jax.kernels.neighbors.tiles import PADDING_GROUP, Neighbors

# Per query and row: distances, distances of a type, the copy that is partitioned, masks, and the
# candidates if all rows are candidates.
BYTES_PER_PAIR = 64
CENTER_ROWS = 256


def search(
    rows: Rows,
    labels: Int[np.ndarray, "L N"],
    queries: Int[np.ndarray, " Q"],
    ks: tuple[int, ...],
    *,
    budget_bytes: int,
) -> list[Neighbors]:
    """Find one list of neighbours per query for each of ``ks``, in the order (distance, row).

    Memory: ``budget_bytes`` for the distances of a block of queries to all rows, and as much again
    if all rows fit into it in float64; otherwise each block of queries converts all rows anew.

    Args:
        rows: all rows.
        labels: int[1 or 3, N] groups, and the two labels that define the types.
        queries: int[Q] rows whose neighbours are wanted.
        ks: lengths of the lists: (k,), or (k, m, m) with types.
        budget_bytes: memory.

    Returns:
        For each list ``Neighbors`` [Q, k] with float64 distances.
    """
    n = rows.n
    out = [Neighbors(np.full((len(queries), k), -1, np.int32), _absent(queries, k)) for k in ks]
    size = max(1, min(len(queries), budget_bytes // (BYTES_PER_PAIR * n)))
    blocks = _Blocks(rows, keep=len(queries) > size and 8 * n * rows.dim <= budget_bytes)
    copies = _Copies(rows)
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        idx = queries[part]
        distances, error = blocks.measure(idx)
        eligible = (labels[0] != labels[0, idx, None]) & (labels[0] != PADDING_GROUP)
        for i, (neighbors, k) in enumerate(zip(out, ks, strict=True)):
            mask = eligible
            if i:
                same, other = (labels[1], labels[2]) if i == 1 else (labels[2], labels[1])
                mask = eligible & (same == same[idx, None]) & (other != other[idx, None])
            values = np.where(mask, distances, np.inf)
            depth = min(k, n)
            reach = np.partition(values, depth - 1, axis=1)[:, depth - 1] + 2 * error
            hits = mask & (values <= reach[:, None])
            copies.keep_first(hits, depth)
            _put_nearest(rows, idx, hits, values, error, k, *(a[part] for a in neighbors))
    return out


def _absent(queries: np.ndarray, k: int) -> Float[np.ndarray, "Q k"]:
    return np.full((len(queries), k), np.inf)


class _Blocks:
    """Unit rows less a common row, in blocks."""

    def __init__(self, rows: Rows, *, keep: bool) -> None:
        self.rows = rows
        some = np.unique(np.linspace(0, rows.n - 1, CENTER_ROWS).astype(np.int64))
        # Any row serves; the mean of some is near all of them where they lie near each other.
        self.center = rows.units(some).mean(axis=0)
        self.norm2 = np.empty(rows.n)
        self.kept: dict[int, np.ndarray] | None = {} if keep else None

    def block(self, start: int) -> Float[np.ndarray, "B D"]:
        if self.kept is not None and start in self.kept:
            return self.kept[start]
        block = self.rows.unit_block(start)
        block -= self.center
        if self.kept is not None:
            self.kept[start] = block
        return block

    def measure(
        self, idx: Int[np.ndarray, " Q"]
    ) -> tuple[Float[np.ndarray, "Q N"], Float[np.ndarray, " Q"]]:
        """Distances of rows to all rows, and a proven bound of their error for each row."""
        own = self.rows.units(idx) - self.center
        own_norm2 = np.einsum("qd,qd->q", own, own)
        out = np.empty((len(idx), self.rows.n))
        for start in range(0, self.rows.n, BLOCK_ROWS):
            block = self.block(start)
            part = slice(start, start + len(block))
            self.norm2[part] = np.einsum("nd,nd->n", block, block)
            np.matmul(own, block.T, out=out[:, part])
            np.subtract(self.norm2[part] / 2, out[:, part], out=out[:, part])
        out += own_norm2[:, None] / 2
        largest = own_norm2 + self.norm2.max()
        gamma = (self.rows.dim + 16) * UNIT64
        # The products and norms err by gamma times norms; the rows themselves as in pairs.
        return out, 2 * gamma * largest + distance_error(largest, self.rows.dim)


class _Copies:
    """Rows of equal direction, of which a list takes the first ones only."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.many: list[np.ndarray] | None = None

    def keep_first(self, hits: Bool[np.ndarray, "Q N"], k: int) -> None:
        """Leave at most k candidates of each direction, which would only fill memory."""
        if np.count_nonzero(hits) <= 4 * k * len(hits):
            return
        if self.many is None:
            first = self.rows.first_equal
            order = np.argsort(first, kind="stable")
            cuts = np.flatnonzero(np.diff(first[order])) + 1
            self.many = [part for part in np.split(order, cuts) if len(part) > 1]
        for part in self.many:
            if len(part) > k:
                found = hits[:, part]
                hits[:, part] = found & (np.cumsum(found, axis=1, dtype=np.int32) <= k)


def _put_nearest(
    rows: Rows,
    idx: Int[np.ndarray, " Q"],
    hits: Bool[np.ndarray, "Q N"],
    values: Float[np.ndarray, "Q N"],
    error: Float[np.ndarray, " Q"],
    k: int,
    indices: Int[np.ndarray, "Q k"],
    distances: Float[np.ndarray, "Q k"],
) -> None:
    """Sort the candidates of each query and write the k nearest."""
    row, candidate = np.nonzero(hits)
    if not len(row):
        return
    value = values[row, candidate]
    at = np.lexsort((candidate, value, row))
    candidate, value = candidate[at], value[at]  # the order of the queries stays
    near = (row[1:] == row[:-1]) & (np.diff(value) <= 2 * error[row[1:]])
    begins = np.searchsorted(row, np.arange(len(idx)))
    rank = np.arange(len(row)) - begins[row]
    run = number_runs(near)
    _, first = np.unique(run, return_index=True)
    wanted = in_runs(near) & (rank[first] < k)[run]
    if wanted.any():
        part = np.flatnonzero(wanted)
        candidate[part], value[part] = order_runs(rows, idx[row[part]], candidate[part], run[part])
    best = rank < k
    # Products leave few digits of what is far nearer than other rows.
    coarse = np.flatnonzero(best & (value < error[row] * 2.0**30))
    value[coarse] = rows.distances(idx[row[coarse]], candidate[coarse])
    indices[row[best], rank[best]] = candidate[best]
    distances[row[best], rank[best]] = np.maximum(value[best], 0)
