"""Embeddings made elsewhere end as the same store, row by row, or are refused by name."""

import io
import json
import unicodedata
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stores as small_stores

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import manifest as manifests
from pathorob_jax.embeddings import import_formats, store_writer
from pathorob_jax.embeddings import store as stores

D = 5
CENTERS = ("RUMC", "Roswell Park", "University of Pittsburgh")
FILES = ("RUMC.npz", "Roswell_Park.npz", "University_of_Pittsburgh.npz")


def make_manifest(n=30, source="meta.csv", **changes):
    """Patch i lies on slide i // 2 of centre i // 2 % 3."""
    row = np.arange(n)
    columns = {
        "slide_id": [f"slide {i // 2}" for i in row],
        "patch_id": [f"{i}_0" for i in row],
        "medical_center": [CENTERS[i // 2 % 3] for i in row],
    }
    made = columns | changes
    return small_stores.make_manifest(row % 2, row, row, source=source, **made)


def make_embeddings(n=30, dtype=np.float32):
    return np.random.default_rng(3).standard_normal((n, D)).astype(dtype)


def write_npz(folder, manifest, embeddings, *, save=np.savez):
    """PathoROB's feature folder."""
    folder.mkdir(exist_ok=True)
    centers, keys = manifest.column("medical_center"), manifest.keys.to_pylist()
    for center, name in zip(CENTERS, FILES, strict=True):
        rows = np.flatnonzero(centers == center)
        save(folder / name, **{keys[i]: embeddings[i] for i in rows})
    return str(folder)


def run(root, source, view, *, form="pathorob_npz", overwrite=False):
    return import_formats.import_embeddings(
        str(source),
        view,
        form=form,
        root=str(root),
        model="phikon_v2",
        dataset="camelyon",
        overwrite=overwrite,
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_feature_folder_becomes_a_store(tmp_path, save, dtype):
    manifest, embeddings = make_manifest(), make_embeddings(dtype=dtype)
    source = write_npz(tmp_path / "features", manifest, embeddings, save=save)
    made = run(tmp_path, source, [manifest])
    np.testing.assert_array_equal(made.read(), embeddings.astype(np.float32))
    assert made.path == f"{tmp_path}/phikon_v2/camelyon"
    assert made.manifest.keys.to_pylist() == manifest.keys.to_pylist()
    assert made.info["identity"]["encoder"]["model"] == "phikon_v2"
    assert made.info["identity"]["source"]["format"] == "pathorob_npz"
    opened = stores.open_store(f"{tmp_path}/phikon_v2/camelyon")
    np.testing.assert_array_equal(opened.read(), made.read())


def test_a_feature_folder_takes_a_table_of_python_and_no_less(tmp_path):
    manifest, embeddings = make_manifest(), make_embeddings()
    source = write_npz(tmp_path / "features", manifest, embeddings)
    with pytest.raises(UsageError, match="format pathorob_npz needs PathoROB's metadata file"):
        run(tmp_path, source, None)
    made = run(tmp_path, source, {n: manifest.column(n) for n in manifest.table.column_names})
    np.testing.assert_array_equal(made.read(), embeddings)


def test_a_member_may_be_a_row_vector_and_others_may_lie_beside_it(tmp_path):
    manifest, embeddings = make_manifest(), make_embeddings()
    source = write_npz(tmp_path / "f", manifest, embeddings[:, None, :])
    (tmp_path / "f" / "CWZ.npz").write_bytes(b"of no interest")
    np.testing.assert_array_equal(run(tmp_path, source, [manifest]).read(), embeddings)


def test_several_manifests_are_united(tmp_path):
    whole, embeddings = make_manifest(), make_embeddings()
    source = write_npz(tmp_path / "f", whole, embeddings)
    order = np.array([29, 4, 5, 12])
    columns = {n: whole.take(order).column(n) for n in whole.table.column_names}
    reduced = manifests.as_manifest(columns | {"subset": ["x"] * 4}, source="reduced.csv")
    made = run(tmp_path, source, [reduced, whole])
    expected = [*order, *(i for i in range(30) if i not in order)]
    assert made.manifest.keys.to_pylist() == [whole.keys.to_pylist()[i] for i in expected]
    np.testing.assert_array_equal(made.read(), embeddings[expected])
    assert "subset" not in made.manifest


def test_patches_are_imported_over_chunk_borders(tmp_path, monkeypatch):
    monkeypatch.setattr(import_formats, "CHUNK_ROWS", 7)
    manifest, embeddings = make_manifest(), make_embeddings()
    made = run(tmp_path, write_npz(tmp_path / "f", manifest, embeddings), [manifest])
    assert made.info["chunk_rows"] == 7
    np.testing.assert_array_equal(made.read(), embeddings)


@pytest.mark.parametrize("form", ["pathorob_npz", "npy"])
def test_an_import_that_stopped_goes_on_and_ends_the_same(tmp_path, monkeypatch, form):
    monkeypatch.setattr(import_formats, "CHUNK_ROWS", 4)
    manifest, embeddings = make_manifest(), make_embeddings()
    source = write_npz(tmp_path / "f", manifest, embeddings)
    if form == "npy":
        source = tmp_path / "e.npy"
        np.save(source, embeddings)
    write, written = store_writer.StoreWriter.write, []

    def stop_at_third(self, chunk, rows):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(chunk)
        return write(self, chunk, rows)

    monkeypatch.setattr(store_writer.StoreWriter, "write", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", source, [manifest], form=form)
    with pytest.raises(InputError, match=r"unfinished \(6 chunks missing\)"):
        stores.open_store(f"{tmp_path}/a/phikon_v2/camelyon")

    def count(self, chunk, rows):
        written.append(chunk)
        return write(self, chunk, rows)

    monkeypatch.setattr(store_writer.StoreWriter, "write", count)
    resumed = run(tmp_path / "a", source, [manifest], form=form)
    assert written == list(range(8))
    np.testing.assert_array_equal(resumed.read(), embeddings)
    assert resumed.info == run(tmp_path / "b", source, [manifest], form=form).info
    # And a third time, with nothing left to do.
    written.clear()
    np.testing.assert_array_equal(
        run(tmp_path / "a", source, [manifest], form=form).read(), embeddings
    )
    assert written == []


@pytest.mark.parametrize("form", ["pathorob_npz", "npy"])
def test_other_values_of_the_same_size_are_another_configuration(tmp_path, form):
    manifest, embeddings = make_manifest(), make_embeddings()
    other = embeddings.copy()
    other[17] += 1

    def write(values):
        if form == "npy":
            np.save(tmp_path / "e.npy", values)
            return tmp_path / "e.npy"
        return write_npz(tmp_path / "f", manifest, values)

    run(tmp_path, write(embeddings), [manifest], form=form)
    with pytest.raises(InputError, match=r"another configuration \(source: there .*--overwrite"):
        run(tmp_path, write(other), [manifest], form=form)
    found = run(tmp_path, write(other), [manifest], form=form, overwrite=True)
    np.testing.assert_array_equal(found.read(), other)


def _rewrite(folder, name, **members):
    with np.load(folder / name) as archive:
        kept = dict(archive)
    kept |= members
    np.savez(folder / name, **{k: v for k, v in kept.items() if v is not None})


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (None, "lacks patch slide 1-2_0"),
        (np.ones(D + 1, np.float32), "member slide 1-2_0 has 6 values, the first patch 5"),
        (np.ones(D, np.int64), "expected one vector of floats, found int64 of shape (5,)"),
        (np.ones((2, D), np.float32), "expected one vector of floats, found float32 of shape (2"),
        (np.float32(1), "expected one vector of floats, found float32 of shape ()"),
        (np.ones(0, np.float32), "expected one vector of floats, found float32 of shape (0,)"),
        (np.array(["a"]), "expected one vector of floats, found <U1"),
        (np.array([{"a": 1}], object), "member slide 1-2_0 cannot be read (Object arrays"),
    ],
)
def test_a_bad_member_is_named_with_its_file(tmp_path, value, part):
    manifest = make_manifest()
    source = write_npz(tmp_path / "f", manifest, make_embeddings())
    _rewrite(tmp_path / "f", FILES[1], **{"slide 1-2_0": value})
    with pytest.raises(InputError) as caught:
        run(tmp_path, source, [manifest])
    assert str(caught.value).startswith(f"{source}/Roswell_Park.npz: ")
    assert part in str(caught.value)


@pytest.mark.parametrize("value", [np.float32("nan"), np.float32(0), np.float64(1e300)])
def test_a_member_without_direction_is_named(tmp_path, value):
    manifest = make_manifest()
    source = write_npz(tmp_path / "f", manifest, make_embeddings())
    _rewrite(tmp_path / "f", FILES[1], **{"slide 1-2_0": np.full(D, value)})
    with pytest.raises(InputError, match=r"the embedding of patch slide 1-2_0 \(row 2\) holds"):
        run(tmp_path, source, [manifest])


def test_missing_folders_and_files_are_named(tmp_path):
    manifest = make_manifest()
    with pytest.raises(FileNotFoundError, match="nothing: no such folder of PathoROB features"):
        run(tmp_path, tmp_path / "nothing", [manifest])
    source = write_npz(tmp_path / "f", manifest, make_embeddings())
    (tmp_path / "f" / FILES[2]).unlink()
    with pytest.raises(FileNotFoundError, match=r"f/University_of_Pittsburgh\.npz: no such file"):
        run(tmp_path, source, [manifest])


@pytest.mark.slow
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive_is_refused_by_name_or_read_right(tmp_path, save):
    manifest, embeddings = make_manifest(), make_embeddings()
    source = write_npz(tmp_path / "f", manifest, embeddings, save=save)
    file = tmp_path / "f" / FILES[1]
    whole = file.read_bytes()
    refused = 0
    for at in range(0, len(whole), 41):
        for damaged in (
            whole[:at],
            whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :],
        ):
            file.write_bytes(damaged)
            try:
                made = run(tmp_path, source, [manifest], overwrite=True)
            except InputError as error:
                refused += str(file) in str(error)
            else:
                np.testing.assert_array_equal(made.read(), embeddings)
    assert refused > len(whole) // 41


def test_an_archive_that_is_none_is_refused(tmp_path):
    manifest = make_manifest()
    source = write_npz(tmp_path / "f", manifest, make_embeddings())
    sink = io.BytesIO()
    np.save(sink, np.ones((3, D), np.float32))
    for data in (b"", b"PK\x03\x04garbage" * 9, b"\x80\x04pickle", sink.getvalue()):
        (tmp_path / "f" / FILES[0]).write_bytes(data)
        with pytest.raises(InputError, match=r"f/RUMC\.npz: "):
            run(tmp_path, source, [manifest])


def test_damaged_values_do_not_pass_as_embeddings(tmp_path):
    manifest, embeddings = make_manifest(), make_embeddings()
    source = write_npz(tmp_path / "f", manifest, embeddings)
    file = tmp_path / "f" / FILES[1]
    with zipfile.ZipFile(file) as archive:
        assert all(m.compress_type == zipfile.ZIP_STORED for m in archive.infolist())
    whole = bytearray(file.read_bytes())
    whole[whole.index(embeddings[2].tobytes())] ^= 1
    file.write_bytes(whole)
    with pytest.raises(InputError, match="member slide 1-2_0 cannot be read"):
        run(tmp_path, source, [manifest])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_becomes_a_store(tmp_path, dtype, order):
    manifest, embeddings = make_manifest(), make_embeddings(dtype=dtype)
    np.save(tmp_path / "e.npy", np.asarray(embeddings, order=order))
    made = run(tmp_path, tmp_path / "e.npy", [manifest], form="npy")
    np.testing.assert_array_equal(made.read(), embeddings.astype(np.float32))


def test_rows_of_an_array_follow_the_manifest_where_patches_recur(tmp_path):
    base = make_manifest(6)
    order = [3, 0, 3, 5, 0, 1]
    columns = {n: base.column(n)[order] for n in base.table.column_names}
    subsets = ["a", "a", "b", "b", "c", "c"]
    manifest = manifests.as_manifest(columns | {"subset": subsets})
    embeddings = make_embeddings(6)
    np.save(tmp_path / "e.npy", embeddings)
    made = run(tmp_path, tmp_path / "e.npy", [manifest], form="npy")
    assert made.manifest.column("patch_id").tolist() == ["3_0", "0_0", "5_0", "1_0"]
    np.testing.assert_array_equal(made.read(), embeddings[[0, 1, 3, 5]])


def test_rows_of_an_array_follow_a_view_and_not_the_file_it_was_cut_from(tmp_path):
    view = make_manifest().take(np.array([20, 3, 11]))
    embeddings = make_embeddings(3)
    np.save(tmp_path / "e.npy", embeddings)
    made = run(tmp_path, tmp_path / "e.npy", [view], form="npy")
    np.testing.assert_array_equal(made.read(), embeddings)
    assert made.manifest.column("patch_id").tolist() == ["20_0", "3_0", "11_0"]


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.ones((29, D), np.float32), r"expected shape \(30, any\) \(rows of meta\.csv"),
        (
            np.ones(30, np.float32),
            r"expected embeddings of shape \(rows, dimensions\), found \(30,\)",
        ),
        (np.ones((30, D), np.int32), "expected floats, found int32"),
        (np.ones((30, 0), np.float32), r"expected floats, found float32 of shape \(30, 0\)"),
        (np.full((30, D), {}, object), r"cannot be read as \.npy"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(tmp_path, array, part):
    np.save(tmp_path / "e.npy", array)
    with pytest.raises(InputError, match=rf"e\.npy: {part}"):
        run(tmp_path, tmp_path / "e.npy", [make_manifest()], form="npy")


def test_a_file_that_is_no_array_is_refused(tmp_path):
    sink = io.BytesIO()
    np.savez(sink, x=make_embeddings())
    for data in (b"", b"garbage" * 9, b"PK\x03\x04garbage", sink.getvalue()):
        (tmp_path / "e.npy").write_bytes(data)
        with pytest.raises(InputError, match=r"e\.npy: cannot be read as \.npy"):
            run(tmp_path, tmp_path / "e.npy", [make_manifest()], form="npy")
    with pytest.raises(FileNotFoundError, match="nothing: no such array"):
        run(tmp_path, tmp_path / "nothing", [make_manifest()], form="npy")


def test_an_array_takes_one_manifest(tmp_path):
    np.save(tmp_path / "e.npy", make_embeddings())
    with pytest.raises(UsageError, match="takes exactly one manifest, found 2"):
        run(tmp_path, tmp_path / "e.npy", [make_manifest()] * 2, form="npy")


def test_an_unknown_format_names_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match=r"'numpy'\. Did you mean 'npy'\? Known: anndata, arrow"):
        run(tmp_path, tmp_path, [make_manifest()], form="numpy")


@pytest.mark.slow
@pytest.mark.golden
def test_the_golden_embeddings_become_a_store(tmp_path, shared):
    golden = np.load(shared / "golden" / "embeddings_tcga.npz")
    path = shared / "pathorob" / "metadata" / "tcga_4x4.csv"
    whole = manifests.read_manifest(str(path))
    pairs = manifests.read_manifest(str(shared / "golden" / "tcga_2x2.csv"))
    keys = [f"{s}-{p}" for s, p in zip(golden["slide_id"], golden["patch_id"], strict=True)]
    features = dict(zip(keys, golden["features"], strict=True))
    folder = tmp_path / "features" / "phikon_v2" / "tcga"
    folder.mkdir(parents=True)
    centers = whole.column("medical_center")
    for center in whole.factorize("medical_center").names:
        wanted = np.flatnonzero(centers == center)
        members = {k: features[k] for k in np.asarray(whole.keys.to_pylist())[wanted]}
        np.savez(folder / f"{center.replace(' ', '_')}.npz", **members)
    made = run(tmp_path, folder, [pairs, whole])
    assert len(made.manifest) == len(whole) == 8160
    found = made.read(manifests.locate(pairs, made.manifest))
    expected = np.stack([features[key] for key in pairs.keys.to_pylist()]).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


def _decomposed(columns):
    return {n: [unicodedata.normalize("NFD", v) for v in values] for n, values in columns.items()}


def test_features_are_found_by_name_whatever_their_unicode_form(tmp_path):
    centers = ("Bonn", "Köln")
    columns = {
        "slide_id": [f"Düsseldorf {i // 2}" for i in range(12)],
        "patch_id": [str(i) for i in range(12)],
        "biological_class": ["a", "b"] * 6,
        "medical_center": [centers[i // 2 % 2] for i in range(12)],
    }
    embeddings = make_embeddings(12)
    folder = tmp_path / "f"
    folder.mkdir()
    mac = _decomposed(columns)
    for center in set(mac["medical_center"]):
        rows = [i for i in range(12) if mac["medical_center"][i] == center]
        keys = [f"{mac['slide_id'][i]}-{mac['patch_id'][i]}" for i in rows]
        np.savez(folder / f"{center}.npz", **dict(zip(keys, embeddings[rows], strict=True)))
    for name, table in (("same", columns), ("mac", mac)):
        view = manifests.as_manifest(table)
        made = run(tmp_path / name, folder, [view])
        np.testing.assert_array_equal(made.read(), embeddings)
        assert made.manifest.factorize("medical_center").names == centers
    # The same patches, whichever table names them.
    other = manifests.as_manifest(mac)
    assert manifests.locate(other, made.manifest).tolist() == list(range(12))
    np.savez(folder / "Köln.npz", x=embeddings[0])  # beside that of the Mac
    with pytest.raises(InputError, match=r"holds 'Köln\.npz' 2 times"):
        run(tmp_path / "twice", folder, [manifests.as_manifest(columns)])


def test_two_patches_of_one_member_are_refused(tmp_path):
    columns = {
        "slide_id": ["a", "a-s", "b"],
        "patch_id": ["s-1", "1", "1"],
        "biological_class": ["x", "y", "x"],
        "medical_center": ["RUMC", "RUMC", "UMCU"],
    }
    view, embeddings = manifests.as_manifest(columns), make_embeddings(3)
    (tmp_path / "f").mkdir()
    np.savez(tmp_path / "f" / "RUMC.npz", **{"a-s-1": embeddings[0]})
    np.savez(tmp_path / "f" / "UMCU.npz", **{"b-1": embeddings[2]})
    with pytest.raises(
        InputError, match=r"'s-1' of slide 'a' and patch '1' of slide 'a-s' are both"
    ):
        run(tmp_path, tmp_path / "f", [view])
    # An array tells them apart.
    np.save(tmp_path / "e.npy", embeddings)
    made = run(tmp_path, tmp_path / "e.npy", [view], form="npy")
    np.testing.assert_array_equal(made.read(), embeddings)


@pytest.mark.slow
def test_a_store_whose_names_were_kept_as_found_is_read(tmp_path):
    view = make_manifest()
    np.save(tmp_path / "e.npy", make_embeddings())
    path = run(tmp_path, tmp_path / "e.npy", [view], form="npy").path
    table = pq.read_table(f"{path}/manifest.parquet")
    odd = [f"{name}\u200b" for name in table["slide_id"].to_pylist()]
    pq.write_table(
        table.set_column(table.column_names.index("slide_id"), "slide_id", pa.array(odd)),
        f"{path}/manifest.parquet",
    )
    with pytest.raises(InputError, match="is not the one that the embeddings were made with"):
        stores.open_store(path)
    record = tmp_path / "phikon_v2" / "camelyon" / "store.json"
    written = manifests.fingerprint_file(f"{path}/manifest.parquet")
    # As versions without a digest of store.json wrote it.
    old = json.loads(record.read_text()) | {"manifest_sha256": written, "schema_version": 1}
    record.write_text(json.dumps({name: old[name] for name in old if name != "digest"}))
    assert stores.open_store(path).manifest.keys == view.keys
