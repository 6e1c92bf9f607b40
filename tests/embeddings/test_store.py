"""A store is complete and exact, or it is refused; a killed writer loses nothing but time."""

import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import stores

import pathorob_jax
from pathorob_jax.core import devices, sealed_files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.tileset import BadImage
from pathorob_jax.embeddings import store, store_swap, store_writer
from pathorob_jax.embeddings.store_search import find_datasets

N, D, CHUNK = 53, 6, 8
IDENTITY = {
    "encoder": {"model": "tiny", "weights_sha256": "ab", "image_size": [224, 224]},
    "source": {"tileset_sha256": "cd"},
}
# Queues all writes, a little apart, and commits: a parent kills it somewhere in between.
KILLED_CHUNKS, KILLED_ROWS, KILLED_DIM = 300, 16, 64
WRITER = """
import sys, time
import numpy as np
from pathorob_jax.data import manifest
from pathorob_jax.embeddings import store_writer

rows = manifest.read_manifest(sys.argv[2])
writer = store_writer.create_store(
    sys.argv[1], manifest=rows, dim=int(sys.argv[4]), chunk_rows=int(sys.argv[3]), identity={}
)
embeddings = np.load(sys.argv[5])
open(sys.argv[6], "w").close()
futures = []
for chunk in writer.missing_chunks:
    futures.append(writer.write(chunk, embeddings[writer.chunk_slice(chunk)]))
    time.sleep(0.002)
for future in futures:
    future.result()
time.sleep(60)
"""


def make_manifest(n=N, **changes):
    """Ten patches of either class on a slide, slides of either centre; ids begin with a zero."""
    row = np.arange(n)
    columns = {"patch_id": [f"0{i}" for i in row], "subset": ["ID"] * n}
    return stores.make_manifest(row % 2, row // 10 % 2, row // 10, **columns | changes)


WRITERS = {}


@pytest.fixture(autouse=True)
def close_writers():
    """Every test leaves its writers as a killed process would: unfinished, and not locked."""
    yield
    while WRITERS:
        WRITERS.popitem()[1].close()


def create(path, *, manifest=None, dim=D, chunk_rows=CHUNK, identity=IDENTITY, overwrite=False):
    """A writer; an earlier one of this path is taken for killed."""
    if path in WRITERS:
        WRITERS.pop(path).close()
    WRITERS[path] = store_writer.create_store(
        str(path),
        manifest=manifest or make_manifest(),
        dim=dim,
        chunk_rows=chunk_rows,
        identity=identity,
        overwrite=overwrite,
    )
    return WRITERS[path]


def fill(writer, embeddings, chunks=None):
    for chunk in writer.missing_chunks if chunks is None else chunks:
        writer.write(chunk, embeddings[writer.chunk_slice(chunk)]).result()


def write_store(path, embeddings, **options):
    writer = create(path, **options)
    fill(writer, embeddings)
    return writer.commit()


def shards(path):
    """Bytes of every shard; lock files that a killed writer left are none."""
    root = pathlib.Path(path) / "embeddings" / "c"
    return {
        str(f.relative_to(root)): f.read_bytes()
        for f in root.rglob("*")
        if f.is_file() and not f.name.endswith(".__lock")
    }


def _count_shards(path):
    return len(list(path.glob("embeddings/c/*/0")))


@pytest.fixture
def embeddings(rng) -> np.ndarray:
    return rng.standard_normal((N, D), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rows", [1, 7, 8, 53, 64, 96, 100, 130, 1024])
def test_values_come_back_bit_for_bit(tmp_path, embeddings, chunk_rows):
    tiny = np.float32(1e-45)
    embeddings[0] = [-0.0, tiny, -tiny, 3.4028235e14, -1e-38, 1e-38]
    n = 201
    many = np.resize(embeddings, (n, D))
    made = write_store(tmp_path / "s", many, manifest=make_manifest(n), chunk_rows=chunk_rows)
    for opened in (made, store.open_store(str(tmp_path / "s"))):
        found = opened.read()
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.view(np.uint32), many.view(np.uint32))
    assert len(shards(tmp_path / "s")) == -(-n // chunk_rows)


def test_rows_are_read_in_the_order_asked(tmp_path, embeddings):
    opened = write_store(tmp_path / "s", embeddings)
    rows = np.array([52, 0, 17, 17, 8])
    np.testing.assert_array_equal(opened.read(rows), embeddings[rows])
    assert opened.read(np.zeros(0, np.int64)).shape == (0, D)


@pytest.mark.parametrize("n_bytes", [1, 4 * 4 * D, 3 * 4 * 4 * D])
def test_a_few_chunks_are_read_at_a_time(tmp_path, embeddings, monkeypatch, n_bytes):
    opened = write_store(tmp_path / "s", embeddings, chunk_rows=4)
    monkeypatch.setattr(store, "READ_BYTES", n_bytes)
    rows = np.random.default_rng(0).integers(0, len(embeddings), 200)
    np.testing.assert_array_equal(opened.read(rows), embeddings[rows])
    np.testing.assert_array_equal(opened.read(), embeddings)
    most = max(1, n_bytes // (4 * 4 * D))
    for wanted, where in opened._split(rows, 200):
        assert len(np.unique(wanted // 4)) <= most
        np.testing.assert_array_equal(rows[where], wanted)


@pytest.mark.parametrize("rows", [None, [7, 3, 3, 0]])
def test_cpu_devices_take_what_was_read_without_a_copy(tmp_path, embeddings, rows):
    x = write_store(tmp_path / "s", embeddings).read(rows)
    on_device = devices.to_device(x)
    assert on_device.unsafe_buffer_pointer() == x.ctypes.data
    np.testing.assert_array_equal(on_device, embeddings if rows is None else embeddings[rows])


def test_the_manifest_comes_back_with_all_its_columns(tmp_path, embeddings):
    opened = write_store(tmp_path / "s", embeddings)
    assert opened.manifest.table.to_pylist() == make_manifest().table.to_pylist()
    assert opened.manifest.fingerprint() == opened.info["manifest_sha256"]


def test_the_sidecar_says_what_the_embeddings_are(tmp_path, embeddings):
    write_store(tmp_path / "s", embeddings)
    info = json.loads((tmp_path / "s" / "store.json").read_text())
    versions = info["versions"]
    # Python's own serialisation, sorted, is the canonical one of the digest.
    text = json.dumps(
        dict(sorted((k, v) for k, v in info.items() if k != "digest")), sort_keys=True
    )
    framed = len(text).to_bytes(8, "little") + text.encode()
    assert info.pop("digest") == hashlib.sha256(framed).hexdigest()
    del info["versions"]
    assert info == {
        "schema_version": 2,
        "complete": True,
        "n_rows": N,
        "dim": D,
        "chunk_rows": CHUNK,
        "manifest_sha256": make_manifest().fingerprint(),
        "identity": IDENTITY,
        "settings": {},
    }
    assert versions["pathorob_jax"] == pathorob_jax.__version__
    assert versions["numpy"] == np.__version__
    assert {"jax", "tensorstore", "pillow", "python"} <= set(versions)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_stored_as_float32(tmp_path, embeddings, dtype):
    opened = write_store(tmp_path / "s", embeddings.astype(dtype))
    np.testing.assert_array_equal(opened.read(), embeddings.astype(dtype).astype(np.float32))


def test_other_software_reads_the_array(tmp_path, embeddings):
    zarr = pytest.importorskip("zarr")
    write_store(tmp_path / "s", embeddings)
    array = zarr.open_array(str(tmp_path / "s" / "embeddings"), mode="r")
    np.testing.assert_array_equal(array[:], embeddings)


@pytest.mark.parametrize("done", [[], [0], [2, 5, 6], [0, 1, 2, 3, 4, 5, 6]])
def test_a_resumed_store_asks_for_what_is_missing_and_ends_the_same(tmp_path, embeddings, done):
    fill(create(tmp_path / "s"), embeddings, done)
    # A resumed store keeps its chunks, whatever this machine would have chosen.
    writer = create(tmp_path / "s", chunk_rows=CHUNK * 2)
    assert writer.missing_chunks == [c for c in range(7) if c not in done]
    assert writer.chunk_rows == CHUNK
    fill(writer, embeddings)
    np.testing.assert_array_equal(writer.commit().read(), embeddings)
    write_store(tmp_path / "whole", embeddings)
    assert shards(tmp_path / "s") == shards(tmp_path / "whole")


def test_the_last_chunk_is_shorter(tmp_path):
    writer = create(tmp_path / "s")
    assert [writer.chunk_slice(c) for c in (0, 6)] == [slice(0, 8), slice(48, 53)]


def test_a_write_that_never_began_its_sidecar_is_begun_anew(tmp_path, embeddings):
    fill(create(tmp_path / "s"), embeddings + 1, [0, 1])
    (tmp_path / "s" / "store.json").unlink()
    with pytest.raises(FileNotFoundError, match="no embedding store"):
        store.open_store(str(tmp_path / "s"))
    assert create(tmp_path / "s").missing_chunks == list(range(7))


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_killed_writer_is_refused_and_then_completed_to_the_same_bytes(tmp_path, rng):
    n = KILLED_CHUNKS * KILLED_ROWS - 5
    embeddings = rng.standard_normal((n, KILLED_DIM), np.float32)
    np.save(tmp_path / "e.npy", embeddings)
    rows = make_manifest(n)
    pq.write_table(rows.table, tmp_path / "m.parquet")
    path, begun = tmp_path / "s", tmp_path / "begun"
    sizes = map(str, (KILLED_ROWS, KILLED_DIM))
    command = [sys.executable, "-c", WRITER, str(path), str(tmp_path / "m.parquet"), *sizes]
    command += [str(tmp_path / "e.npy"), str(begun)]
    root = str(pathlib.Path(pathorob_jax.__file__).parents[1])
    delays, left = random.Random(7), [KILLED_CHUNKS]
    for _ in range(3):
        begun.unlink(missing_ok=True)
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": root})
        try:
            while not begun.exists() or _count_shards(path) <= KILLED_CHUNKS - left[-1]:
                assert process.poll() is None
                time.sleep(0.002)
            time.sleep(delays.uniform(0, 0.15))
        finally:
            process.kill()
            process.wait()
        with pytest.raises(InputError, match="the store is unfinished") as caught:
            store.open_store(str(path))
        left.append(int(str(caught.value).partition("(")[2].split()[0]))
    assert left == sorted(left, reverse=True)
    assert 0 < left[-1] < KILLED_CHUNKS  # it was killed while there was work left
    options = {"manifest": rows, "dim": KILLED_DIM, "chunk_rows": KILLED_ROWS, "identity": {}}
    writer = create(path, **options)
    assert len(writer.missing_chunks) == left[-1]
    fill(writer, embeddings)
    np.testing.assert_array_equal(writer.commit().read(), embeddings)
    write_store(tmp_path / "whole", embeddings, **options)
    assert shards(path) == shards(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"dim": 7}, "dim: there 6, here 7"),
        ({"manifest": make_manifest(52)}, "n_rows: there 53, here 52; manifest: there"),
        ({"manifest": make_manifest(biological_class=["x"] * N)}, "(manifest: there "),
        (
            {"identity": IDENTITY | {"source": {"tileset_sha256": "ef"}}},
            "(source: there {'tileset_sha256': 'cd'}, here {'tileset_sha256': 'ef'})",
        ),
        ({"identity": {"source": IDENTITY["source"]}}, "encoder: there {'model': 'tiny'"),
        ({"identity": IDENTITY | {"new": 1}}, "(new: there None, here 1)"),
    ],
)
def test_another_configuration_is_refused_until_it_may_overwrite(
    tmp_path, embeddings, changes, part
):
    write_store(tmp_path / "s", embeddings)
    with pytest.raises(InputError) as caught:
        create(tmp_path / "s", **changes)
    for expected in (f"{tmp_path}/s: holds", part, "--overwrite"):
        assert expected in str(caught.value)
    np.testing.assert_array_equal(store.open_store(str(tmp_path / "s")).read(), embeddings)
    writer = create(tmp_path / "s", overwrite=True, **changes)
    assert writer.missing_chunks == list(range(7))
    np.testing.assert_array_equal(store.open_store(str(tmp_path / "s")).read(), embeddings)


def test_a_complete_store_is_used_again(tmp_path, embeddings):
    write_store(tmp_path / "s", embeddings)
    before = shards(tmp_path / "s")
    writer = create(tmp_path / "s")
    assert writer.info["complete"] is True
    assert writer.missing_chunks == []
    assert shards(tmp_path / "s") == before


def test_missing_chunks_cannot_be_committed(tmp_path, embeddings):
    writer = create(tmp_path / "s")
    fill(writer, embeddings, [0, 2, 3, 5])
    with pytest.raises(InputError, match=r"chunks \[1, 4, 6\] are missing"):
        writer.commit()
    with pytest.raises(InputError, match=r"unfinished \(3 chunks missing\); run experiments"):
        store.open_store(str(tmp_path / "s"))


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (np.nan, "NaN or infinite"),
        (np.inf, "NaN or infinite"),
        (-np.inf, "NaN or infinite"),
        (0.0, "only zeros"),
        (-0.0, "only zeros"),
        # Finite and not zero as float64, but not as the float32 that is stored.
        (1e39, "NaN or infinite"),
        (1e-60, "only zeros"),
    ],
)
def test_a_row_without_direction_is_refused_by_patch(tmp_path, embeddings, value, word):
    writer = create(tmp_path / "s")
    bad = embeddings.astype(np.float64)
    bad[19] = value
    with pytest.raises(InputError, match=rf"patch s1-019 \(row 19\) holds {word}"):
        writer.write(2, bad[16:24])
    assert create(tmp_path / "s").missing_chunks == list(range(7))


def test_one_value_that_is_not_finite_is_enough_and_one_that_is_not_zero_too(tmp_path, embeddings):
    writer = create(tmp_path / "s")
    embeddings[3] = [0, 0, 1e-10, 0, 0, 0]
    writer.write(0, embeddings[:8]).result()
    embeddings[9, 5] = np.nan
    with pytest.raises(InputError, match="row 9"):
        writer.write(1, embeddings[8:16])


@pytest.mark.parametrize("shape", [(7, D), (8, D - 1), (8,), (1, D)])
def test_a_chunk_of_another_shape_is_refused(tmp_path, shape):
    with pytest.raises(InputError, match=r"embeddings: expected shape \(8, 6\) of the chunk"):
        create(tmp_path / "s").write(0, np.ones(shape, np.float32))


@pytest.mark.parametrize("at", [5, -5])
def test_a_flipped_byte_is_refused_when_it_is_read(tmp_path, embeddings, at):
    opened = write_store(tmp_path / "s", embeddings)
    shard = tmp_path / "s" / "embeddings" / "c" / "2" / "0"
    damaged = bytearray(shard.read_bytes())
    damaged[at] ^= 1
    shard.write_bytes(damaged)
    for reader in (opened, store.open_store(str(tmp_path / "s"))):
        with pytest.raises(InputError, match=r"s: the embeddings cannot be read back \(DATA_LOSS"):
            reader.read()
    np.testing.assert_array_equal(opened.read(np.arange(16)), embeddings[:16])


@pytest.mark.parametrize("name", ["embeddings/c/2/0", "embeddings/zarr.json"])
def test_a_lost_file_is_refused_and_the_folder_can_be_made_again(tmp_path, embeddings, name):
    write_store(tmp_path / "s", embeddings)
    (tmp_path / "s" / name).unlink()
    with pytest.raises(InputError, match=r"NOT_FOUND.*emove the folder"):
        store.open_store(str(tmp_path / "s")).read()
    shutil.rmtree(tmp_path / "s")
    np.testing.assert_array_equal(write_store(tmp_path / "s", embeddings).read(), embeddings)


def test_another_manifest_is_refused(tmp_path, embeddings):
    write_store(tmp_path / "s", embeddings)
    turned = make_manifest().take(np.arange(N)[::-1])
    pq.write_table(turned.table, tmp_path / "s" / "manifest.parquet")
    with pytest.raises(InputError, match=r"manifest\.parquet is not the one"):
        store.open_store(str(tmp_path / "s"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"schema_version": 3}, r"store\.json: expected schema 2, found 3"),
        ({"dim": 5}, r"cannot be opened \(.*shape"),
        ({"chunk_rows": 7}, r"cannot be opened \(.*chunk"),
        ({"complete": False}, r"unfinished \(0 chunks missing\)"),
        ({"complete": "true"}, r"store\.json\.complete: expected bool, found 'true'"),
        ({"n_rows": 52}, "is not the one that the embeddings were made with"),
        ({"n_rows": 10**30}, r"n_rows: expected 64 bits"),
        ({"chunk_rows": 0}, "rows of a chunk above 0"),
        ({"identity": None}, r"identity: expected dict, found None"),
        ({"bad_rows": [{"row": 53, "name": "", "reason": ""}]}, "expected bad_rows in order"),
        (
            {"bad_rows": [{"row": "1", "name": "", "reason": ""}]},
            r"bad_rows\[0\]\.row: expected int",
        ),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_sidecar_that_does_not_fit_is_refused(tmp_path, embeddings, changes, part, version):
    write_store(tmp_path / "s", embeddings)
    sidecar = tmp_path / "s" / "store.json"
    forged = json.loads(sidecar.read_text()) | {"schema_version": version} | changes
    sidecar.write_text(json.dumps(forged))
    if version == 2 and changes.get("schema_version") is None:
        with pytest.raises(InputError, match=r"not as it was written.*Remove the folder"):
            store.open_store(str(tmp_path / "s"))
    forged.pop("digest")
    sealed_files.write_json(str(sidecar), forged)
    with pytest.raises(InputError, match=part):
        store.open_store(str(tmp_path / "s"))


def test_a_store_without_a_digest_is_read_and_resumed(tmp_path, embeddings):
    """As 7ab3428 wrote it: schema 1, bare lists of bad rows."""
    write_store(tmp_path / "s", embeddings)
    sidecar = tmp_path / "s" / "store.json"
    old = json.loads(sidecar.read_text()) | {"schema_version": 1}
    del old["digest"]
    sidecar.write_text(json.dumps(old))
    np.testing.assert_array_equal(store.open_store(str(tmp_path / "s")).read(), embeddings)
    assert create(tmp_path / "s").missing_chunks == []
    sidecar.write_text(json.dumps(old | {"complete": False}))
    (tmp_path / "s" / "embeddings" / "c" / "2" / "0").unlink()
    (tmp_path / "s" / "bad_rows").mkdir()
    bad = [{"row": 0, "name": "a.png", "reason": "is blue"}]
    (tmp_path / "s" / "bad_rows" / "0.json").write_text(json.dumps(bad))
    writer = create(tmp_path / "s")
    assert writer.missing_chunks == [2]
    fill(writer, embeddings)
    made = writer.commit()
    assert made.info["bad_rows"] == bad
    assert json.loads(sidecar.read_text())["schema_version"] == 2


def test_a_damaged_list_of_bad_rows_is_refused(tmp_path, embeddings):
    writer = create(tmp_path / "s")
    bad = [BadImage(3, "/home/someone/tiles/s0/3.png", "is blue")]
    writer.write(0, embeddings[:8], bad=bad).result()
    path = tmp_path / "s" / "bad_rows" / "0.json"
    whole = path.read_text()
    assert json.loads(whole)["rows"] == [{"row": 3, "name": "3.png", "reason": "is blue"}]
    fill(writer, embeddings, range(1, 7))
    for damaged in (whole.replace('"row": 3', '"row": 4'), whole[:40], "", "[[]]", "{}", "[3]"):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"bad_rows/0\.json"):
            writer.commit()
    path.write_text(whole)
    assert len(writer.commit()) == N - 1


def test_overwriting_leaves_the_old_store_until_the_new_one_is_complete(tmp_path, embeddings):
    other = {"identity": {"encoder": "other"}, "overwrite": True}
    write_store(tmp_path / "s", embeddings)
    writer = create(tmp_path / "s", **other)
    fill(writer, embeddings + 1, [0, 1, 2])
    broken = embeddings[24:32].copy()
    broken[1] = np.nan
    with pytest.raises(InputError, match=r"/s: the embedding of patch s2-025 .* holds NaN"):
        writer.write(3, broken)
    np.testing.assert_array_equal(store.open_store(str(tmp_path / "s")).read(), embeddings)
    assert [found.dataset for found in find_datasets(str(tmp_path))] == ["s"]
    assert store.recorded_settings(str(tmp_path / "s")) == {}
    writer = create(tmp_path / "s", **other)
    assert writer.missing_chunks == [3, 4, 5, 6]
    fill(writer, embeddings + 1)
    np.testing.assert_array_equal(writer.commit().read(), embeddings + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_damaged_store_can_be_overwritten(tmp_path, embeddings):
    write_store(tmp_path / "s", embeddings)
    (tmp_path / "s" / "store.json").write_text("{")
    with pytest.raises(InputError, match=r"store\.json: expected JSON.*Give --overwrite"):
        create(tmp_path / "s")
    made = write_store(tmp_path / "s", embeddings + 1, overwrite=True)
    np.testing.assert_array_equal(made.read(), embeddings + 1)


@pytest.mark.parametrize("n_renames", [0, 1])
def test_a_swap_that_was_killed_is_taken_up(tmp_path, embeddings, monkeypatch, n_renames):
    other = {"identity": {"encoder": "other"}, "overwrite": True}
    write_store(tmp_path / "s", embeddings)
    writer = create(tmp_path / "s", **other)
    fill(writer, embeddings + 1)
    left, rename = [n_renames], os.rename

    def killed(*places):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        rename(*places)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.commit()
    monkeypatch.undo()
    again = create(tmp_path / "s", **other)
    assert again.info["complete"]
    assert again.missing_chunks == []
    again.close()
    found = store.open_store(str(tmp_path / "s")).read()
    np.testing.assert_array_equal(found, embeddings + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_swap_that_was_killed_can_be_given_up(tmp_path, embeddings, monkeypatch):
    write_store(tmp_path / "s", embeddings)
    writer = create(tmp_path / "s", identity={"encoder": "other"}, overwrite=True)
    fill(writer, embeddings + 1)
    (tmp_path / "s").rename(tmp_path / ".s.old")
    assert create(tmp_path / "s").info["complete"]  # of the old configuration
    np.testing.assert_array_equal(store.open_store(str(tmp_path / "s")).read(), embeddings)
    assert not (tmp_path / ".s.new").exists()


def test_where_nothing_can_be_renamed_a_store_is_copied_its_sidecar_last(tmp_path, embeddings):
    """As on object stores: killed halfway, the copy has no store.json, and the source is whole."""
    old, new = tmp_path / "s", tmp_path / ".s.new"
    write_store(old, embeddings)
    write_store(new, embeddings + 1)
    store_swap._copy_objects(str(new), str(old))
    np.testing.assert_array_equal(store.open_store(str(old)).read(), embeddings + 1)
    written = {f: f.stat().st_mtime_ns for f in old.rglob("*") if f.is_file()}
    assert written[old / "store.json"] == max(written.values())
    assert not new.exists()


def test_a_writer_whose_lock_was_removed_writes_no_more(tmp_path, embeddings):
    first = create(tmp_path / "s")
    fill(first, embeddings, [0])
    (tmp_path / ".s.lock").unlink()
    second = store_writer.create_store(
        str(tmp_path / "s"), manifest=make_manifest(), dim=D, chunk_rows=CHUNK, identity=IDENTITY
    )
    with pytest.raises(InputError, match=r"\.s\.lock: was removed or replaced while"):
        fill(first, embeddings, [1])
    with pytest.raises(InputError, match="Nothing more is written"):
        first.commit()
    first.close()
    assert (tmp_path / ".s.lock").exists()
    fill(second, embeddings)
    np.testing.assert_array_equal(second.commit().read(), embeddings)


def test_no_store_names_the_scripts_that_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"experiments\.extract or experiments\.import"):
        store.open_store(str(tmp_path))


def test_a_caching_store_reads_each_chunk_from_disk_once(tmp_path, embeddings):
    opened = write_store(tmp_path / "m" / "d", embeddings)
    caching = opened.caching(2**20)
    np.testing.assert_array_equal(caching.read(np.arange(20)), embeddings[:20])
    shutil.rmtree(tmp_path / "m" / "d" / "embeddings" / "c" / "1")
    np.testing.assert_array_equal(caching.read(np.array([9, 15, 3])), embeddings[[9, 15, 3]])
    with pytest.raises(InputError, match="cannot be read back"):
        opened.read(np.array([9]))


def test_patches_of_a_view_are_read_by_their_key(tmp_path, embeddings):
    opened = write_store(tmp_path / "s", embeddings)
    rows = np.array([7, 3, 52, 3])
    view = make_manifest().take(rows)
    np.testing.assert_array_equal(opened.read_patches(view), embeddings[rows])
    np.testing.assert_array_equal(opened.read_patches(view, need_direction=False), embeddings[rows])


@pytest.mark.parametrize(("rows", "read"), [([7, 3, 52], [7, 3, 52]), ([7, 3, 7, 52], [3, 7, 52])])
def test_a_patch_that_repeats_is_read_once(tmp_path, embeddings, rows, read):
    found = write_store(tmp_path / "s", embeddings).read_unique_patches(make_manifest().take(rows))
    np.testing.assert_array_equal(found.embeddings, embeddings[read])
    np.testing.assert_array_equal(found.embeddings[found.row_of], embeddings[rows])
    assert found.store_rows.tolist() == rows


def test_patches_with_other_labels_are_refused_unless_relabelled(tmp_path, embeddings):
    opened = write_store(tmp_path / "s", embeddings)
    view = make_manifest(medical_center=["scanner"] * N)
    with pytest.raises(InputError, match="disagree on the medical_center"):
        opened.read_patches(view)
    relabelled = {"medical_center"}
    np.testing.assert_array_equal(opened.read_patches(view, relabelled=relabelled), embeddings)
    found = opened.read_unique_patches(view, relabelled=relabelled)
    np.testing.assert_array_equal(found.embeddings, embeddings)


@pytest.mark.parametrize(
    ("value", "word", "needs_direction"),
    [(np.nan, "NaN or infinite values", False), (0, "only zeros", True), (1e-20, "a norm", True)],
)
def test_patches_that_cannot_be_used_are_refused_with_one_message(
    tmp_path, embeddings, value, word, needs_direction
):
    opened = write_store(tmp_path / "s", embeddings)
    opened.array[np.array([5, 9])].write(np.full((2, D), value, np.float32)).result()
    view = make_manifest().take(np.arange(N)[::-1])
    pattern = rf"s: 2 embeddings hold {word}.*first is patch .*09\b.*Extract or import"
    for read in (opened.read_patches, opened.read_unique_patches):
        with pytest.raises(InputError, match=pattern):
            read(view)
    if needs_direction:
        assert len(opened.read_patches(view, need_direction=False)) == N
        return
    with pytest.raises(InputError, match=pattern):
        opened.read_patches(view, need_direction=False)


@pytest.mark.slow
def test_provenance_says_which_store_and_which_rows(tmp_path, embeddings):
    opened = write_store(tmp_path / "s", embeddings)
    info = opened.info
    assert opened.provenance() == {
        "identity": IDENTITY,
        "manifest_sha256": info["manifest_sha256"],
        "versions": info["versions"],
    }
    assert list(opened.provenance("ab")) == [
        *("identity", "manifest_sha256", "rows_sha256", "versions")
    ]
    assert opened.provenance("ab")["rows_sha256"] == "ab"
