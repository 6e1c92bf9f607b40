"""Logistic probes of a store: computes the record with intervals from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pathorob_jax.evaluation.slide_intervals import find_all_ends, spread_all, warn_missing
from pathorob_jax.kernels.bootstrap.intervals import AREA, SHARE
from pathorob_jax.metrics import probes
from pathorob_jax.metrics.left_out_slides import find_accuracy
from pathorob_jax.metrics.robustness_index import mean_defined
from pathorob_jax.results.probes import ProbesResult
from pathorob_jax.results.record import Outcome

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation

FOLDS = 5
VOTE = "center_knn_balanced_accuracy"


def make_probes(evaluation: Evaluation) -> Outcome:
    """Compute the reference's three logistic probes, and the kNN vote for the centre."""
    neighborhood = evaluation.neighborhood
    jackknife, k = neighborhood.jackknife, neighborhood.k
    answers: dict[str, list[probes.ProbeResult]] = {"biology": [], "center": [], "ood_biology": []}
    for scope, block_id in zip(neighborhood.scopes, neighborhood.scope_blocks, strict=True):
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
            resampling=probes.Resampling(jackknife.left_out, block_id),
        )
        for name, answer in zip(answers, scope_answers, strict=True):
            answers[name].append(answer)
    auc = {name: float(mean_defined([r.auc for r in part])) for name, part in answers.items()}
    values = {f"{name}_auc": value for name, value in auc.items()}
    replicates = {
        f"{name}_auc": mean_defined([r.replicates for r in part]) for name, part in answers.items()
    }
    center_id = [s.scope.center_id for s in neighborhood.scopes]
    values[VOTE] = float(
        mean_defined([s.recall(s.scope.center_id, k) for s in neighborhood.scopes])
    )
    replicates[VOTE] = find_accuracy(neighborhood.neighbor_blocks, center_id, jackknife.n_blocks)
    draws = spread_all(jackknife, values, replicates)
    bounds = dict.fromkeys(values, AREA) | {VOTE: SHARE}
    ends = find_all_ends(values, draws, bounds)
    record = ProbesResult(
        model=evaluation.request.model,
        dataset=evaluation.dataset,
        design=neighborhood.design,
        k=k,
        **values,
        ci95=ends,
        n_folds={name: sum(r.n_folds for r in part) for name, part in answers.items()},
        n_skipped_folds={name: sum(r.n_skipped for r in part) for name, part in answers.items()},
        n_samples=sum(len(s.scope.rows) for s in neighborhood.scopes),
        n_slides=neighborhood.n_slides,
        warnings=_warn(answers, auc)
        + warn_missing(values, ends, neighborhood.draws)
        + neighborhood.row_warnings,
        provenance=neighborhood.provenance,
    )
    return Outcome(record, neighborhood.draws_key, draws)


def _warn(
    answers: Mapping[str, Sequence[probes.ProbeResult]], auc: Mapping[str, float]
) -> list[str]:
    texts = [
        f"probe {name}: no fold has all labels on both sides; its area is undefined."
        for name, value in auc.items()
        if np.isnan(value)
    ]
    for name, part in answers.items():
        cut, fits = (sum(r.n_unconverged for r in part), sum(r.n_folds for r in part))
        if cut:
            texts.append(
                f"probe {name}: {cut} of {fits} fits ended at max_iter = {probes.MAX_ITER} before "
                "they met their stopping rule; their areas depend on where they were cut. Look at "
                "the embeddings: features of very different size, or many that hardly vary."
            )
    return texts
