"""The neighbour graph: kept, found again, refused when it does not fit, imported with checks."""

import dataclasses
import json

import numpy as np
import oracles
import pytest
from stores import make_manifest, make_store, plan

from pathorob_jax.core import sealed_files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.row_views import Scope
from pathorob_jax.evaluation import neighbor_cache, neighbor_graph
from pathorob_jax.evaluation.run import evaluate_store
from pathorob_jax.evaluation.settings import Settings
from pathorob_jax.kernels.neighbors import search as kernel
from pathorob_jax.results import result_files


def run(opened, tmp_path, **arguments):
    results = evaluate_store(
        opened, model="m", dataset="d", output=str(tmp_path / "results"), **arguments
    )
    return result_files.read_result(results.paths[0])


@pytest.fixture
def case(tmp_path, rng):
    """90 random rows: 2 classes, 3 centres, 4 slides a centre."""
    n = 90
    bio, center = rng.integers(0, 2, n), rng.integers(0, 3, n)
    slide = center * 4 + rng.integers(0, 4, n)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    return (
        make_store(tmp_path / "m" / "d", x, make_manifest(bio, center, slide)),
        x,
        bio,
        center,
        slide,
    )


@pytest.fixture
def searches(monkeypatch):
    """Counts calls of the search."""
    calls = []
    for name in ("find_neighbors", "find_typed_neighbors"):
        search = getattr(kernel, name)

        def counted(*args, search=search, name=name, **kwargs):
            calls.append(name)
            return search(*args, **kwargs)

        monkeypatch.setattr(kernel, name, counted)
    return calls


def without_cost(record):
    """The record; what it cost differs between runs."""
    rest = {name: value for name, value in record.provenance.items() if name != "cost"}
    return dataclasses.replace(record, provenance=rest)


@pytest.mark.slow
def test_a_graph_is_kept_and_serves_all_that_it_can(case, tmp_path, searches):
    opened, *_ = case
    first = run(opened, tmp_path, metrics=["robustness_index"], settings=Settings(k=9))
    assert searches == ["find_neighbors"]
    again = run(opened, tmp_path, metrics=["robustness_index"], settings=Settings(k=9))
    less = run(opened, tmp_path, metrics=["robustness_index"], settings=Settings(k=5))
    assert searches == ["find_neighbors"]
    assert without_cost(again) == without_cost(first)
    assert less.provenance["neighbors"]["k"] == 9
    at = first.curve.k.index(5)
    assert less.robustness_index == first.curve.robustness_index[at]
    run(opened, tmp_path, metrics=["robustness_index"], settings=Settings(k=20))
    assert len(searches) == 2
    searches.pop()
    # Deeper, or with typed neighbours: a new search, which then serves both.
    run(opened, tmp_path, metrics=["margins"], settings=Settings(k=9))
    run(opened, tmp_path, metrics=["margins"], settings=Settings(k=7))
    assert searches == ["find_neighbors", "find_typed_neighbors"]


@pytest.mark.slow
def test_other_groups_rows_or_labels_are_searched_anew(case, tmp_path, searches):
    opened, x, bio, center, slide = case
    run(opened, tmp_path, settings=Settings(k=3))
    run(opened, tmp_path, settings=Settings(k=3, max_patches_per_combi=9))
    assert len(searches) == 2
    table = make_manifest(bio, center, slide, case=[f"c{s // 2}" for s in slide])
    cased = make_store(tmp_path / "m2" / "d", x, table)
    run(cased, tmp_path, settings=Settings(k=3))
    run(cased, tmp_path, settings=Settings(k=3, group_column="case"))
    assert len(searches) == 4
    margins = {"metrics": ["margins"]}
    run(cased, tmp_path, settings=Settings(k=3, confounders=("case",)), **margins)
    run(cased, tmp_path, settings=Settings(k=3), **margins)
    assert len(searches) == 6


def test_a_damaged_graph_is_left_alone(case, tmp_path, searches, caplog):
    opened, *_ = case
    first = run(opened, tmp_path, settings=Settings(k=3))
    [path] = (tmp_path / "m/d/neighbors").iterdir()
    path.write_bytes(path.read_bytes()[:500])
    again = run(opened, tmp_path, settings=Settings(k=3))
    assert without_cost(again) == without_cost(first)
    assert len(searches) == 2
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match="cannot be read as"):
        neighbor_cache.load_graph(str(tmp_path / "x.npz"))
    sealed_files.write_arrays(str(tmp_path / "old.npz"), {}, schema_version=1)
    with pytest.raises(InputError, match="expected schema 2, found 1. Remove it; it is made again"):
        neighbor_cache.load_graph(str(tmp_path / "old.npz"))


def test_work_goes_on_where_a_graph_cannot_be_kept(case, tmp_path, monkeypatch):
    opened, *_ = case
    monkeypatch.setattr(neighbor_cache, "LARGEST_FILE_BYTES", 100)
    run(opened, tmp_path, settings=Settings(k=3))
    assert not (tmp_path / "m/d/neighbors").exists()


@pytest.mark.slow
def test_imported_neighbours_give_the_same_numbers(case, tmp_path, searches):
    opened, x, bio, center, slide = case
    settings = Settings(k=5)
    expected = run(opened, tmp_path, settings=settings)
    indices, _ = oracles.nearest(x, slide, 8)
    np.save(tmp_path / "faiss.npy", indices.astype(np.uint32))
    imported = Settings(k=5, neighbors=str(tmp_path / "faiss.npy"))
    got = run(opened, tmp_path, settings=imported)
    assert len(searches) == 1
    assert got.robustness_index == expected.robustness_index
    assert got.balanced_accuracy == expected.balanced_accuracy
    assert got.provenance["neighbors"]["source"] == "faiss.npy"
    assert any("the neighbours come from a file" in w for w in got.warnings)
    with pytest.raises(InputError, match="lacks 'same_other'"):
        run(opened, tmp_path, metrics=["margins"], settings=imported)

    distance = 1 - (x @ x.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(x, axis=1)
    typed = {}
    for name, same_bio in (("same_other", True), ("other_same", False)):
        allowed = ((bio[:, None] == bio) == same_bio) & ((center[:, None] == center) != same_bio)
        allowed &= slide[:, None] != slide
        typed[name] = np.argsort(np.where(allowed, distance, 9), axis=1)[:, :5]
    np.savez(tmp_path / "typed.npz", indices=indices, **typed)
    imported = Settings(k=5, neighbors=str(tmp_path / "typed.npz"))
    got = run(opened, tmp_path, metrics=["margins"], settings=imported)
    expected = run(opened, tmp_path, metrics=["margins"], settings=settings)
    np.testing.assert_allclose([got.mari, got.croma], [expected.mari, expected.croma], rtol=1e-6)
    np.savez(
        tmp_path / "typed.npz",
        indices=indices,
        **dict(zip(typed, list(typed.values())[::-1], strict=True)),
    )
    with pytest.raises(InputError, match="same_other: row .* of another type"):
        run(opened, tmp_path, metrics=["margins"], settings=imported)


@pytest.mark.slow
def test_lists_that_cannot_be_neighbours_are_refused(case, tmp_path):
    opened, x, bio, center, slide = case
    indices, _ = oracles.nearest(x, slide, 5)
    own = indices.copy()
    own[4, 2] = next(i for i in range(5, 90) if slide[i] == slide[4])
    twice = indices.copy()
    twice[7, 1] = twice[7, 0]
    for name, array, message in (
        ("own", own, r"row 4 lists row \d+, which is of its own group"),
        ("twice", twice, "row 7 lists a row twice"),
        ("short", indices[:, :3], r"expected int\[90, 5 or more\], found int64\[90, 3\]"),
        ("rows", indices[:50], r"found int64\[50, 5\]"),
        ("far", indices + 90, "expected rows of the store, 0 to 89"),
        ("float", indices.astype(float), "found float64"),
        ("text", indices.astype(str), "found str"),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        settings = Settings(k=5, neighbors=str(tmp_path / f"{name}.npy"))
        with pytest.raises(InputError, match=message):
            run(opened, tmp_path, settings=settings)
    np.save(tmp_path / "good.npy", indices)
    settings = Settings(k=2, neighbors=str(tmp_path / "good.npy"), max_patches_per_combi=5)
    with pytest.raises(InputError, match="over all rows of a store, found 1 scopes and 30 rows"):
        run(opened, tmp_path, settings=settings)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"info": {"k": 3, "m": 0}}, "depths"),
        ({"info": {"k": 2, "m": 2}}, "depths"),
        ({"indices": np.zeros((1, 4, 2), np.int64)}, "dtypes"),
        ({"distances": np.zeros((1, 4, 2))}, "dtypes"),
        ({"indices": np.zeros((4, 2), np.int32)}, "dtypes"),
        ({"distances": np.zeros((1, 4, 3), np.float32)}, "shapes"),
        ({"indices": np.full((1, 4, 2), 4, np.int32)}, "rows"),
        ({"indices": np.full((1, 4, 2), -2, np.int32)}, "rows"),
    ],
)
def test_a_sealed_file_that_holds_no_graph_is_named(tmp_path, changes, why):
    good = {
        "info": {"k": 2, "m": 0},
        "indices": np.zeros((1, 4, 2), np.int32),
        "distances": np.zeros((1, 4, 2), np.float32),
    }

    def write(name, arrays):
        arrays = arrays | {"info": np.array(json.dumps(arrays["info"]))}
        sealed_files.write_arrays(str(tmp_path / name), arrays, schema_version=2)
        return str(tmp_path / name)

    assert neighbor_cache.load_graph(write("good.npz", good)).info == good["info"]
    with pytest.raises(InputError, match=rf"wrong.npz: expected a neighbour graph.*{why}.*Remove"):
        neighbor_cache.load_graph(write("wrong.npz", good | changes))


@pytest.mark.parametrize("together", [True, False])
def test_a_process_without_a_scope_has_lists_of_the_same_depth(together):
    scope = Scope("", np.arange(6), np.arange(6) % 2, np.arange(6) // 3, ("a", "b"), ("A", "B"))
    found = neighbor_graph.SearchInput(
        np.ones((6, 3), np.float32), np.arange(6), np.arange(6, dtype=np.int32), [scope]
    )
    search = neighbor_graph._search_together if together else neighbor_graph._search_one_by_one
    lists = search(found, [], (3, 2, 2), 2**20, None, print)
    assert [part.indices.shape for part in lists] == [(0, 6, 3), (0, 6, 2), (0, 6, 2)]
    assert [part.distances.shape for part in lists] == [(0, 6, 3), (0, 6, 2), (0, 6, 2)]


def test_margins_need_neighbours_of_each_type(case):
    opened, *_ = case
    evaluation = plan(opened, settings=Settings(k=3), keep_graph=False)
    with pytest.raises(ValueError, match="typed neighbours were not searched"):
        evaluation.compute("margins")
