"""The first table of the report: one row per model, one column per headline number."""

from typing import NamedTuple

from pathorob_jax.report import palette
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Column,
    Row,
    format_interval,
    format_number,
    format_percent,
    format_percent_interval,
    highest,
    sort_key,
)
from pathorob_jax.results.collection import Collection, ModelMean
from pathorob_jax.results.metric_kind import Headline, MetricKind


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
    """Headline numbers for which the report has results."""
    return [
        Part(kind, headline, confounder)
        for kind in collection.kinds
        for headline in kind.headlines
        if headline.in_overview
        for confounder in collection.confounders(kind.record)
    ]


def build_columns(collection: Collection) -> list[Column]:
    """Each part, with the datasets over which it is averaged."""
    columns = []
    for part in list_parts(collection):
        datasets = collection.datasets(part.kind.record, part.confounder)
        by = f" by {part.confounder}" if part.confounder else ""
        note = f"mean over {len(datasets)} datasets{by}"
        if len(datasets) == 1:
            note = f"on {name_dataset(datasets[0])}"
        columns.append(Column(part.headline.title, note))
    return columns


def build_overview(collection: Collection) -> list[Row]:
    """One row per model, one cell per part."""
    rows: dict[str, list[Cell]] = {model: [] for model in collection.models}
    for part in list_parts(collection):
        means = {
            model: collection.mean(part.kind, part.headline, model, part.confounder)
            for model in collection.models
        }
        sign = 1 if part.headline.higher_is_better else -1
        best = sign * highest(sign * mean.value for mean in means.values())
        for model, mean in means.items():
            rows[model].append(_cell(part.headline, mean, best))
    return [Row(model, "", cells) for model, cells in rows.items()]


def _cell(headline: Headline, mean: ModelMean, best: float) -> Cell:
    if mean.why:
        return Cell(UNDEFINED, title=mean.why, note="incomplete")
    if headline.percent:
        note, text = format_percent_interval(mean.ci95), format_percent(mean.value)
    else:
        note, text = format_interval(mean.ci95), format_number(mean.value)
    return Cell(
        text,
        note=note,
        background=_background(headline, mean.value),
        sort=sort_key(mean.value),
        best=mean.value == best,
    )


def _background(headline: Headline, value: float) -> str:
    """Colour from orange (centre) to blue (biology) for a headline with a scale; else empty."""
    if headline.scale is None:
        return ""
    low, high = headline.scale
    return palette.heat((value - low) / (high - low))
