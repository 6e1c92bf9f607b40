"""Maps: exact components, which patches are drawn, what is written, and the figures."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from sklearn.decomposition import PCA
from stores import make_store

from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.evaluation.embedding_maps import (
    MapSettings,
    choose_rows,
    find_nearest,
    make_maps,
    map_embeddings,
)
from pathorob_jax.kernels.pca import principal_components
from pathorob_jax.report import map_figures
from pathorob_jax.results.map_files import COORDINATES, LABELS, NEAREST, read_map


def make_rows(bio, center):
    n = len(bio)
    return as_manifest(
        {
            "slide_id": [f"s{b}{c}" for b, c in zip(bio, center, strict=True)],
            "patch_id": [str(i) for i in range(n)],
            "biological_class": [f"_class{i}" for i in bio],
            "medical_center": [f"Center $ {i}" for i in center],
        }
    )


@pytest.fixture
def case(tmp_path, rng):
    """60 rows, 2 classes, 2 centres; the centre is far the strongest direction."""
    bio, center = np.arange(60) % 2, np.arange(60) // 2 % 2
    x = rng.normal(size=(60, 20))
    x[:, 0] += 12 * center
    x[:, 1] += 4 * bio
    rows = make_rows(bio, center)
    return make_store(tmp_path / "store", x.astype(np.float32), rows), x, rows


@pytest.mark.parametrize("shape", [(50, 80), (80, 50), (30, 30)])
def test_components_are_exact(rng, shape):
    x = rng.normal(size=shape) * np.linspace(3, 1, shape[1]) + 5
    got, theirs = principal_components(x, 6), PCA(6, svd_solver="full").fit(x)
    np.testing.assert_allclose(got.coordinates, theirs.transform(x), atol=1e-9)
    np.testing.assert_allclose(got.explained, theirs.explained_variance_ratio_, atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 40), (40, 9)])
def test_components_without_variance_are_zero(rng, shape):
    x = rng.normal(size=(shape[0], 2)) @ rng.normal(size=(2, shape[1]))
    got = principal_components(x, 5)
    assert np.abs(got.coordinates[:, :2]).max() > 0.1
    assert not got.coordinates[:, 2:].any()
    np.testing.assert_allclose(got.explained.sum(), 1)
    assert np.isnan(principal_components(np.ones(shape), 2).explained).all()
    with pytest.raises(InputError, match="n_components: expected 1 to 9 for"):
        principal_components(x, 10)


def test_rows_are_chosen_evenly_and_small_cells_give_all():
    bio = np.repeat([0, 0, 1, 1], [5, 40, 40, 40])
    center = np.repeat([0, 1, 0, 1], [5, 40, 40, 40])
    view = make_rows(bio, center)
    rows = np.arange(len(bio))
    got = choose_rows(view, rows, MapSettings(max_rows=65))
    assert (np.diff(got) > 0).all()
    counts = np.bincount(bio[got] * 2 + center[got])
    np.testing.assert_array_equal(counts, [5, 20, 20, 20])
    np.testing.assert_array_equal(got, choose_rows(view, rows, MapSettings(max_rows=65)))
    other = choose_rows(view, rows, MapSettings(max_rows=65, seed=1))
    assert set(other) != set(got)
    np.testing.assert_array_equal(choose_rows(view, rows[::-1], MapSettings()), rows)
    # Of the asked rows alone.
    assert set(choose_rows(view, rows[45:], MapSettings(max_rows=30))) <= set(rows[45:])


@pytest.mark.slow
def test_map_shows_the_strongest_direction(case):
    _, x, rows = case
    got = map_embeddings(7 * x, MapSettings(perplexity=10))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(got[:, :2], PCA(2, svd_solver="full").fit_transform(unit), atol=1e-9)
    center = np.arange(60) // 2 % 2
    assert np.isfinite(got).all()
    # Nearest neighbours in both maps are of one centre.
    for plane in (got[:, :2], got[:, 2:]):
        distance = ((plane[:, None] - plane[None]) ** 2).sum(2)
        np.fill_diagonal(distance, np.inf)
        assert np.mean(center[distance.argmin(1)] == center) > 0.9
    np.testing.assert_array_equal(got, map_embeddings(7 * x, MapSettings(perplexity=10)))


def test_two_rows_are_no_map():
    with pytest.raises(InputError, match="expected three rows or more for a map, found 2"):
        map_embeddings(np.eye(2), MapSettings())


@pytest.mark.slow
def test_maps_are_written_and_drawn(case, tmp_path, monkeypatch):
    opened, x, rows = case
    settings = MapSettings(max_rows=40, combinations=True, perplexity=5)
    root = str(tmp_path / "results")
    written = make_maps(opened, model="m", dataset="d", view=rows, root=root, settings=settings)
    assert [p.removeprefix(root) for p in written] == [
        "/m/d/maps/dataset.parquet",
        "/m/d/maps/combination_0000.parquet",
    ]
    title, table, is_checked = read_map(written[0])
    assert title == "d"
    assert is_checked
    assert read_map(written[1]).title == "_class0-_class1-Center $ 0-Center $ 1"
    assert table.num_rows == 40
    chosen = choose_rows(rows, np.arange(60), settings)
    assert table.column("patch_id").to_pylist() == [str(i) for i in chosen]
    assert table.column("medical_center").to_pylist() == [f"Center $ {i // 2 % 2}" for i in chosen]
    expected = map_embeddings(np.float32(x[chosen]), settings)
    got = np.stack([table.column(c).to_numpy() for c in COORDINATES], axis=1)
    np.testing.assert_allclose(got[:, :2], expected[:, :2], atol=1e-6)
    views = map_figures.list_maps(root, "m", "d")
    assert [view.path for view in views] == [
        "figures/maps/m/d/dataset",
        "figures/maps/m/d/combination_0000",
    ]
    assert map_figures.list_maps(root, "other", "d") == []
    nearest = np.stack([table.column(name).to_numpy() for name in NEAREST], axis=1)
    labels = [np.unique(table.column(n).to_numpy(), return_inverse=True)[1] for n in LABELS[2:]]
    slides = np.unique(table.column("slide_id").to_numpy(), return_inverse=True)[1]
    np.testing.assert_array_equal(nearest, find_nearest(x[chosen], np.stack([*labels, slides])))


def test_nearest_rows_are_of_their_kind_and_outside_the_slide(rng):
    x = rng.normal(size=(30, 5))
    labels = rng.integers(0, 3, size=(3, 30))
    found = find_nearest(x, labels)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    kinds, centers, slides = labels
    for i in range(30):
        near = sorted(range(30), key=lambda j: -unit[i] @ unit[j])
        near = [j for j in near if slides[j] != slides[i]]
        so = [j for j in near if kinds[j] == kinds[i] and centers[j] != centers[i]][:3]
        os_ = [j for j in near if kinds[j] != kinds[i] and centers[j] == centers[i]][:3]
        expected = [*so, *[-1] * (3 - len(so)), *os_, *[-1] * (3 - len(os_))]
        assert found[i].tolist() == expected


def test_map_colours_by_class_left_and_by_centre_right(case):
    _, x, rows = case
    coordinates = map_embeddings(x, MapSettings(perplexity=5))
    table = rows.table
    for i, name in enumerate(COORDINATES):
        table = table.append_column(name, [coordinates[:, i]])
    markup = map_figures.draw_map("m: d", table)
    root = ElementTree.fromstring(markup)
    data = json.loads(root.get("data-map"))
    paths = {path.get("id"): path.get("d") for path in root.iter("path") if path.get("id")}
    pictures = [svg for svg in root.iter("svg") if svg.get("data-method")]
    assert [svg.get("data-method") for svg in pictures] == ["t", "t", "p", "p"]
    for method, columns in (("t", (2, 3)), ("p", (0, 1))):
        plane = coordinates[:, columns]
        middle, scale = (plane.max(0) + plane.min(0)) / 2, 1000 / np.ptp(plane, axis=0).max()
        for number, (kind, center, runs) in enumerate(data["cells"]):
            steps = re.findall(r"m(-?\d+) ?(-?\d+)z", paths[f"{data['id']}{method}{number}"])
            drawn = np.cumsum(np.array(steps, int), axis=0)
            mine = (np.arange(60) % 2 == kind) & (np.arange(60) // 2 % 2 == center)
            wanted = (plane[mine] - middle) * scale * (1, -1) + 500
            np.testing.assert_allclose(np.sort(drawn, 0), np.sort(wanted, 0), atol=0.51)
            assert sum(runs[1::2]) == mine.sum()
            assert {data["slides"][i] for i in runs[::2]} == {f"s{kind}{center}"}
    by_class, by_center = ([use.get("class") for use in svg.iter("use")] for svg in pictures[:2])
    assert by_class == [f"k{kind} s0" for kind, _, _ in data["cells"]]
    assert by_center == [f"z{center} s0" for _, center, _ in data["cells"]]
    legend = "".join(root.itertext())
    assert "_class0" in legend
    assert "Center $ 1" in legend


@pytest.mark.slow
def test_a_map_of_many_patches_takes_less_than_sixty_kilobytes(rng):
    n = 2000
    rows = as_manifest(
        {
            "slide_id": [f"TCGA-{i % 150:04}-01Z-00-DX1" for i in range(n)],
            "patch_id": [str(i) for i in range(n)],
            "biological_class": [f"class {i % 150 % 9}" for i in range(n)],
            "medical_center": [f"Center {i % 150 % 7}" for i in range(n)],
        }
    ).table
    for i, name in enumerate(COORDINATES):
        rows = rows.append_column(name, [rng.normal(size=n) * (i + 1)])
    assert len(map_figures.draw_map("m: d", rows).encode()) < 60_000
