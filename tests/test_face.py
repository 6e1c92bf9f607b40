"""What ``import pathorob_jax as pr`` offers: every example runs, and results read well."""

import doctest
import importlib

import numpy as np
import pytest

import pathorob_jax as pr
from pathorob_jax.results.record import MAX_LINES, MAX_WIDTH

# Their examples compute for seconds; the same functions are computed elsewhere.
LONG = {"performance_drop", "slide_prediction", "clustering_score"}
FUNCTIONS = [name for name in pr.__all__ if callable(getattr(pr, name)) and name == name.lower()]
ALL = ["robustness_index", "margins", "probes", "apd", "clustering_score"]


@pytest.fixture(scope="module")
def case():
    """240 rows: 2 classes, 2 centres, 6 slides in each cell."""
    bio, center, slide, _ = (a.ravel() for a in np.indices((2, 2, 6, 10)))
    x = np.random.default_rng(0).normal(size=(240, 8)) + 2 * np.eye(8)[bio]
    return x, bio, center, slide + 6 * (center + 2 * bio)


@pytest.fixture(scope="module")
def results(case):
    x, bio, center, slide = case
    rows = {"slide_id": slide, "patch_id": np.arange(240)}
    rows |= {"biological_class": [f"class {i}" for i in bio]}
    rows |= {"medical_center": [f"centre {i}" for i in center]}
    settings = pr.Settings(
        draws=200,
        apd=pr.ApdSettings(repetitions=2),
        clustering_score=pr.ClusteringSettings(trials=2, k_max=3),
    )
    return pr.evaluate_embeddings(x, rows, metrics=ALL, k=5, settings=settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.campaign] * (name in LONG)) for name in FUNCTIONS],
)
def test_every_function_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = getattr(pr, name)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(verbose=False)
    examples = [t for t in finder.find(function, name, globs={}) if t.examples]
    assert examples, f"pr.{name} has no example"
    for example in examples:
        assert runner.run(example).failed == 0


def test_the_examples_of_modules_run():
    for name in ("pathorob_jax", "pathorob_jax.results.registry"):
        failed, attempted = doctest.testmod(importlib.import_module(name))
        assert attempted > 0
        assert failed == 0


@pytest.mark.campaign
@pytest.mark.slow
def test_texts_are_short(results):
    texts = [f(obj) for obj in (results, *results.values()) for f in (str, repr)]
    texts += [repr(results.robustness_index.curve)]
    texts += [repr(results.clustering_score.combinations[0])]
    for text in texts:
        lines = text.splitlines()
        assert len(lines) <= MAX_LINES
        assert max(map(len, lines)) <= MAX_WIDTH
    for obj in (results, *results.values()):
        assert str(obj) == repr(obj)
    assert len(str(results).splitlines()) == len(ALL)


def test_what_is_opened_reads_well(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    x, bio, center, slide = case
    rows = {"slide_id": slide, "patch_id": np.arange(240)}
    rows |= {"biological_class": [f"class {i}" for i in bio]}
    rows |= {"medical_center": [f"centre {i}" for i in center]}
    np.save("x.npy", x)
    store = pr.import_embeddings("x.npy", rows, root="embeddings", model="m", dataset="d")
    assert repr(store) == "Store(embeddings/m/d: 240 embeddings)"
    assert repr(store.manifest).endswith("240 rows of 4 columns)")


def test_many_results_and_warnings_are_cut(results):
    many = pr.Results({f"robustness_index@{i}": results.robustness_index for i in range(40)})
    assert str(many).splitlines()[-1] == "... and 26 metrics more"
    import dataclasses

    loud = dataclasses.replace(results.robustness_index, warnings=["much to say " * 20] * 9)
    assert len(str(loud).splitlines()) == MAX_LINES
    assert str(loud).splitlines()[-1].startswith("... and ")


def test_results_are_a_mapping_with_attributes(results):
    assert list(results) == ALL
    index = results.robustness_index
    assert index is results["robustness_index"]
    assert index.value == index.robustness_index
    assert index.ci95[0] <= index.value <= index.ci95[1]
    assert 0 < index.support <= 1
    assert (results.margins.value, results.margins.ci95) == (
        results.margins.croma,
        results.margins.croma_ci95,
    )
    assert results.apd.value == results.apd.apd_id
    assert results.apd.ci95[0] < results.apd.value < results.apd.ci95[1]
    assert results.clustering_score.support == 1.0
    with pytest.raises(AttributeError, match="no metric 'marings'.*there are: robustness_index"):
        results.marings  # noqa: B018
    assert "margins" in dir(results)
    assert any("apd_ood: undefined" in text for text in results.warnings)


def test_the_tidy_table_holds_every_number(results):
    table = results.to_table().to_pylist()
    by_name = {(row["metric"], row["name"]): row for row in table}
    row = by_name["robustness_index", "robustness_index"]
    assert (row["model"], row["dataset"]) == ("checkpoint", "checkpoint")
    assert row["value"] == results.robustness_index.value
    assert [row["low"], row["high"]] == results.robustness_index.ci95
    assert by_name["margins", "croma_f0"]["low"] == results.margins.croma_f0_ci95[0]
    assert by_name["apd", "apd_ood"]["value"] is None
    assert by_name["robustness_index", "so"]["low"] is None
    frame = results.to_frame()
    assert list(frame.columns) == results.to_table().column_names
    assert len(frame) == len(table)


@pytest.mark.slow
def test_plain_functions_equal_an_evaluation(case, results):
    x, bio, center, slide = case
    labels = {"biology": bio, "center": center, "slide": slide}
    index = pr.robustness_index(x, **labels, k=5, draws=200)
    assert index.value == results.robustness_index.value
    assert index.ci95 == results.robustness_index.ci95
    assert index.support == results.robustness_index.support
    found = pr.margins(x, **labels, k=5, draws=200)
    assert (found.value, found.mari) == (results.margins.value, results.margins.mari)
    drop = pr.performance_drop(x, **labels, repetitions=2)
    assert drop.id_accuracies == results.apd.id_accuracies
    score = pr.clustering_score(x, **labels, trials=2, k_max=3, draws=200)
    assert score.value == results.clustering_score.value
    assert score.ci95 == results.clustering_score.ci95


def test_plain_functions_name_what_is_wrong(case):
    x, bio, center, slide = case
    with pytest.raises(ValueError, match="biological_class: expected 240 labels.*found 239"):
        pr.robustness_index(x, biology=bio[1:], center=center, slide=slide)
    alone = pr.robustness_index(x, biology=bio, center=center, slide=None, k=5, draws=200)
    assert alone.n_slides == 240


@pytest.mark.slow
def test_settings_are_used_or_refused(case):
    x, bio, center, slide = case
    rows = {"slide_id": slide, "patch_id": np.arange(240), "batch": slide // 2}
    rows |= {"biological_class": [f"class {i}" for i in bio]}
    rows |= {"medical_center": [f"centre {i}" for i in center]}

    def score(**settings):
        return pr.evaluate_embeddings(
            x, rows, metrics=["clustering_score"], settings=pr.Settings(**settings)
        ).clustering_score

    quick = {"trials": 1, "k_max": 2}
    own = score(
        seed=4,
        draws=200,
        clustering_score=pr.ClusteringSettings(seed=9, draws=300, group_column="batch", **quick),
    )
    chosen = own.provenance["settings"]
    assert (chosen["seed"], chosen["draws"], chosen["group_column"]) == (9, 300, "batch")
    shared = score(seed=4, draws=200, clustering_score=pr.ClusteringSettings(**quick))
    chosen = shared.provenance["settings"]
    assert (chosen["seed"], chosen["draws"], chosen["group_column"]) == (4, 200, "slide_id")
    assert own.ci95 != shared.ci95
    for settings, message in (
        ({"min_cell_size": 5}, "min_cell_size: no subsets are derived"),
        ({"neighbors": "n.npy", "precision": "fast"}, "precision: 'fast' is of a search"),
        (
            {"columns": {"medical_center": "a"}, "confounders": ("b",)},
            "columns: 'a' is given in the centre's place",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            pr.evaluate_embeddings(x, rows, k=3, settings=pr.Settings(**settings))
    with pytest.raises(ValueError, match="k: found 3, and 5 in the settings"):
        pr.evaluate_embeddings(x, rows, k=3, settings=pr.Settings(k=5))
