"""Numbers without each slide: counted one by one, over scopes that share slides."""

import numpy as np
import pytest

from pathorob_jax.kernels.neighbors import label_counts
from pathorob_jax.metrics import left_out_slides, margins


@pytest.fixture
def scopes(rng):
    """Two scopes with random neighbours, some of them absent; 6 blocks, block 5 has no sample."""
    out = []
    for n in (40, 25):
        bio, center = rng.integers(0, 3, n), rng.integers(0, 2, n)
        block = rng.integers(0, 5, n).astype(np.int32)
        idx = rng.integers(0, n, (n, 4)).astype(np.int32)
        idx[rng.random(n) < 0.2, 2:] = -1
        idx[:2] = -1
        out.append((bio, center, block, idx))
    return out


def make(scope):
    bio, center, block, idx = scope
    return left_out_slides.NeighborBlocks(idx, label_counts.neighbor_types(idx, bio, center), block)


def pairs_without(scope, gone, rows=None):
    """(row, neighbour) of the samples and neighbours that are left."""
    _, _, block, idx = scope
    keep = [i for i in range(len(idx)) if block[i] != gone and (rows is None or rows[i])]
    return [(i, j) for i in keep for j in idx[i] if j >= 0 and block[j] != gone]


def kinds(scope, gone, rows=None):
    bio, center = scope[:2]
    return [(bio[i] == bio[j], center[i] == center[j]) for i, j in pairs_without(scope, gone, rows)]


def test_index_support_and_subsets(scopes):
    got = left_out_slides.find_companions([make(s) for s in scopes], 6)
    subsets = left_out_slides.find_subsets([make(s) for s in scopes], ["a", "b"], 6)
    for gone in range(6):
        found = [k for s in scopes for k in kinds(s, gone)]
        so, os_ = found.count((True, False)), found.count((False, True))
        np.testing.assert_allclose(got["robustness_index"][gone], so / (so + os_))
        ss = found.count((True, True))
        np.testing.assert_allclose(got["prediction_performance"][gone], (ss + so) / len(found))
        decisive, samples = 0, 0
        for bio, center, block, idx in scopes:
            pairs = pairs_without((bio, center, block, idx), gone)
            decisive += len({i for i, j in pairs if (bio[i] == bio[j]) != (center[i] == center[j])})
            samples += (block != gone).sum()
        np.testing.assert_allclose(got["support"][gone], decisive / samples)
        own = kinds(scopes[1], gone)
        so, os_ = own.count((True, False)), own.count((False, True))
        np.testing.assert_allclose(subsets["b"][gone], so / (so + os_))


def test_labels_average_their_counts_per_sample(scopes):
    names = [["x", "y", "z"], ["x", "w", "z"]]
    got = left_out_slides.find_labels([make(s) for s in scopes], [s[0] for s in scopes], names, 6)
    assert set(got) == {"x", "y", "z", "w"}
    for gone in range(6):
        sums = []
        for s in scopes:
            rows = s[0] == 0
            found = kinds(s, gone, rows)
            n = (rows & (s[2] != gone)).sum()
            sums.append([found.count((True, False)) / n, found.count((False, True)) / n])
        so, os_ = np.mean(sums, axis=0)
        np.testing.assert_allclose(got["x"][gone], so / (so + os_))


def test_accuracy_of_the_vote(scopes):
    got = left_out_slides.find_accuracy([make(s) for s in scopes], [s[0] for s in scopes], 6)
    for gone in range(6):
        parts = []
        for scope in scopes:
            bio = scope[0]
            votes: dict[int, list[int]] = {}
            for i, j in pairs_without(scope, gone):
                votes.setdefault(i, []).append(bio[j])
            hits: dict[int, list[bool]] = {}
            for i, cast in votes.items():
                winner = min(set(cast), key=lambda c, cast=cast: (-cast.count(c), c))
                hits.setdefault(bio[i], []).append(winner == bio[i])
            parts.append(np.mean([np.mean(h) for h in hits.values()]))
        np.testing.assert_allclose(got[gone], np.mean(parts), err_msg=str(gone))


def test_weights_of_edges(scopes, rng):
    for scope in scopes:
        idx, block = scope[3], scope[2]
        weight = np.where(idx >= 0, rng.random(idx.shape), 0.0)
        got = left_out_slides.sum_edges(weight, block, block[idx], 6)
        for gone in range(6):
            left = (idx >= 0) & (block[idx] != gone) & (block[:, None] != gone)
            np.testing.assert_allclose(got[gone], weight[left].sum())


@pytest.mark.slow
def test_tails_without_each_slide(rng):
    """The mean distance is over what is left of a full list; a list that was not full has none."""
    n, m = 30, 3
    scopes = []
    for first in (0, 3):  # blocks 0 to 3 and 3 to 6
        block = rng.integers(first, first + 4, n).astype(np.int32)
        lists = rng.random((2, n, m))
        blocks = rng.integers(first, first + 4, (2, n, m)).astype(np.int32)
        lists[0, :3, -1] = np.inf
        blocks[0, 5] = first + (block[5] + 1 - first) % 4  # all SO neighbours of one other slide
        scopes.append(margins.MarginBlocks(*lists, *blocks, block))
    got = margins.find_tails(scopes, 7)
    for gone in range(7):
        values, n_left = [], 0
        for scope in scopes:
            found, n_left = [], n_left + (scope.block_id != gone).sum()
            for i in np.flatnonzero(scope.block_id != gone):
                a = scope.same_other[i][scope.same_other_block[i] != gone]
                b = scope.other_same[i][scope.other_same_block[i] != gone]
                full = np.isfinite([*scope.same_other[i], *scope.other_same[i]]).all()
                if full and len(a) and len(b):
                    found.append((b.mean() - a.mean()) / (b.mean() + a.mean()))
            values.append(found)
        whole = np.concatenate(values)
        np.testing.assert_allclose(got["median"][gone], np.median([np.median(v) for v in values]))
        np.testing.assert_allclose(got["f0"][gone], np.mean(whole <= 0))
        np.testing.assert_allclose(got["q"][gone], np.quantile(whole, 0.1))
        np.testing.assert_allclose(got["support"][gone], len(whole) / n_left)
