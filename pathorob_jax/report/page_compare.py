"""Comparison of models on the page: tables and sentences from the comparisons, as plain data."""

import itertools
import math
from collections.abc import Sequence

from pathorob_jax.models.names import is_control
from pathorob_jax.report.answer_sentences import write_need
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Row,
    Span,
    Table,
    format_interval,
    format_share,
    format_signed,
    number_cell,
    sort_key,
)
from pathorob_jax.results.answers import find_pair
from pathorob_jax.results.compare_models import CONTROL, Comparison, Contender

MEAN = "mean over datasets"


def name_comparison(comparison: Comparison) -> str:
    """Name of the dataset, or of the mean over datasets."""
    if comparison.dataset:
        return name_dataset(comparison.dataset)
    return f"{MEAN} by {comparison.confounder}" if comparison.confounder else MEAN


def build_comparison(comparison: Comparison) -> Table:
    """One row per model, the best first: value, ranks, and the difference to the best."""
    contenders = comparison.contenders
    n = len(contenders)
    behind = [c.behind for c in contenders if c.behind]
    low = min([0.0, *(pair.low for pair in behind if math.isfinite(pair.low))])
    high = max([0.0, *(pair.high for pair in behind if math.isfinite(pair.high))])
    rows = []
    for contender in contenders:
        cells = [
            number_cell(contender.value, interval=(contender.low, contender.high)),
            Cell(f"{contender.mean_rank:.1f}", sort=sort_key(contender.mean_rank))
            if math.isfinite(contender.mean_rank)
            else Cell(UNDEFINED, title="undefined: in most draws a model has no value"),
            _rank_cell(contender, n),
            Cell(format_share(contender.first_share), sort=sort_key(contender.first_share)),
            *_behind_cells(contender, low, high),
        ]
        rows.append(Row(contender.model, "", cells))
    columns = [
        comparison.statistic,
        "mean rank",
        "rank in 95 % of draws",
        "first in",
        "difference to the best",
        "ahead of it in",
    ]
    return Table(name_comparison(comparison), columns, rows)


def write_verdict(comparison: Comparison) -> str:
    """Say which models the draws distinguish from the best model."""
    contenders = comparison.contenders
    if len(contenders) < 2:
        return "Nothing to compare: fewer than two models share draws."
    best, level = contenders[0].model, comparison.level_with_best
    if sum(not is_control(contender.model) for contender in contenders) == 1:
        return "One encoder and controls: nothing is ranked; the table has their differences."
    if not level:
        return f"{best} is told apart from every other model."
    if len(level) == len(contenders) - 1:
        return f"{best} has the highest value, but no model is told apart from it."
    return f"{best} is not told apart from {', '.join(level)}; it is from the others."


def write_left_out(comparison: Comparison) -> str:
    """Name the models that are not compared, grouped by reason; empty if there are none."""
    by_reason: dict[str, list[str]] = {}
    controls = [model for model, reason in comparison.left_out if reason == CONTROL]
    for model, reason in comparison.left_out:
        if reason != CONTROL:
            by_reason.setdefault(reason, []).append(model)
    parts = [f"{', '.join(models)} ({reason})" for reason, models in by_reason.items()]
    said = [f"Controls, compared but not ranked: {', '.join(controls)}."] if controls else []
    said += [f"Not compared: {'; '.join(parts)}."] if parts else []
    return " ".join(said)


def build_neighbors(comparison: Comparison) -> Table:
    """Each model against the next in rank."""
    rows = []
    for first, second in itertools.pairwise(comparison.contenders):
        pair = find_pair(comparison, first.model, second.model)
        if pair is None or not math.isfinite(pair.low + pair.high):
            continue
        needed = "" if pair.is_apart else write_need(pair).partition(" would")[0]
        cells = [
            Cell(
                format_signed(pair.difference),
                note=format_interval((pair.low, pair.high)),
                sort=sort_key(pair.difference),
            ),
            Cell("yes" if pair.is_apart else "no", sort=str(int(pair.is_apart))),
            Cell(needed or UNDEFINED, title="" if needed else "told apart, or not known"),
        ]
        rows.append(Row(f"{first.model} − {second.model}", "", cells))
    columns = ["difference", "told apart", "slides needed"]
    return Table(f"Neighbours in rank, {name_comparison(comparison)}", columns, rows)


def _rank_cell(contender: Contender, n: int) -> Cell:
    if not math.isfinite(contender.rank_low):
        return Cell(UNDEFINED, title="undefined: in most draws a model has no value")
    low, high = (f"{end:g}" for end in (contender.rank_low, contender.rank_high))
    text = low if low == high else f"{low}–{high}"
    places = (contender.rank_low, contender.rank_high, contender.mean_rank)
    span = Span(*(100 * (place - 0.5) / n for place in places))
    return Cell(text, span=span, sort=sort_key(contender.mean_rank))


def _behind_cells(contender: Contender, low: float, high: float) -> Sequence[Cell]:
    pair = contender.behind
    if pair is None:
        return (Cell("best"), Cell(""))
    ends = (pair.low, pair.high)
    if not all(map(math.isfinite, ends)):
        undefined = Cell(UNDEFINED, title="undefined: the two share too few draws")
        return (undefined, undefined)
    width = (high - low) or 1.0
    places = (*ends, min(max(pair.difference, low), high), 0.0)
    return (
        Cell(
            format_signed(pair.difference),
            note=format_interval(ends),
            span=Span(*(100 * (place - low) / width for place in places)),
            sort=sort_key(pair.difference),
        ),
        Cell(format_share(pair.share_positive), sort=sort_key(pair.share_positive)),
    )
