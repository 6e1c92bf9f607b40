"""A sink fills chunks from steps of any order, with what a stain method made of the tiles."""

import numpy as np
import pytest
import stores

from pathorob_jax.core import sealed_files
from pathorob_jax.data.tileset import BadImage
from pathorob_jax.embeddings import store_writer, tile_record
from pathorob_jax.embeddings.chunk_plan import Sink
from pathorob_jax.embeddings.size_sorting import Step

N, D = 6, 3


@pytest.fixture
def writer(tmp_path):
    row = np.arange(N)
    manifest = stores.make_manifest(row % 2, row // 2 % 2, row // 2)
    with store_writer.create_store(
        str(tmp_path / "d"), manifest=manifest, dim=D, chunk_rows=4, identity={}
    ) as made:
        yield made


def step_of(*rows, bad=()):
    images = np.zeros((len(rows), 1, 1, 3), np.uint8)
    return Step(images, np.array(rows), np.array(rows, np.uint64) + np.uint64(16), bad)


def test_a_chunk_comes_from_several_steps(writer, tmp_path, rng):
    x = rng.normal(size=(N, D)).astype(np.float32)
    sink = Sink(writer)
    sink.want(0)
    sink.add(step_of(0, 2), x[[0, 2]], np.array([2, 1], np.uint8))
    sink.finish()
    assert writer.find_missing() == [0, 1], "not full yet"
    bad = (BadImage(1, "1.png", "it is cut short"),)
    sink.add(step_of(3, 1, bad=bad), x[[3, 1]], np.array([3, 0], np.uint8))
    sink.finish()
    assert writer.find_missing() == [1]
    path = str(tmp_path / "d" / "tiles" / "0.json")
    record = sealed_files.read_json(path, schema_version=tile_record.SCHEMA_VERSION)
    assert record["outcomes"] == [2, tile_record.NO_OUTCOME, 1, 3]
    assert [int(text, 16) for text in record["digests"]] == [16, 17, 18, 19]


def test_nothing_is_written_once_another_process_has_completed_the_store(
    writer, tmp_path, monkeypatch
):
    sink = Sink(writer)
    sink.want(1)
    monkeypatch.setattr(writer, "is_superseded", lambda: True)
    sink.add(step_of(4, 5), np.ones((2, D), np.float32))
    sink.finish()
    assert not sink.wants(np.array([4, 5])).any()
    assert writer.find_missing() == [0, 1]
    assert not (tmp_path / "d" / "tiles").exists()
