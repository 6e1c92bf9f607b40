"""What a conversion leaves on disk: equal bytes, no paths, and old weights until new are there."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from absl import logging
from safetensors.numpy import save_file
from small_vit import CONFIG, SPEC, expected, make_state

from converters import engine
from pathorob_jax.core.checks import InputError
from pathorob_jax.models import registry, weights


@pytest.fixture
def file(tmp_path):
    path = str(tmp_path / "model.safetensors")
    save_file(make_state(), path)
    return path


@pytest.fixture
def other(tmp_path):
    path = str(tmp_path / "other.safetensors")
    save_file(make_state(seed=1), path)
    return path


def _bytes(folder):
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _restore(root):
    abstract = registry.network_of(CONFIG)[1]
    return weights.restore(weights.open_converted(str(root), "small"), abstract)


def _is(found, state):
    jax.tree.map(np.testing.assert_array_equal, found, expected(state))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_file_gives_the_same_bytes(dtype, file, tmp_path):
    one = engine.convert(SPEC, file, output=str(tmp_path / "one"), dtype=dtype)
    moved = tmp_path / "elsewhere" / "model.safetensors"
    moved.parent.mkdir()
    shutil.copy(file, moved)
    two = engine.convert(SPEC, str(moved), output=str(tmp_path / "two"), dtype=dtype)
    assert _bytes(one) == _bytes(two)
    assert len(_bytes(one)) > 10


def test_no_path_and_no_user_is_written(file, tmp_path):
    path = engine.convert(SPEC, file, output=str(tmp_path / "out"))
    for name, data in _bytes(path).items():
        assert str(tmp_path).encode() not in data, name
    with open(f"{path}/model.json") as stream:
        assert json.load(stream)["source"]["checkpoint"] == "model.safetensors"


def test_the_same_command_again_ends_well(file, other, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    path = engine.convert(SPEC, file, output=out)
    before, said = _bytes(path), []
    monkeypatch.setattr(logging, "info", lambda text, *values: said.append(text % values))
    assert engine.convert(SPEC, file, output=out) == path
    assert said[-1] == f"{path}: complete already"
    assert _bytes(path) == before
    for how in ({"checkpoint": other}, {"checkpoint": file, "dtype": "bfloat16"}):
        with pytest.raises(
            InputError, match="exists, and is of another checkpoint or was made oth"
        ):
            engine.convert(SPEC, output=out, **how)
    # What is there is complete in truth, not only by its record.
    shutil.rmtree(f"{path}/checkpoint")
    with pytest.raises(InputError, match="cannot be read .* convert again with --overwrite"):
        engine.convert(SPEC, file, output=out)
    engine.convert(SPEC, file, output=out, overwrite=True)
    assert _bytes(path) == before


def test_old_weights_stay_where_the_new_cannot_take_their_name(file, other, tmp_path, monkeypatch):
    out = tmp_path / "out"
    engine.convert(SPEC, file, output=str(out))
    rename = os.rename

    def fail(source, target):
        if source.endswith(".partial"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(InputError, match=r"small: cannot be written \(No space left .* as before"):
        engine.convert(SPEC, other, output=str(out), overwrite=True)
    monkeypatch.setattr(os, "rename", rename)
    assert os.listdir(out) == ["small"]
    _is(_restore(out), make_state())


def test_weights_that_a_killed_replacement_left_aside_come_back(file, other, tmp_path):
    out = tmp_path / "out"
    path = engine.convert(SPEC, file, output=str(out))
    os.rename(path, out / ".small.old")
    shutil.copytree(out / ".small.old", out / ".small.partial")
    assert engine.convert(SPEC, file, output=str(out)) == path  # complete already
    os.rename(path, out / ".small.old")
    engine.convert(SPEC, other, output=str(out), overwrite=True)
    assert os.listdir(out) == ["small"]
    _is(_restore(out), make_state(seed=1))


def test_what_is_not_ours_is_not_replaced(file, tmp_path):
    (tmp_path / "out" / "small").mkdir(parents=True)
    (tmp_path / "out" / "small" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="exists, but is no folder of converted weights"):
        engine.convert(SPEC, file, output=str(tmp_path / "out"), overwrite=True)
    assert (tmp_path / "out" / "small" / "thesis.tex").exists()


def test_a_full_disk_is_told_before_the_work(file, tmp_path, monkeypatch):
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    monkeypatch.setattr(engine, "fill", None)
    with pytest.raises(
        InputError, match=r"out: the weights need \d+ MiB, 0 MiB are free. Make roo"
    ):
        engine.convert(SPEC, file, output=str(tmp_path / "out"))


def test_a_folder_that_cannot_be_made_is_told_before_the_work(file, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("a file")
    monkeypatch.setattr(engine, "fill", None)
    with pytest.raises(InputError, match="out: cannot be written .* give another --output"):
        engine.convert(SPEC, file, output=str(tmp_path / "out"))


def test_a_full_disk_of_tensorstore_is_one_message(file, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing x: No space left on device\n  more")

    monkeypatch.setattr(weights.ocp, "save", fail)
    with pytest.raises(
        InputError, match=r"small: cannot be written \(RESOURCE_EXHAUSTED: .*device"
    ):
        engine.convert(SPEC, file, output=str(tmp_path / "out"))
    assert os.listdir(tmp_path / "out") == []


def test_weights_with_random_file_names_are_still_read(file, tmp_path):
    """Version 7ab3428 wrote Orbax's default layout."""
    path = engine.convert(SPEC, file, output=str(tmp_path / "out"))
    params = _restore(tmp_path / "out")
    shutil.rmtree(f"{path}/checkpoint")
    context = weights.ocp.Context()
    context.array.saving.use_compression = False
    with context:
        weights.ocp.save(f"{path}/checkpoint", params)
    assert any("ocdbt" in name for name in _bytes(path))
    _is(_restore(tmp_path / "out"), make_state())


@pytest.mark.slow
def test_orbax_says_nothing(file, tmp_path, caplog):
    with caplog.at_level("DEBUG", logger="absl"):
        engine.convert(SPEC, file, output=str(tmp_path / "out"))
        _restore(tmp_path / "out")
    assert not [record for record in caplog.records if "orbax" in record.pathname]
