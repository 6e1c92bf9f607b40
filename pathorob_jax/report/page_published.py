"""Published numbers beside one's own, and the reasons where none is comparable."""

import math
from collections.abc import Iterable

from pathorob_jax.report.section import DETAILS, Block, Section
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import (
    Cell,
    Row,
    Table,
    format_interval,
    format_number,
    format_percent,
    format_percent_interval,
    format_signed,
    sort_key,
)
from pathorob_jax.results import beside_published
from pathorob_jax.results.beside_published import Comparison
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.published import FIELDS, Published


def build_sections(collection: Collection) -> list[Section]:
    """The section; none where no number of the results is of a kind that boards publish."""
    found = beside_published.compare_all(collection)
    if not found:
        return []
    context = {"table": build_table(found), "reasons": list_reasons(found)}
    link = ("published", "published numbers")
    return [Section([Block("published.jinja", context, (link,), DETAILS)])]


def build_table(found: Iterable[Comparison]) -> Table:
    """One row per number that repeats a published one: here, published, the difference, whose."""
    rows = []
    for one in found:
        number = one.beside.number
        if number is None:
            continue
        apart = one.value - number.value
        difference = format_percent(apart) if is_percent(number.field) else format_signed(apart)
        cells = [
            show(number.field, one.value, one.ci95),
            Cell(
                format_published(number.field, number.value),
                note=show(number.field, number.value, number.ci95).note,
                sort=sort_key(number.value),
            ),
            Cell(difference, sort=sort_key(apart)),
            Cell(number.board.title, note=describe(number), title=number.board.source),
            Cell(one.beside.note or "–"),
        ]
        where = name_dataset(one.dataset) if one.dataset else "mean over PathoROB's datasets"
        rows.append(Row(one.model, f"{FIELDS[number.field][1]}, {where}", cells))
    columns = ["here", "published", "difference", "by", "with a reserve"]
    return Table("Published numbers", columns, rows)


def list_reasons(found: Iterable[Comparison]) -> list[tuple[str, str]]:
    """Each reason why no published number is comparable, with its models."""
    models: dict[str, list[str]] = {}
    for one in found:
        if one.beside.why:
            of_reason = models.setdefault(one.beside.why, [])
            of_reason += [one.model] if one.model not in of_reason else []
    return [(why, ", ".join(of_reason)) for why, of_reason in models.items()]


def is_percent(field: str) -> bool:
    """Whether a number is shown in per cent."""
    return field.startswith("apd")


def show(field: str, value: float, ci95: list[float] | None) -> Cell:
    """A number with its interval."""
    if is_percent(field):
        return Cell(format_percent(value), note=format_percent_interval(ci95), sort=sort_key(value))
    note = format_interval(ci95) if math.isfinite(value) else ""
    return Cell(format_number(value), note=note, sort=sort_key(value))


def format_published(field: str, value: float) -> str:
    """A published number with all its digits, at least three."""
    if is_percent(field):
        return format_percent(value)
    text = f"{value:.5f}".rstrip("0").replace("-", "−")
    return text + "0" * (3 - len(text.partition(".")[2]))


def describe(number: Published) -> str:
    """Date and k of a published number, in words."""
    k = number.board.k.get(number.dataset) if number.field == "robustness_index" else None
    return ", ".join([number.board.date, *([f"k = {k}"] if k else [])])
