"""A small classifier whose hidden layer unlearns a domain (DANN, Ganin 2016); many at once.

A second head reads the domain out of the hidden layer, and the gradient that it sends back is
reversed, so that the layer learns what tells classes apart and not domains. With a strength of 0
the classifier learns as if there were no second head: its twin, which shows what the reversal did.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from pathorob_jax.core import checks
from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import Array, ArrayLike, Bool, Float, Int
from pathorob_jax.kernels.mlp import balanced_accuracy, feature_statistics, fold_statistics

Params = dict[str, dict[str, Array]]


class AdversarialSettings(NamedTuple):
    """Settings of network and training."""

    hidden: int = 256
    domain_hidden: int = 64
    dropout: float = 0.1
    epochs: int = 50
    batch_rows: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2


SETTINGS = AdversarialSettings()
# Strength of the reversal at the end of training.
LAMBDA_MAX = 1.0


class Losses(NamedTuple):
    """Cross entropies of a batch: of the class and of the domain."""

    label: Float[Array, ""]
    domain: Float[Array, ""]


class TrainedAdversarial(NamedTuple):
    """Networks at their best epochs.

    Attributes:
        params: float32[B, ...] by layer (``hidden``, ``label``, ``domain_hidden``, ``domain``).
        mean: float32[B, D], subtracted from every row.
        scale: float32[B, D], by which rows are then divided.
        epoch: int32[B] the first epoch of the least validation loss, counted from 1.
        validation_loss: float32[B, E] cross entropy of the class after each epoch.
        validation_accuracy: float32[B] balanced accuracy after the best epoch.
        domain_loss: float32[B, E] cross entropy of the domain, mean over the batches of an epoch.
    """

    params: Params
    mean: Float[Array, "B D"]
    scale: Float[Array, "B D"]
    epoch: Int[Array, " B"]
    validation_loss: Float[Array, "B E"]
    validation_accuracy: Float[Array, " B"]
    domain_loss: Float[Array, "B E"]


@jax.custom_vjp
def reverse_gradient(x: Float[Array, "..."], strength: Float[Array, ""]) -> Float[Array, "..."]:
    """``x`` itself; its gradient is multiplied by ``-strength``."""
    return x


def _forward(x: Array, strength: Array) -> tuple[Array, Array]:
    return x, strength


def _backward(strength: Array, gradient: Array) -> tuple[Array, Array]:
    return -strength * gradient, jnp.zeros_like(strength)


reverse_gradient.defvjp(_forward, _backward)


def reversal_strength(
    progress: Float[Array, ""], lambda_max: Float[Array, ""] | float
) -> Float[Array, ""]:
    """Ganin's schedule: 0 at the start (progress 0), near ``lambda_max`` at the end (1)."""
    return lambda_max * (2 / (1 + jnp.exp(-10 * progress)) - 1)


def init_params(
    key: Array, dim: int, n_classes: int, n_domains: int, settings: AdversarialSettings = SETTINGS
) -> Params:
    """Parameters before training: kernels as Flax draws them (LeCun normal), biases 0."""
    shapes = {
        "hidden": (dim, settings.hidden),
        "label": (settings.hidden, n_classes),
        "domain_hidden": (settings.hidden, settings.domain_hidden),
        "domain": (settings.domain_hidden, n_domains),
    }
    draw = jax.nn.initializers.lecun_normal()
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    return {
        name: {"kernel": draw(keys[name], shape), "bias": jnp.zeros(shape[1])}
        for name, shape in shapes.items()
    }


def measure_losses(
    params: Params,
    x: Float[Array, "N D"],
    label: Int[Array, " N"],
    domain: Int[Array, " N"],
    *,
    strength: Float[Array, ""] | float,
    dropout: Float[Array, "N H"] | float = 1.0,
) -> tuple[Float[Array, ""], Losses]:
    """The sum of both losses, whose gradient is that of a step, and each apart.

    Args:
        params: parameters of one network.
        x: float32[N, D] standardised rows.
        label: int[N] in [0, C).
        domain: int[N] in [0, M).
        strength: of the reversal.
        dropout: factors of the hidden units, 0 where one is dropped.
    """
    hidden = jax.nn.relu(_dense(params["hidden"], x)) * dropout
    reversed_ = reverse_gradient(hidden, jnp.asarray(strength, jnp.float32))
    inner = jax.nn.relu(_dense(params["domain_hidden"], reversed_))
    entropy = optax.softmax_cross_entropy_with_integer_labels
    losses = Losses(
        entropy(_dense(params["label"], hidden), label).mean(),
        entropy(_dense(params["domain"], inner), domain).mean(),
    )
    return losses.label + losses.domain, losses


def make_optimizer(settings: AdversarialSettings = SETTINGS) -> optax.GradientTransformation:
    """AdamW, with weight decay on all parameters."""
    return optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)


def train_adversarial(
    x: Float[ArrayLike, "N D"],
    label_id: Int[ArrayLike, " N"],
    domain_id: Int[ArrayLike, " N"],
    row_idx: Int[np.ndarray, "B n"],
    x_validation: Float[ArrayLike, "V D"],
    validation_label_id: Int[ArrayLike, " V"],
    validation_mask: Bool[np.ndarray, "B V"],
    *,
    n_classes: int,
    n_domains: int,
    seed: int,
    first: int = 0,
    lambda_max: float = LAMBDA_MAX,
    settings: AdversarialSettings = SETTINGS,
) -> TrainedAdversarial:
    """Train one network per problem, and keep the epoch of its least validation loss.

    Features are standardised by the training rows of each problem. Batches are drawn anew in each
    epoch; rows that do not fill the last batch are left out of that epoch. Starts, batches and
    dropout are those of the seed, whatever ``lambda_max``.

    Args:
        x: float32[N, D] rows shared by all problems.
        label_id: int[N] in [0, C).
        domain_id: int[N] in [0, M).
        row_idx: int[B, n] training rows of each problem.
        x_validation: float32[V, D].
        validation_label_id: int[V].
        validation_mask: bool[B, V] validation rows of each problem, which decide its best epoch.
        n_classes: C.
        n_domains: M.
        seed: the random key of problem b is (seed, first + b).
        first: see ``seed``.
        lambda_max: strength of the reversal at the end of training; 0: none.
        settings: settings of network and training.

    Returns:
        ``TrainedAdversarial`` on the device.

    Raises:
        InputError: shapes differ.
        TypeError: labels, domains or rows are not of integer dtype.
    """
    n, b = np.shape(x)[0], len(row_idx)
    ids = {"label_id": label_id, "domain_id": domain_id}
    for name, values in (*ids.items(), ("row_idx", row_idx)):
        checks.check_integer(np.asarray(values), name=name)
    for name, values in ids.items():
        checks.check_shape(np.shape(values), (n,), name=name, why="to match x")
    checks.check_shape(
        np.shape(validation_mask),
        (b, np.shape(x_validation)[0]),
        name="validation_mask",
        why="(B, V)",
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), first + jnp.arange(b))
    return _train(
        to_device(x),
        np.asarray(label_id, np.int32),
        np.asarray(domain_id, np.int32),
        np.asarray(row_idx, np.int32),
        to_device(x_validation),
        np.asarray(validation_label_id, np.int32),
        np.asarray(validation_mask),
        keys,
        np.float32(lambda_max),
        n_classes=n_classes,
        n_domains=n_domains,
        settings=settings,
    )


def predict_logits(
    trained: TrainedAdversarial, x: Float[ArrayLike, "T D"]
) -> Float[np.ndarray, "B T C"]:
    """Logits of the classes of rows by the network of every problem, on the host."""
    return np.asarray(_predict(trained, to_device(x)))


@functools.partial(jax.jit, static_argnames=("n_classes", "n_domains", "settings"))
def _train(
    x: Array,
    label: Array,
    domain: Array,
    row_idx: Array,
    x_validation: Array,
    validation_label: Array,
    validation_mask: Array,
    keys: Array,
    lambda_max: Array,
    *,
    n_classes: int,
    n_domains: int,
    settings: AdversarialSettings,
) -> TrainedAdversarial:
    optimizer = make_optimizer(settings)
    n = row_idx.shape[1]
    batch = min(settings.batch_rows, n)
    n_batches = n // batch
    n_steps = settings.epochs * n_batches
    keep = 1 - settings.dropout
    means, scales = feature_statistics(x, row_idx)

    def train_one(
        rows: Array, mask: Array, key: Array, mean: Array, scale: Array
    ) -> TrainedAdversarial:
        start_key, key = jax.random.split(key)
        params = init_params(start_key, x.shape[1], n_classes, n_domains, settings)

        def step(carry: tuple[Any, Any], drawn: tuple[Array, Array, Array]) -> Any:
            params, state = carry
            number, idx, drop_key = drawn
            dropout = jax.random.bernoulli(drop_key, keep, (batch, settings.hidden)) / keep
            gradient, losses = jax.grad(measure_losses, has_aux=True)(
                params,
                (x[idx] - mean[None, :]) / scale[None, :],
                label[idx],
                domain[idx],
                strength=reversal_strength(number / n_steps, lambda_max),
                dropout=dropout,
            )
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), losses.domain

        def epoch(carry: tuple[Any, ...], drawn: tuple[Array, Array]) -> Any:
            params, state, best, best_loss, best_score = carry
            number, key = drawn
            order_key, drop_key = jax.random.split(key)
            order = jax.random.permutation(order_key, rows)[: n_batches * batch]
            steps = (
                number * n_batches + jnp.arange(n_batches),
                order.reshape(-1, batch),
                jax.random.split(drop_key, n_batches),
            )
            (params, state), domain_losses = lax.scan(step, (params, state), steps)
            logits = _logits(fold_statistics(params, mean, scale), x_validation)
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, validation_label)
            loss = jnp.where(mask, entropy, 0).sum() / jnp.maximum(mask.sum(), 1)
            score = balanced_accuracy(logits.argmax(1), validation_label, mask, n_classes)
            better = loss < best_loss
            kept = jax.tree.map(
                lambda new, old: jnp.where(better, new, old),
                (params, loss, score),
                (best, best_loss, best_score),
            )
            return (params, state, *kept), (loss, domain_losses.mean())

        carry = (params, optimizer.init(params), params, jnp.float32(jnp.inf), jnp.float32(0))
        epochs = (jnp.arange(settings.epochs), jax.random.split(key, settings.epochs))
        (_, _, best, _, score), (losses, domain_losses) = lax.scan(epoch, carry, epochs)
        chosen = losses.argmin().astype(jnp.int32) + 1
        return TrainedAdversarial(best, mean, scale, chosen, losses, score, domain_losses)

    return jax.vmap(train_one)(row_idx, validation_mask, keys, means, scales)


@jax.jit
def _predict(trained: TrainedAdversarial, x: Array) -> Array:
    folded = jax.vmap(fold_statistics)(trained.params, trained.mean, trained.scale)
    return lax.map(lambda params: _logits(params, x), folded)


def _logits(params: Params, x: Array) -> Array:
    return _dense(params["label"], jax.nn.relu(_dense(params["hidden"], x)))


def _dense(layer: dict[str, Array], x: Array) -> Array:
    product = lax.dot(x, layer["kernel"], precision=lax.Precision.HIGHEST)
    return product + layer["bias"][None, :]
