"""How well slides of a test set are predicted, with intervals for other slides.

A slide, or a group of slides, is left out at a time (many: in blocks), and each measure is computed
again from the others; see ``kernels.bootstrap.draws``. Of several networks, a measure is the mean
over them.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pathorob_jax.core.typing import Bool, Float, Int
from pathorob_jax.kernels.bootstrap.draws import Jackknife
from pathorob_jax.kernels.bootstrap.intervals import POSITIVE, SHARE, UNBOUNDED, find_ends
from pathorob_jax.kernels.mil import survival
from pathorob_jax.metrics import apd
from pathorob_jax.metrics.concordance import concordance_index
from pathorob_jax.metrics.slide_prediction import macro_auc, score_classes

AUC, ACCURACY, CONCORDANCE, NLL = "auc", "balanced_accuracy", "concordance", "nll"
BOUNDS = {AUC: SHARE, ACCURACY: SHARE, CONCORDANCE: SHARE, NLL: POSITIVE}
Measure = Callable[[Bool[np.ndarray, " T"]], dict[str, float]]


class Score(NamedTuple):
    """Measures of one classifier on the slides of a test set.

    Attributes:
        values: measure -> value; NaN where undefined.
        replicates: measure -> float64[B] without each block of slides.
    """

    values: dict[str, float]
    replicates: dict[str, Float[np.ndarray, " B"]]


def measure_classes(
    logits: Float[np.ndarray, "K T L"], label_id: Int[np.ndarray, " T"], n_classes: int
) -> Measure:
    """Function (bool[T] slides that count) -> area under the ROC curve and balanced accuracy."""
    scores = score_classes(logits)
    called = scores.argmax(axis=-1)

    def measure(kept: Bool[np.ndarray, " T"]) -> dict[str, float]:
        label = label_id[kept]
        calls = apd.count_calls(
            called[:, kept], label, np.zeros_like(label), n_classes=n_classes, n_centers=1
        )
        area, accuracy = macro_auc(scores[:, kept], label), apd.balanced_accuracy(calls)
        return {AUC: float(area.mean()), ACCURACY: float(accuracy.mean())}

    return measure


def measure_survival(
    logits: Float[np.ndarray, "K T C"],
    time: Float[np.ndarray, " T"],
    event: Bool[np.ndarray, " T"],
    bin_id: Int[np.ndarray, " T"],
) -> Measure:
    """Function (bool[T] slides that count) -> Harrell's C and the negative log likelihood."""
    risks = survival.risk(logits)
    with jax.enable_x64(True):
        losses = np.asarray(
            survival.survival_loss(
                jnp.asarray(logits, np.float64), jnp.asarray(bin_id), jnp.asarray(event)
            )
        )  # [K, T]

    def measure(kept: Bool[np.ndarray, " T"]) -> dict[str, float]:
        found = [concordance_index(time[kept], event[kept], risk[kept]).value for risk in risks]
        return {CONCORDANCE: float(np.mean(found)), NLL: float(losses[:, kept].mean())}

    return measure


def score(measure: Measure, jackknife: Jackknife, group_id: Int[np.ndarray, " T"]) -> Score:
    """Measures of all slides, and without each block of the jackknife.

    Args:
        measure: function (slides that count) -> measures.
        jackknife: blocks of groups.
        group_id: int[T] group of each slide; those of a group are left out together.
    """
    block_of = jackknife.block_of[group_id]
    values = measure(np.ones(len(block_of), bool))
    without = [measure(block_of != block) for block in range(jackknife.n_blocks)]
    return Score(values, {name: np.array([w[name] for w in without]) for name in values})


def find_intervals(found: Score, jackknife: Jackknife) -> dict[str, list[float] | None]:
    """95 % interval of every measure; None where it is undefined, or nothing is drawn."""
    return {
        name: find_ends(value, jackknife.spread(value, found.replicates[name]), BOUNDS[name])
        for name, value in found.values.items()
    }


def compare(
    after: Score, before: Score, jackknife: Jackknife
) -> tuple[dict[str, float], dict[str, list[float] | None]]:
    """Differences after - before of every measure on the same slides, and their intervals."""
    values: Mapping[str, float] = {n: v - before.values[n] for n, v in after.values.items()}
    replicates = {n: r - before.replicates[n] for n, r in after.replicates.items()}
    ends = {
        name: find_ends(value, jackknife.spread(value, replicates[name]), UNBOUNDED)
        for name, value in values.items()
    }
    return dict(values), ends
