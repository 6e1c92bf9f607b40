"""The steps of Lloyd's algorithm on the device, for the runs of a batch side by side.

Enters: inner products of rows (or the rows), and the centres and labels of the runs. Leaves: the
centres and labels one step on. ``kmeans`` says which steps follow each other, and why a step needs
products only. In shapes, N are rows, P the columns of a batch and R its slots at the narrowest
width; a run has the ``width`` columns of one of P / width slots. Widths and numbers of changed
columns are padded to few lengths, each of which is compiled once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.typing import Array, Float, Int

LEAST_CLUSTERS = 4
# Changed clusters are padded to a batch over a power of two, of these at the most.
MOST_HALVINGS = 4
# Share of the mean squared norm below which a row lies on its centre: rounding of the distance.
ON_CENTER = 1e-6


class Centers(NamedTuple):
    """Clusters of all runs of a batch, in columns: those of a run side by side.

    Attributes:
        scores: float32[P, N] row . centre.
        norm2: float32[P] squared norm; inf where a run has no such cluster.
        size: float32[P] rows that the centre is the mean of; 0: of none.
        shift: float32[P] squared distance by which it moved when it was last computed.
        mark: uint32[P, 2] of the set of its rows.
    """

    scores: Array
    norm2: Array
    size: Array
    shift: Array
    mark: Array


def pad_clusters(k: int) -> int:
    """Columns of a run of ``k`` clusters: a power of two."""
    return max(LEAST_CLUSTERS, 2 ** int(np.ceil(np.log2(k))))


def pad_columns(columns: Int[np.ndarray, " C"], n_columns: int) -> Int[np.ndarray, " S"]:
    """Columns of one call, padded to one of few lengths; one past the last stands for none.

    Args:
        columns: int[C] columns of a batch.
        n_columns: P, of the batch.

    Returns:
        int32[S], filled with P.
    """
    length = n_columns
    while length // 2 >= max(len(columns), n_columns >> MOST_HALVINGS):
        length //= 2
    padding = (0, length - len(columns))
    return np.pad(columns, padding, constant_values=n_columns).astype(np.int32)


def make_centers(n_columns: int, n: int) -> Centers:
    """Centres of a batch without runs: ``n_columns`` columns, ``n`` rows."""
    return Centers(
        scores=jnp.zeros((n_columns, n), jnp.float32),
        norm2=jnp.full(n_columns, jnp.inf, jnp.float32),
        size=jnp.zeros(n_columns, jnp.float32),
        shift=jnp.zeros(n_columns, jnp.float32),
        mark=jnp.zeros((n_columns, 2), jnp.uint32),
    )


def find_first_equal(x: Float[np.ndarray, "N D"]) -> Int[np.ndarray, " N"]:
    """The first row that each row equals, byte for byte, on the host.

    Args:
        x: [N, D].

    Returns:
        int32[N] indices of rows; an own index where no earlier row is equal.
    """
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), i) for i, row in enumerate(x)], np.int32)


@jax.jit
def make_gram(x: Array, first_equal: Array) -> Array:
    """Inner products; of equal rows they are equal to the last bit, so that their labels are.

    Args:
        x: float32[N, D].
        first_equal: int32[N] of ``find_first_equal``.

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
    """Put rows as first centres into columns.

    Args:
        centers: of the batch; given away.
        rows: float32[N, N] inner products, or [N, D] rows.
        row_norm2: float32[N] squared norms.
        at: int32[S] columns; P is none.
        init: int32[S] rows that are the first centres; -1: the run has no such cluster.
        is_gram: which of the two ``rows`` are.
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
    return _put(centers, at, new)


@jax.jit
def clear_labels(labels: Array, is_new: Array) -> Array:
    """Labels without those of new runs: -1, none yet.

    Args:
        labels: int32[R, N] by slot.
        is_new: bool[R].
    """
    return jnp.where(is_new[:, None], -1, labels)


@functools.partial(jax.jit, static_argnames=("width", "spherical"))
def assign_rows(
    scores: Array, norm2: Array, before: Array, *, width: int, spherical: bool
) -> tuple[Array, Array, Array]:
    """Nearest centre of each row.

    Args:
        scores: float32[P, N] of ``Centers``.
        norm2: float32[P] likewise.
        before: int32[R, N] labels so far.
        width: columns of a slot.
        spherical: whether closeness is the cosine.

    Returns:
        The labels int32[R, N], whether none is new bool[slots], and which clusters have rows
        bool[slots, width].
    """
    distance = _distances(scores, norm2, width=width, spherical=spherical)
    labels = jnp.argmin(distance, axis=1).astype(jnp.int32)
    found = (labels[:, None, :] == jnp.arange(width)[None, :, None]).any(2)
    same = (labels == before[: len(labels)]).all(1)
    return lax.dynamic_update_slice_in_dim(before, labels, 0, axis=0), same, found


@functools.partial(jax.jit, static_argnames=("width",))
def find_changed(member: Array, before: Array, *, width: int) -> Array:
    """Clusters that gained or lost rows, bool[slots, width].

    Args:
        member: int32[R, N] centre that each row is part of now.
        before: int32[R, N] and was before.
        width: columns of a slot.
    """
    n_slots = len(member) * LEAST_CLUSTERS // width
    clusters = jnp.arange(width)[None, :, None]
    new, old = member[:n_slots, None, :], before[:n_slots, None, :]
    return ((new != old) & ((new == clusters) | (old == clusters))).any(2)


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
    """Centres that rows are part of: labels, but the farthest rows go to the empty clusters.

    Args:
        scores: float32[P, N] of ``Centers``.
        norm2: float32[P] likewise.
        row_norm2: float32[N] squared norms of rows.
        labels: int32[R, N] nearest centres.
        empty: bool[slots, width] clusters to be filled.
        width: columns of a slot.
        spherical: whether closeness is the cosine.

    Returns:
        int32[R, N].
    """
    distance = _distances(scores, norm2, width=width, spherical=spherical).min(1)
    distance += 1.0 if spherical else row_norm2[None, :]
    n_slots, n = distance.shape
    most = min(width, n)
    _, farthest = lax.top_k(distance, most)
    first = jnp.argsort(~empty, axis=1, stable=True)[:, :most].astype(jnp.int32)
    # As scikit-learn: none is moved where all rows lie on their centres.
    spread = distance.max(1, keepdims=True) > ON_CENTER * row_norm2.mean()
    wanted = (jnp.arange(most)[None, :] < empty.sum(1, keepdims=True)) & spread
    at = jnp.where(wanted, farthest, n)
    return labels.at[jnp.arange(n_slots)[:, None], at].set(first, mode="drop")


@functools.partial(jax.jit, static_argnames=("is_gram",), donate_argnums=0)
def move_centers(
    centers: Centers,
    rows: Array,
    before: Array,
    member: Array,
    coefficients: Array,
    at: Array,
    slot: Array,
    cluster: Array,
    *,
    is_gram: bool,
) -> Centers:
    """New means of clusters that gained or lost rows.

    Args:
        centers: of the batch; given away.
        rows: float32[N, N] inner products, or [N, D] rows.
        before: int32[R, N] centre that each row was part of.
        member: int32[R, N] and is part of now.
        coefficients: uint32[2, N] random, of the marks.
        at: int32[S] columns of these clusters; P is none.
        slot: int32[S] the slot of each,
        cluster: int32[S] and its number there.
        is_gram: which of the two ``rows`` are.
    """
    old = jax.tree.map(lambda a: jnp.take(a, at, axis=0, mode="clip"), centers)
    is_in, was_in = (
        jnp.take(a, slot, axis=0, mode="clip") == cluster[:, None] for a in (member, before)
    )
    weights = is_in.astype(jnp.float32)
    sums = _multiply(rows, weights, is_gram=is_gram)
    size = is_in.sum(1, dtype=jnp.int32).astype(jnp.float32)
    share = 1 / jnp.maximum(size, 1)
    # n'(c' - c) = sum of u (x - c), with u = 1 for rows gained and -1 for rows lost: norms and
    # products of centres, subtracted, would lose the digits that the tolerance asks for.
    u = weights - was_in
    inner = (u * (sums - old.size[:, None] * old.scores)).sum(1)
    across = (u * old.scores).sum(1)
    more = size - old.size
    moved = inner - 2 * more * across + more**2 * old.norm2
    # A cluster by its first row, whatever its number, times random sums over its rows.
    first = jnp.where(is_in, jnp.arange(is_in.shape[1])[None, :], is_in.shape[1]).min(1)
    sums_of_rows = [jnp.where(is_in, c[None, :], 0).sum(1, dtype=jnp.uint32) for c in coefficients]
    mark = (first.astype(jnp.uint32) + 1)[:, None] * jnp.stack(sums_of_rows, axis=1)
    new = Centers(
        scores=sums * share[:, None],
        norm2=(weights * sums).sum(1) * share**2,
        size=size,
        shift=jnp.maximum(moved, 0) * share**2,
        mark=mark,
    )
    return _put(centers, at, new)


@functools.partial(jax.jit, donate_argnums=0)
def copy_centers(centers: Centers, source: Array) -> Centers:
    """Each column's centre from the column ``source``, int32[P]; sizes stay.

    ``centers`` are given away.
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
    """Labels of ended runs, and distances to the own centre.

    Where a run ended before its labels came to rest, they are taken anew from the last centres.

    Args:
        scores: float32[P, N] of ``Centers``.
        norm2: float32[P] likewise.
        row_norm2: float32[N] squared norms of rows.
        before: int32[R, N] labels.
        slots: int32[S] of the ended runs.
        strict: bool[S] whether the labels came to rest.
        width: columns of a slot.
        spherical: whether closeness is the cosine.

    Returns:
        int32[S, N] labels, float32[S, N] squared distances (spherical: 1 - cosine).
    """
    columns = (slots[:, None] * width + jnp.arange(width)[None, :]).reshape(-1)
    distance = _distances(scores[columns], norm2[columns], width=width, spherical=spherical)
    labels = jnp.argmin(distance, axis=1).astype(jnp.int32)
    labels = jnp.where(strict[:, None], before[slots], labels)
    own = jnp.take_along_axis(distance, labels[:, None, :], axis=1)[:, 0]
    own += 1.0 if spherical else row_norm2[None, :]
    return labels, jnp.maximum(own, 0)


def _distances(scores: Array, norm2: Array, *, width: int, spherical: bool) -> Array:
    """[slots, width, N]: squared distance less the row's squared norm, or minus the cosine."""
    norm2 = norm2.reshape(-1, width)[:, :, None]
    scores = scores.reshape(*norm2.shape[:2], -1)
    if spherical:
        scale = jnp.where(norm2 > 0, lax.rsqrt(norm2), 0)
        return jnp.where(jnp.isfinite(norm2), -scores * scale, jnp.inf)
    return norm2 - 2 * scores


def _multiply(rows: Array, weights: Array, *, is_gram: bool) -> Array:
    """Products [P, N] of all rows with sums of rows; weights [P, N] of the sums."""
    sums = lax.dot_general(weights, rows, (((1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)
    if is_gram:
        return sums
    return lax.dot_general(sums, rows, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def _put(into: Centers, at: Array, some: Centers) -> Centers:
    """Replace columns; those past the last are none."""
    return jax.tree.map(lambda a, b: a.at[at].set(b, mode="drop"), into, some)
