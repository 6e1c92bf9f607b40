"""What the page says of neighbours and probes, as plain data that the template only lays out.

Enters: records. Leaves: cells, tables, sentences. Every undefined number carries the reason why.
"""

import math
from collections.abc import Mapping, Sequence

from pathorob_jax.report import palette
from pathorob_jax.report.collection import Board
from pathorob_jax.report.published import published_index
from pathorob_jax.report.sentences import is_weak, join_distinct, name_dataset
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Column,
    Row,
    Table,
    defined_ends,
    format_interval,
    format_number,
    format_share,
    format_signed,
    highest,
    number_cell,
    sort_key,
)
from pathorob_jax.results.records import (
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


def build_columns(board: Board) -> list[Column]:
    """Each dataset with its design and size."""
    columns = []
    for dataset in board.datasets(RobustnessIndexResult):
        records = board.of_dataset(RobustnessIndexResult, dataset)
        parts = [
            f"design {join_distinct(r.design for r in records)}",
            f"{join_distinct(f'{r.n_samples:,}' for r in records)} patches",
            f"{join_distinct(f'{r.n_slides:,}' for r in records)} slides",
        ]
        columns.append(Column(name_dataset(dataset), " · ".join(parts)))
    return columns


def build_index(board: Board) -> list[Row]:
    """Models by datasets, with the mean first when there are several datasets."""
    datasets = board.datasets(RobustnessIndexResult)
    several = len(datasets) > 1
    best = {
        dataset: highest(
            r.robustness_index for r in board.of_dataset(RobustnessIndexResult, dataset)
        )
        for dataset in datasets
    }
    models = [m for m in board.models if board.of_model(RobustnessIndexResult, m)]
    best_mean = highest(board.mean(RobustnessIndexResult, model) for model in models)
    rows = []
    for model in models:
        cells = [_mean_cell(board, model, best_mean)] if several else []
        cells += [
            _index_cell(board.get(RobustnessIndexResult, model, d), best[d]) for d in datasets
        ]
        rows.append(Row(model, "", cells))
    return rows


def build_companions(records: Sequence[RobustnessIndexResult]) -> Table:
    """All companion numbers of one dataset, a row a model, intervals beneath."""
    why = "undefined: its denominator is 0 or unknown"
    rows = []
    for record in records:
        cells = [_small_index_cell(record)]
        for field, _ in COMPANIONS:
            interval = record.companions_ci95.get(field)
            cells.append(number_cell(getattr(record, field), why=why, interval=interval))
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
            interval = getattr(record, interval_field) if interval_field else None
            why = ""
            if support_field:
                why = _why(getattr(record, support_field), record.n_samples)
            cells.append(number_cell(getattr(record, field), why=why, interval=interval))
        rows.append(Row(record.model, f"k {record.k}", cells))
    return Table("Margins", [words for _, words, _, _ in MARGINS], rows)


def build_probes(records: Sequence[ProbesResult]) -> Table:
    """What classifiers read off the embeddings of one dataset, a row a model."""
    why = "undefined: no fold has all labels on both sides"
    rows = []
    for record in records:
        cells = [
            number_cell(getattr(record, field), why=why, interval=record.ci95.get(field))
            for field, _ in PROBES
        ]
        rows.append(Row(record.model, f"k {record.k}", cells))
    return Table("Probes", [words for _, words in PROBES], rows)


def build_groups(
    title: str,
    records: Sequence[RobustnessIndexResult],
    field: str,
) -> Table:
    """Classes, centres or subsets by models: the index, its interval, and recall beneath it."""
    by_record: list[Mapping[str, Group]] = [getattr(record, field) for record in records]
    names = list(dict.fromkeys(name for groups in by_record for name in groups))
    rows = []
    for name in names:
        groups = [groups.get(name) for groups in by_record]
        sizes = join_distinct(f"{g.n_samples:,}" for g in groups if g is not None)
        cells = [_group_cell(group) for group in groups]
        rows.append(Row(name, f"n = {sizes}", cells))
    return Table(title, [record.model for record in records], rows)


def build_published(records: Sequence[RobustnessIndexResult]) -> Table:
    """Ours beside the published value, of runs that repeat the published way of use."""
    rows = []
    for record in records:
        theirs = published_index(record)
        if theirs is not None:
            apart = record.robustness_index - theirs
            cells = [
                _small_index_cell(record),
                Cell(f"{theirs:.4f}", sort=sort_key(theirs)),
                Cell(format_signed(apart), sort=sort_key(apart)),
            ]
            rows.append(Row(record.model, record.dataset, cells))
    return Table("Published values", ["here", "published", "difference"], rows)


def _small_index_cell(record: RobustnessIndexResult) -> Cell:
    """The index as one coloured number, without its bar."""
    value = record.robustness_index
    return Cell(
        format_number(value),
        title=_why(record.support, record.n_samples) if not math.isfinite(value) else "",
        note=format_interval(record.ci95) if math.isfinite(value) else "",
        background=palette.heat(value),
        sort=sort_key(value),
    )


def _index_cell(record: RobustnessIndexResult | None, best: float) -> Cell:
    if record is None:
        return Cell(UNDEFINED, title="no result: the model was not evaluated on this dataset")
    value = record.robustness_index
    rule = K_RULES.get(record.k_rule, record.k_rule)
    title = f"k = {record.k} ({rule}); largest k that every sample has: {record.k_available}"
    if not math.isfinite(value):
        title = f"{_why(record.support, record.n_samples)}; {title}"
    support = f"support {format_share(record.support)}"
    weak = is_weak(record.support)
    interval = format_interval(record.ci95)
    parts = [interval] if interval else []
    parts += [] if weak else [support]
    return Cell(
        format_number(value),
        title=title,
        note=" · ".join([*parts, f"k {record.k}"]),
        warning=support if weak else "",
        background=palette.heat(value),
        width=_bar_width(value),
        mark=_bar_width(record.null_random_features),
        sort=sort_key(value),
        best=value == best,
    )


def _mean_cell(board: Board, model: str, best: float) -> Cell:
    value = board.mean(RobustnessIndexResult, model)
    records = board.of_model(RobustnessIndexResult, model)
    lowest = min((record.robustness_index for record in records), default=math.nan)
    lacking = [
        dataset
        for dataset in board.datasets(RobustnessIndexResult)
        if not (
            (r := board.get(RobustnessIndexResult, model, dataset))
            and math.isfinite(r.robustness_index)
        )
    ]
    interval = format_interval(board.mean_interval(RobustnessIndexResult, model))
    parts = [interval] if interval else []
    return Cell(
        format_number(value),
        title=f"no mean: undefined or not evaluated on {', '.join(lacking)}" if lacking else "",
        note="incomplete" if lacking else " · ".join([*parts, f"lowest {lowest:.3f}"]),
        background=palette.heat(value),
        width=_bar_width(value),
        mark=_bar_width(board.mean_chance()),
        sort=sort_key(value),
        best=value == best,
    )


def _composition_cell(types: NeighborTypes) -> Cell:
    """The four shares as a stacked bar; the pointer reveals the numbers."""
    values = [(kind, getattr(types, kind.key)) for kind in palette.NEIGHBOR_TYPES]
    title = ", ".join(f"{kind.key.upper()} {format_number(value)}" for kind, value in values)
    if not all(math.isfinite(value) for _, value in values):
        return Cell(UNDEFINED, title=f"undefined: {title}")
    stack = tuple((kind.color, 100 * value) for kind, value in values)
    return Cell("", title=title, stack=stack, sort=sort_key(types.so))


def _group_cell(group: Group | None) -> Cell:
    if group is None:
        return Cell(UNDEFINED, title="this model's rows hold no such group")
    value = group.robustness_index
    title = f"support {format_share(group.support)}, recall {format_number(group.recall)}"
    ends = defined_ends(group.ci95)
    if not math.isfinite(value):
        title, ends = f"{_why(group.support, group.n_samples)}; {title}", None
    parts = [f"{ends[0]:.2f}–{ends[1]:.2f}"] if ends else []
    parts.append(f"{group.recall:.2f}" if math.isfinite(group.recall) else UNDEFINED)
    return Cell(
        f"{value:.2f}" if math.isfinite(value) else UNDEFINED,
        title=title,
        note="\n".join(parts),
        warning=f"support {format_share(group.support)}" if is_weak(group.support) else "",
        background=palette.heat(value),
        sort=sort_key(value),
    )


def _why(support: float, n_samples: int) -> str:
    """The reason for which an index is undefined."""
    if support == 0:
        return (
            f"undefined: support 0, none of the {n_samples:,} samples has a neighbour of type SO "
            "or OS among its k nearest"
        )
    return "undefined: the result holds no value"


def _bar_width(value: float) -> float | None:
    """Per cent of the bar that is filled."""
    return 100 * min(max(value, 0.0), 1.0) if math.isfinite(value) else None
