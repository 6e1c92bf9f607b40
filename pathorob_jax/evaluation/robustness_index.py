"""The robustness index of a store: computes the record with intervals from its neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pathorob_jax.kernels.bootstrap.intervals import percentile_interval
from pathorob_jax.metrics import robustness_index as ri
from pathorob_jax.metrics import robustness_index_draws as ri_draws
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.robustness_index import (
    Curve,
    Group,
    NeighborTypes,
    RobustnessIndexResult,
)

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation

# Numbers whose draws are kept for comparisons of models.
KEPT_DRAWS = ("robustness_index", "balanced_accuracy")


def make_robustness_index(evaluation: Evaluation) -> Outcome:
    """Compute the robustness index and its companions (arXiv:2507.17845).

    All intervals come from the same draws of whole groups; neighbours are not searched again for a
    draw.
    """
    neighborhood = evaluation.neighborhood
    scopes, tallies, k = neighborhood.scopes, neighborhood.tallies, neighborhood.k
    weights, groups = neighborhood.group_weights, neighborhood.scope_groups
    at_k = ri.measure(tallies, k)
    curve = [ri.measure(tallies, point) for point in neighborhood.grid]
    eligible = ri.companions(neighborhood.eligible)
    decidable = ri.can_decide(neighborhood.eligible)
    bio_id = [s.scope.bio_id for s in scopes]
    center_id = [s.scope.center_id for s in scopes]
    classes, centers = [s.scope.classes for s in scopes], [s.scope.centers for s in scopes]
    types = [s.count_types(k) for s in scopes]
    draws = ri_draws.draw_companions(types, groups, weights)
    votes = [s.vote(s.scope.bio_id, k) for s in scopes]
    draws["balanced_accuracy"] = ri_draws.draw_accuracy(votes, bio_id, groups, weights)
    ends = {name: percentile_interval(drawn) for name, drawn in draws.items()}
    index_ends = ends.pop("robustness_index")
    per_subset = {}
    if neighborhood.design == "paired":
        names = [s.scope.name for s in scopes]
        per_subset = _groups(
            {s.scope.name: ri.measure([s.tally], k) for s in scopes},
            ri_draws.draw_subsets(types, names, groups, weights),
        )
    permuted = np.nan
    if decidable:
        permuted = ri_draws.permuted_center_index(
            [s.any.indices[:, :k] for s in scopes],
            bio_id,
            center_id,
            groups,
            seed=neighborhood.seed,
        )
    normalized = ri.ratio(
        at_k.companions.confounder_insensitivity, eligible.confounder_insensitivity
    )
    record = RobustnessIndexResult(
        model=evaluation.request.model,
        dataset=evaluation.dataset,
        design=neighborhood.design,
        k=k,
        k_rule=neighborhood.k_rule,
        k_available=neighborhood.k_available,
        support=at_k.support,
        ci95=index_ends if decidable else None,
        companions_ci95=ends,
        null_permuted_center=permuted,
        null_random_features=float(eligible.robustness_index) if decidable else np.nan,
        balanced_accuracy=at_k.recall,
        normalized_confounder_insensitivity=float(normalized),
        n_samples=len(neighborhood.group_id),
        n_slides=neighborhood.n_slides,
        n_groups=len(np.unique(neighborhood.group_id)),
        neighbor_types=NeighborTypes(*at_k.fractions),
        curve=Curve(
            k=list(neighborhood.grid),
            robustness_index=[float(m.companions.robustness_index) for m in curve],
            balanced_accuracy=[m.recall for m in curve],
            support=[m.support for m in curve],
            **{t: [m.fractions[i] for m in curve] for i, t in enumerate(("ss", "so", "os", "oo"))},
        ),
        per_class=_groups(
            ri.measure_classes(tallies, classes, k),
            ri_draws.draw_labels(types, bio_id, classes, groups, weights),
        ),
        per_center=_groups(
            ri.measure_centers(tallies, centers, k),
            ri_draws.draw_labels(types, center_id, centers, groups, weights),
        ),
        per_subset=per_subset,
        warnings=neighborhood.warn(at_k.support),
        provenance=neighborhood.provenance,
        **{name: float(value) for name, value in at_k.companions._asdict().items()},
    )
    return Outcome(record, neighborhood.draws_key, {name: draws[name] for name in KEPT_DRAWS})


def _groups(
    measured: Mapping[str, ri.Measure], draws: Mapping[str, np.ndarray]
) -> dict[str, Group]:
    groups = {}
    for name, measure in measured.items():
        index = float(measure.companions.robustness_index)
        ends = percentile_interval(draws[name]) if np.isfinite(index) else None
        groups[name] = Group(
            measure.n_samples, index, ends, measure.support, measure.recall, *measure.fractions
        )
    return groups
