"""Extraction: the right row for every tile, whatever the devices, workers, kills and failures."""

import dataclasses
import functools
import io
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pathorob_jax import evaluate, images, results, sharding, store, synthetic
from pathorob_jax.checks import InputError
from pathorob_jax.extract import default_batch_size, extract
from pathorob_jax.models import registry
from pathorob_jax.models.registry import Encoder

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
CONFIG = synthetic.SyntheticConfig(n_slides=1, n_tiles=2, tile_px=64)  # 32 tiles
N = 32


@pytest.fixture(scope="module")
def tiles_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tiles") / "synthetic")
    assert synthetic.write_tileset(path, CONFIG) == N
    return path


@pytest.fixture
def tileset(tiles_dir):
    return images.open_tileset(tiles_dir)


@functools.cache
def _vit_random():
    return registry.load_encoder("vit_random")


def _mesh(n_devices=1):
    return sharding.make_mesh(jax.devices()[:n_devices])


def _projection(scale=1.0, bad_row=None):
    """A fast encoder without weights of its own: 16 mixtures of an 8 x 8 thumbnail.

    With ``bad_row``, the tile that shares its thumbnail is embedded as NaN.
    """
    mix = jnp.asarray(np.random.default_rng(1).standard_normal((192, 16)), jnp.float32)

    def apply(params, tiles):
        small = tiles.astype(jnp.float32).reshape(len(tiles), 8, 8, 8, 8, 3).mean((2, 4))
        flat = small.reshape(len(tiles), -1) / 255
        out = jnp.matmul(flat, params * scale, precision=jax.lax.Precision.HIGHEST)
        if bad_row is None:
            return out
        is_bad = (jnp.abs(flat - bad_row[None, :]) < 1e-6).all(1)
        return jnp.where(is_bad[:, None], jnp.nan, out)

    return Encoder("projection", mix, apply, {"model": "projection", "scale": scale})


def _decode_all(tileset):
    return np.stack([images.decode_tile(*tileset.reader.read(i)) for i in range(len(tileset))])


def _files(path):
    """Contents of every file of a store by name; lock files that a kill leaves are no part."""
    root = pathlib.Path(path)
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and not file.name.endswith(".__lock")
    }


def _run(tileset, root, encoder=None, **kwargs):
    kwargs = {"batch_size": 4, "mesh": _mesh()} | kwargs
    return extract(tileset, encoder or _projection(), root=str(root), dataset="d", **kwargs)


def _shards(root, name="projection"):
    folder = root / name / "d" / "embeddings" / "c"
    return sorted(int(shard.parent.name) for shard in folder.glob("*/0"))


@pytest.mark.parametrize("name", ["color_stats", "vit_random"])
def test_rows_equal_the_encoder_applied_to_each_tile(name, tileset, tmp_path):
    encoder = registry.load_encoder(name)
    found = _run(tileset, tmp_path, encoder, batch_size=5)
    expected = np.asarray(jax.jit(encoder.apply)(encoder.params, _decode_all(tileset)))
    assert found.array.shape == expected.shape
    # Batches of 5 and of 32 sum in different order; entries are of size 1.
    np.testing.assert_allclose(found.read(), expected, rtol=0, atol=1e-5)
    assert found.manifest.keys.tolist() == tileset.manifest.keys.tolist()
    assert found.info["complete"] is True
    assert found.info["identity"]["encoder"] == encoder.identity
    assert found.info["identity"]["source"] == {"tileset_sha256": tileset.fingerprint}


@pytest.mark.parametrize("batch_size", [1, 7, 31, 32, 33])
def test_any_batch_size_fills_every_row(batch_size, tileset, tmp_path):
    found = _run(tileset, tmp_path, batch_size=batch_size)
    encoder = _projection()
    expected = np.asarray(encoder.apply(encoder.params, jnp.asarray(_decode_all(tileset))))
    np.testing.assert_allclose(found.read(), expected, rtol=0, atol=1e-5)
    assert len(np.unique(found.read(), axis=0)) == N
    assert _shards(tmp_path) == list(range(-(-N // batch_size)))


def test_devices_do_not_change_a_bit_at_equal_batch_per_device(tileset, tmp_path):
    encoder = _vit_random()
    found = [
        _run(tileset, tmp_path / str(n), encoder, batch_size=3, mesh=_mesh(n)) for n in (1, 2, 8)
    ]
    assert [one.info["chunk_rows"] for one in found] == [3, 6, 24]
    np.testing.assert_array_equal(found[0].read(), found[1].read())
    np.testing.assert_array_equal(found[0].read(), found[2].read())


def test_the_default_batch_size_is_recorded(tileset, tmp_path):
    found = _run(tileset, tmp_path, batch_size=None, mesh=_mesh(2))
    assert found.info["chunk_rows"] == 2 * default_batch_size(_mesh(2)) == 64


@pytest.mark.multiprocess
def test_worker_processes_write_the_same_bytes_as_threads(tileset, tmp_path):
    _run(tileset, tmp_path / "threads")
    _run(tileset, tmp_path / "workers", workers=2)
    threads, workers = _files(tmp_path / "threads"), _files(tmp_path / "workers")
    assert len(threads) == 2 + 1 + N // 4
    assert threads == workers


def test_one_trace_per_run(tileset, tmp_path):
    encoder, traced = _projection(), []

    def apply(params, tiles):
        traced.append(tiles.shape[0])
        return encoder.apply(params, tiles)

    _run(tileset, tmp_path, dataclasses.replace(encoder, apply=apply), batch_size=5)
    assert traced == [1, 5], "one abstract call for the dimension, one trace for all 7 steps"


CHILD = """
import dataclasses, sys, threading, time
import jax
from pathorob_jax import extract, images, sharding
from pathorob_jax.models import registry

class Slow:
    def __init__(self, reader):
        self.reader, self.lock = reader, threading.Lock()

    def read(self, row):
        with self.lock:  # one tile at a time, however many threads read
            time.sleep(0.06)
        return self.reader.read(row)

tileset = images.open_tileset(sys.argv[1])
tileset = dataclasses.replace(tileset, reader=Slow(tileset.reader))
encoder = registry.load_encoder("color_stats")
mesh = sharding.make_mesh(jax.devices()[:1])
extract.extract(tileset, encoder, root=sys.argv[2], dataset="d", batch_size=2, mesh=mesh)
"""


def _run_until(n_shards, delay_s, tiles_dir, root, log):
    """Extract in a process of its own and kill it once it has written that many shards."""
    with open(log, "w") as out:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, tiles_dir, str(root)],
            stdout=out,
            stderr=out,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
    deadline_s = time.monotonic() + 60
    try:
        started = root / "color_stats" / "d" / "store.json"
        while not started.is_file() or len(_shards(root, "color_stats")) < n_shards:
            assert child.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.005)
        time.sleep(delay_s)
    finally:
        child.kill()
        child.wait()


@pytest.mark.multiprocess
def test_a_run_that_was_killed_ends_with_the_same_bytes(tiles_dir, tileset, tmp_path):
    # 16 shards of two slow tiles: a run takes about two seconds after its start.
    moments = random.Random(20260101)
    root, path = tmp_path / "killed", tmp_path / "killed" / "color_stats" / "d"
    n_done = []
    for n_shards in (0, 3, 9):
        delay_s = moments.uniform(0, 0.1)
        _run_until(n_shards, delay_s, tiles_dir, root, tmp_path / "log.txt")
        n_done.append(len(_shards(root, "color_stats")))
        with pytest.raises(InputError, match="the store is unfinished"):
            store.open_store(str(path))
    assert sorted(n_done) == n_done
    assert n_done[-1] < 16
    encoder = registry.load_encoder("color_stats")
    kept = _files(path)
    _run(tileset, root, encoder, batch_size=8)
    whole = _run(tileset, tmp_path / "whole", encoder, batch_size=2)
    resumed, uninterrupted = _files(path), _files(whole.path)
    assert resumed == uninterrupted
    assert all(kept[name] == resumed[name] for name in kept if name.startswith("embeddings/c/"))


class _FailsAt:
    """A reader whose tile ``row`` is not an image."""

    def __init__(self, reader, row, data=b"no image"):
        self._reader, self._row, self._data = reader, row, data

    def read(self, row):
        data, name = self._reader.read(row)
        return (self._data, name) if row == self._row else (data, name)


@pytest.mark.parametrize("broken_row", [0, 13, N - 1])
def test_an_unreadable_tile_is_named_and_the_store_resumes_once_it_is_mended(
    broken_row, tileset, tmp_path
):
    broken = dataclasses.replace(tileset, reader=_FailsAt(tileset.reader, broken_row))
    with pytest.raises(InputError, match=rf"parquet row {broken_row}: cannot be decoded"):
        _run(broken, tmp_path)
    with pytest.raises((InputError, FileNotFoundError), match="unfinished|no embedding store"):
        store.open_store(str(tmp_path / "projection" / "d"))
    mended = _run(tileset, tmp_path)
    whole = _run(tileset, tmp_path / "whole")
    assert _files(mended.path) == _files(whole.path)


def test_tiles_of_another_size_are_refused_even_where_a_resumed_run_begins_with_them(
    tileset, tmp_path
):
    sink = io.BytesIO()
    Image.new("RGB", (64, 48)).save(sink, "PNG")
    reader = tileset.reader
    for row in range(8, N):
        reader = _FailsAt(reader, row, sink.getvalue())
    odd = dataclasses.replace(tileset, reader=reader)
    message = r"row \d+: expected 64 x 64 pixels like the first tile .* found 64 x 48"
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            _run(odd, tmp_path)
    assert set(_shards(tmp_path)) <= {0, 1}


def test_an_embedding_of_nan_names_its_patch_and_commits_nothing(tileset, tmp_path):
    tile = _decode_all(tileset)[21].astype(np.float32)
    thumbnail = tile.reshape(8, 8, 8, 8, 3).mean((1, 3)).reshape(-1) / 255
    encoder = _projection(bad_row=jnp.asarray(thumbnail))
    key = tileset.manifest.keys[21]
    message = rf"embedding of patch {key} \(row 21\) holds NaN"
    with pytest.raises(InputError, match=message):
        _run(tileset, tmp_path, encoder)
    assert 21 // 4 not in _shards(tmp_path)
    with pytest.raises(InputError, match="unfinished"):
        store.open_store(str(tmp_path / "projection" / "d"))
    assert _run(tileset, tmp_path).info["complete"] is True


def _count_calls(monkeypatch, module, name):
    calls, call = [], getattr(module, name)

    def counted(*args, **kwargs):
        calls.append(args)
        return call(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_a_complete_store_returns_without_reading_tiles_again(tileset, tmp_path, monkeypatch):
    encoder = _vit_random()  # its identity passes through the store's JSON
    before = _run(tileset, tmp_path, encoder, batch_size=3)
    kept = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    decoded = _count_calls(monkeypatch, images, "decode_tile")
    after = _run(tileset, tmp_path, encoder, batch_size=7, mesh=_mesh(2))
    assert len(decoded) <= 1, "the first tile alone, for the length of an embedding"
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()} == kept
    np.testing.assert_array_equal(after.read(), before.read())


def test_a_resumed_store_keeps_its_chunks_and_reads_only_what_is_missing(
    tileset, tmp_path, monkeypatch
):
    whole = _run(tileset, tmp_path / "whole")
    _run(tileset, tmp_path)
    path = tmp_path / "projection" / "d"
    unfinished = (path / "store.json").read_text().replace('"complete": true', '"complete": false')
    (path / "store.json").write_text(unfinished)
    for chunk in (2, 7):
        shutil.rmtree(path / "embeddings" / "c" / str(chunk))
    decoded = _count_calls(monkeypatch, images, "decode_tile")
    resumed = _run(tileset, tmp_path, batch_size=16, mesh=_mesh(8))
    rows = sorted(int(name.rsplit(" ", 1)[1]) for _, name in decoded)
    assert [row for row in rows if row] == [8, 9, 10, 11, 28, 29, 30, 31]
    assert resumed.info["chunk_rows"] == 4
    assert set(_files(path)) == set(_files(whole.path))
    # The per-device batch is kept, whatever the number of devices: every bit is the same.
    assert resumed.info["settings"] == {"batch_size": 4, "device": {"kind": "cpu", "count": 1}}
    np.testing.assert_array_equal(resumed.read(), whole.read())


def test_another_pooling_writes_elsewhere(tileset, tmp_path):
    cls = _run(tileset, tmp_path, _vit_random())
    mean = _run(tileset, tmp_path, registry.load_encoder("vit_random", pooling="mean"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vit_random", "vit_random_mean"]
    assert cls.path.endswith("/vit_random/d")
    assert mean.path.endswith("/vit_random_mean/d")
    assert np.abs(cls.read() - mean.read()).max() > 0.1


def test_another_configuration_is_refused_without_overwrite(tileset, tmp_path):
    first = _run(tileset, tmp_path).read()
    kept = _files(tmp_path)
    with pytest.raises(InputError, match=r"another configuration \(encoder: there .*--overwrite"):
        _run(tileset, tmp_path, _projection(scale=2.0))
    assert _files(tmp_path) == kept
    doubled = _run(tileset, tmp_path, _projection(scale=2.0), overwrite=True)
    # Twice the weights: a power of two changes no digit.
    np.testing.assert_array_equal(doubled.read(), 2 * first)


def test_another_tileset_is_refused(tiles_dir, tileset, tmp_path):
    _run(tileset, tmp_path)
    table = pq.read_table(next(pathlib.Path(tiles_dir).glob("*.parquet")))
    other = tmp_path / "other"
    other.mkdir()
    pq.write_table(pa.concat_tables([table.slice(1), table.slice(0, 1)]), other / "a.parquet")
    with pytest.raises(InputError, match="another configuration"):
        _run(images.open_tileset(str(other)), tmp_path)


def test_one_tile_is_enough(tiles_dir, tmp_path):
    table = pq.read_table(next(pathlib.Path(tiles_dir).glob("*.parquet")))
    pq.write_table(table.slice(0, 1), tmp_path / "one.parquet")
    found = _run(images.open_tileset(str(tmp_path)), tmp_path / "out", mesh=_mesh(8))
    assert found.array.shape == (1, 16)
    assert np.isfinite(found.read()).all()


@pytest.mark.parametrize(
    ("name", "low", "high"), [("color_stats", 0, 0.3), ("nuclear_texture", 0.8, 1)]
)
def test_the_pipeline_tells_the_two_controls_apart(name, low, high, truth_tileset, tmp_path):
    # The truth by construction: centres differ in stain and scanner, classes in nuclei alone. A
    # coin would score near 0.5.
    found = extract(
        truth_tileset, registry.load_encoder(name), root=str(tmp_path / "e"), dataset="synthetic"
    )
    (path,) = evaluate.evaluate(
        found,
        model=name,
        dataset="synthetic",
        root=str(tmp_path / "r"),
        settings=evaluate.Settings(k=5),
    )
    result = results.read_result(path)
    assert low <= result.robustness_index <= high
    assert result.k == 5
    assert result.n_samples == len(truth_tileset)
    assert result.support > 0.1


@pytest.fixture(scope="module")
def truth_tileset(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("truth") / "tiles")
    synthetic.write_tileset(path, synthetic.SyntheticConfig(n_slides=2, n_tiles=4, tile_px=128))
    return images.open_tileset(path)
