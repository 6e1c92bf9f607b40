"""Robustness index: whether neighbours in embedding space share biology or the medical centre.

The type of a neighbour has two letters: same or other biological class, then same or other medical
centre. ``RI_k = SO / (SO + OS)`` over all samples and their k nearest neighbours from other slides
(arXiv:2507.17845, Methods, robustness index). The functions take one ``Tally`` per scope and return
ratios of its counts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pathorob_jax.core.typing import Float, Int
from pathorob_jax.kernels.bootstrap.quantiles import divide
from pathorob_jax.kernels.neighbors.label_counts import OTHER_SAME, SAME_OTHER
from pathorob_jax.metrics.neighbor_tally import Tally


class Companions(NamedTuple):
    """Ratios of the four neighbour fractions; each NaN where its denominator is 0.

    Attributes:
        robustness_index: SO / (SO + OS).
        prediction_performance: SS + SO.
        id_performance: SS / (SS + OS).
        ood_performance: SO / (SO + OO).
        bio_vs_confounding: (SS + SO) / (SS + OS), the index of arXiv:2501.18055.
        confounder_insensitivity: (SO + OO) / (SS + OS).
        generalization_index: ood_performance / id_performance.
    """

    robustness_index: np.ndarray
    prediction_performance: np.ndarray
    id_performance: np.ndarray
    ood_performance: np.ndarray
    bio_vs_confounding: np.ndarray
    confounder_insensitivity: np.ndarray
    generalization_index: np.ndarray


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> np.ndarray:
    """float64 quotient, NaN where the denominator is 0."""
    return divide(np.asarray(numerator, float), np.asarray(denominator, float))


def companions(types: Float[np.ndarray, "4 ..."]) -> Companions:
    """``Companions`` of counts or fractions by type, along the trailing axes."""
    ss, so, os_, oo = np.asarray(types, np.float64)
    in_domain, out_of_domain = ratio(ss, ss + os_), ratio(so, so + oo)
    return Companions(
        robustness_index=ratio(so, so + os_),
        prediction_performance=ratio(ss + so, ss + so + os_ + oo),
        id_performance=in_domain,
        ood_performance=out_of_domain,
        bio_vs_confounding=ratio(ss + so, ss + os_),
        confounder_insensitivity=ratio(so + oo, ss + os_),
        generalization_index=ratio(out_of_domain, in_domain),
    )


class Measure(NamedTuple):
    """Results of a set of samples at one k.

    Attributes:
        n_samples: number of samples (occurrences, in the paired design).
        companions: the index and its companion numbers.
        support: share of the samples with an so or os neighbour, in [0, 1].
        recall: balanced accuracy of the k-neighbour vote for biology; for one class, its recall.
        fractions: ss, so, os, oo as shares of all neighbours; NaN if there are none.
    """

    n_samples: int
    companions: Companions
    support: float
    recall: float
    fractions: tuple[float, float, float, float]


def measure(tallies: Sequence[Tally], k: int) -> Measure:
    """``Measure`` at one k of the grid: counts are pooled over scopes, accuracy is averaged."""
    types = np.sum([t.types[..., k - 1].sum((0, 1)) for t in tallies], axis=0)
    eligible = np.sum([t.eligible.sum((0, 1)) for t in tallies], axis=0)
    decisive = sum(int(t.decisive[..., k - 1].sum()) for t in tallies)
    return _measure(
        n_samples=sum(int(t.n_samples.sum()) for t in tallies),
        types=types,
        eligible=eligible,
        decisive=decisive,
        recall=float(balanced_accuracy(tallies)[_grid_idx(tallies[0], k)]),
    )


def measure_classes(
    tallies: Sequence[Tally], names: Sequence[Sequence[str]], k: int
) -> dict[str, Measure]:
    """``Measure`` of each biological class; ``names[s]`` are the classes of scope s."""
    return _measure_groups([_merge_centers(t) for t in tallies], names, k)


def measure_centers(
    tallies: Sequence[Tally], names: Sequence[Sequence[str]], k: int
) -> dict[str, Measure]:
    """``Measure`` of each medical centre; ``names[s]`` are the centres of scope s."""
    transposed = [
        t._replace(
            types=t.types.swapaxes(0, 1),
            decisive=t.decisive.swapaxes(0, 1),
            n_samples=t.n_samples.T,
            eligible=t.eligible.swapaxes(0, 1),
            correct=t.correct.swapaxes(0, 1),
            voted=t.voted.swapaxes(0, 1),
        )
        for t in tallies
    ]
    return _measure_groups(transposed, names, k)


def _merge_centers(tally: Tally) -> Tally:
    """Sum over centres, so that the recall of a class is over all its samples."""
    return tally._replace(
        types=tally.types.sum(1, keepdims=True),
        decisive=tally.decisive.sum(1, keepdims=True),
        n_samples=tally.n_samples.sum(1, keepdims=True),
        eligible=tally.eligible.sum(1, keepdims=True),
        correct=tally.correct.sum(1, keepdims=True),
        voted=tally.voted.sum(1, keepdims=True),
    )


def _measure_groups(
    tallies: Sequence[Tally], names: Sequence[Sequence[str]], k: int
) -> dict[str, Measure]:
    """``Measure`` by position on the first axis of the tallies.

    Over several scopes, the counts per sample of each scope are averaged, as in the reference, and
    not pooled.
    """
    out = {}
    for name in sorted({n for scope in names for n in scope}):
        n_samples, decisive, types, recalls = 0, 0, [], []
        eligible = np.zeros(4, np.int64)
        for tally, scope in zip(tallies, names, strict=True):
            if name not in scope:
                continue
            i = scope.index(name)
            n = int(tally.n_samples[i].sum())
            n_samples += n
            eligible += tally.eligible[i].sum(0)
            decisive += int(tally.decisive[i, :, k - 1].sum())
            types.append(ratio(tally.types[i, ..., k - 1].sum(0), n))
            idx = _grid_idx(tally, k)
            recalls.append(mean_defined(ratio(tally.correct[i, :, idx], tally.voted[i, :, idx])))
        out[name] = _measure(
            n_samples=n_samples,
            types=mean_defined(types),
            eligible=eligible,
            decisive=decisive,
            recall=float(mean_defined(recalls)),
        )
    return out


def _measure(
    *, n_samples: int, types: np.ndarray, eligible: np.ndarray, decisive: int, recall: float
) -> Measure:
    fractions = tuple(float(f) for f in ratio(types, types.sum()))
    numbers = companions(types)
    if not can_decide(eligible):
        numbers = numbers._replace(robustness_index=np.asarray(np.nan))
    return Measure(
        n_samples=n_samples,
        companions=numbers,
        support=float(ratio(decisive, n_samples)),
        recall=recall,
        fractions=(fractions[0], fractions[1], fractions[2], fractions[3]),
    )


def can_decide(eligible: Int[np.ndarray, "4"]) -> bool:
    """Whether both so and os neighbours exist at any rank.

    If a centre has only one slide, its rows have no os neighbours. The ratio would be 1 for any
    embedding, and is undefined instead.
    """
    return bool(eligible[SAME_OTHER] > 0 and eligible[OTHER_SAME] > 0)


def _grid_idx(tally: Tally, k: int) -> int:
    return int(np.flatnonzero(tally.k_grid == k)[0])


def balanced_accuracy(tallies: Sequence[Tally]) -> Float[np.ndarray, " G"]:
    """Mean recall over the classes of a scope, then mean over scopes; NaN if there is no vote."""
    return mean_defined([mean_defined(ratio(t.correct.sum(1), t.voted.sum(1))) for t in tallies])


def mean_defined(values: npt.ArrayLike) -> np.ndarray:
    """Mean along the first axis of the values that are not NaN; NaN where all are NaN."""
    array = np.asarray(values, np.float64)
    defined = ~np.isnan(array)
    return ratio(np.where(defined, array, 0.0).sum(0), defined.sum(0))


def best_k(tallies: Sequence[Tally], *, k_max: int) -> int:
    """First k of the grid, at most ``k_max``, with the largest balanced accuracy.

    As in the reference, k_opt is the first maximum of the biological kNN balanced accuracy. If no
    accuracy is defined, the result is the smallest k of the grid.
    """
    grid = tallies[0].k_grid
    accuracy = np.where(grid <= k_max, balanced_accuracy(tallies), -np.inf)
    return int(grid[np.argmax(np.nan_to_num(accuracy, nan=-np.inf))])
