"""What the results of each model cost, for the end of the page."""

from typing import NamedTuple

from pathorob_jax.core.cost import describe_duration
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.costs import ModelCost, costs_of_models


class CostRow(NamedTuple):
    """One model; texts, "–" where a number is not known.

    Attributes:
        model: its name.
        extraction: time and rate of the extraction.
        evaluation: time of all metrics.
        memory: most memory of a process, and of a device.
        machines: where it was computed.
    """

    model: str
    extraction: str
    evaluation: str
    memory: str
    machines: str


def build_costs(collection: Collection) -> list[CostRow]:
    """Rows of the models of which anything is known, in the order of the page."""
    records = [r for kind in collection.kinds for r in collection.of_kind(kind.record)]
    found: dict[str, ModelCost] = {cost.model: cost for cost in costs_of_models(records)}
    return [_describe(found[model]) for model in collection.models if model in found]


def _describe(cost: ModelCost) -> CostRow:
    extraction = "–"
    if cost.extraction_s is not None:
        extraction = describe_duration(cost.extraction_s)
        if cost.tiles and cost.extraction_s > 0:
            extraction += f" ({cost.tiles:,} tiles, {cost.tiles / cost.extraction_s:,.1f} a second)"
    evaluation = "–"
    if cost.evaluation_s is not None:
        least = "" if cost.is_whole else "at least "
        evaluation = least + describe_duration(cost.evaluation_s)
    memory = [
        f"{n_bytes / 1e9:.1f} GB{where}"
        for n_bytes, where in ((cost.peak_bytes, ""), (cost.device_peak_bytes, " of a device"))
        if n_bytes is not None
    ]
    return CostRow(
        cost.model, extraction, evaluation, ", ".join(memory) or "–", "; ".join(cost.machines)
    )
