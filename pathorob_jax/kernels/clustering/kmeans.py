"""K-means with many runs at once: Lloyd's algorithm with scikit-learn's initial centres.

The input is rows [N, D] and, per fit, a number of clusters and a seed. The result is the labels,
the inertia and the number of iterations of the best of ``n_init`` runs of each fit.

A centre is a mean of rows, so a step needs only inner products of rows. With G = X X^T, the
products of all rows with a centre are the mean of the rows of G that belong to its cluster, and the
squared norm of the centre is the mean of these products over the cluster. Rows therefore have at
most N coordinates, and assignment and update are one matrix product, indicators [clusters, N] times
G [N, N], instead of two over D. (If N is far larger than D, G would be larger than X; then the
products are with X and X^T.) All runs of a batch share this product. Unnecessary work is skipped,
which changes nothing in exact arithmetic:

- A cluster that neither gained nor lost a row keeps its products. On CPU, one that gained or lost
  few rows has only their products added or taken away, until ``MOST_SHIFTS`` such steps.
- If a run reaches a partition that another run has visited, both continue identically from there,
  and only one is followed. (A run stopped by ``max_iter`` may thus be credited with the last steps
  of another run.)
- A finished run leaves the batch and the next run takes its slot, so one compiled shape serves all
  runs of up to that many clusters.

All work of one call runs on one device, so the result does not depend on the number of devices.
On CPU this module makes the decisions on the host. On an accelerator the device makes them, in
``kmeans_rounds``, and runs are not merged. ``kmeans_points`` prepares the rows, ``kmeans_draws``
draws initial centres, and ``kmeans_steps`` and ``kmeans_moves`` hold the programs for the device.
"""

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import ArrayLike, Float, Int
from pathorob_jax.kernels.clustering import kmeans_moves, kmeans_rounds
from pathorob_jax.kernels.clustering import kmeans_steps as steps
from pathorob_jax.kernels.clustering.kmeans_draws import Init, draw_inits
from pathorob_jax.kernels.clustering.kmeans_points import DEFAULT_BUDGET_BYTES, Points

MAX_ITER, TOL = 300, 1e-4  # scikit-learn's
# Old and new scores, indicators and their products, temporary arrays of reductions over them.
BYTES_PER_SCORE = 32
# Clusters of a batch, summed over its runs. Measured on CPU; accelerators benefit from large
# products.
CPU_COLUMNS, LARGE_COLUMNS = 512, 16384
# On CPU, reading the products of this share of all rows costs as much as one more centre in a
# product with all rows, and of this many times all rows as much as a product for one centre alone.
ROWS_PER_COLUMN, ROWS_PER_CALL = 0.08, 4
# Each move by rows rounds a centre's products once more.
MOST_SHIFTS = 100
# Number of runs read out in one call.
SLOTS_PER_CALL = 4


class KMeansFits(NamedTuple):
    """Results of runs, or of the best run of each fit.

    Attributes:
        labels: int32[F, N] cluster of each row, in [0, n_clusters).
        inertia: float64[F] sum over rows of the squared distance to the centre of their cluster
            (spherical: of 1 - cosine).
        n_iter: int32[F] iterations, as scikit-learn counts them.
    """

    labels: Int[np.ndarray, "F N"]
    inertia: Float[np.ndarray, " F"]
    n_iter: Int[np.ndarray, " F"]


def fit_kmeans(
    points: Points,
    n_clusters: Sequence[int],
    seeds: Sequence[int],
    *,
    n_init: int,
    init: Init = "random",
    tol: float = TOL,
    max_iter: int = MAX_ITER,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    on_progress: Callable[[int], None] | None = None,
) -> KMeansFits:
    """Several fits of the same rows, each the best of ``n_init`` runs.

    Args:
        points: result of ``prepare_points``.
        n_clusters: number of clusters of each fit, from 1 to N.
        seeds: seed of each fit's ``RandomState``.
        n_init: number of runs of each fit.
        init: initial centres: random rows, or k-means++; both are drawn as scikit-learn draws them.
        tol: a run ends when the squared movements of its centres sum to at most
            tol * mean variance.
        max_iter: maximum number of iterations of a run.
        budget_bytes: memory for a batch of runs, in addition to the points.
        on_progress: called with the number of runs finished since the last call.

    Returns:
        ``KMeansFits`` in the order of the fits.

    Raises:
        InputError: a number of clusters is out of range, or the budget does not hold one run.

    Reference: scikit-learn's ``KMeans(init, n_init, random_state).fit(x)``, ``lloyd``. Differs:
    rounding; refilled empty clusters are numbered by distance, whereas scikit-learn's order depends
    on its partition routine; if the initial centres are already the means, scikit-learn counts one
    iteration less.
    """
    draws = [
        draw
        for k, seed in zip(n_clusters, seeds, strict=True)
        for draw in draw_inits(points, k, seed=seed, n_init=n_init, init=init)
    ]
    runs = run_lloyd(
        points,
        draws,
        tol=tol,
        max_iter=max_iter,
        budget_bytes=budget_bytes,
        on_progress=on_progress,
    )
    best = runs.inertia.reshape(-1, n_init).argmin(axis=1) + n_init * np.arange(len(seeds))
    return KMeansFits(*(a[best] for a in runs))


def run_lloyd(
    points: Points,
    init_indices: Sequence[Int[ArrayLike, " K"]],
    *,
    tol: float = TOL,
    max_iter: int = MAX_ITER,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    on_progress: Callable[[int], None] | None = None,
) -> KMeansFits:
    """One run of Lloyd's algorithm from each set of initial centres.

    Args:
        points: result of ``prepare_points``.
        init_indices: for each run, the rows that are its initial centres, one per cluster.
        tol: see ``fit_kmeans``; not used if spherical, where a run ends when no label changes.
        max_iter: see ``fit_kmeans``.
        budget_bytes: see ``fit_kmeans``.
        on_progress: see ``fit_kmeans``.

    Returns:
        ``KMeansFits`` in the order of the runs.

    Raises:
        InputError: a row is out of range, or the budget does not hold one run.
        TypeError: rows are not integers.
    """
    n = len(points.x)
    inits = [np.asarray(i) for i in init_indices]
    for i, rows in enumerate(inits):
        checks.check_integer(rows, name=f"init_indices[{i}]")
        if not rows.size or rows.min() < 0 or rows.max() >= n:
            raise InputError(f"init_indices[{i}]: expected rows from 0 to {n - 1}, found {rows}.")
    out = KMeansFits(
        np.zeros((len(inits), n), np.int32), np.zeros(len(inits)), np.zeros(len(inits), np.int32)
    )
    limit = -1.0 if points.spherical else tol * points.variance
    padded = np.array([steps.pad_clusters(len(rows)) for rows in inits])
    in_rounds = kmeans_rounds.advances_on_device(points)
    with jax.default_device(points.device):
        n_columns = count_columns(int(padded.max()), points, budget_bytes=budget_bytes)
        if in_rounds:
            padded[:] = kmeans_rounds.common_width(int(padded.max()), n_columns)
        for width in np.unique(padded).tolist():
            waiting = deque(np.flatnonzero(padded == width).tolist())
            if not in_rounds:
                batch = _Batch(points, inits, out, width, n_columns, on_progress)
                batch.follow(waiting, limit=limit, max_iter=max_iter)
                continue
            for ended in kmeans_rounds.follow_runs(
                points,
                inits,
                waiting,
                width=width,
                n_columns=n_columns,
                limit=limit,
                max_iter=max_iter,
                on_progress=on_progress,
            ):
                out.labels[ended.run] = ended.labels
                out.inertia[ended.run] = ended.inertia
                out.n_iter[ended.run] = ended.n_iter
    return out


def count_columns(width: int, points: Points, *, budget_bytes: int) -> int:
    """Number of clusters of a batch: a power of two, enough for at least one run of ``width``.

    Raises:
        InputError: the budget does not hold one run.
    """
    fitting = budget_bytes // (len(points.x) * BYTES_PER_SCORE)
    if fitting < width:
        raise InputError(
            f"budget_bytes: a run of {width} clusters on {len(points.x)} rows needs "
            f"{width * len(points.x) * BYTES_PER_SCORE} bytes, found {budget_bytes}; raise it."
        )
    wanted = CPU_COLUMNS if points.device.platform == "cpu" else LARGE_COLUMNS
    return max(width, 2 ** int(np.log2(min(wanted, fitting))))


def scramble(mark: np.ndarray) -> np.ndarray:
    """Turn sums of coefficients uint32[..., 2] into hashes uint64[...] (SplitMix64's finaliser).

    The hash of a partition is the sum of its clusters' hashes, whatever their numbers.
    """
    word = mark[..., 0].astype(np.uint64) << np.uint64(32) | mark[..., 1]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ word >> np.uint64(shift)) * np.uint64(factor)
    return np.asarray(word ^ word >> np.uint64(31))


class _Batch:
    """Slots in which runs of up to ``width`` clusters are computed side by side."""

    def __init__(
        self,
        points: Points,
        inits: Sequence[np.ndarray],
        out: KMeansFits,
        width: int,
        n_columns: int,
        on_progress: Callable[[int], None] | None,
    ):
        self._points, self._inits, self._out, self._width = points, inits, out, width
        self._on_progress = on_progress
        self._runs = np.full(n_columns // width, -1)  # run in each slot; -1: none
        self._n_iter = np.zeros(len(inits), np.int64)
        # The run that first reached a partition (clusters, marks), and its iteration at that point.
        self._seen: dict[tuple[int, int], tuple[int, int]] = {}
        # Runs merged into another run: that run, and how many iterations they are behind it.
        self._merged: dict[int, tuple[int, int]] = {}
        n = len(points.x)
        # All arrays are bound to one device: for others a program would be compiled again.
        put = functools.partial(jax.device_put, device=points.device)
        self._centers = steps.make_centers(n_columns, n, points.device)
        # As many slots as for the narrowest runs, so that shapes do not depend on the width.
        blank = np.full((n_columns // steps.LEAST_CLUSTERS, n), -1, np.int32)
        # Cluster to which a row is counted, and nearest centre. They differ only for rows that
        # refill empty clusters.
        self._member, self._labels = put(blank), put(blank)
        self._fresh = np.zeros(len(self._runs), bool)
        # Steps since a centre was last computed from all of its rows.
        self._age = np.full(n_columns, MOST_SHIFTS)
        self._exists = np.zeros((len(self._runs), width), bool)
        coefficients = np.random.default_rng(0).integers(2**32, size=(2, n), dtype=np.uint32)
        self._coefficients = put(coefficients)

    def follow(self, waiting: deque[int], *, limit: float, max_iter: int) -> None:
        """Run the waiting runs to their ends and write their results to ``out``."""
        while True:
            self._start(waiting)
            active = self._runs >= 0
            if not active.any():
                break
            same, whole = self._assign(active)
            shift, marks = self._move(active)
            self._n_iter[self._runs[active]] += 1
            over = self._n_iter[self._runs] >= max_iter
            ended = active & (same | (shift <= limit) | over)
            self._finish(np.flatnonzero(ended), same)
            for slot in np.flatnonzero(active & ~ended & whole):
                self._merge(int(slot), marks[slot])
            if self._on_progress is not None:
                self._on_progress(int(active.sum() - (self._runs >= 0).sum()))
        for run in self._merged:
            end, behind = self._end_of(run)
            self._out.labels[run] = self._out.labels[end]
            self._out.inertia[run] = self._out.inertia[end]
            self._out.n_iter[run] = self._out.n_iter[end] + behind

    def _start(self, waiting: deque[int]) -> None:
        """Put waiting runs into free slots."""
        free = np.flatnonzero(self._runs < 0)
        slots = free[: len(waiting)]
        if not slots.size or len(free) < kmeans_rounds.FREE_SHARE * len(self._runs):
            return
        first = np.full((len(slots), self._width), -1, np.int32)
        for i, slot in enumerate(slots):
            run = self._runs[slot] = waiting.popleft()
            first[i, : len(self._inits[run])] = self._inits[run]
        self._fresh[slots] = True
        self._exists[slots] = first >= 0
        columns = (slots[:, None] * self._width + np.arange(self._width)).reshape(-1)
        n_columns = len(self._centers.norm2)
        padded = steps.pad_columns(columns, n_columns)
        init = np.full(n_columns, -1, np.int32)
        init[: len(columns)] = first.reshape(-1)
        is_new = np.zeros(len(self._labels), bool)
        is_new[slots] = True
        points = self._points
        self._centers = steps.start_runs(
            self._centers,
            points.rows,
            points.norm2,
            padded,
            init[: len(padded)],
            is_gram=points.is_gram,
        )
        self._member = steps.clear_labels(self._member, is_new)
        self._labels = steps.clear_labels(self._labels, is_new)

    def _assign(self, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Assign rows to their nearest centres.

        Returns, per slot, whether no label changed and whether no cluster is empty.
        """
        kind = {"width": self._width, "spherical": self._points.spherical}
        scores, norm2 = self._centers.scores, self._centers.norm2
        labels = steps.assign_rows(scores, norm2, self._labels, **kind)
        same, has_rows = steps.compare_labels(labels, self._labels, width=self._width)
        empty = self._exists & ~np.asarray(has_rows)
        member = labels
        if empty[active].any():
            member = steps.fill_empty(
                scores, norm2, self._points.norm2, labels, empty & active[:, None], **kind
            )
        self._before, self._member, self._labels = self._member, member, labels
        return np.asarray(same), ~empty.any(1)

    def _move(self, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move centres to the means of their rows; return the shifts and the partitions' marks."""
        if self._points.is_gram and self._points.device.platform == "cpu":
            changed = self._move_by_rows(active)
        else:
            found = steps.find_changed(self._member, self._before, width=self._width)
            changed = np.asarray(found) & active[:, None]
            for at in steps.split_columns(np.flatnonzero(changed), changed.size, few=False):
                self._move_columns(at)
        shape = changed.shape
        size = np.asarray(self._centers.size).reshape(shape)
        left_out = self._exists & (size == 0) & active[:, None]
        if left_out.any():
            # As in scikit-learn, centres without rows take the centre of the largest cluster.
            source = np.arange(changed.size, dtype=np.int32).reshape(shape)
            largest = np.take_along_axis(source, size.argmax(1)[:, None], axis=1)
            from_largest = np.where(left_out, largest, source).reshape(-1)
            self._centers = steps.copy_centers(self._centers, from_largest)
        shift = np.where(changed, np.asarray(self._centers.shift).reshape(shape), 0).sum(1)
        shift = np.where(self._fresh | left_out.any(1), np.inf, shift)
        self._fresh[:] = False
        marks = scramble(np.asarray(self._centers.mark)).reshape(shape)
        return shift, np.where(self._exists, marks, 0).sum(1, dtype=np.uint64)

    def _move_columns(self, at: np.ndarray, *, few: bool = False) -> None:
        """Compute the centres of columns from all of their rows; few rows: one at a time."""
        slot, cluster = (a.astype(np.int32) for a in np.divmod(at, self._width))
        points, sums = self._points, None
        if few:
            member = np.asarray(self._member)[: len(self._runs)]
            sums = kmeans_moves.add_members(points.products, member, slot, cluster)
        self._centers = steps.move_centers(
            self._centers,
            points.rows,
            self._before,
            self._member,
            self._coefficients,
            at,
            slot,
            cluster,
            sums,
            is_gram=points.is_gram,
        )

    def _move_by_rows(self, active: np.ndarray) -> np.ndarray:
        """Move centres, by few rows where possible; return which have changed, bool[slots, K]."""
        before, member = (np.asarray(a)[: len(self._runs)] for a in (self._before, self._member))
        n = before.shape[1]
        column, row, sign = kmeans_moves.find_moves(before, member, width=self._width)
        n_moves = np.bincount(column, minlength=self._exists.size)
        changed = (n_moves > 0) & np.repeat(active, self._width)
        before_size = np.asarray(self._centers.size)
        size = before_size + np.bincount(column, sign, minlength=len(n_moves))
        can = changed & (before_size > 0) & (self._age < MOST_SHIFTS)
        can &= n_moves <= kmeans_moves.SHIFTED_ROWS
        few = n * ROWS_PER_COLUMN
        is_shifted = can & (n_moves <= np.minimum(few, size)) & (self._age < MOST_SHIFTS // 2)
        is_small = changed & ~is_shifted & (size <= few)
        rest = changed & ~is_shifted & ~is_small
        if can[rest].all() and n_moves[rest].sum() <= n * ROWS_PER_CALL:
            is_shifted |= rest
            rest[:] = False
        for moves in kmeans_moves.list_moves(column, row, sign, is_shifted):
            changes = kmeans_moves.add_moves(self._points.products, moves)
            self._centers = kmeans_moves.shift_centers(
                self._centers, changes, self._coefficients, moves
            )
        for few_rows, columns in ((True, is_small), (False, rest)):
            for at in steps.split_columns(np.flatnonzero(columns), len(n_moves), few=True):
                self._move_columns(at, few=few_rows)
        self._age += is_shifted
        self._age[changed & ~is_shifted] = 0
        return changed.reshape(self._exists.shape)

    def _finish(self, ended: np.ndarray, same: np.ndarray) -> None:
        """Read out the runs that have ended, and free their slots."""
        for start in range(0, len(ended), SLOTS_PER_CALL):
            slots = ended[start : start + SLOTS_PER_CALL]
            padded = np.pad(slots, (0, SLOTS_PER_CALL - len(slots)), mode="edge")
            labels, distance = steps.read_out(
                self._centers.scores,
                self._centers.norm2,
                self._points.norm2,
                self._labels,
                padded.astype(np.int32),
                same[padded],
                width=self._width,
                spherical=self._points.spherical,
            )
            runs = self._runs[slots]
            self._out.labels[runs] = np.asarray(labels)[: len(slots)]
            # Summed on the host in float64: the sixth digit may decide which run is the best.
            self._out.inertia[runs] = np.asarray(distance)[: len(slots)].sum(1, dtype=np.float64)
            self._out.n_iter[runs] = self._n_iter[runs]
            self._runs[slots] = -1

    def _merge(self, slot: int, mark: np.uint64) -> None:
        """Merge a run into another run that has already visited its current partition."""
        run = int(self._runs[slot])
        key = (len(self._inits[run]), int(mark))
        other, iteration = self._seen.setdefault(key, (run, int(self._n_iter[run])))
        if self._end_of(other)[0] != run:
            self._merged[run] = other, int(self._n_iter[run]) - iteration
            self._runs[slot] = -1

    def _end_of(self, run: int) -> tuple[int, int]:
        """The run computed in place of ``run``, and how many iterations ``run`` is behind it."""
        behind = 0
        while run in self._merged:
            run, more = self._merged[run]
            behind += more
        return run, behind
