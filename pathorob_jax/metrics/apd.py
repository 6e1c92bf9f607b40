"""Average performance drop of a classifier whose training data associate class and centre.

From counts of (centre, true class, predicted class) per split and repetition, the module computes
balanced accuracies, the drop averaged over splits (arXiv:2507.17845), its integral over Cramer's V
(nIPD, arXiv:2607.25497), errors by direction, and the aggregate over datasets with its interval.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import ArrayLike, Float, Int

CONFIDENCE = 0.95
# Classifiers on the same splits; the protocol uses the linear probe.
LINEAR, KNN, MLP, DANN = "linear", "knn", "mlp", "dann"
OTHER_HEADS = (KNN, MLP, DANN)
# The network of ``dann`` trained without reversal; always reported beside it.
DANN_TWIN = "dann_lambda0"
# Largest Cramer's V that rounding may produce for a table without association.
ZERO_V = 1e-9


class Aggregate(NamedTuple):
    """Mean drop over datasets and the half width of its 95 % interval.

    Attributes:
        mean: mean over all repetitions of all datasets.
        ci: half width with ``df`` = n, as in the reference.
        ci_textbook: half width with n - 1 degrees of freedom.
        df: n, the number of values.
        df_textbook: n - 1.
    """

    mean: float
    ci: float
    ci_textbook: float
    df: int
    df_textbook: int


def count_calls(
    called_id: Int[ArrayLike, "... N"],
    label_id: Int[ArrayLike, " N"],
    center_id: Int[ArrayLike, " N"],
    *,
    n_classes: int,
    n_centers: int,
) -> Int[np.ndarray, "... M C C"]:
    """Count how often rows of each centre and class are predicted as each class.

    Args:
        called_id: int[..., N] predictions in [0, C).
        label_id: int[N] true classes in [0, C).
        center_id: int[N] centres in [0, M).
        n_classes: C.
        n_centers: M.

    Returns:
        int64[..., M, C, C]; the last axis is the predicted class.
    """
    called = np.asarray(called_id)
    cell = np.asarray(center_id).astype(np.int64) * n_classes + np.asarray(label_id)
    flat = (cell * n_classes + called).reshape(-1, called.shape[-1])
    size = n_centers * n_classes**2
    counts = np.stack([np.bincount(row, minlength=size) for row in flat])
    return counts.reshape(*called.shape[:-1], n_centers, n_classes, n_classes)


def balanced_accuracy(calls: Int[ArrayLike, "... M C C"]) -> Float[np.ndarray, "..."]:
    """Mean recall over classes, with all centres pooled; NaN if there are no rows.

    A class without rows is left out, as in scikit-learn's ``balanced_accuracy_score``.
    """
    by_class = np.asarray(calls).sum(axis=-3)
    rows = by_class.sum(axis=-1)
    right = np.diagonal(by_class, axis1=-2, axis2=-1)
    recall = np.divide(right, rows, out=np.zeros(rows.shape), where=rows > 0)
    known = (rows > 0).sum(axis=-1)
    out = np.full(known.shape, np.nan)
    return np.divide(recall.sum(axis=-1), known, out=out, where=known > 0)


def performance_drops(
    accuracies: Float[ArrayLike, "S R"] | Sequence[Sequence[float]],
) -> Float[np.ndarray, " R"]:
    """Drop of each repetition: mean over the splits after the first of acc_s / acc_0, minus 1.

    Args:
        accuracies: float[S, R] by split and repetition; the first split has no association. Later
            splits without an accuracy (NaN) are left out of the mean.

    Returns:
        float64[R], 0 without a drop; NaN where acc_0 is undefined or 0, or no later split is left.

    Raises:
        InputError: fewer than two splits, or no repetition.

    Reference: PathoROB compute_avg_performance_drop. Differs: nothing where the drop is defined.
    """
    values = _accuracies(accuracies)
    first = np.where(values[0] > 0, values[0], np.nan)
    return _mean_of_known(values[1:] / first, axis=0) - 1.0


def accuracy_means(accuracies: Float[ArrayLike, "S R"]) -> Float[np.ndarray, " S"]:
    """float64[S] mean over the repetitions that have an accuracy; NaN where none has."""
    return _mean_of_known(_accuracies(accuracies), axis=1)


def average_performance_drop(accuracies: Float[ArrayLike, "S R"]) -> float:
    """Mean of ``performance_drops`` over repetitions."""
    return float(performance_drops(accuracies).mean())


def normalized_integrated_drop(
    accuracies: Float[ArrayLike, "S R"], cramers_v: Float[ArrayLike, " S"], *, n_classes: int
) -> float:
    """Integral over V in [0, 1] of g = (a(V) - a(0)) / (a(0) - chance), by trapezoids.

    a is the mean over repetitions; chance = 1 / n_classes (nIPD of arXiv:2607.25497).

    Args:
        accuracies: float[S, R]; where a split lacks that of some repetitions (NaN), a is the mean
            over the others.
        cramers_v: float[S], increasing from 0 to 1.
        n_classes: at least 2.

    Returns:
        0 without a drop, -1 if the accuracy falls to chance as soon as V > 0; NaN if the first
        split is not above chance, or an accuracy is undefined.

    Raises:
        InputError: shapes differ, or V does not increase from 0 to 1: the integral is over all of
            [0, 1], and nothing is known of the accuracy beyond the splits.
    """
    values, v = _accuracies(accuracies), np.asarray(cramers_v, np.float64)
    checks.check_shape(v.shape, values.shape[:1], name="cramers_v", why="to match accuracies")
    if not spans_all_associations(v):
        raise InputError(
            f"cramers_v: expected values that rise from 0 to 1, found {v.tolist()}; add the splits "
            "that are missing, or leave nIPD undefined."
        )
    mean = accuracy_means(values)
    room = mean[0] - 1.0 / n_classes
    if not room > 0:
        return float("nan")
    return float(np.trapezoid((mean - mean[0]) / room, v))


def spans_all_associations(cramers_v: Float[ArrayLike, " S"] | Sequence[float]) -> bool:
    """Whether Cramer's V rises from 0 to 1 over the splits, as an integral over V needs."""
    v = np.asarray(cramers_v, np.float64)
    return bool(abs(v[0]) <= ZERO_V and abs(v[-1] - 1) <= ZERO_V and (np.diff(v) > 0).all())


def drop_interval(
    accuracies: Float[ArrayLike, "S R"], *, n_training: int, n_test: int, in_domain: bool
) -> list[float] | None:
    """95 % interval of the drop on one dataset, for other slides of the same centres.

    Repetitions draw their slides from one pool and share many of them. The standard error over
    repetitions therefore tells how well the mean over draws is known, and not how well the drop is.
    As Nadeau and Bengio (2003) do for repeated splits, the variance over repetitions, s^2, is
    multiplied by 1 / R + f / (1 - f) instead of 1 / R, f being the share of slides that two
    repetitions have in common. Out of domain only the training slides are drawn, and f is their
    share of the pool; in domain, where training and test slides are, f is the smaller of their
    shares, which is still wide enough (docs/fidelity.md has the measured coverage). The spread of
    test slides of other centres, which are the same in all repetitions, is not in it. The interval
    is the drop +- t(0.975, R - 1) standard errors; its ends are at least -1.

    Args:
        accuracies: float[S, R] by split and repetition; the pairs of one repetition are the drop.
        n_training: training rows of a split.
        n_test: test rows in domain, the rest of the pool.
        in_domain: whether the accuracies are of those test rows.

    Returns:
        [low, high]; None with a single repetition, or where a drop is undefined.
    """
    drops = performance_drops(accuracies)
    ends = interval_of_mean(drops, n_training=n_training, n_test=n_test, in_domain=in_domain)
    return None if ends is None else [max(ends[0], -1.0), ends[1]]


def difference_interval(
    before: Float[ArrayLike, "S R"],
    after: Float[ArrayLike, "S R"],
    *,
    n_training: int,
    n_test: int,
    in_domain: bool,
) -> list[float] | None:
    """95 % interval of the difference of two drops, as ``drop_interval`` of one.

    Args:
        before: float[S, R] accuracies; repetitions have the same rows as those of ``after``.
        after: float[S, R].
        n_training: training rows of a split.
        n_test: test rows in domain.
        in_domain: whether the accuracies are of those test rows.

    Returns:
        [low, high]; None with a single repetition, or where a drop is undefined.
    """
    drops = performance_drops(after) - performance_drops(before)
    return interval_of_mean(drops, n_training=n_training, n_test=n_test, in_domain=in_domain)


def accuracy_interval(
    accuracies: Float[ArrayLike, " R"], *, n_training: int, n_test: int, in_domain: bool
) -> list[float] | None:
    """95 % interval of the mean accuracy of one split, as ``drop_interval`` of the drop.

    Args:
        accuracies: float[R] by repetition.
        n_training: training rows of a split.
        n_test: test rows in domain.
        in_domain: whether the accuracies are of those test rows.

    Returns:
        [low, high], within [0, 1]; None with a single repetition, or where one is undefined.
    """
    values = np.asarray(accuracies, np.float64)
    ends = interval_of_mean(values, n_training=n_training, n_test=n_test, in_domain=in_domain)
    return None if ends is None else [max(ends[0], 0.0), min(ends[1], 1.0)]


def interval_of_mean(
    values: Float[np.ndarray, " R"], *, n_training: int, n_test: int, in_domain: bool
) -> list[float] | None:
    """95 % interval of a mean over repetitions that share slides; see ``drop_interval``."""
    if len(values) < 2 or not np.isfinite(values).all() or min(n_training, n_test) < 1:
        return None
    shared = n_training / n_test  # f / (1 - f), f = n_training / (n_training + n_test)
    if in_domain:
        shared = min(shared, 1 / shared)
    error = float(values.std(ddof=1) * np.sqrt(1 / len(values) + shared))
    width = float(special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * error
    value = float(values.mean())
    return [value - width, value + width]


def direction_shares(calls: Int[ArrayLike, "S R M C C"]) -> Float[np.ndarray, "M C C S"]:
    """Share of the rows of each centre and class that are predicted as each class, at every split.

    Args:
        calls: int[S, R, M, C, C] from ``count_calls``; repetitions are pooled.

    Returns:
        float64[M, C, C, S]; NaN where a centre has no row of a class.
    """
    pooled = np.asarray(calls).sum(axis=1)
    rows = pooled.sum(axis=-1, keepdims=True)
    shares = np.divide(pooled, rows, out=np.full(pooled.shape, np.nan), where=rows > 0)
    return np.moveaxis(shares, 0, -1)


def aggregate_drops(drops: Sequence[Float[ArrayLike, " R"]]) -> Aggregate:
    """Mean over datasets of the repetitions' drops, and its interval without dataset effects.

    Values are shifted to a common mean (value + grand mean - dataset mean), as in the
    within-subject intervals of Masson and Loftus (2003); half width = t(0.975, df) * standard
    error.

    Args:
        drops: float[R] of each dataset, one or more; NaN makes the result NaN. With one value per
            dataset no variation is left, and the widths are NaN.

    Raises:
        InputError: fewer than two values.

    Reference: PathoROB's aggregate passes df = n to the t distribution. Differs: the textbook
    value n - 1 is reported as well (the shift leaves even fewer degrees of freedom: n minus the
    number of datasets).
    """
    values = [np.asarray(d, np.float64).reshape(-1) for d in drops]
    n = sum(len(v) for v in values)
    if n < 2 or not all(len(v) for v in values):
        raise InputError(f"drops: expected two or more values, found {[len(v) for v in values]}.")
    grand = float(np.mean([v.mean() for v in values]))
    shifted = np.concatenate([v + grand - v.mean() for v in values])
    error = float(shifted.std(ddof=1) / np.sqrt(n)) if n > len(values) else np.nan
    width, textbook = (
        float(special.stdtrit(df, (1 + CONFIDENCE) / 2)) * error for df in (n, n - 1)
    )
    return Aggregate(float(shifted.mean()), width, textbook, n, n - 1)


def _mean_of_known(values: Float[np.ndarray, "A B"], *, axis: int) -> Float[np.ndarray, " L"]:
    """Mean over the values that are not NaN; NaN where there is none."""
    known = ~np.isnan(values)
    if known.all():  # the same sum, to the last bit, as that of earlier versions
        return values.mean(axis=axis)
    n = known.sum(axis=axis)
    total = np.where(known, values, 0).sum(axis=axis)
    return np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)


def _accuracies(accuracies: ArrayLike | Sequence[Sequence[float]]) -> np.ndarray:
    values = np.asarray(accuracies, np.float64)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 1:
        raise InputError(
            "accuracies: expected shape (splits, repetitions) with two or more splits, found "
            f"{values.shape}."
        )
    return values
