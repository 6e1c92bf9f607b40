"""The first table of the report: one row per model, one column per headline number.

Numbers stand beside those that they are read with: the performance drop beside the accuracy that it
drops from, CRoMa beside its tail. What rests on few neighbours is grey, with its count.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pathorob_jax.report import palette
from pathorob_jax.report.sentences import is_weak, name_dataset
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Column,
    Row,
    Span,
    defined_ends,
    format_interval,
    format_number,
    format_percent,
    format_percent_interval,
    format_share,
    highest,
    sort_key,
)
from pathorob_jax.results.apd import ApdResult
from pathorob_jax.results.clustering_score import ClusteringResult
from pathorob_jax.results.collection import Collection, ModelMean
from pathorob_jax.results.margins import MarginsResult
from pathorob_jax.results.metric_kind import Headline, MetricKind
from pathorob_jax.results.model_numbers import (
    ACCURACY,
    EXTRAS_BY_NAME,
    KNN_ACCURACY,
    average_extra,
)
from pathorob_jax.results.neighbor_counts import count_neighbors, rests_on_few
from pathorob_jax.results.registry import KINDS
from pathorob_jax.results.robustness_index import RobustnessIndexResult

# The record of an accuracy, its name, and what it is an accuracy of.
ACCURACIES = (
    (ApdResult, ACCURACY, "of a probe, no association"),
    (RobustnessIndexResult, KNN_ACCURACY, "of the vote of k neighbours, balanced"),
)


class Part(NamedTuple):
    """A column of the table: a number over the datasets of one confounder."""

    kind: MetricKind
    headline: Headline
    confounder: str

    @property
    def name(self) -> str:
        """Name of the number in tables: its field, with the confounder if it is another one."""
        field = self.headline.field
        return f"{field}@{self.confounder}" if self.confounder else field


def list_parts(collection: Collection) -> list[Part]:
    """Headline numbers for which the report has results, in the order of metrics."""
    return [
        Part(kind, headline, confounder)
        for kind in collection.kinds
        for headline in kind.headlines
        if headline.in_overview
        for confounder in collection.confounders(kind.record)
    ]


def list_shown(collection: Collection) -> list[Part]:
    """Parts of the table: those of ``list_parts``, CRoMa after the index, the drop first."""
    parts = list_parts(collection)
    drops = [part for part in parts if part.kind.record is ApdResult]
    indices = [part for part in parts if part.kind.record is RobustnessIndexResult]
    rest = [part for part in parts if part not in drops and part not in indices]
    kind = KINDS[MarginsResult.metric]
    margins = [
        Part(kind, kind.headlines[0], confounder)
        for confounder in collection.confounders(MarginsResult)
    ]
    return [*drops, *indices, *margins, *rest]


def build_columns(collection: Collection) -> list[Column]:
    """The accuracies, then each part, with the datasets over which it is averaged."""
    columns = [
        Column("accuracy", f"{words}; {_name_datasets(collection, record, confounder)}")
        for record, _, words, confounder in _list_accuracies(collection)
    ]
    for part in list_shown(collection):
        where = _name_datasets(collection, part.kind.record, part.confounder)
        columns.append(Column(part.headline.title, where))
    return columns


def build_overview(collection: Collection) -> list[Row]:
    """One row per model, one cell per accuracy and part."""
    rows: dict[str, list[Cell]] = {model: [] for model in collection.models}
    for _, name, _, confounder in _list_accuracies(collection):
        found = {
            model: average_extra(collection, EXTRAS_BY_NAME[name], model, confounder)
            for model in collection.models
        }
        best = highest(value for value, _ in found.values())
        for model, (value, ends) in found.items():
            rows[model].append(_accuracy_cell(value, ends, best))
    for part in list_shown(collection):
        means = {
            model: collection.mean(part.kind, part.headline, model, part.confounder)
            for model in collection.models
        }
        sign = 1 if part.headline.higher_is_better else -1
        best = sign * highest(sign * mean.value for mean in means.values())
        for model, mean in means.items():
            rows[model].append(_cell(collection, part, model, mean, best))
    return [Row(model, "", cells) for model, cells in rows.items()]


def _list_accuracies(collection: Collection) -> list[tuple[type, str, str, str]]:
    """Accuracies of the first kind that there is: record, name, words and confounder."""
    for record, name, words in ACCURACIES:
        if collection.datasets(record):
            return [(record, name, words, c) for c in collection.confounders(record)]
    return []


def _name_datasets(collection: Collection, record: type, confounder: str) -> str:
    datasets = collection.datasets(record, confounder)
    if len(datasets) == 1:
        return f"on {name_dataset(datasets[0])}"
    return f"mean over {len(datasets)} datasets{f' by {confounder}' if confounder else ''}"


def _accuracy_cell(value: float, ends: Sequence[float] | None, best: float) -> Cell:
    if not math.isfinite(value):
        return Cell(UNDEFINED, title="not evaluated on every dataset, or undefined on one")
    note = format_interval(ends)
    return Cell(format_number(value), note=note, sort=sort_key(value), best=value == best)


def _cell(collection: Collection, part: Part, model: str, mean: ModelMean, best: float) -> Cell:
    headline = part.headline
    if mean.why:
        return Cell(UNDEFINED, title=mean.why, note="incomplete")
    form, form_ends = format_number, format_interval
    if headline.percent:
        form, form_ends = format_percent, format_percent_interval
    notes, is_faint, span = [form_ends(mean.ci95)], False, None
    if part.kind.record is ApdResult:
        notes.append(_write_start(collection, part, model))
    elif part.kind.record is MarginsResult:
        notes.append(_write_tail(collection, part.confounder, model))
    elif part.kind.record is RobustnessIndexResult:
        records = collection.of_model(RobustnessIndexResult, model, part.confounder)
        is_faint = any(is_weak(r.support) or rests_on_few(r, headline.field) for r in records)
        notes.append(_write_support(records))
    elif part.kind.record is ClusteringResult:
        span = _place(mean.value, mean.ci95)
    return Cell(
        form(mean.value),
        note="\n".join(filter(None, notes)),
        background="" if is_faint else _background(headline, mean.value),
        span=span,
        sort=sort_key(mean.value),
        best=mean.value == best,
        is_faint=is_faint,
    )


def _write_start(collection: Collection, part: Part, model: str) -> str:
    """The accuracy that a drop drops from."""
    side = part.headline.field.removeprefix("apd_")
    name = ACCURACY if side == "id" else f"{ACCURACY}_{side}"
    value, _ = average_extra(collection, EXTRAS_BY_NAME[name], model, part.confounder)
    return f"from {format_number(value)}"


def _write_tail(collection: Collection, confounder: str, model: str) -> str:
    """The share of margins at most 0, and the mean of the worst tenth."""
    share, tail = (
        average_extra(collection, EXTRAS_BY_NAME[name], model, confounder)[0]
        for name in ("croma_f0", "croma_ltm10")
    )
    return f"F(0) {format_share(share)} · tail {format_number(tail)}"


def _write_support(records: Sequence[RobustnessIndexResult]) -> str:
    """The smallest support, and the neighbours that decide there."""
    known = [record for record in records if math.isfinite(record.support)]
    if not known:
        return ""
    weakest = min(known, key=lambda record: record.support)
    count = count_neighbors(weakest, RobustnessIndexResult.headline)
    decided = f", {count:,} neighbours" if count is not None else ""
    return f"on {format_share(weakest.support)} of patches{decided}"


def _place(value: float, ends: Sequence[float] | None) -> Span:
    """A score on a track from -1 to 1, where 0 is the middle."""
    low, high = defined_ends(ends) or (value, value)
    low, high, point = (min(max(50 * (end + 1), 0.0), 100.0) for end in (low, high, value))
    return Span(low, high, point, zero=50.0)


def _background(headline: Headline, value: float) -> str:
    """Colour from orange (centre) to blue (biology) for a headline with a scale; else empty."""
    if headline.scale is None:
        return ""
    low, high = headline.scale
    return palette.heat((value - low) / (high - low))
