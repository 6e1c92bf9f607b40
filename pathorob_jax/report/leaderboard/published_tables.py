"""The tables of published numbers on the leaderboard, as plain data for the templates."""

from typing import Any
from urllib.parse import quote

from pathorob_jax.report.leaderboard.entries import Board, as_published
from pathorob_jax.report.leaderboard.words import place_name, show_exposure
from pathorob_jax.report.page_published import format_published, is_percent
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    format_interval,
    format_percent_interval,
)
from pathorob_jax.results.published import FIELDS, list_published

USES = {
    "pathorob": "as PathoROB used each encoder",
    "authors": "as the authors use the encoder",
    "stated": "stated by the board",
    "unknown": "not stated",
}


def published_row(one: dict[str, Any]) -> dict[str, Any]:
    """A published number with all that says how it was made, in words."""
    field, ends = one["number"], one["ci95"]
    show = format_percent_interval if is_percent(field) else format_interval
    return {
        "number": FIELDS[field][1],
        "dataset": place_name(one["dataset"]),
        "value": Cell(format_published(field, one["value"]), note=show(ends)),
        "board": one["board"],
        "source": one["source"],
        "date": one["date"],
        "protocol": one["protocol"],
        "k": one["k"] or UNDEFINED,
        "pooling": one["pooling"] or UNDEFINED,
        "use": USES[one["use"]],
        "precision": one["precision"] or UNDEFINED,
    }


def all_published(board: Board) -> dict[str, Any]:
    """All published numbers: a row per board and model."""
    page_of = {
        (one["board"], one["model"]): entry for entry in board.models for one in entry.published
    }
    fields = list(FIELDS)
    found = [(number.field, number.dataset) for number in list_published()]
    columns = sorted(dict.fromkeys(found), key=lambda column: fields.index(column[0]))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for number in list_published():
        key = (number.board.title, number.model)
        plain = as_published(number)
        row = rows.setdefault(
            key,
            {
                "model": number.model,
                "board": number.board.title,
                "page": quote(page_of[key].page),
                "pooling": plain["pooling"] or UNDEFINED,
                "exposure": show_exposure(page_of[key].exposure),
                "cells": [Cell(UNDEFINED)] * len(columns),
            },
        )
        place = columns.index((number.field, number.dataset))
        row["cells"][place] = published_row(plain)["value"]
    return {
        "columns": [(FIELDS[field][1], place_name(dataset)) for field, dataset in columns],
        "rows": list(rows.values()),
    }


def list_boards() -> list[dict[str, Any]]:
    """The boards: source, date, protocol, k and use of encoders."""
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
