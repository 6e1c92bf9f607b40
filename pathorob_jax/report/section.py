"""The section of a metric in the report: blocks of the page, CSV tables, and a one-sentence answer.

``MetricKind.section`` names a function ``build_section(collection, draw) -> Section``. A metric
without such a function uses ``page_generic``.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup
from matplotlib.figure import Figure

from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import Table
from pathorob_jax.results.collection import Collection

# Places of blocks on the page, from top to bottom: metrics, comparison of models, details, classes
# and centres, maps.
MAIN, COMPARISON, DETAILS, GROUPS, MAPS = range(5)


class Drawing(NamedTuple):
    """A figure as markup, and the path of the same figure as a file."""

    svg: Markup
    path: str


Draw = Callable[[str, str, Callable[[], Figure]], Drawing]
"""Function (file name without suffix, description, function that makes the figure) -> drawing."""


class Block(NamedTuple):
    """A block of the page.

    Attributes:
        template: file in ``report/``.
        context: values for the template.
        links: (id, name) of its headings, for the table of contents.
        place: position on the page.
    """

    template: str
    context: Mapping[str, Any]
    links: tuple[tuple[str, str], ...]
    place: int = MAIN


class Section(NamedTuple):
    """The section of a metric in the report.

    Attributes:
        blocks: blocks of the page.
        tables: CSV text by file name, in addition to the table of the metric's numbers.
        answer: a sentence for the top of the page; empty: none.
    """

    blocks: list[Block]
    tables: Mapping[str, str] = {}
    answer: str = ""


def dataset_tables(
    collection: Collection, record: Any, build: Callable[[Any], Table]
) -> list[tuple[str, Table]]:
    """Datasets that have records of a record class, each with its table."""
    return [
        (name_dataset(dataset), build(collection.of_dataset(record, dataset)))
        for dataset in collection.datasets(record)
    ]


def file_name(kind: str, dataset: str) -> str:
    """File name that is different for each dataset and cannot point outside its folder."""
    return f"{kind}_{quote(dataset, safe='@')}"
