"""Names of folders, what is private, and faults of the machine."""

import errno
import os

import pytest

from pathorob_jax.core import faults, files, folder_names, privacy
from pathorob_jax.core.checks import InputError, UsageError, check_at_least


@pytest.mark.parametrize("name", ["uni2-h", "北京 1", "a b", "50%", "x:y", "Köln", "v1.0"])
def test_plain_names_are_folders_as_they_are(name):
    folder_names.check_folder_name(name, what="model")
    assert folder_names.split_confounder(folder_names.join_confounder("d", name)) == ("d", name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("a/b", "elsewhere"),
        ("a\\b", "elsewhere"),
        (".", "hidden"),
        ("..", "hidden"),
        (".a", "hidden"),
        ("a ", "blanks"),
        ("a\nb", "invisible"),
        ("a\u200bb", "invisible"),
        ("summary.json", "file of results"),
        ("ü" * 101, "more than 200 bytes"),
    ],
)
def test_other_names_are_refused_and_told_why(name, why):
    with pytest.raises(UsageError, match=f"model: expected a plain name without '/'.*{why}"):
        folder_names.check_folder_name(name, what="model")


def test_every_column_becomes_one_folder_of_its_own():
    columns = ["a/b", "a%2Fb", "a\\b", "..", ".", "/", "a@b", "@", " a", "a ", "%", "a\nb", "a"]
    names = [folder_names.join_confounder("d", column) for column in columns]
    assert len(set(names)) == len(columns)
    for name, column in zip(names, columns, strict=True):
        assert folder_names.split_confounder(name) == ("d", column)
        folder_names.check_folder_name(name, what="dataset")
    for column in ("", "x" * 250):
        with pytest.raises(UsageError, match="center_column: expected the name of a column"):
            folder_names.join_confounder("d", column)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SECRET@bucket/a", "s3://***@bucket/a"),
        ("s3://KEY:SE/CR+ET@bucket/a: no", "s3://***@bucket/a: no"),
        ("s3://KEY@bucket/a", "s3://***@bucket/a"),
        ("a s3://b/ours@scanner/x b", "a s3://b/ours@scanner/x b"),
        ("http://host:9000/b@c", "http://host:9000/b@c"),
        ("s3://b?access_key=A&secret_key=B&region=eu", "s3://b?access_key=***&secret_key=***&region=eu"),
        ("https://x/y?X-Amz-Signature=abc'", "https://x/y?X-Amz-Signature=***'"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("token hf_abcdefghij1234", "token ***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("/home/me/rows.csv: no such file", "/home/me/rows.csv: no such file"),
    ],
)  # fmt: skip
def test_credentials_are_hidden_and_nothing_else(text, shown):
    assert privacy.redact(text) == shown


def test_results_name_files_without_folders():
    assert privacy.file_name("/home/me/a.csv + b/c.csv") == "a.csv + c.csv"
    value = {
        "a": "/home/me/x.npy",
        "b": ["hf://owner/name", "s3://K:S@b/c.csv", 1, None],
        "c": "x/y",
    }
    assert privacy.without_folders(value) == {
        "a": "x.npy",
        "b": ["hf://owner/name", "c.csv", 1, None],
        "c": "x/y",
    }


def test_only_local_paths_and_two_object_stores_are_asked():
    for path in ("hf://owner/name", "hdfs://a/b", "abfss://a/b"):
        with pytest.raises(InputError, match=r"expected a local path, gs://bucket/\.\.\. or s3"):
            files.exists(path)


def test_an_empty_path_is_not_the_root():
    with pytest.raises(InputError, match="m: expected the folder that holds it"):
        files.join("", "m")
    with pytest.raises(InputError, match="output: expected a folder, found none"):
        faults.check_writable(" ")
    with pytest.raises(faults.WriteError, match=r"output: expected .* without NUL .*'a\\x00b'"):
        faults.check_writable("a\0b")


@pytest.mark.parametrize(
    ("name", "bits"), [("batch_size", 31), ("seed", 32), ("split_seed", 32), ("budget_bytes", 62)]
)
def test_numbers_fit_what_holds_them(name, bits):
    check_at_least(1, **{name: 2**bits - 1, "other": None})
    with pytest.raises(
        UsageError, match=rf"{name}: expected less than 2\*\*{bits}, found {2**bits}"
    ):
        check_at_least(1, **{name: 2**bits})
    with pytest.raises(UsageError, match=f"{name}: expected 1 or more, found 0"):
        check_at_least(1, **{name: 0})


def test_a_full_disk_is_found_before_the_work(tmp_path, monkeypatch):
    faults.check_writable(str(tmp_path / "new" / "deep"))
    assert list(tmp_path.iterdir()) == []
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*real[:4], 0, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(faults.WriteError, match=r"new: cannot be written \(No space left"):
        faults.check_writable(str(tmp_path / "new"))


@pytest.mark.slow
def test_what_libraries_say_of_faults_becomes_one_message():
    text = "RESOURCE_EXHAUSTED: Error writing x: [OS error 28: No space left on device]\nmore"
    assert "No space left on device). Make room" in faults.explain(ValueError(text))
    assert faults.explain(ValueError("RESOURCE_EXHAUSTED: quota of requests")) is None
    error = type("JaxRuntimeError", (RuntimeError,), {})("RESOURCE_EXHAUSTED: Out of memory: 9 GB")
    assert "Lower --batch_size, or take a machine" in faults.explain(error, lower="--batch_size")
    assert faults.explain(InputError("No space left on device")) is None
    error = OSError(errno.EDQUOT, "Disk quota exceeded", "/a/b")
    assert faults.explain(error).startswith("/a/b: cannot be written (Disk quota exceeded)")
    cut = pytest.raises(faults.WriteError, match=r"a: cannot be written \(.*word \.\.\.\)\. Make")
    with cut, faults.writing("a"):
        raise ValueError("word " * 100)
    error = PermissionError(errno.EACCES, "Permission denied", "/in.csv")
    assert (
        faults.explain(error) == "/in.csv: Permission denied. Check the path and its permissions."
    )
