"""Downstream heads on the splits of one repetition: linear probe, kNN, small networks.

The input is training rows with one mask per split, validation rows, and test rows. Each head is
trained on each split, tuned on its validation rows, and returns predictions for the test rows. All
heads use the same rows and the same scores, which shows whether a drop comes from the embedding or
from the head.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import Array, ArrayLike, Bool, Float, Int
from pathorob_jax.kernels.logistic import fit as logistic
from pathorob_jax.kernels.logistic.fit import LogisticFit, Stopping
from pathorob_jax.metrics.apd import (
    DANN,
    DANN_TWIN,
    KNN,
    LINEAR,
    MLP,
    balanced_accuracy,
    count_calls,
)

K_GRID = (1, 3, 5, 11, 21, 51)
# Iterations and tolerance of each stopping rule (scikit-learn's defaults for ``reference``).
LIMITS: dict[str, tuple[int, float]] = {"reference": (100, 1e-4), "converged": (5_000, 1e-5)}
QUERY_ROWS = 1024


class SplitRows(NamedTuple):
    """Rows of one repetition. The S splits select from one common set of training rows.

    Attributes:
        x: float32[N, D] training rows of all splits.
        label_id: int[N] in [0, C).
        training: bool[S, N] training rows of each split.
        x_validation: float32[V, D] validation rows of all splits.
        validation_label_id: int[V] in [0, C).
        validation: bool[S, V] validation rows of each split.
        x_tests: float32[T, D] rows of each test set.
        n_classes: C.
        center_id: int[N] in [0, M) centres of the training rows; ``dann`` alone reads them.
        n_centers: M.
        first: number of the first split; random keys of networks are (seed, number of the split).
    """

    x: Float[ArrayLike, "N D"]
    label_id: Int[np.ndarray, " N"]
    training: Bool[np.ndarray, "S N"]
    x_validation: Float[ArrayLike, "V D"]
    validation_label_id: Int[np.ndarray, " V"]
    validation: Bool[np.ndarray, "S V"]
    x_tests: Sequence[Float[ArrayLike, "T D"]]
    n_classes: int
    center_id: Int[np.ndarray, " N"] = np.zeros(0, np.int64)
    n_centers: int = 0
    first: int = 0


class HeadCalls(NamedTuple):
    """Predictions of a head.

    Attributes:
        called_id: int[S, T] predicted classes of the rows of each test set.
        chosen: float[S] setting with the best validation score; the first if several tie.
        validation_accuracy: float[S, G] balanced accuracy of every setting; of ``dann``, whose
            epoch is chosen by loss, of the chosen one alone.
        converged: bool[S, G] whether the fit met its stopping rule; True for heads without one.
    """

    called_id: list[Int[np.ndarray, "S T"]]
    chosen: Float[np.ndarray, " S"]
    validation_accuracy: Float[np.ndarray, "S G"]
    converged: Bool[np.ndarray, "S G"]


def call_linear(
    rows: SplitRows, *, c_grid: Sequence[float], stopping: Stopping, budget_bytes: int
) -> HeadCalls:
    """L2 logistic regression on unscaled features, with C chosen from ``c_grid``.

    The model with the chosen C is not fitted again: the result would be the same.

    Args:
        rows: rows of a repetition.
        c_grid: values of C, tried in this order.
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
    """Majority vote of the k nearest training rows by cosine, with k chosen from ``k_grid``.

    Ties of votes go to the smallest class id, ties of distances to the earlier row. Values of k
    above the number of training rows of the smallest split are left out.
    """
    fewest = int(rows.training.sum(axis=1).min())
    grid = [k for k in k_grid if k <= fewest] or [fewest]
    vote = functools.partial(_vote, rows, grid)
    called = vote(rows.x_validation)
    accuracy = _validate(rows, called)
    best = accuracy.argmax(axis=1)
    splits = np.arange(len(best))
    return HeadCalls(
        [vote(x)[splits, best] for x in rows.x_tests],
        np.asarray(grid, np.float64)[best],
        accuracy,
        np.ones(accuracy.shape, bool),
    )


def call_mlp(rows: SplitRows, *, seed: int) -> HeadCalls:
    """Network with one hidden layer on standardised features; the best epoch is chosen.

    All splits are trained at once.
    """
    from pathorob_jax.kernels import mlp  # with Flax and Optax, which the default probe spares

    trained = mlp.train_mlps(
        rows.x,
        rows.label_id,
        np.stack([np.flatnonzero(mask) for mask in rows.training]),
        rows.x_validation,
        rows.validation_label_id,
        rows.validation,
        n_classes=rows.n_classes,
        seed=seed,
        first=rows.first,
    )
    accuracy = np.asarray(trained.validation_accuracy)
    return HeadCalls(
        [mlp.predict_logits(trained, x).argmax(axis=2) for x in rows.x_tests],
        np.asarray(trained.epoch, np.float64),
        accuracy,
        np.ones(accuracy.shape, bool),
    )


def call_dann(rows: SplitRows, *, seed: int, lambda_max: float | None = None) -> HeadCalls:
    """Network that unlearns the centre on standardised features (DANN); best validation loss.

    Args:
        rows: rows of a repetition, with the centres of its training rows.
        seed: of starts, batches and dropout, equal for any ``lambda_max``.
        lambda_max: strength of the reversed gradient at the end; 0: the twin that learns plainly;
            None: ``adversarial.LAMBDA_MAX``.
    """
    from pathorob_jax.kernels import adversarial

    trained = adversarial.train_adversarial(
        rows.x,
        rows.label_id,
        rows.center_id,
        np.stack([np.flatnonzero(mask) for mask in rows.training]),
        rows.x_validation,
        rows.validation_label_id,
        rows.validation,
        n_classes=rows.n_classes,
        n_domains=rows.n_centers,
        seed=seed,
        first=rows.first,
        lambda_max=adversarial.LAMBDA_MAX if lambda_max is None else lambda_max,
    )
    accuracy = np.asarray(trained.validation_accuracy, np.float64)[:, None]
    return HeadCalls(
        [adversarial.predict_logits(trained, x).argmax(axis=2) for x in rows.x_tests],
        np.asarray(trained.epoch, np.float64),
        accuracy,
        np.ones(accuracy.shape, bool),
    )


def result_names(names: Sequence[str]) -> list[str]:
    """Names of all results of the heads ``names``: the linear probe's, and twins."""
    wanted = {LINEAR, *names} | ({DANN_TWIN} if DANN in names else set())
    return [name for name in (LINEAR, KNN, MLP, DANN, DANN_TWIN) if name in wanted]


def make_heads(
    names: Sequence[str],
    *,
    c_grid: Sequence[float],
    stopping: Stopping,
    budget_bytes: int,
) -> dict[str, Callable[[SplitRows, int], HeadCalls]]:
    """Heads by name, each a function of the rows and seed of a repetition.

    The linear probe comes first and is always included; ``dann`` comes with its twin.
    """
    known: dict[str, Callable[[SplitRows, int], HeadCalls]] = {
        LINEAR: lambda rows, _: call_linear(
            rows, c_grid=c_grid, stopping=stopping, budget_bytes=budget_bytes
        ),
        KNN: lambda rows, _: call_knn(rows),
        MLP: lambda rows, seed: call_mlp(rows, seed=seed),
        DANN: lambda rows, seed: call_dann(rows, seed=seed),
        DANN_TWIN: lambda rows, seed: call_dann(rows, seed=seed, lambda_max=0.0),
    }
    return {name: known[name] for name in result_names(names)}


def head_settings(names: Sequence[str]) -> dict[str, Any]:
    """Settings of the heads other than the linear probe, for records."""
    out: dict[str, Any] = {}
    if KNN in names:
        out[KNN] = {"k": list(K_GRID)}
    if MLP in names:
        from pathorob_jax.kernels import mlp

        out[MLP] = mlp.SETTINGS._asdict()
    if DANN in names:
        from pathorob_jax.kernels import adversarial

        out[DANN] = adversarial.SETTINGS._asdict() | {"lambda_max": adversarial.LAMBDA_MAX}
    return out


def _called(logits: Float[np.ndarray, "B T L"]) -> Int[np.ndarray, "B T"]:
    if logits.shape[2] == 1:
        return (logits[:, :, 0] > 0).astype(np.int64)
    return logits.argmax(axis=2)


def _validate(rows: SplitRows, called: Int[np.ndarray, "S G V"]) -> Float[np.ndarray, "S G"]:
    out = []
    for mask, predicted in zip(rows.validation, called, strict=True):
        label = rows.validation_label_id[mask]
        calls = count_calls(
            predicted[:, mask], label, np.zeros_like(label), n_classes=rows.n_classes, n_centers=1
        )
        out.append(balanced_accuracy(calls))
    return np.stack(out)


def _vote(
    rows: SplitRows, grid: Sequence[int], queries: Float[ArrayLike, "T D"]
) -> Int[np.ndarray, "S G T"]:
    """Predicted classes of the queries from the training rows of each split, at each k."""
    x, n = to_device(queries), np.shape(queries)[0]
    known = to_device(rows.x)
    label, training = jax.device_put((rows.label_id.astype(np.int32), rows.training))
    out = []
    for start in range(0, n, QUERY_ROWS):
        tile = x[start : start + QUERY_ROWS]
        tile = jnp.pad(tile, ((0, QUERY_ROWS - len(tile)), (0, 0)))
        votes = _vote_tile(tile, known, label, training, n_classes=rows.n_classes, grid=tuple(grid))
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
        masked = jnp.where(mask[None, :], similarity, -jnp.inf)
        nearest = label[lax.top_k(masked, max(grid))[1]]
        votes = jnp.cumsum(jax.nn.one_hot(nearest, n_classes, dtype=jnp.int32), axis=1)
        return votes[:, jnp.asarray(grid) - 1].argmax(axis=2).T

    return lax.map(split, training)
