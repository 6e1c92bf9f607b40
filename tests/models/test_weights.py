"""Folders of converted weights that cannot be written or read, without a checkpoint in them."""

import errno
import json
import os

import pytest

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.models import weights


@pytest.fixture
def checkpoint(monkeypatch):
    """Checkpoints are empty folders."""
    monkeypatch.setattr(weights, "_write_checkpoint", lambda path, params: os.makedirs(path))


def is_full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_at_the_end_leaves_nothing(tmp_path, checkpoint, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "_write_bytes", is_full)
        with pytest.raises(InputError, match=r"model\.json: cannot be written .*space"):
            weights.save(str(tmp_path), "mine", {}, {})
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", is_full)
        with pytest.raises(InputError, match=r"mine: cannot be written \(No space left on device"):
            weights.save(str(tmp_path), "mine", {}, {})
    assert os.listdir(tmp_path) == []
    assert weights.save(str(tmp_path), "mine", {}, {}) == str(tmp_path / "mine")
    assert weights.is_there(str(tmp_path), "mine")


def test_old_weights_that_cannot_come_back_are_named(tmp_path, monkeypatch):
    (tmp_path / ".mine.old").mkdir()
    monkeypatch.setattr(os, "rename", is_full)
    with pytest.raises(InputError, match=r"mine: cannot be written \(No space left on device"):
        weights.is_there(str(tmp_path), "mine")
    assert os.listdir(tmp_path) == [".mine.old"]


def test_a_folder_without_the_right_to_write_is_told_before_the_work(tmp_path, monkeypatch):
    weights.check_room(str(tmp_path / "new"), 100)
    assert (tmp_path / "new").is_dir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=r"new: cannot be written \(no permission .* --output"):
        weights.check_room(str(tmp_path / "new"), 100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": None}, "lacks network; convert again with --overwrite"),
        ({"dtype": None, "source": None}, r"lacks dtype, source\.sha256; convert again"),
        ({"source": {"checkpoint": "x"}}, r"lacks source\.sha256; convert again"),
        ({"source": "x"}, r"lacks source\.sha256; convert again"),
        ({"schema_version": 2}, "expected schema_version 1, found 2; convert again"),
    ],
)
def test_a_record_of_weights_that_lacks_a_part_is_refused(changes, message, tmp_path):
    info = {"schema_version": 1, "network": {}, "dtype": "float32", "source": {"sha256": "abc"}}
    info = {name: value for name, value in (info | changes).items() if value is not None}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=message) as caught:
        weights.open_converted(str(tmp_path), "mine")
    assert str(caught.value).startswith(str(tmp_path / "mine" / "model.json"))
