"""What a robustifier changed: biology by held-out probes, spread, neighbours, centres.

Everything is computed twice, before and after, from the same rows in the same order.
"""

from typing import NamedTuple

import numpy as np

from pathorob_jax.core.typing import Float, Int
from pathorob_jax.kernels.bootstrap.auc import weighted_auc
from pathorob_jax.metrics import held_out_probes as held_out
from pathorob_jax.metrics.robustness_index import mean_defined, ratio
from pathorob_jax.robustify.moments import Moments

# Neighbours of the own centre whose stay is counted.
K = 11
# Rows of each half of the slides that the probes of the class use.
HALF_ROWS = 4096


class BiologyAreas(NamedTuple):
    """Areas under the ROC curve of a logistic probe of the class, mean over two halves of slides.

    Attributes:
        auc: macro one-vs-rest; not flipped below 0.5.
        per_class: float64[C] each class against the others.
        per_center: float64[M] macro over the classes, among the test rows of one centre.
        replicates: float64[R] ``auc`` of the weighted test rows, with the classifiers as they are.
        n_unconverged: fits that ended before they met their stopping rule.
    """

    auc: float
    per_class: Float[np.ndarray, " C"]
    per_center: Float[np.ndarray, " M"]
    replicates: Float[np.ndarray, " R"]
    n_unconverged: int


def probe_biology(
    x: Float[np.ndarray, "N D"],
    class_id: Int[np.ndarray, " N"],
    center_id: Int[np.ndarray, " N"],
    half_rows: Int[np.ndarray, "2 n"],
    *,
    block_id: Int[np.ndarray, " N"],
    weights: Int[np.ndarray, "R G"],
) -> BiologyAreas:
    """Train on each half of the slides, and score the other half.

    Args:
        x: float32[N, D] embeddings.
        class_id: int[N] in [0, C).
        center_id: int[N] in [0, M).
        half_rows: int[2, n] rows of each half.
        block_id: int[N] block of slides of each row, in [0, G).
        weights: int[R, G] how often each block counts, for ``replicates``.
    """
    n_classes, n_centers = int(class_id.max()) + 1, int(center_id.max()) + 1
    per_class, per_center, replicates, unconverged = [], [], [], 0
    if n_classes < 2 or half_rows.shape[1] < 2:
        return BiologyAreas(
            np.nan,
            np.full(n_classes, np.nan),
            np.full(n_centers, np.nan),
            np.full(len(weights), np.nan),
            0,
        )
    for train, test in (half_rows, half_rows[::-1]):
        found = held_out.score_linear(x[train], class_id[None, train], x[test], n_labels=n_classes)
        scores, true, center = found.values[0], class_id[test], center_id[test]
        known = np.isin(np.arange(n_classes), class_id[train])
        unconverged += found.n_unconverged
        per_class.append(held_out.find_areas(scores, true, known))
        per_center.append(
            [
                held_out.macro_area(scores[center == m], true[center == m], known)
                for m in range(n_centers)
            ]
        )
        weighted = [
            weighted_auc(weights, scores[:, c], true == c, block_id[test])
            for c in np.flatnonzero(np.isfinite(per_class[-1]))
        ]
        # A replicate without one of the classes is undefined, as the mean would be of others.
        replicates.append(np.mean(weighted, axis=0) if weighted else np.full(len(weights), np.nan))
    return BiologyAreas(
        auc=float(mean_defined([mean_defined(part) for part in per_class])),
        per_class=mean_defined(per_class),
        per_center=mean_defined(per_center),
        replicates=mean_defined(replicates),
        n_unconverged=unconverged,
    )


class Spread(NamedTuple):
    """Spread of embeddings.

    Attributes:
        total: trace of the covariance of all rows (sum of squares about their mean).
        effective_rank: exp of the entropy of the shares of the covariance's eigenvalues: the number
            of equal directions that would be as spread; NaN if all rows are equal.
    """

    total: float
    effective_rank: float


def measure_spread(moments: Moments) -> Spread:
    """``Spread`` from the moments of 1 x M cells with the products of all rows."""
    if moments.scatter is None:
        raise ValueError("the products of dimensions were not measured")
    values = np.maximum(np.linalg.eigvalsh(moments.scatter[0]), 0.0)
    total = float(values.sum())
    shares = ratio(values, np.full(len(values), total))
    logs = np.log(np.where(shares > 0, shares, 1.0))
    rank = float(np.exp(-(shares * logs).sum())) if total > 0 else np.nan
    return Spread(float(np.trace(moments.scatter[0])), rank)


class CenterShifts(NamedTuple):
    """How each centre moved.

    Attributes:
        shift: float64[M] length of the change of a centre's mean, in root mean square distances of
            all rows before to their mean.
        scale: float64[M] spread of a centre's rows about their mean, after divided by before.
    """

    shift: Float[np.ndarray, " M"]
    scale: Float[np.ndarray, " M"]


def measure_shifts(before: Moments, after: Moments) -> CenterShifts:
    """``CenterShifts`` from the moments of 1 x M cells before and after."""
    everything = (before.mean[0] - before.overall_mean) ** 2
    total = before.squares.sum() + (before.n[0][:, None] * everything).sum()
    moved = np.linalg.norm(after.mean[0] - before.mean[0], axis=1)
    shift = ratio(moved, np.full(len(moved), np.sqrt(total / before.n_rows)))
    return CenterShifts(shift, ratio(_spread_within(after), _spread_within(before)))


def _spread_within(moments: Moments) -> Float[np.ndarray, " M"]:
    """Root mean square distance of the rows of each centre to their mean."""
    within: np.ndarray = np.sqrt(ratio(moments.squares[0].sum(1), moments.n[0]))
    return within


def share_kept(
    before: Int[np.ndarray, "N k"], after: Int[np.ndarray, "N k"]
) -> Float[np.ndarray, " N"]:
    """Share of each row's neighbours before that are among those after; NaN where there are none.

    Args:
        before: int[N, k] neighbours, -1 where there is none.
        after: the same of the same rows.
    """
    stays = (before[:, :, None] == after[:, None, :]).any(2) & (before >= 0)
    return ratio(stays.sum(1), (before >= 0).sum(1))
