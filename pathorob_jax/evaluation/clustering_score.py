"""Clustering score of a store: selects rows and combinations, and builds the record.

``clustering_score_tasks`` clusters the combinations of two classes and two centres and keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from pathorob_jax.core import checks, digests
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE, Manifest
from pathorob_jax.data.protocols import ClusteringProtocol, View
from pathorob_jax.data.row_views import read_groups
from pathorob_jax.embeddings.store import Store
from pathorob_jax.evaluation.clustering_score_tasks import (
    Plan,
    fingerprint_tasks,
    run_combinations,
)
from pathorob_jax.evaluation.row_warnings import warn_of_names
from pathorob_jax.evaluation.settings import ClusteringSettings
from pathorob_jax.evaluation.slide_intervals import warn_missing
from pathorob_jax.kernels.bootstrap.draws import DRAWS_KIND, Jackknife, plan_jackknife
from pathorob_jax.kernels.bootstrap.intervals import find_ends
from pathorob_jax.metrics import clustering_score
from pathorob_jax.metrics.clustering_score import Clustering, Combination
from pathorob_jax.metrics.robustness_index import mean_defined
from pathorob_jax.results.clustering_score import ClusteringCombination, ClusteringResult
from pathorob_jax.results.record import Outcome

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation

STD_MEANING = (
    "mean over combinations of the standard deviation over trials: what the seed of k-means does, "
    "and nothing of other slides; ci95 is for other slides, clusters kept"
)
# An adjusted Rand index lies in [-1/2, 1].
RANGE = (-1.5, 1.5)


def make_clustering_score(evaluation: Evaluation) -> Outcome:
    """Compute the clustering score of a store (arXiv:2507.17845).

    A custom dataset uses PathoROB's grid of K. The order of the rows determines the initial centres
    that k-means draws.

    Raises:
        UsageError: the distance is unknown, the numbers form no grid, or there are several
            processes without a folder for results.
        InputError: no combination of two classes and two centres has rows in all four cells, or
            the embeddings cannot be clustered.
    """
    store, view = evaluation.store, evaluation.clustering_rows
    settings = evaluation.settings.of_clustering_score()
    protocol = evaluation.protocol.clustering_score if evaluation.protocol else None
    plan = _make_plan(
        store, view, protocol, settings, relabelled=evaluation.settings.renamed_columns
    )
    fingerprint = fingerprint_tasks(plan, evaluation.mesh)
    clusterings = run_combinations(
        plan,
        fingerprint,
        folder=evaluation.task_folder(ClusteringResult.metric),
        mesh=evaluation.mesh,
    )
    return _make_outcome(
        plan,
        clusterings,
        model=evaluation.request.model,
        dataset=evaluation.dataset,
        provenance=evaluation.task_provenance(asdict(settings), view, fingerprint),
    )


def _make_plan(
    store: Store,
    view: Manifest,
    protocol: ClusteringProtocol | None,
    settings: ClusteringSettings,
    *,
    relabelled: set[str],
) -> Plan:
    checks.check_known(settings.metric, clustering_score.METRICS, what="clustering_metric")
    read_groups(view, settings.group_column or SLIDE)
    base = protocol or ClusteringProtocol(View(view.source))
    chosen = ClusteringProtocol(
        view=base.view,
        k_min=base.k_min if settings.k_min is None else settings.k_min,
        k_max=base.k_max if settings.k_max is None else settings.k_max,
        selection_inits=base.selection_inits,
        trials=base.trials if settings.trials is None else settings.trials,
        trial_inits=base.trial_inits,
        seed=base.seed if settings.cluster_seed is None else settings.cluster_seed,
    )
    if not 2 <= chosen.k_min <= chosen.k_max:
        raise UsageError(
            f"k_min, k_max: expected 2 <= k_min <= k_max, found {chosen.k_min} and {chosen.k_max}."
        )
    if chosen.trials < 1:
        raise UsageError(f"trials: expected 1 or more, found {chosen.trials}.")
    combinations = clustering_score.find_combinations(view.column(CLASS), view.column(CENTER))
    if not combinations:
        classes, centers = view.factorize(CLASS).names, view.factorize(CENTER).names
        raise InputError(
            f"{view.source}: expected two biological classes and two medical centres with patches "
            f"of both classes in both centres, found {list(classes)} and {list(centers)} and no "
            "such four cells; the clustering score cannot tell one from the other."
        )
    x = store.read_patches(view, relabelled=relabelled)
    return Plan(view, x, combinations, chosen, settings)


def _make_outcome(
    plan: Plan,
    clusterings: Sequence[Clustering],
    *,
    model: str,
    dataset: str,
    provenance: dict[str, Any],
) -> Outcome:
    settings = plan.settings
    if settings.group_column is None or settings.seed is None or settings.draws is None:
        raise ValueError("settings: expected those of Settings.of_clustering_score")
    groups = read_groups(plan.view, settings.group_column)
    jackknife = plan_jackknife(len(groups.names), draws=settings.draws, seed=settings.seed)
    replicates = np.stack(
        [
            clustering_score.weighted_score(
                jackknife.left_out,
                clusters.trials,
                combination.cell_id,
                jackknife.block_of[groups.ids[combination.rows]],
                n_clusters=plan.protocol.k_max,
            )
            for combination, clusters in zip(plan.combinations, clusterings, strict=True)
        ]
    )
    combinations = [
        _make_combination(*parts, jackknife, n_clusters=plan.protocol.k_max)
        for parts in zip(plan.combinations, clusterings, replicates, strict=True)
    ]
    score = clustering_score.summarise_scores(
        [np.array(c.ari_biology) for c in combinations],
        [np.array(c.ari_center) for c in combinations],
    )
    # Without a block that holds all of a class or centre of one combination, the others count.
    draws = jackknife.spread(score.value, mean_defined(replicates))
    ends = find_ends(score.value, draws, RANGE)
    missing = warn_missing(
        {"clustering_score": score.value}, {"clustering_score": ends}, settings.draws
    )
    record = ClusteringResult(
        model=model,
        dataset=dataset,
        clustering_score=score.value,
        clustering_score_std=score.std,
        clustering_score_std_meaning=STD_MEANING,
        ci95=ends,
        clustering_score_at_n_classes=_mean(combinations, "clustering_score_at_n_classes"),
        ari_biology=float(np.mean([np.mean(c.ari_biology) for c in combinations])),
        ari_center=float(np.mean([np.mean(c.ari_center) for c in combinations])),
        nmi_biology=_mean(combinations, "nmi_biology"),
        nmi_center=_mean(combinations, "nmi_center"),
        ami_biology=_mean(combinations, "ami_biology"),
        ami_center=_mean(combinations, "ami_center"),
        distance=settings.metric,
        k_grid=list(plan.k_grid),
        trials=plan.protocol.trials,
        n_at_k_max=sum(c.k == c.k_max for c in combinations),
        n_samples=len(plan.view),
        n_slides=len(plan.view.factorize(SLIDE).names),
        combinations=combinations,
        warnings=_warn(plan, combinations) + missing,
        provenance=provenance,
    )
    key = digests.digest(
        plan.view.fingerprint().encode(),
        f"{settings.group_column} {settings.seed} {settings.draws} {DRAWS_KIND}".encode(),
    )
    return Outcome(record, key, {"clustering_score": draws})


def _mean(combinations: Sequence[ClusteringCombination], name: str) -> float:
    return float(np.mean([getattr(c, name) for c in combinations]))


def _make_combination(
    combination: Combination,
    clusters: Clustering,
    replicates: np.ndarray,
    jackknife: Jackknife,
    *,
    n_clusters: int,
) -> ClusteringCombination:
    # All combinations use one number of clusters and share a compilation; the rest stay empty.
    tables, plain, best = (
        clustering_score.count_clusters(labels, combination.cell_id, n_clusters=n_clusters)
        for labels in (clusters.trials, clusters.trials_at_classes, clusters.best)
    )
    agreement, at_two = (clustering_score.measure_agreement(t) for t in (tables, plain))
    score = clustering_score.summarise_scores([agreement.ari_biology], [agreement.ari_center])
    at_classes = clustering_score.summarise_scores([at_two.ari_biology], [at_two.ari_center])
    return ClusteringCombination(
        name=combination.name,
        classes=list(combination.classes),
        centers=list(combination.centers),
        n_samples=len(combination.rows),
        k=clusters.k,
        k_max=int(clusters.k_grid[-1]),
        silhouettes=clusters.silhouettes.tolist(),
        ari_biology=agreement.ari_biology.tolist(),
        ari_center=agreement.ari_center.tolist(),
        clustering_score=score.value,
        clustering_score_std=score.std,
        ci95=find_ends(score.value, jackknife.spread(score.value, replicates), RANGE),
        clustering_score_at_n_classes=at_classes.value,
        nmi_biology=float(agreement.nmi_biology.mean()),
        nmi_center=float(agreement.nmi_center.mean()),
        ami_biology=float(agreement.ami_biology.mean()),
        ami_center=float(agreement.ami_center.mean()),
        composition=best[0, : clusters.k].reshape(clusters.k, -1).tolist(),
    )


def _warn(plan: Plan, combinations: Sequence[ClusteringCombination]) -> list[str]:
    """Warnings for the reader; they are also logged."""
    texts = []
    at_end = [c for c in combinations if c.k == c.k_max]
    if at_end and len(plan.k_grid) > 1:
        texts.append(
            f"K is at the end of its grid ({plan.k_grid[-1]}) in {len(at_end)} of "
            f"{len(combinations)} combinations: more clusters might fit better, and the score "
            "depends on K; compare the score at K = number of classes, or raise k_max."
        )
    short = [c for c in combinations if c.k_max < plan.k_grid[-1]]
    if short:
        texts.append(
            f"{len(short)} combinations have no more than {plan.k_grid[-1]} patches; numbers of "
            "clusters that are not below the number of patches were left out there."
        )
    alone = [c.name for c in combinations if c.ci95 is None and np.isfinite(c.clustering_score)]
    if alone and plan.settings.draws:
        texts.append(
            f"no interval for {len(alone)} of {len(combinations)} combinations ({alone[0]}): one "
            "slide holds all of a class or centre, so that its error is unknown; add slides."
        )
    texts += warn_of_names(plan.view)
    for text in texts:
        logging.warning("%s", text)
    return texts
