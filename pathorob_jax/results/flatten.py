"""Flatten a record into named numbers for CSV files, tables and experiment trackers.

The numbers of a record are its scalar fields, in the order of the class, including those of nested
records. An interval belongs to its number.
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
        name: name of the field.
        value: a number, or a string that identifies the record.
        ends: [low, high] of its 95 % interval, NaN if undefined; None if it never has an interval.
    """

    name: str
    value: Any
    ends: tuple[float, float] | None


def flatten(record: Any) -> list[Number]:
    """Scalar numbers and strings of a record, with the intervals of the numbers.

    Nested records that stand apart (``core.plain.APART``) are left out.
    """
    ends = find_intervals(record)
    numbers: list[Number] = []
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.metadata.get("apart"):
            continue
        if dataclasses.is_dataclass(value):
            numbers += [n for n in flatten(value) if not isinstance(n.value, list)]
        elif isinstance(value, str | int | float) and not field.name.endswith("_meaning"):
            numbers.append(Number(field.name, value, ends.get(field.name)))
    return numbers


def interval_of(record: Any, name: str) -> list[float] | None:
    """95 % interval of a number of a record; None if it is undefined or has none."""
    ends = find_intervals(record).get(name)
    return list(ends) if ends is not None and all(map(math.isfinite, ends)) else None


def find_intervals(record: Any) -> dict[str, tuple[float, float]]:
    """Ends of the 95 % intervals of a record, by the name of their number."""
    intervals: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name in ("ci95", "companions_ci95") and isinstance(value, dict):
            intervals |= value
        elif field.name == "ci95":
            intervals[getattr(record, "ci95_of", None) or record.headline] = value
        elif field.name.endswith("_ci95"):
            intervals[field.name.removesuffix("_ci95")] = value
    undefined = (math.nan, math.nan)
    return {name: tuple(ends) if ends else undefined for name, ends in intervals.items()}


def column_values(record: Any) -> dict[str, Any]:
    """Values by column name; ``<name>_low`` and ``<name>_high`` follow a number with interval."""
    columns: dict[str, Any] = {}
    for name, value, ends in flatten(record):
        columns[name] = value
        if ends is not None:
            columns[f"{name}_low"], columns[f"{name}_high"] = ends
    return columns


def scalars(records: Mapping[str, Any], *, prefix: str = "") -> dict[str, float]:
    """Numbers of records in one flat mapping, for experiment trackers.

    Args:
        records: records by metric, as ``evaluate`` returns them.
        prefix: prefix of every name, for example ``val/``.

    Returns:
        ``<metric>/<number>`` for every floating-point number of a record and for k, and
        ``<metric>/<number>_low`` and ``_high`` for the ends of its 95 % interval. Undefined values
        are NaN. The names are the same every time.

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
        top_level = {field.name for field in dataclasses.fields(record)}
        for name, value, ends in flatten(record):
            if name not in top_level:
                continue
            if isinstance(value, float) or name == "k":
                log[f"{prefix}{key}/{name}"] = float(value)
            if ends is not None:
                log[f"{prefix}{key}/{name}_low"], log[f"{prefix}{key}/{name}_high"] = ends
    return log


def as_table(records: Iterable[Any]) -> pa.Table:
    """Numbers of records in tidy form: model, dataset, metric, name, value, low, high.

    ``low`` and ``high`` are the ends of the 95 % interval; null if there is none.
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
