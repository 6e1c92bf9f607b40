"""The performance drop of robustified stores: fitted again on the training rows of every split."""

import dataclasses
import json
import logging as std_logging
import shutil

import jax
import numpy as np
import pytest
import stores
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from pathorob_jax.core import devices
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import training_splits
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.manifest import CENTER, CLASS, as_manifest
from pathorob_jax.data.protocols import ApdProtocol
from pathorob_jax.embeddings import store_files
from pathorob_jax.embeddings.store import open_store
from pathorob_jax.evaluation import apd_refit, apd_tasks
from pathorob_jax.evaluation.apd import make_apd
from pathorob_jax.evaluation.settings import ApdSettings, Settings
from pathorob_jax.metrics import apd
from pathorob_jax.report import csv_tables
from pathorob_jax.report.page_apd import build_drops, build_refits
from pathorob_jax.report.table_cells import format_percent
from pathorob_jax.results.flatten import flatten
from pathorob_jax.results.result_files import read_result, write_result
from pathorob_jax.robustify import run
from pathorob_jax.robustify.robustifier import fit_robustifier

# V = 0, 6/7 and 1, as in PathoROB's Camelyon.
SCHEDULE = AssociationSchedule(
    classes=("normal", "tumor"),
    centers=("X", "Y"),
    slides=(((7, 7), (7, 7)), ((13, 1), (1, 13)), ((14, 0), (0, 14))),
    rows_per_slide=4,
)
SLIDES, DIM = 26, 24


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Root of stores; ``model/own`` has a shift and a scale of every centre, and slides."""
    root = tmp_path_factory.mktemp("refit") / "embeddings"
    rng = np.random.default_rng(9)
    bio, center, slide, row = (
        a.ravel() for a in np.indices((2, 3, SLIDES, SCHEDULE.rows_per_slide))
    )
    rows = as_manifest(
        {
            "slide_id": [f"{b}-{c}-{s}" for b, c, s in zip(bio, center, slide, strict=True)],
            "patch_id": row,
            CLASS: np.array(SCHEDULE.classes)[bio],
            CENTER: np.array(["X", "Y", "Z"])[center],
        }
    )
    x = rng.normal(size=(len(bio), DIM)) * rng.uniform(0.7, 1.4, (3, DIM))[center]
    x += 0.6 * rng.normal(size=(2, DIM))[bio] + 0.35 * rng.normal(size=(3, DIM))[center]
    x += 0.1 * rng.normal(size=(2 * 3 * SLIDES, DIM))[(bio * 3 + center) * SLIDES + slide]
    stores.make_store(root / "model" / "own", x.astype(np.float32), rows)
    return root


def robustify(root, method, *, parent="model", **options):
    found = [(str(root / parent / "own"), parent, "own")]
    [store] = run.robustify(found, root=str(root), method=method, **options)
    return store


def measure(store, *, mesh=None, work_dir=None, columns=None, **settings):
    chosen = {"repetitions": 3, "schedule": SCHEDULE} | settings
    evaluation = stores.plan(
        store,
        model="model",
        dataset="own",
        settings=Settings(apd=ApdSettings(**chosen), columns=columns),
        work_dir=work_dir,
        mesh=mesh or devices.make_mesh(jax.devices()[:1]),
    )
    return make_apd(evaluation).record


def plain(record):
    return dataclasses.asdict(dataclasses.replace(record, provenance={}))


@pytest.fixture(scope="module")
def parent(root):
    return open_store(str(root / "model" / "own"))


@pytest.fixture(scope="module")
def raw(parent):
    return measure(parent)


@pytest.fixture(scope="module")
def combat(root):
    return measure(robustify(root, "combat"))


@pytest.fixture(scope="module")
def adjusted(root):
    return measure(robustify(root, "class_adjusted_means"))


def by_hand(parent, method):
    """Accuracies of the first repetition by split, of both domains, with scikit-learn."""
    rows, x = parent.manifest, parent.read()
    is_inside = rows.column(CENTER) != "Z"
    inside, outside = np.flatnonzero(is_inside), np.flatnonzero(~is_inside)
    tumor = (rows.column(CLASS) == "tumor").astype(int)
    [task] = training_splits.draw_repetitions(
        rows.take(inside), SCHEDULE, seed=ApdProtocol.seed, repetitions=1
    )
    out = {"id": [], "ood": []}
    for split in range(2):
        training, validation = inside[task.training(split)], inside[task.validation(split)]
        fitted = fit_robustifier(x[training], rows.take(training), method=method)
        y = fitted.transform(x, rows.column(CENTER), unseen="identity").astype(np.float64)
        probes = [
            LogisticRegression(C=c, max_iter=100).fit(y[training], tumor[training])
            for c in ApdProtocol.c_grid
        ]
        scores = [
            balanced_accuracy_score(tumor[validation], probe.predict(y[validation]))
            for probe in probes
        ]
        best = probes[int(np.argmax(scores))]
        for side, tested in (("id", inside[task.test()]), ("ood", outside)):
            called = best.predict(y[tested])
            out[side].append(balanced_accuracy_score(tumor[tested], called))
    return out


@pytest.mark.campaign
def test_it_is_a_fit_in_every_split(parent, combat):
    expected = by_hand(parent, "combat")
    for side in ("id", "ood"):
        found = np.array(getattr(combat, f"{side}_accuracies"))[:2, 0]
        np.testing.assert_allclose(found, expected[side], atol=0.005)
        as_it_is = np.array(getattr(combat.fit_all, f"{side}_accuracies"))[:2, 0]
        assert not np.allclose(found, as_it_is, atol=0.005)


@pytest.mark.slow
def test_what_the_fit_has_not_seen_decides(raw, combat, adjusted):
    """Associated training rows: ComBat takes out the class, class-adjusted means do not."""
    means = {"raw": raw, "combat": combat, "adjusted": adjusted}
    inside = {name: record.id_accuracy_means for name, record in means.items()}
    assert inside["combat"][1] < inside["raw"][1] - 0.03
    assert inside["adjusted"][1] > inside["raw"][1] + 0.03
    # Fitted on all rows, which are balanced, ComBat looks as good.
    assert combat.fit_all.id_accuracy_means[1] > inside["raw"][1] + 0.03


def test_a_split_without_a_fit_is_null_and_counted(raw, combat, adjusted, tmp_path):
    for record in (combat, adjusted):
        assert np.isnan(record.id_accuracies[2]).all()
        assert np.isnan(record.ood_accuracies[2]).all()
        assert np.isnan([*record.chosen_c[2], *record.validation_accuracies[2]]).all()
        assert record.converged[2] == [None] * 3
        assert record.splits_left == [0, 1]
        accuracies = np.array(record.id_accuracies)
        drop = (accuracies[1] / accuracies[0] - 1).mean()
        np.testing.assert_allclose(record.apd_id, drop, rtol=1e-12)
        assert record.apd_id_ci95[0] < record.apd_id < record.apd_id_ci95[1]
        assert record.support == 1
        assert np.isnan(record.nipd_id)
        assert [w for w in record.warnings if "class is determined by the centre" in w] == [
            w for w in record.warnings if "V = 1.00" in w and "in 3 of 3 repetitions" in w
        ]
        assert any(w.startswith("nIPD: undefined") for w in record.warnings)
        assert record.direction_id["X"]["normal"]["normal"][2] is None
        error = record.directional_errors["X"]["tumor"]
        assert np.isfinite([*error.share[:2], *error.pull[:2]]).all()
        assert np.isnan([error.share[2], error.pull[2]]).all()
        assert np.isfinite(record.fit_all.directional_errors["X"]["tumor"].pull).all()
    whole = combat.fit_all
    assert whole.note == "saw the evaluation rows"
    assert np.isfinite(whole.id_accuracies).all()
    assert np.isfinite([whole.apd_id, whole.apd_ood, whole.nipd_id]).all()
    assert raw.fit_all is None
    path = write_result(str(tmp_path), combat)
    value = json.loads((tmp_path / "model" / "own" / "apd.json").read_text())
    assert value["id_accuracies"][2] == [None] * 3
    assert value["fit_all"]["apd_id"] == whole.apd_id
    assert value["provenance"]["settings"]["refit"]["steps"][0]["method"] == "combat"
    read = read_result(path)
    np.testing.assert_equal(plain(read), plain(combat))
    assert "fit_all" not in json.loads(json.dumps(write_and_read(raw, tmp_path)))


def write_and_read(record, folder):
    write_result(str(folder), record)
    return json.loads((folder / "model" / "own" / "apd.json").read_text())


def test_drops_leave_out_splits_without_an_accuracy():
    accuracies = [[0.8, 0.5], [np.nan, 0.4], [0.4, np.nan]]
    np.testing.assert_allclose(apd.performance_drops(accuracies), [-0.5, -0.2])
    assert np.isnan(apd.performance_drops([[np.nan, 0.5], [0.4, np.nan]])).all()
    np.testing.assert_allclose(apd.accuracy_means(accuracies), [0.65, 0.4, 0.4])


def test_the_report_shows_both_beside_each_other(raw, combat):
    table = build_refits([raw, combat])
    assert [row.name for row in table.rows] == ["model"]
    texts = [cell.text for cell in table.rows[0].cells]
    same = np.array(combat.fit_all.id_accuracies)
    values = [combat.apd_id, (same[1] / same[0] - 1).mean(), combat.fit_all.apd_id]
    assert texts[:3] == [format_percent(v) for v in values]
    assert "saw the evaluation rows" in table.columns[1]
    assert build_drops([combat]).rows[0].note == "3 repetitions, 2 of 3 splits"
    lines = csv_tables.format_apd([raw, combat]).splitlines()
    place = lines[0].split(",").index("fit_on")
    assert [line.split(",")[place] for line in lines[1:]] == ["", "train", "all"]
    assert len(csv_tables.format_accuracies([raw, combat]).splitlines()) == 1 + 3 * 9
    # The numbers of the record are those of the refit alone.
    assert {n.name: n.value for n in flatten(combat)}["apd_id"] == combat.apd_id


def test_identity_is_the_parent(root, raw):
    record = measure(robustify(root, "identity"))
    assert plain(dataclasses.replace(record, fit_all=None)) == plain(raw)
    assert record.fit_all.id_accuracies == raw.id_accuracies


@pytest.mark.campaign
@pytest.mark.slow
def test_every_head_is_trained_on_the_refitted_rows(root, raw):
    store = robustify(root, "class_adjusted_means")
    record = measure(store, repetitions=1, heads=("knn", "mlp", "dann"))
    names = ["knn", "mlp", "dann", "dann_lambda0"]
    assert list(record.heads) == list(record.fit_all.heads) == names
    for name in names:
        head, whole = record.heads[name], record.fit_all.heads[name]
        assert np.isnan(head.id_accuracies[2]).all()
        assert head.id_accuracies[1][0] > 0.6
        assert head.id_accuracies[:2] != whole.id_accuracies[:2]
    assert record.heads["dann"].setting == "epoch"
    # The twin has its start, batches and dropout, and no reversal.
    assert record.heads["dann"].id_accuracies != record.heads["dann_lambda0"].id_accuracies


@pytest.mark.campaign
@pytest.mark.slow
def test_devices_do_not_matter(root, combat):
    mesh = devices.make_mesh(jax.devices()[:2])
    store = open_store(str(root / "model+combat" / "own"))
    np.testing.assert_equal(plain(measure(store, mesh=mesh)), plain(combat))


@pytest.mark.slow
def test_finished_repetitions_are_kept_and_not_mixed(root, combat, tmp_path, monkeypatch, caplog):
    store, work = open_store(str(root / "model+combat" / "own")), str(tmp_path / "work")
    computed = []
    compute = apd_refit._compute

    def counted(task, *arguments):
        if len(computed) == 1 and task.number == 1:
            computed.append("killed")
            raise KeyboardInterrupt
        computed.append(task.number)
        return compute(task, *arguments)

    monkeypatch.setattr(apd_refit, "_compute", counted)
    with pytest.raises(KeyboardInterrupt):
        measure(store, work_dir=work)
    np.testing.assert_equal(plain(measure(store, work_dir=work)), plain(combat))
    assert computed == [0, "killed", 1, 2]
    # Those of another robustifier, and those of the store as it is, are other tasks.
    with caplog.at_level(std_logging.WARNING):
        measure(robustify(root, "center_means"), work_dir=work, repetitions=1)
    assert computed[4:] == [0]
    assert any("other data or settings" in text for text in caplog.messages)
    path = tmp_path / "work" / "refit" / "repetition_0001.json"
    path.write_text(path.read_text().replace('"refused"', '"Refused"'))
    np.testing.assert_equal(plain(measure(store, work_dir=work)), plain(combat))
    assert computed[5:] == [0, 1]


def test_old_tasks_of_the_store_as_it_is_are_taken_for_that(root, combat, tmp_path, monkeypatch):
    store, work = open_store(str(root / "model+combat" / "own")), str(tmp_path / "work")
    compute, numbers = apd_tasks._compute, []
    monkeypatch.setattr(
        apd_tasks, "_compute", lambda t, p: numbers.append(t.number) or compute(t, p)
    )
    monkeypatch.setattr(apd_refit, "find_refit", lambda store: apd_refit.Refit(store, (), ()))
    old = measure(store, work_dir=work)
    assert old.id_accuracies == combat.fit_all.id_accuracies
    monkeypatch.undo()
    monkeypatch.setattr(
        apd_tasks, "_compute", lambda t, p: numbers.append(t.number) or compute(t, p)
    )
    np.testing.assert_equal(plain(measure(store, work_dir=work)), plain(combat))
    assert numbers == [0, 1, 2]


def test_without_its_parent_it_is_refused(root, tmp_path):
    shutil.copytree(root / "model+combat", tmp_path / "model+combat")
    alone = open_store(str(tmp_path / "model+combat" / "own"))
    with pytest.raises(InputError, match="model/own: the parent of .* is missing"):
        measure(alone)
    x = np.random.default_rng(0).normal(size=(len(alone), DIM)).astype(np.float32)
    other = as_manifest(
        {n: alone.manifest.column(n)[::-1] for n in alone.manifest.table.column_names}
    )
    stores.make_store(tmp_path / "model" / "own", x, other)
    with pytest.raises(InputError, match=r"is not the parent of .*Put"):
        measure(alone)


def test_a_map_that_needs_the_class_of_a_test_row_has_no_honest_drop(root):
    store = robustify(root, "combat", covariates=CLASS)
    record = measure(store, repetitions=1)
    assert np.isnan(record.id_accuracies).all()
    assert np.isnan([record.apd_id, record.apd_ood, record.converged_share]).all()
    assert record.direction_id == {}
    assert np.isfinite(record.fit_all.apd_id)
    assert "which a test row must not tell" in record.warnings[0]
    assert build_refits([record]).rows[0].cells[0].text == "–"


@pytest.mark.slow
def test_unseen_centres_are_estimated_where_the_store_was_made_so(root, combat):
    options = {"fit_rows": f"{CENTER}=X", "name": "estimated"}
    manifest = root.parent / "inside.csv"
    own = open_store(str(root / "model" / "own")).manifest
    inside = own.take(np.flatnonzero(own.column(CENTER) != "Z"))
    lines = [",".join(inside.table.column_names)]
    lines += [
        ",".join(map(str, row)) for row in zip(*inside.table.to_pydict().values(), strict=True)
    ]
    manifest.write_text("\n".join(lines) + "\n")
    options["fit_rows"] = str(manifest)
    record = measure(robustify(root, "combat", unseen="estimate", **options))
    assert record.id_accuracies[:2] == combat.id_accuracies[:2]
    assert record.ood_accuracies[:2] != combat.ood_accuracies[:2]
    settings = record.provenance["settings"]["refit"]["steps"][0]
    assert (settings["unseen"], settings["method"]) == ("estimate", "combat")


@pytest.mark.slow
def test_robustifiers_of_a_robustified_store_are_all_fitted_again(root):
    robustify(root, "center_means")
    store = robustify(root, "leace", parent="model+center_means")
    found = apd_refit.find_refit(store)
    assert [step.method for step in found.steps] == ["center_means", "leace"]
    assert found.parent.path == str(root / "model" / "own")
    assert np.isfinite(measure(store, repetitions=1).apd_id)


def test_options_of_the_robustifier_are_those_of_the_refit(root, tmp_path):
    [step] = apd_refit.find_refit(robustify(root, "combat", reference="X", name="to_x")).steps
    assert (step.reference, step.rank, step.covariates) == ("X", None, "none")
    store = robustify(root, "pca_removal", rank=3)
    [step] = apd_refit.find_refit(store).steps
    assert (step.reference, step.rank, step.unseen) == (None, 3, "identity")


def test_a_reference_out_of_the_training_rows_is_no_fit(root):
    record = measure(robustify(root, "combat", reference="Z", name="to_z"), repetitions=1)
    assert np.isnan(record.apd_id)
    assert "unknown name 'Z'" in record.warnings[0]


def test_what_is_fitted_once_is_said(root, parent, raw, tmp_path):
    folder = tmp_path / "model+macenko" / "own"
    shutil.copytree(parent.path, folder)
    info = store_files.read_info(str(folder))
    info["settings"] |= {"stain": {"method": "macenko"}}
    store_files.write_info(str(folder), info)
    record = measure(open_store(str(folder)))
    assert record.id_accuracies == raw.id_accuracies
    assert record.fit_all is None
    [text] = record.warnings
    assert text.startswith("apd: macenko was fitted once")


def test_a_fit_of_pairs_is_not_repeated_in_the_splits(root):
    store = robustify(root, "paired_subspace", pairs="patch_id", rank=2)
    found = apd_refit.find_refit(store)
    assert (found.parent.path, found.steps, found.changes) == (store.path, (), False)
    [text] = found.warnings
    assert text.startswith("apd: paired_subspace was fitted once")


@pytest.mark.slow
def test_centres_of_the_fit_are_those_of_the_store(root, combat):
    """With another column as the centre, the robustifier is still that of medical centres."""
    store = open_store(str(root / "model+combat" / "own"))
    record = measure(store, columns={CENTER: CENTER})
    np.testing.assert_equal(plain(record), plain(combat))
