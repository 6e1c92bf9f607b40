"""What records warn of beside their rows: missing intervals, fits that were cut, lost examples."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import stores
from report_records import make_clusters

from pathorob_jax.core import files, sealed_files
from pathorob_jax.evaluation import clustering_score, probes, residual_center, robustification
from pathorob_jax.evaluation.patch_rows import PatchRows
from pathorob_jax.evaluation.settings import ClusteringSettings
from pathorob_jax.metrics.probes import ProbeResult
from pathorob_jax.metrics.residual_center import Residual
from pathorob_jax.results.robustification import AFTER, BEFORE, Paired
from pathorob_jax.robustify.parent import Fit
from pathorob_jax.robustify.tile_examples import FOLDER, INFO, SCHEMA_VERSION


def test_combinations_of_few_patches_or_one_slide_are_said():
    [whole] = make_clusters().combinations
    parts = [
        whole,
        dataclasses.replace(whole, k_max=12),
        dataclasses.replace(whole, name="a-b-north-south", ci95=None),
        dataclasses.replace(whole, ci95=None, clustering_score=float("nan")),
    ]
    plan = SimpleNamespace(
        k_grid=range(2, 31),
        settings=ClusteringSettings(draws=200),
        view=stores.make_manifest([0, 1], [0, 1], [0, 1]),
    )
    short, alone = clustering_score._warn(plan, parts)
    assert short.startswith("1 combinations have no more than 30 patches;")
    assert alone.startswith("no interval for 1 of 4 combinations (a-b-north-south): one slide")


def test_probes_that_were_cut_short_are_counted():
    nothing = np.empty(0)
    answers = {
        "biology": [ProbeResult(0.9, 5, 0, 1, nothing), ProbeResult(0.8, 4, 1, 2, nothing)],
        "center": [ProbeResult(np.nan, 0, 5, 0, nothing)],
    }
    undefined, cut = probes._warn(answers, {"biology": 0.85, "center": np.nan})
    assert undefined.startswith("probe center: no fold has all labels on both sides")
    assert cut.startswith("probe biology: 3 of 9 fits ended at max_iter = ")


def test_differences_without_an_interval_are_named():
    paired = {
        "robustness_index": Paired(0.5, 0.625, 0.125, None),
        "auc": Paired(0.5, 0.625, 0.125, [0.0, 0.25]),
        "apd": Paired(0.5, np.nan, np.nan, None),
    }
    [text] = robustification._warn_of_intervals(paired, 200)
    assert text.startswith("no interval for the difference of robustness_index: without one of")
    assert robustification._warn_of_intervals(paired, 0) == []


def test_damaged_examples_are_said_and_those_of_an_older_run_go(tmp_path):
    centers = [{"center": "north", "sha256": "0" * 64}]
    value = {"schema_version": SCHEMA_VERSION, "centers": centers}
    store, results = str(tmp_path / "store"), str(tmp_path / "results" / "m" / "d")
    for folder in (store, results):
        sealed_files.write_json(files.join(folder, FOLDER, INFO), value)
    settings = {"stain": {"method": "macenko"}}
    evaluation = stores.plan(
        SimpleNamespace(path=store, info={"settings": settings}), output=str(tmp_path / "results")
    )
    assert robustification._keep_examples(evaluation) == [
        "no tiles before and after: 0.png: not as it was written (its digest differs); extract "
        "again with --stain and --overwrite."
    ]
    assert not files.exists(files.join(results, FOLDER, INFO))


# --- the centre that is left


@pytest.fixture
def halves(tmp_path, rng):
    """A store of eight slides of two patches, one of which is all of its centre; its rows."""
    slide = np.arange(16) // 2
    bio, center = slide % 2, (slide == 7).astype(int)
    x = rng.normal(size=(16, 3)).astype(np.float32)
    parent = stores.make_store(tmp_path / "store", x, stores.make_manifest(bio, center, slide))
    rows = PatchRows(
        view=np.arange(16),
        store=np.arange(16),
        class_id=bio,
        center_id=center,
        classes=["class0", "class1"],
        centers=["Center 0", "Center 1"],
        group_id=slide,
        split_id=slide,
    )
    return parent, rows, {BEFORE: x, AFTER: x}


def test_a_method_that_half_of_the_slides_cannot_fit_has_no_residual(halves, monkeypatch):
    parent, rows, x = halves
    fit = Fit("center_means", "all", rows_sha256=parent.manifest.fingerprint())
    monkeypatch.setattr(residual_center, "read_fit", lambda store: fit)
    found = residual_center.find_residual(None, parent, rows, x, seed=0)
    assert found.rows == "cross_fit"
    assert sorted(found.probes) == ["knn", "linear", "mlp"]
    assert np.isnan([(p.auc, p.auc_before, p.null.mean) for p in found.probes.values()]).all()
    [text] = found.warnings
    assert text.startswith("no residual centre: the method cannot be fitted on half (")
    assert "expected rows of every centre" in text


def test_a_residual_that_is_undefined_or_cut_short_is_said(halves, monkeypatch):
    parent, rows, x = halves

    def probe(x, labels, chosen, **options):
        undefined = Residual(np.nan, np.full(len(labels) - 1, np.nan), 3)
        return dict.fromkeys(("linear", "knn", "mlp"), undefined)

    monkeypatch.setattr(residual_center, "read_fit", lambda store: Fit("macenko", "named rows"))
    monkeypatch.setattr(residual_center.residual_center, "probe_center", probe)
    found = residual_center.find_residual(None, parent, rows, x, seed=0)
    assert found.rows == "stored"
    once, few, cut = found.warnings
    assert once.startswith("method macenko cannot be fitted anew from embeddings alone")
    assert few.startswith("no residual centre: it needs four slides or more of two centres")
    assert cut.startswith("residual centre, linear: 3 fits ended at max_iter = 1000 before")
