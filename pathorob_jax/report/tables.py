"""The report's CSV tables: every number at full precision, one line per row.

Enters: records. Leaves: CSV text. Floats are written so that reading them back gives the same
float; undefined values are empty fields.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from pathorob_jax.results import MarginsResult, ProbesResult, RobustnessIndexResult

INDEX_COLUMNS = (
    *("model", "dataset", "design", "robustness_index", "support", "ci95_low", "ci95_high"),
    *("k", "k_rule", "k_available", "balanced_accuracy", "prediction_performance"),
    *("id_performance", "ood_performance", "bio_vs_confounding", "confounder_insensitivity"),
    *("normalized_confounder_insensitivity", "generalization_index", "null_permuted_center"),
    *("null_random_features", "n_samples", "n_slides", "n_groups"),
    *("ss", "so", "os", "oo"),
)
CURVE_COLUMNS = (
    *("model", "dataset", "k", "robustness_index", "balanced_accuracy", "support"),
    *("ss", "so", "os", "oo"),
)
GROUP_COLUMNS = (
    *("model", "dataset", "kind", "name", "n_samples", "robustness_index", "support", "recall"),
    *("ss", "so", "os", "oo"),
)
MARGINS_COLUMNS = (
    *("model", "dataset", "design", "k", "k_rule", "n_samples", "n_slides"),
    *("mari", "mari_low", "mari_high", "mari_tau", "mari_support"),
    *("croma", "croma_low", "croma_high", "croma_m", "croma_support"),
    *("croma_f0", "croma_f0_low", "croma_f0_high", "croma_q10", "croma_q10_low", "croma_q10_high"),
    *("croma_ltm10", "croma_ltm10_low", "croma_ltm10_high"),
)
PROBES_COLUMNS = (
    *("model", "dataset", "design", "k", "biology_auc", "center_auc", "ood_biology_auc"),
    *("center_knn_balanced_accuracy", "n_samples", "n_slides"),
)
GROUP_KINDS = (("class", "per_class"), ("center", "per_center"), ("subset", "per_subset"))


def format_index_csv(records: Sequence[RobustnessIndexResult]) -> str:
    """One row per model and dataset with all scalar fields."""
    return _format(INDEX_COLUMNS, (_index_row(record) for record in records))


def format_curves_csv(records: Sequence[RobustnessIndexResult]) -> str:
    """One row per model, dataset and k."""
    names = CURVE_COLUMNS[2:]
    rows = (
        (record.model, record.dataset, *point)
        for record in records
        for point in zip(*(getattr(record.curve, name) for name in names), strict=True)
    )
    return _format(CURVE_COLUMNS, rows)


def format_groups_csv(records: Sequence[RobustnessIndexResult]) -> str:
    """One row per model, dataset and class, centre or subset."""
    names = GROUP_COLUMNS[4:]
    rows = (
        (record.model, record.dataset, kind, name, *(getattr(group, n) for n in names))
        for record in records
        for kind, field in GROUP_KINDS
        for name, group in getattr(record, field).items()
    )
    return _format(GROUP_COLUMNS, rows)


def format_margins_csv(records: Sequence[MarginsResult]) -> str:
    """One row per model and dataset."""
    return _format(MARGINS_COLUMNS, (_margins_row(record) for record in records))


def format_probes_csv(records: Sequence[ProbesResult]) -> str:
    """One row per model and dataset."""
    rows = ([getattr(record, name) for name in PROBES_COLUMNS] for record in records)
    return _format(PROBES_COLUMNS, rows)


def _margins_row(record: MarginsResult) -> list[Any]:
    special: dict[str, float] = {}
    for name in ("mari", "croma", "croma_f0", "croma_q10", "croma_ltm10"):
        ends = getattr(record, f"{name}_ci95") or (math.nan, math.nan)
        special |= {f"{name}_low": ends[0], f"{name}_high": ends[1]}
    return [special[name] if name in special else getattr(record, name) for name in MARGINS_COLUMNS]


def _index_row(record: RobustnessIndexResult) -> list[Any]:
    low, high = record.ci95 if record.ci95 is not None else (math.nan, math.nan)
    special = {"ci95_low": low, "ci95_high": high}
    special |= {key: getattr(record.neighbor_types, key) for key in ("ss", "so", "os", "oo")}
    return [special[name] if name in special else getattr(record, name) for name in INDEX_COLUMNS]


def _format(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(value) for value in row] for row in rows)
    return stream.getvalue()


def _field(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)
