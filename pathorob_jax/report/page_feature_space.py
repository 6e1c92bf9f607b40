"""Section of the feature space: its tables, figure, CSV files and answer."""

import math
from collections.abc import Sequence
from typing import Any

from pathorob_jax.report import csv_tables, palette
from pathorob_jax.report.feature_space_figures import draw_components
from pathorob_jax.report.section import DETAILS, Block, Draw, Section, file_name
from pathorob_jax.report.sentences import answer_by_confounder, name_dataset
from pathorob_jax.report.table_cells import Cell, Row, Table, format_share, number_cell
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.feature_space import KIND, FeatureSpaceResult

WHY = "undefined; the warnings say why"
SHARES = (
    ("class_variance", "between classes"),
    ("center_variance", "between centres"),
    ("interaction_variance", "interaction"),
    ("variance_in_first", "variance in the first {}"),
    ("class_in_first", "class in the first {}"),
    ("center_in_first", "centre in the first {}"),
)
RANKS = (("effective_rank", "effective rank"), ("participation_ratio", "participation ratio"))
COSINES = (
    ("mean", "mean"),
    ("sd", "deviation"),
    ("same_class_same_center", "same class, same centre"),
    ("same_class_other_center", "same class, other centre"),
    ("other_class_same_center", "other class, same centre"),
    ("other_class_other_center", "other class, other centre"),
)


def build_section(collection: Collection, draw: Draw) -> Section:
    """Tables and a figure for each dataset."""
    datasets = collection.datasets(FeatureSpaceResult)
    parts = [
        _dataset_part(dataset, collection.of_dataset(FeatureSpaceResult, dataset), draw)
        for dataset in datasets
    ]
    tables = {
        "feature_space_components.csv": csv_tables.format_components(
            collection.of_kind(FeatureSpaceResult)
        )
    }
    links = (("feature_space", "feature space"),)
    block = Block("feature_space.jinja", {"spaces": parts}, links, DETAILS)
    return Section([block], tables, write_answer(collection))


def _dataset_part(
    dataset: str, records: Sequence[FeatureSpaceResult], draw: Draw
) -> dict[str, Any]:
    name = name_dataset(dataset)
    figure = draw(
        file_name("feature_space", dataset),
        f"Class and centre by principal component, {name}",
        lambda: draw_components(dataset, records),
    )
    return {
        "name": name,
        "table": build_spaces(records),
        "cosines": build_cosines(records),
        "figure": figure,
        "caption": (
            "η² of class and centre of each principal component, the one of largest variance "
            "first. Where the orange line is high at the left, centre information lies on the "
            "directions of largest variance."
        ),
    }


def build_tables(collection: Collection, dataset: str) -> list[tuple[str, str, Table]]:
    """(heading, what a row is, table) of the tables of a dataset, for documents."""
    records = collection.of_dataset(FeatureSpaceResult, dataset)
    return [
        ("Variance of class and centre", "model", build_spaces(records)),
        ("Cosines", "model", build_cosines(records)),
    ]


def write_answer(collection: Collection) -> str:
    """Say how much of the variance lies between classes and centres, and where."""
    return answer_by_confounder(collection, FeatureSpaceResult, lambda c: _answer(collection, c))


def _answer(collection: Collection, confounder: str) -> str:
    share, between, in_first = KIND.headlines
    means = {
        model: [
            collection.mean(KIND, headline, model, confounder).value
            for headline in (share, between, in_first)
        ]
        for model in collection.candidates
    }
    known = {model: values for model, values in means.items() if all(map(math.isfinite, values))}
    if not known:
        return "No model has balanced rows on every dataset; its feature space is not split."
    worst = min(known, key=lambda model: (known[model][0], model))
    value, center, first = known[worst]
    what = confounder or "centre"
    return (
        f"In the feature space of {worst}, {format_share(center)} of the variance lies between "
        f"values of the {what} (class share {value:.2f}, the lowest), and {format_share(first)} of "
        f"that lies on the ten directions of largest variance."
    )


def build_spaces(records: Sequence[FeatureSpaceResult]) -> Table:
    """Shares of the variance on one dataset, one row per model."""
    rows = []
    for record in records:
        share = number_cell(record.class_share, why=WHY, interval=record.ci95)
        cells = [
            Cell(
                share.text,
                title=share.title,
                note=share.note,
                background=palette.heat(record.class_share),
                sort=share.sort,
            )
        ]
        cells += [
            number_cell(
                getattr(record, name), why=WHY, interval=getattr(record, f"{name}_ci95", None)
            )
            for name, _ in (*SHARES, *RANKS)
        ]
        note = f"{record.n_samples:,} of {record.n_available:,} patches"
        rows.append(Row(record.model, note, cells))
    first = records[0].first if records else 10
    columns = ["class share", *(words.format(first) for _, words in (*SHARES, *RANKS))]
    return Table("Feature space", columns, rows)


def build_cosines(records: Sequence[FeatureSpaceResult]) -> Table:
    """Cosines of rows as they are and centred, two rows per model."""
    rows = [
        Row(
            record.model,
            "as they are" if kind == "raw" else kind.replace("centered", "centred"),
            [number_cell(getattr(spread, name), why=WHY) for name, _ in COSINES],
        )
        for record in records
        for kind, spread in record.cosine.items()
    ]
    return Table("Cosines", [words for _, words in COSINES], rows)
