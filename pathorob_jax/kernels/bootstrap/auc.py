"""Area under the ROC curve of weighted groups of rows, without sorting again for each weighting.

Given scores, labels and groups of rows, and weights of the groups (such as all groups but one), the
module returns one area per weighting. The area counts the correctly ordered pairs (positive,
negative). These pairs are counted once for every two groups, and the weights multiply the counts:
w' M w.
"""

import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Array, Bool, Float, Int


def count_ordered_pairs(
    scores: Float[np.ndarray, " n"],
    is_positive: Bool[np.ndarray, " n"],
    group_id: Int[np.ndarray, " n"],
    *,
    n_groups: int,
) -> Float[np.ndarray, "G G"]:
    """Pairs (positive of group g, negative of group h) with the positive scored higher.

    Ties count half.

    Args:
        scores: float[n].
        is_positive: bool[n].
        group_id: int[n] in [0, G).
        n_groups: G.

    Returns:
        float64[G, G], multiples of 1/2, exact.
    """
    above = scores[is_positive]
    group = group_id[is_positive]
    out = np.zeros((n_groups, n_groups))
    for h in np.unique(group_id[~is_positive]):
        below = np.sort(scores[~is_positive & (group_id == h)])
        wins = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
        out[:, h] = np.bincount(group, weights=0.5 * wins, minlength=n_groups)
    return out


def weighted_auc(
    weights: Int[np.ndarray, "R G"] | Array,
    scores: Float[np.ndarray, " n"] | Array,
    is_positive: Bool[np.ndarray, " n"] | Array,
    group_id: Int[np.ndarray, " n"] | Array,
) -> Float[np.ndarray, " R"]:
    """Area under the ROC curve of the weighted rows.

    Args:
        weights: int32[R, G] how often the rows of each group count.
        scores: float[n], finite; the classifier is fixed and not fitted again.
        is_positive: bool[n].
        group_id: int32[n] in [0, G).

    Returns:
        float64[R]; NaN where no positive or no negative row has weight. Equal to
        ``roc_auc_score(..., sample_weight=weights[r][group_id])``.

    Raises:
        InputError: lengths differ; a score is NaN or infinite.
        TypeError: weights or ids are not integers.
    """
    weights, scores = np.asarray(weights), np.asarray(scores, np.float64)
    is_positive, group_id = np.asarray(is_positive, bool), np.asarray(group_id)
    checks.check_integer(weights, name="weights")
    checks.check_integer(group_id, name="group_id")
    for name, array in (("is_positive", is_positive), ("group_id", group_id)):
        checks.check_shape(array.shape, scores.shape, name=name, why="(one per score)")
    bad = np.flatnonzero(~np.isfinite(scores))  # sorting would rank NaN above all
    if bad.size:
        raise InputError(
            f"scores: expected finite numbers, found {bad.size} that are NaN or infinite, the "
            f"first in row {bad[0]}; look at the classifier that gave them."
        )
    present, local_id = np.unique(group_id, return_inverse=True)
    pairs = count_ordered_pairs(scores, is_positive, local_id, n_groups=len(present))
    drawn = weights[:, present].astype(np.float64)
    positives, negatives = (
        drawn @ np.bincount(local_id[which], minlength=len(present))
        for which in (is_positive, ~is_positive)
    )
    total = positives * negatives
    out = np.full(len(weights), np.nan)
    return np.divide(((drawn @ pairs) * drawn).sum(1), total, out=out, where=total > 0)
