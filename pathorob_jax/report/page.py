"""What the page says, as plain data that the template only lays out.

Enters: records. Leaves: cells, tables, sentences. Every undefined number carries the reason why.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pathorob_jax.report import palette
from pathorob_jax.report.board import Board, is_weak, join_distinct
from pathorob_jax.results import (
    Group,
    MarginsResult,
    NeighborTypes,
    ProbesResult,
    RobustnessIndexResult,
)

K_RULES = {
    "published": "the published k",
    "auto": "first maximum of kNN balanced accuracy",
    "given": "given by hand",
}

COMPANIONS = (
    ("balanced_accuracy", "balanced accuracy"),
    ("prediction_performance", "prediction performance"),
    ("id_performance", "ID performance"),
    ("ood_performance", "OOD performance"),
    ("generalization_index", "generalisation index"),
    ("bio_vs_confounding", "biology vs confounding"),
    ("confounder_insensitivity", "confounder insensitivity"),
    ("normalized_confounder_insensitivity", "the same, normalised"),
    ("null_permuted_center", "index, centres permuted"),
    ("null_random_features", "index, random features"),
)

# Field, words, field of its interval, field of the support that explains an undefined value.
MARGINS = (
    ("mari", "MaRI", "mari_ci95", "mari_support"),
    ("mari_support", "support of MaRI", "", ""),
    ("croma", "CRoMa", "croma_ci95", "croma_support"),
    ("croma_f0", "F(0)", "croma_f0_ci95", "croma_support"),
    ("croma_q10", "10 % quantile", "croma_q10_ci95", "croma_support"),
    ("croma_ltm10", "lower-tail mean", "croma_ltm10_ci95", "croma_support"),
    ("croma_support", "support of CRoMa", "", ""),
)
PROBES = (
    ("biology_auc", "AUC biology"),
    ("ood_biology_auc", "AUC biology, unseen centre"),
    ("center_auc", "AUC centre"),
    ("center_knn_balanced_accuracy", "centre by k neighbours"),
)


@dataclass(frozen=True)
class Cell:
    """One number of a table, with what stands beneath it and what a pointer reveals."""

    text: str
    title: str = ""
    note: str = ""
    warning: str = ""
    background: str = ""
    width: float | None = None
    mark: float | None = None
    stack: tuple[tuple[str, float], ...] = ()
    sort: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A table row: its name, a small line under it, its cells."""

    name: str
    note: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """Names of the columns, and rows."""

    title: str
    columns: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Column:
    """A dataset as the headline table names it."""

    name: str
    note: str


def build_columns(board: Board) -> list[Column]:
    """Each dataset with its design and size."""
    columns = []
    for dataset in board.datasets:
        records = board.of_dataset(dataset)
        parts = [
            f"design {join_distinct(r.design for r in records)}",
            f"{join_distinct(f'{r.n_samples:,}' for r in records)} patches",
            f"{join_distinct(f'{r.n_slides:,}' for r in records)} slides",
        ]
        columns.append(Column(dataset, " · ".join(parts)))
    return columns


def build_headline(board: Board) -> list[Row]:
    """Models by datasets, with the mean first when there are several datasets."""
    several = len(board.datasets) > 1
    best = {
        dataset: _best(r.robustness_index for r in board.of_dataset(dataset))
        for dataset in board.datasets
    }
    best_mean = _best(board.mean(model) for model in board.models)
    rows = []
    for model in board.models:
        cells = [_mean_cell(board, model, best_mean)] if several else []
        cells += [_index_cell(board.get(model, d), best[d]) for d in board.datasets]
        rows.append(Row(model, "", cells))
    return rows


def build_companions(records: Sequence[RobustnessIndexResult]) -> Table:
    """All companion numbers of one dataset, a row a model."""
    rows = []
    for record in records:
        cells = [_small_index_cell(record)]
        for field, _ in COMPANIONS:
            value = getattr(record, field)
            why = "" if math.isfinite(value) else "undefined: its denominator is 0 or unknown"
            cells.append(Cell(format_number(value), title=why, sort=_sort(value)))
        cells.append(_composition_cell(record.neighbor_types))
        rows.append(Row(record.model, "", cells))
    names = ["robustness index", *(words for _, words in COMPANIONS), "neighbours"]
    return Table("Companion numbers at the operating k", names, rows)


def build_margins(records: Sequence[MarginsResult]) -> Table:
    """MaRI and CRoMa of one dataset, a row a model, intervals beneath."""
    rows = []
    for record in records:
        cells = []
        for field, _, interval_field, support_field in MARGINS:
            value = getattr(record, field)
            ends = _ends(getattr(record, interval_field)) if interval_field else None
            note = f"{ends[0]:.3f} – {ends[1]:.3f}" if ends else ""
            why = ""
            if not math.isfinite(value) and support_field:
                why = _why(getattr(record, support_field), record.n_samples)
            cells.append(Cell(format_number(value), title=why, note=note, sort=_sort(value)))
        rows.append(Row(record.model, f"k {record.k}", cells))
    return Table("Margins", [words for _, words, _, _ in MARGINS], rows)


def build_probes(records: Sequence[ProbesResult]) -> Table:
    """What classifiers read off the embeddings of one dataset, a row a model."""
    rows = []
    for record in records:
        values = [getattr(record, field) for field, _ in PROBES]
        why = "undefined: no fold has all labels on both sides"
        cells = [
            Cell(format_number(v), title="" if math.isfinite(v) else why, sort=_sort(v))
            for v in values
        ]
        rows.append(Row(record.model, f"k {record.k}", cells))
    return Table("Probes", [words for _, words in PROBES], rows)


def build_groups(
    title: str,
    records: Sequence[RobustnessIndexResult],
    field: str,
) -> Table:
    """Classes, centres or subsets by models: the index, and recall beneath it."""
    by_record: list[Mapping[str, Group]] = [getattr(record, field) for record in records]
    names = list(dict.fromkeys(name for groups in by_record for name in groups))
    rows = []
    for name in names:
        groups = [groups.get(name) for groups in by_record]
        sizes = join_distinct(f"{g.n_samples:,}" for g in groups if g is not None)
        cells = [_group_cell(group) for group in groups]
        rows.append(Row(name, f"n = {sizes}", cells))
    return Table(title, [record.model for record in records], rows)


def format_number(value: float) -> str:
    """Three decimals, an en dash for an undefined value."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def format_share(value: float) -> str:
    """A percentage; one decimal where rounding would hide that it is not 0 or not one half."""
    if not math.isfinite(value):
        return "–"
    fine = 0 < value < 0.01 or 0.49 < value < 0.5
    return f"{math.floor(1000 * value) / 10:.1f} %" if fine else f"{100 * value:.0f} %"


def _small_index_cell(record: RobustnessIndexResult) -> Cell:
    """The index as one coloured number, without its bar."""
    value = record.robustness_index
    return Cell(
        format_number(value),
        title=_why(record.support, record.n_samples) if not math.isfinite(value) else "",
        background=palette.heat(value),
        sort=_sort(value),
    )


def _index_cell(record: RobustnessIndexResult | None, best: float) -> Cell:
    if record is None:
        return Cell("–", title="no result: the model was not evaluated on this dataset")
    value = record.robustness_index
    rule = K_RULES.get(record.k_rule, record.k_rule)
    title = f"k = {record.k} ({rule}); largest k that every sample has: {record.k_available}"
    if not math.isfinite(value):
        title = f"{_why(record.support, record.n_samples)}; {title}"
    support = f"support {format_share(record.support)}"
    weak = is_weak(record.support)
    interval = _interval(record)
    parts = [f"{interval[0]:.3f}–{interval[1]:.3f}"] if interval else []
    parts += [] if weak else [support]
    return Cell(
        format_number(value),
        title=title,
        note=" · ".join([*parts, f"k {record.k}"]),
        warning=support if weak else "",
        background=palette.heat(value),
        width=_bar_width(value),
        mark=_bar_width(record.null_random_features),
        sort=_sort(value),
        best=value == best,
    )


def _mean_cell(board: Board, model: str, best: float) -> Cell:
    value = board.mean(model)
    lowest = min((record.robustness_index for record in board.of_model(model)), default=math.nan)
    lacking = [
        dataset
        for dataset in board.datasets
        if not ((r := board.get(model, dataset)) and math.isfinite(r.robustness_index))
    ]
    return Cell(
        format_number(value),
        title=f"no mean: undefined or not evaluated on {', '.join(lacking)}" if lacking else "",
        note="incomplete" if lacking else f"lowest {lowest:.3f}",
        background=palette.heat(value),
        width=_bar_width(value),
        mark=_bar_width(sum(map(board.chance, board.datasets)) / len(board.datasets)),
        sort=_sort(value),
        best=value == best,
    )


def _composition_cell(types: NeighborTypes) -> Cell:
    """The four shares as a stacked bar; the pointer reveals the numbers."""
    values = [(kind, getattr(types, kind.key)) for kind in palette.NEIGHBOR_TYPES]
    title = ", ".join(f"{kind.key.upper()} {format_number(value)}" for kind, value in values)
    if not all(math.isfinite(value) for _, value in values):
        return Cell("–", title=f"undefined: {title}")
    stack = tuple((kind.color, 100 * value) for kind, value in values)
    return Cell("", title=title, stack=stack, sort=_sort(types.so))


def _group_cell(group: Group | None) -> Cell:
    if group is None:
        return Cell("–", title="this model's rows hold no such group")
    value = group.robustness_index
    title = f"support {format_share(group.support)}, recall {format_number(group.recall)}"
    if not math.isfinite(value):
        title = f"{_why(group.support, group.n_samples)}; {title}"
    return Cell(
        f"{value:.2f}" if math.isfinite(value) else "–",
        title=title,
        note=f"{group.recall:.2f}" if math.isfinite(group.recall) else "–",
        warning=f"support {format_share(group.support)}" if is_weak(group.support) else "",
        background=palette.heat(value),
        sort=_sort(value),
    )


def _why(support: float, n_samples: int) -> str:
    """The reason for which an index is undefined."""
    if support == 0:
        return (
            f"undefined: support 0, none of the {n_samples:,} samples has a neighbour of type SO "
            "or OS among its k nearest"
        )
    return "undefined: the result holds no value"


def _interval(record: RobustnessIndexResult) -> list[float] | None:
    """[low, high] where both ends are defined."""
    return _ends(record.ci95)


def _ends(interval: list[float] | None) -> list[float] | None:
    return interval if interval and all(math.isfinite(end) for end in interval) else None


def _best(values: Iterable[float]) -> float:
    """The largest defined value when there are several to choose from, else NaN."""
    values = [value for value in values if math.isfinite(value)]
    return max(values) if len(values) > 1 else math.nan


def _bar_width(value: float) -> float | None:
    """Per cent of the bar that is filled."""
    return 100 * min(max(value, 0.0), 1.0) if math.isfinite(value) else None


def _sort(value: float) -> str:
    return repr(value) if math.isfinite(value) else ""
