"""The program that trains networks: epochs, steps, and the choice of an epoch."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from pathorob_jax.core.typing import Array, Bool, Float, Int
from pathorob_jax.kernels.mil import network
from pathorob_jax.kernels.mil.bags import draw_rows
from pathorob_jax.kernels.mil.network import Dropout, Params, TileReadings
from pathorob_jax.kernels.mil.presets import MilSettings
from pathorob_jax.kernels.mil.survival import survival_loss

# The learning rate at the end of the cosine schedule.
LEAST_RATE = 1e-8
# Tiles of validation bags that are read at a time.
CHUNK_ROWS = 4096
# A byte decides what is dropped, so that one draw serves four units.
BYTE = 256


class Bags(NamedTuple):
    """Bags on the device.

    Attributes:
        x: float32[N, D] tiles.
        start: int32[B] first row of each bag.
        size: int32[B] tiles of each bag.
    """

    x: Float[Array, "N D"]
    start: Int[Array, " B"]
    size: Int[Array, " B"]


class Fits(NamedTuple):
    """What sets fits apart, with the fits as the first axis of each array.

    Attributes:
        seed: uint32[F].
        training: int32[F, n] training bags.
        label: int32[F, B] class, or bin of time.
        event: bool[F, B] whether the event was observed; empty [F, 0] without survival.
        weight: float32[F, B] weight of the loss of each bag.
        tile: int32[F, R] rows of the tiles of validation bags; R is 0 or a number of whole chunks.
        place: int32[F, R] which of the V validation bags the tile is of; V for padding.
        pairs: bool[F, K, V, V] whether score k of the first bag should be above that of the second.
    """

    seed: Int[Array, " F"]
    training: Int[Array, "F n"]
    label: Int[Array, "F B"]
    event: Bool[Array, "F B"]
    weight: Float[Array, "F B"]
    tile: Int[Array, "F R"]
    place: Int[Array, "F R"]
    pairs: Bool[Array, "F K V V"]


class Result(NamedTuple):
    """Networks that were kept; see ``fit.TrainedMil``."""

    params: Params
    epoch: Int[Array, " F"]
    loss: Float[Array, "F E"]
    score: Float[Array, "F E"]


def make_optimizer(settings: MilSettings, *, n_steps: int) -> optax.GradientTransformation:
    """The optimiser of a training of ``n_steps`` steps."""
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, n_steps, alpha=LEAST_RATE / rate)
    if settings.optimizer == "adamw":
        return optax.adamw(rate, weight_decay=settings.weight_decay)
    descent = optax.sgd(rate, momentum=settings.momentum)
    if settings.weight_decay:
        return optax.chain(optax.add_decayed_weights(settings.weight_decay), descent)
    return descent


def draw_dropout(key: Array, n_rows: int, settings: MilSettings) -> Dropout:
    """Factors of the units for the tiles of a bag; those of a tile depend on its place alone."""
    attention = settings.attention * (2 if settings.gated else 1)
    units = settings.projection + attention
    least = round(settings.dropout * BYTE)
    # Without the barrier XLA draws again wherever the factors are read, and for every byte.
    words = lax.optimization_barrier(jax.random.bits(key, (n_rows, -(-units // 4))))
    drawn = lax.bitcast_convert_type(words, jnp.uint8).reshape(n_rows, -1)[:, :units]
    factors = (drawn >= least) * jnp.float32(BYTE / (BYTE - least))
    return Dropout(factors[:, : settings.projection], factors[:, settings.projection :])


def measure_loss(
    params: Params,
    x: Float[Array, "b n D"],
    mask: Bool[Array, "b n"],
    label: Int[Array, " b"],
    event: Bool[Array, " b"] | None,
    weight: Float[Array, " b"],
    dropout: Dropout | None,
) -> Float[Array, ""]:
    """Sum over bags of weight times loss: cross entropy, or with ``event`` that of survival."""
    logits, _ = network.apply(params, x, mask, dropout)
    if event is None:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    else:
        losses = survival_loss(logits, label, event)
    return (weight * losses).sum()


def pool_readings(
    readings: TileReadings, place: Int[Array, " R"], n_bags: int
) -> Float[Array, "V C"]:
    """Logits of bags from the readings of their tiles."""
    most = jax.ops.segment_max(readings.score, place, n_bags + 1)
    weight = jnp.exp(readings.score - most[place])
    total = jax.ops.segment_sum(weight, place, n_bags + 1)
    sums = jax.ops.segment_sum(weight[:, None] * readings.evidence, place, n_bags + 1)
    return (sums / total[:, None])[:n_bags]


def score_order(scores: Float[Array, "V K"], pairs: Bool[Array, "K V V"]) -> Float[Array, ""]:
    """Share of pairs in the right order, ties half; mean over those k that have pairs."""
    ahead = scores.T[:, :, None] - scores.T[:, None, :]
    right = (ahead > 0) + 0.5 * (ahead == 0)
    total = pairs.sum((1, 2))
    shares = (right * pairs).sum((1, 2)) / jnp.maximum(total, 1)
    return jnp.where(total > 0, shares, 0).sum() / (total > 0).sum()


@functools.partial(jax.jit, static_argnames=("n_classes", "settings", "n_rows", "most"))
def train(
    bags: Bags, fits: Fits, *, n_classes: int, settings: MilSettings, n_rows: int, most: int
) -> Result:
    """Train all fits at once.

    Args:
        bags: bags on the device.
        fits: what sets fits apart.
        n_classes: number of logits.
        settings: of network and training.
        n_rows: tiles of a bag in a step, padding included.
        most: tiles of the largest bag.
    """
    return jax.vmap(
        lambda fit: _train_one(
            bags, fit, n_classes=n_classes, settings=settings, n_rows=n_rows, most=most
        )
    )(fits)


def _train_one(
    bags: Bags, fit: Fits, *, n_classes: int, settings: MilSettings, n_rows: int, most: int
) -> Result:
    (n,) = fit.training.shape
    batch = min(settings.batch_bags, n)
    n_steps = -(-n // batch)
    optimizer = make_optimizer(settings, n_steps=settings.epochs * n_steps)
    event = fit.event if fit.event.shape[0] else None
    chooses = settings.choose != "last"
    start_key, key = jax.random.split(jax.random.key(fit.seed))
    params = network.init_params(start_key, bags.x.shape[1], n_classes, settings)

    def gather(keys: Array, bag: Array) -> tuple[Array, Array]:
        draw = functools.partial(draw_rows, n_rows=n_rows, most=most)
        rows, mask = jax.vmap(draw)(keys, bags.start[bag], bags.size[bag])
        return bags.x[rows], mask

    # Where every step sees all tiles of all bags, they are gathered once.
    is_whole = n_steps == 1 and most <= n_rows
    whole = gather(jax.random.split(key, n), fit.training) if is_whole else None

    def step(carry: tuple[Any, Any], drawn: tuple[Array, Array, Array]) -> Any:
        params, state = carry
        bag, real, key = drawn
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, bag)
        row_keys, drop_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        x, mask = gather(row_keys, bag) if whole is None else whole
        dropout = None
        if settings.dropout:
            dropout = jax.vmap(lambda key: draw_dropout(key, n_rows, settings))(drop_keys)
        loss, gradient = jax.value_and_grad(measure_loss)(
            params,
            x,
            mask,
            fit.label[bag],
            None if event is None else event[bag],
            fit.weight[bag] * real / real.sum(),
            dropout,
        )
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss * real.sum()

    def validate(params: Params) -> Array:
        tiles = fit.tile.reshape(-1, min(CHUNK_ROWS, len(fit.tile)))
        readings = lax.map(lambda rows: network.read_tiles(params, bags.x[rows]), tiles)
        readings = TileReadings(*(a.reshape(len(fit.tile), *a.shape[2:]) for a in readings))
        logits = pool_readings(readings, fit.place, fit.pairs.shape[1])
        if event is None:
            return score_order(jax.nn.log_softmax(logits), fit.pairs)
        survival = jnp.exp(-jnp.cumsum(jax.nn.softplus(logits), axis=1))
        return score_order(-survival.sum(1, keepdims=True), fit.pairs)

    def epoch(carry: Any, number: Array) -> Any:
        params, state, best = carry
        order_key, step_key = jax.random.split(jax.random.fold_in(key, number))
        order = fit.training
        if not is_whole:
            order = jax.random.permutation(order_key, order)
        padding = n_steps * batch - n
        real = jnp.arange(n_steps * batch) < n
        order = jnp.concatenate([order, order[:padding]])
        drawn = (
            order.reshape(n_steps, batch),
            real.reshape(n_steps, batch).astype(jnp.float32),
            jnp.broadcast_to(step_key, (n_steps,)),
        )
        (params, state), losses = lax.scan(step, (params, state), drawn)
        loss, score = losses.sum() / n, jnp.float32(0)
        if chooses:
            score = validate(params)
            better = score >= best[2]
            now = (params, number + 1, score)
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)
        return (params, state, best), (loss, score)

    best: Any = (params, jnp.int32(0), jnp.float32(-jnp.inf)) if chooses else ()
    carry = (params, optimizer.init(params), best)
    carry, (losses, scores) = lax.scan(epoch, carry, jnp.arange(settings.epochs))
    if not chooses:
        return Result(carry[0], jnp.int32(settings.epochs), losses, scores[:0])
    return Result(carry[2][0], carry[2][1], losses, scores)
