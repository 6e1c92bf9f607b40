"""Splits of growing association: the reference's rows key by key, and custom schedules."""

import collections
import csv
import itertools
import json
import random

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import association_schedule, row_views, training_splits
from pathorob_jax.data.association_schedule import (
    AssociationSchedule,
    cramers_v,
    schedule_from_manifest,
)
from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.data.protocols import PROTOCOLS
from pathorob_jax.data.training_splits import draw_repetitions

DATASETS = sorted(PROTOCOLS)
COLUMNS = ("slide_id", "patch_id", "biological_class", "medical_center")
TINY = AssociationSchedule(
    classes=("a", "b"),
    centers=("X", "Y"),
    slides=(((2, 2), (2, 2)), ((3, 1), (1, 3)), ((4, 0), (0, 4))),
    rows_per_slide=3,
)


def make_manifest(*, classes="ab", centers="XY", slides=7, rows=3, shared=False, skip=()):
    """One table row per patch; with ``shared`` a slide holds patches of every class."""
    table = collections.defaultdict(list)
    for bio, center in itertools.product(classes, centers):
        if (bio, center) in skip:
            continue
        for slide in range(slides):
            for row in range(rows):
                name = f"{center}{slide}" if shared else f"{center}{bio}{slide}"
                table["slide_id"].append(name)
                table["patch_id"].append(f"{bio}{row}")
                table["biological_class"].append(bio)
                table["medical_center"].append(center)
    return as_manifest(dict(table))


def replay(folder, protocol, repetitions):
    """The procedure of REFERENCE section 3 on plain lists of keys, with Python's own generator.

    Yields for each repetition [(training, validation, test) keys of each split].
    """
    schedule = protocol.schedule
    with open(folder / protocol.in_domain.metadata, newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if r["subset"] != "OOD"]
    size = schedule.rows_per_slide
    cells = {}
    for center, bio in itertools.product(schedule.centers, schedule.classes):
        cell = [r for r in rows if (r["medical_center"], r["biological_class"]) == (center, bio)]
        runs = [cell[i : i + size] for i in range(0, len(cell), size)]
        assert all(len({r["slide_id"] for r in run}) == 1 for run in runs)
        cells[center, bio] = runs
    cases = json.loads((folder / "tolkach_splits.json").read_text())["test"]
    most = max(n for table in schedule.slides for row in table for n in row)
    random.seed(1000)
    for seed in random.sample(range(10_000), repetitions):
        random.seed(seed)
        kept = collections.defaultdict(list)
        if protocol.case_splits:
            for center in schedule.centers:
                kept[center] = cases[center][random.randint(0, len(cases[center]) - 1)]
        for (center, _), runs in cells.items():
            random.shuffle(runs)
            for case in sorted(kept[center]):
                for run in [r for r in runs if r[0]["slide_id"] == case]:
                    runs.remove(run)
                    runs.append(run)
        splits = []
        for table in schedule.slides:
            parts = ([], [], [])
            for (center, bio), runs in cells.items():
                keys = [f"{r['slide_id']}-{r['patch_id']}" for run in runs for r in run]
                i, j = schedule.classes.index(bio), schedule.centers.index(center)
                n = table[i][j] * size
                parts[0].extend(keys[:n])
                parts[1].extend(keys[n : n + n // most])
                parts[2].extend(keys[(most + 1) * size :])
            splits.append(parts)
        yield splits


@pytest.fixture(scope="module")
def drawn(shared):
    """Of each dataset: the view, our repetitions and the replay's."""
    folder = shared / "pathorob" / "metadata"
    out = {}
    for name in DATASETS:
        protocol = PROTOCOLS[name].apd
        view = row_views.read_view(protocol.in_domain, metadata_dir=str(folder), dataset=name)
        held_out = None
        if protocol.case_splits:
            held_out = json.loads((folder / protocol.case_splits).read_text())["test"]
        ours = draw_repetitions(
            view, protocol.schedule, seed=protocol.seed, repetitions=20, held_out=held_out
        )
        out[name] = (view, list(ours), list(replay(folder, protocol, 20)))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
def test_rows_are_the_reference_s_in_every_repetition_and_split(drawn, name):
    view, ours, theirs = drawn[name]
    keys = np.array(view.keys.to_pylist())
    assert len(ours) == len(theirs) == 20
    for repetition, splits in zip(ours, theirs, strict=True):
        assert len(splits) == repetition.schedule.n_splits
        for s, (training, validation, test) in enumerate(splits):
            assert keys[repetition.training(s)].tolist() == training
            assert keys[repetition.validation(s)].tolist() == validation
            assert keys[repetition.test()].tolist() == test


@pytest.mark.parametrize("name", DATASETS)
def test_no_row_and_no_slide_is_on_both_sides(drawn, name):
    view, ours, _ = drawn[name]
    slides = view.column("slide_id")
    for repetition in ours[:3]:
        test = set(repetition.test().tolist())
        for s in range(repetition.schedule.n_splits):
            training, validation = repetition.training(s), repetition.validation(s)
            assert len(training) == repetition.schedule.n_training_rows
            assert not {*training.tolist(), *validation.tolist()} & test
            assert not set(training.tolist()) & set(validation.tolist())
            assert not set(slides[training]) & set(slides[repetition.test()])


def test_shuffles_are_cumulative_and_seeds_are_a_prefix():
    rows = make_manifest(slides=6)
    three = list(draw_repetitions(rows, TINY, seed=1000, repetitions=3))
    one = list(draw_repetitions(rows, TINY, seed=1000, repetitions=1))
    np.testing.assert_array_equal(three[0].test(), one[0].test())
    # Drawn from a fresh order, the last repetition would be another.
    order = list(range(6))
    random.Random(three[2].seed).shuffle(order)
    fresh = rows.column("slide_id")[::3][:6][order].tolist()
    found = rows.column("slide_id")[three[2].cells[0][0]][::3].tolist()
    assert sorted(found) == sorted(fresh)
    assert found != fresh


def test_training_rows_follow_the_table():
    rows = make_manifest(slides=6)
    [repetition] = draw_repetitions(rows, TINY, seed=7, repetitions=1)
    names = {"slide": rows.column("slide_id"), "bio": rows.column("biological_class")}
    for s, table in enumerate(TINY.slides):
        training = repetition.training(s)
        for i, bio in enumerate("ab"):
            for j, center in enumerate("XY"):
                inside = [t for t in training if names["slide"][t].startswith(center + bio)]
                assert len(inside) == 3 * table[i][j]
                assert len(set(names["slide"][inside])) == table[i][j]
        # floor(3 n / 4) rows of the next slide, at least one of a cell that is trained on
        expected = sum(max(3 * n // 4, int(n > 0)) for row in table for n in row)
        assert len(repetition.validation(s)) == expected
    assert len(repetition.test()) == 4 * (6 - 5) * 3


def test_longer_slides_are_cut_and_shorter_ones_left_out():
    table = {name: list(make_manifest(slides=6).column(name)) for name in COLUMNS}
    for n, slide in ((5, "Xa-long"), (2, "Xa-short")):
        for row in range(n):
            for name, value in zip(COLUMNS, (slide, f"p{row}", "a", "X"), strict=True):
                table[name].append(value)
    rows = as_manifest(table)
    [repetition] = draw_repetitions(rows, TINY, seed=1, repetitions=1)
    used = rows.column("slide_id")[repetition.cells[0][0]].tolist()
    assert used.count("Xa-long") == 3
    assert "Xa-short" not in used


def test_a_missing_cell_is_named():
    with pytest.raises(InputError, match="b at Y: 0"):
        list(draw_repetitions(make_manifest(skip=[("b", "Y")]), TINY, seed=1, repetitions=1))
    with pytest.raises(InputError, match=r"needs 6 slides.*a at X: 5"):
        list(draw_repetitions(make_manifest(slides=5), TINY, seed=1, repetitions=1))


def test_slides_of_several_classes_are_kept_for_testing_in_all_of_them():
    rows = make_manifest(slides=9, shared=True)
    slides = rows.column("slide_id")
    found = list(draw_repetitions(rows, TINY, seed=5, repetitions=4))
    tested = [tuple(sorted(set(slides[r.test()]))) for r in found]
    assert len(set(tested)) > 1
    for repetition, held in zip(found, tested, strict=True):
        for s in range(TINY.n_splits):
            assert not set(slides[repetition.training(s)]) & set(held)
            assert not set(slides[repetition.validation(s)]) & set(held)


def test_choices_of_test_slides_are_as_many_as_are_wanted(monkeypatch):
    monkeypatch.setattr(training_splits, "HELD_OUT_LISTS", 2)
    rows = make_manifest(slides=9, shared=True)
    slides = rows.column("slide_id")
    found = list(draw_repetitions(rows, TINY, seed=5, repetitions=12))
    held = [set(slides[repetition.test()]) for repetition in found]
    for center in "XY":
        assert len({tuple(sorted(s for s in one if s[0] == center)) for one in held}) == 2


def test_no_choice_of_test_slides_is_said():
    # At X each slide holds two of three classes, six slides a class: whichever two are kept for
    # testing, one class has four left, and five are needed.
    rows = make_manifest(classes="abc", slides=9, shared=True)
    table = {name: rows.column(name) for name in COLUMNS}
    absent = {f"X{k}": "abc"[k % 3] for k in range(9)}
    kept = [
        absent.get(slide) != bio
        for slide, bio in zip(table["slide_id"], table["biological_class"], strict=True)
    ]
    schedule = AssociationSchedule(
        classes=("a", "b", "c"),
        centers=("X", "Y"),
        slides=(((2, 2),) * 3, ((4, 0), (2, 2), (0, 4))),
        rows_per_slide=3,
    )
    with pytest.raises(InputError, match=r"centre X hold several classes.*leaves 5 other"):
        draw_repetitions(rows.take(np.flatnonzero(kept)), schedule, seed=1, repetitions=1)


def test_a_slide_between_train_and_test_is_left_out():
    # Where slides hold several classes only those kept for testing are tested on.
    rows = make_manifest(slides=9, shared=True)
    lists = {"X": [["X0", "X3"]], "Y": [["Y8"]]}
    [repetition] = draw_repetitions(rows, TINY, seed=5, repetitions=1, held_out=lists)
    tested = rows.column("slide_id")[repetition.test()]
    assert collections.Counter(tested.tolist()) == {"X0": 6, "X3": 6, "Y8": 6}
    with pytest.raises(InputError, match="0 are kept for testing"):
        list(draw_repetitions(rows, TINY, seed=5, repetitions=1, held_out=lists | {"Y": [["Q"]]}))


@pytest.mark.parametrize(
    ("n_classes", "n_centers", "n"), [(2, 2, 7), (4, 4, 2), (6, 2, 3), (2, 3, 3), (5, 3, 2)]
)
def test_own_schedules_hold_the_size_and_raise_the_association(n_classes, n_centers, n):
    classes, centers = "abcdef"[:n_classes], "TUVWXYZ"[:n_centers]
    most = int(np.max(association_schedule._associate(n, n, n_classes, n_centers)))
    rows = make_manifest(classes=classes, centers=centers, slides=most + 3)
    schedule = schedule_from_manifest(rows, centers=tuple(centers))
    tables = np.array(schedule.slides)
    np.testing.assert_array_equal(tables[0], n)
    assert (tables.sum(axis=2) == n * n_centers).all()  # every class keeps its size
    v = schedule.cramers_v()
    assert v[0] == 0
    assert (np.diff(v) > 0).all()
    np.testing.assert_allclose(v[-1], 1.0)
    assert schedule.rows_per_slide == 3
    [repetition] = draw_repetitions(rows, schedule, seed=1, repetitions=1)
    assert len(repetition.test()) >= n_classes * n_centers * 2 * 3


@pytest.mark.parametrize(("name", "slides"), [("camelyon", 17), ("tolkach_esca", 9)])
def test_two_published_schedules_come_out_of_manifests_of_their_shape(name, slides):
    # With the centres' roles exchanged. TCGA's was written by hand.
    published = PROTOCOLS[name].apd.schedule
    rows = make_manifest(
        classes="abcdef"[: len(published.classes)], centers="XY", slides=slides, rows=2
    )
    found = np.array(schedule_from_manifest(rows).slides)
    np.testing.assert_array_equal(found[:, :, ::-1], published.slides)


def test_centers_without_a_class_are_left_out_of_domain():
    rows = make_manifest(centers="XYZ", skip=[("b", "Z")])
    assert schedule_from_manifest(rows).centers == ("X", "Y")
    assert schedule_from_manifest(make_manifest(centers="XYZ", slides=9)).centers == ("X", "Y", "Z")


def test_rows_per_slide_give_the_most_training_rows():
    table = collections.defaultdict(list)
    for bio, center in itertools.product("ab", "XY"):
        # Ten slides of 4 rows, five of 9: n = 6 with 4 rows each beats n = 1 with 9.
        for slide in range(15):
            for row in range(9 if slide < 5 else 4):
                values = (f"{bio}{center}{slide}", f"{row}", bio, center)
                for name, value in zip(COLUMNS, values, strict=True):
                    table[name].append(value)
    schedule = schedule_from_manifest(as_manifest(dict(table)))
    assert (schedule.rows_per_slide, schedule.slides[0][0][0]) == (4, 6)
    schedule = schedule_from_manifest(as_manifest(dict(table)), rows_per_slide=9)
    assert (schedule.rows_per_slide, schedule.slides[0][0][0]) == (9, 1)


def test_one_row_per_slide_still_has_rows_to_choose_on():
    rows = make_manifest(slides=9, rows=1)
    schedule = schedule_from_manifest(rows)
    [repetition] = draw_repetitions(rows, schedule, seed=1, repetitions=1)
    assert len(repetition.validation(0)) == 4


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_three_slides_a_cell_train_two_and_test_one(rows):
    table = make_manifest(slides=3, rows=rows)
    schedule = schedule_from_manifest(table)
    assert (schedule.most_slides, schedule.validation_slides) == (2, 0)
    assert schedule.rows_per_slide + schedule.held_rows == rows
    assert schedule.cramers_v() == (0, 1)
    slides = table.column("slide_id")
    for repetition in draw_repetitions(table, schedule, seed=1, repetitions=3):
        test = repetition.test()
        assert len(set(slides[test])) == 4, "one slide of every cell"
        for split in range(schedule.n_splits):
            training, validation = repetition.training(split), repetition.validation(split)
            assert len(training) == schedule.n_training_rows
            assert len(validation) == 4 * schedule.held_rows
            assert len(np.unique(np.concatenate([training, validation]))) == len(training) + len(
                validation
            )
            assert set(slides[training]) == set(slides[validation])
            assert not set(slides[training]) & set(slides[test])


def test_four_slides_a_cell_have_one_for_validation_and_one_for_testing():
    schedule = schedule_from_manifest(make_manifest(slides=4))
    assert (schedule.most_slides, schedule.held_rows) == (2, 0)
    assert schedule_from_manifest(make_manifest(slides=5)) == schedule
    with pytest.raises(InputError, match=r"expected 4 slides.*Lower --test_slides, or leave out"):
        schedule_from_manifest(make_manifest(slides=3), test_slides=2)


def test_what_is_missing_is_said():
    with pytest.raises(InputError, match=r"expected 3 slides.*Y: \{'a': 2, 'b': 2\}"):
        schedule_from_manifest(make_manifest(slides=2))
    with pytest.raises(InputError, match=r"'b': 0"):
        schedule_from_manifest(make_manifest(skip=[("b", "Y")]))
    with pytest.raises(InputError, match="two or more values of biological_class"):
        schedule_from_manifest(make_manifest(classes="a"))
    with pytest.raises(UsageError, match=r"medical_center.*found \['X', 'Q'\]"):
        schedule_from_manifest(make_manifest(), centers=("X", "Q"))
    with pytest.raises(UsageError, match="max_splits"):
        schedule_from_manifest(make_manifest(), max_splits=1)
    with pytest.raises(
        InputError, match=r"expected 21 slides.*Lower --slides_per_cell, or leave out"
    ):
        schedule_from_manifest(make_manifest(), slides_per_cell=10)
    with pytest.raises(
        InputError, match=r"expected 3 slides with 4 or more patches.*Lower --rows_per_slide, or"
    ):
        schedule_from_manifest(make_manifest(), rows_per_slide=4)
    with pytest.raises(UsageError, match="repetitions"):
        draw_repetitions(make_manifest(), TINY, seed=1, repetitions=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slides": (((1, 1), (1, 1)), ((2, 1), (1, 1)))}, "one positive sum"),
        ({"slides": (((1, 1), (1, 1)),)}, "two or more of each"),
        ({"slides": (((1, 1), (1, 1)), ((2, 2), (0, 0)))}, "every class"),
        ({"rows_per_slide": 0}, "rows_per_slide"),
        ({"held_rows": -1}, "held_rows: expected 0 or more, found -1"),
        ({"classes": ("a", "b", "c")}, "3 classes"),
    ],
)
def test_impossible_schedules_are_refused(changes, message):
    arguments = {
        "classes": ("a", "b"),
        "centers": ("X", "Y"),
        "slides": (((1, 1), (1, 1)), ((2, 0), (0, 2))),
        "rows_per_slide": 2,
    }
    with pytest.raises(InputError, match=message):
        AssociationSchedule(**arguments | changes)


@pytest.mark.slow
def test_cramers_v_of_known_tables():
    assert cramers_v([[5, 5], [5, 5]]) == 0
    assert cramers_v([[3, 0], [0, 3]]) == 1
    np.testing.assert_allclose(cramers_v([[4, 2], [2, 4]]), 1 / 3)
    # An empty column takes no part; one column says nothing.
    np.testing.assert_allclose(cramers_v([[4, 2, 0], [2, 4, 0]]), 1 / 3)
    assert np.isnan(cramers_v([[4, 0], [2, 0]]))
