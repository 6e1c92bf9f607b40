"""The robustness index, and the vote of neighbours, without each slide in turn.

A slide that is left out is missing among the samples and among the neighbours of all others: a
slide that looks unlike the rest changes the lists of others as much as its own. Neighbours are not
searched again; a sample whose neighbour is left out has one neighbour less. All functions take
scopes and return one value for each block of slides (``kernels.bootstrap.draws``), which is left
out as a whole; blocks are numbered over all scopes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pathorob_jax.core import scratch
from pathorob_jax.core.typing import Bool, Float, Int
from pathorob_jax.kernels.neighbors import label_counts
from pathorob_jax.metrics.neighbor_tally import permute_centers
from pathorob_jax.metrics.robustness_index import companions, mean_defined, ratio

PERMUTATIONS = 20


class NeighborBlocks(NamedTuple):
    """Samples of a scope and their neighbours, by block.

    Attributes:
        neighbor_idx: int32[N, k] neighbours; -1 where there is none.
        types: int8[N, k] of ``label_counts.neighbor_types``.
        block_id: int32[N] block of each sample, in [0, B).
    """

    neighbor_idx: Int[np.ndarray, "N k"]
    types: Int[np.ndarray, "N k"]
    block_id: Int[np.ndarray, " N"]

    def only(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n k"]:
        """int32[n, k] blocks of the neighbours of some samples."""
        return self.block_id[self.neighbor_idx[rows]]


def find_companions(
    scopes: Sequence[NeighborBlocks], n_blocks: int
) -> dict[str, Float[np.ndarray, " B"]]:
    """The index, its companions and the support without each block, pooled over scopes."""
    types, decisive, samples = np.zeros((4, n_blocks)), np.zeros(n_blocks), np.zeros(n_blocks)
    for scope in scopes:
        types += _sum_types(scope, np.ones(len(scope.block_id), bool), n_blocks)
        decisive += _count_decisive(scope, n_blocks)
        samples += len(scope.block_id) - np.bincount(scope.block_id, minlength=n_blocks)
    return companions(types)._asdict() | {"support": ratio(decisive, samples)}


def find_labels(
    scopes: Sequence[NeighborBlocks],
    label_id: Sequence[Int[np.ndarray, " N"]],
    names: Sequence[Sequence[str]],
    n_blocks: int,
) -> dict[str, Float[np.ndarray, " B"]]:
    """The index of each class or centre without each block, averaged over scopes like its value.

    Args:
        scopes: scopes.
        label_id: int32[N] class or centre of each sample.
        names: names of the labels of each scope.
        n_blocks: B.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for scope, label, scope_names in zip(scopes, label_id, names, strict=True):
        for i, name in enumerate(scope_names):
            rows = label == i
            left = rows.sum() - np.bincount(scope.block_id[rows], minlength=n_blocks)
            parts.setdefault(name, []).append(ratio(_sum_types(scope, rows, n_blocks), left))
    return {name: companions(mean_defined(part)).robustness_index for name, part in parts.items()}


def find_subsets(
    scopes: Sequence[NeighborBlocks], names: Sequence[str], n_blocks: int
) -> dict[str, Float[np.ndarray, " B"]]:
    """The index of each scope without each block."""
    return {
        name: find_companions([scope], n_blocks)["robustness_index"]
        for name, scope in zip(names, scopes, strict=True)
    }


def find_accuracy(
    scopes: Sequence[NeighborBlocks], label_id: Sequence[Int[np.ndarray, " N"]], n_blocks: int
) -> Float[np.ndarray, " B"]:
    """Balanced accuracy of the neighbours' vote without each block.

    Mean recall over labels, then over scopes.

    Args:
        scopes: scopes.
        label_id: int32[N] label of each sample.
        n_blocks: B.
    """
    pairs = zip(scopes, label_id, strict=True)
    return mean_defined([mean_defined(_recalls(*pair, n_blocks)) for pair in pairs])


def sum_edges(
    values: Float[np.ndarray, "N k"] | Bool[np.ndarray, "N k"],
    block_id: Int[np.ndarray, " N"],
    neighbor_block: Int[np.ndarray, "N k"],
    n_blocks: int,
) -> Float[np.ndarray, " B"]:
    """Sum of a value over pairs of a sample and a neighbour, neither of which is of a block.

    Args:
        values: value of each pair; 0 where there is no neighbour.
        block_id: int32[N] block of each sample.
        neighbor_block: int32[N, k] block of each neighbour.
        n_blocks: B.

    Returns:
        float64[B].
    """
    values = np.asarray(values, np.float64)
    near = neighbor_block.ravel()
    own = np.bincount(block_id, values.sum(1), n_blocks)
    theirs = np.bincount(near, values.ravel(), n_blocks)
    both = np.where(neighbor_block == block_id[:, None], values, 0.0).sum(1)
    out: np.ndarray = values.sum() - own - theirs + np.bincount(block_id, both, n_blocks)
    return out


def _sum_types(
    scope: NeighborBlocks, rows: Bool[np.ndarray, " N"], n_blocks: int
) -> Float[np.ndarray, "4 B"]:
    out = np.zeros((4, n_blocks))
    for part in _parts(scope, np.flatnonzero(rows)):
        types, near, own = scope.types[part], scope.only(part), scope.block_id[part]
        for kind in range(4):
            out[kind] += sum_edges(types == kind, own, near, n_blocks)
    return out


def _parts(scope: NeighborBlocks, rows: Int[np.ndarray, " n"]) -> Iterator[Int[np.ndarray, " p"]]:
    for part in scratch.parts(rows, scope.neighbor_idx):
        yield rows[part]


def _count_decisive(scope: NeighborBlocks, n_blocks: int) -> Float[np.ndarray, " B"]:
    """Samples that have an SO or OS neighbour left, without each block."""
    out = np.zeros(n_blocks)
    for part in _parts(scope, np.arange(len(scope.block_id))):
        types, own = scope.types[part], scope.block_id[part]
        is_decisive = np.isin(types, (label_counts.SAME_OTHER, label_counts.OTHER_SAME))
        near = scope.only(part)
        lowest = np.where(is_decisive, near, n_blocks).min(1)
        highest = np.where(is_decisive, near, -1).max(1)
        some = is_decisive.any(1)
        out += some.sum() - np.bincount(own[some], minlength=n_blocks)
        # All such neighbours are of one block, which is not that of the sample.
        alone = some & (lowest == highest) & (lowest != own)
        out -= np.bincount(lowest[alone], minlength=n_blocks)
    return out


def _recalls(
    scope: NeighborBlocks, label_id: Int[np.ndarray, " N"], n_blocks: int
) -> Float[np.ndarray, "L B"]:
    """Recall of each label without each block; only votes that a block took part in change."""
    n_labels = int(label_id.max()) + 1
    held, voted = np.zeros((2, n_labels, n_blocks))
    for part in _parts(scope, np.arange(len(label_id))):
        for total, counts in zip(
            (held, voted), _count_votes(scope, label_id, part, n_labels, n_blocks), strict=True
        ):
            total += counts
    return ratio(held, voted)


def _count_votes(
    scope: NeighborBlocks,
    label_id: Int[np.ndarray, " N"],
    part: Int[np.ndarray, " n"],
    n_labels: int,
    n_blocks: int,
) -> tuple[Float[np.ndarray, "L B"], Float[np.ndarray, "L B"]]:
    """Right votes, and votes, of some samples by label, without each block."""
    idx, own_label, own_block = scope.neighbor_idx[part], label_id[part], scope.block_id[part]
    n, present = len(part), idx >= 0
    row = np.broadcast_to(np.arange(n)[:, None], present.shape)[present]
    neighbor = idx[present]
    near, cast = scope.block_id[neighbor].astype(np.int64), label_id[neighbor]
    pairs, pair = np.unique(row * n_blocks + near, return_inverse=True)
    gone = np.bincount(pair.reshape(-1) * n_labels + cast, minlength=len(pairs) * n_labels)
    votes = np.bincount(row * n_labels + cast, minlength=n * n_labels).reshape(n, n_labels)
    of, without = pairs // n_blocks, pairs % n_blocks
    rest = votes[of] - gone.reshape(-1, n_labels)
    counted = own_block[of] != without

    def count(now: np.ndarray, then: np.ndarray) -> np.ndarray:
        cell = own_label.astype(np.int64) * n_blocks + own_block
        size = n_labels * n_blocks
        own = np.bincount(cell, now, size).reshape(n_labels, n_blocks)
        change = np.bincount(
            (own_label[of].astype(np.int64) * n_blocks + without)[counted],
            (then.astype(float) - now[of])[counted],
            size,
        )
        return own.sum(1, keepdims=True) - own + change.reshape(own.shape)

    voted, still = np.asarray(votes.any(1)), rest.any(1)
    right = (votes.argmax(1) == own_label).astype(bool) & voted
    held = count(np.asarray(right), still & (rest.argmax(1) == own_label[of]))
    return held, count(voted, still)


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
