"""Logistic probes: how well a linear classifier predicts biology or the medical centre.

The input is embeddings and, per probe, the labels to predict and the groups that a fold never
splits (slides for in-domain probes, centres for out-of-domain probes). The result is the area under
the ROC curve of each probe, averaged over folds.

PathoROB computes these probes along with the robustness index (arXiv:2507.17845): rows of unit
length, standardised features, scikit-learn's L2 logistic regression with C = 1, and
``StratifiedGroupKFold``. The folds come from scikit-learn; all folds of all probes with the same
number of classes are fitted at once.

The reference values are reproduced only with two habits of the reference, which ``parity=True``
keeps: features are standardised once, over training and test rows together, and the area is
computed from float32 probabilities, which tie at 1 where the classifier is confident. Each of the
two changes an area by up to 5e-4.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import ArrayLike, Bool, Float, Int
from pathorob_jax.kernels.bootstrap.auc import weighted_auc
from pathorob_jax.kernels.logistic import fit as logistic
from pathorob_jax.kernels.logistic.fit import LogisticFit
from pathorob_jax.metrics.robustness_index import mean_defined

C = 1.0
MAX_ITER = 1000
TOL = 1e-4
BLOCK_ROWS = 2048


class Probe(NamedTuple):
    """A prediction task.

    Attributes:
        label_id: int[N] labels to predict.
        group_id: int[N] rows of one group are never on both sides of a fold. The numbering matters:
            folds are assigned by ascending id, so number groups by ascending name.
        n_splits: number of folds, at least 2.
    """

    label_id: Int[np.ndarray, " N"]
    group_id: Int[np.ndarray, " N"]
    n_splits: int


class Resampling(NamedTuple):
    """Groups of rows with weights under which the areas are computed too, for intervals.

    Attributes:
        weights: int32[R, G], for example ``kernels.bootstrap.draws.Jackknife.left_out``.
        group_id: int32[N] group of each row, in [0, G).
    """

    weights: Int[np.ndarray, "R G"]
    group_id: Int[np.ndarray, " N"]


class ProbeResult(NamedTuple):
    """Result of a probe.

    Attributes:
        auc: mean over folds of the area under the ROC curve, macro one-vs-rest for more than two
            classes, in [0.5, 1] (a fold with an AUC below 0.5 counts as 1 - AUC); NaN if no fold is
            feasible.
        n_folds: number of folds in the mean.
        n_skipped: number of folds whose training or test rows lack one of the labels.
        n_unconverged: number of folds in the mean whose fit ended at ``MAX_ITER``.
        replicates: float64[R] the same mean over weighted test rows, with fixed classifiers; NaN
            where the rows of no fold have all labels. Empty without a ``Resampling``.
    """

    auc: float
    n_folds: int
    n_skipped: int
    n_unconverged: int
    replicates: Float[np.ndarray, " R"]


class _Fold(NamedTuple):
    probe_idx: int
    train_mask: Bool[np.ndarray, " N"]


def probe_aucs(
    embeddings: Float[ArrayLike, "N D"],
    probes: Sequence[Probe],
    *,
    seed: int,
    parity: bool = True,
    resampling: Resampling | None = None,
) -> list[ProbeResult]:
    """Cross-validated AUC of logistic regression, for several probes of the same rows.

    Args:
        embeddings: float[N, D], finite, no row all zero; rows are scaled to unit length.
        probes: prediction tasks; the numbering of labels does not matter.
        seed: seed of the shuffle of the folds.
        parity: True: as in the reference, features are standardised over all rows, including the
            test rows of a fold, and the AUC uses float32 probabilities. False: features are
            standardised on the training rows of each fold, and the AUC uses the classifier's
            scores, without those ties.
        resampling: weights under which the areas are computed too.

    Returns:
        ``ProbeResult`` of each probe.

    Raises:
        InputError: shapes differ, a row has no direction, or ``n_splits`` is under 2.
        TypeError: labels or groups are not of integer dtype.

    Reference: PathoROB's logistic probes along with the robustness index. Differs: rounding (the
    solver is float32 and sums in another order, the statistics of the features are float64).
    """
    x = np.array(embeddings, np.float32)  # a copy, which is standardised in place
    for i, probe in enumerate(probes):
        for name, ids in (("label_id", probe.label_id), ("group_id", probe.group_id)):
            checks.check_integer(ids, name=f"probes[{i}].{name}")
            checks.check_shape(
                np.shape(ids), x.shape[:1], name=f"probes[{i}].{name}", why="to match embeddings"
            )
        if probe.n_splits < 2:
            raise InputError(f"probes[{i}].n_splits: expected 2 or more, found {probe.n_splits}.")
    bad, word = checks.find_bad_rows(x)
    if bad.size:
        raise InputError(f"embeddings: {bad.size} rows hold {word}, the first is row {bad[0]}.")

    labels = [np.unique(probe.label_id, return_inverse=True)[1].reshape(-1) for probe in probes]
    sizes = [int(label.max()) + 1 if label.size else 0 for label in labels]
    folds = [_Fold(i, t) for i, p in enumerate(probes) for t in _split(p, labels[i], seed=seed)]
    scores: list[list[float]] = [[] for _ in probes]
    replicates: list[list[np.ndarray]] = [[] for _ in probes]
    unconverged = [0] * len(probes)
    feasible = [
        _has_all(labels[f.probe_idx], f.train_mask, sizes[f.probe_idx])
        and _has_all(labels[f.probe_idx], ~f.train_mask, sizes[f.probe_idx])
        for f in folds
    ]
    if any(feasible):
        _standardize(x)
        rows = to_device(x)
        for n_classes in sorted(set(sizes) - {0, 1}):
            wanted = [i for i, f in enumerate(folds) if sizes[f.probe_idx] == n_classes]
            usable = [i for i in wanted if feasible[i]]
            if not usable:
                continue
            # A feasible fold replaces each infeasible one, which keeps the shape (one trace for all
            # subsets of a paired design).
            fitted = [folds[i if feasible[i] else usable[0]] for i in wanted]
            logits, converged = _fit_folds(
                x, rows, fitted, labels, n_classes=n_classes, per_fold=not parity
            )
            for i, fold, logit, done in zip(wanted, fitted, logits, converged, strict=True):
                if feasible[i]:
                    unconverged[fold.probe_idx] += not done
                    test = ~fold.train_mask
                    label = labels[fold.probe_idx][test]
                    score = _as_scores(logit[test], parity=parity)
                    scores[fold.probe_idx].append(_auc(label, score))
                    if resampling is not None:
                        groups = resampling.group_id[test]
                        weighted = _weighted_aucs(label, score, resampling.weights, groups)
                        replicates[fold.probe_idx].append(weighted)
    n_weights = 0 if resampling is None else len(resampling.weights)
    return [
        ProbeResult(
            auc=float(np.mean(s)) if s else float("nan"),
            n_folds=len(s),
            n_skipped=p.n_splits - len(s),
            n_unconverged=cut,
            replicates=mean_defined(r) if r else np.full(n_weights, np.nan),
        )
        for s, cut, r, p in zip(scores, unconverged, replicates, probes, strict=True)
    ]


def _split(
    probe: Probe, label: Int[np.ndarray, " N"], *, seed: int
) -> list[Bool[np.ndarray, " N"]]:
    """Training rows of each fold; empty if there are too few groups, or too few rows per label."""
    n_groups = len(np.unique(probe.group_id))
    if n_groups < probe.n_splits or np.bincount(label).max() < probe.n_splits:
        return []
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(n_splits=probe.n_splits, shuffle=True, random_state=seed)
    out = []
    with warnings.catch_warnings():
        # Some label has fewer rows than folds; folds without it are counted as skipped.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for train, _ in splitter.split(np.zeros((len(label), 1)), label, probe.group_id):
            mask = np.zeros(len(label), bool)
            mask[train] = True
            out.append(mask)
    return out


def _has_all(label: np.ndarray, mask: np.ndarray, n_classes: int) -> bool:
    return n_classes > 1 and len(np.unique(label[mask])) == n_classes


def _standardize(x: Float[np.ndarray, "N D"]) -> None:
    """Scale rows to unit length, then features to mean 0 and standard deviation 1, in place.

    If each fold is also standardised, the result is the same as without this step. But the fold's
    shift and scale, which the solver folds into its products, are then near 0 and 1 and cancel no
    digits.
    """
    for start in range(0, len(x), BLOCK_ROWS):
        block = x[start : start + BLOCK_ROWS].astype(np.float64)
        x[start : start + BLOCK_ROWS] = block / np.linalg.norm(block, axis=1, keepdims=True)
    mean, spread = _feature_statistics(x, np.ones((1, len(x)), bool))
    for start in range(0, len(x), BLOCK_ROWS):
        x[start : start + BLOCK_ROWS] = (x[start : start + BLOCK_ROWS] - mean) / spread


def _feature_statistics(
    x: Float[np.ndarray, "N D"], masks: Bool[np.ndarray, "B N"]
) -> tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B D"]]:
    """Mean and standard deviation (1 where a feature is constant) over the rows of each mask."""
    d = x.shape[1]
    # Relative to the first row, so that a feature far from 0 keeps digits for its variance.
    center = x[0].astype(np.float64)
    sums, squares = np.zeros((len(masks), d)), np.zeros((len(masks), d))
    for start in range(0, len(x), BLOCK_ROWS):
        block = x[start : start + BLOCK_ROWS].astype(np.float64) - center
        inside = masks[:, start : start + BLOCK_ROWS].astype(np.float64)
        sums += inside @ block
        squares += inside @ block**2
    counts = masks.sum(axis=1, keepdims=True)
    mean = sums / counts
    variance = np.maximum(squares / counts - mean**2, 0.0)
    # As in scikit-learn, the rounding error of a constant feature does not count as variance.
    eps = np.finfo(np.float64).eps
    constant = variance <= counts * eps * (squares / counts) + (counts * mean * eps) ** 2
    return mean + center, np.sqrt(np.where(constant, 1.0, variance))


def _fit_folds(
    x: Float[np.ndarray, "N D"],
    rows: Float[ArrayLike, "N D"],
    folds: Sequence[_Fold],
    labels: Sequence[Int[np.ndarray, " N"]],
    *,
    n_classes: int,
    per_fold: bool,
) -> tuple[Float[np.ndarray, "B N L"], Bool[np.ndarray, " B"]]:
    """Logits of all rows from the classifier of each fold, and whether its fit converged.

    ``rows`` is ``x`` on the device.
    """
    masks = np.stack([f.train_mask for f in folds])
    shift, scale = _feature_statistics(x, masks) if per_fold else (None, None)
    fit: LogisticFit = logistic.fit_logistic(
        rows,
        np.stack([labels[f.probe_idx] for f in folds]),
        n_classes=n_classes,
        c=np.full(len(folds), C),
        row_weights=masks,
        shift=shift,
        scale=scale,
        max_iter=MAX_ITER,
        tol=TOL,
    )
    return logistic.predict_logits(rows, fit, shift=shift, scale=scale), np.asarray(fit.converged)


def _as_scores(logits: Float[np.ndarray, "n L"], *, parity: bool) -> Float[np.ndarray, "n L"]:
    """Scores that rank the rows: probabilities where they change the ranks, float32 for parity."""
    scores: np.ndarray = logits.astype(np.float32 if parity else np.float64)
    if scores.shape[1] > 1:
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)
    if parity:
        with np.errstate(over="ignore"):  # 1 / (1 + inf) = 0 is intended
            scores = 1 / (1 + np.exp(-scores))
    return scores


def _auc(label: Int[np.ndarray, " n"], scores: Float[np.ndarray, "n L"]) -> float:
    """Area under the ROC curve, macro one-vs-rest for more than two classes; flipped below 0.5.

    Equal to scikit-learn's ``roc_auc_score``, without its checks, which take most of its time.
    """
    once, one_group = np.ones((1, 1), np.int64), np.zeros(len(label), np.int64)
    return float(_weighted_aucs(label, scores, once, one_group)[0])


def _weighted_aucs(
    label: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, "n L"],
    weights: Int[np.ndarray, "R G"],
    group_id: Int[np.ndarray, " n"],
) -> Float[np.ndarray, " R"]:
    """``_auc`` of the weighted rows; NaN where one of the labels has no weight."""
    positives = [1] if scores.shape[1] == 1 else range(scores.shape[1])
    areas = [
        weighted_auc(weights, scores[:, i], label == positive, group_id)
        for i, positive in enumerate(positives)
    ]
    auc = np.mean(areas, axis=0)
    return np.maximum(auc, 1.0 - auc)
