"""CSV tables with every number at full precision.

The columns are the fields of the records, in their order. An interval takes two columns after its
number, ``<name>_low`` and ``<name>_high``. Floats are written so that reading them back gives the
same float. Undefined values are empty fields. Text that a spreadsheet would take for a formula
(``GUARDED``) has an apostrophe before it; numbers, negative ones too, are never changed.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pathorob_jax.metrics.apd import LINEAR
from pathorob_jax.report.directional_errors import ModelErrors, list_rows
from pathorob_jax.results.apd import ApdResult, HeadResult
from pathorob_jax.results.clustering_score import ClusteringResult
from pathorob_jax.results.compare_models import Comparison
from pathorob_jax.results.directional_errors import DirectionalErrors
from pathorob_jax.results.feature_space import FeatureSpaceResult
from pathorob_jax.results.flatten import column_values
from pathorob_jax.results.over_models import OverModels
from pathorob_jax.results.retrieval import LEVELS, RetrievalDrop, RetrievalResult
from pathorob_jax.results.robustification import RobustificationResult
from pathorob_jax.results.robustness_index import RobustnessIndexResult

COMPARISON_COLUMNS = (
    *("statistic", "dataset", "model_a", "model_b", "difference", "low", "high"),
    *("share_positive", "slides", "slides_needed", "slides_at_least"),
)
RANK_COLUMNS = (
    *("statistic", "dataset", "model", "value", "low", "high", "mean_rank", "rank_low"),
    *("rank_high", "first_share", "place_share", "left_out"),
)
COMPONENT_COLUMNS = (
    *("variance_share", "eta2_class", "eta2_center", "eta2_interaction", "cumulative_variance"),
    *("cumulative_class", "cumulative_center"),
)
GROUP_KINDS = (("class", "per_class"), ("center", "per_center"), ("subset", "per_subset"))
SIDES = ("id", "ood")
MEAN = "mean"
# Spreadsheets compute a cell that begins with one of these, in wide form too.
GUARDED = tuple("=+-@\t\n\uff1d\uff0b\uff0d\uff20")


def format_records(records: Sequence[Any]) -> str:
    """One row per model and dataset with the single numbers of the record."""
    return format_rows(column_values(record) for record in records)


def format_curves(records: Sequence[RobustnessIndexResult]) -> str:
    """One row per model, dataset and k."""
    return format_rows(
        {"model": record.model, "dataset": record.dataset}
        | dict(zip(vars(record.curve), point, strict=True))
        for record in records
        for point in zip(*vars(record.curve).values(), strict=True)
    )


def format_components(records: Sequence[FeatureSpaceResult]) -> str:
    """One row per model, dataset and principal component."""
    rows = []
    for record in records:
        n = len(record.variance_share or [])
        lists = {name: getattr(record, name) or [math.nan] * n for name in COMPONENT_COLUMNS}
        for i in range(n):
            head = {"model": record.model, "dataset": record.dataset, "component": i + 1}
            rows.append(head | {name: values[i] for name, values in lists.items()})
    return format_rows(rows)


def format_models(over: OverModels) -> str:
    """One row per model: every number with its interval, and the facts with their sources."""
    rows = []
    for row in over.models:
        columns: dict[str, Any] = {"model": row.model}
        for name, value in row.values.items():
            columns[name] = value
            low, high = row.ci95.get(name) or (math.nan, math.nan)
            columns[f"{name}_low"], columns[f"{name}_high"] = low, high
        for name, fact in row.facts.items():
            columns[name], columns[f"{name}_source"] = fact["value"], fact["source"]
        rows.append(columns)
    return format_rows(rows)


def format_correlations(over: OverModels) -> str:
    """One row per pair of numbers, then one per size of the models."""
    return format_rows(
        column_values(found) | {"which": getattr(found, "which", "all")}
        for found in (*over.correlations, *over.scaling)
    )


def format_groups(records: Sequence[RobustnessIndexResult]) -> str:
    """One row per model, dataset and class, centre or subset."""
    return format_rows(
        {"model": record.model, "dataset": record.dataset, "kind": kind, "name": name}
        | column_values(group)
        for record in records
        for kind, field in GROUP_KINDS
        for name, group in getattr(record, field).items()
    )


def format_comparisons(comparisons: Iterable[Comparison]) -> str:
    """One row per statistic, dataset and pair of models; ``mean`` is the mean over datasets."""
    rows = (
        (c.statistic, _place(c), *_fields(pair, COMPARISON_COLUMNS[2:]))
        for c in comparisons
        for pair in c.pairs
    )
    return _format(COMPARISON_COLUMNS, rows)


def format_ranks(comparisons: Iterable[Comparison]) -> str:
    """One row per statistic, dataset and model; ``left_out`` says why a model has no rank."""
    rows: list[list[Any]] = []
    for c in comparisons:
        head = [c.statistic, _place(c)]
        for contender in c.contenders:
            rows.append([*head, *_fields(contender, RANK_COLUMNS[2:-1]), ""])
        empty = [""] * len(RANK_COLUMNS[3:-1])
        rows += [[*head, model, *empty, reason] for model, reason in c.left_out]
    return _format(RANK_COLUMNS, rows)


def _place(comparison: Comparison) -> str:
    """Dataset of a comparison; ``mean`` or ``mean@<confounder>`` for the mean over datasets."""
    by = f"@{comparison.confounder}" if comparison.confounder else ""
    return comparison.dataset or f"{MEAN}{by}"


def format_apd(records: Sequence[ApdResult]) -> str:
    """One row per model, dataset and head; two where a robustifier was fitted in every split."""
    rows = []
    for record in records:
        linear = column_values(record)
        first = {"model": record.model, "dataset": record.dataset}
        refit: dict[str, Any] = {} if record.fit_all is None else {"fit_on": "train"}
        rows.append(first | {"head": LINEAR, "setting": "C"} | linear | refit)
        # Columns that apply only to the linear probe stay empty.
        shared = {n: v for n, v in linear.items() if n not in ("converged_share", "stopping")}
        for name, head in record.heads.items():
            rows.append(first | {"head": name} | shared | column_values(head) | refit)
        for name, head in _heads_fitted_on_all(record).items():
            rows.append(first | {"head": name} | shared | column_values(head) | {"fit_on": "all"})
    return format_rows(rows)


def _heads_fitted_on_all(record: ApdResult) -> dict[str, HeadResult]:
    """Heads on the embeddings of a robustified store as it is."""
    return {} if record.fit_all is None else {LINEAR: record.fit_all, **record.fit_all.heads}


def format_accuracies(records: Sequence[ApdResult]) -> str:
    """One row per model, dataset, head, split and repetition; ``fit_on`` as in ``format_apd``."""
    rows = []
    for record in records:
        fit = "" if record.fit_all is None else "train"
        heads: list[tuple[str, str, Any, list[list[float]]]] = [
            (LINEAR, fit, record, record.chosen_c)
        ]
        heads += [(name, fit, head, head.chosen) for name, head in record.heads.items()]
        on_all = _heads_fitted_on_all(record)
        heads += [(name, "all", head, head.chosen) for name, head in on_all.items()]
        for name, fit_on, head, chosen in heads:
            lists = {
                "id_accuracy": head.id_accuracies,
                "ood_accuracy": head.ood_accuracies,
                "validation_accuracy": head.validation_accuracies,
                "chosen": chosen,
            }
            for split, association in enumerate(record.cramers_v):
                for repetition in range(record.repetitions):
                    row: dict[str, Any] = {"model": record.model, "dataset": record.dataset}
                    row |= {"head": name} | ({"fit_on": fit_on} if fit_on else {})
                    row |= {"split": split, "cramers_v": association, "repetition": repetition}
                    rows.append(row | {n: v[split][repetition] for n, v in lists.items()})
    return format_rows(rows)


def format_directional_errors(records: Sequence[ApdResult]) -> str:
    """One row per model, dataset, head, centre, class and split; ``fit_on`` as in ``format_apd``.

    The interval is that of the pull at the last split.
    """
    return format_rows(
        {"model": record.model, "dataset": record.dataset, "head": name}
        | ({"fit_on": fit_on} if fit_on else {})
        | row
        for record in records
        for name, fit_on, errors in list_head_errors(record)
        for row in list_rows(ModelErrors(record.model, record.cramers_v, errors))
    )


def list_head_errors(record: ApdResult) -> list[tuple[str, str, DirectionalErrors]]:
    """Head, ``fit_on`` as in ``format_apd`` ("": no robustifier), and errors, of every head."""
    fit = "" if record.fit_all is None else "train"
    out = [(LINEAR, fit, record.directional_errors)]
    out += [(name, fit, head.directional_errors) for name, head in record.heads.items()]
    on_all = _heads_fitted_on_all(record)
    return out + [(name, "all", head.directional_errors) for name, head in on_all.items()]


def format_directions(records: Sequence[ApdResult]) -> str:
    """One row per model, dataset, test set, centre, class, predicted class and split."""
    return format_rows(
        {
            "model": record.model,
            "dataset": record.dataset,
            "side": side,
            "center": center,
            "class": label,
            "called": called,
            "split": split,
            "cramers_v": v,
            "share": share,
        }
        for record in records
        for side in SIDES
        for center, label, called, shares in list_directions(record, side)
        for split, (v, share) in enumerate(zip(record.cramers_v, shares, strict=True))
    )


def list_directions(record: ApdResult, side: str) -> list[tuple[str, str, str, list[float]]]:
    """Centre, class, predicted class, and its share at every split; with correct predictions."""
    nested = getattr(record, f"direction_{side}")
    return [
        (center, label, called, as_floats(shares))
        for center, by_class in nested.items()
        for label, by_called in by_class.items()
        for called, shares in by_called.items()
    ]


def as_floats(values: Sequence[float | None]) -> list[float]:
    """Values as floats, with NaN for None."""
    return [math.nan if value is None else float(value) for value in values]


def format_combinations(records: Sequence[ClusteringResult]) -> str:
    """One row per model, dataset and combination; ARIs are means over trials."""
    rows = []
    for record in records:
        for combination in record.combinations:
            row: dict[str, Any] = {"model": record.model, "dataset": record.dataset}
            row["name"] = combination.name
            row["class_1"], row["class_2"] = combination.classes
            row["center_1"], row["center_2"] = combination.centers
            row |= column_values(combination)
            for name in ("ari_biology", "ari_center"):
                row[name] = float(np.mean(getattr(combination, name)))
            rows.append(row)
    return format_rows(rows)


def format_pairs(records: Sequence[RobustificationResult]) -> str:
    """One row per robustified model, dataset and number: before, after and the difference."""
    return format_rows(
        _name_pair(record)
        | {"number": name, "before": number.before, "after": number.after}
        | {"difference": number.difference}
        | dict(
            zip(("difference_low", "difference_high"), number.ci95 or [math.nan] * 2, strict=True)
        )
        for record in records
        for name, number in record.paired.items()
    )


def format_center_changes(records: Sequence[RobustificationResult]) -> str:
    """One row per robustified model, dataset and centre."""
    return format_rows(
        _name_pair(record)
        | {"center": name, "shift": change.shift, "scale": change.scale}
        | {f"robustness_index_{when}": v for when, v in change.robustness_index.items()}
        for record in records
        for name, change in record.per_center.items()
    )


def format_retrieval_levels(records: Sequence[RetrievalResult]) -> str:
    """One row per model, dataset, level and k, with the ends of intervals."""
    rows = []
    for record in records:
        for level in LEVELS:
            part = getattr(record, level)
            for i, k in enumerate(part.k):
                row: dict[str, Any] = {"model": record.model, "dataset": record.dataset}
                row |= {"level": level, "k": k}
                for name, ends in part.intervals.items():
                    low, high = ends[i] or (math.nan, math.nan)
                    row |= {name: getattr(part, name)[i]}
                    row |= {f"{name}_low": low, f"{name}_high": high}
                rows.append(row | {"n_queries": part.n_queries})
    return format_rows(rows)


def format_retrieval_schedule(records: Sequence[RetrievalResult]) -> str:
    """One row per model, dataset, level, k and split; wrong answers are of the nearest neighbour.

    Drops and their intervals are of all splits.
    """
    rows = []
    for record in records:
        for level in ("patch", "slide") if record.schedule is not None else ():
            drop: RetrievalDrop = getattr(record.schedule, level)
            for i, k in enumerate(drop.k):
                drops: dict[str, Any] = {}
                for side in SIDES:
                    ends = getattr(drop, f"drop_{side}_intervals")[i] or (math.nan, math.nan)
                    drops[f"drop_{side}"] = getattr(drop, f"drop_{side}")[i]
                    drops[f"drop_{side}_low"], drops[f"drop_{side}_high"] = ends
                    drops[f"nipd_{side}"] = getattr(drop, f"nipd_{side}")[i]
                for split, v in enumerate(record.schedule.cramers_v if record.schedule else ()):
                    row: dict[str, Any] = {"model": record.model, "dataset": record.dataset}
                    row |= {"level": level, "k": k, "cramers_v": v}
                    row |= {f"{s}_accuracy": _mean_of(drop, s)[i][split] for s in SIDES}
                    for name in ("wrong_share", "own_center_share", "own_center_expected"):
                        row[name] = getattr(drop, name)[split]
                    ends = drop.own_center_intervals[split] or (math.nan, math.nan)
                    row["own_center_share_low"], row["own_center_share_high"] = ends
                    rows.append(row | drops)
    return format_rows(rows)


def _mean_of(drop: RetrievalDrop, side: str) -> list[list[float]]:
    found: list[list[float]] = getattr(drop, f"{side}_accuracy_means")
    return found


def _name_pair(record: RobustificationResult) -> dict[str, Any]:
    return {"model": record.model, "parent": record.parent, "dataset": record.dataset}


def _fields(record: Any, columns: Sequence[str]) -> list[Any]:
    """Fields of a record in the order of the columns."""
    return [getattr(record, name) for name in columns]


def format_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV with the columns of all rows; a column that a row lacks is empty."""
    table = list(rows)
    columns = list(dict.fromkeys(name for row in table for name in row))
    return _format(columns, ([row.get(name) for name in columns] for row in table))


def _format(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(value) for value in row] for row in rows)
    return stream.getvalue()


def _field(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, str):
        value = value.replace("\r", " ")  # csv does not quote it, yet readers end a line there
        return f"'{value}" if value.startswith(GUARDED) else value
    return repr(value) if isinstance(value, float) else str(value)
