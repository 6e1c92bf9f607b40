"""The first screen: accuracy and robustness together, what differs and what does not."""

from collections.abc import Sequence
from typing import Any

from pathorob_jax.report import answer_sentences, sentences
from pathorob_jax.report.answer_figures import draw_front
from pathorob_jax.report.answer_table import build_columns, build_overview, list_shown
from pathorob_jax.report.over_models_figures import Point
from pathorob_jax.report.section import Draw, Drawing
from pathorob_jax.results.answers import Answers
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.families import find_sides
from pathorob_jax.results.margins import MarginsResult
from pathorob_jax.results.over_models import INDEX
from pathorob_jax.results.robustness_index import RobustnessIndexResult

# Statistics whose differences are said; the others are in the tables of comparisons.
SAID = ("robustness index", "CRoMa")
# Warnings that are shown before one asks for more.
MAX_WARNINGS = 3
# Answers of metrics that are shown before one asks for more.
MAX_ANSWERS = 1


def build_context(
    collection: Collection, answers: Answers, section_answers: Sequence[str], draw: Draw
) -> dict[str, Any]:
    """What ``answers.jinja`` shows.

    Args:
        collection: records.
        answers: the numbers behind the first screen.
        section_answers: one sentence of each metric.
        draw: draws figures.
    """
    warnings = sentences.collect_warnings(collection)
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
        "overview_columns": build_columns(collection),
        "overview": build_overview(collection) if others else [],
        "n_models": len(collection.models),
        "has_tail": bool(collection.datasets(MarginsResult)),
        "pooling_answers": (
            [] if answers.poolings is None else answer_sentences.write_poolings(answers.poolings)
        ),
        "run_answers": [answer_sentences.write_run(curve) for curve in answers.runs],
    }


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
    pareto = answers.pareto
    if pareto is None:
        return None
    x, y = answers.titles[pareto.accuracy], answers.titles[INDEX]
    points = [
        Point(
            p.model,
            p.accuracy,
            p.robustness,
            p.accuracy_ci95,
            p.robustness_ci95,
            is_on_front=p.on_front,
        )
        for p in pareto.points
    ]
    front = pareto.front
    names = ", ".join(p.model for p in front[: answer_sentences.MAX_NAMED])
    more = len(front) - answer_sentences.MAX_NAMED
    caption = f"Accuracy and robustness with 95 % intervals. Both at once: {names}"
    caption += f" and {more} more" if more > 0 else ""
    caption += (
        "; no other model beats it in both."
        if len(front) == 1
        else ("; no other model beats one of these in both.")
    )
    if len(pareto.points) == 1:
        caption = "Accuracy and robustness with 95 % intervals."
    label = f"{y} by {x} of {len(points)} models"
    return draw("models_front", label, lambda: draw_front(points, x, y, answers.chance)), caption


def _list_missing(answers: Answers) -> str:
    """Models that the figure lacks, in words."""
    shown = set() if answers.pareto is None else {p.model for p in answers.pareto.points}
    missing = [row.model for row in answers.rows if row.model not in shown]
    if answers.pareto is None or not missing:
        return ""
    return f"Not in the figure, for want of one of the two numbers: {', '.join(missing)}."
