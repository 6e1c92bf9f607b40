"""Tables of the report as Markdown, for documents."""

from pathorob_jax.report.page_robustification import build_changes, group_by_parent
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import Cell, Table
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.result_files import OVER_DATASETS, read_outcomes


def format_table(table: Table, corner: str) -> str:
    """A table as Markdown, with the notes of its cells in brackets."""
    lines = [[corner, *table.columns]]
    lines.append(["---"] * len(lines[0]))
    for row in table.rows:
        name = f"{row.name} ({_join(row.note)})" if row.note else row.name
        lines.append([name, *map(_format_cell, row.cells)])
    return "\n".join(f"| {' | '.join(part.replace('|', '/') for part in line)} |" for line in lines)


def _format_cell(cell: Cell) -> str:
    text = f"{cell.text} ({_join(cell.note)})" if cell.note else cell.text
    return f"{text} **{cell.warning}**" if cell.warning else text


def _join(note: str) -> str:
    return "; ".join(note.split("\n"))


def format_robustification(results_root: str) -> str:
    """The tables of all robustified models under a folder of results, by parent and dataset.

    Raises:
        FileNotFoundError: there are no results.
        InputError: a record cannot be read.
    """
    found = read_outcomes(results_root)
    collection = Collection(o for o in found if not isinstance(o.record, OVER_DATASETS))
    parts = [
        f"### {parent} on {name_dataset(dataset)}\n\n"
        f"{format_table(build_changes(parent, records), 'model')}\n"
        for (parent, dataset), records in group_by_parent(collection).items()
    ]
    return "\n".join(parts)
