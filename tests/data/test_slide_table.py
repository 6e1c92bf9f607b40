"""Tables of slides: what they may hold, and one message for each fault."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE, as_manifest
from pathorob_jax.data.slide_table import check_training, join_patches, read_slide_table

LABELS = {"slide_id": list("abcdef"), "label": ["x", "y"] * 3}
SPLIT = {"split": ["train", "train", "validation", "validation", "test", "test"]}
SURVIVAL = {"slide_id": list("abcdef"), "time": [1, 2.5, 3, 4, 5, 6], "event": [1, 0] * 3}


def test_csv_and_parquet_are_read_alike(tmp_path):
    (tmp_path / "t.csv").write_text(
        "slide_id;label;medical_center\na;x;A\nb;y;B\n", encoding="utf-8"
    )
    table = pa.table({"slide_id": ["a", "b"], "label": ["x", "y"], "medical_center": ["A", "B"]})
    pq.write_table(table, tmp_path / "t.parquet")
    tables = [read_slide_table(str(tmp_path / name)) for name in ("t.csv", "t.parquet")]
    tables.append(read_slide_table(table.to_pydict()))
    assert len({t.fingerprint() for t in tables}) == 1
    assert not tables[0].is_survival
    assert tables[0].slides.tolist() == ["a", "b"]
    assert "split" not in tables[0]


def test_a_table_is_shown_by_its_columns_and_what_is_no_text_is_left_out():
    offsets, joined = np.array([0, *range(1, 7)], np.int32), b"\xff" * 6
    damaged = pa.StringArray.from_buffers(6, pa.py_buffer(offsets), pa.py_buffer(joined))
    table = read_slide_table(LABELS | {"note": damaged, "scanner": [*"PPQQPQ"]})
    assert repr(table) == "SlideTable(slide table: 6 slides, slide_id, label, scanner)"
    assert table.fingerprint() == read_slide_table(LABELS | {"scanner": [*"PPQQPQ"]}).fingerprint()


def test_survival_has_times_and_events():
    table = read_slide_table(SURVIVAL | SPLIT)
    assert table.is_survival
    np.testing.assert_array_equal(table.time, [1, 2.5, 3, 4, 5, 6])
    np.testing.assert_array_equal(table.event, [True, False] * 3)
    told = read_slide_table(SURVIVAL | SPLIT | {"event": [True, False] * 3})
    np.testing.assert_array_equal(told.event, table.event)
    np.testing.assert_array_equal(table.in_split("test"), [False] * 4 + [True] * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slide_id": None}, "expected a column 'slide_id'"),
        ({"label": None}, "expected a column 'label', or 'time' and 'event'"),
        ({"label": None, "time": [1] * 6}, "expected a column 'label', or 'time' and 'event'"),
        (SURVIVAL, "found both; one table predicts one thing"),
        (SURVIVAL | {"label": None}, r"expected a column 'split' \(train, validation, test\)"),
        ({"label": ["x", ""] * 3}, "column 'label' is empty in 3 rows, the first is row 1"),
        ({"slide_id": list("abcdea")}, r"slide 'a' appears twice \(row 0.* and row 5"),
        (
            {"slide_id": list("abcdea")} | SPLIT,
            r"slide 'a' lies in two splits, train and test \(row 0, .* and row 5.*Keep one row",
        ),
        (SPLIT | {"split": ["train", "val"] * 3}, "row 1, .*: expected split to be one of train"),
        ({"split": ["train"] * 6}, "found none of test"),
        (
            SPLIT | {"label": ["x"] * 5 + ["y"]},
            "two or more classes among the training slides, found .*'x'",
        ),
        (
            SPLIT | {"label": [*"xyxyxz"]},
            "none of the training slides is of z, as other slides are",
        ),
        (
            SURVIVAL | SPLIT | {"label": None, "event": [0, 0, 1, 1, 1, 1]},
            "none of the 2 training slides has an observed event",
        ),
        (
            SURVIVAL | SPLIT | {"label": None, "event": [2] * 6},
            r"expected event to be 1 \(observed\) or 0",
        ),
        (SURVIVAL | SPLIT | {"label": None, "time": [-1] * 6}, "expected a time of 0 or more"),
        (SURVIVAL | SPLIT | {"label": None, "time": ["soon"] * 6}, "found 'soon'"),
    ],
)
def test_each_fault_is_one_message(change, message):
    data = {k: v for k, v in (LABELS | change).items() if v is not None}
    with pytest.raises(InputError, match=message) as raised:
        read_slide_table(data)
    assert "\n" not in str(raised.value)


def test_lines_of_files_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("slide_id,label\na,x\nb,y\na,x\n")
    with pytest.raises(InputError, match=r"t.csv: slide 'a' appears twice \(line 2 and line 4\)"):
        read_slide_table(str(tmp_path / "t.csv"))


def make_rows():
    slides = [*"aabbccddeeffgg"]
    return as_manifest(
        {
            "slide_id": slides,
            "patch_id": [str(i) for i in range(len(slides))],
            "biological_class": ["tumor", "normal"] * 7,
            "medical_center": ["A" if s in "abc" else "B" for s in slides],
        },
        source="rows",
    )


def test_patches_get_the_labels_of_their_slides():
    table = read_slide_table(LABELS)
    joined = join_patches(make_rows(), table)
    assert len(joined) == 12  # slide g is not in the table
    assert joined.column(CLASS).tolist() == [c for c in "xyxyxy" for _ in range(2)]
    assert joined.column(CENTER).tolist() == ["A"] * 6 + ["B"] * 6
    other = read_slide_table(LABELS | {"scanner": [*"PPQQPQ"]})
    joined = join_patches(make_rows(), other, center_column="scanner")
    assert joined.column(CENTER).tolist()[::2] == [*"PPQQPQ"]
    times = join_patches(make_rows(), read_slide_table(SURVIVAL | SPLIT))
    assert set(times.column(CLASS)) == {"slide"}


def test_slides_without_patches_are_refused():
    table = read_slide_table({"slide_id": [*"abxyz"], "label": [*"pqpqp"]})
    with pytest.raises(InputError, match="3 of 5 slides have no patch in rows, the first is 'x'"):
        join_patches(make_rows(), table)
    assert SLIDE in table


def test_without_splits_a_class_may_be_of_other_slides_alone():
    table = read_slide_table(LABELS | {"label": [*"xyxyxz"]})
    check_training(table, np.arange(6) < 5, what="training slides")
    with pytest.raises(InputError, match=r"among the training slides, found \['z'\]"):
        check_training(table, np.arange(6) == 5, what="training slides")


@pytest.mark.slow
def test_training_without_some_centres_needs_classes_too():
    table = read_slide_table(LABELS | SPLIT)
    with pytest.raises(InputError, match="among the training slides of A, found"):
        check_training(table, np.arange(6) == 0, what="training slides of A")
