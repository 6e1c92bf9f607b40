"""The feature space of stores: which rows are used, subsets, empty cells, intervals, report."""

import json
import pathlib

import numpy as np
import pytest
from numpy.testing import assert_allclose
from stores import make_manifest, make_store, plan

import pathorob_jax as pr
from pathorob_jax.data import row_views
from pathorob_jax.evaluation.feature_space import make_feature_space
from pathorob_jax.evaluation.settings import Settings
from pathorob_jax.metrics.feature_space import measure_space
from pathorob_jax.results.result_files import read_result


def make_labels(sizes, *, slides=3):
    """Rows of classes x centres of the given sizes, each cell dealt to slides of its own."""
    sizes = np.array(sizes)
    cells = [(b, c) for b, c in np.ndindex(sizes.shape) for _ in range(sizes[b, c])]
    bio, center = np.array(cells).T
    place = np.concatenate([np.arange(n) for n in sizes.ravel()])
    return bio, center, (bio * sizes.shape[1] + center) * slides + place % slides


def make_x(bio, center, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(bio), dim)) + 2 * np.eye(dim)[bio] + 4 * np.eye(dim)[7 - center]
    return x.astype(np.float32)


def evaluate(tmp_path, x, manifest, *, name="store", **settings):
    opened = make_store(tmp_path / name, x, manifest)
    return make_feature_space(plan(opened, settings=Settings(draws=200, **settings)))


def test_cells_are_cut_to_the_smallest_in_the_order_of_the_index(tmp_path):
    bio, center, slide = make_labels([[12, 9], [20, 15]])
    x = make_x(bio, center)
    manifest = make_manifest(bio, center, slide)
    record = evaluate(tmp_path, x, manifest).record
    assert (record.cell_size, record.n_samples, record.n_available) == (9, 36, 56)
    order = np.random.RandomState(123).permutation(len(x))
    kept = np.concatenate(
        [order[(bio[order] == b) & (center[order] == c)][:9] for b, c in np.ndindex(2, 2)]
    )
    expected = measure_space(x[kept], bio[kept], center[kept], slide[kept], n_blocks=12)
    assert_allclose(record.variance_share, expected.variance_share, rtol=1e-9)
    assert_allclose(record.eta2_class, expected.eta2_class, rtol=1e-9)
    assert_allclose(record.eta2_center, expected.eta2_center, rtol=1e-9)
    assert_allclose(record.cumulative_variance[-1], 1)
    assert_allclose(record.cumulative_center[-1], 1)
    low, high = record.center_variance_ci95
    assert low < record.center_variance < high
    assert record.center_variance > record.class_variance
    assert record.ci95[0] < record.class_share < record.ci95[1] < 0.5


def test_an_empty_cell_leaves_no_variance_of_class_and_centre(tmp_path):
    bio, center, slide = make_labels([[8, 6], [7, 6], [9, 0]])
    record = evaluate(tmp_path, make_x(bio, center), make_manifest(bio, center, slide)).record
    assert record.eta2_class is record.eta2_center is record.cumulative_center is None
    assert np.isnan([record.class_share, record.center_variance, record.center_in_first]).all()
    assert record.ci95 is None
    assert_allclose(sum(record.variance_share), 1)
    assert record.n_samples == 36
    assert record.effective_rank > 1
    [text] = record.warnings
    assert "class 'class2' has no patch at 'Center 1'" in text
    assert record.support == 0


def test_subsets_count_the_same(tmp_path):
    bio, center, slide = make_labels([[6, 8], [7, 6], [9, 5]])
    x, manifest = make_x(bio, center), make_manifest(bio, center, slide)
    record = evaluate(tmp_path, x, manifest, design="paired", min_cell_size=2).record
    assert len(record.per_subset) == 3
    assert [s.cell_size for s in record.per_subset.values()] == [6, 5, 5]
    means = [s.center_variance for s in record.per_subset.values()]
    assert_allclose(record.center_variance, np.mean(means))
    carried = np.dot(record.variance_share, record.eta2_center)
    assert_allclose(carried, record.center_variance)
    assert record.cell_size == 5


def test_subsets_that_are_given_are_cut_within(tmp_path):
    bio, center, slide = make_labels([[6, 8], [7, 6]])
    manifest = make_manifest(bio, center, slide, subset=["one"] * len(bio))
    x = make_x(bio, center)
    opened = make_store(tmp_path / "store", x, make_manifest(bio, center, slide))
    settings = Settings(draws=0, design="paired")
    got = make_feature_space(plan(opened, manifest=manifest, settings=settings)).record
    all_rows = evaluate(tmp_path, x, make_manifest(bio, center, slide), name="all").record
    assert got.per_subset["one"].cell_size == 6
    assert_allclose(got.eta2_center, all_rows.eta2_center)
    assert got.ci95 is None


def test_collapsed_embeddings_have_no_space(tmp_path):
    bio, center, slide = make_labels([[8, 8], [8, 8]])
    x = np.ones((32, 4), np.float32) * [1, 2, 3, 4]
    record = evaluate(tmp_path, x.astype(np.float32), make_manifest(bio, center, slide)).record
    assert record.variance_share is record.eta2_class is None
    assert np.isnan([record.effective_rank, record.class_share]).all()
    assert any("equal within float32's rounding" in text for text in record.warnings)


def test_equal_cells_of_a_scope():
    bio, center, _ = make_labels([[3, 1], [2, 4]])
    scope = row_views.Scope(
        "", np.arange(10), bio.astype(np.int32), center.astype(np.int32), ("a", "b"), ("c", "d")
    )
    assert row_views.cut_to_equal_cells(scope).tolist() == [0, 3, 4, 6]
    assert row_views.cut_to_equal_cells(scope._replace(centers=("c", "d", "e"))) is None


@pytest.mark.slow
def test_the_record_is_written_read_and_shown(tmp_path):
    bio, center, slide = make_labels([[12, 12], [12, 12]])
    rows = {
        "slide_id": [f"s{i}" for i in slide],
        "patch_id": [str(i) for i in range(len(bio))],
        "biological_class": [f"class{i}" for i in bio],
        "medical_center": [f"Center {i}" for i in center],
    }
    output = str(tmp_path / "results")
    for model, seed in (("one", 0), ("two", 1)):
        results = pr.evaluate_embeddings(
            make_x(bio, center, seed=seed),
            rows,
            metrics=["feature_space"],
            model=model,
            output=output,
            settings=pr.Settings(draws=200),
        )
    [path] = [p for p in results.paths if p.endswith("feature_space.json")]
    assert read_result(path) == results.feature_space
    stored = json.loads(pathlib.Path(path).read_text())
    assert len(stored["eta2_class"]) == len(stored["variance_share"]) == 8
    pr.write_report(output, str(tmp_path / "report"))
    page = (tmp_path / "report/index.html").read_text()
    section = page.split('<section id="feature_space">')[1].split("</section>")[0]
    assert f"{results.feature_space.class_share:.3f}" in section
    assert "lies on the ten directions of largest variance" in page
    lines = (tmp_path / "report/feature_space_components.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 8
    assert list((tmp_path / "report/figures").glob("feature_space_*.svg"))
