"""Robustness index: do neighbours in embedding space share biology, or the hospital?

Enters: embeddings and factorised labels of one or several scopes (sets of rows in which neighbours
are sought). Leaves: ``Tally`` (integer counts per scope), from which every number is a
ratio. Counts stay integers until that last division.

For a sample and a neighbour, the first letter says same or other biological class, the second same
or other medical centre: ``RI_k = SO / (SO + OS)`` over all samples and their k nearest neighbours
outside their own slide (arXiv:2507.17845, Methods, robustness index).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from pathorob_jax.core.typing import Bool, Float, Int
from pathorob_jax.kernels.bootstrap.quantiles import divide
from pathorob_jax.kernels.neighbors import label_counts
from pathorob_jax.kernels.neighbors.label_counts import (
    OTHER_OTHER,
    OTHER_SAME,
    SAME_OTHER,
    SAME_SAME,
)
from pathorob_jax.kernels.neighbors.search import Neighbors


class Tally(NamedTuple):
    """Everything that is counted in one scope; all integers.

    Attributes:
        types: int64[C, M, 4, K] neighbours at rank <= k (cumulative) of the samples of a (class,
            centre) cell, by type ss, so, os, oo.
        decisive: int64[C, M, K] samples of a cell with a so or os neighbour among their k nearest.
        n_samples: int64[C, M].
        correct: int64[C, M, G] samples whose k-neighbour majority vote is their own class.
        voted: int64[C, M, G] samples with a vote (any neighbour).
        eligible: int64[C, M, 4] pairs of a cell's samples with all eligible neighbours, by type.
        k_grid: int64[G].
        k_available: the largest k that every sample has.
    """

    types: Int[np.ndarray, "C M 4 K"]
    decisive: Int[np.ndarray, "C M K"]
    n_samples: Int[np.ndarray, "C M"]
    correct: Int[np.ndarray, "C M G"]
    voted: Int[np.ndarray, "C M G"]
    eligible: Int[np.ndarray, "C M 4"]
    k_grid: Int[np.ndarray, " G"]
    k_available: int


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


def tally_neighbors(
    neighbors: Neighbors,
    bio_id: Int[np.ndarray, " N"],
    center_id: Int[np.ndarray, " N"],
    group_id: Int[np.ndarray, " N"],
    *,
    n_bio: int,
    n_center: int,
    k_grid: Sequence[int],
) -> Tally:
    """Count everything that one scope's neighbours say.

    Args:
        neighbors: of the scope, [P, K] with P >= N; rows from N on are padding and not counted.
        bio_id: int32[N] in [0, n_bio).
        center_id: int32[N] in [0, n_center).
        group_id: int32[N] slides, as the search excluded them.
        n_bio: number of biological classes.
        n_center: number of medical centres.
        k_grid: values of k for the vote, each at most K.
    """
    n, padded = len(bio_id), neighbors.indices.shape[0]
    bio, center = (np.pad(a, (0, padded - n)).astype(np.int32) for a in (bio_id, center_id))
    is_sample = np.arange(padded) < n
    n_cells = n_bio * n_center
    cell = np.where(is_sample, bio * n_center + center, -1).astype(np.int32)
    indices = jnp.asarray(neighbors.indices)
    agreement = label_counts.count_agreement(
        indices, jnp.asarray(bio), jnp.asarray(center), jnp.asarray(cell), n_cells=n_cells
    )
    votes = label_counts.count_votes(
        indices,
        jnp.asarray(bio),
        jnp.asarray(cell),
        jnp.asarray(k_grid, jnp.int32),
        n_labels=n_bio,
        n_cells=n_cells,
    )
    k_max = neighbors.indices.shape[1]
    first = np.asarray(agreement.first_decisive)[:n].astype(np.int64)
    starts = np.bincount(cell[:n] * (k_max + 1) + first, minlength=n_cells * (k_max + 1))
    decisive = np.cumsum(starts.reshape(n_cells, k_max + 1)[:, :k_max], axis=1)
    types = np.cumsum(np.asarray(agreement.counts, np.int64), axis=2)
    return Tally(
        types=types.reshape(n_bio, n_center, 4, k_max),
        decisive=decisive.reshape(n_bio, n_center, k_max),
        n_samples=np.bincount(cell[:n], minlength=n_cells).reshape(n_bio, n_center),
        correct=np.asarray(votes.correct, np.int64).reshape(n_bio, n_center, -1),
        voted=np.asarray(votes.voted, np.int64).reshape(n_bio, n_center, -1),
        eligible=count_eligible(bio_id, center_id, group_id, n_bio=n_bio, n_center=n_center),
        k_grid=np.asarray(k_grid, np.int64),
        k_available=available_neighbors(group_id),
    )


def count_types(
    neighbors: Neighbors,
    bio_id: Int[np.ndarray, " N"],
    center_id: Int[np.ndarray, " N"],
    *,
    k: int,
) -> Int[np.ndarray, "4 N"]:
    """int64[4, N] of each sample's k nearest: ss, so, os, oo.

    Rows of the neighbours past N are padding.
    """
    idx = neighbors.indices[: len(bio_id), :k]
    here = idx >= 0
    same_bio = bio_id[idx] == bio_id[:, None]
    same_center = center_id[idx] == center_id[:, None]
    kinds = (
        same_bio & same_center,
        same_bio & ~same_center,
        ~same_bio & same_center,
        ~same_bio & ~same_center,
    )
    return np.stack([(here & kind).sum(1) for kind in kinds])


def count_hits(
    neighbors: Neighbors, label_id: Int[np.ndarray, " N"], *, k: int, n_labels: int
) -> tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Whether a majority of a sample's k nearest puts it in its own label, and whether it voted.

    Ties go to the smallest label, as in ``tally_neighbors``.
    """
    n = len(label_id)
    idx = neighbors.indices[:n, :k]
    cell = np.arange(n)[:, None] * n_labels + label_id[idx]
    votes = np.bincount(cell[idx >= 0], minlength=n * n_labels).reshape(n, n_labels)
    voted = np.any(votes, axis=1)
    return np.logical_and(voted, votes.argmax(1) == label_id), voted


def permute_centers(
    center_id: Int[np.ndarray, " N"],
    group_id: Int[np.ndarray, " N"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " N"]:
    """Centres dealt anew to whole groups (slides); to rows where a group spans several centres.

    The index under such labels is what this embedding gives when centres mean nothing.
    """
    _, first, position = np.unique(group_id, return_index=True, return_inverse=True)
    if (center_id[first][position] != center_id).any():
        return rng.permutation(center_id)
    return rng.permutation(center_id[first])[position]


def available_neighbors(group_id: Int[np.ndarray, " N"]) -> int:
    """The largest k that every row has: N less the rows of the largest group."""
    return len(group_id) - int(np.unique(group_id, return_counts=True)[1].max())


def count_eligible(
    bio_id: Int[np.ndarray, " N"],
    center_id: Int[np.ndarray, " N"],
    group_id: Int[np.ndarray, " N"],
    *,
    n_bio: int,
    n_center: int,
) -> Int[np.ndarray, "C M 4"]:
    """Pairs of rows of different groups by the query's cell and type: what k = infinity counts."""

    def same(*columns: np.ndarray) -> np.ndarray:
        """How many rows share each row's values."""
        _, position, sizes = np.unique(
            np.stack(columns), axis=1, return_inverse=True, return_counts=True
        )
        return sizes[position.reshape(-1)].astype(np.int64)

    everyone = np.zeros_like(bio_id)
    total, same_bio, same_center, same_both = (
        same(*columns) - same(*columns, group_id)
        for columns in ((everyone,), (bio_id,), (center_id,), (bio_id, center_id))
    )
    out = np.zeros((n_bio * n_center, 4), np.int64)
    cell = bio_id.astype(np.int64) * n_center + center_id
    for kind, counts in (
        (SAME_SAME, same_both),
        (SAME_OTHER, same_bio - same_both),
        (OTHER_SAME, same_center - same_both),
        (OTHER_OTHER, total - same_bio - same_center + same_both),
    ):
        np.add.at(out[:, kind], cell, counts)
    return out.reshape(n_bio, n_center, 4)


class Measure(NamedTuple):
    """What a set of samples says at one k.

    Attributes:
        n_samples: samples (occurrences, in the paired design).
        companions: the index and its companion numbers.
        support: share of the samples with a so or os neighbour, in [0, 1].
        recall: balanced accuracy of the k-neighbour vote for biology; of one class, its recall.
        fractions: ss, so, os, oo as shares of all neighbours; NaN where there are none.
    """

    n_samples: int
    companions: Companions
    support: float
    recall: float
    fractions: tuple[float, float, float, float]


def measure(tallies: Sequence[Tally], k: int) -> Measure:
    """Everything at one k of the grid: counts pooled over scopes, accuracy the mean over scopes."""
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
    turned = [
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
    return _measure_groups(turned, names, k)


def _merge_centers(tally: Tally) -> Tally:
    """One column instead of one per centre, so that a class's recall is over all its samples."""
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

    Over several scopes, counts are averaged as means per sample of each scope (as the reference
    does), not pooled.
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
            at = _grid_idx(tally, k)
            recalls.append(mean_defined(ratio(tally.correct[i, :, at], tally.voted[i, :, at])))
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
    """Whether both so and os neighbours exist at any depth.

    Where a centre has one slide only, its rows have no os neighbour: the ratio would be 1 whatever
    the embedding, and is undefined instead.
    """
    return bool(eligible[SAME_OTHER] > 0 and eligible[OTHER_SAME] > 0)


def _grid_idx(tally: Tally, k: int) -> int:
    return int(np.flatnonzero(tally.k_grid == k)[0])


def balanced_accuracy(tallies: Sequence[Tally]) -> Float[np.ndarray, " G"]:
    """Mean recall over the classes of a scope, then mean over scopes; NaN without any vote."""
    return mean_defined([mean_defined(ratio(t.correct.sum(1), t.voted.sum(1))) for t in tallies])


def mean_defined(values: npt.ArrayLike) -> np.ndarray:
    """Mean along the first axis of what is not NaN; NaN where nothing is."""
    array = np.asarray(values, np.float64)
    defined = ~np.isnan(array)
    return ratio(np.where(defined, array, 0.0).sum(0), defined.sum(0))


def best_k(tallies: Sequence[Tally], *, k_max: int) -> int:
    """First k of the grid, at most ``k_max``, with the largest balanced accuracy.

    As in the reference, k_opt is the first maximum of the biological kNN balanced accuracy. Where
    no accuracy is defined, the smallest k of the grid.
    """
    grid = tallies[0].k_grid
    accuracy = np.where(grid <= k_max, balanced_accuracy(tallies), -np.inf)
    return int(grid[np.argmax(np.nan_to_num(accuracy, nan=-np.inf))])
