"""Numbers that changed since the board that lies in the output folder."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.report.leaderboard.entries import SCHEMA_VERSION, Board

# Sums in another order differ by less.
SAME = 1e-9
# Version 1 does not tell which models are controls.
READABLE = (1, SCHEMA_VERSION)
Key = tuple[str, str, str]


def read_previous(path: str) -> dict[str, Any] | None:
    """The board at a path as plain data; None if there is none.

    Raises:
        InputError: the file is no leaderboard of this form.
    """
    if not files.exists(path):
        return None
    try:
        found = files.read_json(path)
        version = found["schema_version"]
        list(_list_values(found))
        list(found["changes"])
        if version not in READABLE:
            raise ValueError(f"schema version {version}")
    except (*files.UNREADABLE, AttributeError) as error:
        raise InputError(
            f"{path}: expected a leaderboard of schema version {SCHEMA_VERSION}, whose numbers are "
            f"the old ones, found another file ({error}). Give another --output, or remove it."
        ) from error
    return dict(found)


def note_changes(board: Board, previous: Mapping[str, Any] | None, *, date: str) -> Board:
    """The board with what changed since ``previous``, and the changes that it knew already.

    A number that is gone changed to None. Numbers that are new did not change.

    Args:
        board: the new board.
        previous: the old one as plain data; None: there is none.
        date: day of the changes.
    """
    if previous is None:
        return board
    new = {
        (entry.model, name, dataset): value.value if math.isfinite(value.value) else None
        for entry in board.models
        for name, own in entry.values.items()
        for dataset, value in own.items()
    }
    changes = [
        {
            "date": date,
            "model": key[0],
            "number": key[1],
            "dataset": key[2],
            "old": old,
            "new": new.get(key),
        }
        for key, old in _list_values(previous)
        if not _is_same(old, new.get(key))
    ]
    return replace(board, changes=[*changes, *previous["changes"]])


def last_changes(board: Board) -> dict[Key, dict[str, Any]]:
    """The newest change of each number."""
    return {
        (str(c["model"]), str(c["number"]), str(c["dataset"])): c for c in reversed(board.changes)
    }


def _list_values(board: Mapping[str, Any]) -> Iterator[tuple[Key, float | None]]:
    for entry in board["models"]:
        for name, own in entry["values"].items():
            for dataset, value in own.items():
                yield (entry["model"], name, dataset), value["value"]


def _is_same(old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return old is new
    return abs(old - new) <= SAME
