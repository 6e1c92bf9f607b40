"""One store takes the place of another, on a disk and in a bucket, where nothing can be renamed."""

import buckets
import pytest

from pathorob_jax.embeddings import store_swap

URL = "s3://bucket/m/d"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that stands for a bucket."""
    buckets.stand_for(monkeypatch, tmp_path)
    return tmp_path


def write(root, **texts):
    """Files whose names have "_" for "/"."""
    for name, text in texts.items():
        path = root / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(root):
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }


def test_in_a_bucket_the_new_store_is_copied_and_removed(bucket):
    write(bucket / "m" / "d", info="old", tiles_0="stale")
    write(bucket / "m" / ".d.new", info="new", embeddings_c_0="rows")
    store_swap.swap(URL)
    assert contents(bucket) == {"m/d/info": "new", "m/d/embeddings/c/0": "rows"}
    store_swap.recover(URL)
    store_swap.remove(URL)
    assert contents(bucket) == {}
    store_swap.remove(f"{URL}/nothing")


def test_in_a_bucket_there_is_no_rename_to_undo(bucket):
    write(bucket / "m" / ".d.old", info="mine")
    store_swap.recover(URL)
    assert contents(bucket) == {"m/.d.old/info": "mine"}


def test_a_store_takes_a_place_that_is_free(tmp_path):
    write(tmp_path / ".d.new", info="new")
    store_swap.swap(str(tmp_path / "d"))
    assert contents(tmp_path) == {"d/info": "new"}


def test_of_a_linked_store_the_link_is_removed(tmp_path):
    write(tmp_path / "elsewhere", info="mine")
    (tmp_path / "d").symlink_to(tmp_path / "elsewhere")
    store_swap.remove(str(tmp_path / "d"))
    assert contents(tmp_path) == {"elsewhere/info": "mine"}
    assert not (tmp_path / "d").is_symlink()
