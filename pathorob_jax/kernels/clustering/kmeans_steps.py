"""The steps of Lloyd's algorithm on the device, for all runs of a batch at once.

The functions take inner products of rows (or the rows), and the centres and labels of the runs, and
return the centres and labels after one step. ``kmeans`` decides the sequence of steps and explains
why a step needs only products. In shapes, N is the number of rows, P the number of columns of a
batch, and R its number of slots at the narrowest width. A batch has P / width slots, and a run
occupies the ``width`` columns of one slot. Widths and numbers of changed columns are padded to a
few lengths, each of which is compiled once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.typing import Array, Float, Int

LEAST_CLUSTERS = 4
# The number of changed clusters is padded to P divided by a power of two, at most this power.
MOST_HALVINGS = 4
# Columns of one call of ``move_centers`` on CPU.
CALL_COLUMNS = (64, 16)
# Coordinates of rows that are compared before all.
FIRST_COMPARED = 8
# A row whose squared distance is below this share of the mean squared norm lies on its centre: the
# rounding error of a distance.
ON_CENTER = 1e-6


class Centers(NamedTuple):
    """Clusters of all runs of a batch, in columns; the clusters of a run are adjacent.

    Attributes:
        scores: float32[P, N] row . centre.
        norm2: float32[P] squared norm; inf where a run has no such cluster.
        size: float32[P] number of rows of which the centre is the mean; 0 if it is not a mean.
        shift: float32[P] squared distance of the last movement.
        mark: uint32[P, 2] random coefficients, summed over its rows.
    """

    scores: Array
    norm2: Array
    size: Array
    shift: Array
    mark: Array


def pad_clusters(k: int) -> int:
    """Number of columns of a run of ``k`` clusters: a power of two."""
    return max(LEAST_CLUSTERS, 1 << (k - 1).bit_length())


def pad_columns(columns: Int[np.ndarray, " C"], n_columns: int) -> Int[np.ndarray, " S"]:
    """Pad the columns of one call to one of a few lengths, with a number past the last column.

    Args:
        columns: int[C] columns of a batch.
        n_columns: P of the batch.

    Returns:
        int32[S], filled with P.
    """
    length = n_columns
    while length // 2 >= max(len(columns), n_columns >> MOST_HALVINGS):
        length //= 2
    padding = (0, length - len(columns))
    return np.pad(columns, padding, constant_values=n_columns).astype(np.int32)


def split_columns(
    columns: Int[np.ndarray, " C"], n_columns: int, *, few: bool
) -> list[Int[np.ndarray, " S"]]:
    """Split columns into calls, each padded with P; see ``pad_columns``.

    Args:
        columns: int[C] columns of a batch.
        n_columns: P of the batch.
        few: as calls of ``CALL_COLUMNS``, which waste less than one call where products are small.
    """
    calls = []
    while few and len(columns):
        enough = [c for c in CALL_COLUMNS if len(columns) > c - CALL_COLUMNS[-1]]
        length = enough[0] if enough else CALL_COLUMNS[-1]
        padding = (0, max(length - len(columns), 0))
        call = np.pad(columns[:length], padding, constant_values=n_columns)
        calls.append(call.astype(np.int32))
        columns = columns[length:]
    return [*calls, pad_columns(columns, n_columns)] if len(columns) else calls


def make_centers(n_columns: int, n: int, device: jax.Device) -> Centers:
    """Centres of an empty batch with ``n_columns`` columns and ``n`` rows."""
    put = functools.partial(jax.device_put, device=device)
    return Centers(
        scores=jnp.zeros((n_columns, n), jnp.float32, device=device),
        norm2=put(np.full(n_columns, np.inf, np.float32)),
        size=put(np.zeros(n_columns, np.float32)),
        shift=put(np.zeros(n_columns, np.float32)),
        mark=put(np.zeros((n_columns, 2), np.uint32)),
    )


def find_first_equal(x: Float[np.ndarray, "N D"]) -> Int[np.ndarray, " N"]:
    """Find the first row that equals each row byte for byte, on the host.

    Args:
        x: [N, D].

    Returns:
        int32[N] row indices; entry i is i if no earlier row is equal.
    """
    # Most rows differ in their first coordinates.
    if len({row.tobytes() for row in x[:, :FIRST_COMPARED]}) == len(x):
        return np.arange(len(x), dtype=np.int32)
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), i) for i, row in enumerate(x)], np.int32)


@jax.jit
def make_gram(x: Array, first_equal: Array) -> Array:
    """Inner products; equal rows get bitwise equal products, and therefore equal labels.

    Args:
        x: float32[N, D].
        first_equal: int32[N] from ``find_first_equal``.

    Returns:
        float32[N, N].
    """
    products = lax.dot_general(x, x, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    is_plain = (first_equal == jnp.arange(len(x))).all()
    return lax.cond(is_plain, lambda g: g, lambda g: g[first_equal][:, first_equal], products)


@functools.partial(jax.jit, static_argnames=("is_gram",), donate_argnums=0)
def start_runs(
    centers: Centers, rows: Array, row_norm2: Array, at: Array, init: Array, *, is_gram: bool
) -> Centers:
    """Put rows into columns as initial centres.

    Args:
        centers: centres of the batch; donated.
        rows: float32[N, N] inner products, or [N, D] rows.
        row_norm2: float32[N] squared norms.
        at: int32[S] columns; P: no column.
        init: int32[S] rows that are the initial centres; -1: the run has no such cluster.
        is_gram: whether ``rows`` are inner products.
    """
    scores = rows[init]
    if not is_gram:
        scores = lax.dot_general(
            scores, rows, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
        )
    zero = jnp.zeros(init.shape, jnp.float32)
    new = Centers(
        scores=scores,
        norm2=jnp.where(init >= 0, row_norm2[init], jnp.inf),
        size=zero,
        shift=zero,
        mark=jnp.zeros((*init.shape, 2), jnp.uint32),
    )
    return put_centers(centers, at, new)


@jax.jit
def clear_labels(labels: Array, is_new: Array) -> Array:
    """Set the labels of new runs to -1 (no label yet).

    Args:
        labels: int32[R, N] by slot.
        is_new: bool[R] slots of new runs.
    """
    return jnp.where(is_new[:, None], -1, labels)


@functools.partial(jax.jit, static_argnames=("width", "spherical"))
def assign_rows(
    scores: Array, norm2: Array, before: Array, *, width: int, spherical: bool
) -> Array:
    """Find the nearest centre of each row, int32[R, N].

    Args:
        scores: float32[P, N] of ``Centers``.
        norm2: float32[P] of ``Centers``.
        before: int32[R, N] previous labels, kept where the batch has no slot.
        width: number of columns of a slot.
        spherical: whether rows are assigned by the cosine.
    """
    labels = find_nearest(scores, norm2, width=width, spherical=spherical)
    return lax.dynamic_update_slice_in_dim(before, labels, 0, axis=0)


@functools.partial(jax.jit, static_argnames=("width",))
def compare_labels(labels: Array, before: Array, *, width: int) -> tuple[Array, Array]:
    """Compare labels with those of the step before.

    Not within ``assign_rows``, where XLA on CPU would find the nearest centres again for each use.

    Args:
        labels: int32[R, N] labels.
        before: int32[R, N] previous labels.
        width: number of columns of a slot.

    Returns:
        Whether no label changed bool[slots], and which clusters have rows bool[slots, width].
    """
    n_slots = len(labels) * LEAST_CLUSTERS // width
    labels, before = labels[:n_slots], before[:n_slots]
    return (labels == before).all(1), find_used(labels, width=width)


@functools.partial(jax.jit, static_argnames=("width",))
def find_changed(member: Array, before: Array, *, width: int) -> Array:
    """Find the clusters that gained or lost rows, bool[slots, width].

    Args:
        member: int32[R, N] current cluster of each row.
        before: int32[R, N] previous cluster of each row.
        width: number of columns of a slot.
    """
    n_slots = len(member) * LEAST_CLUSTERS // width
    return find_touched(member[:n_slots], before[:n_slots], width=width)


@functools.partial(jax.jit, static_argnames=("width", "spherical"))
def fill_empty(
    scores: Array,
    norm2: Array,
    row_norm2: Array,
    labels: Array,
    empty: Array,
    *,
    width: int,
    spherical: bool,
) -> Array:
    """Cluster of each row: its label, except that the farthest rows move to the empty clusters.

    Args:
        scores: float32[P, N] of ``Centers``.
        norm2: float32[P] of ``Centers``.
        row_norm2: float32[N] squared norms of rows.
        labels: int32[R, N] nearest centres.
        empty: bool[slots, width] clusters to fill.
        width: number of columns of a slot.
        spherical: whether rows are assigned by the cosine.

    Returns:
        int32[R, N].
    """
    distance = _distances(scores, norm2, width=width, spherical=spherical).min(1)
    distance += 1.0 if spherical else row_norm2[None, :]
    n_slots, n = distance.shape
    most = min(width, n)
    _, farthest = lax.top_k(distance, most)
    first = jnp.argsort(~empty, axis=1, stable=True)[:, :most].astype(jnp.int32)
    # As in scikit-learn, no row moves if all rows lie on their centres.
    spread = distance.max(1, keepdims=True) > ON_CENTER * row_norm2.mean()
    wanted = (jnp.arange(most)[None, :] < empty.sum(1, keepdims=True)) & spread
    moved = jnp.where(wanted, farthest, n)
    return labels.at[jnp.arange(n_slots)[:, None], moved].set(first, mode="drop")


@functools.partial(jax.jit, static_argnames=("is_gram",), donate_argnums=0)
def move_centers(
    centers: Centers,
    rows: Array,
    before: Array,
    member: Array,
    coefficients: Array | None,
    at: Array,
    slot: Array,
    cluster: Array,
    sums: Array | None = None,
    *,
    is_gram: bool,
) -> Centers:
    """Compute the new means of clusters that gained or lost rows.

    Args:
        centers: centres of the batch; donated.
        rows: float32[N, N] inner products, or [N, D] rows.
        before: int32[R, N] previous cluster of each row.
        member: int32[R, N] current cluster of each row.
        coefficients: uint32[2, N] random coefficients of the marks; None: marks stay.
        at: int32[S] columns of these clusters; P: no column.
        slot: int32[S] slot of each column.
        cluster: int32[S] number of each cluster within its slot.
        sums: float32[S, N] products of all rows with the sum of a cluster's rows; None: they are
            computed.
        is_gram: whether ``rows`` are inner products.
    """
    old = jax.tree.map(lambda a: jnp.take(a, at, axis=0, mode="clip"), centers)
    is_in, was_in = (
        jnp.take(a, slot, axis=0, mode="clip") == cluster[:, None] for a in (member, before)
    )
    weights = is_in.astype(jnp.float32)
    if sums is None:
        sums = _multiply(rows, weights, is_gram=is_gram)
    size = is_in.sum(1, dtype=jnp.int32).astype(jnp.float32)
    share = 1 / jnp.maximum(size, 1)
    # n'(c' - c) = sum of u (x - c), with u = 1 for rows gained and -1 for rows lost. Subtracting
    # norms and products of centres instead would lose the digits that the tolerance requires.
    u = weights - was_in
    inner = (u * (sums - old.size[:, None] * old.scores)).sum(1)
    across = (u * old.scores).sum(1)
    more = size - old.size
    moved = inner - 2 * more * across + more**2 * old.norm2
    mark = old.mark
    if coefficients is not None:
        sums_of = [jnp.where(is_in, c[None, :], 0).sum(1, dtype=jnp.uint32) for c in coefficients]
        mark = jnp.stack(sums_of, axis=1)
    new = Centers(
        scores=sums * share[:, None],
        norm2=(weights * sums).sum(1) * share**2,
        size=size,
        shift=jnp.maximum(moved, 0) * share**2,
        mark=mark,
    )
    # All are at least 0. Since columns thus depend on all that is read of the old centres, XLA
    # writes the new ones in their place; otherwise it may copy all of them first.
    at = jnp.where(new.shift >= 0, at, len(centers.shift))
    return put_centers(centers, at, new)


@functools.partial(jax.jit, donate_argnums=0)
def copy_centers(centers: Centers, source: Array) -> Centers:
    """Copy each column's centre from the column ``source``, int32[P]; sizes stay.

    ``centers`` are donated.
    """
    return centers._replace(scores=centers.scores[source], norm2=centers.norm2[source])


@functools.partial(jax.jit, static_argnames=("width", "spherical"))
def read_out(
    scores: Array,
    norm2: Array,
    row_norm2: Array,
    before: Array,
    slots: Array,
    strict: Array,
    *,
    width: int,
    spherical: bool,
) -> tuple[Array, Array]:
    """Labels of finished runs, and the distance of each row to the centre of its cluster.

    If a run ended before its labels converged, they are computed again from the last centres.

    Args:
        scores: float32[P, N] of ``Centers``.
        norm2: float32[P] of ``Centers``.
        row_norm2: float32[N] squared norms of rows.
        before: int32[R, N] labels.
        slots: int32[S] slots of the finished runs.
        strict: bool[S] whether the labels converged.
        width: number of columns of a slot.
        spherical: whether rows are assigned by the cosine.

    Returns:
        int32[S, N] labels, float32[S, N] squared distances (spherical: 1 - cosine).
    """
    columns = (slots[:, None] * width + jnp.arange(width)[None, :]).reshape(-1)
    kind = {"width": width, "spherical": spherical}
    return read_slots(scores[columns], norm2[columns], row_norm2, before[slots], strict, **kind)


@functools.partial(jax.jit, static_argnames=("width", "spherical"))
def read_slots(
    scores: Array,
    norm2: Array,
    row_norm2: Array,
    before: Array,
    strict: Array,
    *,
    width: int,
    spherical: bool,
) -> tuple[Array, Array]:
    """``read_out`` of all slots of ``scores`` [P, N]; labels int32[slots, N], bool[slots]."""
    distance = _distances(scores, norm2, width=width, spherical=spherical)
    labels = jnp.where(strict[:, None], before, _first_least(distance))
    to_center = jnp.take_along_axis(distance, labels[:, None, :], axis=1)[:, 0]
    to_center += 1.0 if spherical else row_norm2[None, :]
    return labels, jnp.maximum(to_center, 0)


def find_nearest(scores: Array, norm2: Array, *, width: int, spherical: bool) -> Array:
    """Nearest centre of each row, int32[slots, N], of ``scores`` [P, N] and ``norm2`` [P]."""
    return _first_least(_distances(scores, norm2, width=width, spherical=spherical))


def find_used(labels: Array, *, width: int) -> Array:
    """Which clusters have rows, bool[slots, width], of labels int32[slots, N]."""
    return (labels[:, None, :] == jnp.arange(width)[None, :, None]).any(2)


def find_touched(member: Array, before: Array, *, width: int) -> Array:
    """Which clusters gained or lost rows, bool[slots, width], of clusters int32[slots, N]."""
    clusters = jnp.arange(width)[None, :, None]
    new, old = member[:, None, :], before[:, None, :]
    return ((new != old) & ((new == clusters) | (old == clusters))).any(2)


def _distances(scores: Array, norm2: Array, *, width: int, spherical: bool) -> Array:
    """[slots, width, N]: squared distance minus the row's squared norm, or minus the cosine."""
    norm2 = norm2.reshape(-1, width)[:, :, None]
    scores = scores.reshape(*norm2.shape[:2], -1)
    if spherical:
        scale = jnp.where(norm2 > 0, lax.rsqrt(norm2), 0)
        return jnp.where(jnp.isfinite(norm2), -scores * scale, jnp.inf)
    return norm2 - 2 * scores


def _first_least(distance: Array) -> Array:
    """int32[slots, N]: the first of the least distances [slots, width, N] of each row.

    One comparison after another: for 32 clusters, XLA's ``argmin`` takes six times as long on CPU.
    """
    least = distance[:, 0]
    label = jnp.zeros(least.shape, jnp.int32)
    for cluster in range(1, distance.shape[1]):
        is_less = distance[:, cluster] < least
        least = jnp.where(is_less, distance[:, cluster], least)
        label = jnp.where(is_less, cluster, label)
    return label


def _multiply(rows: Array, weights: Array, *, is_gram: bool) -> Array:
    """Products [P, N] of all rows with weighted sums of rows; weights [P, N]."""
    sums = lax.dot_general(weights, rows, (((1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)
    if is_gram:
        return sums
    return lax.dot_general(sums, rows, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def put_centers(centers: Centers, at: Array | np.ndarray, new: Centers) -> Centers:
    """Replace columns; column numbers past the last one are ignored."""
    return jax.tree.map(lambda a, b: a.at[at].set(b, mode="drop"), centers, new)
