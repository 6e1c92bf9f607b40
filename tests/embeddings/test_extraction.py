"""Extraction: the right row for every tile, whatever the devices, workers, kills and failures."""

import copy
import dataclasses
import io
import pathlib
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stores
from extraction import (
    N,
    decode_all,
    files_of,
    mesh_of,
    projection,
    run,
    shard_bytes,
    shards_of,
    vit_random,
)
from machine import DEVICES
from PIL import Image

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import synthetic_tiles, tile_batches
from pathorob_jax.data import tileset as images
from pathorob_jax.embeddings import batch_size, store, store_files
from pathorob_jax.embeddings.chunk_plan import GrowingPlan, chunk_rows
from pathorob_jax.embeddings.extraction import extract
from pathorob_jax.evaluation import run as evaluation
from pathorob_jax.models import registry
from pathorob_jax.models.vit import ViT
from pathorob_jax.results import result_files

# Devices compute more here than they compile.
pytestmark = pytest.mark.optimized


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["color_stats", pytest.param("vit_random", marks=pytest.mark.campaign)]
)
def test_rows_equal_the_encoder_applied_to_each_tile(name, tileset, tmp_path):
    encoder = registry.load_encoder(name)
    found = run(tileset, tmp_path, encoder, batch_size=5)
    expected = np.asarray(jax.jit(encoder.apply)(encoder.params, decode_all(tileset)))
    assert found.array.shape == expected.shape
    # Batches of 5 and of 32 sum in different order; entries are of size 1.
    np.testing.assert_allclose(found.read(), expected, rtol=0, atol=1e-5)
    assert found.manifest.keys.tolist() == tileset.manifest.keys.tolist()
    assert found.info["complete"] is True
    assert found.info["identity"]["encoder"] == encoder.identity
    assert found.info["identity"]["source"] == {"tileset_sha256": tileset.fingerprint}


@pytest.mark.parametrize("size", [1, 7, 31, 32, 33])
def test_any_batch_size_fills_every_row(size, tileset, tmp_path):
    found = run(tileset, tmp_path, batch_size=size)
    encoder = projection()
    expected = np.asarray(encoder.apply(encoder.params, jnp.asarray(decode_all(tileset))))
    np.testing.assert_allclose(found.read(), expected, rtol=0, atol=1e-5)
    assert len(np.unique(found.read(), axis=0)) == N
    assert shards_of(tmp_path) == list(range(-(-N // size)))


@pytest.mark.slow
def test_devices_do_not_change_a_bit_at_equal_batch_per_device(tileset, tmp_path):
    encoder = vit_random()
    found = [
        run(tileset, tmp_path / str(n), encoder, batch_size=3, mesh=mesh_of(n))
        for n in (1, 2, DEVICES)
    ]
    one, two, more = (shard_bytes(store.path) for store in found)
    assert len(one) == -(-N // 3)
    assert one == two == more, "the files too"


def test_the_default_batch_size_is_recorded(tileset, tmp_path):
    found = run(tileset, tmp_path, batch_size=None, mesh=mesh_of(2))
    assert found.info["settings"]["batch_size"] == batch_size.default_batch_size(mesh_of(2)) == 32


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
def test_worker_processes_write_the_same_bytes_as_threads(tileset, tmp_path):
    run(tileset, tmp_path / "threads")
    run(tileset, tmp_path / "workers", workers=2)
    threads, workers = files_of(tmp_path / "threads"), files_of(tmp_path / "workers")
    # Of each chunk its rows and its record of tiles, and one more of the tileset.
    assert len(threads) == 2 + 1 + 2 * (N // 4) + 1
    assert threads == workers


def test_one_trace_per_run(tileset, tmp_path):
    encoder, traced = projection(), []

    def apply(params, tiles):
        traced.append(tiles.shape[0])
        return encoder.apply(params, tiles)

    run(tileset, tmp_path, dataclasses.replace(encoder, forward=apply), batch_size=5)
    assert traced == [1, 5], "one abstract call for the dimension, one trace for all 7 steps"


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
        run(broken, tmp_path)
    with pytest.raises((InputError, FileNotFoundError), match="unfinished|no embedding store"):
        store.open_store(str(tmp_path / "projection" / "d"))
    mended = run(tileset, tmp_path)
    whole = run(tileset, tmp_path / "whole")
    assert files_of(mended.path) == files_of(whole.path)


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
            run(odd, tmp_path)
    assert set(shards_of(tmp_path)) <= {0, 1}


def test_an_embedding_of_nan_names_its_patch_and_commits_nothing(tileset, tmp_path):
    tile = decode_all(tileset)[21].astype(np.float32)
    thumbnail = tile.reshape(8, 8, 8, 8, 3).mean((1, 3)).reshape(-1) / 255
    encoder = projection(bad_row=jnp.asarray(thumbnail))
    key = tileset.manifest.keys[21]
    message = rf"embedding of patch {key} \(row 21\) holds NaN"
    with pytest.raises(InputError, match=message):
        run(tileset, tmp_path, encoder)
    assert 21 // 4 not in shards_of(tmp_path)
    with pytest.raises(InputError, match="unfinished"):
        store.open_store(str(tmp_path / "projection" / "d"))
    assert run(tileset, tmp_path).info["complete"] is True


def _count_calls(monkeypatch, module, name):
    calls, call = [], getattr(module, name)

    def counted(*args, **kwargs):
        calls.append(args)
        return call(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


@pytest.mark.slow
def test_a_complete_store_returns_without_reading_tiles_again(tileset, tmp_path, monkeypatch):
    encoder = vit_random()  # its identity passes through the store's JSON
    before = run(tileset, tmp_path, encoder, batch_size=3)
    kept = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    decoded = _count_calls(monkeypatch, tile_batches, "decode_tile")
    after = run(tileset, tmp_path, encoder, batch_size=7, mesh=mesh_of(2))
    assert len(decoded) <= 1, "the first tile alone, for the length of an embedding"
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()} == kept
    np.testing.assert_array_equal(after.read(), before.read())


def test_a_resumed_store_keeps_its_chunks_and_reads_only_what_is_missing(
    tileset, tmp_path, monkeypatch
):
    whole = run(tileset, tmp_path / "whole")
    run(tileset, tmp_path)
    path = tmp_path / "projection" / "d"
    stores.unfinish(path)
    for chunk in (2, 7):
        shutil.rmtree(path / "embeddings" / "c" / str(chunk))
    decoded = _count_calls(monkeypatch, tile_batches, "decode_tile")
    resumed = run(tileset, tmp_path, batch_size=16, mesh=mesh_of(DEVICES))
    rows = sorted(int(name.rsplit(" ", 1)[1]) for _, name in decoded)
    assert [row for row in rows if row] == [8, 9, 10, 11, 28, 29, 30, 31]
    assert resumed.info["chunk_rows"] == 4
    assert set(files_of(path)) == set(files_of(whole.path))
    # The per-device batch is kept, whatever the number of devices: every bit is the same.
    assert resumed.info["settings"] == {"batch_size": 4, "device": {"kind": "cpu", "count": 1}}
    np.testing.assert_array_equal(resumed.read(), whole.read())
    costs = store_files.read_costs(str(path))
    assert [(c["tiles"], c["devices"], c["encoders"]) for c in costs] == [
        (N, 1, 1),
        (8, DEVICES, 1),
    ]
    assert all(c["seconds"] >= c["start_s"] >= 0 for c in costs)
    (path / "cost.json").write_text("{")
    assert store_files.read_costs(str(path)) == []
    assert len(store.open_store(str(path))) == N


@pytest.mark.campaign
@pytest.mark.slow
def test_another_pooling_writes_elsewhere(tileset, tmp_path):
    cls = run(tileset, tmp_path, vit_random())
    mean = run(tileset, tmp_path, registry.load_encoder("vit_random", pooling="mean"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vit_random", "vit_random_mean"]
    assert cls.path.endswith("/vit_random/d")
    assert mean.path.endswith("/vit_random_mean/d")
    assert np.abs(cls.read() - mean.read()).max() > 0.1


def test_another_configuration_is_refused_without_overwrite(tileset, tmp_path):
    first = run(tileset, tmp_path).read()
    kept = files_of(tmp_path)
    with pytest.raises(InputError, match=r"another configuration \(encoder: there .*--overwrite"):
        run(tileset, tmp_path, projection(scale=2.0))
    assert files_of(tmp_path) == kept
    doubled = run(tileset, tmp_path, projection(scale=2.0), overwrite=True)
    # Twice the weights: a power of two changes no digit.
    np.testing.assert_array_equal(doubled.read(), 2 * first)


def test_another_tileset_is_refused(tiles_dir, tileset, tmp_path):
    run(tileset, tmp_path)
    table = pq.read_table(next(pathlib.Path(tiles_dir).glob("*.parquet")))
    other = tmp_path / "other"
    other.mkdir()
    pq.write_table(pa.concat_tables([table.slice(1), table.slice(0, 1)]), other / "a.parquet")
    with pytest.raises(InputError, match="another configuration"):
        run(images.open_tileset(str(other)), tmp_path)


def test_one_tile_is_enough(tiles_dir, tmp_path):
    table = pq.read_table(next(pathlib.Path(tiles_dir).glob("*.parquet")))
    pq.write_table(table.slice(0, 1), tmp_path / "one.parquet")
    found = run(images.open_tileset(str(tmp_path)), tmp_path / "out", mesh=mesh_of(DEVICES))
    assert found.array.shape == (1, 16)
    assert np.isfinite(found.read()).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("color_stats", 0, 0.3), pytest.param("nuclear_texture", 0.8, 1, marks=pytest.mark.campaign)],
)
def test_the_pipeline_tells_the_two_controls_apart(name, low, high, truth_tileset, tmp_path):
    # The truth by construction: centres differ in stain and scanner, classes in nuclei alone. A
    # coin would score near 0.5.
    found = extract(
        truth_tileset, [registry.load_encoder(name)], root=str(tmp_path / "e"), dataset="synthetic"
    ).stores[0]
    (path,) = evaluation.evaluate_store(
        found,
        model=name,
        dataset="synthetic",
        output=str(tmp_path / "r"),
        settings=evaluation.Settings(k=5),
    ).paths
    result = result_files.read_result(path)
    assert low <= result.robustness_index <= high
    assert result.k == 5
    assert result.n_samples == len(truth_tileset)
    assert result.support > 0.1


@pytest.fixture(scope="module")
def truth_tileset(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("truth") / "tiles")
    synthetic_tiles.write_tileset(
        path, synthetic_tiles.SyntheticConfig(n_slides=2, n_tiles=4, tile_px=128)
    )
    return images.open_tileset(path)


@pytest.mark.slow
def test_several_encoders_read_every_tile_once_and_equal_single_runs(
    tileset, tmp_path, monkeypatch
):
    encoders = [projection(), vit_random(), registry.load_encoder("color_stats")]
    single = {}
    for encoder in encoders:
        alone = run(tileset, tmp_path / "single", encoder, mesh=mesh_of(2))
        single[encoder.name] = shard_bytes(alone.path)
    decoded = _count_calls(monkeypatch, tile_batches, "decode_tile")
    made = extract(
        tileset,
        encoders,
        root=str(tmp_path / "together"),
        dataset="d",
        batch_size=4,
        mesh=mesh_of(2),
    )
    names = [name for _, name in decoded]
    assert len(names) == N + 1, "each tile, and the first one for its size"
    assert len(set(names)) == N
    assert [store.info["identity"]["encoder"]["model"] for store in made.stores] == [
        "projection",
        "vit_random",
        "color_stats",
    ]
    for encoder, found in zip(encoders, made.stores, strict=True):
        assert shard_bytes(found.path) == single[encoder.name]
    (summary,) = made.summaries
    assert summary.tiles == N
    assert summary.n_bad == 0
    assert 0 < summary.start_s < summary.seconds
    assert 0 <= summary.wait_share <= 1
    assert summary.read_s > 0


@pytest.mark.campaign
def test_several_poolings_come_from_one_forward_pass(tileset, tmp_path, monkeypatch):
    encoders = registry.load_encoders("vit_random", poolings=["default", "mean", "clsmean", "cls"])
    assert [e.name for e in encoders] == ["vit_random", "vit_random_mean", "vit_random_clsmean"]
    calls = _count_calls(monkeypatch, ViT, "__call__")
    made = extract(tileset, encoders, root=str(tmp_path), dataset="d", batch_size=8)
    # Traced once for each length D, and once for the step that makes all three.
    assert len(calls) == len(encoders) + 1
    cls, mean, both = (store.read() for store in made.stores)
    np.testing.assert_array_equal(both, np.concatenate([cls, mean], axis=1))
    for encoder, found in zip(encoders, made.stores, strict=True):
        alone = run(tileset, tmp_path / "alone", encoder, batch_size=8)
        # Another program: the last bits may differ.
        np.testing.assert_allclose(found.read(), alone.read(), rtol=0, atol=2e-6)
        assert found.info["identity"] == alone.info["identity"]


def test_of_several_stores_each_gets_what_it_lacks(tileset, tmp_path, monkeypatch):
    encoders = [projection(), projection(scale=0.5, name="half")]
    whole = {e.name: shard_bytes(run(tileset, tmp_path / "whole", e).path) for e in encoders}
    for encoder, lost in zip(encoders, [(1, 5), (5, 6)], strict=True):
        path = pathlib.Path(run(tileset, tmp_path / "cut", encoder).path)
        stores.unfinish(path)
        for chunk in lost:
            shutil.rmtree(path / "embeddings" / "c" / str(chunk))
    decoded = _count_calls(monkeypatch, tile_batches, "decode_tile")
    made = extract(
        tileset, encoders, root=str(tmp_path / "cut"), dataset="d", batch_size=4, mesh=mesh_of()
    )
    assert len(decoded) == 1 + 3 * 4, "chunks 1, 5 and 6, each once"
    for encoder, found in zip(encoders, made.stores, strict=True):
        assert shard_bytes(found.path) == whole[encoder.name]


def test_the_same_encoder_twice_is_refused(tileset, tmp_path):
    with pytest.raises(InputError, match="projection is given more than once"):
        extract(tileset, [projection(), projection()], root=str(tmp_path), dataset="d")


def test_the_fastest_batch_size_is_found_recorded_and_used_again(tileset, tmp_path, monkeypatch):
    rates = {8: 10.0, 16: 19.9, 32: 20.0, 64: 15.0}
    tried = []

    def rate(compiled, params, images):
        tried.append(len(images) // 2)
        return rates[len(images) // 2]

    monkeypatch.setattr(batch_size, "_rate", rate)
    assert run(tileset, tmp_path / "few", batch_size=None).info["settings"]["batch_size"] == 32
    assert not tried, "too few tiles for a measurement"
    monkeypatch.setattr(batch_size, "MIN_TILES", N)
    found = run(tileset, tmp_path, batch_size=None, mesh=mesh_of(2))
    assert tried == [8, 16, 32, 64]
    # 16 is nearly as fast as 32.
    assert found.info["settings"]["batch_size"] == 16
    path = pathlib.Path(found.path)
    stores.unfinish(path)
    shutil.rmtree(path / "embeddings" / "c" / "1")
    again = run(tileset, tmp_path, batch_size=None, mesh=mesh_of(2))
    assert again.info["settings"]["batch_size"] == 16
    assert len(tried) == 4, "not measured again"


def test_what_does_not_fit_is_not_chosen(monkeypatch):
    mesh, encoder = mesh_of(), projection()
    step = jax.jit(encoder.apply)
    seen = []

    def choose():
        return batch_size.find_batch_size(
            step, encoder.params, (64, 64, 3), mesh=mesh, n_tiles=batch_size.MIN_TILES
        )

    monkeypatch.setattr(batch_size, "_rate", lambda compiled, params, images: len(images))
    monkeypatch.setattr(batch_size, "_fits", lambda compiled, mesh: True)
    assert choose() == 64
    monkeypatch.setattr(batch_size, "_fits", lambda compiled, mesh: seen.append(1) or len(seen) < 3)
    assert choose() == 16

    def out_of_memory(compiled, params, images):
        if len(images) > 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
        return 1.0

    monkeypatch.setattr(batch_size, "_fits", lambda compiled, mesh: True)
    monkeypatch.setattr(batch_size, "_rate", out_of_memory)
    assert choose() == 8

    def broken(compiled, params, images):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(batch_size, "_rate", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        choose()


def test_a_program_that_needs_more_than_is_free_does_not_fit():
    class Needed:
        temp_size_in_bytes, output_size_in_bytes = 600, 100

    class Compiled:
        def memory_analysis(self):
            return Needed

    class Device:
        def __init__(self, free):
            self._stats = {"bytes_limit": 5000, "bytes_in_use": 5000 - free} if free else None

        def memory_stats(self):
            return self._stats

    class Mesh:
        def __init__(self, *free):
            self.devices = np.asarray([Device(f) for f in free])

    assert batch_size._fits(Compiled(), Mesh(1000, 1000))
    assert not batch_size._fits(Compiled(), Mesh(1000, 880))
    assert batch_size._fits(Compiled(), Mesh(None))


@pytest.mark.parametrize("n_devices", [1, 2, 8])
@pytest.mark.parametrize(("n_rows", "size", "chunk"), [(53, 4, 8), (5, 4, 4), (64, 8, 16)])
def test_blocks_hold_every_row_of_the_chunks_once_and_always_the_same_rows(
    n_rows, size, chunk, n_devices, tmp_path
):
    chunks = list(range(0, -(-n_rows // chunk), 2))
    growing = GrowingPlan(
        str(tmp_path), n_rows=n_rows, chunk_rows=chunk, batch_size=size, n_devices=n_devices
    )
    source = iter(chunks)
    growing.grow(1, source)
    n_ahead = -(-n_devices // (chunk // size))
    assert list(copy.copy(source)) == chunks[n_ahead:], "no more than the step needs"
    elsewhere = pickle.loads(pickle.dumps(growing))
    growing.grow(len(growing), source)
    steps = [growing[i] for i in range(len(growing))]
    np.testing.assert_array_equal(steps, [elsewhere[i] for i in range(len(growing))])
    n_steps = sum((step != tile_batches.NO_ROW).any() for step in steps)
    assert all((step == tile_batches.NO_ROW).all() for step in steps[n_steps:])
    plan = np.stack(steps[:n_steps])
    rows = plan.reshape(-1, size)
    held = rows[rows != tile_batches.NO_ROW]
    wanted = [r for c in chunks for r in range(c * chunk, min((c + 1) * chunk, n_rows))]
    assert held.tolist() == wanted
    for block in rows:
        kept = block[block != tile_batches.NO_ROW]
        assert not len(kept) or kept[0] % size == 0, "blocks begin at multiples of their size"
    assert plan.shape[1] == n_devices * size
    assert not any((step == tile_batches.NO_ROW).all() for step in plan)


@pytest.mark.slow
def test_chunks_are_whole_batches_and_not_too_many():
    assert chunk_rows(100, 32) == 32
    assert chunk_rows(0, 32) == 32
    assert chunk_rows(10_000_000, 32) % 32 == 0
    assert 10_000_000 / chunk_rows(10_000_000, 32) <= 8192
