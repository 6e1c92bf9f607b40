"""The pages of the leaderboard: plain data for the templates, which need no JavaScript."""

import functools
import math
from typing import Any
from urllib.parse import quote

import jinja2

from pathorob_jax.report.leaderboard.changes import Key, last_changes
from pathorob_jax.report.leaderboard.entries import (
    MEAN,
    Board,
    Entry,
    Number,
    Rank,
    Value,
    as_published,
)
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Span,
    format_interval,
    format_number,
    format_percent,
    format_percent_interval,
    format_share,
    sort_key,
)
from pathorob_jax.results.published import FIELDS, list_published
from pathorob_jax.version import __version__

MAX_CHANGES = 50
EXPOSED = {
    "tcga": ("trained on TCGA", "not on TCGA"),
    "benchmark": ("trained on the benchmark’s slides", "not on the benchmark’s slides"),
    "selected": ("checkpoint chosen by PathoROB", "checkpoint not chosen by PathoROB"),
}
USES = {
    "pathorob": "as PathoROB used each encoder",
    "authors": "as the authors use the encoder",
    "stated": "stated by the board",
    "unknown": "not stated",
}


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader("pathorob_jax.report.leaderboard", ""),
    )


def render_index(board: Board) -> str:
    """The first page: all models in one table, numbers by dataset, published numbers, changes."""
    shown = [number for number in board.numbers if number.in_overview]
    changed = last_changes(board)
    first = board.number(board.ranked_by) if board.ranked_by else None
    rows = [
        {
            "model": entry.model,
            "page": quote(entry.page),
            "rank": _rank_cell(_ranked(board, entry)),
            "place": _place_cell(_ranked(board, entry)),
            "values": [
                value_cell(n, _first(entry, n), changed, (entry.model, n.name, n.datasets[0]))
                for n in shown
            ],
            "about": _about_cells(entry),
        }
        for entry in board.computed
    ]
    return (
        _environment()
        .get_template("index.html.jinja")
        .render(
            title="Leaderboard",
            rows=rows,
            columns=[(number.title, _place_name(number.datasets[0])) for number in shown],
            about=["exposure", "parameters", "GFLOPs a tile", "seconds", "precision", "loading"]
            + ["licence", "date, commit"],
            ranked_by=first.title if first else "",
            ranked_on=_place_name(board.ranked_on) if first else "",
            answer=write_answer(board),
            by_dataset=[_by_dataset(board, n, changed) for n in shown if len(n.datasets) > 1],
            published=_published_rows(board),
            boards=_list_boards(),
            changes=[_change_row(board, change) for change in board.changes[:MAX_CHANGES]],
            n_older=max(0, len(board.changes) - MAX_CHANGES),
            version=__version__,
        )
    )


def render_model(board: Board, entry: Entry) -> str:
    """The page of a model."""
    changed = last_changes(board)
    rows = []
    for number in board.numbers:
        for dataset in number.datasets:
            value = entry.values.get(number.name, {}).get(dataset)
            if value is None:
                continue
            key = (entry.model, number.name, dataset)
            why_no_rank = value.why_no_rank and f"not ranked: {value.why_no_rank}"
            rows.append(
                {
                    "number": number.title,
                    "dataset": _place_name(dataset),
                    "value": value_cell(number, value, changed, key, with_published=False),
                    "rank": _rank_cell(value.rank, why_no_rank),
                    "place": _place_cell(value.rank),
                    "published": _published_cell(number, value),
                }
            )
    return (
        _environment()
        .get_template("model.html.jinja")
        .render(
            title=entry.model,
            entry=entry,
            answer=_write_standing(board, entry),
            rows=rows,
            published=[_published_row(one) for one in entry.published],
            made=_how_made(entry),
            facts=[
                (name.replace("_", " "), _show_fact(fact["value"]), fact["source"])
                for name, fact in entry.facts.items()
            ],
            exposure=_show_exposure(entry.exposure),
            version=__version__,
        )
    )


def value_cell(
    number: Number,
    value: Value | None,
    changed: dict[Key, dict[str, Any]],
    key: Key,
    *,
    with_published: bool = True,
) -> Cell:
    """A number with its interval, its change and the published number."""
    if value is None:
        return Cell(UNDEFINED, title="no result")
    notes = []
    if value.ci95 is not None:
        show = format_percent_interval if number.percent else format_interval
        notes.append(show(value.ci95))
    if key in changed:
        change = changed[key]
        notes.append(
            f"{_show(number, change['old'])} → {_show(number, change['new'])} on {change['date']}"
        )
    if with_published and value.published is not None:
        notes.append(f"published {_show(number, value.published)}")
    return Cell(
        _show(number, value.value),
        title=value.why,
        note="\n".join(filter(None, notes)),
        sort=sort_key(value.value),
    )


def write_answer(board: Board) -> str:
    """Who leads, and who cannot be told apart from the leader."""
    ranked = [(e, rank) for e in board.computed if (rank := _ranked(board, e)) is not None]
    if not ranked:
        n = len(board.computed)
        return "No model is ranked: nothing to compare with." if n < 2 else "No model is ranked."
    leaders = [entry.model for entry, rank in ranked if rank.rank == 1]
    best, rank = ranked[0]
    share = f"It is first in {format_share(rank.first_share)} of draws of slides."
    if len(leaders) == 1:
        return f"{best.model} leads {rank.of} models and is told apart from each. {share}"
    others = ", ".join(name for name in leaders if name != best.model)
    return (
        f"{best.model} has the highest value of {rank.of} models, but shares rank 1 with {others}: "
        f"on these slides they cannot be told apart. {share}"
    )


def _write_standing(board: Board, entry: Entry) -> str:
    if not entry.values:
        return "No results here; published numbers only."
    rank = _ranked(board, entry)
    if rank is None:
        return "Not ranked."
    number = board.number(board.ranked_by)
    return (
        f"Rank {_rank_text(rank)} of {rank.of} by {number.title}, {_place_name(board.ranked_on)}. "
        f"By value it is at place {rank.place}, and so in {format_share(rank.place_share)} of "
        f"draws; in 95 % of draws at {_ends(rank)}."
    )


def _ranked(board: Board, entry: Entry) -> Rank | None:
    value = entry.values.get(board.ranked_by, {}).get(board.ranked_on)
    return value.rank if value else None


def _first(entry: Entry, number: Number) -> Value | None:
    return entry.values.get(number.name, {}).get(number.datasets[0])


def _rank_text(rank: Rank) -> str:
    return f"{rank.rank} (shared)" if rank.shared else str(rank.rank)


def _rank_cell(rank: Rank | None, why: str = "") -> Cell:
    if rank is None:
        return Cell(UNDEFINED, title=why or "not ranked", note=why)
    return Cell(str(rank.rank), note="shared" if rank.shared else "", sort=str(rank.rank))


def _place_cell(rank: Rank | None) -> Cell:
    if rank is None:
        return Cell(UNDEFINED)
    if not math.isfinite(rank.low):
        return Cell(UNDEFINED, title="undefined in most draws")
    places = (rank.low, rank.high, rank.mean)
    span = Span(*(100 * (place - 0.5) / rank.of for place in places))
    note = f"at {rank.place} in {format_share(rank.place_share)}"
    return Cell(_ends(rank), note=note, span=span, sort=sort_key(rank.mean))


def _ends(rank: Rank) -> str:
    low, high = f"{rank.low:g}", f"{rank.high:g}"
    return low if low == high else f"{low}–{high}"


def _show(number: Number, value: float | None) -> str:
    if value is None:
        return UNDEFINED
    return format_percent(value) if number.percent else format_number(value)


def _place_name(dataset: str) -> str:
    name, _, confounder = dataset.partition("@")
    if name == MEAN:
        return f"mean over datasets by {confounder}" if confounder else "mean over datasets"
    return name_dataset(dataset)


def _published_cell(number: Number, value: Value) -> Cell:
    if value.published is not None:
        return Cell(_show(number, value.published), note=value.published_by)
    return Cell(UNDEFINED, note=value.why_not_published)


def _by_dataset(board: Board, number: Number, changed: dict[Key, dict[str, Any]]) -> dict[str, Any]:
    rows = []
    for entry in board.computed:
        own = entry.values.get(number.name, {})
        cells = []
        for dataset in number.datasets:
            value = own.get(dataset)
            rank = value.rank if value else None
            cell = value_cell(number, value, changed, (entry.model, number.name, dataset))
            cells.append((cell, f"rank {_rank_text(rank)}" if rank else ""))
        rows.append({"model": entry.model, "page": quote(entry.page), "cells": cells})
    columns = [_place_name(dataset) for dataset in number.datasets]
    return {"title": number.title, "columns": columns, "rows": rows}


def _about_cells(entry: Entry) -> list[Cell]:
    origin = entry.origin
    if origin is None:
        return []
    params = entry.facts.get("params", {}).get("value")
    licence = entry.facts.get("licence", {}).get("value")
    return [
        Cell(_show_exposure(entry.exposure)),
        Cell(_show_count(params), sort=sort_key(params or math.nan)),
        Cell(
            UNDEFINED if origin.gflops is None else f"{origin.gflops:.1f}",
            sort=sort_key(math.nan if origin.gflops is None else origin.gflops),
        ),
        Cell(
            _show_seconds(origin.seconds),
            note=", ".join(origin.devices),
            sort=sort_key(math.nan if origin.seconds is None else origin.seconds),
        ),
        Cell(_join(origin.encoder_precision)),
        Cell(_join(origin.loading), note=_join(origin.pooling, empty="")),
        Cell(licence or UNDEFINED),
        Cell(origin.date or UNDEFINED, note=", ".join(origin.commits)),
    ]


def _how_made(entry: Entry) -> list[tuple[str, str]]:
    origin = entry.origin
    if origin is None:
        return []
    gflops = UNDEFINED if origin.gflops is None else f"{origin.gflops:.2f} GFLOPs"
    return [
        ("encoder", origin.encoder),
        ("pooling", _join(origin.pooling)),
        ("loading", _join(origin.loading)),
        ("precision of the encoder", _join(origin.encoder_precision)),
        ("precision of the search", _join(origin.search_precision)),
        ("cost of a tile", gflops),
        ("embedding the tiles", _show_seconds(origin.extraction_seconds, unit=True)),
        ("computing the metrics", _show_seconds(origin.seconds, unit=True)),
        ("device", _join(origin.devices)),
        ("results written", origin.date or UNDEFINED),
        ("commit", _join(origin.commits)),
        ("version of pathorob-jax", _join(origin.versions)),
    ]


def _join(texts: list[str], *, empty: str = UNDEFINED) -> str:
    return "; ".join(texts) or empty


def _show_exposure(exposure: dict[str, bool | None]) -> str:
    words = [EXPOSED[name][0 if flag else 1] for name, flag in exposure.items() if flag is not None]
    return "; ".join(words) or "not known"


def _show_seconds(seconds: float | None, *, unit: bool = False) -> str:
    if seconds is None:
        return "not recorded" if unit else UNDEFINED
    text = f"{seconds:,.1f}" if seconds < 100 else f"{seconds:,.0f}"
    return f"{text} s" if unit else text


def _show_count(n: int | None) -> str:
    if n is None:
        return UNDEFINED
    if n >= 10**9:
        return f"{n / 1e9:.2f} billion"
    return f"{n / 1e6:.1f} million" if n >= 10**6 else f"{n:,}"


def _show_fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _published_row(one: dict[str, Any]) -> dict[str, Any]:
    title = FIELDS[one["number"]][1]
    number = Number(one["number"], title, one["number"].startswith("apd"), [], True)
    show = format_percent_interval if number.percent else format_interval
    return {
        "number": number.title,
        "dataset": _place_name(one["dataset"]),
        "value": Cell(_show(number, one["value"]), note=show(one["ci95"]) if one["ci95"] else ""),
        "board": one["board"],
        "source": one["source"],
        "date": one["date"],
        "protocol": one["protocol"],
        "k": one["k"] or UNDEFINED,
        "pooling": one["pooling"] or UNDEFINED,
        "use": USES[one["use"]],
        "precision": one["precision"] or UNDEFINED,
    }


def _published_rows(board: Board) -> dict[str, Any]:
    """All published robustness indices and drops: a row per board and model."""
    columns: dict[tuple[str, str], None] = {}
    rows: dict[tuple[str, str], dict[Any, Any]] = {}
    pages = {
        (one["board"], one["model"]): entry.page
        for entry in board.models
        for one in entry.published
    }
    for number in list_published():
        key = (number.board.title, number.model)
        plain = as_published(number)
        column = (number.field, number.dataset)
        columns[column] = None
        row = rows.setdefault(key, {"cells": {}, "plain": plain, "page": quote(pages[key])})
        row["cells"][column] = _published_row(plain)["value"]
    exposures = {entry.page: _show_exposure(entry.exposure) for entry in board.models}
    return {
        "columns": [(FIELDS[field][1], _place_name(dataset)) for field, dataset in columns],
        "rows": [
            {
                "model": model,
                "board": title,
                "page": row["page"],
                "pooling": row["plain"]["pooling"] or UNDEFINED,
                "exposure": exposures[pages[title, model]],
                "cells": [row["cells"].get(column, Cell(UNDEFINED)) for column in columns],
            }
            for (title, model), row in rows.items()
        ],
    }


def _list_boards() -> list[dict[str, Any]]:
    boards = {number.board.title: number.board for number in list_published()}
    return [
        {
            "title": board.title,
            "source": board.source,
            "date": board.date,
            "protocol": board.protocol,
            "k": ", ".join(f"{name_dataset(d)} {k}" for d, k in board.k.items()) or UNDEFINED,
            "use": USES[board.use],
        }
        for board in boards.values()
    ]


def _change_row(board: Board, change: dict[str, Any]) -> dict[str, str]:
    names = {number.name: number for number in board.numbers}
    number = names.get(change["number"]) or Number(
        change["number"], change["number"], False, [], False
    )
    return {
        "date": change["date"],
        "model": change["model"],
        "number": f"{number.title}, {_place_name(change['dataset'])}",
        "old": _show(number, change["old"]),
        "new": _show(number, change["new"]),
    }
