"""A record as numbers in a row: what CSV files, tables and experiment trackers take.

The numbers of a record are its fields of one number each, in the order of the class, nested ones
included; an interval belongs to the number that it is of.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

TIDY = pa.schema(
    [
        *((name, pa.string()) for name in ("model", "dataset", "metric", "name")),
        *((name, pa.float64()) for name in ("value", "low", "high")),
    ]
)


class Number(NamedTuple):
    """One field of a record.

    Attributes:
        name: of the field.
        value: a number, or a string that tells what the numbers are of.
        ends: [low, high] of its 95 % interval, NaN where undefined; None where it never has one.
    """

    name: str
    value: Any
    ends: tuple[float, float] | None


def flatten(record: Any) -> list[Number]:
    """The single numbers and strings of a record, with the intervals of the former."""
    ends = find_intervals(record)
    numbers: list[Number] = []
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            numbers += [n for n in flatten(value) if not isinstance(n.value, list)]
        elif isinstance(value, str | int | float) and not field.name.endswith("_meaning"):
            numbers.append(Number(field.name, value, ends.get(field.name)))
    return numbers


def find_intervals(record: Any) -> dict[str, tuple[float, float]]:
    """Ends of the 95 % intervals of a record by the name of the number that they are of."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name in ("ci95", "companions_ci95") and isinstance(value, dict):
            found |= value
        elif field.name == "ci95":
            found[getattr(record, "ci95_of", None) or record.headline] = value
        elif field.name.endswith("_ci95"):
            found[field.name.removesuffix("_ci95")] = value
    undefined = (math.nan, math.nan)
    return {name: tuple(ends) if ends else undefined for name, ends in found.items()}


def column_values(record: Any) -> dict[str, Any]:
    """The numbers by column name: each is followed by ``<name>_low`` and ``<name>_high``."""
    columns: dict[str, Any] = {}
    for name, value, ends in flatten(record):
        columns[name] = value
        if ends is not None:
            columns[f"{name}_low"], columns[f"{name}_high"] = ends
    return columns


def scalars(records: Mapping[str, Any], *, prefix: str = "") -> dict[str, float]:
    """The numbers of records in one flat mapping, as experiment trackers log them.

    Args:
        records: by metric, as ``evaluate`` returns them.
        prefix: in front of every name, for example ``val/``.

    Returns:
        ``<metric>/<number>`` for every floating-point number of a record and for k, and
        ``<metric>/<number>_low`` and ``_high`` for the ends of its 95 % interval. NaN where
        undefined. The names are the same every time.

    >>> import pathorob_jax as pr
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(32, 8))
    >>> rows = {"slide_id": np.arange(32) // 4, "patch_id": np.arange(32)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 16}
    >>> rows |= {"medical_center": ["A"] * 16 + ["B"] * 16}
    >>> log = pr.scalars(pr.evaluate_embeddings(x, rows, k=3), prefix="val/")
    >>> 0 <= log["val/robustness_index/robustness_index_low"] <= 1
    True
    """
    log: dict[str, float] = {}
    for key, record in records.items():
        own = {field.name for field in dataclasses.fields(record)}
        for name, value, ends in flatten(record):
            if name not in own:
                continue
            if isinstance(value, float) or name == "k":
                log[f"{prefix}{key}/{name}"] = float(value)
            if ends is not None:
                log[f"{prefix}{key}/{name}_low"], log[f"{prefix}{key}/{name}_high"] = ends
    return log


def as_table(records: Iterable[Any]) -> pa.Table:
    """Numbers of records in tidy form: model, dataset, metric, name, value, low, high.

    ``low`` and ``high`` are the ends of the 95 % interval; null where there is none.
    """
    rows = [
        {
            "model": record.model,
            "dataset": getattr(record, "dataset", None),
            "metric": record.metric,
            "name": name,
            "value": _defined(value),
            "low": None if ends is None else _defined(ends[0]),
            "high": None if ends is None else _defined(ends[1]),
        }
        for record in records
        for name, value, ends in flatten(record)
        if not isinstance(value, str)
    ]
    return pa.Table.from_pylist(rows, schema=TIDY)


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
