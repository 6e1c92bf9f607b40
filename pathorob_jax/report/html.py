"""The report: a folder that answers whether models see biology or the hospital.

Enters: a results root. Leaves: ``index.html`` (one page that needs nothing else and no network),
three CSV tables and the figures as PNG. Each file is replaced atomically, and two runs over the
same results write the same bytes.
"""

import importlib.resources
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from pathorob_jax import files
from pathorob_jax.report import figures, page, palette, tables, vector
from pathorob_jax.report.board import Board, collect_warnings, write_answer
from pathorob_jax.results import (
    MarginsResult,
    ProbesResult,
    RobustnessIndexResult,
    read_results,
)


class _Drawing(NamedTuple):
    """A figure, both as markup and as the file beside the page."""

    svg: Markup
    path: str


def write_report(results_root: str, output: str) -> str:
    """Write the report of all results under ``results_root`` into the folder ``output``.

    Args:
        results_root: ``<results>``, holding ``<model>/<dataset>/robustness_index.json``.
        output: folder, made when missing; its older report is replaced.

    Returns:
        The path of ``index.html``, written last.

    Raises:
        FileNotFoundError: there are no robustness index results.
        InputError: a record cannot be read, or two are of the same model and dataset.
    """
    found = read_results(results_root)
    records = [r for r in found if isinstance(r, RobustnessIndexResult)]
    margins = [r for r in found if isinstance(r, MarginsResult)]
    probes = [r for r in found if isinstance(r, ProbesResult)]
    if not records:
        raise FileNotFoundError(
            f"{results_root}: expected <model>/<dataset>/robustness_index.json, found results of "
            "other metrics only; run experiments.evaluate with --metrics=robustness_index."
        )
    board = Board(records)
    texts = {
        "robustness_index.csv": tables.format_index_csv(records),
        "curves.csv": tables.format_curves_csv(records),
        "groups.csv": tables.format_groups_csv(records),
    }
    if margins:
        texts["margins.csv"] = tables.format_margins_csv(margins)
    if probes:
        texts["probes.csv"] = tables.format_probes_csv(probes)
    for name, text in texts.items():
        files.write_bytes(files.join(output, name), text.encode())
    drawings = {}
    for key, name, label, figure in _draw(board):
        path = f"figures/{name}.png"
        files.write_bytes(files.join(output, path), vector.to_png(figure))
        # The path on disk may hold percent signs, which a link has to escape once more.
        drawings[key] = _Drawing(Markup(vector.to_inline_svg(figure, label=label)), quote(path))
    index = files.join(output, "index.html")
    files.write_bytes(index, render_page(board, drawings, margins, probes).encode())
    return index


def render_page(
    board: Board,
    drawings: dict[tuple[str, str], _Drawing],
    margins: Sequence[MarginsResult] = (),
    probes: Sequence[ProbesResult] = (),
) -> str:
    """The page as text, given its figures by kind and dataset."""
    source = importlib.resources.files("pathorob_jax.report") / "report.html.jinja"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    sections = []
    for number, dataset in enumerate(board.datasets):
        records = board.of_dataset(dataset)
        sections.append(
            {
                "anchor": f"dataset-{number}",
                "name": dataset,
                "curve": drawings["curve", dataset],
                "composition": drawings["composition", dataset],
                "companions": page.build_companions(records),
                "probes": page.build_probes([r for r in probes if r.dataset == dataset]),
                "margins": page.build_margins([r for r in margins if r.dataset == dataset]),
                "paired": any(record.per_subset for record in records),
                "groups": [
                    page.build_groups("Biological classes", records, "per_class"),
                    page.build_groups("Medical centres", records, "per_center"),
                ],
                "subsets": page.build_groups("Subsets", records, "per_subset"),
                "provenance": [(r.model, _format_provenance(r)) for r in records],
            }
        )
    return environment.from_string(source.read_text("utf-8")).render(
        answer=write_answer(board),
        columns=page.build_columns(board),
        several=len(board.datasets) > 1,
        headline=page.build_headline(board),
        warnings=collect_warnings(board),
        n_models=len(board.models),
        has_margins=bool(margins),
        has_probes=bool(probes),
        has_intervals=any(r.ci95 for m in board.models for r in board.of_model(m)),
        index_figure=drawings["robustness_index", ""],
        sections=sections,
        neighbor_types=palette.NEIGHBOR_TYPES,
        heat=[palette.heat(i / 10) for i in range(11)],
    )


def _draw(board: Board) -> Iterator[tuple[tuple[str, str], str, str, Figure]]:
    """Key, file name, description and figure; the style holds while the caller saves each."""
    panels = [(dataset, board.of_dataset(dataset)) for dataset in board.datasets]
    with vector.drawing_style():
        yield (
            ("robustness_index", ""),
            "robustness_index",
            "Robustness index of each model",
            figures.draw_index(board.models, panels),
        )
        for dataset, records in panels:
            yield (
                ("curve", dataset),
                _file_name("curve", dataset),
                f"Robustness index and balanced accuracy by k on {dataset}",
                figures.draw_curves(dataset, board.models, records),
            )
            yield (
                ("composition", dataset),
                _file_name("composition", dataset),
                f"Types of neighbours by k on {dataset}",
                figures.draw_composition(dataset, records),
            )


def _file_name(kind: str, dataset: str) -> str:
    """A name that differs whenever the datasets do, and never leaves its folder."""
    return f"{kind}_{quote(dataset, safe='@')}"


def _format_provenance(record: RobustnessIndexResult) -> str:
    return json.dumps(record.provenance, indent=2, ensure_ascii=False, sort_keys=True)
