"""Write the report: a folder that shows whether models encode biology or the medical centre.

The folder has ``index.html`` (one self-contained page that needs no network), CSV tables, and the
figures as PNG. Each file is replaced atomically, and two runs over the same results write the same
bytes. Every metric provides its section (``MetricKind.section``); this module computes no numbers.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from pathorob_jax.core import digests, faults, files
from pathorob_jax.core.folder_names import split_confounder
from pathorob_jax.core.privacy import without_folders
from pathorob_jax.report import (
    csv_tables,
    figure_files,
    page_answers,
    page_compare,
    page_cost,
    page_families,
    page_generic,
    page_over_models,
    page_published,
    page_robustness_index,
    palette,
    sentences,
)
from pathorob_jax.report.answer_table import list_parts
from pathorob_jax.report.attention_figures import write_attention_maps
from pathorob_jax.report.map_figures import MapFile, write_maps
from pathorob_jax.report.section import COMPARISON, MAPS, Block, Draw, Drawing, Section
from pathorob_jax.results.answers import find_answers
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.compare_models import Comparison
from pathorob_jax.results.costs import COST
from pathorob_jax.results.metric_kind import MetricKind, resolve
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import OVER_DATASETS, PROVENANCE, as_json, read_outcomes
from pathorob_jax.results.robustness_index import RobustnessIndexResult
from pathorob_jax.version import __version__


def write_report(results_root: str, output: str, *, facts: str | None = None) -> str:
    """Write the report of all results under ``results_root`` into the folder ``output``.

    Args:
        results_root: root of the results, with ``<model>/<dataset>/<metric>.json``.
        output: folder, created if missing; an older report in it is replaced.
        facts: YAML file of facts of models beyond the registry, for the analyses over models.

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
    faults.check_writable(output)
    found = read_outcomes(results_root)
    collection = Collection(
        (o for o in found if not isinstance(o.record, OVER_DATASETS)), root=results_root
    )
    draw = functools.partial(_draw, output)
    sections = [_build_section(kind, collection, draw) for kind in collection.kinds]
    sections += page_over_models.build_sections(collection, facts, draw)
    sections += page_published.build_sections(collection)
    comparisons = collection.compare()
    answers = find_answers(collection, comparisons)
    sections += page_families.build_sections(answers, draw)
    texts = _format_tables(collection, sections, comparisons)
    for name, text in texts.items():
        files.write_bytes(files.join(output, name), text.encode())
    maps = _draw_maps(results_root, collection, output, write_maps)
    slides = _draw_maps(results_root, collection, output, write_attention_maps)
    index = files.join(output, "index.html")
    said = [section.answer for section in sections if section.answer]
    screen = page_answers.build_context(collection, answers, said, draw)
    text = render_page(
        collection, sections, comparisons, screen, maps, sorted(texts), slides, _digest(found)
    )
    files.write_bytes(index, text.encode())
    return index


def is_current(results_root: str, output: str) -> bool:
    """Whether a whole report of just these results, as this version writes it, is in a folder.

    Maps do not count: the results do.

    Raises:
        FileNotFoundError: there are no results.
        InputError: a record cannot be read.
    """
    index = files.join(output, "index.html")
    digest = _digest(read_outcomes(results_root))
    return files.exists(index) and f'content="{digest}"'.encode() in files.read_bytes(index)


def _digest(found: Sequence[Outcome]) -> str:
    """Hex sha256 of results, and of the version that shows them.

    The page makes what is over datasets itself, so that those files do not count. Neither does what
    the results cost: two equal runs have equal digests.
    """
    shown = [o for o in found if not isinstance(o.record, OVER_DATASETS)]
    parts = [
        digests.digest_json(
            [_without_cost(as_json(o.record)), o.draws_key, digests.digest_arrays(o.draws), o.note]
        )
        for o in shown
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


def _draw(output: str, name: str, label: str, make: Callable[[], Figure]) -> Drawing:
    """Write a figure as a file of the report, and return it as markup too."""
    with figure_files.drawing_style():
        figure = make()
        suffix, data = figure_files.to_file(figure)
        path = f"figures/{name}{suffix}"
        files.write_bytes(files.join(output, path), data)
        # The path on disk may contain percent signs, which a link must escape again.
        return Drawing(Markup(figure_files.to_inline_svg(figure, label=label)), quote(path))


def render_page(
    collection: Collection,
    sections: Sequence[Section],
    comparisons: Sequence[Comparison],
    screen: Mapping[str, Any],
    maps: Sequence[tuple[str, str, list[MapFile]]],
    csv_names: Sequence[str],
    slides: Sequence[tuple[str, str, list[MapFile]]] = (),
    digest: str = "",
) -> str:
    """Render the page as text: the first screen, the sections of metrics, maps and CSV names."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader("pathorob_jax.report", ""),
    )
    blocks = [block for section in sections for block in section.blocks]
    if comparisons:
        context = {"comparisons": _comparison_sections(comparisons)}
        blocks.append(
            Block("compare.jinja", context, (("compare", "comparing models"),), COMPARISON)
        )
    if maps:
        blocks.append(Block("maps.jinja", {"maps": maps}, (("maps", "maps"),), MAPS))
    if slides:
        links = (("slide_maps", "slides, seen"),)
        blocks.append(Block("slide_maps.jinja", {"slides": slides}, links, MAPS))
    blocks.sort(key=lambda block: block.place)
    indexed = collection.datasets(RobustnessIndexResult)
    return environment.get_template("report.html.jinja").render(
        answers=Markup(environment.get_template("answers.jinja").render(screen)),
        datasets=indexed,
        columns=page_robustness_index.build_columns(collection),
        has_confounders=any(split_confounder(d)[1] for d in collection.all_datasets()),
        headline=page_robustness_index.build_index(collection),
        n_models=len(collection.models),
        has_intervals=any(r.ci95 for r in collection.of_kind(RobustnessIndexResult)),
        blocks=[
            Markup(environment.get_template(block.template).render(block.context))
            for block in blocks
        ],
        links=[link for block in blocks for link in block.links],
        provenance=_list_provenance(collection),
        costs=page_cost.build_costs(collection),
        heat=[palette.heat(i / 10) for i in range(11)],
        csv_names=csv_names,
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
            }
        )
    return [{"statistic": name, "parts": parts} for name, parts in by_statistic.items()]


def _list_provenance(collection: Collection) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each dataset, with the provenance of its records."""
    by_dataset: dict[str, list[tuple[str, str]]] = {}
    for kind in collection.kinds:
        for record in collection.of_kind(kind.record):
            # Records of older versions hold whole paths.
            provenance = {k: v for k, v in record.provenance.items() if k != COST}
            shown = without_folders(provenance)
            text = json.dumps(shown, indent=2, ensure_ascii=False, sort_keys=True)
            entries = by_dataset.setdefault(sentences.name_dataset(record.dataset), [])
            entries.append((f"{record.model}: {record.metric}", text))
    return sorted(by_dataset.items())


def _format_tables(
    collection: Collection, sections: Sequence[Section], comparisons: Sequence[Comparison]
) -> dict[str, str]:
    """CSV tables by file name; only of metrics with results."""
    texts: dict[str, str] = {}
    if list_parts(collection):
        texts["headline.csv"] = csv_tables.format_headline(collection)
    if comparisons:
        texts["comparisons.csv"] = csv_tables.format_comparisons(comparisons)
        texts["ranks.csv"] = csv_tables.format_ranks(comparisons)
    for kind in collection.kinds:
        records = collection.of_kind(kind.record)
        texts[f"{kind.table or kind.name}.csv"] = csv_tables.format_records(records)
    for section in sections:
        texts |= section.tables
    return texts


def _draw_maps(
    results_root: str,
    collection: Collection,
    output: str,
    write: Callable[[str, str, str, str], list[MapFile]],
) -> list[tuple[str, str, list[MapFile]]]:
    """Draw the maps of every model and dataset; return both names, and the files."""
    pairs = {
        (r.dataset, r.model) for kind in collection.kinds for r in collection.of_kind(kind.record)
    }
    drawn = [
        (model, sentences.name_dataset(dataset), write(results_root, model, dataset, output))
        for dataset, model in sorted(pairs)
    ]
    return [(model, name, written) for model, name, written in drawn if written]
