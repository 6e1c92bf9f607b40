"""The pages of the leaderboard: plain data for the templates, which need no JavaScript."""

import functools
import math
from typing import Any
from urllib.parse import quote

import jinja2

from pathorob_jax.report.leaderboard.changes import Key, last_changes
from pathorob_jax.report.leaderboard.entries import Board, Entry, Number, Rank, Value
from pathorob_jax.report.leaderboard.published_tables import (
    all_published,
    list_boards,
    published_row,
)
from pathorob_jax.report.leaderboard.words import (
    join,
    place_name,
    show_count,
    show_exposure,
    show_fact,
    show_seconds,
    show_value,
    where,
)
from pathorob_jax.report.page_published import format_published
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Span,
    format_interval,
    format_percent_interval,
    format_share,
    sort_key,
)
from pathorob_jax.version import __version__

MAX_CHANGES = 50
CONTROLS = "Controls mark the ends of the scale; none is a pathology encoder."
ABOUT = ("exposure", "size", "cost", "precision, loading", "licence", "date, commit")


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
    is_ranked = any(_ranked(board, entry) for entry in board.computed)
    first = board.number(board.ranked_by) if is_ranked else None
    rows = [
        {
            "model": entry.model,
            "is_control": entry.is_control,
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
            has_controls=any(entry.is_control for entry in board.computed),
            columns=[(number.title, place_name(number.datasets[0])) for number in shown],
            about=ABOUT,
            ranked_by=first.title if first else "",
            ranked_on=where(board.ranked_on) if first else "",
            answer=write_answer(board),
            by_dataset=[_by_dataset(board, n, changed) for n in shown if len(n.datasets) > 1],
            published=all_published(board),
            boards=list_boards(),
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
                    "dataset": place_name(dataset),
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
            published=[published_row(one) for one in entry.published],
            made=_how_made(entry),
            facts=[
                (name.replace("_", " "), show_fact(fact["value"]), fact["source"])
                for name, fact in entry.facts.items()
            ],
            exposure="not trained" if entry.is_control else show_exposure(entry.exposure),
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
        old, new = (show_value(number, change[side]) for side in ("old", "new"))
        notes.append(f"{old} → {new} on {change['date']}")
    if with_published and value.published is not None:
        notes.append(f"published {format_published(number.name, value.published)}")
    return Cell(
        show_value(number, value.value),
        title=value.why,
        note="\n".join(filter(None, notes)),
        sort=sort_key(value.value),
    )


def write_answer(board: Board) -> str:
    """Who leads, and who cannot be told apart from the leader."""
    ranked = [(e, rank) for e in board.computed if (rank := _ranked(board, e)) is not None]
    if not ranked:
        n = len(board.computed)
        n -= sum(entry.is_control for entry in board.computed)
        return "No model is ranked: nothing to compare with." if n < 2 else "No model is ranked."
    leaders = [entry.model for entry, rank in ranked if rank.rank == 1]
    best, rank = ranked[0]
    share, models = "", "models"
    if math.isfinite(rank.first_share):
        share = f" It is first in {format_share(rank.first_share)} of draws of slides."
    if all(entry.is_control for entry, _ in ranked):
        models, share = "controls", f"{share} {CONTROLS}"
    if len(leaders) == 1:
        return f"{best.model} leads {rank.of} {models} and is told apart from each.{share}"
    others = ", ".join(name for name in leaders if name != best.model)
    return (
        f"{best.model} has the highest value of {rank.of} {models}, but shares rank 1 with "
        f"{others}: on these slides they cannot be told apart.{share}"
    )


def _write_standing(board: Board, entry: Entry) -> str:
    if not entry.values:
        return "No results here; published numbers only."
    rank = _ranked(board, entry)
    control = f"A control. {CONTROLS} " if entry.is_control else ""
    if rank is None:
        return f"{control}Not ranked."
    number = board.number(board.ranked_by)
    draws = "; it has no place in most draws"
    if math.isfinite(rank.low):
        share = format_share(rank.place_share)
        draws = f", and so in {share} of draws; in 95 % of draws at {_ends(rank)}"
    return (
        f"{control}Rank {_rank_text(rank)} of {rank.of} by {number.title}, "
        f"{where(board.ranked_on)}. By value it is at place {rank.place}{draws}."
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


def _published_cell(number: Number, value: Value) -> Cell:
    if value.published is not None:
        text = format_published(number.name, value.published)
        return Cell(text, note=value.published_by)
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
        row = {"model": entry.model, "is_control": entry.is_control, "page": quote(entry.page)}
        rows.append({**row, "cells": cells})
    columns = [place_name(dataset) for dataset in number.datasets]
    return {"title": number.title, "columns": columns, "rows": rows}


def _about_cells(entry: Entry) -> list[Cell]:
    origin = entry.origin
    if origin is None:
        return []
    params = entry.facts.get("params", {}).get("value")
    licence = entry.facts.get("licence", {}).get("value")
    gflops = "" if origin.gflops is None else f"{origin.gflops:.1f} GFLOPs a tile"
    known = [s for s in (origin.seconds, origin.extraction_seconds) if s is not None]
    costs = [f"embedding {show_seconds(origin.extraction_seconds)}"] if known else []
    metrics = show_seconds(origin.seconds, is_whole=origin.is_whole)
    # The digest of the weights stands on the model's page.
    loading = [text.partition(", sha256")[0] for text in origin.loading]
    loading += [f"pooled: {pooling}" for pooling in origin.pooling]
    exposure = "not trained: a control" if entry.is_control else show_exposure(entry.exposure)
    return [
        Cell(exposure),
        Cell("not known" if params is None else f"{show_count(params)} parameters", note=gflops),
        Cell(
            f"metrics {metrics}" if known else "not recorded",
            note="\n".join([*costs, *origin.devices]),
        ),
        Cell(join(origin.encoder_precision), note="\n".join(loading)),
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
        ("pooling", join(origin.pooling)),
        ("loading", join(origin.loading)),
        ("precision of the encoder", join(origin.encoder_precision)),
        ("precision of the search", join(origin.search_precision)),
        ("cost of a tile", gflops),
        ("embedding the tiles", show_seconds(origin.extraction_seconds)),
        ("computing the metrics", show_seconds(origin.seconds, is_whole=origin.is_whole)),
        ("device", join(origin.devices)),
        ("results written", origin.date or UNDEFINED),
        ("commit", join(origin.commits)),
        ("version of pathorob-jax", join(origin.versions)),
    ]


def _change_row(board: Board, change: dict[str, Any]) -> dict[str, str]:
    names = {number.name: number for number in board.numbers}
    number = names.get(change["number"]) or Number(
        change["number"], change["number"], False, [], False
    )
    return {
        "date": change["date"],
        "model": change["model"],
        "number": f"{number.title}, {place_name(change['dataset'])}",
        "old": show_value(number, change["old"]),
        "new": show_value(number, change["new"]),
    }
