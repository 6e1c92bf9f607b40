"""Joins that must be refused or said: what, where and the mend."""

import csv
import pickle
import zipfile

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.embeddings import import_formats

h5py = pytest.importorskip("h5py")


def write_csv(path, header, *rows):
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return str(path)


def write_slide(folder, name, n=4, d=5, *, seed=0, coords=None):
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}.h5", "w") as file:
        x = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
        file["features"] = x
        file["coords"] = np.arange(2 * n).reshape(n, 2) if coords is None else coords
    return x


def run(tmp_path, source, manifest=None, **given):
    return import_formats.import_embeddings(
        str(source), manifest, root=str(tmp_path / "out"), model="m", dataset="d", **given
    )


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "job" / "features_uni"
    for i, name in enumerate("ab"):
        write_slide(folder, name, seed=i)
    return folder


HEADER = ["slide_id", "biological_class", "medical_center"]
SLIDES = [["a", "x", "A"], ["b", "y", "B"]]


@pytest.mark.parametrize(
    ("header", "rows", "part"),
    [
        (HEADER, [*SLIDES, ["c", "x", "A"]], r"lacks 1 of the 3 slides .*'c' \(line 4\)"),
        (HEADER, [*SLIDES, ["a", "y", "A"]], r"slide 'a' has two rows \(line 2, line 4\)"),
        (HEADER, [["", "x", "A"]], r"column 'slide_id' is empty, line 2\. Fill or remove"),
        (
            ["slide_id", "medical_center"],
            [["a", "A"]],
            r"missing \['biological_class'\].*--label_c",
        ),
        (["id", *HEADER[1:]], SLIDES, r"expected shape \(2, any\).*--slide_column"),
        ([*HEADER, "x", "y"], [["a", "x", "A", 0, 3]], r"lacks 1 of the 1 patches.*'a, 0, 3'"),
        ([*HEADER, "x", "y"], [["a", "x", "A", 0, "?"]], "expected numbers in columns x and y"),
        ([*HEADER, "x", "y"], [["a", "x", "A", 0, 1.5]], r"expected whole numbers in x and y"),
        ([*HEADER, "x", "y"], [["a", "x", "A", 0, 1]] * 2, r"stands twice .*line 3"),
        ([*HEADER, "patch_id"], [["a", "x", "A", 4]], r"by slide and number of the row"),
        (
            [*HEADER, "patch_id", "x", "y"],
            [["a", "x", "A", "p", 0, 7]],
            r"lacks 1 of the 1 patches .*slide, x and y",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, job, header, rows, part):
    manifest = write_csv(tmp_path / "rows.csv", header, *rows)
    with pytest.raises(InputError, match=part) as caught:
        run(tmp_path, job, manifest)
    assert len(str(caught.value).splitlines()) == 1
    assert "rows.csv" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rows_without_a_label_are_left_out_and_said(tmp_path, job, caplog):
    caplog.set_level("INFO", "absl")
    write_slide(job, "empty", 0)
    store = run(tmp_path, job, write_csv(tmp_path / "s.csv", HEADER, ["b", "y", "B"]))
    assert len(store) == 4
    np.testing.assert_array_equal(store.read(), h5py.File(job / "b.h5")["features"][()])
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "labels joined by slide (1 slides)" in said
    assert "4 of the 8 rows" in said
    assert "1 files hold no patch, the first is" in said
    assert "patch ids are row numbers of each slide's file" in said


def test_numbers_of_rows_are_patch_ids(tmp_path, job):
    rows = [["b", "y", "B", 3], ["a", "x", "A", 0], ["b", "x", "B", 1]]
    store = run(tmp_path, job, write_csv(tmp_path / "s.csv", [*HEADER, "patch_id"], *rows))
    assert store.manifest.keys.to_pylist() == ["a-0", "b-1", "b-3"]
    assert store.manifest.column("biological_class").tolist() == ["x", "x", "y"]
    b = h5py.File(job / "b.h5")["features"][()]
    np.testing.assert_array_equal(store.read()[1:], b[[1, 3]])


def test_other_dimensions_empty_and_damaged_files_are_named(tmp_path, job):
    manifest = write_csv(tmp_path / "s.csv", HEADER, *SLIDES)
    write_slide(job, "b", d=6)
    with pytest.raises(InputError, match=r"b\.h5: has 6 dimensions, .*a\.h5 5\. All must come"):
        run(tmp_path, job, manifest)
    write_slide(job, "b", coords=np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"b\.h5: has 4 embeddings and 3 coordinates"):
        run(tmp_path, job, manifest)
    (job / "b.h5").write_bytes((job / "a.h5").read_bytes()[:900])
    with pytest.raises(InputError, match=r"b\.h5: cannot be read .*Copy it again"):
        run(tmp_path, job, manifest)
    for name in "ab":
        write_slide(job, name, 0)
    with pytest.raises(InputError, match=r"features_uni: expected embeddings, found not one row"):
        run(tmp_path, job, manifest)
    with h5py.File(job / "a.h5", "w") as file:
        file["patches"] = np.zeros(3)
    with pytest.raises(InputError, match=r"a\.h5: expected one of features, .*found patches"):
        run(tmp_path, job, manifest, form="trident")


def test_of_several_encoders_one_is_named(tmp_path, job):
    manifest = write_csv(tmp_path / "s.csv", HEADER, *SLIDES)
    other = tmp_path / "job" / "features_virchow"
    for i, name in enumerate("ab"):
        write_slide(other, name, d=7, seed=9 + i)
    with pytest.raises(InputError, match=r"several encoders\. Name one with --encoder: uni, virch"):
        run(tmp_path, tmp_path / "job", manifest)
    assert run(tmp_path, tmp_path / "job", manifest, encoder="virchow").dim == 7
    with pytest.raises(InputError, match=r"has no feature folder 'gigapath'\. Give --encoder"):
        run(tmp_path, tmp_path / "job", manifest, encoder="gigapath")


def test_rows_of_a_table_of_python_are_counted(tmp_path, job):
    table = dict(zip(HEADER, (["a", "b", "c"], ["x", "y", "x"], ["A", "B", "A"]), strict=True))
    with pytest.raises(InputError, match=r"of manifest .*'c' \(row 2, counting from 0\)"):
        run(tmp_path, job, table)


@pytest.fixture
def archive(tmp_path):
    """Rows whose slides, patches and places stand beside them."""
    x = np.random.default_rng(4).standard_normal((3, 5)).astype(np.float32)
    columns = {
        "slide_id": ["s", "s", "t"],
        "tile": ["p", "q", "p"],
        "coords": np.eye(3, 2, dtype=int),
    }

    def write(**changes):
        np.savez(tmp_path / "x.npz", features=x, **(columns | changes))
        return tmp_path / "x.npz"

    return write


def test_patches_are_joined_by_the_column_that_was_named(tmp_path, archive):
    rows = [["t", "p", "y", "B"], ["s", "q", "y", "A"], ["s", "p", "x", "A"]]
    header = ["slide_id", "tile", "biological_class", "medical_center"]
    manifest = write_csv(tmp_path / "rows.csv", header, *rows)
    store = run(tmp_path, archive(), manifest, columns={"patch_id": "tile"})
    assert store.manifest.keys.to_pylist() == ["s-p", "s-q", "t-p"]
    assert store.manifest.column("biological_class").tolist() == ["x", "y", "y"]


def test_patches_are_joined_by_their_id_where_the_manifest_names_no_slide(tmp_path, archive):
    rows = [["r", "y", "B"], ["p", "x", "A"], ["q", "y", "A"]]
    header = ["patch_id", "biological_class", "medical_center"]
    manifest = write_csv(tmp_path / "rows.csv", header, *rows)
    store = run(tmp_path, archive(patch_id=["p", "q", "r"]), manifest)
    assert store.manifest.keys.to_pylist() == ["s-p", "s-q", "t-r"]
    assert store.manifest.column("biological_class").tolist() == ["x", "y", "y"]


def test_a_patch_that_the_source_holds_twice_is_refused(tmp_path, archive):
    rows = [["p", "x", "A"], ["q", "y", "A"]]
    header = ["patch_id", "biological_class", "medical_center"]
    manifest = write_csv(tmp_path / "rows.csv", header, *rows)
    with pytest.raises(InputError, match=r"x\.npz: holds 'p' more than once, as row 0 and later"):
        run(tmp_path, archive(patch_id=["p", "q", "p"]), manifest)


def test_places_that_both_sides_have_must_agree(tmp_path, archive):
    header = [*HEADER, "patch_id", "x", "y"]
    rows = [["s", "x", "A", "p", 1, 0], ["s", "y", "A", "q", 0, 7]]
    manifest = write_csv(tmp_path / "rows.csv", header, *rows)
    source = archive(patch_id=["p", "q", "p"])
    with pytest.raises(
        InputError, match=r"x, y \[0, 7\] \(line 3\) are \[0, 1\] in .*x\.npz\. Corr"
    ):
        run(tmp_path, source, manifest)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_runs_nothing(tmp_path, capsys):
    manifest = write_csv(tmp_path / "s.csv", HEADER, *SLIDES)
    with zipfile.ZipFile(tmp_path / "e.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(), protocol=2))
    with pytest.raises(InputError, match=r"e\.pt: refused: it holds more than tensors"):
        run(tmp_path, tmp_path / "e.pt", manifest)
    assert capsys.readouterr().out == ""
    (tmp_path / "e.pt").write_bytes(b"PK\x03\x04nothing" * 9)
    with pytest.raises(InputError, match=r"e\.pt: no tensors of PyTorch .*Copy it again"):
        run(tmp_path, tmp_path / "e.pt", manifest)


@pytest.mark.torch
def test_tensors_are_read_as_torch_reads_them(tmp_path):
    torch = pytest.importorskip("torch")
    from pathorob_jax.embeddings.imports import torch_files

    base = torch.randn(9, 8, dtype=torch.float64)
    for value in (
        base,
        base.T,
        base[2:7, 1:6],
        base[:, ::2],
        base.to(torch.bfloat16),
        base.half()[None],
        torch.nn.Parameter(base.float()),
    ):
        torch.save(value, tmp_path / "t.pt")
        piece = torch_files.open_rows(str(tmp_path / "t.pt"))
        expected = value.detach().float().numpy()
        expected = expected[0] if expected.ndim == 3 else expected
        assert (piece.n_rows, piece.dim) == expected.shape
        rows = np.array([0, 1, 4])
        np.testing.assert_array_equal(piece.take(rows).astype(np.float32), expected[rows])


@pytest.mark.slow
def test_without_labels_the_message_asks_for_a_manifest(tmp_path, job):
    with pytest.raises(InputError, match="has no column 'biological_class'.*Give --manifest"):
        run(tmp_path, job)
