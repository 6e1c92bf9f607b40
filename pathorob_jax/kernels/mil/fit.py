"""Networks that read bags, trained for many fits on the same bags.

A fit is one network: of one split, repetition and seed. Bags, and draws, belong to all of them:
what a fit draws (its start, the order of bags, tiles of large bags, dropout) follows from its seed,
the epoch and the number of the bag alone. So a fit's result depends neither on the fits beside it
nor on devices; padding moves rounding only (logits by at most 1e-6 of their size in one step).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import Array, ArrayLike, Bool, Float, Int
from pathorob_jax.kernels.mil import network
from pathorob_jax.kernels.mil import training as program
from pathorob_jax.kernels.mil.bags import BagRows, bag_sizes, check_bags, rows_of
from pathorob_jax.kernels.mil.network import Params, TileReadings
from pathorob_jax.kernels.mil.presets import MilSettings
from pathorob_jax.kernels.mil.survival import SurvivalTarget, check_times, comparable_pairs

BUDGET_BYTES = 1 << 30
# Tiles that are read at a time.
READ_ROWS = 4096


class TrainedMil(NamedTuple):
    """Networks of F fits, on the host.

    Attributes:
        params: float32[F, ...] by layer (``projection``, ``attention``, ``score``, ``head``).
        epoch: int32[F] the epoch whose network was kept, counted from 1.
        loss: float32[F, E] mean loss of the training bags in each epoch, as they were passed.
        validation_score: float32[F, E] area under the ROC curve (mean of the classes, each against
            the rest), or concordance for survival, of the validation bags after each epoch; NaN
            where undefined. [F, 0] if the settings choose the last epoch, which needs none.
    """

    params: Params
    epoch: Int[np.ndarray, " F"]
    loss: Float[np.ndarray, "F E"]
    validation_score: Float[np.ndarray, "F E"]


def train_mil(
    bags: BagRows,
    target: Int[np.ndarray, "*F B"] | SurvivalTarget,
    training: Int[np.ndarray, "F n"],
    validation: Bool[np.ndarray, "F B"] | None = None,
    *,
    n_classes: int,
    settings: MilSettings,
    seeds: Int[np.ndarray, " F"],
    budget_bytes: int = BUDGET_BYTES,
    tell: Callable[[int], None] = lambda n_fits: None,
) -> TrainedMil:
    """Train one network per fit.

    The loss of a step is the sum over its bags of weight times cross entropy (or the negative log
    likelihood of survival), divided by the number of bags; weights are n / (C n_class) if the
    settings balance classes, which also acts at one bag a step, else 1. Every bag is passed once an
    epoch, in an order drawn anew; the last step of an epoch may have fewer bags.

    Args:
        bags: tiles of B bags; put them on the device beforehand if several calls share them.
        target: int[B] class of each bag in [0, C), or int[F, B] of each bag for each fit; or
            outcomes, and then logits are those of hazards and ``n_classes`` is the number of bins.
        training: int[F, n] numbers of the training bags of each fit.
        validation: bool[F, B] bags that choose the epoch; None only if the settings choose the
            last one.
        n_classes: C, at least 2 (bins: at least 1).
        settings: of network and training; ``presets.PRESETS`` has those with a name.
        seeds: int[F] seed of each fit, in [0, 2**32).
        budget_bytes: memory on the device for the fits that are trained at once, the bags not
            counted; on CPU, where that is fastest, it is one at a time.
        tell: called with the number of fits just done.

    Raises:
        InputError: shapes differ, bags are empty, a number is out of range, a fit has training
            bags of one class only, no observed event in training, or no validation bags of two
            classes although they choose the epoch.
        TypeError: numbers are not of integer dtype.
    """
    check_bags(bags)
    training, seeds = np.asarray(training), np.asarray(seeds)
    fits = _gather_fits(bags, target, training, validation, seeds, n_classes, settings)
    sizes = bag_sizes(bags)
    n_rows = min(settings.bag_rows, int(sizes.max()))
    on_device = program.Bags(
        to_device(bags.x),
        to_device(bags.starts[:-1], dtype=np.int32),
        to_device(sizes, dtype=np.int32),
    )
    at_once = _count_at_once(fits, on_device.x.shape[1], n_classes, settings, n_rows, budget_bytes)
    results = []
    for start in range(0, len(training), at_once):
        # The last group is filled up, since every size would be compiled.
        idx = np.minimum(np.arange(start, start + at_once), len(training) - 1)
        n_new = min(at_once, len(training) - start)
        done = program.train(
            on_device,
            program.Fits(*(a[idx] for a in fits)),
            n_classes=n_classes,
            settings=settings,
            n_rows=n_rows,
            most=int(sizes.max()),
        )
        results.append(jax.tree.map(lambda a, n=n_new: np.asarray(a)[:n], done))
        tell(n_new)
    return TrainedMil(*jax.tree.map(lambda *parts: np.concatenate(parts), *results))


def predict_mil(
    trained: TrainedMil, bags: BagRows, subset: Int[np.ndarray, " T"]
) -> Float[np.ndarray, "F T C"]:
    """float32[F, T, C] logits of bags (all their tiles) by the network of every fit, on the host.

    Args:
        trained: networks.
        bags: tiles of B bags, of training or others.
        subset: int[T] numbers of the bags to read.
    """
    readings, bounds = _read(trained, bags, subset)
    weights = _soft_max(np.asarray(readings.score), bounds)
    sums = np.add.reduceat(weights[:, :, None] * np.asarray(readings.evidence), bounds[:-1], axis=1)
    return sums.astype(np.float32)


def attend(
    trained: TrainedMil, bags: BagRows, subset: Int[np.ndarray, " T"]
) -> Float[np.ndarray, "F R"]:
    """float32[F, R] attention of the tiles of bags, of sum 1 in each bag, on the host.

    Tiles lie bag after bag: ``bags.rows_of(bags, subset)`` are their rows.

    Args:
        trained: networks.
        bags: tiles of B bags.
        subset: int[T] numbers of the bags to read.
    """
    readings, bounds = _read(trained, bags, subset)
    return _soft_max(np.asarray(readings.score), bounds).astype(np.float32)


def read_tiles(
    trained: TrainedMil, x: Float[ArrayLike, "R D"], rows: Int[np.ndarray, " n"]
) -> TileReadings:
    """Attention before the softmax and evidence of single tiles by every fit, on the host.

    Args:
        trained: networks.
        x: float32[R, D] tiles.
        rows: int[n] those to read.

    Returns:
        score float32[F, n] and evidence float32[F, n, C].
    """
    n_fits, n = len(trained.epoch), len(rows)
    padded = np.pad(rows, (0, -n % min(READ_ROWS, max(n, 1))), mode="edge")
    x, chunks = to_device(x), padded.reshape(-1, min(READ_ROWS, max(n, 1)))
    out = []
    for fit in range(n_fits):
        params = jax.tree.map(lambda a, fit=fit: to_device(a[fit]), trained.params)
        parts = [_read_chunk(params, x, chunk.astype(np.int32)) for chunk in chunks]
        out.append(jax.tree.map(lambda *a: np.concatenate([np.asarray(b) for b in a])[:n], *parts))
    return jax.tree.map(lambda *values: np.stack(values), *out)


@jax.jit
def _read_chunk(params: Params, x: Array, rows: Array) -> TileReadings:
    return network.read_tiles(params, x[rows])


def _read(
    trained: TrainedMil, bags: BagRows, subset: Int[np.ndarray, " T"]
) -> tuple[TileReadings, Int[np.ndarray, " T+1"]]:
    """Readings of the tiles of bags, and where each bag begins among them."""
    check_bags(bags)
    subset = np.asarray(subset)
    _check_numbers(subset, len(bags.starts) - 1, name="subset")
    bounds = np.concatenate([[0], np.cumsum(bag_sizes(bags)[subset])])
    return read_tiles(trained, bags.x, rows_of(bags, subset)), bounds


def _soft_max(
    score: Float[np.ndarray, "F R"], bounds: Int[np.ndarray, " T+1"]
) -> Float[np.ndarray, "F R"]:
    """float64[F, R] softmax of the scores of each bag."""
    score, sizes = np.asarray(score, np.float64), np.diff(bounds)
    most = np.maximum.reduceat(score, bounds[:-1], axis=1)
    weights = np.exp(score - np.repeat(most, sizes, axis=1))
    total = np.add.reduceat(weights, bounds[:-1], axis=1)
    return weights / np.repeat(total, sizes, axis=1)


def _gather_fits(
    bags: BagRows,
    target: Int[np.ndarray, "*F B"] | SurvivalTarget,
    training: Int[np.ndarray, "F n"],
    validation: Bool[np.ndarray, "F B"] | None,
    seeds: Int[np.ndarray, " F"],
    n_classes: int,
    settings: MilSettings,
) -> program.Fits:
    """What sets fits apart, checked, as arrays on the host."""
    n_bags = len(bags.starts) - 1
    checks.check_shape(training.shape, (None, None), name="training", why="(fits, bags)")
    n_fits, n = training.shape
    if not n_fits or not n:
        raise InputError(f"training: expected fits with training bags, found shape {(n_fits, n)}.")
    _check_numbers(training, n_bags, name="training")
    checks.check_shape(seeds.shape, (n_fits,), name="seeds", why="(one per fit)")
    checks.check_integer(seeds, name="seeds")
    if seeds.min() < 0 or seeds.max() >= 2**32:
        raise InputError(f"seeds: expected 0 to 2**32 - 1, found {seeds.min()} to {seeds.max()}.")
    survives = isinstance(target, SurvivalTarget)
    label = np.asarray(target.bin_id if isinstance(target, SurvivalTarget) else target)
    shape = (n_bags,) if label.ndim == 1 else (n_fits, n_bags)
    checks.check_shape(label.shape, shape, name="target", why="to match bags and fits")
    _check_numbers(label, n_classes, name="target")
    label = np.broadcast_to(label, (n_fits, n_bags)).astype(np.int32)
    event, weight = np.zeros((n_fits, 0), bool), np.ones((n_fits, n_bags), np.float32)
    own = np.take_along_axis(label, training, axis=1)
    if isinstance(target, SurvivalTarget):
        _, observed = check_times(target.time, target.event)
        checks.check_shape(observed.shape, (n_bags,), name="event", why="(one per bag)")
        event = np.tile(observed, (n_fits, 1))
        _refuse(~observed[training].any(1), f"no observed event among {n} training bags")
    else:
        _refuse(own.min(1) == own.max(1), f"one class only among {n} training bags")
    if settings.balanced and not survives:
        counts = (own[:, :, None] == np.arange(n_classes)).sum(1)
        per_class = n / np.maximum(counts, 1) / (counts > 0).sum(1, keepdims=True)
        weight = np.take_along_axis(per_class, label, axis=1).astype(np.float32)
    tile, place = np.zeros((n_fits, 0), np.int32), np.zeros((n_fits, 0), np.int32)
    pairs = np.zeros((n_fits, 1, 0, 0), bool)
    if settings.choose != "last":
        if validation is None:
            raise InputError("validation: expected bags that choose the epoch, found None.")
        validation = np.asarray(validation, bool)
        checks.check_shape(validation.shape, (n_fits, n_bags), name="validation", why="(F, B)")
        tile, place, pairs = _gather_validation(bags, target, label, validation, n_classes)
    seeds = seeds.astype(np.uint32)
    training = training.astype(np.int32)
    arrays: Any = (seeds, training, label, event, weight, tile, place, pairs)
    return program.Fits(*arrays)


def _gather_validation(
    bags: BagRows,
    target: Int[np.ndarray, "*F B"] | SurvivalTarget,
    label: Int[np.ndarray, "F B"],
    validation: Bool[np.ndarray, "F B"],
    n_classes: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tiles of validation bags, the bags that they are of, and the pairs that should be ordered."""
    chosen = [np.flatnonzero(mask) for mask in validation]
    n_most = max(len(c) for c in chosen)
    rows = [rows_of(bags, c) for c in chosen]
    n_rows = max(len(r) for r in rows)
    n_rows += -n_rows % min(program.CHUNK_ROWS, max(n_rows, 1))
    shape = (len(chosen), n_rows)
    tile, place = np.zeros(shape, np.int32), np.full(shape, n_most, np.int32)
    n_scores = 1 if isinstance(target, SurvivalTarget) else n_classes
    pairs = np.zeros((len(chosen), n_scores, n_most, n_most), bool)
    for fit, own in enumerate(chosen):
        tile[fit, : len(rows[fit])] = rows[fit]
        place[fit, : len(rows[fit])] = np.repeat(np.arange(len(own)), bag_sizes(bags)[own])
        if isinstance(target, SurvivalTarget):
            time, event = check_times(target.time, target.event)
            ordered = comparable_pairs(time[own], event[own])[None]
        else:
            of_class = label[fit, own] == np.arange(n_classes)[:, None]
            ordered = of_class[:, :, None] & ~of_class[:, None]
        pairs[fit, :, : len(own), : len(own)] = ordered
    _refuse(pairs.sum((1, 2, 3)) == 0, "no two validation bags that the score could order")
    return tile, place, pairs


def _count_at_once(
    fits: program.Fits,
    dim: int,
    n_classes: int,
    settings: MilSettings,
    n_rows: int,
    budget_bytes: int,
) -> int:
    """Fits that are trained at once.

    On CPU it is one: its products fill the cores, and its weights stay in their caches.
    """
    if jax.default_backend() == "cpu":
        return 1
    units = settings.attention * (2 if settings.gated else 1)
    n_params = settings.projection * (dim + units + n_classes)
    n_tiles = min(settings.batch_bags, fits.training.shape[1]) * n_rows
    n_tiles = max(n_tiles, min(program.CHUNK_ROWS, fits.tile.shape[1]))
    # Parameters, gradient, two moments, the best ones and an update; tiles, activations of both
    # layers, their factors of dropout and their gradients.
    values = 6 * n_params + n_tiles * (dim + 4 * (settings.projection + units))
    n_fits = len(fits.seed)
    n_groups = -(-n_fits // max(1, min(n_fits, budget_bytes // (4 * values))))
    return -(-n_fits // n_groups)


def _check_numbers(values: np.ndarray, n: int, *, name: str) -> None:
    """Raise unless values are integers in [0, n)."""
    checks.check_integer(values, name=name)
    if values.size and (values.min() < 0 or values.max() >= n):
        raise InputError(
            f"{name}: expected numbers in [0, {n}), found {values.min()} to {values.max()}."
        )


def _refuse(bad: Bool[np.ndarray, " F"], why: str) -> None:
    """Raise InputError if a fit is bad, and name the first."""
    if bad.any():
        raise InputError(f"fit {np.flatnonzero(bad)[0]}: {why}; leave such fits out.")
