"""Downstream heads on one repetition's splits: linear probe, nearest neighbours, a small network.

Enters: training rows with one mask per split, validation rows, test rows. Leaves: what each head,
trained on each split and tuned on its validation rows, calls the test rows. All heads see the same
rows and are scored alike, so that a drop can be told to belong to the embedding or to the head.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.typing import Array, ArrayLike, Bool, Float, Int
from pathorob_jax.kernels import mlp
from pathorob_jax.kernels.logistic import fit as logistic
from pathorob_jax.kernels.logistic.fit import LogisticFit, Stopping
from pathorob_jax.metrics.apd import KNN, LINEAR, MLP, balanced_accuracy, count_calls

K_GRID = (1, 3, 5, 11, 21, 51)
# Of each stopping rule: iterations and tolerance (scikit-learn's defaults for the reference's).
LIMITS: dict[str, tuple[int, float]] = {"reference": (100, 1e-4), "converged": (5_000, 1e-5)}
QUERY_ROWS = 1024


class SplitRows(NamedTuple):
    """Rows of one repetition; S splits share the training rows of all of them.

    Attributes:
        x: float32[N, D] rows that any split trains on.
        label_id: int[N] in [0, C).
        training: bool[S, N] the rows of each split.
        x_validation: float32[V, D] rows that any split chooses on.
        validation_label_id: int[V].
        validation: bool[S, V].
        x_tests: float32[T, D] of each test set.
        n_classes: C.
    """

    x: Float[ArrayLike, "N D"]
    label_id: Int[np.ndarray, " N"]
    training: Bool[np.ndarray, "S N"]
    x_validation: Float[ArrayLike, "V D"]
    validation_label_id: Int[np.ndarray, " V"]
    validation: Bool[np.ndarray, "S V"]
    x_tests: Sequence[Float[ArrayLike, "T D"]]
    n_classes: int


class HeadCalls(NamedTuple):
    """What a head says.

    Attributes:
        called_id: int[S, T] classes of the rows of each test set.
        chosen: float[S] setting with the first best validation score.
        validation_accuracy: float[S, G] balanced accuracy of every setting.
        converged: bool[S, G] whether its fit ended by its rule; True where there is nothing to end.
    """

    called_id: list[Int[np.ndarray, "S T"]]
    chosen: Float[np.ndarray, " S"]
    validation_accuracy: Float[np.ndarray, "S G"]
    converged: Bool[np.ndarray, "S G"]


def call_linear(
    rows: SplitRows, *, c_grid: Sequence[float], stopping: Stopping, budget_bytes: int
) -> HeadCalls:
    """L2 logistic regression, the strength chosen out of ``c_grid``; features as they are.

    The model at the chosen strength is not fitted again: it would be the same.

    Args:
        rows: of a repetition.
        c_grid: strengths, tried in this order.
        stopping: ``reference`` or ``converged``, as in ``fit_logistic``.
        budget_bytes: memory for the problems of a batch.

    Reference: sklearn.linear_model.LogisticRegression(C=c), as PathoROB calls it.
    """
    n_splits, n_grid = len(rows.training), len(c_grid)
    max_iter, tol = LIMITS[stopping]
    fit = logistic.fit_logistic(
        rows.x,
        rows.label_id,
        n_classes=rows.n_classes,
        c=np.tile(np.asarray(c_grid, np.float64), n_splits),
        row_weights=np.repeat(rows.training, n_grid, axis=0).astype(np.float32),
        max_iter=max_iter,
        tol=tol,
        stopping=stopping,
        budget_bytes=budget_bytes,
    )
    called = _called(logistic.predict_logits(rows.x_validation, fit))
    accuracy = _validate(rows, called.reshape(n_splits, n_grid, -1))
    best = accuracy.argmax(axis=1)
    chosen = LogisticFit(*(a[np.arange(n_splits) * n_grid + best] for a in fit))
    return HeadCalls(
        [_called(logistic.predict_logits(x, chosen)) for x in rows.x_tests],
        np.asarray(c_grid, np.float64)[best],
        accuracy,
        fit.converged.reshape(n_splits, n_grid),
    )


def call_knn(rows: SplitRows, *, k_grid: Sequence[int] = K_GRID) -> HeadCalls:
    """Majority of the k nearest training rows by cosine, k chosen out of ``k_grid``.

    Ties of votes go to the smallest class id, ties of distances to the earlier row. Values of k
    beyond the training rows of a split are left out.
    """
    fewest = int(rows.training.sum(axis=1).min())
    grid = [k for k in k_grid if k <= fewest] or [fewest]
    vote = functools.partial(_vote, rows, grid)
    called = vote(rows.x_validation)
    accuracy = _validate(rows, called)
    best = accuracy.argmax(axis=1)
    at = np.arange(len(best))
    return HeadCalls(
        [vote(x)[at, best] for x in rows.x_tests],
        np.asarray(grid, np.float64)[best],
        accuracy,
        np.ones(accuracy.shape, bool),
    )


def call_mlp(rows: SplitRows, *, seed: int) -> HeadCalls:
    """One hidden layer on standardised features, the epoch chosen; all splits trained at once."""
    trained = mlp.train_mlps(
        rows.x,
        rows.label_id,
        np.stack([np.flatnonzero(mask) for mask in rows.training]),
        rows.x_validation,
        rows.validation_label_id,
        rows.validation,
        n_classes=rows.n_classes,
        seed=seed,
    )
    accuracy = np.asarray(trained.validation_accuracy)
    return HeadCalls(
        [mlp.predict_logits(trained, x).argmax(axis=2) for x in rows.x_tests],
        np.asarray(trained.epoch, np.float64),
        accuracy,
        np.ones(accuracy.shape, bool),
    )


def make_heads(
    names: Sequence[str],
    *,
    c_grid: Sequence[float],
    stopping: Stopping,
    budget_bytes: int,
) -> dict[str, Callable[[SplitRows, int], HeadCalls]]:
    """Heads by name, each a function of a repetition's rows and seed; the linear probe first."""
    known: dict[str, Callable[[SplitRows, int], HeadCalls]] = {
        LINEAR: lambda rows, _: call_linear(
            rows, c_grid=c_grid, stopping=stopping, budget_bytes=budget_bytes
        ),
        KNN: lambda rows, _: call_knn(rows),
        MLP: lambda rows, seed: call_mlp(rows, seed=seed),
    }
    return {name: call for name, call in known.items() if name == LINEAR or name in names}


def head_settings(names: Sequence[str]) -> dict[str, Any]:
    """What heads beside the linear probe are set to, for records."""
    known: dict[str, Any] = {KNN: {"k": list(K_GRID)}, MLP: mlp.SETTINGS._asdict()}
    return {name: value for name, value in known.items() if name in names}


def _called(logits: Float[np.ndarray, "B T L"]) -> Int[np.ndarray, "B T"]:
    if logits.shape[2] == 1:
        return (logits[:, :, 0] > 0).astype(np.int64)
    return logits.argmax(axis=2)


def _validate(rows: SplitRows, called: Int[np.ndarray, "S G V"]) -> Float[np.ndarray, "S G"]:
    out = []
    for mask, own in zip(rows.validation, called, strict=True):
        label = rows.validation_label_id[mask]
        calls = count_calls(
            own[:, mask], label, np.zeros_like(label), n_classes=rows.n_classes, n_centers=1
        )
        out.append(balanced_accuracy(calls))
    return np.stack(out)


def _vote(
    rows: SplitRows, grid: Sequence[int], queries: Float[ArrayLike, "T D"]
) -> Int[np.ndarray, "S G T"]:
    """Classes of the queries by each split's rows at each k."""
    x, n = jnp.asarray(queries), np.shape(queries)[0]
    label, training = jnp.asarray(rows.label_id, jnp.int32), jnp.asarray(rows.training)
    out = []
    for start in range(0, n, QUERY_ROWS):
        tile = x[start : start + QUERY_ROWS]
        tile = jnp.pad(tile, ((0, QUERY_ROWS - len(tile)), (0, 0)))
        votes = _vote_tile(
            tile, jnp.asarray(rows.x), label, training, n_classes=rows.n_classes, grid=tuple(grid)
        )
        out.append(np.asarray(votes))
    return np.concatenate(out, axis=2)[:, :, :n]


@functools.partial(jax.jit, static_argnames=("n_classes", "grid"))
def _vote_tile(
    queries: Array,
    x: Array,
    label: Array,
    training: Array,
    *,
    n_classes: int,
    grid: tuple[int, ...],
) -> Array:
    unit = [a * lax.rsqrt(jnp.maximum((a * a).sum(1, keepdims=True), 1e-30)) for a in (queries, x)]
    similarity = jnp.einsum("qd,nd->qn", *unit, precision=lax.Precision.HIGHEST)

    def split(mask: Array) -> Array:
        among = jnp.where(mask[None, :], similarity, -jnp.inf)
        nearest = label[lax.top_k(among, max(grid))[1]]
        votes = jnp.cumsum(jax.nn.one_hot(nearest, n_classes, dtype=jnp.int32), axis=1)
        return votes[:, jnp.asarray(grid) - 1].argmax(axis=2).T

    return lax.map(split, training)
