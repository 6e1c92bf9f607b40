"""Slide-level prediction of a store: planted biases, protocols, records and kept tasks."""

import dataclasses
import logging as std_logging
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import stores
from scipy.stats import norm

import pathorob_jax as pr
from pathorob_jax.core import devices
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.plain import as_plain
from pathorob_jax.data import protocols
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.bags import find_bags
from pathorob_jax.data.manifest import as_manifest, read_manifest
from pathorob_jax.data.training_splits import draw_repetitions
from pathorob_jax.evaluation import apd_tasks, slide_prediction
from pathorob_jax.evaluation.schedule_plan import NoScheduleError
from pathorob_jax.evaluation.schedule_plan import _read_held_out as read_held_out
from pathorob_jax.evaluation.settings import ApdSettings, Settings, SlideSettings
from pathorob_jax.evaluation.slide_prediction import make_slide_prediction
from pathorob_jax.results.result_files import read_result, write_result

TWO_SPLITS = AssociationSchedule(
    classes=("normal", "tumor"),
    centers=("X", "Y"),
    slides=(((10, 10), (10, 10)), ((0, 20), (20, 0))),
    rows_per_slide=3,
)
SLIDES = 30


def make_case(*, bio=1.0, center=1.5, seed=0, slides=SLIDES, centers="XYZ"):
    """Bags with a feature of the class and one of the centre, both of spread 1 between slides.

    In the second split all normal slides are at Y and all tumour at X: the centre's feature of X
    points the tumour's way.
    """
    rng = np.random.default_rng(seed)
    cells = [(c, m, s) for c in range(2) for m in range(len(centers)) for s in range(slides)]
    table = {"slide_id": [], "patch_id": [], "biological_class": [], "medical_center": []}
    x = []
    for c, m, s in cells:
        sign = {"X": 1, "Y": -1, "Z": 0}[centers[m]]
        slide = np.array([bio * (2 * c - 1), center * sign]) + rng.normal(size=2)
        for row, apart in enumerate((0.5, -0.5)):  # the mean of the bag is that of the slide
            table["slide_id"].append(f"{centers[m]}{c}-{s}")
            table["patch_id"].append(str(row))
            table["biological_class"].append(("normal", "tumor")[c])
            table["medical_center"].append(centers[m])
            x.append(slide + apart)
    return np.array(x, np.float32), as_manifest(table)


def evaluate(x, rows, folder, *, presets=("mean",), epochs=None, work_dir=None, mesh=None, **apd):
    chosen = {"repetitions": 20, "schedule": TWO_SPLITS, "stopping": "converged"} | apd
    evaluation = stores.plan(
        stores.make_store(folder, x, rows, chunk_rows=len(rows)),
        manifest=rows,
        settings=Settings(
            apd=ApdSettings(**chosen),
            slide_prediction=SlideSettings(presets=presets, epochs=epochs),
        ),
        work_dir=work_dir,
        mesh=mesh or devices.make_mesh(jax.devices()[:1]),
    )
    return make_slide_prediction(evaluation).record


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Many slides, so that a classifier finds the best direction."""
    many = dataclasses.replace(TWO_SPLITS, slides=(((90, 90), (90, 90)), ((0, 180), (180, 0))))
    store = tmp_path_factory.mktemp("slides") / "store"
    return evaluate(*make_case(slides=300), store, schedule=many, repetitions=6)


@pytest.mark.slow
def test_a_planted_bias_costs_what_it_must(planted):
    """With class and centre the same in training, the best direction is their sum: (a, b)."""
    a, b = 1.0, 1.5
    spread = np.hypot(a, b)
    mean = planted.presets["mean"]
    aligned = norm.cdf((2 * a**2 + b**2 * np.array([0, 0, 2, -2])) / (np.sqrt(2) * spread)).mean()
    np.testing.assert_allclose(mean.mean("auc_id"), [norm.cdf(np.sqrt(2)), aligned], atol=0.04)
    right = norm.cdf((a**2 + b**2 * np.array([1, -1])) / spread).mean()
    found = mean.mean("balanced_accuracy_id")
    np.testing.assert_allclose(found, [norm.cdf(1), right], atol=0.04)
    np.testing.assert_allclose(planted.drop_id, right / norm.cdf(1) - 1, atol=0.05)
    assert planted.drop_id_ci95[0] < right / norm.cdf(1) - 1 < planted.drop_id_ci95[1]
    # Centre Z has no feature of its own: the wrong direction alone costs there.
    beside = norm.cdf(2 * a**2 / (np.sqrt(2) * spread))
    np.testing.assert_allclose(mean.mean("auc_ood")[1], beside, atol=0.05)


def test_errors_go_the_way_of_the_centre(planted):
    errors = planted.presets["mean"].directional_errors
    assert {m: list(by_class) for m, by_class in errors.items()} == {
        "X": ["normal"],
        "Y": ["tumor"],
    }
    spread = np.hypot(1, 1.5)
    for center, label, called in (("X", "normal", "tumor"), ("Y", "tumor", "normal")):
        found = errors[center][label]
        assert found.stood_for == [called]
        expected = [norm.cdf(-1), norm.cdf((1.5**2 - 1) / spread)]
        np.testing.assert_allclose(found.share, expected, atol=0.06)
        np.testing.assert_allclose(found.pull, np.array(found.share) - found.share[0])


@pytest.mark.slow
def test_the_order_of_planted_models_is_recovered(planted, tmp_path):
    drops = [
        evaluate(*make_case(center=center), tmp_path / str(center), repetitions=5).drop_id
        for center in (0.0, 0.6, 3.0)
    ]
    assert drops[0] > -0.06
    assert drops[0] > drops[1] > planted.drop_id > drops[2]
    assert drops[2] < -0.35


def test_a_record_says_what_it_rests_on(planted):
    assert (planted.preset, planted.value) == ("mean", planted.presets["mean"].drop_id)
    assert planted.cramers_v == [0.0, 1.0]
    assert (planted.centers, planted.ood_centers) == (["X", "Y"], ["Z"])
    assert (planted.n_bags, planted.n_training_bags) == (6 * 300, 360)
    assert (planted.n_id_test_bags, planted.n_ood_test_bags) == (4 * 119, 600)
    assert np.shape(planted.presets["mean"].auc_id) == (2, 6)
    assert planted.presets["mean"].auc_ood_by_center["Z"] == planted.presets["mean"].auc_ood
    assert planted.support == 1.0
    assert planted.warnings == []
    assert "slide-level prediction, mean: AUC 0.9" in planted.describe()


def test_a_record_survives_its_file(planted, tmp_path):
    path = write_result(str(tmp_path), planted)
    assert path.endswith("slide_prediction.json")
    blank = {"provenance": {}}
    read = read_result(path)
    assert dataclasses.replace(read, **blank) == dataclasses.replace(planted, **blank)


@pytest.mark.slow
def test_tasks_are_kept_and_shared_by_nothing_else(tmp_path, monkeypatch, caplog):
    x, rows = make_case(centers="XY", slides=24)
    work = str(tmp_path / "tasks")
    first = evaluate(x, rows, tmp_path / "a", work_dir=work, repetitions=3)
    assert len(list((tmp_path / "tasks" / "mean").glob("repetition_*.json"))) == 3
    (tmp_path / "tasks" / "mean" / "repetition_0001.json").write_text("{}")
    calls = []
    run = apd_tasks.run_repetitions

    def count(*args, compute, **kwargs):
        return run(*args, compute=lambda task: calls.append(task.number) or compute(task), **kwargs)

    monkeypatch.setattr("pathorob_jax.evaluation.slide_prediction_tasks.run_repetitions", count)
    with caplog.at_level(std_logging.WARNING):
        again = evaluate(x, rows, tmp_path / "b", work_dir=work, repetitions=3)
    assert calls == [1]
    assert "damaged" in caplog.text
    assert as_plain(again.presets) == as_plain(first.presets)
    evaluate(x + 1, rows, tmp_path / "c", work_dir=work, repetitions=3)
    assert calls == [1, 0, 1, 2]


def test_a_class_that_centres_lack_is_null_with_the_reason(tmp_path):
    x, rows = make_case(slides=24)
    kept = (rows.column("medical_center") != "Z") | (rows.column("biological_class") == "tumor")
    found = evaluate(x[kept], rows.take(np.flatnonzero(kept)), tmp_path / "s", repetitions=2)
    mean = found.presets["mean"]
    assert np.isnan(mean.auc_ood).all()
    assert np.isnan(mean.auc_ood_by_center["Z"]).all()
    assert np.isfinite(mean.balanced_accuracy_ood).all()
    assert np.isnan([mean.auc_drop_ood, mean.auc_nipd_ood]).all()
    assert "the AUC at Z is undefined; it has no slide of normal" in " ".join(found.warnings)
    plain = read_result(write_result(str(tmp_path), found))
    assert np.isnan(plain.presets["mean"].auc_ood).all()


def test_without_a_schedule_the_part_is_null_with_the_reason(tmp_path):
    x, rows = make_case(slides=3, centers="XY")
    found = evaluate(x, rows, tmp_path / "s", schedule=None)
    assert (found.cramers_v, found.presets) == (None, None)
    assert np.isnan(found.value)
    assert "no schedule can be made" in found.warnings[0]
    assert "expected 4 slides with 1 or more patches" in found.warnings[0]
    assert "without a schedule" in found.describe()
    read = read_result(write_result(str(tmp_path), found))
    assert (read.cramers_v, read.presets) == (None, None)


def test_a_schedule_that_the_bags_do_not_allow_is_null_with_the_reason(tmp_path):
    found = evaluate(*make_case(slides=6), tmp_path / "s")
    assert (found.cramers_v, found.presets) == (None, None)
    assert "no schedule can be made" in found.warnings[0]
    assert "the schedule needs 22 slides" in found.warnings[0]
    with pytest.raises(UsageError, match="repetitions: expected 1 to"):
        evaluate(*make_case(slides=6), tmp_path / "t", repetitions=-1)


def test_bags_that_a_protocol_cannot_draw_are_an_error():
    def draw(rows):
        raise InputError("camelyon.csv: too few slides.")

    bagged = SimpleNamespace(
        plan=SimpleNamespace(draw_repetitions=draw), inside=SimpleNamespace(rows=None)
    )
    evaluation = stores.plan(None, dataset="camelyon")
    with pytest.raises(InputError, match=r"^camelyon.csv: too few slides.$") as caught:
        slide_prediction._draw(evaluation, bagged)
    assert not isinstance(caught.value, NoScheduleError)


def test_what_the_rows_and_the_store_do_not_tell_is_said():
    _, rows = make_case(slides=1)
    schedule = dataclasses.replace(TWO_SPLITS, slides=(((2, 2), (2, 2)), ((1, 3), (3, 1))))
    domain = SimpleNamespace(rows=rows)
    bagged = SimpleNamespace(
        plan=SimpleNamespace(schedule=schedule, in_domain=domain), outside=None, n_classes=2
    )
    robustified = SimpleNamespace(info={"settings": {"parent": "../m/d", "method": "combat"}})
    texts = slide_prediction._warn(stores.plan(robustified), {}, bagged)
    assert [text.removeprefix("slide_prediction: ").split(";")[0] for text in texts] == [
        "nothing is known out of domain",
        "nIPD is undefined",
        "combat was fitted once and is not fitted again in the splits",
    ]


@pytest.mark.slow
def test_a_schedule_is_made_of_bags(tmp_path):
    """Slides of one patch each are enough for bags, though not for a drop of patches."""
    x, rows = make_case(slides=6, centers="XY")
    found = evaluate(x, rows, tmp_path / "s", schedule=None, repetitions=2, test_slides=1)
    assert found.cramers_v[0] == 0
    assert found.cramers_v[-1] == 1
    assert found.n_training_bags == 8  # two a cell, four in the end, one validates, one tests


def test_wrong_presets_are_one_message(tmp_path):
    x, rows = make_case(slides=24, centers="XY")
    for presets, message in ((("maen",), "Did you mean 'mean'"), (("mean", "mean"), "each once")):
        with pytest.raises(UsageError, match=message):
            evaluate(x, rows, tmp_path / presets[-1], presets=presets)


def test_epochs_need_a_network(tmp_path):
    x, rows = make_case(slides=24, centers="XY")
    with pytest.raises(UsageError, match="epochs: mean has none"):
        evaluate(x, rows, tmp_path / "s", epochs=3)


@pytest.mark.slow
def test_the_function_of_arrays(tmp_path):
    x, rows = make_case(slides=24)
    found = pr.slide_prediction(
        x,
        biology=rows.column("biological_class"),
        center=rows.column("medical_center"),
        slide=rows.column("slide_id"),
        presets=("mean",),
        repetitions=2,
        schedule=TWO_SPLITS,
    )
    expected = evaluate(x, rows, tmp_path / "s", repetitions=2, stopping="reference")
    assert found.presets["mean"].auc_id == expected.presets["mean"].auc_id


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n_bags", "n_training", "n_test"),
    [("camelyon", 68, 28, 8), ("tcga", 192, 32, 48), ("tolkach_esca", 108, 36, None)],
)
def test_protocols_draw_bags(shared, name, n_bags, n_training, n_test):
    protocol = protocols.PROTOCOLS[name].apd
    folder = shared / "pathorob" / "metadata"
    rows = read_manifest(str(folder / protocol.in_domain.metadata))
    bags = find_bags(rows.without_subsets(protocol.in_domain.exclude_subsets)).rows
    assert len(bags) == n_bags
    schedule = dataclasses.replace(protocol.schedule, rows_per_slide=1)
    assert schedule.n_training_rows == n_training
    lists = None
    if protocol.case_splits is not None:
        lists = read_held_out(str(folder / protocol.case_splits), protocol)
    drawn = list(draw_repetitions(bags, schedule, seed=1000, repetitions=3, held_out=lists))
    for task in drawn:
        test = set(task.test())
        assert n_test in (None, len(test))
        slides = bags.column("slide_id")
        for split in range(schedule.n_splits):
            training = task.training(split)
            assert len(set(training)) == n_training
            held = set(task.validation(split))
            assert not (set(training) | held) & test
            # The patches of a case are never on both sides, whatever their class.
            assert not set(slides[training]) & set(slides[list(test)])
            labels = bags.column("biological_class")[list(held)]
            assert set(labels) == set(schedule.classes)
