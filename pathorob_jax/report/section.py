"""The section of a metric in the report: blocks of the page, CSV tables, and a one-sentence answer.

``MetricKind.section`` names a function ``build_section(collection, draw) -> Section``. A metric
without such a function uses ``page_generic``.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from pathorob_jax.core import digests
from pathorob_jax.report.panels import Panels
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import Table
from pathorob_jax.results.collection import Collection

MAX_NAME_BYTES = 200
# Places of blocks on the page, from top to bottom: metrics, comparison of models, details, classes
# and centres, maps.
MAIN, COMPARISON, DETAILS, GROUPS, MAPS = range(5)


class Drawing(NamedTuple):
    """A figure as markup, and the link to the same figure as a file."""

    svg: Markup
    path: str

    @property
    def form(self) -> str:
        """What the file is: PNG or SVG."""
        return self.path.rpartition(".")[2].upper()


Draw = Callable[[str, str, Callable[[], Figure | Panels]], Drawing]
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
    return f"{kind}_{encode_name(dataset)}"


def encode_name(name: str) -> str:
    """A name as part of a path: another for each name, never above ``MAX_NAME_BYTES`` bytes.

    Letters and digits of all scripts and `` @+,=_-()`` stay, and dots within; all else is
    percent-encoded. The middle of a long name gives way to a digest of the whole.
    """
    encoded = "".join(
        c
        if c.isalnum() or c in " @+,=_-()" or (c == "." and i)
        else "".join(f"%{byte:02X}" for byte in c.encode(errors="backslashreplace"))
        for i, c in enumerate(name)
    )
    if len(encoded.encode()) <= MAX_NAME_BYTES:
        return encoded
    head = encoded.encode()[: MAX_NAME_BYTES - 20].decode(errors="ignore")
    return f"{head}~{digests.digest(encoded.encode())[:16]}"
