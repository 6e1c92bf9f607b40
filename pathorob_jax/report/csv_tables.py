"""The report's CSV tables: every number at full precision, one line per row.

Enters: records. Leaves: CSV text. Floats are written so that reading them back gives the same
float; undefined values are empty fields.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pathorob_jax.report.collection import Board
from pathorob_jax.report.page_apd import LINEAR, SIDES, list_directions
from pathorob_jax.report.page_headline import list_parts, measure
from pathorob_jax.results.compare_models import Comparison
from pathorob_jax.results.records import (
    ApdResult,
    ClusteringResult,
    MarginsResult,
    ProbesResult,
    RobustnessIndexResult,
)

COMPANIONS = (
    *("balanced_accuracy", "prediction_performance", "id_performance", "ood_performance"),
    *("bio_vs_confounding", "confounder_insensitivity", "generalization_index"),
)
PROBES = ("biology_auc", "center_auc", "ood_biology_auc", "center_knn_balanced_accuracy")


def _with_ends(names: Sequence[str]) -> tuple[str, ...]:
    """Each name, followed by those of the ends of its interval."""
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


INDEX_COLUMNS = (
    *("model", "dataset", "design", "robustness_index", "ci95_low", "ci95_high"),
    *_with_ends(("support",)),
    *("k", "k_rule", "k_available"),
    *_with_ends(COMPANIONS),
    *("normalized_confounder_insensitivity", "null_permuted_center", "null_random_features"),
    *("n_samples", "n_slides", "n_groups", "ss", "so", "os", "oo"),
)
CURVE_COLUMNS = (
    *("model", "dataset", "k", "robustness_index", "balanced_accuracy", "support"),
    *("ss", "so", "os", "oo"),
)
GROUP_COLUMNS = (
    *("model", "dataset", "kind", "name", "n_samples", "robustness_index", "ci95_low", "ci95_high"),
    *("support", "recall", "ss", "so", "os", "oo"),
)
MARGINS_COLUMNS = (
    *("model", "dataset", "design", "k", "k_rule", "n_samples", "n_slides"),
    *("mari", "mari_low", "mari_high", "mari_tau", "mari_support"),
    *("croma", "croma_low", "croma_high", "croma_m", "croma_support"),
    *("croma_f0", "croma_f0_low", "croma_f0_high", "croma_q10", "croma_q10_low", "croma_q10_high"),
    *("croma_ltm10", "croma_ltm10_low", "croma_ltm10_high"),
)
PROBES_COLUMNS = (
    *("model", "dataset", "design", "k", *_with_ends(PROBES)),
    *("n_samples", "n_slides"),
)
COMPARISON_COLUMNS = (
    *("statistic", "dataset", "model_a", "model_b", "difference", "low", "high"),
    "share_positive",
)
RANK_COLUMNS = (
    *("statistic", "dataset", "model", "value", "low", "high", "mean_rank", "rank_low"),
    *("rank_high", "first_share", "left_out"),
)
APD_COLUMNS = (
    *("model", "dataset", "head", "setting", "apd_id", "apd_ood", "nipd_id", "nipd_ood", "chance"),
    *("repetitions", "n_training_rows", "n_id_test_rows", "n_ood_test_rows"),
)
ACCURACY_COLUMNS = (
    *("model", "dataset", "head", "split", "cramers_v", "repetition", "id_accuracy"),
    *("ood_accuracy", "validation_accuracy", "chosen"),
)
DIRECTION_COLUMNS = (
    *("model", "dataset", "side", "center", "class", "called", "split", "cramers_v", "share"),
)
CLUSTERING_COLUMNS = (
    *("model", "dataset", "clustering_score", "ci95_low", "ci95_high", "clustering_score_std"),
    *("clustering_score_at_n_classes", "ari_biology", "ari_center", "nmi_biology", "nmi_center"),
    *("ami_biology", "ami_center", "distance", "n_combinations", "n_at_k_max", "trials"),
    *("n_samples", "n_slides"),
)
COMBINATION_COLUMNS = (
    *("model", "dataset", "name", "class_1", "class_2", "center_1", "center_2", "n_samples"),
    *("k", "k_max", "clustering_score", "ci95_low", "ci95_high", "clustering_score_std"),
    *("clustering_score_at_n_classes", "ari_biology", "ari_center", "nmi_biology", "nmi_center"),
    *("ami_biology", "ami_center"),
)
GROUP_KINDS = (("class", "per_class"), ("center", "per_center"), ("subset", "per_subset"))
MEAN = "mean"


def format_headline_csv(board: Board) -> str:
    """One row per model: each part's mean over its datasets, with its interval."""
    parts = list_parts(board)
    rows = []
    for model in board.models:
        numbers = [measure(board, part, model) for part in parts]
        rows.append([model, *(v for n in numbers for v in (n.value, n.low, n.high))])
    return _format(("model", *_with_ends([part.name for part in parts])), rows)


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
    rows = []
    for record in records:
        for kind, field in GROUP_KINDS:
            for name, group in getattr(record, field).items():
                ends = _ends("ci95", group.ci95)
                fields = [ends[c] if c in ends else getattr(group, c) for c in GROUP_COLUMNS[4:]]
                rows.append((record.model, record.dataset, kind, name, *fields))
    return _format(GROUP_COLUMNS, rows)


def format_margins_csv(records: Sequence[MarginsResult]) -> str:
    """One row per model and dataset."""
    rows = []
    for record in records:
        ends: dict[str, float] = {}
        for name in ("mari", "croma", "croma_f0", "croma_q10", "croma_ltm10"):
            ends |= _ends(name, getattr(record, f"{name}_ci95"))
        rows.append(_fields(record, MARGINS_COLUMNS, ends))
    return _format(MARGINS_COLUMNS, rows)


def format_probes_csv(records: Sequence[ProbesResult]) -> str:
    """One row per model and dataset."""
    rows = []
    for record in records:
        ends: dict[str, float] = {}
        for name in PROBES:
            ends |= _ends(name, record.ci95.get(name))
        rows.append(_fields(record, PROBES_COLUMNS, ends))
    return _format(PROBES_COLUMNS, rows)


def format_comparisons_csv(comparisons: Iterable[Comparison]) -> str:
    """One row per statistic, dataset and pair of models; the mean over datasets as ``mean``."""
    rows = (
        (c.statistic, c.dataset or MEAN, *_fields(pair, COMPARISON_COLUMNS[2:], {}))
        for c in comparisons
        for pair in c.pairs
    )
    return _format(COMPARISON_COLUMNS, rows)


def format_ranks_csv(comparisons: Iterable[Comparison]) -> str:
    """One row per statistic, dataset and model; ``left_out`` says why a model has no rank."""
    rows: list[list[Any]] = []
    for c in comparisons:
        head = [c.statistic, c.dataset or MEAN]
        for contender in c.contenders:
            rows.append([*head, *_fields(contender, RANK_COLUMNS[2:-1], {}), ""])
        empty = [""] * len(RANK_COLUMNS[3:-1])
        rows += [[*head, model, *empty, reason] for model, reason in c.left_out]
    return _format(RANK_COLUMNS, rows)


def format_apd_csv(records: Sequence[ApdResult]) -> str:
    """One row per model, dataset and head."""
    rows = []
    for record in records:
        whole = {name: getattr(record, name) for name in ("model", "dataset", *APD_COLUMNS[8:])}
        rows.append(_fields(record, APD_COLUMNS, whole | {"head": LINEAR, "setting": "C"}))
        for name, head in record.heads.items():
            rows.append(_fields(head, APD_COLUMNS, whole | {"head": name}))
    return _format(APD_COLUMNS, rows)


def format_accuracies_csv(records: Sequence[ApdResult]) -> str:
    """One row per model, dataset, head, split and repetition."""
    rows = []
    for record in records:
        heads: list[tuple[str, Any, list[list[float]]]] = [(LINEAR, record, record.chosen_c)]
        heads += [(name, head, head.chosen) for name, head in record.heads.items()]
        for name, head, chosen in heads:
            lists = (
                head.id_accuracies,
                head.ood_accuracies,
                head.validation_accuracies,
                chosen,
            )
            for split, (v, *by_repetition) in enumerate(zip(record.cramers_v, *lists, strict=True)):
                for repetition, numbers in enumerate(zip(*by_repetition, strict=True)):
                    rows.append(
                        (record.model, record.dataset, name, split, v, repetition, *numbers)
                    )
    return _format(ACCURACY_COLUMNS, rows)


def format_directions_csv(records: Sequence[ApdResult]) -> str:
    """One row per model, dataset, test set, centre, class, class called and split."""
    rows = (
        (record.model, record.dataset, side, center, label, called, split, v, share)
        for record in records
        for side, _ in SIDES
        for center, label, called, shares in list_directions(record, side)
        for split, (v, share) in enumerate(zip(record.cramers_v, shares, strict=True))
    )
    return _format(DIRECTION_COLUMNS, rows)


def format_clustering_csv(records: Sequence[ClusteringResult]) -> str:
    """One row per model and dataset; ``clustering_score_std`` is seed noise."""
    rows = []
    for record in records:
        special = _ends("ci95", record.ci95) | {"n_combinations": len(record.combinations)}
        rows.append(_fields(record, CLUSTERING_COLUMNS, special))
    return _format(CLUSTERING_COLUMNS, rows)


def format_combinations_csv(records: Sequence[ClusteringResult]) -> str:
    """One row per model, dataset and combination; ARIs are means over trials."""
    rows = []
    for record in records:
        for c in record.combinations:
            special: dict[str, Any] = {"model": record.model, "dataset": record.dataset}
            special |= _ends("ci95", c.ci95)
            special |= dict(zip(("class_1", "class_2"), c.classes, strict=True))
            special |= dict(zip(("center_1", "center_2"), c.centers, strict=True))
            for name in ("ari_biology", "ari_center"):
                special[name] = float(np.mean(getattr(c, name)))
            rows.append(_fields(c, COMBINATION_COLUMNS, special))
    return _format(COMBINATION_COLUMNS, rows)


def _index_row(record: RobustnessIndexResult) -> list[Any]:
    special = _ends("ci95", record.ci95)
    special |= {key: getattr(record.neighbor_types, key) for key in ("ss", "so", "os", "oo")}
    for name in ("support", *COMPANIONS):
        special |= _ends(name, record.companions_ci95.get(name))
    return _fields(record, INDEX_COLUMNS, special)


def _ends(name: str, interval: Sequence[float] | None) -> dict[str, float]:
    """Both ends by their columns' names."""
    low, high = interval or (math.nan, math.nan)
    return {f"{name}_low": low, f"{name}_high": high}


def _fields(record: Any, columns: Sequence[str], special: Mapping[str, Any]) -> list[Any]:
    """A record's fields in the order of columns, some of them given."""
    return [special[name] if name in special else getattr(record, name) for name in columns]


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
