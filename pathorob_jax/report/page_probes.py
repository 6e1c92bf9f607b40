"""Section of the logistic probes."""

from collections.abc import Sequence

from pathorob_jax.report.section import DETAILS, Block, Draw, Section, dataset_tables
from pathorob_jax.report.table_cells import Row, Table, number_cell
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.probes import ProbesResult

PROBES = (
    ("biology_auc", "AUC biology"),
    ("ood_biology_auc", "AUC biology, unseen centre"),
    ("center_auc", "AUC centre"),
    ("center_knn_balanced_accuracy", "centre by k neighbours"),
)


def build_section(collection: Collection, draw: Draw) -> Section:
    """One table per dataset."""
    del draw
    tables = dataset_tables(collection, ProbesResult, build_probes)
    return Section([Block("probes.jinja", {"probes": tables}, (("probes", "probes"),), DETAILS)])


def build_probes(records: Sequence[ProbesResult]) -> Table:
    """Scores of the probes on one dataset, one row per model."""
    why = "undefined: no fold has all labels on both sides"
    rows = []
    for record in records:
        cells = [
            number_cell(getattr(record, field), why=why, interval=record.ci95.get(field))
            for field, _ in PROBES
        ]
        rows.append(Row(record.model, f"k {record.k}", cells))
    return Table("Probes", [words for _, words in PROBES], rows)
