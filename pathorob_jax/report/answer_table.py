"""The first table of the report: one row per model, one column per headline number.

Numbers stand beside those that they are read with: the performance drop beside the accuracy that it
drops from, the index beside its support, CRoMa beside its tail. What rests on few neighbours is
grey, with its count. Controls stand last and are never the best. The CSV file has the same rows and
columns, with intervals and counts as columns of their own.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pathorob_jax.models.facts import ModelFacts, find_facts
from pathorob_jax.models.names import is_control
from pathorob_jax.report import palette
from pathorob_jax.report.sentences import is_weak, name_dataset
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Column,
    Row,
    Span,
    clip_share,
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
from pathorob_jax.results.record import Record
from pathorob_jax.results.registry import KINDS
from pathorob_jax.results.robustness_index import RobustnessIndexResult

# The record of an accuracy, its name, and what it is an accuracy of.
ACCURACIES: tuple[tuple[type[Record], str, str], ...] = (
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


class Shown(NamedTuple):
    """A column of the table, and what the CSV file has of it.

    Attributes:
        column: its head.
        cells: one per model.
        values: the same as numbers and texts by the name of a column of the CSV file, per model.
    """

    column: Column
    cells: list[Cell]
    values: list[dict[str, Any]]


def build_shown(
    collection: Collection, facts: Mapping[str, ModelFacts] | None = None
) -> list[Shown]:
    """Facts of the models, the accuracies, then each part with what it is read with."""
    shown = _show_facts([find_facts(model, facts) for model in collection.models])
    shown += [_show_accuracy(collection, *found) for found in _list_accuracies(collection)]
    for part in list_shown(collection):
        shown.append(_show_part(collection, part))
        if part.kind.record is RobustnessIndexResult and part.headline == part.kind.headlines[0]:
            shown.append(_show_support(collection, part))
        elif part.kind.record is MarginsResult:
            shown += [
                _show_extra(collection, part.confounder, *tail)
                for tail in (
                    ("croma_f0", "F(0)", "of patches", format_share),
                    ("croma_ltm10", "tail", "of CRoMa", format_number),
                )
            ]
    return shown


def build_columns(shown: Sequence[Shown]) -> list[Column]:
    """Heads of the columns."""
    return [one.column for one in shown]


def build_overview(collection: Collection, shown: Sequence[Shown]) -> list[Row]:
    """One row per model."""
    return [
        Row(model, "", [one.cells[i] for one in shown]) for i, model in enumerate(collection.models)
    ]


def list_values(collection: Collection, shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """The rows of the CSV file."""
    return [
        {"model": model, "control": "yes" if is_control(model) else "no"}
        | {name: value for one in shown for name, value in one.values[i].items()}
        for i, model in enumerate(collection.models)
    ]


def best_of(values: Iterable[tuple[str, float]], *, sign: int = 1) -> float:
    """The best value of encoders by model; controls never count."""
    return sign * highest(sign * value for model, value in values if not is_control(model))


def with_ends(name: str, value: float, ends: Sequence[float] | None) -> dict[str, float]:
    """A number and its interval as columns of a CSV file."""
    low, high = ends or (math.nan, math.nan)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _show_accuracy(
    collection: Collection, record: type[Record], name: str, words: str, confounder: str
) -> Shown:
    models = collection.models
    found = [average_extra(collection, EXTRAS_BY_NAME[name], m, confounder) for m in models]
    best = best_of(zip(models, (value for value, _ in found), strict=True))
    note = f"{words}; {_name_datasets(collection, record, confounder)}"
    at = f"@{confounder}" if confounder else ""
    return Shown(
        Column("accuracy", note, "no-association" if record is ApdResult else "", record.metric),
        [
            _accuracy_cell(value, ends, value == best and not is_control(model))
            for model, (value, ends) in zip(models, found, strict=True)
        ],
        [with_ends(f"{name}{at}", *one) for one in found],
    )


def _show_part(collection: Collection, part: Part) -> Shown:
    means = {
        model: collection.mean(part.kind, part.headline, model, part.confounder)
        for model in collection.models
    }
    sign = 1 if part.headline.higher_is_better else -1
    best = best_of(((model, mean.value) for model, mean in means.items()), sign=sign)
    where = _name_datasets(collection, part.kind.record, part.confounder)
    values = []
    for model, mean in means.items():
        row: dict[str, Any] = with_ends(part.name, mean.value, mean.ci95)
        if part.kind.record is ApdResult:
            name = _start_of(part.headline)
            at = f"@{part.confounder}" if part.confounder else ""
            if name != ACCURACY:
                row[f"{name}{at}"] = _start(collection, part, model)
        values.append(row)
    term = "croma" if part.kind.record is MarginsResult else ""
    return Shown(
        Column(part.headline.title, where, term, part.kind.name),
        [_cell(collection, part, model, mean, best) for model, mean in means.items()],
        values,
    )


def _show_support(collection: Collection, part: Part) -> Shown:
    """The smallest support of the index, and the neighbours that decide there."""
    cells, values = [], []
    for model in collection.models:
        records = collection.of_model(RobustnessIndexResult, model, part.confounder)
        known = [record for record in records if math.isfinite(record.support)]
        if not known:
            cells.append(Cell(UNDEFINED, title="no support is known"))
            values.append({f"{part.name}_support": math.nan, f"{part.name}_neighbors": None})
            continue
        weakest = min(known, key=lambda record: record.support)
        count = count_neighbors(weakest, RobustnessIndexResult.headline)
        field = part.headline.field
        is_faint = _is_faint(records, field)
        decided = f"{count:,} neighbours" if count is not None else ""
        cells.append(
            Cell(
                format_share(weakest.support),
                title=f"{name_dataset(weakest.dataset)}: {decided}" if decided else "",
                note=f"{count:,} neighbours" if rests_on_few(weakest, field) else "",
                sort=sort_key(weakest.support),
                is_faint=is_faint,
            )
        )
        name = part.name
        values.append({f"{name}_support": weakest.support, f"{name}_neighbors": count})
    return Shown(Column("support", "of patches", "support", part.kind.name), cells, values)


def _is_faint(records: Sequence[RobustnessIndexResult], field: str) -> bool:
    return any(is_weak(record.support) or rests_on_few(record, field) for record in records)


def _show_extra(
    collection: Collection,
    confounder: str,
    name: str,
    title: str,
    note: str,
    form: Callable[[float], str],
) -> Shown:
    """A number without a column for its interval, which the CSV file has."""
    extra = EXTRAS_BY_NAME[name]
    found = [average_extra(collection, extra, m, confounder) for m in collection.models]
    cells = [
        Cell(form(value), title=format_interval(ends), sort=sort_key(value))
        if math.isfinite(value)
        else Cell(UNDEFINED, title="not evaluated on every dataset, or undefined on one")
        for value, ends in found
    ]
    column = Column(title, note, "f0" if name == "croma_f0" else "tail", MarginsResult.metric)
    at = f"@{confounder}" if confounder else ""
    return Shown(column, cells, [with_ends(f"{name}{at}", *one) for one in found])


# Facts that tell whether an encoder may have seen the tiles: in words, by their name.
EXPOSURE = (
    ("tcga", "TCGA"),
    ("benchmark", "this benchmark’s data"),
    ("selected", "chosen by it"),
)
_LICENCE_LENGTH = 12


def _show_facts(found: Sequence[ModelFacts]) -> list[Shown]:
    """Licence and exposure, each where it is known of a model."""
    shown = []
    if any(facts.licence for facts in found):
        cells = [_licence_cell(facts) for facts in found]
        texts = [{"licence": facts.value("licence") or ""} for facts in found]
        shown.append(Shown(Column("licence", "of the weights"), cells, texts))
    if any(facts.value(name) is not None for facts in found for name, _ in EXPOSURE):
        cells = [_exposure_cell(facts) for facts in found]
        words = {True: "yes", False: "no", None: ""}
        flags = [{n: words[facts.value(n)] for n, _ in EXPOSURE} for facts in found]
        shown.append(Shown(Column("has seen", "in training", "exposure"), cells, flags))
    return shown


def _licence_cell(facts: ModelFacts) -> Cell:
    licence = facts.licence
    if licence is None:
        return Cell(UNDEFINED, title="no source states it")
    text = licence.value
    if len(text) > _LICENCE_LENGTH:
        text = f"{text[: _LICENCE_LENGTH - 1].rstrip()}…"
    return Cell(text, title=f"{licence.value}; source: {licence.source}", sort=licence.value)


def _exposure_cell(facts: ModelFacts) -> Cell:
    known = [(words, getattr(facts, name)) for name, words in EXPOSURE if getattr(facts, name)]
    if not known:
        return Cell(UNDEFINED, title="no source states it")
    seen = [words for words, flag in known if flag.value]
    said = ", ".join(f"{words}: {'yes' if flag.value else 'no'}" for words, flag in known)
    sources = ", ".join(dict.fromkeys(flag.source for _, flag in known))
    # “TCGA” alone where it is all that is known to have been seen.
    text = " + ".join(dict.fromkeys(word.replace("this benchmark’s data", "data") for word in seen))
    return Cell(text or "none known", title=f"{said}; source: {sources}", sort=text or "none known")


def _list_accuracies(collection: Collection) -> list[tuple[type[Record], str, str, str]]:
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


def _accuracy_cell(value: float, ends: Sequence[float] | None, is_best: bool) -> Cell:
    if not math.isfinite(value):
        return Cell(UNDEFINED, title="not evaluated on every dataset, or undefined on one")
    note = format_interval(clip_share(ends))
    return Cell(format_number(value), note=note, sort=sort_key(value), best=is_best)


def _cell(collection: Collection, part: Part, model: str, mean: ModelMean, best: float) -> Cell:
    headline = part.headline
    if mean.why:
        return Cell(UNDEFINED, title=mean.why, note="incomplete")
    form, form_ends = format_number, format_interval
    if headline.percent:
        form, form_ends = format_percent, format_percent_interval
    is_faint, span, title = False, None, ""
    if part.kind.record is ApdResult:
        title = f"from {format_number(_start(collection, part, model))}"
    elif part.kind.record is RobustnessIndexResult:
        records = collection.of_model(RobustnessIndexResult, model, part.confounder)
        is_faint = _is_faint(records, headline.field)
    elif part.kind.record is ClusteringResult:
        span = _place(mean.value, mean.ci95)
    return Cell(
        form(mean.value),
        title=title,
        note=form_ends(mean.ci95).removesuffix(" %"),
        background="" if is_faint else _background(headline, mean.value),
        span=span,
        sort=sort_key(mean.value),
        best=mean.value == best and not is_control(model),
        is_faint=is_faint,
    )


def _start_of(headline: Headline) -> str:
    """Name of the accuracy that a drop drops from."""
    side = headline.field.removeprefix("apd_")
    return ACCURACY if side == "id" else f"{ACCURACY}_{side}"


def _start(collection: Collection, part: Part, model: str) -> float:
    extra = EXTRAS_BY_NAME[_start_of(part.headline)]
    return average_extra(collection, extra, model, part.confounder)[0]


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
