"""The headline: one line a model, one column for each part of the benchmark.

Enters: a board. Leaves: the table, as cells and as numbers.
"""

import math
from typing import NamedTuple

from pathorob_jax.report import palette
from pathorob_jax.report.collection import HEADLINES, Board, aggregate
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Column,
    Row,
    format_interval,
    format_number,
    format_percent,
    highest,
    sort_key,
)
from pathorob_jax.results.records import ApdResult, ClusteringResult, RobustnessIndexResult


class Part(NamedTuple):
    """One part of the headline.

    Attributes:
        name: in tables of numbers.
        words: on the page.
        kind: of its records.
        side: ``id`` or ``ood`` of a performance drop.
    """

    name: str
    words: str
    kind: type
    side: str = ""


class Number(NamedTuple):
    """A part's value for one model over all datasets of the part, NaN where undefined."""

    value: float
    low: float
    high: float
    why: str


PARTS = (
    Part("robustness_index", "robustness index", RobustnessIndexResult),
    Part("apd_id", "performance drop, in domain", ApdResult, "id"),
    Part("apd_ood", "performance drop, out of domain", ApdResult, "ood"),
    Part("clustering_score", "clustering score", ClusteringResult),
)


def list_parts(board: Board) -> list[Part]:
    """Parts that the report has results of."""
    return [part for part in PARTS if board.datasets(part.kind)]


def measure(board: Board, part: Part, model: str) -> Number:
    """A part's mean over datasets with its interval."""
    records = {record.dataset: record for record in board.of_model(part.kind, model)}
    lacking = [dataset for dataset in board.datasets(part.kind) if dataset not in records]
    if lacking:
        return Number(math.nan, math.nan, math.nan, f"not evaluated on {', '.join(lacking)}")
    field = f"apd_{part.side}" if part.side else HEADLINES[part.kind]
    values = [getattr(record, field) for record in records.values()]
    unknown = [d for d, v in zip(records, values, strict=True) if not math.isfinite(v)]
    if unknown:
        return Number(math.nan, math.nan, math.nan, f"undefined on {', '.join(unknown)}")
    value, ends = sum(values) / len(values), None
    if part.side:
        found = aggregate(list(records.values()), part.side)
        if found is not None:
            value, ends = found.mean, [found.mean - found.ci, found.mean + found.ci]
    else:
        ends = board.mean_interval(part.kind, model)
    low, high = ends or (math.nan, math.nan)
    return Number(value, low, high, "")


def build_columns(board: Board) -> list[Column]:
    """Each part and what it is the mean of."""
    columns = []
    for part in list_parts(board):
        datasets = board.datasets(part.kind)
        single = len(datasets) == 1
        note = (
            f"on {name_dataset(datasets[0])}" if single else f"mean over {len(datasets)} datasets"
        )
        columns.append(Column(part.words, note))
    return columns


def build_overview(board: Board) -> list[Row]:
    """A row a model, a cell a part."""
    parts = list_parts(board)
    best = [highest(measure(board, part, model).value for model in board.models) for part in parts]
    return [
        Row(
            model,
            "",
            [
                _cell(part, measure(board, part, model), top)
                for part, top in zip(parts, best, strict=True)
            ],
        )
        for model in board.models
    ]


def _cell(part: Part, number: Number, best: float) -> Cell:
    value = number.value
    if not math.isfinite(value):
        return Cell(UNDEFINED, title=number.why, note="incomplete")
    if part.side:
        half = 100 * (number.high - value)
        note = f"± {half:.2f}" if math.isfinite(half) else ""
        text = format_percent(value)
    else:
        note, text = format_interval((number.low, number.high)), format_number(value)
    return Cell(
        text,
        note=note,
        background=_background(part, value),
        sort=sort_key(value),
        best=value == best,
    )


def _background(part: Part, value: float) -> str:
    """Orange to blue where a value has a centre's side and biology's."""
    if part.kind is RobustnessIndexResult:
        return palette.heat(value)
    return palette.heat((value + 1) / 2) if part.kind is ClusteringResult else ""
