"""Parquet files as other programs write them: large, with links, labels and columns of any type."""

import datetime
import json
import subprocess
import sys
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tilesets import IMAGE_TYPE, N, make_tiles, write_folder, write_parquet

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import parquet_tiles
from pathorob_jax.data.tileset import open_tileset


@pytest.fixture
def tiles(rng):
    return make_tiles(rng)


def bytes_of(tileset):
    return [tileset.reader.read(row)[0] for row in range(len(tileset))]


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(parquet_tiles, "MIN_BATCH_ROWS", 1)
    monkeypatch.setattr(parquet_tiles, "MAX_BATCH_ROWS", 2)


@pytest.mark.parametrize("cached", [0, 2**30])
@pytest.mark.parametrize("group_rows", [1, 4, 100])
def test_rows_come_in_any_order_whatever_the_batches(
    tmp_path, tiles, small_batches, cached, group_rows, monkeypatch
):
    monkeypatch.setattr(parquet_tiles, "CACHE_BYTES", cached)
    data = [tiles.encoded(i) for i in range(N)]
    tileset = open_tileset(write_parquet(tmp_path / "t", tiles, group_rows=group_rows))
    order = [*range(N), *range(N)[::-1], *np.random.default_rng(0).permutation(N).tolist()]
    assert [tileset.reader.read(row)[0] for row in order] == [data[row] for row in order]
    held = tileset.reader._cache
    assert len(held) == 2 if cached == 0 else len(held) > 2


def test_ascending_rows_are_read_once(tmp_path, tiles, small_batches, monkeypatch):
    monkeypatch.setattr(parquet_tiles, "CACHE_BYTES", 0)
    read, n_rows = parquet_tiles._iter_images, []

    def counted(*args):
        for images in read(*args):
            n_rows.append(len(images))
            yield images

    monkeypatch.setattr(parquet_tiles, "_iter_images", counted)
    path = write_parquet(tmp_path / "t", tiles, borders=(0, N), group_rows=100)
    bytes_of(open_tileset(path))
    assert n_rows == [2, 2, 2, 2, 2, 1]


def test_a_group_with_some_links_is_read(tmp_path, tiles, small_batches):
    data = [tiles.encoded(i) for i in range(N)]
    cells = list(data)
    (tmp_path / "t").mkdir()
    for i in (0, 3, 10):
        (tmp_path / "t" / f"{i}.png").write_bytes(data[i])
        cells[i] = {"bytes": None, "path": f"{i}.png"}
    cells[4] = {"bytes": data[4], "path": "/original/of/the/writer.png"}  # not followed
    path = write_parquet(tmp_path / "t", tiles, data=cells, borders=(0, N), group_rows=6)
    tileset = open_tileset(path)
    assert bytes_of(tileset) == data
    assert {tileset.reader.read(row)[1] for row in (0, 3, 10)} == {
        f"{path}/{row}.png" for row in (0, 3, 10)
    }


@pytest.mark.parametrize("statistics", [True, False])
def test_links_are_found_without_statistics_too(tmp_path, tiles, statistics):
    cells = [{"bytes": None, "path": "../a.png"}, *[{"bytes": b"x", "path": None}] * (N - 1)]
    table = pa.table({"image": pa.array(cells, IMAGE_TYPE)} | tiles.columns)
    pq.write_table(table, tmp_path / "a.parquet", write_statistics=statistics)
    with pytest.raises(InputError, match=r"a\.parquet row 0: the path '../a.png' leads out"):
        open_tileset(str(tmp_path))


def test_links_are_found_whatever_the_order_of_bytes_and_path(tmp_path, tiles):
    kind = pa.struct([("path", pa.string()), ("bytes", pa.binary())])
    cells = [{"path": f"{i}.png", "bytes": None} for i in range(N)]
    (tmp_path / "t").mkdir()
    for i in range(N):
        (tmp_path / "t" / f"{i}.png").write_bytes(tiles.encoded(i))
    table = pa.table({"image": pa.array(cells, kind)} | tiles.columns)
    pq.write_table(table, tmp_path / "t" / "a.parquet")
    assert bytes_of(open_tileset(str(tmp_path / "t"))) == [tiles.encoded(i) for i in range(N)]


def test_what_pyarrow_cannot_read_may_be_whole(tmp_path, tiles, monkeypatch):
    def refuse(*_):
        raise pa.ArrowNotImplementedError("Nested data conversions")

    tileset = open_tileset(write_parquet(tmp_path / "t", tiles))
    monkeypatch.setattr(parquet_tiles, "_iter_images", refuse)
    message = r"part-0\.parquet row group 0: .*\(Nested data.*in smaller row groups\.$"
    with pytest.raises(InputError, match=message):
        tileset.reader.read(0)


def _class_labels(path, tiles, *, names, columns=("biological_class", "medical_center")):
    """A tileset as ``datasets`` writes it: integers, and names in the metadata of the schema."""
    table = {k: v for k, v in tiles.columns.items() if k not in columns}
    features = {name: {"dtype": "string", "_type": "Value"} for name in table}
    features |= {"image": {"_type": "Image"}}
    for column in columns:
        own = names[column]
        table[column] = pa.array([own.index(v) for v in tiles.columns[column]], pa.int64())
        features[column] = {"names": own, "_type": "ClassLabel"}
    cells = [{"bytes": tiles.encoded(i), "path": None} for i in range(N)]
    full = pa.table({"image": pa.array(cells, IMAGE_TYPE)} | table)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.mkdir(exist_ok=True)
    pq.write_table(full.replace_schema_metadata(metadata), path / "train-00000-of-00001.parquet")
    return str(path)


NAMES = {"biological_class": ["normal", "tumor"], "medical_center": ["B", "A"]}


@pytest.mark.parametrize(
    "columns", [("biological_class",), ("medical_center",), tuple(NAMES)], ids=str
)
def test_class_labels_are_their_names(tmp_path, tiles, columns):
    tileset = open_tileset(_class_labels(tmp_path / "t", tiles, names=NAMES, columns=columns))
    plain = open_tileset(write_parquet(tmp_path / "p", tiles))
    for name in NAMES:
        assert tileset.manifest.column(name).tolist() == tiles.columns[name]
    assert tileset.manifest.fingerprint() == plain.manifest.fingerprint()


def test_files_with_labels_in_other_order_agree(tmp_path, tiles):
    path = _class_labels(tmp_path / "t", tiles, names=NAMES)
    other = tiles.columns | {"patch_id": [f"x{i}" for i in range(N)]}
    turned = {column: names[::-1] for column, names in NAMES.items()}
    _class_labels(tmp_path / "other", tiles._replace(columns=other), names=turned)
    (tmp_path / "other" / "train-00000-of-00001.parquet").rename(tmp_path / "t" / "z.parquet")
    tileset = open_tileset(path)
    for name in NAMES:
        assert tileset.manifest.column(name).tolist() == tiles.columns[name] * 2


def test_a_label_without_a_name_names_the_file(tmp_path, tiles):
    path = _class_labels(tmp_path / "t", tiles, names=NAMES)
    file = tmp_path / "t" / "train-00000-of-00001.parquet"
    table = pq.read_table(file)
    at = table.schema.get_field_index("medical_center")
    pq.write_table(table.set_column(at, "medical_center", pa.array([7] * N)), file)
    with pytest.raises(InputError, match=r"of-00001\.parquet: column 'medical_center'.*found 7"):
        open_tileset(path)


EXTRA = {
    "uuid": pa.array([uuid.UUID(int=i + 2**120).bytes for i in range(N)], pa.uuid()),
    "fixed_size_binary": pa.array([b"\xff\xfe" * 8] * N, pa.binary(16)),
    "binary": pa.array([b"\xff"] * N),
    "large_binary": pa.array([b"\xff"] * N, pa.large_binary()),
    "binary_view": pa.array([b"\xff"] * N, pa.binary_view()),
    "dictionary of binary": pa.array([b"\xff"] * N).dictionary_encode(),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((N, 2, 2), np.float32)),
    "list": pa.array([[1]] * N),
    "struct": pa.array([{"a": 1}] * N),
    "time": pa.array([datetime.time(1, 2, 3)] * N),
    "half": pa.array(np.zeros(N, np.float16)),
    "bool": pa.array([True] * N),
    "null": pa.nulls(N),
}


@pytest.mark.parametrize("kind", EXTRA)
def test_a_column_nobody_asked_for_does_not_refuse_the_file(tmp_path, tiles, kind):
    cells = [{"bytes": tiles.encoded(i), "path": None} for i in range(N)]
    table = {"image": pa.array(cells, IMAGE_TYPE)} | tiles.columns | {"extra": EXTRA[kind]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    tileset = open_tileset(str(tmp_path))
    assert len(tileset) == N
    assert bytes_of(tileset) == [tiles.encoded(i) for i in range(N)]


def test_stray_files_do_not_count(tmp_path, tiles):
    for write in (write_parquet, write_folder):
        path = tmp_path / write.__name__
        plain = open_tileset(write(path, tiles)).fingerprint
        for name in (".DS_Store", "Thumbs.db", "README.md", "._part-0.parquet", ".x.parquet"):
            (path / name).write_bytes(b"\0\5\26\7 stray")
        (path / ".git").mkdir()
        assert open_tileset(str(path)).fingerprint == plain


def test_a_parquet_file_that_is_no_part_is_named(tmp_path, tiles):
    path = write_parquet(tmp_path / "t", tiles)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t" / "notes.parquet")
    with pytest.raises(InputError, match=r"notes\.parquet: .*move it out of the folder"):
        open_tileset(path)


def test_two_formats_in_one_folder_are_refused(tmp_path, tiles):
    path = write_folder(tmp_path / "t", tiles)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t" / "notes.parquet")
    with pytest.raises(InputError, match=r"holds both manifest\.csv and notes\.parquet"):
        open_tileset(path)


def test_a_folder_above_the_tileset_says_where_it_may_be(tmp_path, tiles):
    write_parquet(tmp_path / "data", tiles)
    (tmp_path / "README.md").write_text("a data set")
    with pytest.raises(InputError, match=r"found neither; \S+/data may be meant\."):
        open_tileset(str(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"found neither, but a\.png\."):
        open_tileset(str(tmp_path / "other"))
    write_parquet(tmp_path / "other" / ".hidden", tiles)
    (tmp_path / "other" / "empty").mkdir()
    with pytest.raises(InputError, match=r"found neither, but a\.png\."):
        open_tileset(str(tmp_path / "other"))
    write_parquet(tmp_path / "other" / "tiles", tiles)
    with pytest.raises(InputError, match=r"/other/tiles may be meant\."):
        open_tileset(str(tmp_path / "other"))


PEAK = """
import re, sys
from pathorob_jax.data.tileset import open_tileset
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
base = peak()
tileset = open_tileset(sys.argv[1])
opened = peak()
size = sum(len(tileset.reader.read(row)[0]) for row in range(len(tileset)))
print(len(tileset), size, opened - base, peak() - base)
"""


def _measure(path):
    """Tiles, bytes of images, and peak MiB beyond imports after opening and after reading."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEAK, str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return map(int, done.stdout.split())


def _columns(n):
    return {
        "slide_id": [f"s{i // 100}" for i in range(n)],
        "patch_id": [str(i) for i in range(n)],
        "biological_class": ["ab"[i // 100 % 2] for i in range(n)],
        "medical_center": ["xy"[i // 200 % 2] for i in range(n)],
    }


@pytest.mark.campaign
@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_whatever_the_row_group_and_other_columns_hold(tmp_path):
    n, rng = 4_000, np.random.default_rng(0)
    blobs = [rng.bytes(100_000) for _ in range(n // 10)]
    cells = pa.array([{"bytes": blobs[i % len(blobs)], "path": None} for i in range(n)], IMAGE_TYPE)
    masks = pa.array([blobs[i % len(blobs)] for i in range(n)])
    table = pa.table(_columns(n) | {"image": cells, "mask_png": masks})
    # Pages of 64 images: a page is the least that can be read.
    pq.write_table(
        table,
        tmp_path / "a.parquet",
        use_dictionary=False,
        compression="none",
        row_group_size=n,
        write_batch_size=64,
    )
    n_read, size, opened, read = _measure(tmp_path)
    assert (n_read, size) == (n, n * 100_000)
    # 380 MiB of images, as many of masks; labels, the cache and a batch take less than 260.
    assert opened < 60
    assert read < 260


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_row_group_of_more_than_2_gib_is_read(tmp_path):
    n, rng = 11_000, np.random.default_rng(0)
    blobs = [rng.bytes(200_000) for _ in range(8)]
    columns = _columns(n)
    chunks = []
    for start in range(0, n, 500):
        rows = range(start, min(start + 500, n))
        cells = pa.array([{"bytes": blobs[i % 8], "path": None} for i in rows], IMAGE_TYPE)
        part = {name: values[rows.start : rows.stop] for name, values in columns.items()}
        chunks.append(pa.table({"image": cells} | part))
    # Equal images are stored once: a small file, whose one row group is large.
    pq.write_table(
        pa.concat_tables(chunks), tmp_path / "a.parquet", dictionary_pagesize_limit=2**24
    )
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 1
    n_read, size, _, read = _measure(tmp_path)
    assert n_read == n
    assert size == n * 200_000 > 2**31
    assert read < 400
