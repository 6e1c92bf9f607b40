"""The first screen: accuracy and robustness together, what differs and what does not."""

import math
from collections.abc import Sequence
from typing import Any

from pathorob_jax.models.names import is_control
from pathorob_jax.report import answer_sentences
from pathorob_jax.report.answer_figures import draw_front
from pathorob_jax.report.answer_table import Shown, build_columns, build_overview, list_shown
from pathorob_jax.report.cautions import collect_cautions
from pathorob_jax.report.over_models_figures import Point
from pathorob_jax.report.page_compare import name_comparison
from pathorob_jax.report.section import Draw, Drawing
from pathorob_jax.report.table_cells import clip_share, format_number
from pathorob_jax.results.answers import Answers
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.compare_models import Pair
from pathorob_jax.results.families import find_sides
from pathorob_jax.results.margins import MarginsResult
from pathorob_jax.results.over_models import INDEX, ParetoPoint
from pathorob_jax.results.robustness_index import RobustnessIndexResult

# Statistics whose differences are said; the others are in the tables of comparisons.
SAID = ("robustness index", "CRoMa")
# Warnings that are shown before one asks for more.
MAX_WARNINGS = 3
# Answers of metrics that are shown before one asks for more.
MAX_ANSWERS = 1


def build_context(
    collection: Collection,
    answers: Answers,
    section_answers: Sequence[str],
    shown: Sequence[Shown],
    draw: Draw,
) -> dict[str, Any]:
    """What ``answers.jinja`` shows.

    Args:
        collection: records.
        answers: the numbers behind the first screen.
        section_answers: one sentence of each metric.
        shown: columns of the first table.
        draw: draws figures.
    """
    warnings = collect_cautions(collection)
    # If the index is the only metric, the table of its datasets says all.
    others = [p for p in list_shown(collection) if p.kind.record is not RobustnessIndexResult]
    return {
        "answers": section_answers[:MAX_ANSWERS],
        "more_answers": section_answers[MAX_ANSWERS:],
        "differences": _list_differences(answers),
        "front": _draw_front(answers, draw),
        "missing": _list_missing(answers),
        "warnings": warnings[:MAX_WARNINGS],
        "more_warnings": warnings[MAX_WARNINGS:],
        "overview_columns": build_columns(shown),
        "overview": build_overview(collection, shown) if others else [],
        "n_models": len(collection.models),
        "n_candidates": len(collection.candidates),
        "pairs": list_pairs(answers, collection.models),
        "has_tail": bool(collection.datasets(MarginsResult)),
        "pooling_answers": (
            [] if answers.poolings is None else answer_sentences.write_poolings(answers.poolings)
        ),
        "run_answers": [answer_sentences.write_run(curve) for curve in answers.runs],
    }


def count_models(collection: Collection) -> str:
    """How many encoders and controls, in words."""
    parts = [(len(collection.encoders), "pathology encoder"), (len(collection.controls), "control")]
    return " and ".join(f"{n} {word}{'' if n == 1 else 's'}" for n, word in parts if n)


def _list_differences(answers: Answers) -> list[tuple[str, list[str]]]:
    """Statistics with sentences on what they tell apart; one that agrees with the first says so."""
    names = [name for name in SAID if name in answers.comparisons]
    if not names:
        names = list(answers.comparisons)[:1]
    found = []
    for name in names:
        comparison = answers.comparisons[name]
        texts = answer_sentences.write_differences(comparison)
        if name != names[0] and find_sides(comparison) == find_sides(answers.comparisons[names[0]]):
            texts = ["The same pairs are told apart."] if texts else []
        found.append((f"{name[0].upper()}{name[1:]}", texts))
    return [(name, texts) for name, texts in found if texts]


def _draw_front(answers: Answers, draw: Draw) -> tuple[Drawing, str] | None:
    points = _list_points(answers)
    if not points:
        return None
    x, y = answers.titles[answers.accuracy], answers.titles[INDEX]
    front = _list_front(answers)
    names = ", ".join(p.model for p in front[: answer_sentences.MAX_NAMED])
    more = len(front) - answer_sentences.MAX_NAMED
    caption = f"Accuracy and robustness with 95 % intervals. Best trade-off: {names}"
    caption += f" and {more} more" if more > 0 else ""
    caption += (
        "; no other encoder beats it in both."
        if len(front) == 1
        else ("; no other encoder beats one of these in both.")
    )
    if len(points) == 1 or not front:
        caption = "Accuracy and robustness with 95 % intervals."
    label = f"{y} by {x} of {len(points)} models"
    if answers.chances:
        caption += " Dashed: chance, the index of an embedding without structure"
        caption += "." if is_one_chance(answers.chances) else ", least and greatest over models."
    return draw("models_front", label, lambda: draw_front(points, x, y, answers.chances)), caption


def _list_points(answers: Answers) -> list[Point]:
    """Models with both numbers; controls are never on the front."""
    front = {point.model for point in _list_front(answers)}
    found = []
    for row in answers.rows:
        x, y = (row.values.get(name, math.nan) for name in (answers.accuracy, INDEX))
        if math.isfinite(x + y):
            ends = (clip_share(row.ci95.get(answers.accuracy)), row.ci95.get(INDEX))
            is_on_front, is_c = row.model in front, is_control(row.model)
            found.append(Point(row.model, x, y, *ends, is_on_front=is_on_front, is_control=is_c))
    return found


def _list_front(answers: Answers) -> list[ParetoPoint]:
    """Models on the front, if there are several encoders that could be on it."""
    pareto = answers.pareto
    return [] if pareto is None or len(pareto.points) < 2 else pareto.front


def is_one_chance(chances: Sequence[float]) -> bool:
    """Whether the least and the greatest chance are one number on the page."""
    return format_number(chances[0]) == format_number(chances[-1])


def list_pairs(answers: Answers, models: Sequence[str]) -> dict[str, Any]:
    """Differences of all pairs of models, for the page to choose from; empty for fewer than three.

    Each pair has the places of its models in ``models``, its difference and the ends of its
    interval in thousandths, whether it is told apart, and else how many slides would tell: about,
    and at the least. None: the interval has no width; 0: not known.
    """
    if len(models) < 3:
        return {}
    place = {model: i for i, model in enumerate(models)}
    tables = []
    for statistic, comparison in answers.comparisons.items():
        rows = [
            [
                place[pair.model_a],
                place[pair.model_b],
                *(round(1000 * v) for v in (pair.difference, pair.low, pair.high)),
                int(pair.is_apart),
                *_need(pair),
            ]
            for pair in comparison.pairs
            if math.isfinite(pair.low + pair.high)
        ]
        if not rows:
            continue
        slides = max((pair.slides for pair in comparison.pairs), default=0)
        where = name_comparison(comparison)
        far = answer_sentences.OUT_OF_REACH * slides
        tables.append(
            {"name": statistic, "where": where, "slides": slides, "far": far, "rows": rows}
        )
    return {"models": list(models), "tables": tables} if tables else {}


def _need(pair: Pair) -> list[int | None]:
    if pair.has_no_width:
        return [None]
    if pair.is_apart or pair.slides_needed is None or not pair.slides:
        return []
    least = pair.slides_at_least or 0
    bound = [answer_sentences.round_up(least)] if least > pair.slides else []
    return [answer_sentences.round_up(pair.slides_needed), *bound]


def _list_missing(answers: Answers) -> str:
    """Models that the figure lacks, in words."""
    shown = {point.model for point in _list_points(answers)}
    missing = [row.model for row in answers.rows if row.model not in shown]
    if not shown or not missing:
        return ""
    return f"Not in the figure, for want of one of the two numbers: {', '.join(missing)}."
