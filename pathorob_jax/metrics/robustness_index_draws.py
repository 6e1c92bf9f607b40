"""Bootstrap draws of the robustness index: fixed neighbours, resampled slides.

Neighbours are not searched again for a draw: their types are summed by group (slide), and a draw
weights these sums. All arguments are lists with one entry per scope; groups are numbered over all
scopes, so one draw serves all of them.
"""

from collections.abc import Sequence

import numpy as np

from pathorob_jax.core.typing import Bool, Float, Int
from pathorob_jax.kernels.bootstrap import draws as bootstrap
from pathorob_jax.kernels.neighbors import label_counts
from pathorob_jax.metrics.neighbor_tally import permute_centers
from pathorob_jax.metrics.robustness_index import companions, mean_defined

PERMUTATIONS = 20


def draw_companions(
    types: Sequence[Int[np.ndarray, "4 N"]],
    group_id: Sequence[Int[np.ndarray, " N"]],
    weights: Int[np.ndarray, "draws G"],
) -> dict[str, Float[np.ndarray, " draws"]]:
    """The index, its companions and the support in every draw; counts are pooled over scopes.

    Args:
        types: int64[4, N] of each scope, see ``label_counts.count_types``.
        group_id: int32[N] of each scope, in [0, G).
        weights: int32[draws, G], how often each group is drawn.
    """
    pooled, groups = np.concatenate(types, axis=1), np.concatenate(group_id)
    sums = np.stack([sum_groups(kind, groups, weights) for kind in pooled])
    drawn = sums @ weights.T.astype(np.float64)
    decisive = sum_groups(pooled[1] + pooled[2] > 0, groups, weights)
    samples = sum_groups(np.ones(len(groups)), groups, weights)
    support = bootstrap.bootstrap_ratio(weights, decisive, samples)
    return companions(drawn)._asdict() | {"support": support}


def draw_accuracy(
    votes: Sequence[tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " N"]]],
    label_id: Sequence[Int[np.ndarray, " N"]],
    group_id: Sequence[Int[np.ndarray, " N"]],
    weights: Int[np.ndarray, "draws G"],
) -> Float[np.ndarray, " draws"]:
    """Balanced accuracy of the vote in every draw: mean recall over labels, then over scopes.

    Args:
        votes: bool[N] correct votes and bool[N] samples with a vote, of each scope.
        label_id: int32[N] label of each sample.
        group_id: int32[N] in [0, G).
        weights: int32[draws, G].
    """
    n_groups = weights.shape[1]
    accuracies = []
    for (right, voted), label, group in zip(votes, label_id, group_id, strict=True):
        n_labels = int(label.max()) + 1
        cell = label.astype(np.int64) * n_groups + group
        n_right, n_voted = (
            np.bincount(cell, weights=which, minlength=n_labels * n_groups).reshape(n_labels, -1)
            for which in (right, voted)
        )
        accuracies.append(mean_defined(bootstrap.bootstrap_ratio(weights, n_right, n_voted)))
    return mean_defined(accuracies)


def draw_labels(
    types: Sequence[Int[np.ndarray, "4 N"]],
    label_id: Sequence[Int[np.ndarray, " N"]],
    names: Sequence[Sequence[str]],
    group_id: Sequence[Int[np.ndarray, " N"]],
    weights: Int[np.ndarray, "draws G"],
) -> dict[str, Float[np.ndarray, " draws"]]:
    """The index of each class or centre in every draw, averaged over scopes like its value.

    Args:
        types: int64[4, N] of each scope.
        label_id: int32[N] class or centre of each sample.
        names: names of the labels of each scope.
        group_id: int32[N] in [0, G).
        weights: int32[draws, G].
    """
    parts: dict[str, list[np.ndarray]] = {}
    for kinds, label, scope_names, group in zip(types, label_id, names, group_id, strict=True):
        for i, name in enumerate(scope_names):
            rows = label == i
            sums = np.stack([sum_groups(kind[rows], group[rows], weights) for kind in kinds])
            counts = np.bincount(group[rows], minlength=weights.shape[1])
            parts.setdefault(name, []).append(bootstrap.bootstrap_ratio(weights, sums, counts))
    return {name: companions(mean_defined(drawn)).robustness_index for name, drawn in parts.items()}


def draw_subsets(
    types: Sequence[Int[np.ndarray, "4 N"]],
    names: Sequence[str],
    group_id: Sequence[Int[np.ndarray, " N"]],
    weights: Int[np.ndarray, "draws G"],
) -> dict[str, Float[np.ndarray, " draws"]]:
    """The index of each scope in every draw; for the arguments see ``draw_labels``."""
    drawn = {}
    for (_, so, os_, _), name, group in zip(types, names, group_id, strict=True):
        above, below = (sum_groups(kind, group, weights) for kind in (so, so + os_))
        drawn[name] = bootstrap.bootstrap_ratio(weights, above, below)
    return drawn


def permuted_center_index(
    neighbor_idx: Sequence[Int[np.ndarray, "N K"]],
    bio_id: Sequence[Int[np.ndarray, " N"]],
    center_id: Sequence[Int[np.ndarray, " N"]],
    group_id: Sequence[Int[np.ndarray, " N"]],
    *,
    seed: int,
) -> float:
    """Mean index of the same neighbours after centres are permuted over slides at random.

    Args:
        neighbor_idx: int32[N, k] neighbours of each scope.
        bio_id: int32[N] class of each sample.
        center_id: int32[N] centre of each sample.
        group_id: int32[N] slide of each sample.
        seed: seed of the ``PERMUTATIONS`` permutations.
    """
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(PERMUTATIONS):
        counts = np.zeros(4, np.int64)
        for idx, bio, center, group in zip(neighbor_idx, bio_id, center_id, group_id, strict=True):
            permuted = permute_centers(center, group, rng)
            types = label_counts.neighbor_types(idx, bio, permuted)
            counts += label_counts.count_types(types, k=idx.shape[1]).sum(1)
        values.append(float(companions(counts).robustness_index))
    return float(mean_defined(values))


def sum_groups(
    values: np.ndarray, group_id: Int[np.ndarray, " N"], weights: Int[np.ndarray, "draws G"]
) -> Float[np.ndarray, " G"]:
    """float64[G] sum of the values of each group."""
    return np.bincount(group_id, weights=values, minlength=weights.shape[1])
