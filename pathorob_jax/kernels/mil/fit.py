"""Networks that read bags, trained for many fits on the same bags.

A fit is one network: of one split, repetition and seed. Bags, and draws, belong to all of them:
what a fit draws (its start, the order of bags, tiles of large bags, dropout) follows from its seed,
the epoch and the number of the bag alone. So a fit's result depends neither on the fits beside it
nor on devices; padding moves rounding only (logits by at most 1e-6 of their size in one step).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pathorob_jax.core.typing import Bool, Float, Int
from pathorob_jax.kernels.mil.bags import BagRows
from pathorob_jax.kernels.mil.network import Params
from pathorob_jax.kernels.mil.presets import MilSettings
from pathorob_jax.kernels.mil.survival import SurvivalTarget

BUDGET_BYTES = 1 << 30


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
    raise NotImplementedError


def predict_mil(
    trained: TrainedMil, bags: BagRows, subset: Int[np.ndarray, " T"]
) -> Float[np.ndarray, "F T C"]:
    """float32[F, T, C] logits of bags (all their tiles) by the network of every fit, on the host.

    Args:
        trained: networks.
        bags: tiles of B bags, of training or others.
        subset: int[T] numbers of the bags to read.
    """
    raise NotImplementedError


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
    raise NotImplementedError
