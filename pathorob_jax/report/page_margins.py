"""Section of MaRI and CRoMa."""

from collections.abc import Sequence

from pathorob_jax.report.section import DETAILS, Block, Draw, Section, dataset_tables
from pathorob_jax.report.sentences import why_undefined
from pathorob_jax.report.table_cells import Row, Table, number_cell
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.margins import MarginsResult

# Field, column name, field of its interval, field of the support that explains an undefined value.
MARGINS = (
    ("mari", "MaRI", "mari_ci95", "mari_support"),
    ("mari_support", "support of MaRI", "", ""),
    ("croma", "CRoMa", "croma_ci95", "croma_support"),
    ("croma_f0", "F(0)", "croma_f0_ci95", "croma_support"),
    ("croma_q10", "10 % quantile", "croma_q10_ci95", "croma_support"),
    ("croma_ltm10", "lower-tail mean", "croma_ltm10_ci95", "croma_support"),
    ("croma_support", "support of CRoMa", "", ""),
)


def build_section(collection: Collection, draw: Draw) -> Section:
    """One table per dataset."""
    del draw
    tables = dataset_tables(collection, MarginsResult, build_margins)
    return Section(
        [Block("margins.jinja", {"margins": tables}, (("margins", "margins"),), DETAILS)]
    )


def build_margins(records: Sequence[MarginsResult]) -> Table:
    """MaRI and CRoMa on one dataset, one row per model, with intervals below the numbers."""
    rows = []
    for record in records:
        cells = []
        for field, _, interval_field, support_field in MARGINS:
            interval = getattr(record, interval_field) if interval_field else None
            why = ""
            if support_field:
                why = why_undefined(getattr(record, support_field), record.n_samples)
            cells.append(number_cell(getattr(record, field), why=why, interval=interval))
        rows.append(Row(record.model, f"k {record.k}", cells))
    return Table("Margins", [words for _, words, _, _ in MARGINS], rows)
