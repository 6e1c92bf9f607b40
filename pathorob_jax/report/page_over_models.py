"""Section over models: correlations, Pareto front, scaling, vision-language, and facts."""

import functools
import math
from collections.abc import Sequence
from typing import Any

from pathorob_jax.models.facts import read_facts
from pathorob_jax.report import csv_tables
from pathorob_jax.report.over_models_figures import Panel, Point, draw_points
from pathorob_jax.report.section import COMPARISON, Block, Draw, Drawing, Section
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Row,
    Table,
    format_interval,
    format_share,
    format_signed,
    number_cell,
    sort_key,
)
from pathorob_jax.results.analyse_models import LANGUAGE, SIZES, analyse_collection
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.over_models import (
    APD_ID,
    APD_OOD,
    INDEX,
    ModelRow,
    OverModels,
    Pareto,
    RankCorrelation,
)

AGAINST = (INDEX, APD_ID, APD_OOD)
FACTS = ("kind", "slides", "params", "data", "licence", "tcga", "benchmark")
FACT_WORDS = {
    "params": "parameters",
    "tcga": "trained on TCGA",
    "benchmark": "trained on the benchmark's data",
}
UNKNOWN = "no source states it"


def build_sections(collection: Collection, facts: str | None, draw: Draw) -> list[Section]:
    """The section of a collection with enough models; nothing for fewer."""
    known = None if facts is None else read_facts(facts)
    if len(collection.models) < 2:
        return []
    over = analyse_collection(collection, known)
    return [build_section(over, draw)] if over.n_models >= over.min_models else []


def build_section(over: OverModels, draw: Draw) -> Section:
    """Tables, figures and CSV files of the analyses over models."""
    context = {
        "warnings": over.warnings,
        "correlations": build_correlations(over),
        "figures": _draw_all(over, draw),
        "pareto": build_pareto(over.pareto) if over.pareto else None,
        "scaling": build_scaling(over),
        "language": build_language(over),
        "facts": build_facts(over.models),
    }
    tables = {
        "models.csv": csv_tables.format_models(over),
        "model_correlations.csv": csv_tables.format_correlations(over),
    }
    block = Block("over_models.jinja", context, (("models", "over models"),), COMPARISON)
    return Section([block], tables, write_answer(over))


def write_answer(over: OverModels) -> str:
    """Say how the index goes with the performance drop over models."""
    parts = []
    for name, words in ((APD_ID, "in domain"), (APD_OOD, "out of domain")):
        found = over.find(INDEX, name)
        if found is not None and math.isfinite(found.rho):
            parts.append(f"{format_signed(found.rho)} {words} (p = {found.p_value:.2g})")
    if not parts:
        return ""
    return (
        f"Over {over.n_models} models, the rank correlation of the robustness index with the "
        f"performance drop is {' and '.join(parts)}."
    )


def build_correlations(over: OverModels) -> Table:
    """Numbers by what they are correlated with."""
    against = [name for name in AGAINST if name in over.titles]
    rows = []
    for name, title in over.titles.items():
        cells = [_correlation_cell(over.find(name, other), name == other) for other in against]
        if any(cell.text not in (UNDEFINED, "") for cell in cells):
            rows.append(Row(title, "", cells))
    return Table("Rank correlations", [over.titles[name] for name in against], rows)


def _correlation_cell(found: RankCorrelation | None, is_self: bool) -> Cell:
    if found is None or is_self:
        return Cell("")
    if not math.isfinite(found.rho):
        return Cell(UNDEFINED, title="undefined: too few models, or all have one value")
    interval = format_interval(found.ci95)
    note = f"{interval}\n" if interval else ""
    return Cell(
        format_signed(found.rho),
        title=f"p by Student's t {found.p_value_t:.3g}; permutations {found.p_rule}",
        note=f"{note}n {found.n}, p {found.p_value:.2g}",
        sort=sort_key(found.rho),
    )


def build_pareto(pareto: Pareto) -> Table:
    """Models by accuracy, with what beats them."""
    rows = []
    for point in sorted(pareto.points, key=lambda p: (not p.on_front, -p.accuracy)):
        share = format_share(point.front_share)
        cells = [
            number_cell(point.accuracy, interval=point.accuracy_ci95),
            number_cell(point.robustness, interval=point.robustness_ci95),
            Cell("on the front" if point.on_front else "", sort=str(int(point.on_front))),
            Cell(share, sort=sort_key(point.front_share)),
            Cell(", ".join(point.beaten_by)),
        ]
        rows.append(Row(point.model, "", cells))
    columns = [pareto.accuracy.replace("_", " "), pareto.robustness.replace("_", " ")]
    return Table(
        "Accuracy and robustness", [*columns, "front", "how often on it", "beaten by"], rows
    )


def build_scaling(over: OverModels) -> Table:
    """The index against sizes of models, all and self-supervised ones."""
    words = dict(SIZES)
    rows = [
        Row(
            words[found.x],
            f"{found.which} models",
            [_correlation_cell(found, False), number_cell(found.slope)],
        )
        for found in over.scaling
    ]
    return Table("Size", ["rank correlation with the index", "slope"], rows)


def build_language(over: OverModels) -> Table:
    """Vision-language models against the others at equal accuracy."""
    rows = []
    for found in over.language:
        if math.isfinite(found.difference):
            cells = [
                number_cell(found.difference, interval=found.ci95),
                Cell(f"{found.p_value:.2g}", sort=sort_key(found.p_value)),
                Cell(f"{found.n_language} and {found.n_vision}"),
            ]
            rows.append(Row(over.titles[found.of], "", cells))
    columns = ["difference", "p", "models with and without language"]
    return Table("Vision-language at equal accuracy", columns, rows)


def build_facts(models: Sequence[ModelRow]) -> Table:
    """What is known of each model; hover for sources."""
    rows = []
    for row in models:
        cells = []
        for name in FACTS:
            fact = row.facts.get(name)
            if fact is None:
                cells.append(Cell(UNDEFINED, title=UNKNOWN))
                continue
            value = fact["value"]
            text = {True: "yes", False: "no"}.get(value) if isinstance(value, bool) else None
            if text is None:
                text = f"{value:,}" if isinstance(value, int) else str(value)
            cells.append(Cell(text, title=f"source: {fact['source']}", sort=str(value)))
        rows.append(Row(row.model, "", cells))
    return Table("Facts", [FACT_WORDS.get(name, name) for name in FACTS], rows)


def _draw_all(over: OverModels, draw: Draw) -> list[tuple[Drawing, str]]:
    """The figures that have at least two points in every panel."""
    figures: list[tuple[str, str, list[Panel], str]] = []
    drops = [name for name in (APD_ID, APD_OOD) if name in over.titles and INDEX in over.titles]
    if drops:
        panels = [
            Panel(
                _describe(over.find(INDEX, name)),
                over.titles[INDEX],
                over.titles[name],
                _list_points(over, INDEX, name),
            )
            for name in drops
        ]
        caption = "Robustness index and performance drop of each model, with 95 % intervals."
        figures.append(
            ("models_drop", "Robustness index against performance drop", panels, caption)
        )
    sized = [found for found in over.scaling if found.which == "all" and found.n >= over.min_models]
    if sized:
        words = dict(SIZES)
        panels = [
            Panel(_describe(found), words[found.x], over.titles[INDEX], _sized(over, found.x), True)
            for found in sized
        ]
        caption = "Robustness index by size, on a log scale; blue squares: vision-language models."
        figures.append(("models_size", "Robustness index against size", panels, caption))
    return [
        (draw(name, label, functools.partial(draw_points, panels)), caption)
        for name, label, panels, caption in figures
        if all(len(panel.points) > 1 for panel in panels)
    ]


def _describe(found: RankCorrelation | None) -> str:
    if found is None or not math.isfinite(found.rho):
        return ""
    return f"ρ = {format_signed(found.rho)}, n = {found.n}, p = {found.p_value:.2g}"


def _is_language(row: ModelRow) -> bool:
    return bool(row.fact("kind") == LANGUAGE)


def _list_points(over: OverModels, x: str, y: str) -> list[Point]:
    points = [
        Point(
            row.model,
            row.values.get(x, math.nan),
            row.values.get(y, math.nan),
            row.ci95.get(x),
            row.ci95.get(y),
            _is_language(row),
        )
        for row in over.models
    ]
    return [point for point in points if math.isfinite(point.x + point.y)]


def _sized(over: OverModels, name: str) -> list[Point]:
    rows: list[tuple[ModelRow, Any]] = [(row, row.fact(name)) for row in over.models]
    return [
        Point(
            row.model,
            float(size),
            row.values[INDEX],
            None,
            row.ci95.get(INDEX),
            _is_language(row),
        )
        for row, size in rows
        if size is not None and math.isfinite(row.values.get(INDEX, math.nan))
    ]
