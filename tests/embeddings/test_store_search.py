"""Stores are found below a root, a model or a dataset; unfinished ones are said."""

import pathlib

import numpy as np
import pytest
import stores
from stores import make_manifest, make_store

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.embeddings import store_search
from pathorob_jax.embeddings.store import open_store
from pathorob_jax.embeddings.store_search import Place, find_all, find_datasets


@pytest.fixture
def root(tmp_path):
    """Stores a/x, a/y and b/x."""
    x = np.eye(8, dtype=np.float32) + 1
    manifest = make_manifest(np.arange(8) % 2, np.arange(8) // 4, np.arange(8) // 2)
    for name in ("a/x", "a/y", "b/x"):
        make_store(tmp_path / "e" / name, x, manifest)
    return str(tmp_path / "e")


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(
        store_search.logging, "warning", lambda text, *values: lines.append(text % values)
    )
    return lines


def test_a_root_means_all_models_and_a_model_all_its_datasets(root):
    def names(path, *datasets):
        return [f"{p.model}/{p.dataset}" for p in find_datasets(path, datasets)]

    assert names(root) == ["a/x", "a/y", "b/x"]
    assert names(root + "/") == ["a/x", "a/y", "b/x"]
    assert names(f"{root}/a/") == ["a/x", "a/y"]
    assert names(f"{root}/a", "y", "x") == ["a/y", "a/x"], "in the order that was asked for"
    assert find_datasets(f"{root}/a/x") == [Place(f"{root}/a/x", "a", "x")]
    assert names(f"{root}/a/x", "camelyon") == ["a/camelyon"]
    assert [p.model for p in find_all([f"{root}/b", root])] == ["b", "a", "a"], "each store once"


def test_models_that_lack_a_dataset_are_said(root, said):
    assert [p.model for p in find_datasets(root, ["y"])] == ["a"]
    assert said == [f"{root}/b: has no store of y"]


def test_unfinished_stores_are_said_and_are_no_datasets(root, said):
    stores.unfinish(f"{root}/a/y")
    assert [p.dataset for p in find_datasets(root)] == ["x", "x"]
    assert len(said) == 1
    assert said[0].startswith(f"{root}/a/y: left out, the store is unfinished; run experiments.")
    with pytest.raises(InputError, match=r"a/y: the store is unfinished; run experiments\.extract"):
        find_datasets(f"{root}/a", ["y"])


@pytest.mark.parametrize("text", ["{", "[]", '{"complete": null}'])
def test_a_damaged_store_is_found_so_that_opening_it_says_what_is_wrong(root, said, text):
    (pathlib.Path(root) / "a" / "y" / "store.json").write_text(text)
    [place] = find_datasets(f"{root}/a", ["y"])
    assert said == []
    with pytest.raises(InputError, match=r"a/y/store\.json: .*extract or import it again"):
        open_store(place.path)


def test_what_cannot_be_found_is_refused_by_name(root, tmp_path):
    with pytest.raises(UsageError, match=r"unknown name 'xx'. Did you mean 'x'\?"):
        find_datasets(root, ["xx"])
    with pytest.raises(UsageError, match="is the store of one dataset"):
        find_datasets(f"{root}/a/x", ["a", "b"])
    (tmp_path / "empty" / "a" / "x").mkdir(parents=True)
    for path in (str(tmp_path / "empty"), str(tmp_path / "nowhere")):
        with pytest.raises(FileNotFoundError, match="no embedding store; expected <root>/<model>"):
            find_datasets(path)
    for nothing in ([], [""], "root"):
        with pytest.raises(UsageError, match="embeddings: expected"):
            find_all(nothing)


@pytest.mark.slow
def test_two_stores_with_one_name_are_refused(root, tmp_path):
    x = np.eye(8, dtype=np.float32) + 1
    manifest = make_manifest(np.arange(8) % 2, np.arange(8) // 4, np.arange(8) // 2)
    make_store(tmp_path / "other" / "a" / "x", x, manifest)
    with pytest.raises(UsageError, match="would both be results of a on x"):
        find_all([root, str(tmp_path / "other")])
