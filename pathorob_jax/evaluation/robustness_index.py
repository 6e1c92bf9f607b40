"""The robustness index of a store: computes the record with intervals from its neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pathorob_jax.evaluation.slide_intervals import find_all_ends, spread_all, warn_missing
from pathorob_jax.kernels.bootstrap.draws import Jackknife
from pathorob_jax.kernels.bootstrap.intervals import POSITIVE, SHARE, find_ends
from pathorob_jax.metrics import left_out_slides
from pathorob_jax.metrics import robustness_index as ri
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
BOUNDS = {
    **dict.fromkeys(("robustness_index", "balanced_accuracy", "support"), SHARE),
    **dict.fromkeys(("prediction_performance", "id_performance", "ood_performance"), SHARE),
    **dict.fromkeys(("bio_vs_confounding", "confounder_insensitivity"), POSITIVE),
    "generalization_index": POSITIVE,
}


def make_robustness_index(evaluation: Evaluation) -> Outcome:
    """Compute the robustness index and its companions (arXiv:2507.17845).

    All intervals come from leaving out whole groups, as samples and as neighbours; neighbours are
    not searched again.
    """
    neighborhood = evaluation.neighborhood
    scopes, tallies, k = neighborhood.scopes, neighborhood.tallies, neighborhood.k
    jackknife, blocks = neighborhood.jackknife, neighborhood.neighbor_blocks
    n_blocks = jackknife.n_blocks
    at_k = ri.measure(tallies, k)
    curve = [ri.measure(tallies, point) for point in neighborhood.grid]
    eligible = ri.companions(neighborhood.eligible)
    decidable = ri.can_decide(neighborhood.eligible)
    bio_id = [s.scope.bio_id for s in scopes]
    center_id = [s.scope.center_id for s in scopes]
    classes, centers = [s.scope.classes for s in scopes], [s.scope.centers for s in scopes]
    values = {name: float(value) for name, value in at_k.companions._asdict().items()}
    values |= {"support": at_k.support, "balanced_accuracy": at_k.recall}
    replicates = left_out_slides.find_companions(blocks, n_blocks)
    replicates["balanced_accuracy"] = left_out_slides.find_accuracy(blocks, bio_id, n_blocks)
    draws = spread_all(jackknife, values, replicates)
    ends = find_all_ends(values, draws, BOUNDS)
    missing = warn_missing(values, ends, neighborhood.draws)
    index_ends = ends.pop("robustness_index")
    per_subset = {}
    if neighborhood.design == "paired":
        names = [s.scope.name for s in scopes]
        per_subset = _groups(
            jackknife,
            {s.scope.name: ri.measure([s.tally], k) for s in scopes},
            left_out_slides.find_subsets(blocks, names, n_blocks),
        )
    permuted = np.nan
    if decidable:
        permuted = left_out_slides.permuted_center_index(
            [s.any.indices[:, :k] for s in scopes],
            bio_id,
            center_id,
            neighborhood.scope_groups,
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
        ci95=index_ends if decidable else None,
        companions_ci95=ends,
        null_permuted_center=permuted,
        null_random_features=float(eligible.robustness_index) if decidable else np.nan,
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
            jackknife,
            ri.measure_classes(tallies, classes, k),
            left_out_slides.find_labels(blocks, bio_id, classes, n_blocks),
        ),
        per_center=_groups(
            jackknife,
            ri.measure_centers(tallies, centers, k),
            left_out_slides.find_labels(blocks, center_id, centers, n_blocks),
        ),
        per_subset=per_subset,
        warnings=neighborhood.warn(at_k.support) + missing,
        provenance=neighborhood.provenance,
        **values,
    )
    return Outcome(record, neighborhood.draws_key, {name: draws[name] for name in KEPT_DRAWS})


def _groups(
    jackknife: Jackknife,
    measured: Mapping[str, ri.Measure],
    replicates: Mapping[str, np.ndarray],
) -> dict[str, Group]:
    groups = {}
    for name, measure in measured.items():
        index = float(measure.companions.robustness_index)
        ends = find_ends(index, jackknife.spread(index, replicates[name]), SHARE)
        groups[name] = Group(
            measure.n_samples, index, ends, measure.support, measure.recall, *measure.fractions
        )
    return groups
