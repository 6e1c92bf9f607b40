"""Section of families of models: poolings of one encoder, and checkpoints of one run."""

import math
from typing import Any

from pathorob_jax.report import answer_sentences
from pathorob_jax.report.answer_figures import Follow, draw_follow
from pathorob_jax.report.section import COMPARISON, Block, Draw, Section, file_name
from pathorob_jax.report.table_cells import (
    UNDEFINED,
    Cell,
    Row,
    Table,
    format_number,
    format_signed,
    sort_key,
)
from pathorob_jax.results.answers import Answers, RunCurve
from pathorob_jax.results.families import PoolingStudy


def build_sections(answers: Answers, draw: Draw) -> list[Section]:
    """The section, if there are several poolings or checkpoints."""
    study = answers.poolings
    if study is None and not answers.runs:
        return []
    context = {
        "poolings": None if study is None else build_poolings(study),
        "agreements": None if study is None else build_agreements(study),
        "runs": [_describe_run(answers, curve, draw) for curve in answers.runs],
    }
    links = [("poolings", "poolings")] if study is not None else []
    links += [("runs", "checkpoints")] if answers.runs else []
    return [Section([Block("families.jinja", context, tuple(links), COMPARISON)])]


def build_poolings(study: PoolingStudy) -> Table:
    """Encoders by pooling: rank, and the number beneath."""
    rows = []
    for encoder, ranks in study.ranks.items():
        cells = []
        for pooling in study.poolings:
            value = study.values[encoder].get(pooling, math.nan)
            if pooling not in ranks:
                cells.append(Cell(UNDEFINED, title="no such number of this pooling"))
                continue
            rank = ranks[pooling]
            title = study.models[encoder][pooling]
            cells.append(
                Cell(f"{rank:g}", title=title, note=format_number(value), sort=sort_key(rank))
            )
        rows.append(Row(encoder, "", cells))
    rows.sort(key=lambda row: (row.cells[0].sort == "", float(row.cells[0].sort or 0), row.name))
    return Table("Ranks by pooling", study.poolings, rows)


def build_agreements(study: PoolingStudy) -> Table:
    """Two poolings by the agreement of their orders."""
    rows = []
    for found in study.agreements:
        cells = [
            Cell(str(found.n), sort=sort_key(found.n)),
            *(
                Cell(format_signed(value), sort=sort_key(value))
                if math.isfinite(value)
                else Cell(UNDEFINED, title="undefined: all encoders are level by one of the two")
                for value in (found.kendall, found.spearman)
            ),
            Cell(f"{len(found.swapped)} of {found.n_pairs}", sort=sort_key(len(found.swapped))),
            Cell(str(len(found.swapped_apart)), sort=sort_key(len(found.swapped_apart))),
        ]
        rows.append(Row(" and ".join(found.poolings), "", cells))
    columns = ["encoders", "Kendall’s τ", "Spearman’s ρ", "pairs that swap", "told apart both ways"]
    return Table("Agreement of poolings", columns, rows)


def _describe_run(answers: Answers, curve: RunCurve, draw: Draw) -> dict[str, Any]:
    followed = [
        Follow(answers.titles[name], curve.values[name], curve.ci95[name]) for name in curve.values
    ]
    run = curve.run
    name = run.name or "run"
    drawing = None
    if followed:
        drawing = draw(
            file_name("run", f"{run.name}_{run.word}"),
            f"Numbers of {name} by {run.word}",
            lambda: draw_follow(run.word, run.steps, followed),
        )
    return {
        "name": name,
        "answer": answer_sentences.write_run(curve),
        "drawing": drawing,
        "caption": f"Checkpoints of {name}, with 95 % intervals.",
    }
