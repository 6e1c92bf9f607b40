"""A metric's part of the report: blocks of the page, CSV tables, and the answer in a sentence.

``MetricKind.section`` names a function ``build_section(collection, draw) -> Section``. A metric
without one gets ``page_generic``.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup
from matplotlib.figure import Figure

from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import Table
from pathorob_jax.results.collection import Collection

# Blocks of the page from top to bottom: the metrics, models beside each other, details, groups.
MAIN, COMPARISON, DETAILS, GROUPS, MAPS = range(5)


class Drawing(NamedTuple):
    """A figure, both as markup and as the file beside the page."""

    svg: Markup
    path: str


Draw = Callable[[str, str, Callable[[], Figure]], Drawing]
"""(file name without suffix, description, function that makes the figure) -> drawing."""


class Block(NamedTuple):
    """A block of the page.

    Attributes:
        template: file in ``report/``.
        context: what the template needs.
        links: (id, name) of its headings, for the list of contents.
        place: where it stands.
    """

    template: str
    context: Mapping[str, Any]
    links: tuple[tuple[str, str], ...]
    place: int = MAIN


class Section(NamedTuple):
    """A metric's part of the report.

    Attributes:
        blocks: of the page.
        tables: CSV text by file name, beside the table of the metric's numbers.
        answer: a sentence for the first screen; empty: none.
    """

    blocks: list[Block]
    tables: Mapping[str, str] = {}
    answer: str = ""


def dataset_tables(
    collection: Collection, record: Any, build: Callable[[Any], Table]
) -> list[tuple[str, Table]]:
    """Datasets that have records of a class, each with its table."""
    return [
        (name_dataset(dataset), build(collection.of_dataset(record, dataset)))
        for dataset in collection.datasets(record)
    ]


def file_name(kind: str, dataset: str) -> str:
    """A name that differs whenever the datasets do, and never leaves its folder."""
    return f"{kind}_{quote(dataset, safe='@')}"
