"""One manifest whatever it came from; bad input is refused with file, row and mend."""

import dataclasses
import io
import json
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathorob_jax.core import digests
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import manifest as manifests
from pathorob_jax.data import row_views
from pathorob_jax.data.manifest import CENTER, CLASS, REQUIRED, SLIDE, SUBSET
from pathorob_jax.data.protocols import OOD, PROTOCOLS, k_grid

# Rows 0 and 3 are one patch in two subsets; "007" and "7" are two names.
COLUMNS = {
    "subset": ["one", "one", "one", "two", "two"],
    "slide_id": ["s0", "s0", "s1", "s0", "s2"],
    "patch_id": ["007", "7", "0", "007", 'é, "q"'],
    "biological_class": ["tumor", "tumor", "normal", "tumor", "tumor"],
    "medical_center": ["A", "A", "B B", "A", "B B"],
}
METADATA = {
    # rows, {subset: rows}: REFERENCE 1, and what the schedules need of the ID rows.
    "camelyon.csv": (22402, {"ID": 20400, OOD: 2002}),
    "camelyon_reduced.csv": (4000, {"tumor-UMCU": 1000, "normal-RUMC": 1000}),
    "tcga_4x4.csv": (8160, {"ID": 5760, OOD: 2400}),
    "tolkach_esca.csv": (16300, {"ID": 10800, OOD: 5500}),
    "tolkach_esca_reduced.csv": (9000, {"ADVENT-VALSET1_UKK": 500}),
}


def make(source="manifest", **changes):
    """The checked COLUMNS with some columns replaced, added or (None) left out."""
    columns = {k: v for k, v in (COLUMNS | changes).items() if v is not None}
    return manifests.as_manifest(columns, source=source)


def write_csv(path, **changes):
    columns = {k: v for k, v in (COLUMNS | changes).items() if v is not None}
    pd.DataFrame(columns).to_csv(path, index=False)
    return str(path)


def read_changed(path, **changes):
    """A manifest of a CSV file, so that messages name its lines."""
    return manifests.read_manifest(write_csv(path, **changes))


def rows_of(manifest):
    return manifest.table.select(sorted(manifest.table.column_names)).to_pylist()


def test_csv_parquet_pandas_and_mapping_give_the_same_manifest(tmp_path):
    table = pa.table(COLUMNS)
    frame = pd.DataFrame(COLUMNS)
    pq.write_table(table, tmp_path / "m.parquet")
    # Dictionary columns, as pandas categoricals and Hugging Face label columns have them.
    encoded = pa.table({n: table[n].dictionary_encode() for n in table.column_names})
    pq.write_table(encoded, tmp_path / "dictionary.parquet")

    class Capsule:
        def __arrow_c_stream__(self, requested_schema=None):
            return table.__arrow_c_stream__(requested_schema)

    found = [
        manifests.read_manifest(write_csv(tmp_path / "m.csv")),
        manifests.read_manifest(str(tmp_path / "m.parquet")),
        manifests.read_manifest(str(tmp_path / "dictionary.parquet")),
        manifests.as_manifest(table),
        manifests.as_manifest(encoded),
        manifests.as_manifest(Capsule()),
        manifests.as_manifest(frame),
        manifests.as_manifest(frame.astype("category")),
        manifests.as_manifest(COLUMNS),
        manifests.as_manifest(types.MappingProxyType(COLUMNS)),
        manifests.as_manifest({k: np.asarray(v) for k, v in COLUMNS.items()}),
    ]
    expected = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
    for manifest in found:
        assert manifest.table.to_pylist() == [
            {k: row[k] for k in manifest.table.column_names} for row in expected
        ]
        assert set(manifest.table.column_names) == set(COLUMNS)
        assert manifest.fingerprint() == found[0].fingerprint()
        assert manifest.keys.to_pylist() == found[0].keys.to_pylist()


def test_keys_join_slide_and_patch_and_ids_stay_text(tmp_path):
    manifest = manifests.read_manifest(write_csv(tmp_path / "m.csv"))
    assert manifest.keys.to_pylist() == ["s0-007", "s0-7", "s1-0", "s0-007", 's2-é, "q"']
    assert manifest.column("patch_id").tolist()[:3] == ["007", "7", "0"]


def test_numbers_become_text():
    manifest = make(patch_id=[7, 8, 9, 7, 10], level=[1, 2, 3, 4, 5])
    assert manifest.column("patch_id").tolist() == ["7", "8", "9", "7", "10"]
    assert manifest.column("level").tolist() == ["1", "2", "3", "4", "5"]


def test_names_that_look_like_missing_values_are_names(tmp_path):
    path = write_csv(tmp_path / "m.csv", patch_id=["NA", "null", "nan", "NA", "1e5"])
    found = manifests.read_manifest(path).column("patch_id").tolist()
    assert found == ["NA", "null", "nan", "NA", "1e5"]


def test_bom_and_windows_line_ends_are_read(tmp_path):
    plain = write_csv(tmp_path / "m.csv")
    text = (tmp_path / "m.csv").read_bytes()
    (tmp_path / "w.csv").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    found = manifests.read_manifest(str(tmp_path / "w.csv"))
    assert rows_of(found) == rows_of(manifests.read_manifest(plain))


def test_columns_are_renamed_and_the_old_name_is_no_obstacle(tmp_path):
    path = write_csv(tmp_path / "m.csv", site=COLUMNS[CENTER], medical_center=["x"] * 5)
    found = manifests.read_manifest(path, columns={CENTER: "site"})
    assert found.column(CENTER).tolist() == COLUMNS[CENTER]
    assert found.column("site").tolist() == COLUMNS[CENTER]
    assert rows_of(make()) == [{k: v for k, v in r.items() if k != "site"} for r in rows_of(found)]


def test_nested_and_binary_columns_are_dropped(tmp_path):
    table = pa.table(
        COLUMNS
        | {
            "image": [{"bytes": b"\xff", "path": None}] * 5,
            "tags": [["a"]] * 5,
            "raw": [b"\xff"] * 5,
            "stage": ["I", None, "II", "I", ""],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    found = manifests.read_manifest(str(tmp_path / "m.parquet"))
    assert set(found.table.column_names) == {*COLUMNS, "stage"}
    assert found.column("stage").tolist() == ["I", "", "II", "I", ""]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_empty_cell_names_column_file_and_row(tmp_path, suffix):
    path = str(tmp_path / f"m.{suffix}")
    values = ["tumor", "tumor", " ", "tumor", ""]
    if suffix == "csv":
        write_csv(path, biological_class=values)
        where = "line 4"
    else:
        pq.write_table(pa.table(COLUMNS | {CLASS: ["tumor", "tumor", None, "tumor", ""]}), path)
        where = "row 2, counting from 0"
    with pytest.raises(InputError) as caught:
        manifests.read_manifest(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: column 'biological_class' is empty in 2 rows")
    assert where in message
    assert "Fill or remove" in message


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({CLASS: None}, ["missing ['biological_class']", "--label_column"]),
        ({CENTER: None, CLASS: None}, ["--center_column and --label_column"]),
        ({SLIDE: None}, ["missing ['slide_id']", "Rename yours."]),
        # Once in each subset is fine, twice in one is not.
        (
            {SUBSET: ["one", "one", "one", "one", "two"]},
            ["patch s0-007 appears twice in subset 'one'", "line 2 and line 5", "Remove one"],
        ),
        ({SUBSET: None}, ["patch s0-007 appears twice: line 2 and line 5"]),
        (
            {CLASS: ["tumor", "tumor", "normal", "normal", "tumor"]},
            ["s0-007", "'tumor' (line 2) and 'normal' (line 5)", "correct one"],
        ),
        (
            {CENTER: ["A", "A", "B B", "B B", "B B"]},
            ["s0-007", "'A' (line 2) and 'B B' (line 5)"],
        ),
        (
            {SLIDE: ["s0", "s0", "s0", "s0", "s2"]},
            ["slide 's0' lies in two medical centres", "'A' (line 2) and 'B B' (line 4)"],
        ),
        (
            {CENTER: ["A", "A", "tumor", "A", "B"]},
            ["'tumor' names both", "line 2", "line 4", "Rename one"],
        ),
    ],
)
def test_a_broken_rule_names_file_lines_and_mend(tmp_path, changes, parts):
    path = write_csv(tmp_path / "meta.csv", **changes)
    with pytest.raises(InputError) as caught:
        manifests.read_manifest(path)
    for part in [path, *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ([1, 2], "found list"),
        (None, "found NoneType"),
        ("slide_id", "found str"),
        (np.zeros((2, 4)), "found ndarray"),
        (COLUMNS | {SLIDE: ["s0"]}, "equally long columns"),
        (COLUMNS | {SLIDE: [["s0"]] * 5}, "column 'slide_id': expected text or numbers"),
        (COLUMNS | {SLIDE: [b"\xff"] * 5}, "column 'slide_id': expected text or numbers"),
        ({name: [] for name in REQUIRED}, "at least one row"),
    ],
)
def test_what_is_no_table_of_patches_is_refused(data, part):
    with pytest.raises(InputError, match=r"^here: ") as caught:
        manifests.as_manifest(data, source="here")
    assert part in str(caught.value)


def test_text_stored_as_binary_is_read():
    assert make(patch_id=[b"007", b"7", b"0", b"007", b"x"]).column("patch_id")[0] == "007"


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("m.parquet", b"garbage" * 9, "cannot be read as a table"),
        ("m.parquet", b"", "cannot be read as a table"),
        ("m.csv", b"", "Empty CSV"),
        ("m.csv", b"slide_id,patch_id,biological_class,medical_center\n", "at least one row"),
        ("m.csv", b"slide_id,patch_id\ns,p,x\n", "line 2: expected 2 cells, as in the header, "),
        ("m.csv", b"slide_id\na\n\ncaf\xe9\n", "line 4: invalid UTF-8 (byte e9). Save it as CSV"),
        ("m.csv", b"z,z,slide_id,patch_id,biological_class,medical_center\n1,1,s,p,c,m\n", "['z']"),
        ("m.tsv", b"slide_id\n", "expected a .csv or .parquet"),
    ],
)
def test_an_unreadable_file_is_refused_by_name(tmp_path, name, data, part):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        manifests.read_manifest(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)
    assert part in str(caught.value)


def test_a_parquet_file_with_any_damaged_byte_is_refused_by_name_or_read(tmp_path):
    sink = io.BytesIO()
    pq.write_table(pa.table(COLUMNS), sink)
    whole, path = sink.getvalue(), tmp_path / "m.parquet"
    refused = 0
    for at in range(4, len(whole), 23):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            manifests.read_manifest(str(path))
        except InputError as error:
            refused += str(path) in str(error)
    assert refused > 10


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no_such\.csv: no such manifest"):
        manifests.read_manifest(str(tmp_path / "no_such.csv"))


def test_messages_name_lines_of_the_file_after_rows_were_chosen(tmp_path):
    mine = manifests.read_manifest(write_csv(tmp_path / "mine.csv"))
    theirs = manifests.read_manifest(
        write_csv(
            tmp_path / "theirs.csv",
            subset=None,
            slide_id=["s9", "s8", "s2", "s0", "s1"],
            patch_id=["1", "1", COLUMNS["patch_id"][4], "7", "0"],
            biological_class=["tumor", "tumor", "other", "tumor", "normal"],
            medical_center=["A", "A", "B B", "A", "B B"],
        )
    )
    view = mine.without_subsets(["one"]).take(np.array([1]))
    assert view.keys.to_pylist() == ['s2-é, "q"']
    # Lines 6 and 4: neither is the row's place among the chosen rows.
    with pytest.raises(InputError, match=r"'tumor' \(line 6\) and 'other' \(line 4\)"):
        manifests.locate(view, theirs.take(np.array([4, 2])))
    with pytest.raises(InputError, match=r"lacks 1 of the 1 patches.* \(line 6\)"):
        manifests.locate(view, theirs.take(np.array([0, 1])))


def test_without_subsets_leaves_out_the_named_ones():
    manifest = make()
    assert manifest.without_subsets(["one"]).source_rows.tolist() == [3, 4]
    assert len(manifest.without_subsets(["other"])) == 5
    assert len(manifest.without_subsets([])) == 5
    alone = make(subset=None, patch_id=["1", "2", "3", "4", "5"])
    assert len(alone.without_subsets(["one"])) == 5


def test_unique_patches_keeps_first_appearances_in_order():
    manifest = make().take(np.array([4, 3, 0, 2, 1]))
    unique = manifest.unique_patches()
    assert unique.source_rows.tolist() == [4, 3, 2, 1]
    assert SUBSET not in unique


def test_factorize_numbers_sorted_names():
    found = make().factorize(CENTER)
    assert found.names == ("A", "B B")
    assert found.ids.tolist() == [0, 0, 1, 0, 1]
    assert found.ids.dtype == np.int32
    # Code points, as scikit-learn's LabelEncoder sorts: upper case before lower case.
    assert make(biological_class=["b", "b", "Z", "b", "a"]).factorize(CLASS).names == (
        "Z",
        "a",
        "b",
    )


def test_an_absent_column_is_named():
    with pytest.raises(InputError, match=r"expected a column 'case_id', found \["):
        make().column("case_id")


def test_the_fingerprint_is_that_of_names_and_cells_one_by_one():
    """Stores and results hold it: rows of a slice, letters beyond ASCII, empty cells."""
    rows = make(note=["", "é", "", "x" * 300, ""]).take(np.arange(1, 5))
    rows = dataclasses.replace(rows, table=pa.concat_tables([rows.table[:2], rows.table[2:]]))
    parts = []
    for name in sorted(rows.table.column_names):
        cells = [text.encode() for text in rows.column(name).tolist()]
        parts += [name.encode(), digests.digest(*cells).encode()]
    assert rows.fingerprint() == digests.digest(*parts)


def test_the_fingerprint_tells_values_and_row_order():
    base = make().fingerprint()
    # Another subset is another paired design, another column another group to leave out.
    others = [
        make(note=["x"] * 5).fingerprint(),
        make(subset=["one", "one", "one", "two", "three"]).fingerprint(),
        make(biological_class=["tumor", "tumor", "normal", "tumor", "normal"]).fingerprint(),
        make(medical_center=["A", "A", "B B", "A", "B"]).fingerprint(),
        make(slide_id=["s0", "s0", "s1", "s0", "s3"]).fingerprint(),
        make(patch_id=["007", "7", "0", "007", "z"]).fingerprint(),
        make().take(np.array([1, 0, 2, 3, 4])).fingerprint(),
        make().take(np.arange(4)).fingerprint(),
    ]
    assert len({base, *others}) == 9
    # Borders count: slide "ab" patch "c" is not slide "a" patch "bc".
    one, two = [
        manifests.as_manifest({SLIDE: [s], "patch_id": [p], CLASS: ["t"], CENTER: ["A"]})
        for s, p in (("ab", "c"), ("a", "bc"))
    ]
    assert one.fingerprint() != two.fingerprint()


def test_the_union_holds_each_patch_once_in_order_of_first_appearance():
    first = make("a.csv", stage=["I"] * 5, age=["1"] * 5).take(np.array([2, 0, 3]))
    second = make("b.csv", age=["2"] * 5)
    third = make("c.csv", slide_id=["t"] * 5, medical_center=["C"] * 5, age=["3"] * 5)
    found = manifests.union([first, second, third])
    assert found.keys.to_pylist() == [
        *("s1-0", "s0-007", "s0-7", 's2-é, "q"'),
        *("t-007", "t-7", "t-0", 't-é, "q"'),
    ]
    assert set(found.table.column_names) == {*REQUIRED, "age"}
    assert found.column("age").tolist() == ["1", "1", "2", "2", "3", "3", "3", "3"]


def test_the_union_of_one_drops_the_subset_only():
    found = manifests.union([make(stage=["I"] * 5)])
    assert found.keys.to_pylist() == ["s0-007", "s0-7", "s1-0", 's2-é, "q"']
    assert set(found.table.column_names) == {*REQUIRED, "stage"}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {CLASS: ["tumor", "other", "normal", "tumor", "tumor"]},
            ["biological_class of patch s0-7", "'other' (line 3)", "'tumor' (line 3)"],
        ),
        (
            {CENTER: ["A", "A", "C", "A", "B B"]},
            ["medical_center of patch s1-0", "'C' (line 4)", "'B B' (line 4)"],
        ),
        # Other patches of a slide that the first file has at another centre.
        (
            {
                "patch_id": ["x1", "x2", "x3", "x1", "x4"],
                SLIDE: ["s9", "s9", "s2", "s9", "s8"],
                CENTER: ["A", "A", "C", "A", "B B"],
            },
            ["medical centre of slide 's2'", "'C' (line 4)", "'B B' (line 6)"],
        ),
        (
            {
                SLIDE: ["t0", "t0", "t1", "t0", "t2"],
                CENTER: ["A", "A", "B B", "A", "normal"],
                CLASS: ["tumor"] * 5,
            },
            ["'normal' names both", "line 4)", "line 6)"],
        ),
        (
            {SLIDE: ["t0", "t0", "t1", "t0", "t2"], CLASS: ["A", "A", "normal", "A", "x"]}
            | {CENTER: ["C", "C", "D", "C", "D"]},
            ["'A' names both", "line 2)"],
        ),
    ],
)
def test_a_disagreement_names_both_files_and_lines(tmp_path, changes, parts):
    first = manifests.read_manifest(write_csv(tmp_path / "first.csv"))
    other = {SLIDE: ["u0", "u0", "u1", "u0", "u2"]}
    between = manifests.read_manifest(write_csv(tmp_path / "between.csv", **other))
    last = manifests.read_manifest(write_csv(tmp_path / "last.csv", **changes))
    with pytest.raises(InputError) as caught:
        manifests.union([first, between, last])
    message = str(caught.value)
    for part in [first.source, last.source, *parts]:
        assert part in message
    assert "between.csv" not in message


def test_patches_whose_joined_names_are_equal_are_two():
    slide, patch = ["s0-0", "s0"], ["1", "0-1"]
    columns = {SLIDE: slide, "patch_id": patch, CLASS: ["t", "u"], CENTER: ["A", "B"]}
    both = manifests.as_manifest(columns)
    assert both.keys.to_pylist() == ["s0-0-1"] * 2
    one, two = [both.take(np.array([i])) for i in range(2)]
    united = manifests.union([two, one])
    assert united.column(SLIDE).tolist() == ["s0", "s0-0"]
    assert len(both.unique_patches()) == 2
    assert manifests.locate(both, united).tolist() == [1, 0]
    with pytest.raises(InputError, match="lacks 1 of the 2 patches"):
        manifests.locate(both, one)


def test_locate_finds_every_occurrence_by_key():
    rows = manifests.union([make()]).take(np.array([3, 2, 1, 0]))
    view = make().take(np.array([3, 4, 0, 2, 1]))
    found = manifests.locate(view, rows)
    assert found.tolist() == [3, 0, 3, 1, 2]
    assert found.dtype == np.int64


def test_locate_names_what_is_missing_or_differs(tmp_path):
    rows = manifests.union([make("store")]).take(np.array([0, 1]))
    with pytest.raises(
        InputError, match=r"store: lacks 2 of the 5 patches of .*v\.csv.*s1-0 \(line 4"
    ):
        manifests.locate(read_changed(tmp_path / "v.csv"), rows)
    view = read_changed(tmp_path / "v.csv", biological_class=["other"] * 5).take(np.array([1]))
    with pytest.raises(
        InputError, match=r"'other' \(line 3\) and 'tumor' \(row 1, counting from 0"
    ):
        manifests.locate(view, rows)


@pytest.mark.parametrize("name", METADATA)
def test_pathorob_metadata_is_read_whole(shared, name):
    n_rows, subsets = METADATA[name]
    found = manifests.read_manifest(str(shared / "pathorob" / "metadata" / name))
    assert len(found) == n_rows
    counted = found.factorize(SUBSET)
    sizes = dict(zip(counted.names, np.bincount(counted.ids).tolist(), strict=True))
    assert {subset: sizes[subset] for subset in subsets} == subsets
    assert len(set(found.keys.to_pylist())) == n_rows


@pytest.mark.golden
def test_the_golden_pairs_recur_across_subsets(shared):
    found = manifests.read_manifest(str(shared / "golden" / "tcga_2x2.csv"))
    assert len(found) == 36 * 4 * 60
    subsets = found.factorize(SUBSET)
    assert np.bincount(subsets.ids).tolist() == [240] * 36
    once = manifests.union([found])
    assert len(once) < len(found)
    np.testing.assert_array_equal(
        once.keys.to_numpy(zero_copy_only=False)[manifests.locate(found, once)],
        found.keys.to_numpy(zero_copy_only=False),
    )


def test_the_union_of_a_datasets_metadata_is_its_whole_set_of_patches(shared):
    folder = shared / "pathorob" / "metadata"
    whole, reduced = [
        manifests.read_manifest(str(folder / name))
        for name in ("camelyon.csv", "camelyon_reduced.csv")
    ]
    assert manifests.union([whole, reduced]).keys == whole.keys
    assert len(manifests.union([reduced, whole])) == len(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_view_of_a_protocol_can_be_read(shared, name):
    protocol = PROTOCOLS[name]
    folder = shared / "pathorob" / "metadata"
    n_rows = {}
    for key, view in {
        "neighbors": protocol.robustness_index.view,
        "id": protocol.apd.in_domain,
        "ood": protocol.apd.out_of_domain,
        "clustering": protocol.clustering_score.view,
    }.items():
        where = shared / "golden" if view.metadata == "tcga_2x2.csv" else folder
        rows = row_views.read_view(view, metadata_dir=str(where), dataset=name)
        n_rows[key] = len(rows)
    expected = {
        "camelyon": {"neighbors": 20400, "id": 20400, "ood": 2002, "clustering": 4000},
        "tcga": {"neighbors": 8640, "id": 5760, "ood": 2400, "clustering": 5760},
        "tolkach_esca": {"neighbors": 9000, "id": 10800, "ood": 5500, "clustering": 9000},
    }
    assert n_rows == expected[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTOCOLS)
def test_schedules_fit_the_metadata(shared, name):
    apd = PROTOCOLS[name].apd
    folder = str(shared / "pathorob" / "metadata")
    rows = row_views.read_view(apd.in_domain, metadata_dir=folder, dataset=name)
    schedule = apd.schedule
    assert set(rows.factorize(CLASS).names) == set(schedule.classes)
    assert set(rows.factorize(CENTER).names) == set(schedule.centers)
    most = np.max(schedule.slides, axis=0)
    slides, classes, centers = (rows.column(n) for n in (SLIDE, CLASS, CENTER))
    for i, bio in enumerate(schedule.classes):
        for j, center in enumerate(schedule.centers):
            cell = slides[(classes == bio) & (centers == center)]
            # Whole slides, and one at least beyond training and validation for the ID test.
            assert len(cell) % schedule.rows_per_slide == 0
            assert len(cell) // schedule.rows_per_slide > most[i, j] + 1
            runs = cell.reshape(-1, schedule.rows_per_slide)
            assert (runs == runs[:, :1]).all()


@pytest.mark.parametrize(
    ("name", "n_training_rows", "most", "cramers_v"),
    [
        ("camelyon", 8400, 14, [s / 7 for s in range(8)]),
        ("tcga", 960, 8, [0, 0.204, 0.354, 0.5, 0.677, 0.842, 1]),
        ("tolkach_esca", 3600, 6, [0, 1 / 3, 2 / 3, 1]),
    ],
)
def test_training_size_is_constant_and_association_grows(name, n_training_rows, most, cramers_v):
    schedule = PROTOCOLS[name].apd.schedule
    totals = np.sum(schedule.slides, axis=(1, 2)) * schedule.rows_per_slide
    assert totals.tolist() == [n_training_rows] * len(cramers_v)
    assert schedule.n_training_rows == n_training_rows
    assert np.max(schedule.slides) == most
    # The article's table has three digits.
    np.testing.assert_allclose(schedule.cramers_v(), cramers_v, rtol=0, atol=5.1e-4)


def test_training_cells_of_a_first_split_are_balanced():
    for protocol in PROTOCOLS.values():
        assert len(set(np.ravel(protocol.apd.schedule.slides[0]).tolist())) == 1


def test_tolkach_case_lists_hold_cases_of_the_metadata(shared):
    folder = shared / "pathorob" / "metadata"
    apd = PROTOCOLS["tolkach_esca"].apd
    splits = json.loads((folder / apd.case_splits).read_text())
    rows = row_views.read_view(apd.in_domain, metadata_dir=str(folder), dataset="tolkach_esca")
    slides, centers = rows.column(SLIDE), rows.column(CENTER)
    for part in ("train", "test"):
        assert set(splits[part]) == set(apd.schedule.centers)
        for center, lists in splits[part].items():
            assert set().union(*lists) <= set(slides[centers == center])


def test_the_neighbour_grid_is_the_references():
    assert k_grid(600)[:8] == (1, 3, 5, 7, 9, 11, 21, 31)
    assert k_grid(600)[-1] == 591
    assert k_grid(11) == (1, 3, 5, 7, 9)
    assert k_grid(6) == (1, 3, 5)
    assert [PROTOCOLS[n].robustness_index.k for n in PROTOCOLS] == [11, 61, 46]
    assert [PROTOCOLS[n].robustness_index.k_limit for n in PROTOCOLS] == [600, 1200, 1000]


@pytest.mark.slow
def test_apd_seeds_are_those_of_the_reference():
    assert {p.apd.seed for p in PROTOCOLS.values()} == {1000}
    assert len(PROTOCOLS["tcga"].apd.c_grid) == 15
    np.testing.assert_allclose(np.log10(PROTOCOLS["tcga"].apd.c_grid), np.linspace(-8, 4, 15))
