"""Damaged and forged results, draws, tasks and neighbour graphs."""

import dataclasses
import json
import pathlib
import random
import tempfile
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import damage
import numpy as np
from markupsafe import Markup
from report_records import make_apd, make_clusters, make_margins, make_probes, make_record

from pathorob_jax.core import digests, sealed_files, task_files
from pathorob_jax.data.row_views import Scope
from pathorob_jax.evaluation import (
    apd_tasks,
    clustering_score_tasks,
    neighbor_cache,
    neighbor_imports,
)
from pathorob_jax.evaluation.neighbor_graph import NeighborGraph, SearchInput, describe
from pathorob_jax.kernels.neighbors.search import Neighbors
from pathorob_jax.report import answer_table, downloads, figure_files, page_answers, panels, write
from pathorob_jax.report.section import Drawing
from pathorob_jax.results import result_files
from pathorob_jax.results.answers import find_answers
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.record import Outcome

MAKERS = (make_record, make_margins, make_probes, make_apd, make_clusters)
DRAWS = {"robustness_index": "robustness_index", "margins": "croma"}
# The figures of every so many damaged results are drawn too.
DRAW_EVERY = 40


def _write_results(root: str) -> list[str]:
    paths = []
    for i, model in enumerate(("a", "b")):
        for make in MAKERS:
            record = dataclasses.replace(make(model), provenance={"store": {"identity": {"e": 1}}})
            field = DRAWS.get(record.metric)
            draws = {field: np.linspace(0, 0.5 + i, 50)} if field else {}
            paths.append(result_files.write_outcome(root, Outcome(record, "key", draws)))
    return paths


def _report(outcomes: list[Outcome], *, with_figures: bool) -> None:
    """All of the report but its files; figures are drawn, and not kept, if asked for."""

    def draw(name, label, make):
        if with_figures:
            with figure_files.drawing_style():
                figure = make()
            if isinstance(figure, panels.Panels):
                panels.to_svg(figure)
                panels.to_html(figure, label)
            else:
                figure_files.to_inline_svg(figure, label=label)
        return Drawing(Markup(""), "x.png")

    collection = Collection(outcomes)
    sections = [write._build_section(kind, collection, draw) for kind in collection.kinds]
    comparisons = collection.compare()
    shown = answer_table.build_shown(collection, None)
    tables = write._format_tables(collection, sections, comparisons, shown)
    tables[write.PROVENANCE_FILE] = write._format_provenance(collection)
    answers = find_answers(collection, comparisons)
    screen = page_answers.build_context(collection, answers, [], shown, draw)
    environment, held = write._make_environment(collection), downloads.embed(tables)
    page = write.render_page(environment, collection, sections, comparisons, screen, [], held)
    page.encode()


def fuzz_results(n: int, seed: int) -> Counter:
    """Read results ``n`` times, each time with one file damaged, and make the report of them."""
    rng, count = random.Random(seed), damage.empty_count()
    with tempfile.TemporaryDirectory() as folder:
        paths = _write_results(folder)
        whole = {path: result_files.read_outcome(path) for path in paths}
        backup = {str(f): f.read_bytes() for f in pathlib.Path(folder).rglob("*") if f.is_file()}
        for i in range(n):
            name = rng.choice(sorted(backup))
            path = name.replace(".draws.npz", ".json")
            said = _damage_result(pathlib.Path(name), backup[name], rng)

            def read(path=path, i=i):
                outcome = result_files.read_outcome(path)
                _report(
                    [outcome, *(o for p, o in whole.items() if p != path)],
                    with_figures=i % DRAW_EVERY == 0,
                )
                # The report has a line for these.
                return None if outcome.note or not outcome.is_checked else outcome

            def is_equal(found, path=path, said=said):
                expected = whole[path]
                written = result_files.as_json(expected.record) if said is None else said
                read_back = result_files.as_json(found.record)
                same = _less_provenance(read_back) == _less_provenance(written)
                return same and _same_draws(found, expected)

            outcome = damage.classify(read, is_equal, names=path.removesuffix(".json"))
            count[outcome] += 1
            pathlib.Path(name).write_bytes(backup[name])
    return count


def _damage_result(file: pathlib.Path, data: bytes, rng: random.Random):
    """Damage a file; where its digest was made to fit again, return what it says now."""
    if file.suffix != ".json":
        file.write_bytes(damage.damage_bytes(data, rng))
        return None
    kind = rng.choice(["bytes", "edited", "sealed", "sealed", "older"])
    if kind == "bytes":
        file.write_bytes(damage.damage_bytes(data, rng))
        return None
    record = json.loads(data)
    edited = damage.edit_json(record, rng, beyond=("provenance",) if kind == "sealed" else ())
    if kind == "older":  # as version 1, which has no digests
        edited["schema_version"] = 1
    if kind == "sealed":
        seal = {"sha256": digests.digest_json(_less_provenance(edited))}
        edited["provenance"] = edited["provenance"] | seal
    file.write_text(json.dumps(edited))
    return edited if kind == "sealed" else None


def _less_provenance(record):
    return {name: value for name, value in record.items() if name != "provenance"}


def _same_draws(a: Outcome, b: Outcome) -> bool:
    same = a.draws_key == b.draws_key and a.draws.keys() == b.draws.keys()
    return same and all(np.array_equal(a.draws[name], b.draws[name]) for name in a.draws)


def fuzz_tasks_and_graphs(n: int, seed: int) -> Counter:
    """Take up tasks, neighbour graphs and imported neighbours, ``n`` times, each time damaged."""
    rng, count = random.Random(seed), damage.empty_count()
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            _counts_case(folder),
            _clusters_case(folder),
            _graph_case(folder),
            _neighbors_case(folder, "npz"),
            _neighbors_case(folder, "npy"),
        ]
        for _ in range(n):
            path, data, forge, read, is_equal = rng.choice(cases)
            if rng.random() < 0.4:
                forge(rng)
            else:
                damaged = damage.damage_bytes(data, rng)
                # A bare array has no digest: beyond its header any number may be a neighbour.
                keeps = path.suffix == ".npy" and len(damaged) == len(data)
                path.write_bytes(damaged[:128] + data[128:] if keeps else damaged)
            count[damage.classify(read, is_equal, names=str(path))] += 1
            path.write_bytes(data)
    return count


def _counts_case(folder):
    n_splits, classes, centers = 3, 2, 2
    counts = {
        head: {
            "chosen": [1.0] * n_splits,
            "validation": [[0.5, 0.75]] * n_splits,
            "converged": [[True, False]] * n_splits,
            "id": np.arange(n_splits * centers * classes**2)
            .reshape(n_splits, centers, classes, classes)
            .tolist(),
            "ood": None,
        }
        for head in ("linear", "knn")
    }
    plan = SimpleNamespace(
        schedule=SimpleNamespace(classes=("x", "y"), n_splits=n_splits),
        settings=SimpleNamespace(heads=("knn",)),
        c_grid=(1.0, 2.0),
        in_domain=SimpleNamespace(centers=("p", "q")),
        out_of_domain=None,
    )
    kept = task_files.TaskFiles(folder, "repetition", "f" * 64)
    kept.write_json(0, counts, key="heads", seed=7)
    path = pathlib.Path(folder) / "repetition_0000.json"
    data = path.read_bytes()

    def forge(rng):
        value = json.loads(data)
        value.pop("digest")
        edited = damage.edit_json(value, rng, beyond=("schema_version",))
        if edited["heads"] != value["heads"] and _has_form(edited["heads"], value["heads"]):
            edited = value  # other counts of the right form: what the file says is what it holds
        sealed_files.write_json(str(path), edited)

    def read():
        check = lambda found: apd_tasks.check_counts(found, plan)  # noqa: E731
        return kept.read_json(0, key="heads", check=check, seed=7)

    return path, data, forge, read, lambda found: found == counts


def _has_form(edited, value) -> bool:
    """Whether an edit only put one count or share in the place of another."""
    if type(edited) is not type(value) and not (
        isinstance(edited, int | float)
        and isinstance(value, float)
        and not isinstance(edited, bool)
    ):
        return False
    if isinstance(value, dict):
        return edited.keys() == value.keys() and all(_has_form(edited[k], value[k]) for k in value)
    if isinstance(value, list):
        return len(edited) == len(value) and all(map(_has_form, edited, value))
    return not isinstance(value, int | float) or isinstance(value, bool) or edited >= 0


def _clusters_case(folder):
    n, trials, grid = 12, 3, (2, 3, 4)
    rng = np.random.default_rng(1)
    arrays = {
        "k": np.array(3),
        "k_grid": np.array(grid),
        "silhouettes": np.array([0.1, 0.5, np.nan]),
        "best": rng.integers(0, 3, n).astype(np.uint8),
        "trials": rng.integers(0, 3, (trials, n)).astype(np.uint8),
        "trials_at_classes": rng.integers(0, 2, (trials, n)).astype(np.uint8),
    }
    plan = SimpleNamespace(
        combinations=[SimpleNamespace(rows=np.arange(n))],
        protocol=SimpleNamespace(trials=trials),
        k_grid=range(2, 5),
    )
    kept = task_files.TaskFiles(folder, "combination", "f" * 64)
    kept.write_arrays(0, arrays)
    path = pathlib.Path(folder) / "combination_0000.npz"

    def forge(rng):
        forged = _forge_arrays(arrays, rng) | {"fingerprint": np.array("f" * 64)}
        sealed_files.write_arrays(str(path), forged, schema_version=task_files.SCHEMA_VERSION)

    def read():
        check = lambda found: clustering_score_tasks._check_arrays(found, plan, 0)  # noqa: E731
        return kept.read_arrays(0, check=check)

    return path, path.read_bytes(), forge, read, lambda found: _equal_arrays(found, arrays)


def _forge_arrays(arrays, rng):
    """The arrays, one of them of another shape, type or range, under another name, or gone."""
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    choices = [array[None], array.astype(str), np.zeros(0), np.array("x"), np.array(1j)]
    choices += [np.full(array.shape, 2**40), np.full(array.shape, -9), array.reshape(-1)[:0], None]
    forged = rng.choice(range(len(choices)))
    if choices[forged] is None:
        return {n if n != name else f"{n}_": a for n, a in arrays.items()}
    return arrays | {name: choices[forged]}


def _equal_arrays(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[n], expected[n], equal_nan=found[n].dtype.kind == "f") for n in found
    )


def _search_input(n=24):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    row, group = np.arange(n), np.arange(n) // 4
    scope = Scope("", row, (row % 2).astype(np.int32), (row // 12).astype(np.int32), (), ())
    return SearchInput(x, row, group.astype(np.int32), [scope])


def _brute_force(search_input, k):
    """int[N, k] nearest rows of other groups, and their cosine distances."""
    unit = search_input.embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    distance[search_input.group_id[:, None] == search_input.group_id] = np.inf
    order = np.argsort(distance, axis=1)[:, :k]
    return order, np.take_along_axis(distance, order, 1)


def _graph_case(folder, k=5):
    search_input = _search_input()
    order, distance = _brute_force(search_input, k)
    info = describe(search_input, k=k, m=0) | {"precision": "float32", "source": "search"}
    any_type = Neighbors(order[None].astype(np.int32), distance[None].astype(np.float32))
    graph = NeighborGraph(info, any_type)
    options = {"k": k, "m": 0, "precision": "float32", "mesh": None}
    with mock.patch.object(neighbor_cache, "find_graph", return_value=graph):
        neighbor_cache.reuse_or_find(folder, search_input, **options)
    [path] = (pathlib.Path(folder) / neighbor_cache.FOLDER).glob("*.npz")
    arrays = sealed_files.read_arrays(str(path), schema_version=neighbor_cache.SCHEMA_VERSION)

    def forge(rng):
        forged = _forge_arrays(arrays, rng)
        if rng.random() < 0.3:
            edited = damage.edit_json(info, rng, beyond=("rule", "distance", "source"))
            forged = arrays | {"info": np.array(json.dumps(edited))}
        sealed_files.write_arrays(str(path), forged, schema_version=neighbor_cache.SCHEMA_VERSION)

    def read():
        """None: the graph was left alone, and the neighbours were searched for."""
        with (
            mock.patch.object(neighbor_cache, "find_graph", return_value=None) as search,
            mock.patch.object(neighbor_cache, "save_graph"),
        ):
            found = neighbor_cache.reuse_or_find(folder, search_input, **options)
        return None if search.called else found

    def is_equal(found):
        return all(map(np.array_equal, found.any, graph.any))

    return path, path.read_bytes(), forge, read, is_equal


def _neighbors_case(folder, form, k=5):
    search_input = _search_input()
    order, _ = _brute_force(search_input, k)
    path = pathlib.Path(folder) / f"found.{form}"

    def write(array):
        if form == "npz":
            np.savez_compressed(path, indices=array)
        else:
            np.save(path, array)

    def forge(rng):
        write(_forge_arrays({"indices": order}, rng).get("indices", np.array(1.5)))

    def read():
        positions = np.arange(len(order))
        graph = neighbor_imports.import_graph(str(path), search_input, positions, k=k, m=0)
        return graph.any.indices[0]

    write(order)
    return path, path.read_bytes(), forge, read, lambda found: np.array_equal(found, order)
