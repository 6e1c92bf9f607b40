"""Over datasets: the aggregate drop, and PathoROB's headline of one model.

Enters: the records of one model under a results root. Leaves: ``apd_aggregate.json`` and
``summary.json`` in ``<root>/<model>/``, each written again whenever what it needs is there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import protocols
from pathorob_jax.metrics import apd
from pathorob_jax.results.records import (
    ApdAggregate,
    ApdResult,
    ClusteringResult,
    RobustnessIndexResult,
    Summary,
)
from pathorob_jax.results.result_files import (
    percentile_interval,
    read_draws,
    read_model_results,
    write_result,
)

HEADLINE = (RobustnessIndexResult, ApdResult, ClusteringResult)


def write_summaries(root: str, model: str) -> list[str]:
    """Write what a model's results suffice for; returns the paths.

    The aggregate needs the drop on two datasets or more, the summary all three metrics on all
    three datasets of PathoROB. Confounders other than the centre (``<dataset>@<column>``) enter
    neither.
    """
    found = [r for r in read_model_results(root, model) if "@" not in getattr(r, "dataset", "@")]
    of = {(type(r), r.dataset): r for r in found}
    drops = [r for r in found if isinstance(r, ApdResult)]
    names = sorted(protocols.PROTOCOLS)
    written: list[Any] = []
    if len(drops) > 1:
        written.append(make_apd_aggregate(drops))
    if all((kind, name) in of for kind in HEADLINE for name in names):
        written.append(_summarise(root, model, names, of))
    return [write_result(root, record) for record in written]


def make_apd_aggregate(results: Sequence[ApdResult]) -> ApdAggregate:
    """The mean drop of one model over its datasets, each repetition a value.

    Raises:
        InputError: no result, of several models, or a dataset twice.
    """
    models, names = {r.model for r in results}, [r.dataset for r in results]
    if len(models) != 1 or len(set(names)) != len(names):
        raise InputError(
            f"results: expected one model and each dataset once, found {sorted(models)}, {names}."
        )
    in_domain, out = (
        apd.aggregate_drops([apd.performance_drops(getattr(r, name)) for r in results])
        for name in ("id_accuracies", "ood_accuracies")
    )
    undefined = [r.dataset for r in results if np.isnan(r.apd_ood)]
    return ApdAggregate(
        model=results[0].model,
        datasets=names,
        apd_id=in_domain.mean,
        ci_id=in_domain.ci,
        ci_id_textbook=in_domain.ci_textbook,
        apd_ood=out.mean,
        ci_ood=out.ci,
        ci_ood_textbook=out.ci_textbook,
        df=in_domain.df,
        df_textbook=in_domain.df_textbook,
        warnings=[f"apd_ood: undefined, as it is for {', '.join(undefined)}."] if undefined else [],
    )


def _summarise(
    root: str, model: str, names: Sequence[str], of: dict[tuple[type, str], Any]
) -> Summary:
    index, drops, scores = ([of[kind, name] for name in names] for kind in HEADLINE)
    aggregate: ApdAggregate = make_apd_aggregate(drops)
    stores = [r.provenance["store"]["identity"] for r in (*index, *drops, *scores)]
    encoders = [identity.get("encoder") for identity in stores]
    differ = any(encoder != encoders[0] for encoder in encoders)
    warnings = []
    if differ:
        warnings.append("the results come from stores of different encoders; evaluate them again.")
    efforts = {
        (d.repetitions, c.trials, tuple(c.k_grid)) for d, c in zip(drops, scores, strict=True)
    }
    if len(efforts) > 1:
        warnings.append(
            "the datasets were scored with different --repetitions, --trials or K grids; evaluate "
            "them again with the same flags."
        )
    return Summary(
        model=model,
        datasets=list(names),
        robustness_index=_mean([r.robustness_index for r in index]),
        robustness_index_ci95=_mean_interval(root, index, "robustness_index"),
        apd_id=aggregate.apd_id,
        apd_id_ci95=_around(aggregate.apd_id, aggregate.ci_id),
        apd_ood=aggregate.apd_ood,
        apd_ood_ci95=_around(aggregate.apd_ood, aggregate.ci_ood),
        clustering_score=_mean([r.clustering_score for r in scores]),
        clustering_score_ci95=_mean_interval(root, scores, "clustering_score"),
        per_dataset={
            name: {
                "robustness_index": at.robustness_index,
                "apd_id": drop.apd_id,
                "apd_ood": drop.apd_ood,
                "clustering_score": score.clustering_score,
            }
            for name, at, drop, score in zip(names, index, drops, scores, strict=True)
        },
        warnings=warnings,
        provenance={"stores": stores},
    )


def _mean(values: Sequence[float]) -> float:
    """Unweighted; undefined where one is."""
    return float(np.mean(values))


def _around(middle: float, half: float) -> list[float] | None:
    ends = [middle - half, middle + half]
    return ends if np.isfinite(ends).all() else None


def _mean_interval(root: str, records: Sequence[Any], name: str) -> list[float] | None:
    """Of the mean over datasets, draw by draw; None where a dataset has no draws of its own."""
    draws = [read_draws(root, record).draws.get(name, np.zeros(0)) for record in records]
    if len({len(drawn) for drawn in draws}) != 1 or not len(draws[0]):
        return None
    return percentile_interval(np.mean(draws, axis=0))
