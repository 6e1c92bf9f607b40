"""What results cost, as their provenance says: of a record, and of all records of a model.

``provenance.cost`` of a record is that of ``core.cost.measured``, with ``extraction``: the costs of
the passes over tiles that made the store, each with ``tiles``, ``start_s`` and the number of
``encoders`` that shared it. Results of older versions have none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pathorob_jax.core.cost import MACHINE, SECONDS
from pathorob_jax.results.record import Outcome

COST, EXTRACTION = "cost", "extraction"


def add_cost(
    outcome: Outcome, took: Mapping[str, Any], extraction: Sequence[Mapping[str, Any]]
) -> Outcome:
    """The same outcome, whose record says what it cost; records without provenance stay.

    Args:
        outcome: what was computed.
        took: of ``core.cost.measured``.
        extraction: costs of the passes that made the store; empty: not known.
    """
    record = outcome.record
    if not hasattr(record, "provenance"):
        return outcome
    cost = dict(took) | ({EXTRACTION: [dict(one) for one in extraction]} if extraction else {})
    return outcome._replace(record=replace(record, provenance=record.provenance | {COST: cost}))


def cost_of(record: Any) -> dict[str, Any] | None:
    """What a record cost; None where that is not known."""
    found = getattr(record, "provenance", {}).get(COST)
    return found if isinstance(found, dict) and _number(found.get(SECONDS)) is not None else None


@dataclass(frozen=True)
class ModelCost:
    """What all results of a model cost; None: not known, of one part or of all.

    Attributes:
        model: name of the model.
        tiles: number of tiles embedded, over all datasets.
        extraction_s: seconds of their extraction; a pass shared by several encoders counts for each
            with its share.
        evaluation_s: seconds of all metrics.
        is_whole: False where parts were there already, so that the seconds are too few.
        peak_bytes: most memory of a process.
        device_peak_bytes: most memory of a device.
        machines: processor, cores and devices, in words.
    """

    model: str
    tiles: int | None
    extraction_s: float | None
    evaluation_s: float | None
    is_whole: bool
    peak_bytes: int | None
    device_peak_bytes: int | None
    machines: tuple[str, ...]


def costs_of_models(records: Iterable[Any]) -> list[ModelCost]:
    """One entry for each model of which anything is known, in the order of the records."""
    by_model: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for record in records:
        cost = cost_of(record)
        if cost is not None:
            by_model.setdefault(record.model, []).append((str(record.dataset), cost))
    return [_add_up(model, found) for model, found in by_model.items()]


def _add_up(model: str, found: Sequence[tuple[str, dict[str, Any]]]) -> ModelCost:
    # All records of a store name the same passes; confounders share it.
    stores = {dataset.partition("@")[0]: cost.get(EXTRACTION) or [] for dataset, cost in found}
    passes = [one for store in stores.values() for one in store if isinstance(one, dict)]
    costs = [cost for _, cost in found]
    seconds = [_number(one.get(SECONDS)) for one in passes]
    tiles = [_number(one.get("tiles")) for one in passes]
    encoders = [max(1, _number(one.get("encoders")) or 1) for one in passes]
    everything = [*passes, *costs]
    return ModelCost(
        model=model,
        tiles=None if not passes or None in tiles else sum(int(n) for n in tiles if n is not None),
        extraction_s=(
            None
            if not passes or None in seconds
            else sum(s / n for s, n in zip(seconds, encoders, strict=True) if s is not None)
        ),
        evaluation_s=sum(float(cost[SECONDS]) for cost in costs),
        is_whole=all(one.get("is_whole") is not False for one in costs),
        peak_bytes=_largest(everything, "peak_bytes"),
        device_peak_bytes=_largest(everything, "device_peak_bytes"),
        machines=tuple(dict.fromkeys(filter(None, map(describe_machine, everything)))),
    )


def _largest(costs: Sequence[Mapping[str, Any]], name: str) -> int | None:
    known = [n for n in (_number(cost.get(name)) for cost in costs) if n is not None]
    return int(max(known)) if known else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and value >= 0 else None


def describe_machine(cost: Mapping[str, Any]) -> str:
    """The machine of a cost in words; "" where it is not known."""
    if not all(name in cost for name in MACHINE):
        return ""
    processor, cores, device, devices, processes = (cost[name] for name in MACHINE)
    hosts = f"{processes} processes of " if processes != 1 else ""
    if device == "cpu":
        return f"{hosts}{cores} cores of {processor}"
    return f"{hosts}{devices} x {device}, {cores} cores of {processor}"
