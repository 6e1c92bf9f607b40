"""What a writer does besides writing rows, and what it makes of a store that cannot be read."""

import numpy as np
import pytest
import stores

from pathorob_jax.core.checks import InputError
from pathorob_jax.data.tileset import BadImage
from pathorob_jax.embeddings import store, store_files, store_state, store_writer

N, D = 6, 3


@pytest.fixture
def manifest():
    row = np.arange(N)
    return stores.make_manifest(row % 2, row // 2 % 2, row // 2)


@pytest.fixture
def x(rng):
    return rng.normal(size=(N, D)).astype(np.float32)


def create(path, manifest):
    return store_writer.create_store(
        str(path), manifest=manifest, dim=D, chunk_rows=4, identity={"encoder": "test"}
    )


def test_a_store_without_one_embedding_is_not_completed(tmp_path, manifest):
    with create(tmp_path / "d", manifest) as writer:
        for chunk in writer.missing_chunks:
            part = writer.chunk_slice(chunk)
            rows = range(part.start, part.stop)
            bad = [BadImage(row, f"{row}.png", "it is cut short") for row in rows]
            writer.write(chunk, np.zeros((len(rows), D), np.float32), bad=bad).result()
        with pytest.raises(InputError, match=r"d: not one patch has an embedding \(it is cut sh"):
            writer.commit()
    assert not store_files.read_info(str(tmp_path / "d"))["complete"]


def test_the_only_writer_keeps_costs_and_no_leases(tmp_path, manifest):
    with create(tmp_path / "d", manifest) as writer:
        writer.add_cost({"seconds": 1.5})
        writer.add_cost({"seconds": 2.5})
        assert writer.find_leases(writer.missing_chunks) == {}
        assert all(writer.take(chunk) for chunk in writer.missing_chunks)
    costs = store_files.read_costs(str(tmp_path / "d"))
    assert costs == [{"seconds": 1.5}, {"seconds": 2.5}]


def test_a_damaged_store_that_was_to_replace_another_is_dropped(tmp_path, manifest, x):
    aside = tmp_path / ".d.new"
    aside.mkdir()
    (aside / "store.json").write_text("{")
    with create(tmp_path / "d", manifest) as writer:
        for chunk in writer.missing_chunks:
            writer.write(chunk, x[writer.chunk_slice(chunk)]).result()
        made = writer.commit()
    np.testing.assert_array_equal(made.read(), x)
    assert not aside.exists()


def test_a_store_that_cannot_be_read_has_no_settings_and_no_state(tmp_path, manifest, x):
    path = stores.make_store(tmp_path / "d", x, manifest).path
    assert store.recorded_settings(path) == {}
    (tmp_path / "d" / "store.json").write_text("{")
    assert store.recorded_settings(path) is None
    assert store_state.read_state(path, {}, None) is None


def test_chunks_at_a_url_are_counted(tmp_path, manifest, x):
    made = stores.make_store(tmp_path / "d", x, manifest, chunk_rows=2)
    url = f"file://{made.path}"
    assert store_files.missing_chunks(url, made.info) == []
    (tmp_path / "d" / "embeddings" / "c" / "1" / "0").unlink()
    assert store_files.missing_chunks(url, made.info) == [1]
