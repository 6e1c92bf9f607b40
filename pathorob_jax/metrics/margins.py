"""Margins: how much nearer biology is than the medical centre, not only how often.

From the neighbours of one or several scopes, their embeddings and factorised labels, the module
computes MaRI (the robustness index with neighbours weighted by distance) and CRoMa (per sample, the
margin between its nearest same-class neighbours of other centres and its nearest other-class
neighbours of the same centre). Both follow croma (arXiv:2607.25497). Undefined values are NaN, and
the support reports the share that is defined.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pathorob_jax.core import scratch
from pathorob_jax.core.typing import Bool, Float, Int
from pathorob_jax.metrics.robustness_index import ratio

TAU_FALLBACK = 0.2
TAIL = 0.10


class TypedDistances(NamedTuple):
    """Distances of the SO and OS neighbours of a scope; inf for absent neighbours and other types.

    Attributes:
        so: float32[N, K] distance where the neighbour has the same class and another centre.
        os: float32[N, K] distance where the neighbour has another class and the same centre.
    """

    so: Float[np.ndarray, "N K"]
    os: Float[np.ndarray, "N K"]


class MarginRobustness(NamedTuple):
    """MaRI at one k.

    Attributes:
        value: in [0, 1]; NaN if there is no SO or OS neighbour.
        tau: temperature, a cosine distance.
        support: share of samples with an SO or OS neighbour.
        nearest: distance of the nearest SO or OS neighbour of all samples; inf if there is none.
    """

    value: float
    tau: float
    support: float
    nearest: float


class Tail(NamedTuple):
    """Headline and lower tail of CRoMa over samples.

    Attributes:
        median: median of the defined values; over several scopes, the median of their medians.
        f0: share of defined values <= 0, where the centre is as near as biology, or nearer.
        q: quantile at ``TAIL``.
        ltm: mean of the values <= q (lower-tail mean).
        support: share of samples whose value is defined.
    """

    median: float
    f0: float
    q: float
    ltm: float
    support: float


def decisive_neighbors(
    neighbors: Int[np.ndarray, "N K"],
    bio_id: Int[np.ndarray, " N"],
    center_id: Int[np.ndarray, " N"],
) -> Int[np.ndarray, "N K"]:
    """The SO and OS neighbours by rank, -1 for others, whose distances are not needed.

    Args:
        neighbors: int32[N, K] neighbours by rank; -1 where absent.
        bio_id: int32[N] class of each sample.
        center_id: int32[N] centre of each sample.
    """
    decisive = scratch.full_like(neighbors, -1)
    for part, same_bio, same_center in _compare_labels(neighbors, bio_id, center_id):
        np.copyto(decisive[part], neighbors[part], where=same_bio != same_center)
        scratch.give_back(decisive)
    return decisive


def typed_distances(
    distances: Float[np.ndarray, "N K"],
    neighbors: Int[np.ndarray, "N K"],
    bio_id: Int[np.ndarray, " N"],
    center_id: Int[np.ndarray, " N"],
) -> TypedDistances:
    """Distances by rank, apart by type.

    Args:
        distances: float32[N, K] of ``decisive_neighbors``, inf elsewhere; it becomes the result.
        neighbors: see ``decisive_neighbors``.
        bio_id: see ``decisive_neighbors``.
        center_id: see ``decisive_neighbors``.
    """
    so, os_ = distances, scratch.full_like(distances, np.inf)
    for part, same_bio, same_center in _compare_labels(neighbors, bio_id, center_id):
        np.copyto(os_[part], so[part], where=same_center)
        so[part][~same_bio] = np.inf
        scratch.give_back(so, os_)
    return TypedDistances(so, os_)


def _compare_labels(
    idx: Int[np.ndarray, "N K"], bio_id: Int[np.ndarray, " N"], center_id: Int[np.ndarray, " N"]
) -> Iterator[tuple[slice, Bool[np.ndarray, "n K"], Bool[np.ndarray, "n K"]]]:
    """Some rows at a time, and whether each neighbour has their class, and their centre."""
    for part in scratch.parts(idx):
        same_bio, same_center = (ids[idx[part]] == ids[part, None] for ids in (bio_id, center_id))
        yield part, same_bio, same_center


def choose_tau(scopes: Sequence[TypedDistances], k: int) -> float:
    """Median distance of all SO and OS neighbours at rank <= k.

    It is ``TAU_FALLBACK`` if there are none or the median is 0.
    """
    lists = [d for scope in scopes for d in scope]
    n = sum(int(np.isfinite(d[part, :k]).sum()) for d in lists for part in scratch.parts(d))
    distances, filled = np.empty(n, np.result_type(*lists) if lists else np.float32), 0
    for d in lists:
        for part in scratch.parts(d):
            finite = d[part, :k][np.isfinite(d[part, :k])]
            distances[filled : filled + len(finite)] = finite
            filled += len(finite)
    tau = 0.0
    if n:
        middle = [(n - 1) // 2, n // 2]
        distances.partition(middle)
        tau = float(distances[middle].astype(np.float64).mean())
    return tau if tau > 0 else TAU_FALLBACK


def margin_robustness_index(
    scopes: Sequence[TypedDistances], k: int, *, tau: float
) -> MarginRobustness:
    """MaRI_k = sum_SO w / (sum_SO w + sum_OS w), w = exp(-d / tau), pooled over samples.

    Weights are relative to the nearest SO or OS neighbour of all samples, so that they do not all
    underflow to 0 when distances are many times tau. The common factor cancels in the ratio.
    """
    return margin_curve(scopes, [k], tau=tau)[0]


def margin_curve(
    scopes: Sequence[TypedDistances], ks: Sequence[int], *, tau: float
) -> list[MarginRobustness]:
    """``margin_robustness_index`` at several k, from sums by rank.

    Args:
        scopes: distances by rank, of equally many ranks.
        ks: numbers of neighbours, from 1; beyond the ranks there are, all of them count.
        tau: temperature.
    """
    n_ranks = min([max(ks), *(scope.so.shape[1] for scope in scopes)])
    ks = [min(k, n_ranks) for k in ks]
    k = max(ks)
    least, firsts = np.full(k, np.inf), np.zeros(k, np.int64)
    for scope in scopes:
        for part in scratch.parts(*scope):
            distances = np.minimum(scope.so[part, :k], scope.os[part, :k])
            np.minimum(least, distances.min(axis=0, initial=np.inf), out=least)
            decisive = np.isfinite(distances)
            firsts += np.bincount(decisive.argmax(axis=1)[decisive.any(axis=1)], minlength=k)
    nearest, n_decisive = np.minimum.accumulate(least), np.cumsum(firsts)
    n = sum(len(scope.so) for scope in scopes)
    # Few ranks, if any, hold a neighbour nearer than all before it.
    sums = {d: _sum_by_rank(scopes, k, tau=tau, nearest=d) for d in {nearest[k - 1] for k in ks}}
    out = []
    for at in (k - 1 for k in ks):
        so, os_ = sums[nearest[at]][:, at]
        support = float(n_decisive[at]) / n if n else 0.0
        out.append(MarginRobustness(float(ratio(so, so + os_)), tau, support, float(nearest[at])))
    return out


def _sum_by_rank(
    scopes: Sequence[TypedDistances], k: int, *, tau: float, nearest: float
) -> Float[np.ndarray, "2 k"]:
    """Sums of the weights of SO and OS neighbours up to each rank."""
    sums = np.zeros((2, k))
    for scope in scopes:
        for _, *weights in weigh(scope, k, tau=tau, nearest=nearest):
            for total, weight in zip(sums, weights, strict=True):
                total += weight.sum(axis=0)
    return np.cumsum(sums, axis=1)


def weigh(
    scope: TypedDistances, k: int, *, tau: float, nearest: float
) -> Iterator[tuple[slice, Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]]:
    """Some samples at a time, and the weights of their SO and OS neighbours at rank <= k.

    Weights are float64, up to a common factor; 0 for neighbours of other types.
    """
    for part in scratch.parts(*scope):
        if np.isfinite(nearest):
            distances = (d[part, :k].astype(np.float64) for d in scope)
            so, os_ = (np.exp(-(d - nearest) / tau) for d in distances)
        else:
            so, os_ = np.zeros((2, *scope.so[part, :k].shape))
        yield part, so, os_


def sample_margins(
    same_other: Float[np.ndarray, "N M"], other_same: Float[np.ndarray, "N M"]
) -> Float[np.ndarray, " N"]:
    """CRoMa_i = (b - a) / (b + a); a, b = mean distance of the M nearest SO, OS.

    Args:
        same_other: distances to the M nearest SO neighbours at any rank; inf where absent.
        other_same: distances to the M nearest OS neighbours at any rank; inf where absent.

    Returns:
        float64[N] in [-1, 1]; NaN where a list is not full or both means are 0.

    Reference: croma raises an error if a sample is undefined. Here the sample is NaN, and
    ``Tail.support`` is the share of defined samples.
    """
    a, b = (d.astype(np.float64).mean(1) for d in (same_other, other_same))
    defined = np.isfinite(a) & np.isfinite(b)
    return ratio(
        np.where(defined, b, 0.0) - np.where(defined, a, 0.0), np.where(defined, b + a, 0.0)
    )


class MarginBlocks(NamedTuple):
    """The lists that the sample margins of a scope rest on, by block of slides.

    Attributes:
        same_other: float64[N, M] distances to the M nearest SO neighbours; inf where absent.
        other_same: float64[N, M] distances to the M nearest OS neighbours.
        same_other_block: int32[N, M] blocks of those neighbours.
        other_same_block: int32[N, M] blocks of those neighbours.
        block_id: int32[N] block of each sample.
    """

    same_other: Float[np.ndarray, "N M"]
    other_same: Float[np.ndarray, "N M"]
    same_other_block: Int[np.ndarray, "N M"]
    other_same_block: Int[np.ndarray, "N M"]
    block_id: Int[np.ndarray, " N"]


def find_tails(scopes: Sequence[MarginBlocks], n_blocks: int) -> dict[str, np.ndarray]:
    """Each number of ``Tail`` without each block of slides, float64[B] by name.

    Samples of the block are left out, and so are its neighbours in the lists of others: their mean
    distance is then over those of the M that are left.
    """
    values = [sample_margins(s.same_other, s.other_same) for s in scopes]
    blocks = [
        {*np.unique(s.block_id), *np.unique(s.same_other_block), *np.unique(s.other_same_block)}
        for s in scopes
    ]
    out = []
    for block in range(n_blocks):
        parts = []
        for scope, margins, present in zip(scopes, values, blocks, strict=True):
            if block not in present:  # as most, where scopes are pairs of classes and centres
                parts.append(margins)
                continue
            so_gone, os_gone = (
                b == block for b in (scope.same_other_block, scope.other_same_block)
            )
            touched = (so_gone.any(1) | os_gone.any(1)) & ~np.isnan(margins)
            left = margins.copy()
            a, b = (
                ratio(np.where(gone[touched], 0.0, d[touched]).sum(1), (~gone[touched]).sum(1))
                for gone, d in ((so_gone, scope.same_other), (os_gone, scope.other_same))
            )
            left[touched] = sample_margins(
                *(np.where(np.isnan(mean), np.inf, mean)[:, None] for mean in (a, b))
            )
            parts.append(left[scope.block_id != block])
        out.append(summarise_margins([p for p in parts if p.size] or [np.zeros(0)]))
    return {name: np.array([getattr(t, name) for t in out]) for name in Tail._fields}


def summarise_margins(scopes: Sequence[Float[np.ndarray, " n"]]) -> Tail:
    """``Tail`` of the sample margins of one or several scopes."""
    values = np.concatenate(list(scopes))
    defined = values[~np.isnan(values)]
    medians = [np.median(s[~np.isnan(s)]) for s in scopes if (~np.isnan(s)).any()]
    if not defined.size:
        return Tail(np.nan, np.nan, np.nan, np.nan, 0.0)
    q = float(np.quantile(defined, TAIL))
    return Tail(
        median=float(np.median(medians)),
        f0=float(np.mean(defined <= 0)),
        q=q,
        ltm=float(defined[defined <= q].mean()),
        support=defined.size / values.size,
    )
