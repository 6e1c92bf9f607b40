"""Slides of a table: with splits of its own or none, without added centres, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
import stores
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from pathorob_jax.core import devices
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.data.slide_table import read_slide_table
from pathorob_jax.evaluation import slide_table
from pathorob_jax.evaluation.settings import ApdSettings, Settings, SlideSettings
from pathorob_jax.evaluation.slide_prediction import make_slide_prediction
from pathorob_jax.results.result_files import read_result, write_result

N = 72
CENTERS = np.array(list("ABC"))[np.arange(N) % 3]
LABELS = np.array(["low", "high"])[np.arange(N) // 3 % 2]
SPLITS = np.array(["train", "train", "train", "validation", "test", "test"])[np.arange(N) // 6 % 6]
SLIDES = [f"s{i}" for i in range(N)]


@pytest.fixture(scope="module")
def case():
    """Slides of 1 to 4 patches; a feature of the label, which centre C shows the other way."""
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 5, N)
    sign = np.where(LABELS == "high", 1, -1) * np.where(CENTERS == "C", -1.5, 1)
    means = rng.normal(size=(N, 4)) + sign[:, None] * np.array([1.5, 0, 0, 0])
    slide = np.repeat(np.arange(N), sizes)
    x = means[slide] + 0.1 * rng.normal(size=(len(slide), 4))
    rows = as_manifest(
        {
            "slide_id": [SLIDES[i] for i in slide],
            "patch_id": [str(i) for i in range(len(slide))],
            "biological_class": ["tissue", "other tissue"] * (len(slide) // 2)
            + ["tissue"] * (len(slide) % 2),
            "medical_center": CENTERS[slide].tolist(),
        }
    )
    return x.astype(np.float32), rows


def run(
    case,
    folder,
    table,
    *,
    presets=("mean",),
    work_dir=None,
    added=(),
    draws=200,
    group="slide_id",
    **apd,
):
    x, rows = case
    evaluation = stores.plan(
        stores.make_store(folder, x, rows, chunk_rows=len(rows)),
        manifest=rows,
        settings=Settings(
            draws=draws,
            group_column=group,
            apd=ApdSettings(**({"stopping": "converged"} | apd)),
            slide_prediction=SlideSettings(
                presets=presets, table=read_slide_table(table), added_centers=added
            ),
        ),
        work_dir=work_dir,
        mesh=devices.make_mesh(jax.devices()[:1]),
    )
    return make_slide_prediction(evaluation).record


def make_table(**changes):
    columns = {"slide_id": SLIDES, "label": LABELS.tolist(), "split": SPLITS.tolist()}
    return {k: v for k, v in (columns | changes).items() if v is not None}


@pytest.mark.slow
def test_given_splits_equal_scikit_learn(case, tmp_path):
    found = run(case, tmp_path / "s", make_table())
    x, rows = case
    means = np.stack([x[rows.column("slide_id") == s].mean(axis=0) for s in SLIDES]).astype(float)
    train, test = SPLITS == "train", SPLITS == "test"
    got = found.table.presets["mean"].all
    areas = [
        roc_auc_score(
            LABELS[test] == "high",
            LogisticRegression(C=c, tol=1e-9, solver="newton-cholesky")
            .fit(means[train], LABELS[train] == "high")
            .decision_function(means[test]),
        )
        for c in 10 ** np.linspace(-8, 4, 15)
    ]
    assert np.isclose(got.values["auc"], areas, atol=1e-9).any()
    low, high = got.intervals["auc"]
    assert low < got.values["auc"] < high
    table = found.table
    assert (table.n_training, table.n_validation, table.n_test) == (36, 12, 24)
    assert (table.measure, table.classes, table.centers) == ("auc", ["high", "low"], [*"ABC"])
    assert found.presets is None
    assert "the table of slides names its splits" in found.warnings[0]
    assert "24 test slides, mean: auc 0." in found.describe()


def test_the_interval_is_the_jackknife_of_slides(case, tmp_path):
    """Against areas with one test slide left out, by hand."""
    from scipy import stats

    from pathorob_jax.kernels.bootstrap.draws import plan_jackknife
    from pathorob_jax.metrics import slide_scores

    rng = np.random.default_rng(1)
    label = np.arange(30) % 2
    logits = rng.normal(size=(2, 30, 1)) + label[:, None]
    measure = slide_scores.measure_classes(logits, label, 2)
    jackknife = plan_jackknife(30, draws=20_000, seed=0)
    found = slide_scores.score(measure, jackknife, np.arange(30))
    areas = [np.mean([roc_auc_score(label, one[:, 0]) for one in logits])]
    areas += [
        np.mean([roc_auc_score(np.delete(label, i), np.delete(one[:, 0], i)) for one in logits])
        for i in range(30)
    ]
    np.testing.assert_allclose(found.values["auc"], areas[0], rtol=1e-12)
    without = np.array(areas[1:])
    half = stats.t.ppf(0.975, 29) * np.sqrt(29 / 30 * ((without - without.mean()) ** 2).sum())
    low, high = slide_scores.find_intervals(found, jackknife)["auc"]
    np.testing.assert_allclose([low, high], [areas[0] - half, areas[0] + half], atol=0.02)


def test_what_added_centres_cost_is_seen(case, tmp_path):
    """Centre C shows the label the other way: tests of A and B lose by its training slides."""
    split = np.where((SPLITS == "test") & (CENTERS == "C"), "train", SPLITS)
    found = run(case, tmp_path / "s", make_table(split=split.tolist()), added=("C",))
    preset = found.table.presets["mean"]
    assert preset.all.values["auc"] < preset.without_added.values["auc"] - 0.02
    assert preset.without_added.values["auc"] > 0.9
    assert preset.without_added.n_training == 24
    assert preset.added.n_training == preset.all.n_training - 24
    for name in ("auc", "balanced_accuracy"):
        gap = preset.all.values[name] - preset.without_added.values[name]
        assert preset.added.values[name] == gap
        low, high = preset.added.intervals[name]
        assert low <= gap <= high
    assert found.table.added_centers == ["C"]


def test_a_record_with_a_table_survives_its_file(case, tmp_path):
    found = run(case, tmp_path / "s", make_table(), added=("C",))
    read = read_result(write_result(str(tmp_path), found))
    assert read.table == found.table
    assert dataclasses.replace(read, table=None).warnings == found.warnings


def test_trainings_are_kept(case, tmp_path, monkeypatch):
    work = str(tmp_path / "tasks")
    first = run(case, tmp_path / "a", make_table(), work_dir=work)
    monkeypatch.setattr("pathorob_jax.metrics.slide_heads.call_mean", None)
    again = run(case, tmp_path / "b", make_table(), work_dir=work)
    assert again.table == first.table
    with pytest.raises(TypeError):
        run(case, tmp_path / "c", make_table(), work_dir=work, seed=5)


@pytest.mark.campaign
def test_without_splits_the_labels_take_the_schedule(case, tmp_path):
    table = make_table(split=None, medical_center=CENTERS.tolist())
    found = run(case, tmp_path / "s", table, repetitions=2)
    assert found.table is None
    assert found.classes == ["high", "low"]
    assert found.cramers_v[0] == 0.0
    assert found.n_bags == N
    assert found.presets["mean"].directional_errors


def test_slides_of_a_case_are_left_out_together(case, tmp_path):
    cases = [f"case{i // 6}-{SPLITS[i]}-{i % 6 // 2}" for i in range(N)]
    alone = run(case, tmp_path / "a", make_table(case=cases)).table.presets["mean"].all
    found = (
        run(case, tmp_path / "b", make_table(case=cases), group="case").table.presets["mean"].all
    )
    assert found.values == alone.values
    assert found.intervals["auc"] != alone.intervals["auc"]
    assert found.intervals["auc"][0] < found.values["auc"] < found.intervals["auc"][1]
    both = [f"case{i % 7}" for i in range(N)]
    with pytest.raises(InputError, match="slides of case 'case4' lie in two splits, train and"):
        run(case, tmp_path / "c", make_table(case=both), group="case")


def test_draws_of_none_give_no_intervals(case, tmp_path):
    found = run(case, tmp_path / "s", make_table(), draws=0)
    assert found.table.presets["mean"].all.intervals == {"auc": None, "balanced_accuracy": None}


@pytest.mark.slow
def test_what_the_slides_lack_is_said(case, tmp_path):
    split = np.where(SPLITS == "validation", "train", SPLITS)
    fewer = [i for i in range(N) if SPLITS[i] != "test" or LABELS[i] == "low"]
    table = {k: [v[i] for i in fewer] for k, v in make_table(split=split.tolist()).items()}
    found = run(case, tmp_path / "s", table)
    text = " ".join(found.warnings)
    assert "has no validation slides" in text
    assert "the auc is undefined; the test slides lack every class" in text
    assert "12 slides of the store are not in slide table" in text
    assert np.isnan(found.table.presets["mean"].all.values["auc"])


@pytest.mark.parametrize(
    ("table", "settings", "error", "message"),
    [
        ({}, {"added": ("D",)}, UsageError, r"out of \['A', 'B', 'C'\], found \['D'\]"),
        ({}, {"added": ("A", "B", "C")}, InputError, "no train slide is left; name fewer"),
        (
            {"label": np.where(CENTERS == "A", LABELS, "low").tolist()},
            {"added": ("A",)},
            InputError,
            "two or more classes among the training slides outside A, found",
        ),
        (
            {"label": None, "time": [1.0] * N, "event": [1] * N},
            {},
            UsageError,
            "mean predicts classes alone; for survival give networks",
        ),
        (
            {"split": np.where(SPLITS == "validation", "train", SPLITS).tolist()},
            {"presets": ("xmil",)},
            InputError,
            "xmil chooses its epoch on validation slides, and the table has none",
        ),
        ({"slide_id": [*SLIDES[:-1], "gone"]}, {}, InputError, "1 of 72 slides have no patch"),
    ],
)
def test_what_cannot_be_is_one_message(case, tmp_path, table, settings, error, message):
    with pytest.raises(error, match=message):
        run(case, tmp_path / "s", make_table(**table), **settings)


@pytest.mark.slow
def test_added_centres_need_splits(case, tmp_path):
    for name, table in (("a", None), ("b", read_slide_table(make_table(split=None)))):
        x, rows = case
        chosen = SlideSettings(presets=("mean",), table=table, added_centers=("A",))
        evaluation = stores.plan(
            stores.make_store(tmp_path / name, x, rows),
            manifest=rows,
            settings=Settings(slide_prediction=chosen),
        )
        with pytest.raises(UsageError, match="added_centers: they are of a table of slides"):
            make_slide_prediction(evaluation)


def test_groups_of_the_patches_serve_where_the_table_has_none(case, tmp_path):
    """A column of the rows that tells which slides are one case, and which split has them."""
    x, rows = case
    slide = [int(name.removeprefix("s")) for name in rows.column("slide_id")]
    apart = [f"{SPLITS[i]} {i % 9}" for i in slide]
    mixed = [f"case {i % 9}" for i in slide]
    columns = rows.table.to_pydict()
    with pytest.raises(InputError, match="slides of case 'case 0' lie in two splits, train and"):
        run((x, as_manifest(columns | {"case": mixed})), tmp_path, make_table(), group="case")
    evaluation = stores.plan(
        None,
        manifest=as_manifest(columns | {"case": apart}),
        settings=Settings(group_column="case"),
    )
    found = slide_table._find_groups(evaluation, read_slide_table(make_table()))
    assert found.tolist() == [f"{split} {i % 9}" for i, split in enumerate(SPLITS)]


def test_a_table_is_not_for_the_rows_of_a_protocol():
    chosen = Settings(slide_prediction=SlideSettings(table="slides.csv"))
    evaluation = stores.plan(None, dataset="tcga", settings=chosen)
    with pytest.raises(UsageError, match=r"slide_table: dataset tcga has a protocol .* --dataset"):
        make_slide_prediction(evaluation)
