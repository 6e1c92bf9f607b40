"""Runs of Lloyd's algorithm on an accelerator, many steps per call.

An accelerator computes a step in less time than the host needs to start it and to read what it
decides. Here the device decides: a round is one program, a loop whose body is a whole step of all
slots. Between rounds the host fetches which runs have ended, reads their results out, and starts
waiting runs.

Runs that reach equal partitions are not merged, as on CPU. That only saves work, of which an
accelerator has enough, and the marks would cost two sums over rows in each step.

In shapes, N is the number of rows, P the number of columns of a batch and K its width: a batch has
P / K slots.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.typing import Array, Float, Int
from pathorob_jax.kernels.clustering import kmeans_steps as steps
from pathorob_jax.kernels.clustering.kmeans_points import Points
from pathorob_jax.kernels.clustering.kmeans_steps import Centers

# A round ends after this many steps, so that the progress is seen.
MOST_STEPS = 64
# Columns of one product: a power of two. Fewer would not be faster, as they do not fill a GPU.
MOVED_COLUMNS = 1024
# Columns of a run: enough for the protocol's 30 clusters.
LEAST_WIDTH = 32
# New runs wait until this share of the slots is free, so that rounds are long (on CPU, so that they
# share products with all rows).
FREE_SHARE = 0.25


class Slots(NamedTuple):
    """Runs of a batch, one per slot. What belongs to a run stays as it was at its end.

    Attributes:
        centers: their clusters.
        member: int32[slots, N] cluster to which a row is counted; -1 before the first step.
        labels: int32[slots, N] nearest centre. It differs from ``member`` only for rows that refill
            empty clusters.
        exists: bool[slots, K] whether the run has this cluster.
        active: bool[slots] whether there is a run, and it has not ended.
        same: bool[slots] whether no label changed in the last step.
        n_iter: int32[slots] steps.
    """

    centers: Centers
    member: Array
    labels: Array
    exists: Array
    active: Array
    same: Array
    n_iter: Array


class Ended(NamedTuple):
    """Results of E runs that have ended.

    Attributes:
        run: int64[E] numbers of the runs.
        labels: int32[E, N] cluster of each row.
        inertia: float64[E] sum of squared distances (spherical: of 1 - cosine).
        n_iter: int32[E] iterations.
    """

    run: Int[np.ndarray, " E"]
    labels: Int[np.ndarray, "E N"]
    inertia: Float[np.ndarray, " E"]
    n_iter: Int[np.ndarray, " E"]


def advances_on_device(points: Points) -> bool:
    """Whether runs advance in rounds. On CPU the host follows them, as it can move single rows."""
    return points.device.platform != "cpu"


def common_width(widest: int, n_columns: int) -> int:
    """Width of all runs of a call, at least that of the widest and at most P.

    One width for all: columns without a cluster never change, so that they are in no product, and
    programs for four widths took 14 s to compile on a GPU.
    """
    return max(widest, min(LEAST_WIDTH, n_columns))


def count_used_columns(n_runs: int, width: int, n_columns: int) -> int:
    """Columns for some runs: at most P, divided by a power of four, so that there are few sizes."""
    while n_columns // 4 >= n_runs * width:
        n_columns //= 4
    return n_columns


def follow_runs(
    points: Points,
    inits: Sequence[Int[np.ndarray, " K"]],
    waiting: deque[int],
    *,
    width: int,
    n_columns: int,
    limit: float,
    max_iter: int,
    on_progress: Callable[[int], None] | None,
) -> Iterator[Ended]:
    """Run the waiting runs to their ends.

    Args:
        points: result of ``prepare_points``.
        inits: rows that are the initial centres of each run.
        waiting: numbers of the runs, which are taken out.
        width: K, at least the number of clusters of each run.
        n_columns: P at most.
        limit: a run ends when the squared movements of its centres sum to at most this.
        max_iter: maximum number of iterations.
        on_progress: called with the number of runs that ended since the last call.

    Yields:
        ``Ended``; each run once.
    """
    n_slots = count_used_columns(len(waiting), width, n_columns) // width
    slots = make_slots(n_slots, width, len(points.x), points.device)
    rows, norm2 = points.rows, points.norm2
    kind = {"width": width, "spherical": points.spherical}
    run = np.full(n_slots, -1)
    while waiting or (run >= 0).any():
        if waiting:
            init = np.full((n_slots, width), -1, np.int32)
            for slot in np.flatnonzero(run < 0)[: len(waiting)]:
                run[slot] = waiting.popleft()
                init[slot, : len(inits[run[slot]])] = inits[run[slot]]
            slots = start_slots(slots, rows, norm2, init, is_gram=points.is_gram)
        running = int((run >= 0).sum())
        enough = max(int(np.ceil(FREE_SHARE * n_slots)), 1) if waiting else n_slots
        while n_slots - running < enough:
            slots = advance_slots(
                slots,
                rows,
                norm2,
                np.float32(limit),
                np.int32(max_iter),
                np.int32(enough),
                np.int32(MOST_STEPS),
                is_gram=points.is_gram,
                **kind,
            )
            active, n_iter = jax.device_get((slots.active, slots.n_iter))
            if on_progress is not None:
                on_progress(running - int(active.sum()))
            running = int(active.sum())
        found = steps.read_slots(
            slots.centers.scores, slots.centers.norm2, norm2, slots.labels, slots.same, **kind
        )
        labels, distance = jax.device_get(found)
        ended = np.flatnonzero((run >= 0) & ~active)
        # Summed on the host in float64: the sixth digit may decide which run is the best.
        inertia = distance[ended].sum(1, dtype=np.float64)
        yield Ended(run[ended], labels[ended], inertia, n_iter[ended])
        run[ended] = -1


def make_slots(n_slots: int, width: int, n: int, device: jax.Device) -> Slots:
    """Slots without runs, for ``n`` rows."""
    # All arrays are bound to one device: for others a program would be compiled again.
    put = functools.partial(jax.device_put, device=device)
    return Slots(
        centers=steps.make_centers(n_slots * width, n, device),
        member=jnp.full((n_slots, n), -1, jnp.int32, device=device),
        labels=jnp.full((n_slots, n), -1, jnp.int32, device=device),
        exists=put(np.zeros((n_slots, width), bool)),
        active=put(np.zeros(n_slots, bool)),
        same=put(np.zeros(n_slots, bool)),
        n_iter=put(np.zeros(n_slots, np.int32)),
    )


@functools.partial(jax.jit, static_argnames=("is_gram",), donate_argnums=0)
def start_slots(
    slots: Slots, rows: Array, row_norm2: Array, init: Array, *, is_gram: bool
) -> Slots:
    """Put new runs into slots.

    Args:
        slots: runs of the batch; donated.
        rows: float32[N, N] inner products, or [N, D] rows.
        row_norm2: float32[N] squared norms.
        init: int32[slots, K] rows that are the initial centres; -1: the run has no such cluster. A
            slot with -1 alone gets no run and keeps its own.
        is_gram: whether ``rows`` are inner products.
    """
    exists = init >= 0
    is_new = exists.any(1)
    columns = jnp.arange(init.size, dtype=jnp.int32)
    at = jnp.where(jnp.repeat(is_new, init.shape[1]), columns, init.size)
    centers = steps.start_runs(
        slots.centers, rows, row_norm2, at, init.reshape(-1), is_gram=is_gram
    )
    return Slots(
        centers=centers,
        member=steps.clear_labels(slots.member, is_new),
        labels=steps.clear_labels(slots.labels, is_new),
        exists=jnp.where(is_new[:, None], exists, slots.exists),
        active=slots.active | is_new,
        same=slots.same & ~is_new,
        n_iter=jnp.where(is_new, 0, slots.n_iter),
    )


@functools.partial(jax.jit, static_argnames=("is_gram", "width", "spherical"), donate_argnums=0)
def advance_slots(
    slots: Slots,
    rows: Array,
    row_norm2: Array,
    limit: Array,
    max_iter: Array,
    enough: Array,
    most_steps: Array,
    *,
    is_gram: bool,
    width: int,
    spherical: bool,
) -> Slots:
    """One round: some steps of all slots.

    Args:
        slots: runs of the batch; donated.
        rows: float32[N, N] inner products, or [N, D] rows.
        row_norm2: float32[N] squared norms.
        limit: float32[] largest sum of squared movements at which a run ends.
        max_iter: int32[] largest number of steps of a run.
        enough: int32[] the round ends when this many slots have no active run.
        most_steps: int32[] the round ends after this many steps.
        is_gram: whether ``rows`` are inner products.
        width: K.
        spherical: whether rows are assigned by the cosine.
    """

    def goes_on(state: tuple[Array, Slots]) -> Array:
        step, slots = state
        return (step < most_steps) & ((~slots.active).sum() < enough)

    def advance(state: tuple[Array, Slots]) -> tuple[Array, Slots]:
        step, slots = state
        parts = (rows, row_norm2, limit, max_iter)
        return step + 1, _make_step(
            slots, *parts, is_gram=is_gram, width=width, spherical=spherical
        )

    return lax.while_loop(goes_on, advance, (jnp.int32(0), slots))[1]


def _make_step(
    slots: Slots,
    rows: Array,
    row_norm2: Array,
    limit: Array,
    max_iter: Array,
    *,
    is_gram: bool,
    width: int,
    spherical: bool,
) -> Slots:
    """One step of all active slots; see ``advance_slots``."""
    centers, active = slots.centers, slots.active
    scores, norm2 = centers.scores, centers.norm2
    nearest = steps.find_nearest(scores, norm2, width=width, spherical=spherical)
    # Else they might be found again for each use.
    nearest = lax.optimization_barrier(nearest)
    labels = jnp.where(active[:, None], nearest, slots.labels)
    same = jnp.where(active, (labels == slots.labels).all(1), slots.same)
    empty = slots.exists & ~steps.find_used(labels, width=width) & active[:, None]

    def fill() -> Array:
        parts = (scores, norm2, row_norm2, labels, empty)
        return steps.fill_empty(*parts, width=width, spherical=spherical)

    filled = lax.cond(empty.any(), fill, lambda: labels)
    member = jnp.where(active[:, None], filled, slots.member)
    # Columns of slots without an active run have the members of the step before.
    changed = steps.find_touched(member, slots.member, width=width)
    centers = _move_changed(centers, rows, slots.member, member, changed, is_gram=is_gram)
    left_out = slots.exists & (centers.size.reshape(changed.shape) == 0) & active[:, None]
    centers = _copy_largest(centers, left_out)
    shift = jnp.where(changed, centers.shift.reshape(changed.shape), 0).sum(1)
    # A run's first centres are rows; their movement ends no run, nor does a copy.
    is_small = (shift <= limit) & (slots.n_iter > 0) & ~left_out.any(1)
    n_iter = slots.n_iter + active
    ends = same | is_small | (n_iter >= max_iter)
    return Slots(centers, member, labels, slots.exists, active & ~ends, same, n_iter)


def _move_changed(
    centers: Centers, rows: Array, before: Array, member: Array, changed: Array, *, is_gram: bool
) -> Centers:
    """Compute the changed centres, bool[slots, K]."""
    width = changed.shape[1]

    def move(centers: Centers, at: Array) -> Centers:
        parts = (rows, before, member, None, at, at // width, at % width)
        return steps.move_centers(centers, *parts, is_gram=is_gram)

    return _update_columns(centers, changed.reshape(-1), move)


def _copy_largest(centers: Centers, left_out: Array) -> Centers:
    """As in scikit-learn, centres left out, bool[slots, K], take that of the largest cluster."""
    width = left_out.shape[1]
    largest = centers.size.reshape(left_out.shape).argmax(1).astype(jnp.int32)

    def copy(centers: Centers, at: Array) -> Centers:
        slot = jnp.minimum(at // width, len(largest) - 1)
        source = slot * width + largest[slot]
        # These have rows: none of them is left out itself.
        scores = centers.scores.at[at].set(centers.scores[source], mode="drop")
        norm2 = centers.norm2.at[at].set(centers.norm2[source], mode="drop")
        return centers._replace(scores=scores, norm2=norm2)

    return _update_columns(centers, left_out.reshape(-1), copy)


def _update_columns(
    centers: Centers, chosen: Array, update: Callable[[Centers, Array], Centers]
) -> Centers:
    """Update the chosen columns, bool[P], some per call; past the last one, columns are P.

    In a loop, as XLA would copy all centres in each branch of a condition, and so that few columns
    need few products.
    """
    n_columns = len(chosen)
    length = min(MOVED_COLUMNS, n_columns)
    count = chosen.sum(dtype=jnp.int32)
    # As jnp.nonzero, which adds up to P ones to one number.
    place = jnp.where(chosen, jnp.cumsum(chosen, dtype=jnp.int32) - 1, n_columns)
    columns = jnp.full(n_columns, n_columns, jnp.int32)
    columns = columns.at[place].set(jnp.arange(n_columns, dtype=jnp.int32), mode="drop")

    def goes_on(state: tuple[Array, Centers]) -> Array:
        return state[0] < count

    def advance(state: tuple[Array, Centers]) -> tuple[Array, Centers]:
        start, centers = state
        at = lax.dynamic_slice_in_dim(columns, start, length)
        return start + length, update(centers, at)

    return lax.while_loop(goes_on, advance, (jnp.int32(0), centers))[1]
