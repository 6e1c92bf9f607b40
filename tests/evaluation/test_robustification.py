"""A robustified store beside its parent: known truths, controls, pairing, refusals."""

import json
import shutil

import numpy as np
import pytest
import stores

import pathorob_jax as pr
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER
from pathorob_jax.embeddings.store import open_store
from pathorob_jax.embeddings.store_search import find_datasets
from pathorob_jax.evaluation.run import evaluate_store
from pathorob_jax.evaluation.settings import ApdSettings, Settings
from pathorob_jax.kernels.bootstrap.intervals import paired_difference
from pathorob_jax.metrics import held_out_probes
from pathorob_jax.results import result_files
from pathorob_jax.results.robustification import ACCURACY, AUC, INDEX
from pathorob_jax.robustify import run

# Fits run long: optimised programs save more than their compilation takes.
pytestmark = pytest.mark.optimized

N_SLIDES, TILES, D = 48, 5, 12
SETTINGS = Settings(k=5, draws=200)


def make_rows(rng, *, shift=3.0, slide_noise=0.4):
    """Two classes, three centres, eight slides a cell; centres differ in location and scale."""
    slide = np.repeat(np.arange(N_SLIDES), TILES)
    bio, center = slide % 2, slide // 2 % 3
    x = rng.normal(size=(len(slide), D)) + slide_noise * rng.normal(size=(N_SLIDES, D))[slide]
    x[:, 0] += 5 * bio
    planted = shift * rng.normal(size=(3, D)) * (np.arange(D) > 0)
    x = x * np.array([1.0, 1.6, 0.6])[center, None] + planted[center]
    return x.astype(np.float32), bio, center, slide


@pytest.fixture
def parent(tmp_path, rng):
    x, bio, center, slide = make_rows(rng)
    manifest = stores.make_manifest(bio, center, slide)
    return stores.make_store(tmp_path / "embeddings" / "ours" / "breast", x, manifest)


def apply(tmp_path, **options):
    root = str(tmp_path / "embeddings")
    [store] = run.robustify(find_datasets(f"{root}/ours", []), root=root, **options)
    return store


def judge(store, *, settings=SETTINGS, metrics=("robustification",), **options):
    return evaluate_store(store, metrics=metrics, settings=settings, **options).robustification


@pytest.mark.slow
def test_planted_centres_are_undone_and_biology_stays(parent, tmp_path):
    store = apply(tmp_path, method="combat")
    record = judge(store, output=str(tmp_path / "results"))
    index = record.paired[INDEX]
    assert index.before <= 0.4
    assert index.after >= 0.9
    assert index.ci95[0] > 0
    assert record.gain == index.difference == index.after - index.before
    assert record.biology.auc["after"] > 0.95
    assert record.biology.knn_balanced_accuracy["after"] > 0.95
    assert record.verdict.startswith("combat helped: robustness index 0.")
    for name in ("linear", "knn"):
        residual = record.residual_center[name]
        assert residual.auc_before > 0.95
        assert residual.auc < residual.auc_before - 0.2
    changes = record.per_center
    assert list(changes) == ["Center 0", "Center 1", "Center 2"]
    assert changes["Center 1"].scale < 1 < changes["Center 2"].scale
    assert (record.parent, record.method, record.fit_on) == ("ours", "combat", "all")
    assert record.cramers_v_fit == pytest.approx(0, abs=1e-6)
    path = tmp_path / "results" / "ours+combat" / "breast" / "robustification.json"
    assert result_files.read_result(str(path)) == record
    written = json.loads(path.read_text())
    assert set(written["biology"]) >= {
        "auc",
        "knn_balanced_accuracy",
        "effective_rank",
        "variance_removed",
        "neighbors_kept",
    }
    assert set(written["residual_center"]) == {"linear", "knn", "mlp"}
    assert set(written["residual_center"]["mlp"]) == {"auc", "auc_before", "null"}


@pytest.mark.slow
def test_numbers_are_those_of_the_two_models(parent, tmp_path):
    """Index and vote equal both models' own records, and margins and probes are paired too."""
    store, output = apply(tmp_path, method="center_means"), str(tmp_path / "results")
    names = ["robustness_index", "margins"]
    before = evaluate_store(parent, metrics=names, settings=SETTINGS, output=output)
    record = judge(store, metrics=[*names, "robustification"], output=output)
    after, paired = {}, record.paired
    for name in names:
        path = f"{output}/ours+center_means/breast/{name}.json"
        after[name] = result_files.read_outcome(path)
    assert paired[INDEX].before == before.robustness_index.value
    assert paired[INDEX].after == after["robustness_index"].record.value
    assert paired[ACCURACY].after == after["robustness_index"].record.balanced_accuracy
    for center, change in record.per_center.items():
        own = after["robustness_index"].record.per_center[center]
        assert change.robustness_index["after"] == own.robustness_index
    was = result_files.read_outcome(f"{output}/ours/breast/margins.json")
    mari = paired["margins.mari"]
    apart = paired_difference(
        (mari.after, mari.before), after["margins"].draws["mari"], was.draws["mari"]
    )
    np.testing.assert_allclose(mari.ci95, [apart.low, apart.high], rtol=1e-12)
    assert mari.difference == after["margins"].record.mari - before.margins.mari
    assert not [text for text in record.warnings if "before and after" in text]


@pytest.mark.campaign
def test_records_of_other_embeddings_are_not_paired(parent, tmp_path):
    store, output = apply(tmp_path, method="identity"), str(tmp_path / "results")
    names = ["margins"]
    evaluate_store(parent, metrics=names, settings=Settings(k=4, draws=200), output=output)
    evaluate_store(store, metrics=names, settings=SETTINGS, output=output)
    record = judge(store, output=output)
    [text] = [text for text in record.warnings if "before and after" in text]
    assert text.startswith("margins before and after: scored with different k, 4 and 5")
    assert set(record.paired) == {INDEX, ACCURACY, AUC}
    other = apply(tmp_path, method="center_means", name="ours+identity", overwrite=True)
    evaluate_store(parent, metrics=names, settings=SETTINGS, output=output)
    [text] = [t for t in judge(other, output=output).warnings if "before and after" in t]
    assert "the record of ours+identity is of other embeddings" in text


@pytest.mark.slow
def test_identity_changes_no_number(parent, tmp_path):
    record = judge(apply(tmp_path, method="identity"))
    for number in record.paired.values():
        assert number.difference == 0
        assert number.ci95 == [0, 0]
    biology = record.biology
    assert biology.neighbors_kept == 1
    assert biology.variance_removed == 0
    for field in ("auc", "knn_balanced_accuracy", "effective_rank"):
        values = getattr(biology, field)
        assert values["before"] == values["after"]
    for field in ("auc_per_class", "auc_per_center", "knn_recall_per_class"):
        for values in getattr(biology, field).values():
            assert values["before"] == values["after"]
    for change in record.per_center.values():
        assert (change.shift, change.scale) == (0, 1)
    for residual in record.residual_center.values():
        assert residual.auc == residual.auc_before
    assert record.verdict.startswith("identity did not help: robustness index")


@pytest.mark.slow
def test_permuted_centres_do_not_raise_the_index(tmp_path, rng):
    x, bio, center, slide = make_rows(rng)
    dealt = np.random.default_rng(1).permutation(np.arange(N_SLIDES) // 2 % 3)[slide]
    manifest = stores.make_manifest(bio, dealt, slide, hospital=[f"H{c}" for c in center])
    stores.make_store(tmp_path / "embeddings" / "ours" / "breast", x, manifest)
    store = apply(tmp_path, method="combat")
    settings = Settings(k=5, draws=200, columns={CENTER: "hospital"})
    record = judge(store, settings=settings)
    index = record.paired[INDEX]
    assert index.before <= 0.4
    assert not index.ci95[0] > 0
    assert not record.verdict.startswith("combat helped")


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("method", "fit_on"),
    [("combat", "all"), ("leace", "cross_fit"), ("combat", "cross_fit"), ("leace", "all")],
)
def test_the_residual_centre_is_of_slides_that_the_fit_did_not_see(tmp_path, rng, method, fit_on):
    """A fit on all slides, or on the other half, makes a probe across slides worse than chance."""
    x, bio, center, slide = make_rows(rng, slide_noise=1.5)
    manifest = stores.make_manifest(bio, center, slide)
    stores.make_store(tmp_path / "embeddings" / "ours" / "breast", x, manifest)
    store = apply(tmp_path, method=method, fit_on=fit_on)
    record = judge(store)
    y, half = store.read(), slide // 6 % 2
    if fit_on == "cross_fit":
        root = f"{tmp_path}/embeddings/ours+{method}-cross_fit/robustifier"
        half_of = pr.load_robustifier(root).half_of
        half = np.array([half_of[f"s{s}"] for s in slide])
    areas = []
    for h in range(2):
        train, test = half == h, half != h
        scores = held_out_probes.score_linear(y[train], center[None, train], y[test], n_labels=3)
        areas.append(held_out_probes.macro_area(scores.values[0], center[test]))
    residual = record.residual_center["linear"]
    # Flipped it would be taken for more.
    assert np.mean(areas) < (0.5 if (method, fit_on) == ("leace", "all") else 0.4)
    assert 0.45 < residual.auc < 0.9
    assert residual.auc < residual.auc_before
    assert record.residual_rows == "cross_fit"


@pytest.mark.campaign
@pytest.mark.slow
def test_k_is_that_of_the_parent(parent, tmp_path):
    store = apply(tmp_path, method="combat")
    settings = Settings(draws=200)
    before = evaluate_store(parent, settings=settings).robustness_index
    after = evaluate_store(store, settings=settings).robustness_index
    record = judge(store, settings=settings)
    assert after.k != before.k == record.k
    assert record.paired[INDEX].before == before.value


@pytest.mark.campaign
def test_what_the_reader_is_warned_of(parent, tmp_path):
    store = apply(tmp_path, method="class_adjusted_means")
    record = judge(store)
    assert record.used_labels
    assert not record.is_honest
    assert any("robustify with --fit_on=cross_fit" in text for text in record.warnings)
    assert "its fit used the classes of these patches" in record.verdict
    honest = judge(apply(tmp_path, method="class_adjusted_means", fit_on="cross_fit"))
    assert honest.is_honest
    assert not any("--fit_on=cross_fit" in text for text in honest.warnings)
    assert "its fit used" not in honest.verdict


@pytest.mark.slow
def test_an_association_in_the_fit_is_warned_of(tmp_path, rng):
    x, _, center, slide = make_rows(rng)
    bio = np.where(slide // 6 % 8 == 0, 1 - center % 2, center % 2)
    manifest = stores.make_manifest(bio, center, slide)
    stores.make_store(tmp_path / "embeddings" / "ours" / "breast", x, manifest)
    record = judge(apply(tmp_path, method="center_means"))
    assert record.cramers_v_fit > 0.5
    assert any("Cramer's V 0." in text for text in record.warnings)


@pytest.mark.slow
def test_a_fit_on_other_rows_is_probed_as_it_is(parent, tmp_path):
    store = apply(tmp_path, method="center_means", fit_rows="biological_class=class0")
    record = judge(store)
    assert record.residual_rows == "stored"
    assert any("was fitted on other rows" in text for text in record.warnings)


@pytest.mark.slow
def test_without_draws_there_is_no_interval_and_no_judgement(parent, tmp_path):
    record = judge(apply(tmp_path, method="combat"), settings=Settings(k=5, draws=0))
    assert record.ci95 is None
    assert record.paired[AUC].ci95 is None
    assert "cannot be judged without an interval" in record.verdict


def test_stores_without_a_parent_are_refused(parent, tmp_path):
    with pytest.raises(InputError, match="this one has no parent. Name a store that"):
        judge(parent)
    x = parent.read()
    with pytest.raises(InputError, match="in memory: robustification compares a robustified"):
        pr.evaluate_embeddings(x, parent.manifest, metrics=["robustification"])


@pytest.mark.slow
def test_a_missing_or_other_parent_is_refused(parent, tmp_path):
    store = apply(tmp_path, method="combat")
    shutil.move(parent.path, tmp_path / "away")
    with pytest.raises(InputError, match="the parent of .* is missing. Put the parent back"):
        judge(store)
    manifest = stores.make_manifest(*(np.arange(8) % n for n in (2, 2, 8)))
    stores.make_store(parent.path, np.eye(8, dtype=np.float32), manifest)
    with pytest.raises(InputError, match="is not the parent of .* robustify again"):
        judge(open_store(store.path))


@pytest.mark.campaign
@pytest.mark.slow
def test_other_confounders_than_the_one_of_the_fit(tmp_path, rng):
    """A robustifier of centres, judged by centre and by scanner, each by its own rows."""
    x, bio, center, slide = make_rows(rng)
    scanner = slide // 6 % 2
    x[:, -1] += 8 * scanner
    manifest = stores.make_manifest(bio, center, slide, scanner=[f"S{i}" for i in scanner])
    stores.make_store(tmp_path / "embeddings" / "ours" / "breast", x, manifest)
    store = apply(tmp_path, method="center_means")
    settings = Settings(
        k=5,
        draws=200,
        confounders=(CENTER, "scanner"),
        apd=ApdSettings(repetitions=2, rows_per_slide=5),
    )
    options = {"settings": settings, "output": str(tmp_path / "results")}
    before = evaluate_store(open_store(str(tmp_path / "embeddings/ours/breast")), **options)
    metrics = ("robustness_index", "robustification", "apd")
    found = evaluate_store(store, metrics=metrics, **options)
    for column in (CENTER, "scanner"):
        record = found[f"robustification@{column}"]
        index = record.paired[INDEX]
        assert index.before == before[f"robustness_index@{column}"].value
        assert index.after == found[f"robustness_index@{column}"].value
        assert record.residual_rows == "cross_fit"
        assert np.isfinite(record.residual_center["linear"].auc)
        drop = found[f"apd@{column}"]
        assert drop.fit_all is not None
        assert np.isfinite(drop.id_accuracy_means[0])
    by_center, by_scanner = (found[f"robustification@{c}"] for c in (CENTER, "scanner"))
    assert list(by_scanner.per_center) == ["S0", "S1"]
    # The centre went, the scanner stayed.
    assert by_center.paired[INDEX].ci95[0] > 0.1
    assert by_center.residual_center["linear"].auc < 0.8
    assert by_scanner.residual_center["linear"].auc > 0.95
    assert abs(by_scanner.paired[INDEX].difference) < by_center.paired[INDEX].difference / 2
    # At V = 1 of class and scanner the centres' fit stands: it is refused for the centre alone.
    assert np.isnan(found[f"apd@{CENTER}"].id_accuracies[-1]).all()
    assert np.isfinite(found["apd@scanner"].id_accuracies[-1]).all()
    assert set(found["apd@scanner"].directional_errors) == {"S0", "S1"}
