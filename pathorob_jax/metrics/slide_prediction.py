"""Numbers of slide-level prediction: from the scores of bags to areas, accuracies and errors.

A classifier gives every bag (the rows of a slide) one score per class. The area under the ROC curve
is one class against the rest, averaged over classes, and never flipped: below 1/2 it says that the
classifier ranks slides the wrong way round.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from pathorob_jax.core.typing import ArrayLike, Float, Int
from pathorob_jax.metrics import apd


class Drops(NamedTuple):
    """The loss of a measure over the splits of a schedule.

    Attributes:
        drop: mean over repetitions of [mean over later splits / first split] - 1.
        nipd: integral of the loss over V in [0, 1], as a share of the room above chance.
        ci95: interval of ``drop`` for other slides of the same centres; None: undefined.
    """

    drop: float
    nipd: float
    ci95: list[float] | None


def score_classes(logits: Float[ArrayLike, "... T L"]) -> Float[np.ndarray, "... T C"]:
    """Log odds of every class against all others.

    They rank bags as the probabilities of a softmax do, and do not saturate.

    Args:
        logits: float[..., T, L] of T bags; L = 1: the logit of class 1 of two, otherwise L = C of a
            softmax.

    Returns:
        float64[..., T, C].
    """
    z = np.asarray(logits, np.float64)
    if z.shape[-1] == 1:
        return np.concatenate([-z, z], axis=-1)
    rest = [special.logsumexp(np.delete(z, c, axis=-1), axis=-1) for c in range(z.shape[-1])]
    return z - np.stack(rest, axis=-1)


def macro_auc(
    scores: Float[ArrayLike, "... T C"], label_id: Int[ArrayLike, " T"]
) -> Float[np.ndarray, "..."]:
    """Area under the ROC curve of one class against the rest, mean over classes; not flipped.

    Args:
        scores: float[..., T, C] larger where a bag is more likely of a class; ties count half.
        label_id: int[T] classes in [0, C).

    Returns:
        float64[...] in [0, 1]; NaN where a class has no bag, or all bags.

    Reference: sklearn.metrics.roc_auc_score(multi_class="ovr", average="macro").
    """
    from scipy import stats  # half a second, of which other metrics have no need

    scores, label = np.asarray(scores, np.float64), np.asarray(label_id)
    areas = np.full((*scores.shape[:-2], scores.shape[-1]), np.nan)
    for c in range(scores.shape[-1]):
        positive = label == c
        n, rest = int(positive.sum()), int((~positive).sum())
        if n and rest:
            ranks = stats.rankdata(scores[..., c], axis=-1)
            areas[..., c] = (ranks[..., positive].sum(axis=-1) - n * (n + 1) / 2) / (n * rest)
    means: np.ndarray = areas.mean(axis=-1)
    return means


def measure_drops(
    values: Float[ArrayLike, "S R"],
    cramers_v: Float[ArrayLike, " S"],
    *,
    n_levels: int,
    n_training: int,
    n_test: int,
    in_domain: bool,
) -> Drops:
    """Drop and nIPD of a measure, as the average performance drop has them for patches.

    Args:
        values: float[S, R] of every split and repetition; NaN where undefined.
        cramers_v: float[S] association of class and centre in the splits.
        n_levels: 1 / n_levels is chance: the number of classes for a balanced accuracy, 2 for an
            area under the ROC curve.
        n_training: training bags of a split.
        n_test: test bags in domain.
        in_domain: whether the values are of those.
    """
    v = np.asarray(cramers_v, np.float64)
    nipd = np.nan
    if apd.spans_all_associations(v):
        nipd = apd.normalized_integrated_drop(values, v, n_classes=n_levels)
    ends = apd.drop_interval(values, n_training=n_training, n_test=n_test, in_domain=in_domain)
    return Drops(apd.average_performance_drop(values), nipd, ends)
