"""Classifiers that are trained on some slides and scored on others: logistic, kNN, small network.

The input is training rows and test rows with labels. Several labellings of the same rows (the true
one and permuted ones) are fitted in one batch. An area under the ROC curve is never flipped: a
classifier that is wrong more often than by chance scores below 0.5.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

from pathorob_jax.core.typing import Bool, Float, Int
from pathorob_jax.kernels import mlp
from pathorob_jax.kernels.logistic import fit as logistic
from pathorob_jax.kernels.neighbors.search import find_neighbors
from pathorob_jax.metrics.robustness_index import mean_defined, ratio

C = 1.0
MAX_ITER = 1000
TOL = 1e-4
K = 11
# Steps of the network in each of its 20 epochs, whatever the number of rows.
STEPS = 32
MIN_BATCH_ROWS = 8


class Scores(NamedTuple):
    """Scores of test rows.

    Attributes:
        values: float64[B, n, L] score of each label for each labelling; larger is more likely.
        n_unconverged: fits that ended before they met their stopping rule.
    """

    values: Float[np.ndarray, "B n L"]
    n_unconverged: int = 0


def spread_rows(
    part_id: Int[np.ndarray, " N"], group_id: Int[np.ndarray, " N"], *, n_parts: int, limit: int
) -> Int[np.ndarray, "Q n"]:
    """Choose equally many rows of each part, as evenly over its groups as their sizes allow.

    Args:
        part_id: int[N] part of each row, in [0, n_parts).
        group_id: int[N] slide of each row.
        n_parts: Q.
        limit: most rows of a part.

    Returns:
        int64[Q, n] rows, ascending; n is the size of the smallest part, at most ``limit``.
    """
    order = np.lexsort((np.arange(len(group_id)), group_id))
    starts = np.concatenate([[True], np.diff(group_id[order]) != 0])
    rank = np.empty(len(group_id), np.int64)
    place = np.arange(len(group_id))
    rank[order] = place - np.maximum.accumulate(np.where(starts, place, 0))
    n = min(limit, int(np.bincount(part_id, minlength=n_parts).min()))
    chosen = []
    for part in range(n_parts):
        mine = np.flatnonzero(part_id == part)
        chosen.append(np.sort(mine[np.lexsort((mine, rank[mine]))[:n]]))
    return np.stack(chosen)


def score_linear(
    x_train: Float[np.ndarray, "m D"],
    labels: Int[np.ndarray, "B m"],
    x_test: Float[np.ndarray, "n D"],
    *,
    n_labels: int,
) -> Scores:
    """Probabilities of L2 logistic regression with C = 1, features standardised on training rows.

    Args:
        x_train: float32[m, D].
        labels: int[B, m] labellings of the training rows, in [0, n_labels).
        x_test: float32[n, D].
        n_labels: L >= 2.
    """
    wide = x_train.astype(np.float64)
    mean, spread = wide.mean(0), wide.std(0)
    # The rounding error of a constant feature is no spread.
    size = np.abs(wide).max(0)
    spread = np.where(spread <= 1e-7 * size, 1.0, spread)
    train, test = (((part - mean) / spread).astype(np.float32) for part in (wide, x_test))
    fit = logistic.fit_logistic(
        train, labels, n_classes=n_labels, c=np.full(len(labels), C), max_iter=MAX_ITER, tol=TOL
    )
    logits = logistic.predict_logits(test, fit).astype(np.float64)
    if n_labels == 2:
        logits = np.concatenate([-logits, logits], axis=2)
        return Scores(logits, int((~fit.converged).sum()))
    return Scores(special.softmax(logits, axis=2), int((~fit.converged).sum()))


def score_mlp(
    x_train: Float[np.ndarray, "m D"],
    labels: Int[np.ndarray, "B m"],
    x_test: Float[np.ndarray, "n D"],
    *,
    n_labels: int,
    seed: int,
) -> Scores:
    """Probabilities of a network with one hidden layer (``kernels.mlp``), trained on all rows.

    Args:
        x_train: float32[m, D].
        labels: int[B, m] labellings of the training rows, in [0, n_labels).
        x_test: float32[n, D].
        n_labels: L.
        seed: seed of the start and of the batches.
    """
    n, (b, m) = len(x_test), labels.shape
    trained = mlp.train_mlps(
        x_train,
        labels,
        np.broadcast_to(np.arange(m), (b, m)),
        x_train,
        labels,
        np.ones((b, m), bool),
        n_classes=n_labels,
        seed=seed,
        settings=mlp.SETTINGS._replace(batch_rows=max(MIN_BATCH_ROWS, m // STEPS)),
    )
    logits = mlp.predict_logits(trained, x_test).astype(np.float64).reshape(b, n, -1)
    return Scores(special.softmax(logits, axis=2))


def find_across(
    x: Float[np.ndarray, "N D"], side_id: Int[np.ndarray, " N"], *, k: int = K
) -> Int[np.ndarray, "N k"]:
    """int32[N, k] nearest rows by cosine on the other side; -1 where there are fewer than k."""
    indices: np.ndarray = np.asarray(find_neighbors(x, side_id, k=k).indices)
    return indices


def score_votes(
    neighbor_idx: Int[np.ndarray, "n k"], labels: Int[np.ndarray, "B N"], *, n_labels: int
) -> Scores:
    """Share of the votes of each label among the neighbours of test rows.

    Args:
        neighbor_idx: int32[n, k] rows, -1 where there is none.
        labels: int[B, N] labellings of all rows.
        n_labels: L.
    """
    there = neighbor_idx >= 0
    votes = [
        np.stack([((own[neighbor_idx] == i) & there).sum(1) for i in range(n_labels)], axis=1)
        for own in labels
    ]
    return Scores(ratio(np.stack(votes), there.sum(1)[None, :, None]))


def find_areas(
    scores: Float[np.ndarray, "n L"],
    label_id: Int[np.ndarray, " n"],
    known: Bool[np.ndarray, " L"] | None = None,
) -> Float[np.ndarray, " L"]:
    """Area under the ROC curve of each label against all others.

    Args:
        scores: float[n, L].
        label_id: int[n] true labels.
        known: bool[L] labels that had training rows; None: all.

    Returns:
        float64[L]; NaN where a label is not known, or has none or all of the rows.
    """
    from scipy import stats  # half a second, of which other metrics have no need

    n, n_labels = scores.shape
    if not n or not np.isfinite(scores).all():
        return np.full(n_labels, np.nan)
    ranks = stats.rankdata(scores, axis=0)
    mine = label_id[:, None] == np.arange(n_labels)[None, :]
    positive = mine.sum(0)
    if known is not None:
        positive = np.where(known, positive, 0)
    above = np.where(mine, ranks, 0).sum(0) - positive * (positive + 1) / 2
    return ratio(above, positive * (n - positive))


def macro_area(
    scores: Float[np.ndarray, "n L"],
    label_id: Int[np.ndarray, " n"],
    known: Bool[np.ndarray, " L"] | None = None,
) -> float:
    """Mean of ``find_areas`` over the labels that have one; NaN if none has."""
    return float(mean_defined(find_areas(scores, label_id, known)))
