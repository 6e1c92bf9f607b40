"""Average performance drop: reductions, records, tasks on disk; and the reference's own numbers."""

import dataclasses
import functools
import json
import logging as std_logging

import jax
import numpy as np
import pytest
import stores
import tensorstore
from machine import DEVICES
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from pathorob_jax.core import devices, sealed_files, task_files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import protocols
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.manifest import as_manifest, read_manifest
from pathorob_jax.evaluation import apd_tasks
from pathorob_jax.evaluation.apd import make_apd
from pathorob_jax.evaluation.settings import ApdSettings, Settings
from pathorob_jax.kernels.logistic import fit
from pathorob_jax.metrics import apd, heads
from pathorob_jax.results import pathorob_layout
from pathorob_jax.results.apd import make_apd_aggregate
from pathorob_jax.results.result_files import read_result, result_path, write_result

# Fits run long: optimised programs save more than their compilation takes.
pytestmark = pytest.mark.optimized

DATASETS = ("camelyon", "tcga", "tolkach_esca")
DOMAINS = ("id", "ood")
# REFERENCE section 5, from the published raw accuracies, to the digits given there.
NIPD = {
    "id": (-0.175997, -0.062588, -0.033889),
    "ood": (-0.141614, -0.052891, -0.008122),
}
SCHEDULE = AssociationSchedule(
    classes=("stroma", "tumor"),
    centers=("X", "Y"),
    slides=(((2, 2), (2, 2)), ((3, 1), (1, 3)), ((4, 0), (0, 4))),
    rows_per_slide=6,
)


def one_device():
    return devices.make_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def published(shared):
    """published[dataset][domain] accuracies [split, repetition], and the summaries."""
    folder = shared / "pathorob" / "published" / "phikonv2_clsmean"
    raw, summary = {}, {}
    for name in DATASETS:
        values = json.loads((folder / name / "apd_raw.json").read_text())
        raw[name] = {d: np.array(values[f"{d.upper()}_test_accuracies"]) for d in DOMAINS}
        summary[name] = json.loads((folder / name / "apd_summary.json").read_text())
    aggregate = json.loads((folder / "apd_aggregated_summary.json").read_text())
    return raw, summary, aggregate


@pytest.mark.parametrize("domain", DOMAINS)
def test_published_accuracies_reduce_to_the_published_numbers(published, domain):
    raw, summary, aggregate = published
    for name in DATASETS:
        values = raw[name][domain]
        found = apd.average_performance_drop(values)
        np.testing.assert_allclose(found, summary[name][f"apd_{domain}"], rtol=0, atol=1e-12)
        means = summary[name][f"{domain.upper()}_test_accuracy_means"]
        np.testing.assert_allclose(values.mean(axis=1), means, rtol=0, atol=1e-12)
    found = apd.aggregate_drops([apd.performance_drops(raw[n][domain]) for n in DATASETS])
    assert found.df == 60
    np.testing.assert_allclose(found.mean, aggregate[f"apd_{domain}"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.ci, aggregate[f"ci_{domain}"], rtol=0, atol=1e-12)
    ratio = stats.t.ppf(0.975, 59) / stats.t.ppf(0.975, 60)
    np.testing.assert_allclose(found.ci_textbook / found.ci, ratio, rtol=1e-12)


@pytest.mark.parametrize("domain", DOMAINS)
def test_nipd_of_the_published_accuracies(published, domain):
    for name, expected in zip(DATASETS, NIPD[domain], strict=True):
        schedule = protocols.PROTOCOLS[name].apd.schedule
        found = apd.normalized_integrated_drop(
            published[0][name][domain], schedule.cramers_v(), n_classes=len(schedule.classes)
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-7)


def test_drops_by_hand():
    accuracies = np.array([[0.8, 0.5], [0.6, 0.5], [0.4, 0.75]])
    np.testing.assert_allclose(apd.performance_drops(accuracies), [0.5 / 0.8 - 1, 0.25])
    # mean 0.65, 0.55, 0.575; room 0.15: g = 0, -2/3, -1/2 at V = 0, .5, 1
    found = apd.normalized_integrated_drop(accuracies, [0, 0.5, 1], n_classes=2)
    np.testing.assert_allclose(found, -(0.5 * (2 / 3) / 2 + 0.5 * (2 / 3 + 1 / 2) / 2))
    assert np.isnan(apd.performance_drops([[0.0], [0.5]]))[0]
    assert np.isnan(apd.normalized_integrated_drop([[0.5], [0.4]], [0, 1], n_classes=2))
    assert np.isnan(apd.average_performance_drop([[np.nan], [0.4]]))


def test_interval_of_a_drop_by_hand():
    """Nadeau and Bengio's t: s^2 (1 / R + f / (1 - f)), f the share of slides in common."""
    accuracies = np.array([[0.9, 0.8, 0.85], [0.7, 0.6, 0.8]])
    drops = accuracies[1] / accuracies[0] - 1

    def expected(odds):
        half = stats.t.ppf(0.975, 2) * drops.std(ddof=1) * np.sqrt(1 / 3 + odds)
        return [max(drops.mean() - half, -1), drops.mean() + half]

    for n_training, n_test, inside, outside in ((80, 40, 0.5, 2), (40, 80, 0.5, 0.5)):
        sizes = {"n_training": n_training, "n_test": n_test}
        got = apd.drop_interval(accuracies, in_domain=True, **sizes)
        np.testing.assert_allclose(got, expected(inside))
        assert got[0] <= drops.mean() <= got[1]
        got = apd.drop_interval(accuracies, in_domain=False, **sizes)
        np.testing.assert_allclose(got, expected(outside))
    sizes = {"n_training": 8, "n_test": 4, "in_domain": True}
    assert apd.drop_interval(accuracies[:, :1], **sizes) is None
    assert apd.drop_interval(accuracies * np.nan, **sizes) is None
    equal = apd.drop_interval(np.array([[0.5] * 4, [0.4] * 4]), **sizes)
    np.testing.assert_allclose(equal, [-0.2, -0.2])


@pytest.mark.filterwarnings("ignore:y_pred contains classes")  # class 3 is called, never there
def test_calls_count_and_score_as_scikit_learn(rng):
    label, called = rng.integers(0, 3, 200), rng.integers(0, 4, (2, 5, 200))
    center = rng.integers(0, 2, 200)
    calls = apd.count_calls(called, label, center, n_classes=4, n_centers=2)
    assert calls.shape == (2, 5, 2, 4, 4)
    accuracy = apd.balanced_accuracy(calls)
    for i in range(2):
        for j in range(5):
            for m in range(2):
                inside = center == m
                expected = confusion_matrix(label[inside], called[i, j][inside], labels=range(4))
                np.testing.assert_array_equal(calls[i, j, m], expected)
            expected = balanced_accuracy_score(label, called[i, j])
            np.testing.assert_allclose(accuracy[i, j], expected, rtol=1e-14)
    assert np.isnan(apd.balanced_accuracy(np.zeros((1, 2, 2))))


def test_directions_pool_repetitions():
    # [split, repetition, centre, true, called]; centre 1 has no row of class 1.
    calls = np.array(
        [[[[[9, 1], [2, 8]], [[5, 5], [0, 0]]]] * 1 + [[[[7, 3], [4, 6]], [[5, 5], [0, 0]]]]]
    )
    shares = apd.direction_shares(calls)
    np.testing.assert_allclose(shares[0, :, :, 0], [[0.8, 0.2], [0.3, 0.7]])
    np.testing.assert_allclose(shares[1, 0, :, 0], [0.5, 0.5])
    assert np.isnan(shares[1, 1]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: apd.performance_drops([[1.0]]), "two or more splits"),
        (lambda: apd.normalized_integrated_drop([[1.0], [1.0]], [0.1, 1], n_classes=2), "from 0"),
        (lambda: apd.normalized_integrated_drop([[1.0], [1.0]], [0.0], n_classes=2), "cramers_v"),
        (lambda: apd.normalized_integrated_drop([[1.0], [1.0]], [0, 0.9], n_classes=2), "0 to 1"),
        (lambda: apd.aggregate_drops([[0.1]]), "two or more values"),
    ],
)
def test_reductions_refuse(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- records of a store


def make_rows(*, slides=7, rows=6, centers="XYZ"):
    """Three centres; Z is out of domain. Slides of one class each."""
    table = {"slide_id": [], "patch_id": [], "biological_class": [], "medical_center": []}
    for bio in SCHEDULE.classes:
        for center in centers:
            for slide in range(slides):
                for row in range(rows):
                    table["slide_id"].append(f"{center}-{bio}-{slide}")
                    table["patch_id"].append(f"{row}")
                    table["biological_class"].append(bio)
                    table["medical_center"].append(center)
    return as_manifest(table)


def make_store(folder, manifest, embeddings, name="own"):
    path = folder / "embeddings" / "model" / name
    return stores.make_store(path, embeddings, manifest, chunk_rows=len(manifest))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A store whose centres outshine its classes, so that the probe falls with V."""
    rng = np.random.default_rng(3)
    rows = make_rows()
    bio, center, slide = (
        rows.factorize(n).ids for n in ("biological_class", "medical_center", "slide_id")
    )
    x = rng.normal(size=(len(rows), 12)).astype(np.float32)
    for effect, ids in ((0.6, bio), (1.2, center), (0.3, slide)):
        x += effect * rng.normal(size=(ids.max() + 1, 12)).astype(np.float32)[ids]
    return make_store(tmp_path_factory.mktemp("apd"), rows, x)


def measure(store, *, mesh=None, schedule=SCHEDULE, rows=None, work_dir=None, **settings):
    apd_settings = ApdSettings(**{"repetitions": 3, "schedule": schedule} | settings)
    evaluation = stores.plan(
        store,
        model="model",
        dataset="own",
        manifest=rows,
        settings=Settings(apd=apd_settings),
        work_dir=work_dir,
        mesh=mesh or one_device(),
    )
    return make_apd(evaluation).record


def plain(result):
    return dataclasses.asdict(dataclasses.replace(result, provenance={}))


@pytest.fixture(scope="module")
def result(own):
    return measure(own, heads=("knn", "mlp"))


@pytest.mark.slow
def test_a_record_says_all_that_its_numbers_rest_on(result):
    accuracies = np.array(result.id_accuracies)
    assert accuracies.shape == np.shape(result.ood_accuracies) == (3, 3)
    assert result.apd_id == apd.average_performance_drop(accuracies)
    assert result.apd_id < -0.02
    for side in DOMAINS:
        drops = apd.performance_drops(getattr(result, f"{side}_accuracies"))
        half = stats.t.ppf(0.975, 2) * drops.std(ddof=1) * np.sqrt(1 / 3 + 1)  # 48 of 48 rows
        ends = getattr(result, f"apd_{side}_ci95")
        np.testing.assert_allclose(ends, [max(drops.mean() - half, -1), drops.mean() + half])
    assert result.ci95 == result.apd_id_ci95
    assert result.heads["knn"].apd_id_ci95[0] <= result.heads["knn"].apd_id
    assert result.cramers_v == [0.0, 0.5, 1.0]
    expected = apd.normalized_integrated_drop(accuracies, result.cramers_v, n_classes=2)
    assert result.nipd_id == expected
    np.testing.assert_allclose(result.id_accuracy_means, accuracies.mean(axis=1))
    assert (result.centers, result.ood_centers) == (["X", "Y"], ["Z"])
    assert result.n_training_rows == 8 * 6
    assert result.n_id_test_rows == 4 * 2 * 6
    assert result.n_ood_test_rows == 2 * 7 * 6
    assert set(np.ravel(result.chosen_c)) <= set(protocols.ApdProtocol.c_grid)
    assert result.converged_share == 1.0
    assert np.all(result.converged)
    assert np.min(result.validation_accuracies) >= 0.5
    assert result.warnings == []
    assert set(result.heads) == {"knn", "mlp"}
    assert result.heads["knn"].setting == "k"
    assert result.heads["mlp"].apd_id != result.heads["knn"].apd_id != result.apd_id


def test_directions_are_those_of_the_calls(result):
    shares = result.direction_id["X"]
    for true in result.classes:
        np.testing.assert_allclose(sum(np.array(shares[true][c]) for c in result.classes), 1)
    # Classes and centres have equally many test rows: recalls average to the accuracy.
    recalls = [result.direction_id[m][c][c] for m in result.centers for c in result.classes]
    np.testing.assert_allclose(np.mean(recalls, axis=0), result.id_accuracy_means)
    # Trained where all tumour is at Y, the probe calls stroma of Y tumour more often, and not of X.
    wrong = {m: result.direction_id[m]["stroma"]["tumor"] for m in result.centers}
    assert wrong["Y"][2] > wrong["Y"][0] + 0.05
    assert wrong["Y"][2] > wrong["X"][2]
    assert list(result.direction_ood) == ["Z"]


def test_a_record_survives_its_file(result, tmp_path):
    path = write_result(str(tmp_path), result)
    assert path.endswith("/model/own/apd.json")
    assert plain(read_result(path)) == plain(result)
    old = json.loads((tmp_path / "model" / "own" / "apd.json").read_text())
    for record in (old, *old["heads"].values()):
        del record["apd_id_ci95"], record["apd_ood_ci95"], record["directional_errors"]
    old["schema_version"] = 1  # as versions without digests wrote it
    del old["provenance"]["sha256"]
    older = tmp_path / "old.json"
    older.write_text(json.dumps(old))
    assert (read_result(str(older)).ci95, read_result(str(older)).apd_id) == (None, result.apd_id)
    text = json.loads((tmp_path / "model" / "own" / "apd.json").read_text())
    for key in (
        "apd_id",
        "apd_ood",
        "nipd_id",
        "nipd_ood",
        "cramers_v",
        "id_accuracies",
        "ood_accuracies",
    ):
        assert text[key] is not None


@pytest.mark.campaign
@pytest.mark.slow  # each device compiles for itself
@pytest.mark.parametrize(
    ("n_devices", "heads"),
    [pytest.param(2, ("knn", "mlp"), marks=pytest.mark.campaign), (DEVICES, ())],
)
def test_devices_do_not_matter(own, result, n_devices, heads):
    mesh = devices.make_mesh(jax.devices()[:n_devices])
    expected = dataclasses.replace(result, heads={name: result.heads[name] for name in heads})
    assert plain(measure(own, mesh=mesh, heads=heads)) == plain(expected)


@pytest.mark.slow
def test_finished_repetitions_are_kept(own, result, tmp_path, monkeypatch, caplog):
    work = str(tmp_path / "work")
    options = {"work_dir": work, "heads": ("knn", "mlp")}
    computed = []
    compute = apd_tasks._compute

    def counted(task, plan):
        if len(computed) == 1 and task.number == 1:
            computed.append("killed")
            raise KeyboardInterrupt
        computed.append(task.number)
        return compute(task, plan)

    monkeypatch.setattr(apd_tasks, "_compute", counted)
    with pytest.raises(KeyboardInterrupt):
        measure(own, **options)
    assert computed == [0, "killed"]
    assert plain(measure(own, **options)) == plain(result)
    assert computed == [0, "killed", 1, 2]
    # More repetitions go on; nothing is computed twice.
    more = measure(own, **options, repetitions=4)
    assert computed == [0, "killed", 1, 2, 3]
    assert [row[:3] for row in more.id_accuracies] == result.id_accuracies
    # One of another seed, a shortened one and a changed one are computed again, with a word.
    paths = [tmp_path / "work" / f"repetition_{number:04d}.json" for number in range(3)]
    other = sealed_files.read_json(str(paths[0]), schema_version=task_files.SCHEMA_VERSION)
    sealed_files.write_json(str(paths[0]), other | {"seed": 1})
    paths[1].write_text(paths[1].read_text()[:500])
    paths[2].write_text(paths[2].read_text().replace('"converged"', '"Converged"'))
    with caplog.at_level(std_logging.WARNING):
        assert plain(measure(own, **options)) == plain(result)
    assert computed[5:] == [0, 1, 2]
    assert [("damaged" in m, "other data" in m) for m in caplog.messages] == [
        (False, True),
        (True, False),
        (True, False),
    ]


def test_tasks_of_other_data_are_not_taken(own, tmp_path):
    work = str(tmp_path / "work")
    first = measure(own, work_dir=work, repetitions=1)
    assert plain(measure(own, work_dir=work, repetitions=1, seed=5)) != plain(first)
    relabelled = own.manifest.take(np.arange(len(own.manifest)))
    name = relabelled.column("medical_center")
    table = {n: relabelled.column(n) for n in relabelled.table.column_names}
    swapped = {"X": "Z", "Z": "X", "Y": "Y"}
    table["medical_center"] = np.array([swapped[n] for n in name])
    other = make_store(tmp_path, as_manifest(table), own.read(), name="other")
    assert plain(measure(other, work_dir=work, repetitions=1)) != plain(first)
    nudged = own.read()
    nudged[:, 0] += nudged[:, 1]
    same_rows = make_store(tmp_path, own.manifest, nudged, name="nudged")
    assert plain(measure(same_rows, work_dir=work, repetitions=1)) != plain(first)
    again = measure(own, work_dir=work, repetitions=1)
    assert plain(again) == plain(first)


@pytest.mark.slow
def test_a_budget_bounds_what_is_fitted_together(own, monkeypatch):
    sizes = []
    solve = fit._solve

    def watched(iterate, rows, problems, **kwargs):
        sizes.append(len(problems.penalty))
        return solve(iterate, rows, problems, **kwargs)

    monkeypatch.setattr(fit, "_solve", watched)
    all_at_once = measure(own, repetitions=1)
    # The splits' training rows together: four slides where a class is at home, two elsewhere.
    one = fit.problem_bytes((4 + 2 + 2 + 4) * 6, 12, 2)
    few = measure(own, repetitions=1, budget_bytes=10 * one)
    assert sizes == [45, 9, 9, 9, 9, 9]
    np.testing.assert_allclose(few.id_accuracies, all_at_once.id_accuracies, atol=0.03)


@pytest.mark.slow
def test_a_schedule_is_made_for_any_rows(own):
    found = measure(own, schedule=None, repetitions=1, centers=("X", "Z"))
    assert found.centers == ["X", "Z"]
    assert found.ood_centers == ["Y"]
    assert found.slides[0] == [[2, 2], [2, 2]]
    assert found.slides[-1] == [[4, 0], [0, 4]]
    assert found.cramers_v[-1] == 1
    # All three centres: none is left to be out of domain.
    found = measure(own, schedule=None, repetitions=1, centers=("X", "Y", "Z"))
    assert found.ood_centers == []
    assert np.isnan([found.apd_ood, found.nipd_ood]).all()
    assert found.direction_ood == {}
    assert [w for w in found.warnings if w.startswith("apd_ood: undefined")]


def test_fits_that_were_cut_short_are_counted(own, monkeypatch):
    monkeypatch.setitem(heads.LIMITS, "reference", (3, 1e-12))
    found = measure(own, repetitions=1)
    assert 0 < found.converged_share < 1
    [warning] = found.warnings
    share = f"{1 - found.converged_share:.0%}"
    assert warning.startswith(f"linear: {share} of the fits ended at max_iter = 3 before they met")
    assert "--stopping=converged" in warning


@pytest.mark.slow
def test_a_schedule_that_ends_before_one_has_no_nipd(own):
    schedule = dataclasses.replace(SCHEDULE, slides=SCHEDULE.slides[:2])
    found = measure(own, schedule=schedule, repetitions=1)
    assert np.isnan([found.nipd_id, found.nipd_ood]).all()
    assert np.isfinite(found.apd_id)
    assert any("nIPD is undefined; it is an integral" in text for text in found.warnings)


def test_undefined_numbers_are_null(own, tmp_path):
    found = measure(own, schedule=None, repetitions=1, centers=("X", "Y", "Z"))
    path = write_result(str(tmp_path), found)
    text = json.loads((tmp_path / "model" / "own" / "apd.json").read_text())
    assert text["apd_ood"] is None
    assert text["ood_accuracies"] == [[None]] * len(found.slides)
    assert np.isnan(read_result(path).ood_accuracies).all()


@pytest.mark.slow
def test_an_encoder_that_sees_nothing_has_no_nipd(tmp_path, own):
    # One feature that separates the slides but no class: without association it is at chance.
    x = np.zeros((len(own.manifest), 2), np.float32)
    x[:, 0] = 1
    x[::2, 1] = 1
    found = measure(make_store(tmp_path, own.manifest, x), repetitions=2)
    assert np.isnan([found.nipd_id, found.nipd_ood]).all()
    assert any("chance" in warning for warning in found.warnings)


def test_bad_input_is_refused(own, tmp_path):
    ones = make_store(tmp_path, own.manifest, np.ones((len(own.manifest), 3), np.float32))
    with pytest.raises(InputError, match="are equal; no classifier"):
        measure(ones)
    few = own.manifest.take(np.flatnonzero(own.manifest.column("slide_id") != "X-tumor-0"))
    few = few.take(np.flatnonzero(few.column("slide_id") != "X-tumor-1"))
    with pytest.raises(InputError, match="tumor at X: 5"):
        measure(own, rows=few)
    stroma = own.manifest.take(np.flatnonzero(own.manifest.column("biological_class") == "stroma"))
    with pytest.raises(InputError, match="two or more values of biological_class"):
        measure(own, rows=stroma, schedule=None)
    with pytest.raises(UsageError, match="heads: unknown name 'svm'"):
        measure(own, heads=("svm",))
    with pytest.raises(UsageError, match="stopping"):
        measure(own, stopping="soon")
    with pytest.raises(UsageError, match="budget_bytes"):
        measure(own, budget_bytes=0)
    with pytest.raises(UsageError, match="classes: they make a schedule"):
        measure(own, classes=("stroma", "tumor"))
    with pytest.raises(UsageError, match="repetitions: expected 1"):
        measure(own, repetitions=-1)
    x = own.read()
    x[2, 0] = np.nan  # which a store on disk would not have taken
    bad = dataclasses.replace(own, array=tensorstore.array(x))
    with pytest.raises(InputError, match="1 embeddings hold NaN.*X-stroma-0-2"):
        measure(bad)


def test_a_protocol_keeps_its_splits(own):
    for settings in (ApdSettings(centers=("X", "Y")), ApdSettings(schedule=SCHEDULE)):
        with pytest.raises(UsageError, match="protocol fixes its splits"):
            make_apd(stores.plan(own, dataset="camelyon", settings=Settings(apd=settings)))


def test_one_value_of_each_dataset_has_no_interval():
    found = apd.aggregate_drops([[-0.1], [-0.3]])
    np.testing.assert_allclose(found.mean, -0.2, rtol=1e-12)
    assert np.isnan([found.ci, found.ci_textbook]).all()


def test_aggregates(own, tmp_path):
    first = measure(own, repetitions=2)
    second = dataclasses.replace(measure(own, repetitions=2, seed=3), dataset="second")
    found = make_apd_aggregate([first, second])
    assert found.datasets == ["own", "second"]
    np.testing.assert_allclose(found.apd_id, (first.apd_id + second.apd_id) / 2)
    assert (found.df, found.df_textbook) == (4, 3)
    assert found.ci_id_textbook > found.ci_id > 0
    path = write_result(str(tmp_path), found)
    assert path == result_path(str(tmp_path), found) == f"{tmp_path}/model/apd_aggregate.json"
    assert read_result(path) == found
    nowhere = dataclasses.replace(
        second, apd_ood=np.nan, ood_accuracies=[[np.nan] * 2 for _ in second.ood_accuracies]
    )
    found = make_apd_aggregate([first, nowhere])
    assert np.isnan([found.apd_ood, found.ci_ood]).all()
    assert np.isfinite([found.apd_id, found.ci_id]).all()
    assert "second" in found.warnings[0]
    with pytest.raises(InputError, match="each dataset once"):
        make_apd_aggregate([first, first])


# --- the reference's own run


@pytest.fixture(scope="module")
def golden(shared, tmp_path_factory):
    """``golden(name)``: (ours, the reference's), three repetitions from the same embeddings."""
    folder = shared / "golden"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: no reference numbers to compare with")
    metadata = shared / "pathorob" / "metadata"

    @functools.cache
    def measure_golden(name):
        protocol = protocols.PROTOCOLS[name].apd
        rows = read_manifest(str(metadata / protocol.in_domain.metadata)).unique_patches()
        with np.load(folder / f"embeddings_{name}.npz") as arrays:
            keys = zip(arrays["slide_id"], arrays["patch_id"], strict=True)
            at = {f"{slide}-{patch}": i for i, (slide, patch) in enumerate(keys)}
            x = arrays["features"].astype(np.float32)[[at[k] for k in rows.keys.to_pylist()]]
        evaluation = stores.plan(
            make_store(tmp_path_factory.mktemp("golden"), rows, x, name=name),
            model="model",
            dataset=name,
            metadata_dir=str(metadata),
            settings=Settings(apd=ApdSettings(repetitions=3)),
            mesh=one_device(),
        )
        ours = make_apd(evaluation).record
        return ours, json.loads((folder / f"apd_{name}.json").read_text())

    return measure_golden


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.campaign] * (name != "tcga")) for name in DATASETS],
)
def test_end_to_end_as_the_reference(golden, name):
    ours, theirs = golden(name)
    assert ours.warnings == []
    tree = pathorob_layout.list_files([ours])
    raw, summary = (
        json.loads(tree[f"apd/model/{name}_{part}.json"]) for part in ("raw", "summary")
    )
    assert (list(raw), list(summary)) == (list(theirs["raw"]), list(theirs["summary"]))
    for domain in DOMAINS:
        found = np.array(raw[f"{domain.upper()}_test_accuracies"])
        expected = np.array(theirs["raw"][f"{domain.upper()}_test_accuracies"])
        # Asked are 0.01 of the means over repetitions. Found: all equal on Camelyon and TCGA; on
        # Tolkach a few rows where float32 sums in another order.
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)
        np.testing.assert_allclose(
            summary[f"apd_{domain}"],
            theirs["summary"][f"apd_{domain}"],
            rtol=0,
            atol=5e-4,
        )


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.campaign
def test_aggregate_as_the_reference(golden, shared):
    found = make_apd_aggregate([golden(name)[0] for name in DATASETS])
    theirs = json.loads((shared / "golden" / "apd_aggregated.json").read_text())
    assert found.datasets == theirs["aggregation_datasets"]
    for domain in DOMAINS:
        for key in (f"apd_{domain}", f"ci_{domain}"):
            np.testing.assert_allclose(getattr(found, key), theirs[key], rtol=0, atol=5e-4)


@pytest.mark.slow
@pytest.mark.golden
def test_a_protocol_names_what_is_missing(shared, own, tmp_path):
    metadata = shared / "pathorob" / "metadata"
    (tmp_path / "tolkach_esca.csv").write_bytes((metadata / "tolkach_esca.csv").read_bytes())

    def measure_here(folder):
        options = {"dataset": "tolkach_esca", "mesh": one_device(), "metadata_dir": folder}
        return make_apd(stores.plan(own, **options))

    with pytest.raises(FileNotFoundError, match=r"tolkach_splits.json.*pathorob/resources"):
        measure_here(str(tmp_path))
    (tmp_path / "tolkach_splits.json").write_text('{"test": {"VALSET2_WNS": [["a"]]}}')
    with pytest.raises(InputError, match="lists of test cases"):
        measure_here(str(tmp_path))
    (tmp_path / "tolkach_splits.json").write_bytes((metadata / "tolkach_splits.json").read_bytes())
    with pytest.raises(InputError, match="lacks"):
        measure_here(str(tmp_path))
    with pytest.raises(UsageError, match="metadata_dir"):
        measure_here(None)
    assert apd.OTHER_HEADS == ("knn", "mlp", "dann")
