"""A small classifier with one hidden layer; many are trained at once.

``train_mlps`` trains one network per problem and returns its parameters at the best epoch. All
problems have the same number of training rows, so that one ``vmap`` trains them together. Every
problem has a separate random key, so that results do not depend on which are trained together.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from pathorob_jax.core import checks
from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import Array, ArrayLike, Bool, Float, Int


class MlpSettings(NamedTuple):
    """Settings of network and training."""

    hidden: int = 256
    epochs: int = 20
    batch_rows: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2


SETTINGS = MlpSettings()


class TrainedMlps(NamedTuple):
    """Networks at their best epochs.

    Attributes:
        params: tree of float32[B, ...].
        mean: float32[B, D], subtracted from every row.
        scale: float32[B, D], by which rows are then divided.
        epoch: int32[B] the first of the best epochs, counted from 1.
        validation_accuracy: float32[B, epochs] balanced accuracy after each epoch.
    """

    params: Any
    mean: Float[Array, "B D"]
    scale: Float[Array, "B D"]
    epoch: Int[Array, " B"]
    validation_accuracy: Float[Array, "B E"]


class Mlp(nnx.Module):
    """Dense, GELU (exact), dense."""

    def __init__(self, dim: int, hidden: int, n_classes: int, *, rngs: nnx.Rngs):
        # All bits of float32, where a GPU would multiply ten bits.
        linear = functools.partial(nnx.Linear, precision=lax.Precision.HIGHEST, rngs=rngs)
        self.hidden = linear(dim, hidden)
        self.head = linear(hidden, n_classes)

    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N C"]:
        """Logits of standardised rows."""
        return self.head(jax.nn.gelu(self.hidden(x), approximate=False))


def train_mlps(
    x: Float[ArrayLike, "N D"],
    label_id: Int[ArrayLike, "*B N"],
    row_idx: Int[np.ndarray, "B n"],
    x_validation: Float[ArrayLike, "V D"],
    validation_label_id: Int[ArrayLike, "*B V"],
    validation_mask: Bool[np.ndarray, "B V"],
    *,
    n_classes: int,
    seed: int,
    first: int = 0,
    settings: MlpSettings = SETTINGS,
) -> TrainedMlps:
    """Train one network per problem with AdamW on the cross entropy, and keep its best epoch.

    Features are standardised by the training rows of each problem. Batches are drawn anew in each
    epoch; rows that do not fill the last batch are left out of that epoch.

    Args:
        x: float32[N, D] rows shared by all problems.
        label_id: int[N] in [0, C), shared by all problems, or int[B, N] of each problem.
        row_idx: int[B, n] training rows of each problem.
        x_validation: float32[V, D].
        validation_label_id: int[V], or int[B, V].
        validation_mask: bool[B, V] validation rows of each problem, which decide its best epoch.
        n_classes: C.
        seed: the random key of problem b is (seed, first + b).
        first: see ``seed``.
        settings: settings of network and training.

    Returns:
        ``TrainedMlps`` on the device.

    Raises:
        InputError: shapes differ.
        TypeError: labels or rows are not of integer dtype.
    """
    n, b = np.shape(x)[0], len(row_idx)
    for name, ids in (("label_id", label_id), ("row_idx", row_idx)):
        checks.check_integer(np.asarray(ids), name=name)
    n_validation = np.shape(x_validation)[0]
    shape = (n,) if np.ndim(label_id) == 1 else (b, n)
    checks.check_shape(np.shape(label_id), shape, name="label_id", why="to match x")
    checks.check_shape(
        np.shape(validation_mask), (b, n_validation), name="validation_mask", why="(B, V)"
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), first + jnp.arange(b))
    return _train(
        to_device(x),
        np.broadcast_to(np.asarray(label_id, np.int32), (b, n)),
        np.asarray(row_idx, np.int32),
        to_device(x_validation),
        np.broadcast_to(np.asarray(validation_label_id, np.int32), (b, n_validation)),
        np.asarray(validation_mask),
        keys,
        n_classes=n_classes,
        settings=settings,
    )


def predict_logits(trained: TrainedMlps, x: Float[ArrayLike, "T D"]) -> Float[np.ndarray, "B T C"]:
    """Logits of rows by the network of every problem, on the host."""
    return np.asarray(_predict(trained, to_device(x)))


def _network(dim: int, hidden: int, n_classes: int) -> Any:
    """Graph definition only, without parameters in memory."""
    return nnx.split(nnx.eval_shape(lambda: Mlp(dim, hidden, n_classes, rngs=nnx.Rngs(0))))[0]


@functools.partial(jax.jit, static_argnames=("n_classes", "settings"))
def _train(
    x: Array,
    labels: Array,
    row_idx: Array,
    x_validation: Array,
    validation_labels: Array,
    validation_mask: Array,
    keys: Array,
    *,
    n_classes: int,
    settings: MlpSettings,
) -> TrainedMlps:
    graph = _network(x.shape[1], settings.hidden, n_classes)
    optimizer = optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)
    n = row_idx.shape[1]
    batch = min(settings.batch_rows, n)
    means, scales = feature_statistics(x, row_idx)

    def train_one(
        label: Array,
        rows: Array,
        validation_label: Array,
        mask: Array,
        key: Array,
        mean: Array,
        scale: Array,
    ) -> TrainedMlps:
        start_key, key = jax.random.split(key)
        start = Mlp(x.shape[1], settings.hidden, n_classes, rngs=nnx.Rngs(start_key))
        params = nnx.to_pure_dict(nnx.split(start)[1])

        def loss(params: Any, idx: Array) -> Array:
            batch = (x[idx] - mean[None, :]) / scale[None, :]
            logits = nnx.merge(graph, params)(batch)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label[idx]).mean()

        def step(carry: tuple[Any, Any], idx: Array) -> tuple[tuple[Any, Any], None]:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, idx), state, params)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry: tuple[Any, ...], key: Array) -> tuple[tuple[Any, ...], Array]:
            params, state, best, best_score = carry
            order = jax.random.permutation(key, rows)[: n // batch * batch]
            (params, state), _ = lax.scan(step, (params, state), order.reshape(-1, batch))
            called = nnx.merge(graph, fold_statistics(params, mean, scale))(x_validation).argmax(1)
            score = balanced_accuracy(called, validation_label, mask, n_classes)
            better = score > best_score
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, best)
            return (params, state, best, jnp.maximum(score, best_score)), score

        carry = (params, optimizer.init(params), params, jnp.full((), -jnp.inf))
        carry, scores = lax.scan(epoch, carry, jax.random.split(key, settings.epochs))
        return TrainedMlps(carry[2], mean, scale, scores.argmax().astype(jnp.int32) + 1, scores)

    return jax.vmap(train_one)(
        labels, row_idx, validation_labels, validation_mask, keys, means, scales
    )


@jax.jit
def _predict(trained: TrainedMlps, x: Array) -> Array:
    _, dim, hidden = trained.params["hidden"]["kernel"].shape
    graph = _network(dim, hidden, trained.params["head"]["bias"].shape[1])
    folded = jax.vmap(fold_statistics)(trained.params, trained.mean, trained.scale)
    return lax.map(lambda own: nnx.merge(graph, own)(x), folded)


def fold_statistics(params: Any, mean: Array, scale: Array) -> Any:
    """Parameters for rows that are not standardised, so that no copy of all rows is needed."""
    kernel = params["hidden"]["kernel"] / scale[:, None]
    shift = jnp.einsum("d,dh->h", mean, kernel, precision=lax.Precision.HIGHEST)
    return params | {"hidden": {"kernel": kernel, "bias": params["hidden"]["bias"] - shift}}


def feature_statistics(x: Array, row_idx: Array) -> tuple[Array, Array]:
    """Mean and standard deviation (1 for constant features) of the rows of each problem."""
    share = jnp.zeros((len(row_idx), len(x))).at[jnp.arange(len(row_idx))[:, None], row_idx].add(1)
    share = share / row_idx.shape[1]
    center = x.mean(0, keepdims=True)
    deviations = x - center
    first, second = (
        jnp.einsum("bn,nd->bd", share, a, precision=lax.Precision.HIGHEST)
        for a in (deviations, deviations * deviations)
    )
    variance = second - first * first
    # The rounding error of a constant feature is not a spread.
    size = second + center * center
    constant = variance <= 1e-10 * size
    return first + center, jnp.sqrt(jnp.where(constant, 1.0, variance))


def balanced_accuracy(called: Array, label: Array, mask: Array, n_classes: int) -> Array:
    """Mean recall over the classes that have rows under the mask."""
    of_class = (label[None, :] == jnp.arange(n_classes)[:, None]) & mask[None, :]
    right = (of_class & (called == label)[None, :]).sum(1)
    rows = of_class.sum(1)
    recall = jnp.where(rows > 0, right / jnp.maximum(rows, 1), 0.0)
    return recall.sum() / jnp.maximum((rows > 0).sum(), 1)
