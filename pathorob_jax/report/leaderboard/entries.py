"""What the leaderboard holds, as plain data: numbers, ranks, facts and costs of every model.

``make_board`` turns records into a ``Board``, which is ``leaderboard.json``; the pages only lay it
out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pathorob_jax.models import registry
from pathorob_jax.models.facts import ModelFacts, find_facts
from pathorob_jax.models.names import is_control
from pathorob_jax.report.leaderboard.origins import Origin, find_origin
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.compare_models import Comparison, Contender, compare_all
from pathorob_jax.results.flatten import interval_of
from pathorob_jax.results.metric_kind import Headline, MetricKind
from pathorob_jax.results.published import (
    FIELDS,
    MEAN_OF,
    Published,
    encoder_key,
    find_published,
    list_published,
    of_model,
)
from pathorob_jax.results.robustification import RobustificationResult
from pathorob_jax.results.robustness_index import RobustnessIndexResult

SCHEMA_VERSION = 2
MEAN = "mean"
EXPOSURE = ("tcga", "benchmark", "selected")


@dataclass(frozen=True)
class Number:
    """A number that models have.

    Attributes:
        name: key of its values: the field, after ``<metric>.`` where two metrics share one.
        title: in words.
        percent: whether it is shown in per cent.
        datasets: keys of its values: ``mean`` or ``mean@<confounder>`` first, where there is one.
        in_overview: whether the first table shows it.
    """

    name: str
    title: str
    percent: bool
    datasets: list[str]
    in_overview: bool


@dataclass(frozen=True)
class Rank:
    """Rank of a model among those whose draws it shares.

    Attributes:
        rank: one more than the models that are told apart as better; others share it.
        shared: whether another model has the same.
        of: number of models ranked.
        place: place by value alone.
        place_share: share of draws in which the model stands at its place.
        first_share: share of draws in which it is first.
        low: lower end of the interval of its place over draws.
        high: upper end.
        mean: mean place over draws.
    """

    rank: int
    shared: bool
    of: int
    place: int
    place_share: float
    first_share: float
    low: float
    high: float
    mean: float


@dataclass(frozen=True)
class Value:
    """A number of one model on one dataset, or its mean.

    Attributes:
        value: NaN where undefined.
        ci95: 95 % interval; None: undefined.
        why: why it is undefined; "": it is not.
        rank: among models; None: it is not ranked.
        why_no_rank: why it is not; "": it is, or models are not ranked by this number.
        published: the published number of the same use of the encoder.
        published_by: its board, date and reserve, in words; "": there is none.
        why_not_published: why there is none; "": there is, or boards publish no such number.
    """

    value: float
    ci95: list[float] | None
    why: str
    rank: Rank | None
    why_no_rank: str
    published: float | None
    published_by: str
    why_not_published: str


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        model: name of the model.
        page: its page, relative to the board; "" before pages have names.
        is_control: whether it is no pathology encoder, but marks an end of the scale. Controls are
            ranked where there is nothing else.
        values: by number and dataset.
        facts: what is known of its training, by name, each with value and source.
        exposure: whether it saw TCGA or the benchmark, or was chosen by it; None: not known.
        origin: encoder, precision, loading, cost, date and commit.
        published: numbers that boards publish of the encoder, comparable or not.
    """

    model: str
    page: str
    is_control: bool
    values: dict[str, dict[str, Value]]
    facts: dict[str, dict[str, Any]]
    exposure: dict[str, bool | None]
    origin: Origin | None
    published: list[dict[str, Any]]


@dataclass(frozen=True)
class Board:
    """All models, those with results first and the best first.

    Attributes:
        schema_version: of this form.
        ranked_by: name of the number that orders models; "": there are no results.
        ranked_on: its dataset or mean.
        numbers: the numbers.
        models: the models.
        changes: numbers that changed since an earlier board, the newest first.
    """

    schema_version: int
    ranked_by: str
    ranked_on: str
    numbers: list[Number]
    models: list[Entry]
    changes: list[dict[str, Any]]

    def number(self, name: str) -> Number:
        """A number by name."""
        return next(number for number in self.numbers if number.name == name)

    @property
    def computed(self) -> list[Entry]:
        """Models with results."""
        return [entry for entry in self.models if entry.values]


def make_board(
    collection: Collection,
    *,
    facts: Mapping[str, ModelFacts] | None = None,
    dates: Mapping[str, str] | None = None,
) -> Board:
    """The board of all records, and of all published numbers.

    Args:
        collection: records; may be empty.
        facts: facts of models beyond the registry.
        dates: day on which the results of a model were written, by model.
    """
    parts = list(_list_parts(collection))
    values: dict[str, dict[str, dict[str, Value]]] = {model: {} for model in collection.models}
    origins = {model: find_origin(collection, model, dates or {}) for model in collection.models}
    numbers = []
    for name, kind, headline in parts:
        found = _read_number(collection, kind, headline)
        datasets = list(dict.fromkeys(d for own in found.values() for d in own))
        numbers.append(
            Number(name, headline.title, headline.percent, datasets, headline.in_overview)
        )
        for model, own in found.items():
            values[model][name] = own
    first = numbers[0] if numbers else None
    on = first.datasets[0] if first else ""
    models = sorted(
        collection.models, key=lambda m: _order(values[m], first.name if first else "", on)
    )
    entries = [_make_entry(model, values[model], facts, origins[model]) for model in models]
    there = {encoder_key(_encoder(entry)) for entry in entries}
    others: dict[str, str] = {}
    for number in list_published():
        others.setdefault(encoder_key(number.model), number.model)
    entries += [
        _make_entry(model, {}, facts, None) for key, model in others.items() if key not in there
    ]
    return Board(SCHEMA_VERSION, first.name if first else "", on, numbers, entries, [])


def _list_parts(collection: Collection) -> Iterator[tuple[str, MetricKind, Headline]]:
    """Numbers with their names; the robustness index orders models where it is there."""
    seen: set[str] = set()
    kinds = sorted(collection.kinds, key=lambda kind: kind.record is not RobustnessIndexResult)
    for kind in kinds:
        if kind.record is RobustificationResult:
            continue
        for headline in kind.headlines:
            field = headline.field
            name = f"{kind.name}.{field}" if field in seen else field
            seen.add(field)
            yield name, kind, headline


def _encoder(entry: Entry) -> str:
    return entry.origin.encoder if entry.origin else entry.model


def _order(values: Mapping[str, Mapping[str, Value]], name: str, on: str) -> tuple[bool, float]:
    value = values.get(name, {}).get(on)
    if value is None or not math.isfinite(value.value):
        return (True, 0.0)
    return (False, -value.value)


def _read_number(
    collection: Collection, kind: MetricKind, headline: Headline
) -> dict[str, dict[str, Value]]:
    """Values by model and dataset; means over several datasets of a confounder come first."""
    ranks: dict[str, dict[str, Rank]] = {}
    left_out: dict[str, dict[str, str]] = {}
    if headline.compared_as and len(collection.models) > 1:
        entries = collection.entries(kind, headline)
        for one in compare_all(headline.compared_as, entries, bounds=headline.bounds):
            key = one.dataset or _mean_key(one.confounder)
            ranks[key], left_out[key] = _rank(one), dict(one.left_out)
    field = headline.field
    found: dict[str, dict[str, Value]] = {}
    for model in collection.models:
        own: dict[str, Value] = {}
        for confounder in collection.confounders(kind.record):
            if len(collection.datasets(kind.record, confounder)) < 2:
                continue
            mean = collection.mean(kind, headline, model, confounder)
            key = _mean_key(confounder)
            records = collection.of_model(kind.record, model, confounder)
            of_mean = [] if confounder else [r for r in records if r.dataset in MEAN_OF]
            is_theirs = len(of_mean) == len(records) == len(MEAN_OF)
            own[key] = _value(
                mean.value,
                mean.ci95,
                mean.why,
                (ranks.get(key, {}).get(model), left_out.get(key, {}).get(model, "")),
                (of_mean if is_theirs else [], field),
            )
        for dataset in collection.datasets(kind.record):
            record = collection.get(kind.record, model, dataset)
            if record is None:
                continue
            value, ends = float(getattr(record, field)), interval_of(record, field)
            own[dataset] = _value(
                value,
                ends,
                "" if math.isfinite(value) else "undefined on these patches",
                (
                    ranks.get(dataset, {}).get(model),
                    left_out.get(dataset, {}).get(model, ""),
                ),
                ([record], field),
            )
        found[model] = own
    return found


def _value(
    value: float,
    ci95: list[float] | None,
    why: str,
    ranked: tuple[Rank | None, str],
    repeated: tuple[Sequence[Any], str],
) -> Value:
    records, field = repeated
    number, by, why_not = None, "", ""
    if records and field in FIELDS and math.isfinite(value):
        beside = find_published(records, field)
        why_not = beside.why
        if beside.number is not None:
            number = beside.number.value
            board = beside.number.board
            by = "; ".join(filter(None, [f"{board.title}, {board.date}", beside.note]))
    return Value(value, ci95, why, *ranked, number, by, why_not)


def _mean_key(confounder: str) -> str:
    return f"{MEAN}@{confounder}" if confounder else MEAN


def _rank(comparison: Comparison) -> dict[str, Rank]:
    ranks = comparison.shared_ranks
    every = list(ranks.values())
    n = len(every)

    def of(place: int, contender: Contender) -> Rank:
        return Rank(
            rank=ranks[contender.model],
            shared=every.count(ranks[contender.model]) > 1,
            of=n,
            place=place,
            place_share=contender.place_share,
            first_share=contender.first_share,
            low=contender.rank_low,
            high=contender.rank_high,
            mean=contender.mean_rank,
        )

    pairs = enumerate(comparison.contenders, start=1)
    return {contender.model: of(place, contender) for place, contender in pairs}


def _make_entry(
    model: str,
    values: dict[str, dict[str, Value]],
    own: Mapping[str, ModelFacts] | None,
    origin: Origin | None,
) -> Entry:
    encoder = origin.encoder if origin else model
    known = find_facts(model, own)
    if known == ModelFacts() and origin is not None and "+" not in model:
        known = find_facts(encoder, own)
    facts = {
        name: {"value": fact.value, "source": fact.source}
        for name, fact in vars(known).items()
        if name != "names" and fact is not None
    }
    exposure = {name: known.value(name) for name in EXPOSURE}
    published = [as_published(number) for number in of_model(encoder)]
    return Entry(model, "", is_control(model), values, facts, exposure, origin, published)


def as_published(number: Published) -> dict[str, Any]:
    """A published number with all that says how it was made, as plain data."""
    board = number.board
    return {
        "model": number.model,
        "number": number.field,
        "dataset": number.dataset,
        "value": number.value,
        "ci95": number.ci95,
        "board": board.title,
        "source": board.source,
        "date": board.date,
        "protocol": board.protocol,
        "k": board.k.get(number.dataset) if number.field == "robustness_index" else None,
        "use": board.use,
        "pooling": _pooling(number),
        "precision": board.precision,
    }


def _pooling(number: Published) -> str:
    """Pooling of a published number; "" where it is not known."""
    board = number.board
    spec = registry.MODELS.get(encoder_key(number.model))
    if board.use == "stated":
        return board.pooling
    if spec is None or board.use == "unknown":
        return ""
    if board.use == "authors":
        return spec.default_pooling or ""
    return spec.pathorob.pooling if spec.pathorob else ""
