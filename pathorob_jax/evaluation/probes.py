"""Logistic probes of a store: computes the record with intervals from its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pathorob_jax.kernels.bootstrap.intervals import percentile_interval
from pathorob_jax.metrics import probes
from pathorob_jax.metrics.robustness_index import mean_defined
from pathorob_jax.metrics.robustness_index_draws import draw_accuracy
from pathorob_jax.results.probes import ProbesResult
from pathorob_jax.results.record import Outcome

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation

FOLDS = 5


def make_probes(evaluation: Evaluation) -> Outcome:
    """Compute the reference's three logistic probes, and the kNN vote for the centre."""
    neighborhood = evaluation.neighborhood
    weights, groups = neighborhood.group_weights, neighborhood.scope_groups
    answers: dict[str, list[probes.ProbeResult]] = {"biology": [], "center": [], "ood_biology": []}
    for scope in neighborhood.scopes:
        labels = scope.scope
        fold_groups = neighborhood.probe_group_id[labels.rows]
        questions = [
            probes.Probe(labels.bio_id, fold_groups, FOLDS),
            probes.Probe(labels.center_id, fold_groups, FOLDS),
            probes.Probe(labels.bio_id, labels.center_id, len(labels.centers)),
        ]
        scope_answers = probes.probe_aucs(
            neighborhood.embeddings(labels)[: len(labels.rows)],
            questions,
            seed=neighborhood.probe_seed,
            resampling=probes.Resampling(weights, scope.group_id),
        )
        for name, answer in zip(answers, scope_answers, strict=True):
            answers[name].append(answer)
    auc = {name: float(mean_defined([r.auc for r in part])) for name, part in answers.items()}
    draws = {f"{name}_auc": mean_defined([r.draws for r in part]) for name, part in answers.items()}
    votes = [s.vote(s.scope.center_id, neighborhood.k) for s in neighborhood.scopes]
    center_id = [s.scope.center_id for s in neighborhood.scopes]
    draws["center_knn_balanced_accuracy"] = draw_accuracy(votes, center_id, groups, weights)
    everyone = np.ones((1, weights.shape[1]), np.int32)
    record = ProbesResult(
        model=evaluation.request.model,
        dataset=evaluation.dataset,
        design=neighborhood.design,
        k=neighborhood.k,
        biology_auc=auc["biology"],
        center_auc=auc["center"],
        ood_biology_auc=auc["ood_biology"],
        center_knn_balanced_accuracy=float(draw_accuracy(votes, center_id, groups, everyone)[0]),
        ci95={name: percentile_interval(drawn) for name, drawn in draws.items()},
        n_folds={name: sum(r.n_folds for r in part) for name, part in answers.items()},
        n_skipped_folds={name: sum(r.n_skipped for r in part) for name, part in answers.items()},
        n_samples=sum(len(s.scope.rows) for s in neighborhood.scopes),
        n_slides=neighborhood.n_slides,
        warnings=[
            f"probe {name}: no fold has all labels on both sides; its area is undefined."
            for name, value in auc.items()
            if np.isnan(value)
        ]
        + neighborhood.row_warnings,
        provenance=neighborhood.provenance,
    )
    return Outcome(record, neighborhood.draws_key, draws)
