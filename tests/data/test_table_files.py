"""Tables as spreadsheets, databases and data frames write them become the same rows."""

import codecs
import csv
import datetime
import decimal
import io
import json
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import manifest as manifests
from pathorob_jax.data import table_files
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, REQUIRED, SLIDE

ROWS = {
    SLIDE: ["s0", "s0", "s1", "s2"],
    PATCH: ["007", "7", 'a "b"; c,\td', "1e5"],
    CLASS: ["tumor", "normal", "tumor", "normal"],
    CENTER: ["A\nB", "A\nB", "Köln", "北京"],
    "note": ["", "x\r\ny", "z", ""],
}


def write(delimiter=",", end="\n", quote_all=False, trailing="", before="", blank=""):
    """CSV text by rules of its own, not by the csv module."""

    def cell(text):
        if quote_all or any(sign in text for sign in (delimiter, '"', "\r", "\n")):
            return '"' + text.replace('"', '""') + '"'
        return text

    lines = [list(ROWS), *zip(*ROWS.values(), strict=True)]
    texts = [delimiter.join(map(cell, line)) + trailing + end for line in lines]
    return before + blank.join(texts)


def rows_of(manifest):
    return {name: manifest.column(name).tolist() for name in manifest.table.column_names}


def read(tmp_path, data, name="m.csv", **options):
    (tmp_path / name).write_bytes(data)
    return manifests.read_manifest(str(tmp_path / name), **options)


@pytest.mark.parametrize(
    "data",
    [
        write().encode(),
        write(end="\r\n").encode(),
        write(end="\r").encode(),
        write(end="\r\n", quote_all=True).encode(),
        write(";", end="\r\n").encode("utf-8-sig"),
        write("\t").encode(),
        write("|").encode(),
        write(";", before="sep=;\r\n", end="\r\n").encode(),
        write("*", before="sep=*\n").encode(),
        write("\t", end="\r\n").encode("utf-16"),  # Excel's "Unicode text"
        codecs.BOM_UTF16_BE + write().encode("utf-16-be"),
        write().encode("utf-32"),
        write(trailing=",").encode(),
        write(trailing=",,,").encode(),
        write(blank="\n\n").encode(),
        write(blank=",,,,\n").encode(),
        write(end="\r\n").encode() + b",,,,\r\n" * 3,
        write().encode().rstrip(b"\n"),
        write(end="\r\n").encode() + b"\x20",
    ],
)
def test_every_way_to_write_a_table_gives_its_rows(tmp_path, data):
    assert rows_of(read(tmp_path, data)) == ROWS
    # Pandas' own reader agrees where it knows the way.
    plain = data.startswith(b"slide_id,") and b",,,\n" not in data
    if plain and not data.endswith((b",\r\n", b" ")):
        frame = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False, index_col=False)
        if len(frame.columns) == len(ROWS):
            assert {n: frame[n].tolist() for n in ROWS} == ROWS


def test_the_delimiter_is_the_one_that_gives_the_columns(tmp_path):
    # More semicolons than commas in the header, yet the commas give the columns.
    names = [*REQUIRED, "a;b;c;d;e;f;g"]
    text = ",".join(names) + "\ns0,1,t,A,x\n"
    found = read(tmp_path, text.encode())
    assert set(found.table.column_names) == set(names)
    renamed = "slide_id;patch_id;biological_class;site, lab\ns0;1;t;A\n"
    found = read(tmp_path, renamed.encode(), columns={CENTER: "site, lab"})
    assert found.column(CENTER).tolist() == ["A"]


def test_a_message_names_the_line_on_which_a_row_begins(tmp_path):
    header = ",".join(ROWS).encode()
    for end in (b"\n", b"\r\n", b"\r"):
        lines = [b"sep=,", header, b's0,1,t,A,"x' + end + end + b'y"', b"", b's0,2,,A,"z"', b""]
        with pytest.raises(InputError, match=r"is empty in 1 rows, the first is line 7\."):
            read(tmp_path, end.join(lines))


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b's0,1,t,"A', ["line 3:", "a quote is opened and never closed"]),
        (b's0,1,t,"A" x', ["line 3:", "every quote in it is written twice"]),
        (b's0,1,t,"A \\"x\\" b"', ["line 3:", "every quote in it is written twice"]),
        (b"s0,1,t", ["line 3: expected 4 cells, as in the header, found 3"]),
        (b"s0,1,t,A,B", ["line 3: expected 4 cells", "found 5"]),
        (b"s0,1,t," + b"x" * 2_000_000, ["line 3:", "a cell has more than 131,072 characters"]),
        (b's0,1,t,"A\n' + b"s0,1,t,A\n" * 30_000, ["line 3:", "more than 131,072 char"]),
        (b"s0,1,t," + b"x" * 2_000, ["'medical_center' has more than 1024 char", "line 3"]),
        (b"s0,1,t,A\0B", ["column 'medical_center' holds the character NUL", "line 3"]),
        (b"s0,1,t,K\xf6ln", ["line 3: invalid UTF-8 (byte f6). Save it as CSV UTF-8."]),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, data, parts):
    head = (",".join(REQUIRED) + "\ns0,0,t,A\n").encode()
    with pytest.raises(InputError) as caught:
        read(tmp_path, head + data)
    for part in [str(tmp_path / "m.csv"), *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (write().encode("utf-16")[:-1], "ends inside a character of UTF-16"),
        (write().encode("utf-16-le"), "looks like UTF-16 without a byte order mark"),
        (b"", "Empty CSV"),
        (b"\n\n", "Empty CSV"),
        (b"\xef\xbb\xbf", "Empty CSV"),
        (b'"a', "a quote is opened and never closed"),
    ],
)
def test_a_file_that_is_no_table_of_text_is_named(tmp_path, data, part):
    with pytest.raises(InputError, match=part):
        read(tmp_path, data)


def test_many_rows_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "ROWS_AT_ONCE", 7)
    lines = [",".join(REQUIRED), *(f"s{i // 5},{i},t,A" for i in range(50))]
    found = read(tmp_path, "\n".join(lines).encode())
    assert found.column(PATCH).tolist() == [str(i) for i in range(50)]
    assert found.source_lines.tolist() == list(range(2, 52))


def test_names_of_columns_and_cells_are_canonical(tmp_path):
    text = "\ufeffslide_id , patch_id,biological_class,Zentru\u200bm\n"
    text += "s,1,t,Ko\u0308ln\ns2,1\0,u,K\u00f6ln\n"
    found = read(tmp_path, text.encode("utf-8-sig"), columns={CENTER: "Zentrum "})
    assert found.factorize(CENTER).names == ("Köln",)
    assert found.column("Zentrum\u200b").tolist() == ["Köln", "Köln"]
    assert found.column(PATCH).tolist() == ["1", "1"]
    with pytest.raises(InputError, match=r"patch s-1 appears twice: line 2 and line 3"):
        read(tmp_path, f"{','.join(REQUIRED)}\ns,1,t,A\ns\u200b,1,t,A\n".encode())


def extra_columns(n):
    """Columns of every type, and the text of their first row; None: the column is left out."""
    first, runs = uuid.UUID(int=0), pa.array([n], pa.int32())
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((n, 2, 2), np.float32))
    moment = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    east, nowhere = (pa.timestamp("us", tz=zone) for zone in ("+01:00", "No/Such"))
    return {
        "uuid": (pa.array([first.bytes] * n, pa.uuid()), str(first)),
        "json": (pa.array(['{"a": 1}'] * n, pa.json_()), '{"a": 1}'),
        "fixed": (pa.array([b"\xff\xfe" * 8] * n, pa.binary(16)), None),
        "duration": (pa.array([datetime.timedelta(seconds=2)] * n), "2000000"),
        "time": (pa.array([datetime.time(1, 2, 3)] * n), "01:02:03.000000"),
        "moment": (pa.array([moment] * n), "2024-01-01 00:00:00.000000Z"),
        "moment east": (pa.array([moment] * n, east), "2024-01-01 01:00:00.000000+0100"),
        "moment nowhere": (pa.array([moment] * n, nowhere), None),
        "decimal": (pa.array([decimal.Decimal("1.50")] * n), "1.50"),
        "half": (pa.array(np.full(n, 2.5, np.float16)), "2.5"),
        "whole": (pa.array([7.0] + [None] * (n - 1)), "7"),
        "nan": (pa.array(np.full(n, np.nan)), ""),
        "codes": (pa.array([b"\xff"] * n, pa.binary()).dictionary_encode(), None),
        "words": (pa.array(["a"] * n).dictionary_encode(), "a"),
        "nothing": (pa.nulls(n), ""),
        "list": (pa.array([[1]] * n), None),
        "struct": (pa.array([{"a": 1}] * n), None),
        "view": (pa.array([b"\xff"] * n, pa.binary_view()), None),
        "text_view": (pa.array(["a"] * n, pa.string_view()), "a"),
        "flag": (pa.array([True] * n), "true"),
        "bool8": (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1] * n, pa.int8())), "1"),
        "pair": (pa.array([[1.0, 2.0]] * n, pa.list_(pa.float32(), 2)), None),
        "tensor": (tensor, None),
        "runs": (pa.RunEndEncodedArray.from_arrays(runs, pa.array(["r"])), "r"),
        "a.b": (pa.array(["dot"] * n), "dot"),
    }


@pytest.mark.parametrize("name", extra_columns(2))
def test_a_column_that_nobody_asked_for_is_text_or_left_out(tmp_path, name):
    base = {SLIDE: ["s", "t"], PATCH: ["0", "1"], CLASS: ["a", "b"], CENTER: ["A", "B"]}
    column, text = extra_columns(2)[name]
    table = pa.table(base | {name: column})
    found = [manifests.as_manifest(table)]
    if name != "runs":  # Parquet cannot hold it
        pq.write_table(table, tmp_path / "m.parquet")
        found.append(manifests.read_manifest(str(tmp_path / "m.parquet")))
    for manifest in found:
        assert (manifest.column(name)[0] if name in manifest else None) == text


def test_ids_that_are_uuids_are_text(tmp_path):
    ids = [uuid.UUID(int=i) for i in (5, 2**100)]
    base = {SLIDE: ["s", "t"], CLASS: ["a", "b"], CENTER: ["A", "B"]}
    table = pa.table(base | {PATCH: pa.array([i.bytes for i in ids], pa.uuid())})
    pq.write_table(table, tmp_path / "m.parquet")
    frame = pd.DataFrame(base | {PATCH: ids, "image": [object(), object()]})
    for found in (
        manifests.read_manifest(str(tmp_path / "m.parquet")),
        manifests.as_manifest(frame),
        manifests.as_manifest(base | {PATCH: ids, "images": np.zeros((2, 3, 3))}),
    ):
        assert found.column(PATCH).tolist() == [str(i) for i in ids]
        assert set(found.table.column_names) == set(REQUIRED)


@pytest.mark.parametrize("missing", [float("nan"), None, np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_value_is_no_name(tmp_path, name, missing):
    base = {SLIDE: [0.0, 1.0, 2.0], PATCH: [0, 1, 2], CLASS: ["a", "b", "c"], CENTER: ["A"] * 3}
    frame = pd.DataFrame(base | {name: pd.Series([1, 2, missing], dtype=object)})
    for table in (frame, base | {name: frame[name].tolist()}):
        with pytest.raises(InputError, match=f"column '{name}' is empty in 1 rows.* row 2"):
            manifests.as_manifest(table)
    floats = base | {name: np.array([1, 2, np.nan])}
    pq.write_table(pa.table(floats), tmp_path / "m.parquet")
    for read_it in (
        lambda: manifests.as_manifest(floats),
        lambda: manifests.read_manifest(str(tmp_path / "m.parquet")),
    ):
        with pytest.raises(InputError, match=f"column '{name}' is empty in 1 rows.* row 2"):
            read_it()


def test_labels_of_datasets_have_their_names(tmp_path):
    features = {
        CLASS: {"_type": "ClassLabel", "names": ["normal", "tumor"]},
        CENTER: {"_type": "ClassLabel", "names": ["RUMC", "UMCU"]},
    }
    table = pa.table({SLIDE: ["s", "t"], PATCH: ["0", "1"], CLASS: [1, 0], CENTER: [0, 1]})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path = str(tmp_path / "m.parquet")
    pq.write_table(table, path)
    for found in (manifests.read_manifest(path), manifests.as_manifest(table)):
        assert found.column(CLASS).tolist() == ["tumor", "normal"]
        assert found.column(CENTER).tolist() == ["RUMC", "UMCU"]
    pq.write_table(table.set_column(2, CLASS, pa.array([1, -1])), path)
    with pytest.raises(InputError, match="'biological_class' is empty in 1 rows"):
        manifests.read_manifest(path)
    pq.write_table(table.set_column(2, CLASS, pa.array([1, 2])), path)
    with pytest.raises(InputError, match=r"m\.parquet: column 'biological_class'.*found 2"):
        manifests.read_manifest(path)


def test_tables_of_python_that_cannot_be_read_are_named():
    features = {CLASS: {"_type": "ClassLabel", "names": ["normal"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    coded = pa.table(ROWS | {CLASS: [0, 0, 0, 7]}).replace_schema_metadata(metadata)
    cases = [
        (coded, r"^rows: column 'biological_class': expected labels .* found 7"),
        (ROWS | {CLASS: [object()] * 4}, r"^rows: column 'biological_class': .* found values \("),
        (pd.DataFrame(ROWS | {CENTER: [object()] * 4}), r"'medical_center': .* found object \("),
        (ROWS | {"note": ["x"]}, r"^rows: expected a table .*equally long columns"),
        (3, r"^rows: expected a table .*found int"),
    ]
    for data, message in cases:
        with pytest.raises(InputError, match=message):
            table_files.as_table(data, source="rows", needed=REQUIRED)


def test_uuids_are_text_where_pyarrow_does_not_know_them(monkeypatch):
    array = pa.array

    def older(values, *arguments, **options):
        if any(isinstance(value, uuid.UUID) for value in values):
            raise pa.ArrowInvalid("did not recognize Python value type")
        return array(values, *arguments, **options)

    monkeypatch.setattr(pa, "array", older)
    first = uuid.UUID(int=5)
    data = {"id": [first, None], "mixed": [first, "x"], "other": [object(), 1]}
    table = table_files.as_table(data, source="rows", needed=())
    assert table.to_pydict() == {"id": [str(first), None]}


def test_a_size_beyond_memory_is_a_message(tmp_path, monkeypatch):
    def claim(*_, **__):
        raise pa.ArrowMemoryError("malloc of size 9223372036854775807 failed")

    pq.write_table(pa.table(ROWS), tmp_path / "m.parquet")
    monkeypatch.setattr(pq.ParquetFile, "read", claim)
    with pytest.raises(InputError, match=r"m\.parquet: cannot be read as a table \(malloc"):
        manifests.read_manifest(str(tmp_path / "m.parquet"))


def test_what_is_not_needed_is_not_read(tmp_path, monkeypatch):
    pq.write_table(
        pa.table(ROWS | {"image": [b"x" * 9] * 4, "box": [[1]] * 4}), tmp_path / "m.parquet"
    )
    asked, read_columns = [], pq.ParquetFile.read

    def note(self, columns=None, **options):
        asked.extend(columns)
        return read_columns(self, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read", note)
    assert rows_of(manifests.read_manifest(str(tmp_path / "m.parquet"))) == ROWS
    assert set(asked) == set(ROWS)


@pytest.mark.slow
def test_pythons_reader_finds_the_same_cells(tmp_path, rng):
    """Tables that the csv module writes, in dialects drawn at random."""
    parts = ["a", '"', ",", ";", "\n", "\r\n", "é", "'", " b", "\\"]
    for _ in range(30):
        n = int(rng.integers(1, 6))
        columns = {name: [f"{name[0]}{i}" for i in range(n)] for name in REQUIRED}
        columns["note"] = ["x" + "".join(rng.choice(parts, 5)) + "x" for _ in range(n)]
        dialect = {
            "delimiter": str(rng.choice([",", ";", "\t", "|"])),
            "lineterminator": str(rng.choice(["\n", "\r\n", "\r"])),
            "quoting": int(rng.choice([csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        }
        sink = io.StringIO(newline="")
        writer = csv.writer(sink, **dialect)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        assert rows_of(read(tmp_path, sink.getvalue().encode())) == columns
