"""The lists of a neighbour search on the host: keys, and bounds of what can still enter.

A neighbour is stored as one integer, ``distance bits << 32 | row``. Non-negative floats sort like
their bits, so the integers sort by (distance, row), in whatever order tiles are processed. Several
threads can therefore process different pairs of tiles at the same time.

**Early bounds.** Where tiles are random samples of all rows, the k-th best of a sample is far too
wide a bound. If a share s of all rows has been met, about s k of the k nearest are among them, and
hardly ever more than ``safe_ranks`` of them. The neighbour at that rank of those met is hence a
bound that the k nearest of all lie within. ``Lists.finish`` tells the rows of which this was not
so: their lists hold fewer than k neighbours up to the bound, and they are searched again.
"""

import math
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pathorob_jax.core import scratch
from pathorob_jax.core.typing import ArrayLike, Float, Int
from pathorob_jax.kernels.neighbors.host_rows import HostTile
from pathorob_jax.kernels.neighbors.tiles import Neighbors

SORTED_ROWS = 512
# Rows of a tile that give a first bound where tiles are random samples.
SAMPLED_ROWS = 256
ROW_BITS = 32
LAST_ROW = np.int64(2**31 - 1)
ABSENT = (np.int64(np.float32(np.inf).view(np.int32)) << ROW_BITS) | LAST_ROW
"""Sorts after every neighbour: its distance is infinite."""


class Bound(NamedTuple):
    """Where in a tile the first bound of a list is found: at ``rank`` of ``n_rows`` of its rows."""

    rank: int
    n_rows: int


class Lists:
    """The nearest neighbours found so far, one list of k per row, in the order of the search.

    Args:
        n: rows.
        k: neighbours, at most n.
        tile: rows of a tile.
        room: neighbours that a list holds until it is cut.
        risk: chance that a bound is too early, for a row, where tiles are random samples of all
            rows. None: they are not, and the k-th neighbour so far is the bound.
        empty: makes an array.

    Attributes:
        bound: first bound.
        keys: int64[N, room] neighbours as integers, unsorted, then ``ABSENT``.
        n_held: int32[N] number of neighbours held.
        last: int64[N] bound: every neighbour up to this key that was offered is held.
        locks: one per tile of rows.
    """

    def __init__(
        self,
        n: int,
        k: int,
        tile: int,
        *,
        room: int,
        risk: float | None = None,
        empty: Callable[..., np.ndarray] = np.empty,
    ) -> None:
        n_tiles = -(-n // tile)
        self.k, self.empty = k, empty
        self.keys = empty((n, room), np.int64)
        for part in scratch.parts(self.keys, n_rows=SORTED_ROWS):
            self.keys[part] = ABSENT
        self.n_held = np.zeros(n, np.int32)
        self.last = np.full(n, ABSENT)
        self.locks = [threading.Lock() for _ in range(n_tiles)]
        self._n_met = np.zeros(n_tiles, np.int64)
        if risk is None:
            self.bound, self._ranks = Bound(k, tile), np.full(n_tiles + 1, k)
        else:
            n_rows = np.append(np.arange(n_tiles + 1) * tile, min(SAMPLED_ROWS, tile))
            *ranks, rank = safe_ranks(k, np.minimum(n_rows / n, 1), risk)
            self.bound, self._ranks = Bound(int(rank), int(n_rows[-1])), np.array(ranks)

    def begin(self, tile: HostTile) -> None:
        """Count one more tile that the rows of this one meet."""
        with self.locks[tile.number]:
            self._n_met[tile.number] += 1

    def floor(self, tile: HostTile) -> Float[np.ndarray, " tile"]:
        """Smallest closeness that still enters each row's list."""
        last = self.last[tile.start : tile.stop]
        return -(last >> ROW_BITS).astype(np.int32).view(np.float32)

    def raise_floor(self, tile: HostTile, floor: Float[np.ndarray, " tile"]) -> None:
        """Lower ``last`` to a closeness that bounds the list."""
        with self.locks[tile.number]:
            last = self.last[tile.own_start : tile.stop]
            floor = floor[tile.own_start - tile.start :]
            np.minimum(last, to_keys(floor, LAST_ROW), out=last)

    def offer(
        self, tile: HostTile, query: Int[np.ndarray, " P"], keys: Int[np.ndarray, " P"]
    ) -> None:
        """Add neighbours to the lists of a tile.

        Args:
            tile: tile of the queries.
            query: row within the tile, ascending; never a row that an earlier tile holds.
            keys: neighbours as integers.
        """
        own_rows = slice(tile.own_start, tile.stop)
        query = query - (tile.own_start - tile.start)
        room = self.keys.shape[1]
        with self.locks[tile.number]:
            rank = int(self._ranks[self._n_met[tile.number]])
            held, n_held, last = (a[own_rows] for a in (self.keys, self.n_held, self.last))
            while len(keys):
                enters = np.flatnonzero(keys <= last[query])
                query, keys = query[enters], keys[enters]
                n_new = np.bincount(query, minlength=len(held))
                before = np.cumsum(n_new) - n_new
                position = np.arange(len(query)) + (n_held - before)[query]
                full = np.flatnonzero(n_held + n_new > room)
                if full.size:
                    fits = position < room
                    held[query[fits], position[fits]] = keys[fits]
                    query, keys = query[~fits], keys[~fits]
                else:
                    held[query, position] = keys
                    keys = keys[:0]
                n_held += n_new
                if full.size:
                    best = np.partition(held[full], rank - 1, axis=1)
                    best[:, rank:] = ABSENT
                    held[full], n_held[full] = best, rank
                    last[full] = np.minimum(last[full], best[:, rank - 1])

    def finish(
        self, k: int, order: Int[np.ndarray, " N"] | None = None
    ) -> tuple[Neighbors, Int[np.ndarray, " M"]]:
        """``Neighbors`` of k columns, nearest first, and the rows whose lists are not complete.

        Args:
            k: columns.
            order: int[N] row of each list; None: list i is of row i.
        """
        n = len(self.keys)
        out = Neighbors(self.empty((n, k), np.int32), self.empty((n, k), np.float32))
        incomplete = []
        for part in scratch.parts(self.keys, *out, n_rows=SORTED_ROWS):
            best = np.sort(np.partition(self.keys[part], self.k - 1, axis=1)[:, : self.k], axis=1)
            rows = np.arange(n)[part] if order is None else order[part]
            put(out, part if order is None else rows, best)
            incomplete.append(rows[best[:, -1] > self.last[part]])
        return out, np.concatenate(incomplete)


def put(out: Neighbors, rows: slice | Int[np.ndarray, " R"], keys: Int[np.ndarray, "R K"]) -> None:
    """Write ascending keys into rows of ``Neighbors`` of as many columns, or more."""
    k = keys.shape[1]
    out.indices[rows, k:], out.distances[rows, k:] = -1, np.inf
    out.indices[rows, :k] = np.where(keys == ABSENT, -1, keys & LAST_ROW)
    out.distances[rows, :k] = (keys >> ROW_BITS).astype(np.int32).view(np.float32)


def to_keys(closeness: Float[np.ndarray, " P"], rows: ArrayLike) -> Int[np.ndarray, " P"]:
    """Neighbours as integers that sort by (distance, row)."""
    bits = (0.0 - closeness).view(np.int32).astype(np.int64)  # the distance is never -0.0
    return (bits << ROW_BITS) | np.asarray(rows)


def safe_ranks(k: int, shares: Float[np.ndarray, " S"], risk: float) -> Int[np.ndarray, " S"]:
    """Ranks in random shares of all rows whose neighbours bound the k nearest of all.

    The bound of rank r fails if r of the k - 1 nearest are in the share. Their number in a share s
    is hypergeometric, whose tail is no heavier than that of a binomial number of k and s.

    Args:
        k: neighbours wanted, at least 1.
        shares: float[S] in [0, 1].
        risk: chance that a bound fails, for a row.

    Returns:
        int[S], from 1 to k.
    """
    drawn = np.arange(k + 1)
    log_factorial = np.array([math.lgamma(j + 1) for j in drawn])
    log_ways = log_factorial[-1] - log_factorial - log_factorial[::-1]

    def rank(share: float) -> int:
        s = min(max(share, 1e-12), 1 - 1e-12)
        chance = np.exp(log_ways + drawn * math.log(s) + (k - drawn) * math.log1p(-s))
        at_least = np.cumsum(chance[::-1])[::-1]
        return int(np.clip(np.count_nonzero(at_least > risk), 1, k))

    return np.array([rank(float(share)) for share in shares])
