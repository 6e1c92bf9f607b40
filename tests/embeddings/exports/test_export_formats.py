"""Exported stores come back bit for bit with their labels, through the tools they are for."""

import csv
import functools
import json
import os
import pathlib
import sys
import zipfile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stores

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.tileset import BadImage
from pathorob_jax.embeddings import export_formats, store_writer
from pathorob_jax.embeddings.exports import blocks
from pathorob_jax.embeddings.import_formats import import_embeddings

N, D, BAD = 23, 5, 7
ENDINGS = {"anndata": "h5ad", "parquet": "parquet", "npz": "npz"}


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks of three rows, so that a store has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 3 * 4 * D)
        yield


@pytest.fixture(scope="module")
def x():
    values = np.random.default_rng(3).standard_normal((N, D)).astype(np.float32)
    values[2, :3] = [np.float32(1e-42), -0.0, 1e14]  # bits, not numbers
    return values


def rows(**changes):
    row = np.arange(N)
    columns = {
        "patch_id": [f"0{i}" for i in row],
        "medical_center": [f"Zentrum {'Süd' if i // 6 % 3 else 'Nord'}" for i in row],
        "subset": ["ID"] * N,
        "note": ["", "=1", 'a "b", c'] * (N // 3) + ["x"] * (N % 3),
    }
    return stores.make_manifest(row % 2, row // 6 % 3, row // 6, **columns | changes)


def write_store(root, x, manifest, *, bad=True):
    """A store whose row 7 has no embedding, in chunks of eight."""
    path = root / "embeddings" / "m" / "d"
    with store_writer.create_store(
        str(path), manifest=manifest, dim=D, chunk_rows=8, identity={"encoder": "test"}
    ) as writer:
        for chunk in writer.missing_chunks:
            part = writer.chunk_slice(chunk)
            missing = [BadImage(BAD, "tile.png", "cut")] if bad and chunk == 0 else []
            writer.wait(writer.write(chunk, x[part], bad=missing))
        return writer.commit()


@pytest.fixture(scope="module")
def store(tmp_path_factory, x):
    return write_store(tmp_path_factory.mktemp("store"), x, rows())


@pytest.fixture(scope="module")
def exported(store, tmp_path_factory):
    """All formats of the store: format -> file or folder."""
    out = str(tmp_path_factory.mktemp("out"))
    paths = {
        form: export_formats.export_embeddings([store.path], form=form, output=out)[0]
        for form in ENDINGS
    }
    return paths | {"pathorob_npz": export_formats.export_features([store.path], output=out)[0]}


def bits(values):
    return np.asarray(values).view(np.uint32)


@pytest.mark.parametrize("form", [*ENDINGS, "pathorob_npz"])
def test_a_round_trip_is_lossless(exported, store, form, tmp_path):
    path = exported[form]
    manifest = os.path.join(path, "manifest.csv") if form == "pathorob_npz" else None
    back = import_embeddings(path, manifest, root=str(tmp_path), model="m", dataset="d")
    assert back.info["identity"]["source"]["format"] == form
    np.testing.assert_array_equal(bits(back.read()), bits(store.read()))
    assert len(back) == N - 1
    # A subset belongs to a view of the store, so imports leave it out.
    names = [name for name in store.manifest.table.column_names if name != "subset"]
    assert set(names) <= set(back.manifest.table.column_names)
    for name in names:
        assert back.manifest.column(name).tolist() == store.manifest.column(name).tolist(), name


def test_files_are_named_by_model_and_dataset(exported):
    for form, ending in ENDINGS.items():
        assert exported[form].endswith(f"/m/d.{ending}")
    assert exported["pathorob_npz"].endswith("/features/m/d")
    assert set(os.listdir(exported["pathorob_npz"])) == {
        "Zentrum_Nord.npz",
        "Zentrum_Süd.npz",
        "manifest.csv",
    }


def test_numpy_reads_the_archives(exported, store):
    x, keys = store.read(), store.manifest.keys.to_pylist()
    with np.load(exported["npz"], allow_pickle=False) as whole:
        np.testing.assert_array_equal(bits(whole["embeddings"]), bits(x))
        assert whole["medical_center"].tolist() == store.manifest.column("medical_center").tolist()
        assert set(whole.files) == {"embeddings", *store.manifest.table.column_names}
    found = {}
    for center in ("Nord", "Süd"):
        path = f"{exported['pathorob_npz']}/Zentrum_{center}.npz"
        with np.load(path, allow_pickle=False) as archive:
            members = dict(archive)
        mine = store.manifest.column("medical_center") == f"Zentrum {center}"
        assert list(members) == [key for key, own in zip(keys, mine, strict=True) if own]
        assert {(v.dtype, v.shape) for v in members.values()} == {(np.dtype(np.float32), (D,))}
        found |= members
        # As np.savez writes them, to the byte.
        np.savez(path + ".again.npz", **members)
        with zipfile.ZipFile(path) as ours, zipfile.ZipFile(path + ".again.npz") as theirs:
            assert ours.namelist() == theirs.namelist()
            assert all(ours.read(name) == theirs.read(name) for name in ours.namelist())
        os.remove(path + ".again.npz")
    np.testing.assert_array_equal(bits([found[key] for key in keys]), bits(x))


def test_parquet_is_read_by_pyarrow_and_pandas(exported, store):
    path = exported["parquet"]
    schema = pq.read_schema(path)
    assert pa.types.is_fixed_size_list(schema.field("embedding").type)
    assert schema.field("embedding").type.list_size == D
    assert json.loads(schema.metadata[b"pathorob_jax"])["identity"] == {"encoder": "test"}
    assert pq.ParquetFile(path).num_row_groups == 8  # of three rows
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(path)
    np.testing.assert_array_equal(bits(np.stack(frame["embedding"])), bits(store.read()))
    assert frame["slide_id"].tolist() == store.manifest.column("slide_id").tolist()
    assert frame["note"].tolist() == store.manifest.column("note").tolist()


@pytest.mark.slow
def test_parquet_is_read_by_datasets(exported, store, tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_parquet(exported["parquet"], cache_dir=str(tmp_path))
    np.testing.assert_array_equal(bits(np.float32(data["embedding"][:])), bits(store.read()))
    assert data["slide_id"][:] == store.manifest.column("slide_id").tolist()


def test_anndata_follows_its_specification(exported, store):
    def kind(item):
        return item.attrs["encoding-type"], item.attrs["encoding-version"]

    with h5py.File(exported["anndata"]) as file:
        assert kind(file) == ("anndata", "0.1.0")
        assert kind(file["X"]) == ("array", "0.2.0")
        assert (file["X"].dtype, file["X"].shape) == (np.dtype("<f4"), (N - 1, D))
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            assert kind(file[name]) == ("dict", "0.1.0")
        for name, n in (("obs", N - 1), ("var", D)):
            frame = file[name]
            assert kind(frame) == ("dataframe", "0.2.0")
            assert kind(frame[frame.attrs["_index"]]) == ("string-array", "0.2.0")
            assert len(frame[frame.attrs["_index"]]) == n
        obs = file["obs"]
        assert obs.attrs["column-order"].tolist() == store.manifest.table.column_names
        assert obs["_index"].asstr()[:].tolist() == store.manifest.keys.to_pylist()
        assert kind(obs["patch_id"]) == ("string-array", "0.2.0")
        center = obs["medical_center"]
        assert kind(center) == ("categorical", "0.2.0")
        assert not center.attrs["ordered"]
        named = center["categories"].asstr()[:][center["codes"][:]]
        assert named.tolist() == store.manifest.column("medical_center").tolist()
        origin = json.loads(file["uns/store"].asstr()[()])
        assert origin["identity"] == {"encoder": "test"}


def test_anndata_reads_it(exported, store):
    anndata = pytest.importorskip("anndata")
    back = anndata.read_h5ad(exported["anndata"])
    np.testing.assert_array_equal(bits(back.X), bits(store.read()))
    for name in store.manifest.table.column_names:
        assert back.obs[name].tolist() == store.manifest.column(name).tolist()
    assert back.obs_names.tolist() == store.manifest.keys.to_pylist()


def test_nothing_is_replaced_unasked_and_nothing_is_half_written(store, x, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    [path] = export_formats.export_embeddings([store.path], form="npz", output=out)
    before = pathlib.Path(path).read_bytes()
    with pytest.raises(InputError, match=r"d\.npz: is there already. Give --overwrite"):
        export_formats.export_embeddings([store.path], form="npz", output=out)
    folder = export_formats.export_features([store.path], output=out)[0]
    with pytest.raises(InputError, match="features/m/d: is there already"):
        export_formats.export_features([store.path], output=out)

    def fail(self, rows=None):
        if rows is not None and rows[0] > 9:
            raise InputError("damaged")
        return x[:1].repeat(len(rows), 0)

    monkeypatch.setattr(type(store), "read", fail)
    for form in ENDINGS:
        with pytest.raises(InputError, match="damaged"):
            export_formats.export_embeddings([store.path], form=form, output=out, overwrite=True)
    with pytest.raises(InputError, match="damaged"):
        export_formats.export_features([store.path], output=out, overwrite=True)
    monkeypatch.undo()
    assert pathlib.Path(path).read_bytes() == before
    assert sorted(os.listdir(os.path.dirname(path))) == ["d.npz"]
    assert sorted(os.listdir(os.path.dirname(folder))) == ["d"]
    export_formats.export_embeddings([store.path], form="npz", output=out, overwrite=True)
    export_formats.export_features([store.path], output=out, overwrite=True)
    assert pathlib.Path(path).read_bytes() == before
    assert len(os.listdir(folder)) == 3


# Patch 1 of slide s-0 and patch 0-1 of slide s.
ONE_KEY = {
    "slide_id": ["s", "s-0", *["t"] * (N - 2)],
    "patch_id": ["0-1", "1", *map(str, range(2, N))],
    "medical_center": ["A"] * N,
}


@pytest.mark.parametrize(
    ("changes", "form", "words"),
    [
        ({"embedding": ["a"] * N}, "parquet", "column 'embedding', which is the name"),
        ({"embeddings": ["a"] * N}, "npz", "column 'embeddings', which is the name"),
        ({"a/b": ["a"] * N}, "anndata", "takes '/' and '.' in the column 'a/b' for folders"),
        ({"medical_center": ["A/B"] * N}, None, "centre 'A/B' cannot be the name of a file"),
        (ONE_KEY, None, "patch '0-1' of slide 's' and patch '1' of slide 's-0' are both 's-0-1'"),
    ],
)
def test_what_a_format_cannot_hold_is_named(changes, form, words, x, tmp_path):
    stores = [write_store(tmp_path, x, rows(**changes), bad=False).path]
    export = export_formats.export_features
    if form is not None:
        export = functools.partial(export_formats.export_embeddings, form=form)
    with pytest.raises(InputError, match=words):
        export(stores, output=str(tmp_path / "out"))
    assert [name for _, _, names in os.walk(tmp_path / "out") for name in names] == []


def test_without_h5py_the_way_to_it_is_named(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"/d: writing \.h5ad needs h5py: pip install '.*\[hdf5\]"):
        export_formats.export_embeddings([store.path], form="anndata", output=str(tmp_path))
    assert [name for _, _, names in os.walk(tmp_path) for name in names] == []


def test_centres_that_are_one_file_share_it(x, tmp_path):
    centers = [("North Sea", "North_Sea")[i // 6 % 2] for i in range(N)]
    store = write_store(tmp_path, x, rows(medical_center=centers), bad=False)
    [folder] = export_formats.export_features([store.path], output=str(tmp_path / "out"))
    assert sorted(os.listdir(folder)) == ["North_Sea.npz", "manifest.csv"]
    back = import_embeddings(
        folder, f"{folder}/manifest.csv", root=str(tmp_path / "b"), model="m", dataset="d"
    )
    np.testing.assert_array_equal(bits(back.read()), bits(x))
    with open(f"{folder}/manifest.csv", newline="") as stream:
        assert [row["medical_center"] for row in csv.DictReader(stream)] == centers


@pytest.mark.slow
def test_remote_and_unknown_are_refused(store):
    with pytest.raises(InputError, match="expected a local path"):
        export_formats.export_embeddings([store.path], form="npz", output="gs://bucket/x")
    with pytest.raises(UsageError, match=r"format: unknown name 'csv'"):
        export_formats.export_embeddings([store.path], form="csv", output="x")
