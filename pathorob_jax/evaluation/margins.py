"""MaRI and CRoMa of a store: computes the record with intervals from its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pathorob_jax.core.devices import to_device
from pathorob_jax.evaluation.neighborhood import Neighborhood, ScopeNeighbors
from pathorob_jax.kernels.bootstrap import draws as bootstrap
from pathorob_jax.kernels.bootstrap.intervals import percentile_interval
from pathorob_jax.kernels.neighbors.pair_distances import list_distances
from pathorob_jax.kernels.neighbors.search import Neighbors
from pathorob_jax.metrics import margins
from pathorob_jax.metrics import robustness_index as ri
from pathorob_jax.metrics.robustness_index_draws import sum_groups
from pathorob_jax.results.margins import MarginsCurve, MarginsResult
from pathorob_jax.results.record import Outcome

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation

# Largest k of MaRI's curve: each of its points needs the distances of all nearer neighbours.
MAX_CURVE_K = 100


def make_margins(evaluation: Evaluation) -> Outcome:
    """MaRI and CRoMa (arXiv:2607.25497), from the neighbours of the robustness index."""
    neighborhood = evaluation.neighborhood
    k, weights = neighborhood.k, neighborhood.group_weights
    points = [point for point in neighborhood.grid if point <= MAX_CURVE_K] + [k]
    grid = sorted({point for point in points if point <= neighborhood.grid[-1]})
    measured = [_measure_scope(neighborhood, s, grid[-1]) for s in neighborhood.scopes]
    typed, values = (list(part) for part in zip(*measured, strict=True))
    tau = margins.choose_tau(typed, k)
    mari = margins.margin_robustness_index(typed, k, tau=tau)
    tail = margins.summarise_margins(values)
    groups = np.concatenate(neighborhood.scope_groups)
    rows = (np.concatenate(values), groups)
    scope_id = np.repeat(np.arange(len(values)), [len(v) for v in values])
    so_weight, os_weight = (
        sum_groups(weight, groups, weights) for weight in (mari.so_weight, mari.os_weight)
    )
    decidable = ri.can_decide(neighborhood.eligible)
    curve = [margins.margin_robustness_index(typed, point, tau=tau).value for point in grid]
    draws = {
        "mari": bootstrap.bootstrap_ratio(weights, so_weight, so_weight + os_weight),
        "croma": bootstrap.bootstrap_median_of_medians(weights, *rows, scope_id),
    }
    at_most_zero = bootstrap.bootstrap_share_at_most(weights, *rows, 0.0)
    record = MarginsResult(
        model=evaluation.request.model,
        dataset=evaluation.dataset,
        design=neighborhood.design,
        k=k,
        k_rule=neighborhood.k_rule,
        k_available=neighborhood.k_available,
        mari=mari.value if decidable else np.nan,
        mari_tau=tau,
        mari_support=mari.support,
        mari_ci95=percentile_interval(draws["mari"]) if decidable else None,
        croma=tail.median,
        croma_m=_n_typed(neighborhood),
        croma_f0=tail.f0,
        croma_q10=tail.q,
        croma_ltm10=tail.ltm,
        croma_support=tail.support,
        croma_ci95=percentile_interval(draws["croma"]),
        croma_f0_ci95=percentile_interval(at_most_zero),
        croma_q10_ci95=percentile_interval(
            bootstrap.bootstrap_quantile(weights, *rows, margins.TAIL)
        ),
        croma_ltm10_ci95=percentile_interval(
            bootstrap.bootstrap_tail_mean(weights, *rows, margins.TAIL)
        ),
        n_samples=len(scope_id),
        n_slides=neighborhood.n_slides,
        curve=MarginsCurve(k=grid, mari=curve if decidable else [np.nan] * len(grid)),
        warnings=neighborhood.warn(mari.support),
        provenance=neighborhood.provenance,
    )
    return Outcome(record, neighborhood.draws_key, draws)


def _typed(scope: ScopeNeighbors) -> tuple[Neighbors, Neighbors]:
    if scope.same_other is None or scope.other_same is None:
        raise ValueError("typed neighbours were not searched")
    return scope.same_other, scope.other_same


def _n_typed(neighborhood: Neighborhood) -> int:
    return _typed(neighborhood.scopes[0])[0].indices.shape[1]


def _measure_scope(
    neighborhood: Neighborhood, scope: ScopeNeighbors, k: int
) -> tuple[margins.TypedDistances, np.ndarray]:
    """Distances of decisive neighbours up to rank k, and each sample's margin, of a scope."""
    rows = to_device(neighborhood.embeddings(scope.scope))  # once, for all lists
    same_other, other_same = (list_distances(rows, lists.indices) for lists in _typed(scope))
    typed = margins.typed_distances(
        rows,
        Neighbors(*(a[:, :k] for a in scope.any)),
        scope.scope.bio_id,
        scope.scope.center_id,
    )
    return typed, margins.sample_margins(same_other, other_same)
