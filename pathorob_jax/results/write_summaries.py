"""Write ``summary.json`` and ``apd_aggregate.json``: one model over several datasets.

Both are in ``<root>/<model>/`` and are rewritten whenever the records that they need exist.
"""

from collections.abc import Sequence
from typing import Any

from pathorob_jax.data import protocols
from pathorob_jax.results import registry
from pathorob_jax.results.apd import ApdResult, make_apd_aggregate
from pathorob_jax.results.clustering_score import ClusteringResult
from pathorob_jax.results.over_datasets import Mean
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import read_model_outcomes, write_result
from pathorob_jax.results.robustness_index import RobustnessIndexResult
from pathorob_jax.results.summary import Summary

NEEDED = (RobustnessIndexResult, ApdResult, ClusteringResult)
# Numbers with separate fields in the summary.
FIELDS = ("robustness_index", "apd_id", "apd_ood", "clustering_score")


def write_summaries(root: str, model: str) -> list[str]:
    """Write the summaries for which a model has the results; return their paths.

    The aggregate needs the drop on two or more datasets; the summary needs all three metrics of
    PathoROB on all three of its datasets. Results with a confounder other than the centre
    (``<dataset>@<column>``) are used in neither.
    """
    found = [o for o in read_model_outcomes(root, model) if _is_of_centres(o.record)]
    by_place = {(type(o.record), o.record.dataset): o for o in found}
    drops = [o.record for o in found if isinstance(o.record, ApdResult)]
    names = sorted(protocols.PROTOCOLS)
    written: list[Any] = []
    if len(drops) > 1:
        written.append(make_apd_aggregate(drops))
    if all((kind, name) in by_place for kind in NEEDED for name in names):
        written.append(_summarise(model, names, by_place))
    return [write_result(root, record) for record in written]


def _is_of_centres(record: Any) -> bool:
    """Whether a record is of one dataset with the centre as confounder."""
    return "@" not in getattr(record, "dataset", "@")


def _summarise(
    model: str, names: Sequence[str], by_place: dict[tuple[type, str], Outcome]
) -> Summary:
    outcomes = {
        kind.name: [by_place[kind.record, name] for name in names]
        for kind in registry.KINDS.values()
        if all((kind.record, name) in by_place for name in names)
    }
    means: dict[str, Mean] = {}
    values: dict[str, list[float]] = {}
    for name, found in outcomes.items():
        for headline in registry.KINDS[name].headlines:
            if headline.in_summary:
                means[headline.field] = headline.average(found)
                values[headline.field] = [getattr(o.record, headline.field) for o in found]
    needed = [outcome.record for kind in NEEDED for outcome in outcomes[kind.metric]]
    stores = [record.provenance["store"]["identity"] for record in needed]
    numbers: dict[str, Any] = {name: means[name].value for name in FIELDS}
    numbers |= {f"{name}_ci95": means[name].ci95 for name in FIELDS}
    return Summary(
        model=model,
        datasets=list(names),
        **numbers,
        per_dataset={
            dataset: {name: values[name][i] for name in FIELDS} for i, dataset in enumerate(names)
        },
        warnings=_warn(stores, outcomes),
        provenance={"stores": stores},
        more={
            name: {
                "value": mean.value,
                "ci95": mean.ci95,
                "per_dataset": dict(zip(names, values[name], strict=True)),
            }
            for name, mean in means.items()
            if name not in FIELDS
        },
    )


def _warn(stores: Sequence[dict[str, Any]], outcomes: dict[str, list[Outcome]]) -> list[str]:
    warnings = []
    encoders = [identity.get("encoder") for identity in stores]
    if any(encoder != encoders[0] for encoder in encoders):
        warnings.append("the results come from stores of different encoders; evaluate them again.")
    drops, scores = ([o.record for o in outcomes[kind.metric]] for kind in NEEDED[1:])
    efforts = {
        (d.repetitions, c.trials, tuple(c.k_grid)) for d, c in zip(drops, scores, strict=True)
    }
    if len(efforts) > 1:
        warnings.append(
            "the datasets were scored with different --repetitions, --trials or K grids; evaluate "
            "them again with the same flags."
        )
    return warnings
