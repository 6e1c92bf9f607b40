"""Finished tasks: taken up as they were kept, or computed again with a word; never an error."""

import io
import json

import numpy as np
import pytest

from pathorob_jax.core import digests
from pathorob_jax.core.task_files import TaskFiles

ARRAYS = {"labels": np.arange(400).reshape(2, 200) % 7, "k": np.array(3)}
COUNTS = {"linear": {"id": [[1, 2], [3, 4]], "ood": None}}


def accept(result):
    """Any form is right."""


@pytest.fixture
def kept(tmp_path):
    return TaskFiles(str(tmp_path), "combination", "f" * 64)


def has_names(arrays):
    """Real tasks check more; an archive whose list of members was cut looks like an older one."""
    if arrays.keys() != ARRAYS.keys():
        raise ValueError("names")


def same(found):
    return found.keys() == ARRAYS.keys() and all(
        map(np.array_equal, found.values(), ARRAYS.values())
    )


@pytest.mark.slow
def test_a_flipped_bit_anywhere_in_arrays_is_no_error(kept, tmp_path, caplog):
    """zlib, zipfile and NumPy each raise errors of their own."""
    kept.write_arrays(0, ARRAYS)
    path = tmp_path / "combination_0000.npz"
    whole = path.read_bytes()
    n_seen = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        found = kept.read_arrays(0, check=has_names)
        assert found is None or same(found)
        n_seen += found is None
    assert n_seen > len(whole) // 3  # the rest are dates, flags and the like in the archive
    assert len(caplog.messages) == 1  # once for each file
    assert "combination_0000.npz: damaged; the combination is computed again" in caplog.text
    path.write_bytes(whole)
    assert same(kept.read_arrays(0, check=accept))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"3", b"null", b"\xff"])
def test_what_is_no_task_is_computed_again(kept, tmp_path, data):
    for suffix in ("npz", "json"):
        (tmp_path / f"combination_0000.{suffix}").write_bytes(data)
    assert kept.read_arrays(0, check=accept) is None
    assert kept.read_json(0, key="heads", check=accept, seed=1) is None


def test_a_result_of_another_form_is_computed_again(kept):
    def refuse(result):
        raise ValueError("form")

    kept.write_json(0, COUNTS, key="heads", seed=1)
    kept.write_arrays(0, ARRAYS)
    assert kept.read_json(0, key="heads", check=accept, seed=1) == COUNTS
    assert kept.read_json(0, key="heads", check=refuse, seed=1) is None
    assert kept.read_arrays(0, check=refuse) is None


@pytest.mark.slow
def test_tasks_of_an_older_version_are_taken_up(kept, tmp_path):
    """7ab3428 wrote a digest of the counts alone, and arrays without one."""
    record = {"fingerprint": "f" * 64, "seed": 1, "digest": digests.digest_json(COUNTS)}
    text = json.dumps(record | {"heads": COUNTS})
    (tmp_path / "combination_0000.json").write_text(text)
    assert kept.read_json(0, key="heads", check=accept, seed=1) == COUNTS
    (tmp_path / "combination_0000.json").write_text(text.replace("[1, 2]", "[1, 3]"))
    assert kept.read_json(0, key="heads", check=accept, seed=1) is None
    sink = io.BytesIO()
    np.savez_compressed(sink, fingerprint=np.array("f" * 64), **ARRAYS)
    (tmp_path / "combination_0000.npz").write_bytes(sink.getvalue())
    assert same(kept.read_arrays(0, check=accept))


def test_without_a_folder_nothing_is_kept_or_held(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nowhere = TaskFiles(None, "combination", "f" * 64)
    assert nowhere.hold(0) is None
    nowhere.write_json(0, COUNTS, key="heads")
    nowhere.write_arrays(0, ARRAYS)
    assert nowhere.read_json(0, key="heads", check=accept) is None
    assert nowhere.read_arrays(0, check=accept) is None
    (tmp_path / ".combination_0000.lock").write_text("of another folder")
    nowhere.drop_abandoned(0)
    assert [path.name for path in tmp_path.iterdir()] == [".combination_0000.lock"]
