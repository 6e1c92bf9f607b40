"""Write the leaderboard: ``index.html``, a page per model, and ``leaderboard.json``."""

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pyarrow.fs as pafs

from pathorob_jax.core import faults, files
from pathorob_jax.core.plain import as_plain
from pathorob_jax.models.facts import read_facts
from pathorob_jax.report.leaderboard import changes, pages
from pathorob_jax.report.leaderboard.entries import Board, make_board
from pathorob_jax.report.section import encode_name
from pathorob_jax.results.collection import Collection

INDEX, JSON, PAGES = "index.html", "leaderboard.json", "models"


def write_leaderboard(results_root: str, output: str, *, facts: str | None = None) -> str:
    """Write the leaderboard of all results under ``results_root`` into the folder ``output``.

    A board that is there is replaced; its numbers are the old ones where numbers changed.

    Args:
        results_root: root of the results, with ``<model>/<dataset>/<metric>.json``.
        output: folder, created if missing.
        facts: YAML file of facts of models beyond the registry.

    Returns:
        The path of ``index.html``, which is written last.

    Raises:
        FileNotFoundError: there are no results.
        InputError: a record cannot be read, two records have the same model and dataset, the
            ``leaderboard.json`` in the folder is none, or the folder cannot be written.
        UsageError: the file of facts is invalid.

    >>> import numpy as np, pathorob_jax as pr
    >>> rows = {"slide_id": np.arange(48) // 4, "patch_id": np.arange(48)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 24}
    >>> rows |= {"medical_center": ["A"] * 24 + ["B"] * 24}
    >>> x = np.random.default_rng(0).normal(size=(48, 8))
    >>> results = pr.evaluate_embeddings(x, rows, k=5, model="mine", output="results")
    >>> pr.write_leaderboard("results", "leaderboard")
    'leaderboard/index.html'
    """
    faults.check_writable(output)
    own = None if facts is None else read_facts(facts)
    previous = changes.read_previous(files.join(output, JSON))
    collection = Collection.read(results_root)
    dates = {model: _date_of(files.join(results_root, model)) for model in collection.models}
    board = _name_pages(make_board(collection, facts=own, dates=dates))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    board = changes.note_changes(board, previous, date=today)
    for entry in board.models:
        text = pages.render_model(board, entry)
        files.write_bytes(files.join(output, entry.page), text.encode())
    for page in _stale_pages(previous, (entry.page for entry in board.models)):
        files.remove(files.join(output, page))
    files.write_json(files.join(output, JSON), as_plain(board))
    index = files.join(output, INDEX)
    files.write_bytes(index, pages.render_index(board).encode())
    return index


def _name_pages(board: Board) -> Board:
    """The board with a page for each model, never two that differ in case only."""
    taken: set[str] = set()
    entries = []
    for entry in board.models:
        stem = encode_name(entry.model)
        while stem.casefold() in taken:
            stem += "_"
        taken.add(stem.casefold())
        entries.append(replace(entry, page=f"{PAGES}/{stem}.html"))
    return replace(board, models=entries)


def _stale_pages(previous: Mapping[str, Any] | None, pages: Iterable[str]) -> list[str]:
    """Pages of an older board that this one does not have."""
    old = {str(entry.get("page", "")) for entry in previous["models"]} if previous else set()
    # Nothing outside the folder of pages, whatever the file says.
    inside = {p for p in old if p.startswith(f"{PAGES}/") and p.endswith(".html")}
    return sorted(p for p in inside - set(pages) if p.count("/") == 1 and "\\" not in p)


def _date_of(folder: str) -> str:
    """Day (UTC) on which the newest file of a folder was written; "" where the disk has none."""
    fs, inner = files.filesystem(folder)
    selector = pafs.FileSelector(inner, recursive=True, allow_not_found=True)
    found = fs.get_file_info(selector)
    times = [e.mtime for e in found if e.type == pafs.FileType.File and e.path.endswith(".json")]
    known = [time for time in times if time is not None]
    return max(known).astimezone(datetime.UTC).date().isoformat() if known else ""
