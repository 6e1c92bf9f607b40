"""Section of a metric without a special section: a table of its numbers for each dataset."""

from collections.abc import Sequence
from typing import Any

from pathorob_jax.report.section import Block, Draw, Section, dataset_tables
from pathorob_jax.report.table_cells import Cell, Row, Table, number_cell, sort_key
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.flatten import Number, flatten
from pathorob_jax.results.metric_kind import MetricKind

NOT_NUMBERS = ("model", "dataset")


def build_section(kind: MetricKind, collection: Collection, draw: Draw) -> Section:
    """All scalar numbers of the records of a metric."""
    del draw
    context = {
        "id": kind.name,
        "title": kind.title[:1].upper() + kind.title[1:],
        "tables": dataset_tables(collection, kind.record, build_table),
    }
    return Section([Block("generic.jinja", context, ((kind.name, kind.title),))])


def build_table(records: Sequence[Any]) -> Table:
    """Models by numbers."""
    rows, columns = [], []
    for record in records:
        numbers = [number for number in flatten(record) if number.name not in NOT_NUMBERS]
        columns = [number.name.replace("_", " ") for number in numbers]
        rows.append(Row(record.model, "", [_cell(number) for number in numbers]))
    return Table("", columns, rows)


def _cell(number: Number) -> Cell:
    if isinstance(number.value, float):
        return number_cell(number.value, why="undefined", interval=number.ends)
    sort = sort_key(number.value) if isinstance(number.value, int) else number.value
    return Cell(str(number.value), sort=sort)
