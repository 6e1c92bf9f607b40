"""Write the report: a folder that shows whether models encode biology or the medical centre.

The folder has ``index.html`` (one self-contained page that needs no network), CSV tables, and the
figures as PNG. Each file is replaced atomically, and two runs over the same results write the same
bytes. Every metric provides its section (``MetricKind.section``); this module computes no numbers.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from pathorob_jax.core import checks, digests, faults, files
from pathorob_jax.core.folder_names import split_confounder
from pathorob_jax.core.privacy import without_folders
from pathorob_jax.data.tileset import Tileset, open_tileset
from pathorob_jax.models.facts import ModelFacts, read_facts
from pathorob_jax.report import (
    answer_table,
    csv_tables,
    downloads,
    figure_files,
    page_answers,
    page_compare,
    page_cost,
    page_families,
    page_filters,
    page_generic,
    page_over_models,
    page_published,
    page_robustness_index,
    palette,
    panels,
    sentences,
)
from pathorob_jax.report.answer_table import Shown
from pathorob_jax.report.attention_figures import SlideView, write_slides
from pathorob_jax.report.downloads import Download
from pathorob_jax.report.map_figures import MapView, list_maps, list_pictures
from pathorob_jax.report.panels import Panels
from pathorob_jax.report.section import COMPARISON, MAPS, Block, Draw, Drawing, Section
from pathorob_jax.report.words import WORDS
from pathorob_jax.results.answers import find_answers
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.compare_models import Comparison
from pathorob_jax.results.costs import COST
from pathorob_jax.results.metric_kind import MetricKind, resolve
from pathorob_jax.results.result_files import PROVENANCE, as_json
from pathorob_jax.results.robustness_index import RobustnessIndexResult
from pathorob_jax.version import __version__

PROVENANCE_FILE = "provenance.json"
MAPS_AT = ("inside", "beside")
MAP_LINKS = (("maps", "maps"),)
# Parts of sections are open up to so many pairs of a model and a dataset.
MAX_OPEN = 4
# Numbers of a table of details, and such tables of a part; CSV files have all.
MAX_CELLS, MAX_TABLES = 300, 6
# Characters of provenance that the page shows; the file has all.
MAX_PROVENANCE = 120_000


def write_report(
    results_root: str,
    output: str,
    *,
    facts: str | None = None,
    maps: str = "inside",
    tiles: str | None = None,
) -> str:
    """Write the report of all results under ``results_root`` into the folder ``output``.

    Args:
        results_root: root of the results, with ``<model>/<dataset>/<metric>.json``.
        output: folder, created if missing; an older report in it is replaced.
        facts: YAML file of facts of models beyond the registry, for the analyses over models.
        maps: where maps of embeddings and pictures of slides are: ``inside`` the page, or on
            pages and in files ``beside`` it.
        tiles: folder of the tileset of the patches, whose tiles maps then show; None: none.

    Returns:
        The path of ``index.html``, which is written last.

    Raises:
        FileNotFoundError: there are no results.
        InputError: a record cannot be read, two records have the same model and dataset, or the
            folder cannot be written.
        UsageError: the file of facts is invalid.

    >>> import numpy as np, pathorob_jax as pr
    >>> rows = {"slide_id": np.arange(48) // 4, "patch_id": np.arange(48)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 24}
    >>> rows |= {"medical_center": ["A"] * 24 + ["B"] * 24}
    >>> x = np.random.default_rng(0).normal(size=(48, 8))
    >>> results = pr.evaluate_embeddings(x, rows, k=5, model="mine", output="results")
    >>> pr.write_report("results", "report")
    'report/index.html'
    """
    checks.check_known(maps, MAPS_AT, what="maps")
    faults.check_writable(output)
    tileset = None if tiles is None else open_tileset(tiles)
    collection = Collection.read(results_root)
    draw = functools.partial(_draw, output)
    sections = [_build_section(kind, collection, draw) for kind in collection.kinds]
    sections += page_over_models.build_sections(collection, facts, draw)
    sections += page_published.build_sections(collection)
    comparisons = collection.compare()
    answers = find_answers(collection, comparisons)
    known = None if facts is None else read_facts(facts)
    shown = answer_table.build_shown(collection, known)
    sections += page_families.build_sections(answers, draw)
    texts = _format_tables(collection, sections, comparisons, shown)
    texts[PROVENANCE_FILE] = _format_provenance(collection)
    for name, text in texts.items():
        files.write_bytes(files.join(output, name), text.encode())
    pairs = _list_pairs(collection)
    views = [(name, list_maps(results_root, m, d, tileset)) for d, name, m in pairs]
    mapped = [pair for pair in views if pair[1]]
    slides = write_slides(results_root, pairs, output, is_inside=maps == "inside")
    environment = _make_environment(collection)
    if maps == "beside":
        _write_map_pages(environment, mapped, output)
    index = files.join(output, "index.html")
    said = [section.answer for section in sections if section.answer]
    screen = page_answers.build_context(collection, answers, said, shown, draw)
    text = render_page(
        environment,
        collection,
        sections,
        comparisons,
        screen,
        mapped,
        downloads.embed(texts),
        slides,
        digest=_digest(collection, maps, tileset),
        facts=known,
        maps_at=maps,
    )
    files.write_bytes(index, text.encode())
    return index


def is_current(
    results_root: str, output: str, *, maps: str = "inside", tiles: str | None = None
) -> bool:
    """Whether a whole report of just these results, as this version writes it, is in a folder.

    Args:
        results_root: root of the results.
        output: folder of the report.
        maps: as of ``write_report``: a report whose maps are elsewhere is another one.
        tiles: as of ``write_report``: so is one with tiles of another tileset, or without.

    Raises:
        FileNotFoundError: there are no results, or no such tileset.
        InputError: a record or the tileset cannot be read.
    """
    index = files.join(output, "index.html")
    tileset = None if tiles is None else open_tileset(tiles)
    digest = _digest(Collection.read(results_root), maps, tileset)
    return files.exists(index) and f'content="{digest}"'.encode() in files.read_bytes(index)


def _digest(collection: Collection, maps: str, tileset: Tileset | None) -> str:
    """Hex sha256 of results, maps, tiles, and of the version that shows them.

    The page makes what is over datasets itself, so that those files do not count. Neither does what
    the results cost: two equal runs have equal digests.
    """
    parts = [
        digests.digest_json(
            [_without_cost(as_json(o.record)), o.draws_key, digests.digest_arrays(o.draws), o.note]
        )
        for o in collection.all_outcomes
    ]
    parts += [maps, "" if tileset is None else digests.digest_json(tileset.identity)]
    parts += [
        digests.digest(files.read_bytes(path))
        for dataset, _, model in _list_pairs(collection)
        for path in list_pictures(str(collection.root), model, dataset)
    ]
    return digests.digest(__version__.encode(), *(part.encode() for part in parts))


def _without_cost(record: dict[str, Any]) -> dict[str, Any]:
    provenance = {k: v for k, v in record.get(PROVENANCE, {}).items() if k != COST}
    return record | {PROVENANCE: provenance}


def _build_section(kind: MetricKind, collection: Collection, draw: Draw) -> Section:
    if kind.section is None:
        return page_generic.build_section(kind, collection, draw)
    section: Section = resolve(kind.section)(collection, draw)
    return section


def _draw(output: str, name: str, label: str, make: Callable[[], Figure | Panels]) -> Drawing:
    """Write a figure as a file of the report, and return it as markup too."""
    figure: Figure | Panels
    with figure_files.drawing_style():
        figure = make()
        if isinstance(figure, Panels):
            suffix, data, markup = ".svg", panels.to_svg(figure), panels.to_html(figure, label)
        else:
            suffix, data = figure_files.to_file(figure)
            markup = Markup(figure_files.to_inline_svg(figure, label=label))
    path = f"figures/{name}{suffix}"
    files.write_bytes(files.join(output, path), data)
    # The path on disk may contain percent signs, which a link must escape again.
    return Drawing(markup, quote(path))


def _make_environment(collection: Collection) -> jinja2.Environment:
    """Templates, and what all of them know."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader("pathorob_jax.report", ""),
    )
    datasets = [sentences.name_dataset(name) for name in collection.all_datasets()]
    environment.globals |= {
        "models": frozenset(collection.models),
        "controls": frozenset(collection.controls),
        "words": WORDS,
        "dataset_names": frozenset(datasets),
        "max_cells": MAX_CELLS,
        "max_tables": MAX_TABLES,
        "is_open": len(collection.models) * len(datasets) <= MAX_OPEN,
        "key_colors": palette.KEY_COLORS,
        "dark_colors": palette.DARK_COLORS,
        "class_colors": palette.CLASS_COLORS,
        "center_colors": palette.CENTER_COLORS,
    }
    return environment


def render_page(
    environment: jinja2.Environment,
    collection: Collection,
    sections: Sequence[Section],
    comparisons: Sequence[Comparison],
    screen: Mapping[str, Any],
    maps: Sequence[tuple[str, list[MapView]]],
    held: Sequence[Download],
    slides: Sequence[tuple[str, str, list[SlideView]]] = (),
    digest: str = "",
    facts: Mapping[str, ModelFacts] | None = None,
    maps_at: str = "inside",
) -> str:
    """Render the page as text from the sections of the metrics, the maps and the downloads."""
    blocks = [block for section in sections for block in section.blocks]
    if comparisons:
        context = {"comparisons": _comparison_sections(comparisons)}
        blocks.append(
            Block("compare.jinja", context, (("compare", "comparing models"),), COMPARISON)
        )
    if maps:
        blocks.append(
            Block("maps.jinja", {"maps": maps, "beside": maps_at == "beside"}, MAP_LINKS, MAPS)
        )
    if slides:
        seen = (("slide_maps", "slides, seen"),)
        blocks.append(Block("slide_maps.jinja", {"slides": slides}, seen, MAPS))
    blocks.sort(key=lambda block: block.place)
    links = [link for block in blocks for link in block.links]
    indexed = collection.datasets(RobustnessIndexResult)
    filters = page_filters.build_filters(collection, links, facts)
    filters["metric_of"] = {
        id: kind.name
        for kind, section in zip(collection.kinds, sections, strict=False)
        for block in section.blocks
        for id, _ in block.links
    }
    return environment.get_template("report.html.jinja").render(
        answers=Markup(environment.get_template("answers.jinja").render(**screen, **filters)),
        datasets=indexed,
        columns=page_robustness_index.build_columns(collection),
        has_confounders=any(split_confounder(d)[1] for d in collection.all_datasets()),
        headline=page_robustness_index.build_index(collection),
        n_models=len(collection.models),
        counted=page_answers.count_models(collection),
        has_intervals=any(r.ci95 for r in collection.of_kind(RobustnessIndexResult)),
        blocks=[
            Markup(environment.get_template(block.template).render(block.context))
            for block in blocks
        ],
        links=links,
        costs=page_cost.build_costs(collection),
        provenance={
            "shown": _list_provenance(collection),
            **next(d for d in held if d.name == PROVENANCE_FILE)._asdict(),
        },
        heat=[palette.heat(i / 10) for i in range(11)],
        downloads=[d for d in held if d.name != PROVENANCE_FILE],
        **filters,
        digest=digest,
    )


def _comparison_sections(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Statistics, each with its tables; the mean over datasets or the only dataset comes first."""
    by_statistic: dict[str, list[dict[str, Any]]] = {}
    for comparison in comparisons:
        by_statistic.setdefault(comparison.statistic, []).append(
            {
                "table": page_compare.build_comparison(comparison),
                "verdict": page_compare.write_verdict(comparison),
                "left_out": page_compare.write_left_out(comparison),
                "neighbors": page_compare.build_neighbors(comparison),
            }
        )
    return [{"statistic": name, "parts": parts} for name, parts in by_statistic.items()]


def _list_provenance(collection: Collection) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each dataset, with what its records come from: equal ones once, as far as they fit."""
    by_dataset: dict[str, dict[str, list[str]]] = {}
    for record, shown in _walk_provenance(collection):
        text = json.dumps(shown, indent=2, ensure_ascii=False, sort_keys=True)
        entries = by_dataset.setdefault(sentences.name_dataset(record.dataset), {})
        entries.setdefault(text, []).append(f"{record.model}: {record.metric}")
    left, found = MAX_PROVENANCE, []
    for name, entries in sorted(by_dataset.items()):
        fitting = []
        for text, titles in entries.items():
            left -= len(text)
            if left >= 0:
                more = f" and {len(titles) - 4} more" if len(titles) > 4 else ""
                fitting.append((", ".join(titles[:4]) + more, text))
        found.append((name, fitting))
    return [(name, fitting) for name, fitting in found if fitting]


def _format_provenance(collection: Collection) -> str:
    """All of it as JSON, by dataset, model and metric."""
    every: dict[str, dict[str, dict[str, Any]]] = {}
    for record, shown in _walk_provenance(collection):
        every.setdefault(record.dataset, {}).setdefault(record.model, {})[record.metric] = shown
    return json.dumps(every, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _walk_provenance(collection: Collection) -> Iterator[tuple[Any, Any]]:
    for kind in collection.kinds:
        for record in collection.of_kind(kind.record):
            # Records of older versions hold whole paths.
            provenance = {k: v for k, v in record.provenance.items() if k != COST}
            yield record, without_folders(provenance)


def _format_tables(
    collection: Collection,
    sections: Sequence[Section],
    comparisons: Sequence[Comparison],
    shown: Sequence[Shown],
) -> dict[str, str]:
    """CSV tables by file name; only of metrics with results."""
    texts: dict[str, str] = {}
    if answer_table.list_shown(collection):
        rows = answer_table.list_values(collection, shown)
        texts["headline.csv"] = csv_tables.format_rows(rows)
    if collection.datasets(RobustnessIndexResult):
        rows = page_robustness_index.list_index_values(collection)
        texts["index_by_dataset.csv"] = csv_tables.format_rows(rows)
    if comparisons:
        texts["comparisons.csv"] = csv_tables.format_comparisons(comparisons)
        texts["ranks.csv"] = csv_tables.format_ranks(comparisons)
    for kind in collection.kinds:
        records = collection.of_kind(kind.record)
        texts[f"{kind.table or kind.name}.csv"] = csv_tables.format_records(records)
    for section in sections:
        texts |= section.tables
    return texts


def _list_pairs(collection: Collection) -> list[tuple[str, str, str]]:
    """Each dataset, its name in words, and a model that has results on it, sorted."""
    pairs = {
        (r.dataset, r.model) for kind in collection.kinds for r in collection.of_kind(kind.record)
    }
    return [(d, sentences.name_dataset(d), m) for d, m in sorted(pairs)]


def _write_map_pages(
    environment: jinja2.Environment, maps: Sequence[tuple[str, list[MapView]]], output: str
) -> None:
    template = environment.get_template("map_page.jinja")
    for name, views in maps:
        for view in views:
            title = f"{view.model}, {name}: {view.words}"
            text = template.render(title=title, markup=view.markup)
            files.write_bytes(files.join(output, f"{view.path}.html"), text.encode())
