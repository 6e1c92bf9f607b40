"""Files are whole or absent, local or remote."""

import hashlib
import os
import stat

import buckets
import numpy as np
import pyarrow.fs as pafs
import pytest

from pathorob_jax.core import digests, faults, files
from pathorob_jax.core.checks import InputError


def test_bytes_come_back_and_folders_are_made(tmp_path):
    path = str(tmp_path / "a" / "b.bin")
    files.write_bytes(path, b"\x00one")
    files.write_bytes(path, b"two")
    assert files.read_bytes(path) == b"two"
    assert os.listdir(tmp_path / "a") == ["b.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = str(tmp_path / "result.json")
    files.write_bytes(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_bytes(path, b"new")
    assert files.read_bytes(path) == b"old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_reader_during_a_write_sees_the_old_file(tmp_path, monkeypatch):
    path = str(tmp_path / "result.json")
    files.write_bytes(path, b"old")
    seen = []
    replace = os.replace

    def look_then_replace(*args):
        seen.append(files.read_bytes(path))
        replace(*args)

    monkeypatch.setattr(os, "replace", look_then_replace)
    files.write_bytes(path, b"new")
    assert seen == [b"old"]
    assert files.read_bytes(path) == b"new"


def test_an_object_store_gets_the_bytes_under_their_own_name(tmp_path, monkeypatch):
    buckets.stand_for(monkeypatch, tmp_path, "gs://bucket/")
    files.write_bytes("gs://bucket/a.bin", b"one")
    files.write_bytes("gs://bucket/a.bin", b"two")
    assert files.read_bytes("gs://bucket/a.bin") == b"two"
    assert os.listdir(tmp_path) == ["a.bin"]
    with pytest.raises(faults.WriteError, match=r"gs://bucket/none/a\.bin: cannot be written"):
        files.write_bytes("gs://bucket/none/a.bin", b"one")


@pytest.mark.parametrize("replaces", [True, False])
def test_a_folder_that_cannot_be_moved_leaves_the_old_one_in_its_place(tmp_path, replaces):
    place, aside = tmp_path / "store", tmp_path / "aside"
    if replaces:
        files.write_bytes(str(place / "old"), b"")
    with pytest.raises(OSError, match="nothing"):
        files.put_folder(str(tmp_path / "nothing"), str(place), aside=str(aside))
    assert os.listdir(tmp_path) == ["store"] * replaces
    files.write_bytes(str(tmp_path / "fresh" / "new"), b"")
    files.put_folder(str(tmp_path / "fresh"), str(place), aside=str(aside))
    assert os.listdir(place) == ["new"]
    assert sorted(os.listdir(tmp_path)) == (["aside", "store"] if replaces else ["store"])


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        files.write_bytes(str(tmp_path / "f"), b"")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "f").st_mode) == mode


def test_json_keeps_order_and_text(tmp_path):
    path = str(tmp_path / "x.json")
    files.write_json(path, {"z": 1, "a": [None, "é", 0.1]})
    assert list(files.read_json(path)) == ["z", "a"]
    assert files.read_json(path)["a"] == [None, "é", 0.1]
    assert "é" in files.read_bytes(path).decode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_is_no_number_and_keeps_the_old_file(tmp_path, value):
    path = str(tmp_path / "x.json")
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": [value]})
    assert files.read_json(path) == {"a": 1}


@pytest.mark.parametrize("data", [b"", b'{"a": 1', b"\xe9{}"])
def test_what_is_no_json_is_refused_by_name(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.json: expected JSON, found "):
        files.read_json(str(tmp_path / "x.json"))


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        files.read_bytes(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        files.read_bytes(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nothing: no such folder"):
        files.list_files(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        files.changed_ns(str(tmp_path / "nothing"))
    files.write_bytes(str(tmp_path / "f"), b"")
    with pytest.raises(FileNotFoundError, match="expected a folder, found a file"):
        files.list_files(str(tmp_path / "f"))


def test_the_text_of_an_error_is_one_line_without_what_tensorstore_adds():
    added = (
        "NOT_FOUND: no zarr.json [tensorstore_spec='{\"a\": []}'] [source locations='x.cc:1\ny']"
    )
    assert files.describe(ValueError(added)) == "NOT_FOUND: no zarr.json"
    assert files.describe(ValueError("[1, 2] is odd.\nmore")) == "[1, 2] is odd"
    assert files.describe(ValueError()) == "ValueError"


def test_listings_are_sorted_and_keep_files_and_folders_apart(tmp_path):
    for name in ("b.csv", "a.csv", "c.txt", "folder.csv/inner.csv"):
        files.write_bytes(str(tmp_path / name), b"")
    assert files.list_files(str(tmp_path), ".csv") == ["a.csv", "b.csv"]
    assert files.list_files(str(tmp_path)) == ["a.csv", "b.csv", "c.txt"]
    assert files.list_folders(str(tmp_path)) == ["folder.csv"]
    assert files.list_folders(str(tmp_path / "nothing")) == []
    assert files.exists(str(tmp_path / "folder.csv"))
    assert not files.exists(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("path", "joined"),
    [("a", "a/x/y"), ("a/", "a/x/y"), ("/", "/x/y"), ("gs://b/a/", "gs://b/a/x/y")],
)
def test_join_puts_one_slash_between_parts(path, joined):
    assert files.join(path, "x", "y") == joined


def test_paths_are_told_apart_without_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fs, inner = files.filesystem("a/b")
    assert isinstance(fs, pafs.LocalFileSystem)
    assert inner == str(tmp_path / "a" / "b")
    monkeypatch.setenv("HOME", "/home/someone")
    assert files.filesystem("~/a")[1] == "/home/someone/a"
    assert files.is_remote("gs://bucket/a")
    assert not files.is_remote("/a/b")


def test_a_google_cloud_path_loses_its_scheme():
    if not hasattr(pafs, "GcsFileSystem"):
        pytest.skip("this pyarrow is built without Google Cloud Storage")
    fs, inner = files.filesystem("gs://bucket/folder/data/")
    assert fs.type_name == "gcs"
    assert inner == "bucket/folder/data"


@pytest.mark.parametrize("path", ["ftp://host/a", "http://host/a"])
def test_an_unknown_scheme_is_refused(path):
    with pytest.raises(InputError, match=r"expected a local path, gs://bucket/\.\.\. or s3://"):
        files.filesystem(path)


def test_digests_tell_parts_apart():
    assert digests.digest(b"ab", b"c") != digests.digest(b"a", b"bc") != digests.digest(b"abc")
    by_hand = hashlib.sha256((2).to_bytes(8, "little") + b"ab").hexdigest()
    assert digests.digest(b"ab") == by_hand


@pytest.mark.slow
def test_digests_of_joined_parts_are_those_of_the_parts(rng):
    """Parts of no byte, of few and of more than 255, in blocks of any size."""
    parts = [rng.bytes(n) for n in (0, 3, 0, 300, 1, 70_000, 0)]

    def join(some):
        lengths = np.array([len(part) for part in some], np.int64)
        return lengths, np.frombuffer(b"".join(some), np.uint8)

    for cut in range(len(parts) + 1):
        blocks = [join(parts[:cut]), join(parts[cut:])]
        assert digests.digest_joined(blocks) == digests.digest_each(parts)
    assert digests.digest_joined([]) == digests.digest_each([])


def test_array_digests_tell_shape_type_and_values_apart():
    base = np.arange(6, dtype=np.float32)
    arrays = [base, base.reshape(2, 3), base.astype(np.float64), base.view(np.int32), base + 1]
    assert len({digests.digest_array(a) for a in arrays}) == 5
    table = base.reshape(2, 3)
    assert digests.digest_array(np.asfortranarray(table)) == digests.digest_array(table)
