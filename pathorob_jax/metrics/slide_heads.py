"""Classifiers of bags on the splits of one repetition: mean pooling, and attention networks.

Each is trained on the training bags of each split, tuned on its validation bags, and gives logits
for test bags. All use the same bags, which shows what attention adds to the mean of a bag.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.typing import Bool, Float, Int
from pathorob_jax.kernels.logistic import fit as logistic
from pathorob_jax.kernels.logistic.fit import LogisticFit, Stopping
from pathorob_jax.kernels.mil import fit as mil
from pathorob_jax.kernels.mil import presets
from pathorob_jax.kernels.mil.bags import BagRows, bag_sizes, rows_of
from pathorob_jax.kernels.mil.presets import MilSettings
from pathorob_jax.kernels.mil.survival import SurvivalTarget
from pathorob_jax.metrics.apd import balanced_accuracy, count_calls
from pathorob_jax.metrics.heads import LIMITS
from pathorob_jax.metrics.slide_prediction import score_classes

MEAN = "mean"
GATED, XMIL = "gated", "xmil"


class BagSplits(NamedTuple):
    """Bags of one repetition. The S splits select from one common set.

    Attributes:
        bags: bags of training, validation and of the tests in domain.
        target: int[B] their classes, in [0, C), or what is known of their survival; then C is the
            number of bins, and only networks can be trained.
        training: int[S, n] training bags of each split.
        validation: bool[S, B] validation bags of each split; without any, ``mean`` takes the first
            C of its grid, and networks are those of the last epoch.
        tests: (bags, int[T] which of them) of each test set.
        n_classes: C.
        seed: seed of the repetition.
    """

    bags: BagRows
    target: Int[np.ndarray, " B"] | SurvivalTarget
    training: Int[np.ndarray, "S n"]
    validation: Bool[np.ndarray, "S B"]
    tests: Sequence[tuple[BagRows, Int[np.ndarray, " T"]]]
    n_classes: int
    seed: int


class TileReadings(NamedTuple):
    """What a classifier of bags sees in single tiles.

    Attributes:
        attention: float64[R] weight of each tile, of sum 1 in each bag.
        scores: float64[R, C] log odds of each class for a bag that held this tile alone; of
            survival, logits of the hazards.
    """

    attention: Float[np.ndarray, " R"]
    scores: Float[np.ndarray, "R C"]


class BagCalls(NamedTuple):
    """Logits of a classifier of bags; K networks of different starts, 1 where nothing is random.

    Attributes:
        logits: float[S, K, T, L] of each test set; L as in ``score_classes``.
        chosen: float[S, K] setting chosen on the validation bags: C, or the epoch.
        read_tiles: function (split, bags, numbers of bags) -> what the first classifier of the
            split sees in their tiles, bag after bag (``kernels.mil.bags.rows_of``).
    """

    logits: list[Float[np.ndarray, "S K T L"]]
    chosen: Float[np.ndarray, "S K"]
    read_tiles: Callable[[int, BagRows, Int[np.ndarray, " T"]], TileReadings]


BagHead = Callable[[BagSplits], BagCalls]


def pool_means(bags: BagRows) -> Float[np.ndarray, "B D"]:
    """float32[B, D] mean of the rows of every bag, summed in float64."""
    starts = np.asarray(bags.starts)
    x, sizes = np.asarray(bags.x), np.diff(starts)
    return np.stack(
        [x[a : a + n].mean(axis=0, dtype=np.float64) for a, n in zip(starts, sizes, strict=False)]
    ).astype(np.float32)


def call_mean(
    splits: BagSplits, *, c_grid: Sequence[float], stopping: Stopping, budget_bytes: int
) -> BagCalls:
    """L2 logistic regression on the means of bags.

    C is chosen from ``c_grid``: the best balanced accuracy on the validation bags; of equal ones,
    which are frequent as these bags are few, the lowest log loss; then the first.

    Args:
        splits: bags of a repetition.
        c_grid: values of C.
        stopping: ``reference`` or ``converged``, as in ``fit_logistic``.
        budget_bytes: memory for the problems of a batch.
    """
    if isinstance(splits.target, SurvivalTarget):
        raise UsageError(f"presets: {MEAN} predicts classes alone; leave it out for survival.")
    means, label = pool_means(splits.bags), splits.target
    n_splits, n_grid = len(splits.training), len(c_grid)
    weights = np.zeros((n_splits, len(means)), np.float32)
    np.put_along_axis(weights, splits.training, 1, axis=1)
    max_iter, tol = LIMITS[stopping]
    fit = logistic.fit_logistic(
        means,
        label,
        n_classes=splits.n_classes,
        c=np.tile(np.asarray(c_grid, np.float64), n_splits),
        row_weights=np.repeat(weights, n_grid, axis=0),
        max_iter=max_iter,
        tol=tol,
        stopping=stopping,
        budget_bytes=budget_bytes,
    )
    scores = score_classes(logistic.predict_logits(means, fit))
    scores = scores.reshape(n_splits, n_grid, *scores.shape[1:])
    best = np.array(
        [
            _best(scores[s][:, mask], label[mask], splits.n_classes) if mask.any() else 0
            for s, mask in enumerate(splits.validation)
        ]
    )
    chosen = LogisticFit(*(a[np.arange(n_splits) * n_grid + best] for a in fit))
    logits = [
        logistic.predict_logits(pool_means(bags)[subset], chosen)[:, None]
        for bags, subset in splits.tests
    ]

    def read_tiles(split: int, bags: BagRows, subset: np.ndarray) -> TileReadings:
        """All tiles of a bag count alike; the classifier of means is the one of patches."""
        sizes = bag_sizes(bags)[subset]
        one = LogisticFit(*(a[split : split + 1] for a in chosen))
        tiles = np.asarray(bags.x)[rows_of(bags, subset)]
        scores = score_classes(logistic.predict_logits(tiles, one)[0])
        return TileReadings(np.repeat(1 / sizes, sizes), scores)

    return BagCalls(logits, np.asarray(c_grid, np.float64)[best][:, None], read_tiles)


def _best(
    scores: Float[np.ndarray, "G V C"], label_id: Int[np.ndarray, " V"], n_classes: int
) -> int:
    """The setting of the best balanced accuracy; of equal ones that of the lowest log loss."""
    calls = count_calls(
        scores.argmax(axis=2),
        label_id,
        np.zeros_like(label_id),
        n_classes=n_classes,
        n_centers=1,
    )
    # The log odds of the true class are those of its probability.
    odds = np.take_along_axis(scores, label_id[None, :, None], axis=2)[..., 0]
    loss = np.logaddexp(0, -odds).mean(axis=1)
    return int(np.lexsort((loss, -balanced_accuracy(calls)))[0])


def call_network(splits: BagSplits, *, settings: MilSettings, seeds: int) -> BagCalls:
    """Attention networks, ``seeds`` of different starts for each split.

    The networks of one number start alike, and draw alike, in all splits of a repetition, so that
    splits differ by their bags.

    Args:
        splits: bags of a repetition.
        settings: of the networks and their training.
        seeds: K.
    """
    n_splits = len(splits.training)
    state = np.random.SeedSequence(splits.seed).generate_state(seeds)
    trained = mil.train_mil(
        splits.bags,
        splits.target,
        np.repeat(splits.training, seeds, axis=0),
        np.repeat(splits.validation, seeds, axis=0) if splits.validation.any() else None,
        n_classes=splits.n_classes,
        settings=settings,
        seeds=np.tile(state, n_splits),
    )
    logits = [mil.predict_mil(trained, bags, subset) for bags, subset in splits.tests]

    def read_tiles(split: int, bags: BagRows, subset: np.ndarray) -> TileReadings:
        one = jax.tree.map(lambda a: a[split * seeds : split * seeds + 1], trained)
        tiles = mil.read_tiles(one, np.asarray(bags.x), rows_of(bags, subset))
        evidence = np.asarray(tiles.evidence[0], np.float64)
        attention = np.asarray(mil.attend(one, bags, subset)[0], np.float64)
        is_survival = isinstance(splits.target, SurvivalTarget)
        return TileReadings(attention, evidence if is_survival else score_classes(evidence))

    return BagCalls(
        [a.reshape(n_splits, seeds, *a.shape[1:]) for a in logits],
        np.asarray(trained.epoch, np.float64).reshape(n_splits, seeds),
        read_tiles,
    )


PRESETS: tuple[str, ...] = (MEAN, *presets.PRESETS)


def make_head(
    name: str,
    *,
    epochs: int | None,
    seeds: int,
    c_grid: Sequence[float],
    stopping: Stopping,
    budget_bytes: int,
) -> tuple[BagHead, dict[str, Any]]:
    """A classifier of bags, and its settings as plain values.

    Args:
        name: of ``PRESETS``.
        epochs: of a network; None: its preset's own.
        seeds: number K of networks of different starts.
        c_grid: values of C of ``mean``.
        stopping: stopping rule of ``mean``.
        budget_bytes: memory for its problems.

    Raises:
        UsageError: there is no such preset.
    """
    checks.check_known(name, PRESETS, what="presets")
    if name == MEAN:
        return (
            lambda splits: call_mean(
                splits, c_grid=c_grid, stopping=stopping, budget_bytes=budget_bytes
            ),
            {"c_grid": list(c_grid), "stopping": stopping},
        )
    settings = choose_settings(name, epochs)
    return (
        lambda splits: call_network(splits, settings=settings, seeds=seeds),
        {**settings._asdict(), "seeds": seeds},
    )


def choose_settings(name: str, epochs: int | None) -> MilSettings:
    """Settings of the networks of a preset, with another number of epochs unless it is None."""
    settings = presets.PRESETS[name]
    return settings if epochs is None else settings._replace(epochs=epochs)
