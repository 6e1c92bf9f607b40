"""MaRI and CRoMa of a store: computes the record with intervals from its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pathorob_jax.core import scratch
from pathorob_jax.evaluation.neighborhood import Neighborhood, ScopeNeighbors
from pathorob_jax.evaluation.slide_intervals import find_all_ends, spread_all, warn_missing
from pathorob_jax.kernels.bootstrap.intervals import SHARE, SIGNED
from pathorob_jax.kernels.neighbors.pair_distances import list_distances
from pathorob_jax.kernels.neighbors.search import Neighbors
from pathorob_jax.metrics import margins
from pathorob_jax.metrics import robustness_index as ri
from pathorob_jax.metrics.left_out_slides import sum_edges
from pathorob_jax.results.margins import MarginsCurve, MarginsResult
from pathorob_jax.results.record import Outcome

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation

# Largest k of MaRI's curve: each of its points needs the distances of all nearer neighbours.
MAX_CURVE_K = 100
# Numbers of CRoMa by the field of ``metrics.margins.Tail``.
TAIL_FIELDS = {"croma": "median", "croma_f0": "f0", "croma_q10": "q", "croma_ltm10": "ltm"}
BOUNDS = {"mari": SHARE, "croma_f0": SHARE} | dict.fromkeys(
    ("croma", "croma_q10", "croma_ltm10"), SIGNED
)
# Numbers whose draws are kept for comparisons of models.
KEPT_DRAWS = ("mari", "croma")


def make_margins(evaluation: Evaluation) -> Outcome:
    """MaRI and CRoMa (arXiv:2607.25497), from the neighbours of the robustness index."""
    neighborhood = evaluation.neighborhood
    k, jackknife = neighborhood.k, neighborhood.jackknife
    points = [point for point in neighborhood.grid if point <= MAX_CURVE_K] + [k]
    grid = sorted({point for point in points if point <= neighborhood.grid[-1]})
    measured = [
        _measure_scope(neighborhood, scope, block_id, grid[-1])
        for scope, block_id in zip(neighborhood.scopes, neighborhood.scope_blocks, strict=True)
    ]
    typed, lists = (list(part) for part in zip(*measured, strict=True))
    tau = margins.choose_tau(typed, k)
    *curve, mari = margins.margin_curve(typed, [*grid, k], tau=tau)
    tail = margins.summarise_margins([margins.sample_margins(*part[:2]) for part in lists])
    decidable = ri.can_decide(neighborhood.eligible)
    values = {"mari": mari.value if decidable else np.nan} | {
        name: getattr(tail, of) for name, of in TAIL_FIELDS.items()
    }
    tails = margins.find_tails(lists, jackknife.n_blocks)
    replicates = {"mari": _leave_out_mari(neighborhood, typed, mari)} | {
        name: tails[of] for name, of in TAIL_FIELDS.items()
    }
    draws = spread_all(jackknife, values, replicates)
    ends = find_all_ends(values, draws, BOUNDS)
    numbers: dict[str, Any] = {**values, **{f"{name}_ci95": ends[name] for name in ends}}
    record = MarginsResult(
        model=evaluation.request.model,
        dataset=evaluation.dataset,
        design=neighborhood.design,
        k=k,
        k_rule=neighborhood.k_rule,
        k_available=neighborhood.k_available,
        mari_tau=tau,
        mari_support=mari.support,
        croma_m=_n_typed(neighborhood),
        croma_support=tail.support,
        n_samples=sum(len(part.block_id) for part in lists),
        n_slides=neighborhood.n_slides,
        curve=MarginsCurve(
            k=grid, mari=[point.value for point in curve] if decidable else [np.nan] * len(grid)
        ),
        warnings=neighborhood.warn(mari.support) + warn_missing(values, ends, neighborhood.draws),
        provenance=neighborhood.provenance,
        **numbers,
    )
    return Outcome(record, neighborhood.draws_key, {name: draws[name] for name in KEPT_DRAWS})


def _leave_out_mari(
    neighborhood: Neighborhood,
    typed: Sequence[margins.TypedDistances],
    mari: margins.MarginRobustness,
) -> np.ndarray:
    """MaRI without each block, at the temperature of all."""
    n_blocks, k = neighborhood.jackknife.n_blocks, neighborhood.k
    sums = np.zeros((2, n_blocks))
    scopes = zip(neighborhood.scopes, neighborhood.scope_blocks, typed, strict=True)
    for scope, block_id, distances in scopes:
        for part, *weights in margins.weigh(distances, k, tau=mari.tau, nearest=mari.nearest):
            near = block_id[scope.any.indices[part, :k]]
            scratch.give_back(scope.any.indices)
            for total, weight in zip(sums, weights, strict=True):
                total += sum_edges(weight, block_id[part], near, n_blocks)
    so, os_ = sums
    return ri.ratio(so, so + os_)


def _typed(scope: ScopeNeighbors) -> tuple[Neighbors, Neighbors]:
    if scope.same_other is None or scope.other_same is None:
        raise ValueError("typed neighbours were not searched")
    return scope.same_other, scope.other_same


def _n_typed(neighborhood: Neighborhood) -> int:
    return _typed(neighborhood.scopes[0])[0].indices.shape[1]


def _measure_scope(
    neighborhood: Neighborhood, scope: ScopeNeighbors, block_id: np.ndarray, k: int
) -> tuple[margins.TypedDistances, margins.MarginBlocks]:
    """Distances of decisive neighbours up to rank k, and the lists of the margins, of a scope."""
    bio_id, center_id = scope.scope.bio_id, scope.scope.center_id
    nearest = scope.any.indices[:, :k]
    typed = [lists.indices for lists in _typed(scope)]
    decisive = margins.decisive_neighbors(nearest, bio_id, center_id)
    # One matrix, since many neighbours are in two lists, and their distances are measured once.
    lists = (*typed, decisive)
    borders = np.cumsum([part.shape[1] for part in lists])
    every = scratch.empty_like(decisive, (len(decisive), int(borders[-1])))
    for part in scratch.parts(*lists, every):
        np.concatenate([one[part] for one in lists], axis=1, out=every[part])
    del lists, decisive
    distances = list_distances(neighborhood.searched.rows(scope.scope), every)
    so, os_, by_rank = np.split(distances, borders[:-1], axis=1)
    so_block, os_block = (block_id[one] for one in typed)
    blocks = margins.MarginBlocks(so, os_, so_block, os_block, block_id)
    return margins.typed_distances(by_rank, nearest, bio_id, center_id), blocks
