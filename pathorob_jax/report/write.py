"""The report: a folder that answers whether models see biology or the hospital.

Enters: a results root. Leaves: ``index.html`` (one page that needs nothing else and no network),
CSV tables and the figures as PNG. Each file is replaced atomically, and two runs over the same
results write the same bytes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from pathorob_jax.core import files
from pathorob_jax.report import (
    csv_tables,
    figure_files,
    figures,
    page_apd,
    page_clustering_score,
    page_compare,
    page_headline,
    page_neighbors,
    palette,
    published,
    sentences,
)
from pathorob_jax.report.collection import HEADLINES, Board
from pathorob_jax.report.map_figures import write_maps
from pathorob_jax.results.compare_models import Comparison, compare_all
from pathorob_jax.results.records import (
    ApdAggregate,
    ApdResult,
    ClusteringResult,
    MarginsResult,
    ProbesResult,
    RobustnessIndexResult,
    Summary,
)
from pathorob_jax.results.result_files import read_draws, read_results

# What models are compared by.
COMPARED = (
    (RobustnessIndexResult, "robustness index"),
    (MarginsResult, "CRoMa"),
    (ClusteringResult, "clustering score"),
)


class _Drawing(NamedTuple):
    """A figure, both as markup and as the file beside the page."""

    svg: Markup
    path: str


def write_report(results_root: str, output: str) -> str:
    """Write the report of all results under ``results_root`` into the folder ``output``.

    Args:
        results_root: ``<results>``, holding ``<model>/<dataset>/<metric>.json``.
        output: folder, made when missing; its older report is replaced.

    Returns:
        The path of ``index.html``, written last.

    Raises:
        FileNotFoundError: there are no results.
        InputError: a record cannot be read, or two are of the same model and dataset.
    """
    # What lies over several datasets follows from the others and is computed anew.
    over_datasets = ApdAggregate | Summary
    found = [r for r in read_results(results_root) if not isinstance(r, over_datasets)]
    board = Board(read_draws(results_root, record) for record in found)
    comparisons = compare_models(board)
    texts = _format_tables(board, comparisons)
    for name, text in texts.items():
        files.write_bytes(files.join(output, name), text.encode())
    drawings = {}
    for key, name, label, figure in _draw(board):
        path = f"figures/{name}.png"
        files.write_bytes(files.join(output, path), figure_files.to_png(figure))
        # The path on disk may hold percent signs, which a link has to escape once more.
        drawings[key] = _Drawing(
            Markup(figure_files.to_inline_svg(figure, label=label)), quote(path)
        )
    maps = _draw_maps(results_root, board, output)
    index = files.join(output, "index.html")
    text = render_page(board, comparisons, drawings, maps, sorted(texts))
    files.write_bytes(index, text.encode())
    return index


def compare_models(board: Board) -> list[Comparison]:
    """Models against each other by each headline statistic; none where there is one model."""
    if len(board.models) < 2:
        return []
    return [c for kind, name in COMPARED for c in compare_all(name, board.entries(kind))]


def render_page(
    board: Board,
    comparisons: Sequence[Comparison],
    drawings: Mapping[tuple[str, str], _Drawing],
    maps: Sequence[tuple[str, str, list[str]]],
    csv_names: Sequence[str],
) -> str:
    """The page as text, given its figures by kind and dataset, and what it links to."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader("pathorob_jax.report", ""),
    )
    indexed = board.datasets(RobustnessIndexResult)
    others = [p for p in page_headline.list_parts(board) if p.kind is not RobustnessIndexResult]
    sections = [_neighbor_section(board, dataset, drawings) for dataset in indexed]
    return environment.get_template("report.html.jinja").render(
        answers=sentences.write_answer(board),
        datasets=indexed,
        columns=page_neighbors.build_columns(board),
        several=len(indexed) > 1,
        has_confounders=any(
            sentences.split_dataset(d)[1] for kind in HEADLINES for d in board.datasets(kind)
        ),
        overview_columns=page_headline.build_columns(board),
        # Of the index alone, its own table says the same.
        overview=page_headline.build_overview(board) if others else [],
        headline=page_neighbors.build_index(board),
        warnings=sentences.collect_warnings(board),
        n_models=len(board.models),
        has_intervals=any(record.ci95 for record in board.of_kind(RobustnessIndexResult)),
        index_figure=drawings.get(("robustness_index", "")),
        sections=sections,
        margins=_dataset_tables(board, MarginsResult, page_neighbors.build_margins),
        probes=_dataset_tables(board, ProbesResult, page_neighbors.build_probes),
        comparisons=_comparison_sections(comparisons),
        published=page_neighbors.build_published(board.of_kind(RobustnessIndexResult)),
        published_reasons=published.list_reasons(board.of_kind(RobustnessIndexResult)),
        drop_aggregate=page_apd.build_aggregate(board),
        drops=[_drop_section(board, d, drawings) for d in board.datasets(ApdResult)],
        clusters=[_cluster_section(board, d) for d in board.datasets(ClusteringResult)],
        clusters_figure=drawings.get(("clustering_score", "")),
        maps=maps,
        provenance=_list_provenance(board),
        neighbor_types=palette.NEIGHBOR_TYPES,
        heat=[palette.heat(i / 10) for i in range(11)],
        csv_names=csv_names,
    )


def _neighbor_section(
    board: Board, dataset: str, drawings: Mapping[tuple[str, str], _Drawing]
) -> dict[str, Any]:
    records = board.of_dataset(RobustnessIndexResult, dataset)
    confounder = sentences.split_dataset(dataset)[1]
    return {
        "name": sentences.name_dataset(dataset),
        "center": confounder or "centre",
        "curve": drawings["curve", dataset],
        "composition": drawings["composition", dataset],
        "companions": page_neighbors.build_companions(records),
        "paired": any(record.per_subset for record in records),
        "classes": page_neighbors.build_groups("Biological classes", records, "per_class"),
        "centers": page_neighbors.build_groups(
            confounder or "Medical centres", records, "per_center"
        ),
        "subsets": page_neighbors.build_groups("Subsets", records, "per_subset"),
    }


def _drop_section(
    board: Board, dataset: str, drawings: Mapping[tuple[str, str], _Drawing]
) -> dict[str, Any]:
    records = board.of_dataset(ApdResult, dataset)
    return {
        "name": sentences.name_dataset(dataset),
        "curves": drawings["drop", dataset],
        "drops": page_apd.build_drops(records),
        "heads": page_apd.build_heads(records),
        "directions": page_apd.build_directions(records),
        "direction_curves": [page_apd.build_direction_curves(record) for record in records],
    }


def _cluster_section(board: Board, dataset: str) -> dict[str, Any]:
    records = board.of_dataset(ClusteringResult, dataset)
    return {
        "name": sentences.name_dataset(dataset),
        "scores": page_clustering_score.build_scores(records),
        "combinations": page_clustering_score.build_combinations(records),
        "n_at_end": sum(record.n_at_k_max for record in records),
        "n_combinations": sum(len(record.combinations) for record in records),
        "k_end": sentences.join_distinct(str(max(record.k_grid)) for record in records),
    }


def _dataset_tables(board: Board, kind: Any, build: Any) -> list[tuple[str, Any]]:
    """Dataset and its table, of those that have records of a kind."""
    return [
        (sentences.name_dataset(dataset), build(board.of_dataset(kind, dataset)))
        for dataset in board.datasets(kind)
    ]


def _comparison_sections(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Statistics, each with its tables, the mean over datasets or the only dataset first."""
    by_statistic: dict[str, list[dict[str, Any]]] = {}
    for comparison in comparisons:
        by_statistic.setdefault(comparison.statistic, []).append(
            {
                "table": page_compare.build_comparison(comparison),
                "verdict": page_compare.write_verdict(comparison),
                "left_out": page_compare.write_left_out(comparison),
            }
        )
    return [{"statistic": name, "parts": parts} for name, parts in by_statistic.items()]


def _list_provenance(board: Board) -> list[tuple[str, list[tuple[str, str]]]]:
    """Dataset, and what each of its records was computed from."""
    found: dict[str, list[tuple[str, str]]] = {}
    for kind in HEADLINES:
        for record in board.of_kind(kind):
            text = json.dumps(record.provenance, indent=2, ensure_ascii=False, sort_keys=True)
            entries = found.setdefault(sentences.name_dataset(record.dataset), [])
            entries.append((f"{record.model}: {record.metric}", text))
    return sorted(found.items())


def _format_tables(board: Board, comparisons: Sequence[Comparison]) -> dict[str, str]:
    """CSV tables by file name; none of what the report has no results of."""
    texts = (
        {"headline.csv": csv_tables.format_headline_csv(board)}
        if page_headline.list_parts(board)
        else {}
    )
    if comparisons:
        texts["comparisons.csv"] = csv_tables.format_comparisons_csv(comparisons)
        texts["ranks.csv"] = csv_tables.format_ranks_csv(comparisons)
    for kind, formats in _CSV.items():
        records = board.of_kind(kind)
        if records:
            texts |= {name: format_csv(records) for name, format_csv in formats.items()}
    return texts


def _draw(board: Board) -> Iterator[tuple[tuple[str, str], str, str, Figure]]:
    """Key, file name, description and figure; the style holds while the caller saves each."""
    datasets = board.datasets(RobustnessIndexResult)
    panels = [(dataset, board.of_dataset(RobustnessIndexResult, dataset)) for dataset in datasets]
    indexed = [m for m in board.models if board.of_model(RobustnessIndexResult, m)]
    with figure_files.drawing_style():
        if panels:
            yield (
                ("robustness_index", ""),
                "robustness_index",
                "Robustness index of each model",
                figures.draw_index(indexed, panels),
            )
        for dataset, records in panels:
            yield (
                ("curve", dataset),
                _file_name("curve", dataset),
                f"Robustness index and balanced accuracy by k on {sentences.name_dataset(dataset)}",
                figures.draw_curves(dataset, board.models, records),
            )
            yield (
                ("composition", dataset),
                _file_name("composition", dataset),
                f"Types of neighbours by k on {sentences.name_dataset(dataset)}",
                figures.draw_composition(dataset, records),
            )
        scored = [
            (d, board.of_dataset(ClusteringResult, d)) for d in board.datasets(ClusteringResult)
        ]
        if scored:
            yield (
                ("clustering_score", ""),
                "clustering_score",
                "Clustering score of each model",
                figures.draw_clusters(
                    [m for m in board.models if board.of_model(ClusteringResult, m)], scored
                ),
            )
        for dataset in board.datasets(ApdResult):
            yield (
                ("drop", dataset),
                _file_name("drop", dataset),
                f"Accuracy by association of class and centre on {sentences.name_dataset(dataset)}",
                figures.draw_drop(dataset, board.models, board.of_dataset(ApdResult, dataset)),
            )


def _draw_maps(results_root: str, board: Board, output: str) -> list[tuple[str, str, list[str]]]:
    """Model, dataset as the page names it, and links to its maps, the whole dataset first."""
    found = []
    pairs = {(r.dataset, r.model) for kind in HEADLINES for r in board.of_kind(kind)}
    for dataset, model in sorted(pairs):
        written = write_maps(results_root, model, dataset, files.join(output, "figures"))
        # Names end in "combination_<number>" or "dataset".
        names = sorted((path.rpartition("/")[2] for path in written), key=_map_order)
        links = [quote(f"figures/{name}") for name in names]
        if links:
            found.append((model, sentences.name_dataset(dataset), links))
    return found


def _map_order(name: str) -> tuple[bool, str]:
    return (not name.endswith("_dataset.png"), name)


def _file_name(kind: str, dataset: str) -> str:
    """A name that differs whenever the datasets do, and never leaves its folder."""
    return f"{kind}_{quote(dataset, safe='@')}"


_CSV: dict[Any, dict[str, Any]] = {
    RobustnessIndexResult: {
        "robustness_index.csv": csv_tables.format_index_csv,
        "curves.csv": csv_tables.format_curves_csv,
        "groups.csv": csv_tables.format_groups_csv,
    },
    MarginsResult: {"margins.csv": csv_tables.format_margins_csv},
    ProbesResult: {"probes.csv": csv_tables.format_probes_csv},
    ApdResult: {
        "apd.csv": csv_tables.format_apd_csv,
        "apd_accuracies.csv": csv_tables.format_accuracies_csv,
        "apd_directions.csv": csv_tables.format_directions_csv,
    },
    ClusteringResult: {
        "clustering.csv": csv_tables.format_clustering_csv,
        "clustering_combinations.csv": csv_tables.format_combinations_csv,
    },
}
