"""Errors that follow the centre: planted classifiers, every head, and their calls."""

import json

import jax
import numpy as np
import pytest
import stores

from pathorob_jax.core import devices
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.evaluation.apd import make_apd
from pathorob_jax.evaluation.directional_errors import list_directional_errors
from pathorob_jax.evaluation.settings import ApdSettings, Settings
from pathorob_jax.results.result_files import as_json, read_result, write_result

# Names whose order is not that of the alphabet; V = 0, 1/2 and 1.
SCHEDULE = AssociationSchedule(
    classes=("tumor", "normal"),
    centers=("UMCU", "RUMC"),
    slides=(((2, 2), (2, 2)), ((1, 3), (3, 1)), ((0, 4), (4, 0))),
    rows_per_slide=6,
)
HEADS = ("knn", "mlp", "dann")
RESULTS = ("knn", "mlp", "dann", "dann_lambda0")


def make_record(folder, *, class_effect, center_effect, heads=()):
    """The drop of embeddings whose class is one dimension, and whose centre is all others."""
    rng = np.random.default_rng(5)
    bio, center, slide, row = (a.ravel() for a in np.indices((2, 2, 8, 6)))
    rows = as_manifest(
        {
            "slide_id": [f"{b}-{c}-{s}" for b, c, s in zip(bio, center, slide, strict=True)],
            "patch_id": row,
            "biological_class": np.array(SCHEDULE.classes)[bio],
            "medical_center": np.array(SCHEDULE.centers)[center],
        }
    )
    x = rng.normal(size=(len(bio), 8))
    x[:, 0] += class_effect * (2 * bio - 1)
    x[:, 1:] += center_effect * (2 * center - 1)[:, None]
    store = stores.make_store(folder / "m" / "own", x.astype(np.float32), rows)
    evaluation = stores.plan(
        store,
        dataset="own",
        settings=Settings(apd=ApdSettings(schedule=SCHEDULE, repetitions=3, heads=heads)),
        mesh=devices.make_mesh(jax.devices()[:1]),
    )
    return make_apd(evaluation).record


@pytest.fixture(scope="module")
def reads_center(tmp_path_factory):
    folder = tmp_path_factory.mktemp("center")
    return make_record(folder, class_effect=3, center_effect=30, heads=HEADS)


def errors_of(record):
    return {"linear": record, **{name: record.heads[name] for name in RESULTS}}


@pytest.mark.campaign
def test_who_reads_the_centre_is_pulled_to_its_class(reads_center, tmp_path):
    for name, head in errors_of(reads_center).items():
        least = 0.9 if name in ("linear", "knn") else 0.4  # networks see 48 rows
        found = head.directional_errors
        stood_for = {c: {k: e.stood_for for k, e in found[c].items()} for c in found}
        assert stood_for == {"RUMC": {"normal": ["tumor"]}, "UMCU": {"tumor": ["normal"]}}, name
        for center, (label,) in (("RUMC", ("normal",)), ("UMCU", ("tumor",))):
            error = found[center][label]
            assert error.share[0] < 0.1, name
            assert error.pull[2] > least, name
            assert error.pull[0] == 0
            assert error.pull_ci95[0] <= error.pull[2] <= error.pull_ci95[1]
    robust = make_record(tmp_path, class_effect=3, center_effect=0)
    for by_class in robust.directional_errors.values():
        for error in by_class.values():
            assert abs(error.pull[2]) < 0.1
            assert error.share[2] < 0.1


@pytest.mark.campaign
def test_shares_are_those_of_the_directions(reads_center):
    for center, by_class in reads_center.directional_errors.items():
        for label, error in by_class.items():
            expected = reads_center.direction_id[center][label][error.stood_for[0]]
            np.testing.assert_allclose(error.share, expected, rtol=0, atol=1e-15)
            np.testing.assert_allclose(error.pull, np.array(expected) - expected[0], atol=1e-15)


def test_a_record_holds_them_by_centre_and_class(reads_center, tmp_path):
    path = write_result(str(tmp_path), reads_center)
    with open(path) as file:
        value = json.load(file)
    for record in (value, *value["heads"].values()):
        cell = record["directional_errors"]["RUMC"]["normal"]
        assert cell["stood_for"] == ["tumor"]
        assert len(cell["share"]) == len(cell["pull"]) == 3
    assert as_json(read_result(path)) == as_json(reads_center)


def test_centres_outside_the_schedule_and_cells_without_rows_are_left_out():
    calls = np.zeros((3, 2, 3, 2, 2), int)  # centres in an order of their own, A outside
    calls[:, :, 1] = [[5, 5], [2, 8]]  # RUMC: normal called tumor by 2 of 10
    calls[:, :, 2, 1] = [1, 9]  # UMCU has no tumor
    options = {"schedule": SCHEDULE, "n_training": 48, "n_test": 48}
    found = list_directional_errors(calls, centers=("A", "RUMC", "UMCU"), **options)
    assert list(found) == ["RUMC"]
    assert list(found["RUMC"]) == ["normal"]
    assert found["RUMC"]["normal"].share == [0.2] * 3
    assert found["RUMC"]["normal"].pull_ci95 == [0, 0]
    assert list_directional_errors(None, centers=("RUMC",), **options) == {}


@pytest.mark.slow
def test_splits_that_are_refused_are_null():
    calls = np.zeros((3, 2, 2, 2, 2), int)
    calls[:2] = [[[5, 5], [2, 8]]] * 2
    found = list_directional_errors(
        calls, centers=("UMCU", "RUMC"), schedule=SCHEDULE, n_training=48, n_test=48
    )
    error = found["RUMC"]["normal"]
    assert error.share[:2] == [0.2, 0.2]
    assert np.isnan([error.share[2], error.pull[2]]).all()
    assert error.pull_ci95 == [0, 0], "of the last split that is left"
