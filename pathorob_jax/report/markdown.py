"""Tables of the report as Markdown, for documents."""

from collections.abc import Sequence

from pathorob_jax.report import page_generic
from pathorob_jax.report.page_robustification import build_changes, group_by_parent
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import Cell, Table
from pathorob_jax.results import registry
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.metric_kind import resolve


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
    collection = Collection.read(results_root)
    parts = [
        f"### {parent} on {name_dataset(dataset)}\n\n"
        f"{format_table(build_changes(parent, records), 'model')}\n"
        for (parent, dataset), records in group_by_parent(collection).items()
    ]
    return "\n".join(parts)


def format_metrics(results_root: str, metrics: Sequence[str]) -> str:
    """The tables of metrics under a folder of results, by metric and dataset.

    Args:
        results_root: folder of results.
        metrics: names of ``results.registry.KINDS``; one without results is passed over. Its tables
            are those of ``MetricKind.tables``, or else one of all its numbers.

    Raises:
        UsageError: a metric is unknown.
        FileNotFoundError: there are no results.
        InputError: a record cannot be read.
    """
    kinds = [registry.get_kind(name) for name in metrics]
    collection = Collection.read(results_root)
    lines = []
    for kind in kinds:
        datasets = collection.datasets(kind.record)
        if datasets:
            lines.append(f"## {kind.title[:1].upper()}{kind.title[1:]}\n")
        for dataset in datasets:
            lines.append(f"### {name_dataset(dataset)}\n")
            if kind.tables is None:
                records = collection.of_dataset(kind.record, dataset)
                tables = [("", "model", page_generic.build_table(records))]
            else:
                tables = resolve(kind.tables)(collection, dataset)
            for heading, corner, table in tables:
                title = f"{heading}:\n\n" if heading else ""
                lines.append(f"{title}{format_table(table, corner)}\n")
    return "\n".join(lines)
