"""Sizes told from a few tiles, and what worker processes are sent and send."""

import multiprocessing
import os
import pathlib
import pickle
import threading
import types

import numpy as np
import pytest
from PIL import Image
from tilesets import H, N, W, encode, make_tiles, write_folder, write_parquet

from pathorob_jax.data import tile_batches
from pathorob_jax.data import tileset as images


@pytest.fixture
def tiles(rng):
    return make_tiles(rng)


def test_tiles_that_cannot_be_read_tell_nothing_of_their_sizes(tmp_path, tiles):
    path = write_folder(tmp_path / "t", tiles)
    tileset = images.open_tileset(path)
    names = [tileset.reader.read(row)[1] for row in tileset.sample]
    os.unlink(names[0])
    assert not tile_batches.are_mixed(tileset, (H, W, 3))
    pathlib.Path(names[-1]).write_bytes(encode(Image.new("RGB", (W + 2, H))))
    assert tile_batches.are_mixed(tileset, (H, W, 3))


def test_other_errors_of_workers_stay_what_they_are():
    def broken():
        yield "batch"
        raise RuntimeError("a defect")

    batches = tile_batches._from_workers(broken())
    assert next(batches) == "batch"
    with pytest.raises(RuntimeError, match="a defect"):
        next(batches)


def test_a_source_comes_whole_to_a_worker_which_ends_with_its_parent(tmp_path, tiles, monkeypatch):
    tileset = images.open_tileset(write_parquet(tmp_path / "t", tiles))
    plan = tile_batches.plan_batches(N, batch_size=4)
    source = tile_batches._PlannedBatches(tileset, plan, (H, W, 3), 1, "error", mixed=False)
    sent = pickle.dumps(source)
    np.testing.assert_array_equal(pickle.loads(sent)[1].images, tiles.pixels[4:8])
    joined, left = threading.Event(), []
    ended = threading.Event()
    parent = types.SimpleNamespace(join=joined.wait)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setattr(os, "_exit", lambda code: left.append(code) or ended.set())
    pickle.loads(sent)
    assert left == []
    joined.set()
    assert ended.wait(10)
    assert left == [1]
