"""Tiles come decoded in the plan's order, whatever the form, the threads and the workers."""

import io
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pathorob_jax
from pathorob_jax import images
from pathorob_jax.checks import InputError
from pathorob_jax.images import NO_ROW
from pathorob_jax.manifest import REQUIRED

H, W, N = 20, 24, 11
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
KILLED_WITHIN_S = 10
# Reads with two workers, tells their process ids, and waits to be killed.
READER = """
import multiprocessing, sys, time
from pathorob_jax import images

if __name__ == "__main__":
    tileset = images.open_tileset(sys.argv[1])
    plan = images.plan_batches(len(tileset), batch_size=2)
    batches = images.read_batches(tileset, plan, workers=2, threads=1)
    next(batches)
    pids = [str(child.pid) for child in multiprocessing.active_children()]
    with open(sys.argv[2], "w") as stream:
        stream.write(" ".join(pids) + "\\n")
    time.sleep(60)
"""


class Tiles(NamedTuple):
    """N tiles and their manifest columns."""

    pixels: np.ndarray
    columns: dict[str, list[str]]

    def encoded(self, row, form="PNG", **options):
        return encode(Image.fromarray(self.pixels[row]), form, **options)


def encode(image, form="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


@pytest.fixture
def tiles(rng) -> Tiles:
    columns = {
        "slide_id": [f"s{i // 2}" for i in range(N)],
        "patch_id": [f"00{i}" for i in range(N)],
        "biological_class": [("tumor", "normal")[i % 2] for i in range(N)],
        "medical_center": [("A", "B")[i // 2 % 2] for i in range(N)],
    }
    return Tiles(rng.integers(0, 256, (N, H, W, 3), np.uint8), columns)


def write_folder(path, tiles, *, data=None):
    """Image files in subfolders beside manifest.csv."""
    names = [f"{slide}/{i}.png" for i, slide in enumerate(tiles.columns["slide_id"])]
    table = tiles.columns | {"path": names}
    lines = [",".join(table), *(",".join(row) for row in zip(*table.values(), strict=True))]
    path.mkdir()
    (path / "manifest.csv").write_text("\n".join(lines))
    for i, name in enumerate(names):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(tiles.encoded(i) if data is None else data[i])
    return str(path)


def write_parquet(path, tiles, *, data=None, borders=(0, 5, 5, N), group_rows=2, encode_ids=False):
    """One Parquet file for each pair of borders; the second one is empty by default."""
    data = [tiles.encoded(i) for i in range(N)] if data is None else data
    path.mkdir(exist_ok=True)
    for part, (start, stop) in enumerate(zip(borders, borders[1:], strict=False)):
        cells = [d if isinstance(d, dict) else {"bytes": d, "path": None} for d in data[start:stop]]
        columns = {k: pa.array(v[start:stop], pa.string()) for k, v in tiles.columns.items()}
        if encode_ids:
            columns = {k: v.dictionary_encode() for k, v in columns.items()}
        table = pa.table({"image": pa.array(cells, IMAGE_TYPE)} | columns)
        pq.write_table(table, path / f"part-{part}.parquet", row_group_size=group_rows)
    return str(path)


def read_all(tileset, *, batch_size=4, **options):
    plan = images.plan_batches(len(tileset), batch_size=batch_size)
    return list(images.read_batches(tileset, plan, **options))


def pixels_of(batches):
    return np.concatenate([b.images[b.mask] for b in batches])


def test_both_forms_give_the_same_rows_and_tiles(tmp_path, tiles):
    folder = images.open_tileset(write_folder(tmp_path / "folder", tiles))
    parquet = images.open_tileset(write_parquet(tmp_path / "parquet", tiles))
    encoded = images.open_tileset(write_parquet(tmp_path / "ids", tiles, encode_ids=True))
    for tileset in (folder, parquet, encoded):
        assert len(tileset) == N
        for name in REQUIRED:
            expected = folder.manifest.column(name).tolist()
            assert tileset.manifest.column(name).tolist() == expected
        np.testing.assert_array_equal(pixels_of(read_all(tileset)), tiles.pixels)
    assert folder.manifest.column("patch_id").tolist() == tiles.columns["patch_id"]
    assert "image" not in parquet.manifest


def test_columns_are_renamed(tmp_path, tiles):
    renamed = tiles.columns | {"site": ["C", "C", "D", "D"] * 2 + ["C", "C", "D"]}
    path = write_parquet(tmp_path / "t", tiles._replace(columns=renamed))
    tileset = images.open_tileset(path, columns={"medical_center": "site"})
    assert tileset.manifest.column("medical_center").tolist() == renamed["site"]


def test_a_patch_that_recurs_across_subsets_is_one_tile(tmp_path, tiles):
    order = [0, 1, 0, 2, 1, *range(3, N - 2)]
    again = {k: [v[i] for i in order] for k, v in tiles.columns.items()}
    again["subset"] = ["one", "one", "two", "two", "two", *["one"] * (N - 5)]
    data = [tiles.encoded(i) for i in order]
    path = write_parquet(tmp_path / "t", tiles._replace(columns=again), data=data)
    tileset = images.open_tileset(path)
    assert len(tileset) == N - 2
    np.testing.assert_array_equal(pixels_of(read_all(tileset)), tiles.pixels[: N - 2])


@pytest.mark.parametrize("borders", [(0, 0, N), (0, N, N), (0, 1, 1, 1, N)])
@pytest.mark.parametrize("group_rows", [1, 3, 100])
def test_files_and_row_groups_do_not_matter(tmp_path, tiles, borders, group_rows):
    path = write_parquet(tmp_path / "t", tiles, borders=borders, group_rows=group_rows)
    np.testing.assert_array_equal(pixels_of(read_all(images.open_tileset(path))), tiles.pixels)


def test_a_file_without_rows_may_have_untyped_columns(tmp_path, tiles):
    path = write_parquet(tmp_path / "t", tiles, borders=(0, N))
    empty = {k: pa.array([], pa.null()) for k in tiles.columns}
    table = pa.table({"image": pa.array([], IMAGE_TYPE)} | empty)
    pq.write_table(table, tmp_path / "t" / "a-empty.parquet")
    np.testing.assert_array_equal(pixels_of(read_all(images.open_tileset(path))), tiles.pixels)


@pytest.mark.parametrize("absolute", [False, True])
def test_bytes_may_be_null_where_a_path_is_given(tmp_path, tiles, absolute):
    (tmp_path / "t" / "files").mkdir(parents=True)
    data = [tiles.encoded(i) for i in range(N)]
    for i in (2, 7):
        (tmp_path / "t" / "files" / f"{i}.png").write_bytes(data[i])
        prefix = f"{tmp_path}/t/" if absolute else ""
        data[i] = {"bytes": None, "path": f"{prefix}files/{i}.png"}
    tileset = images.open_tileset(write_parquet(tmp_path / "t", tiles, data=data))
    np.testing.assert_array_equal(pixels_of(read_all(tileset)), tiles.pixels)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_lossless_files_of_any_mode_become_rgb(rng, form):
    rgb = rng.integers(0, 256, (H, W, 3), np.uint8)
    grey, alpha = rgb[..., 0], rng.integers(0, 256, (H, W), np.uint8)
    deep = rng.integers(0, 512, (H, W)).astype(np.uint16)
    palette = Image.fromarray(grey % 4)
    palette.putpalette([9, 8, 7, 1, 2, 3, 255, 0, 4, 5, 5, 5] + [0] * 756)
    colours = np.array([[9, 8, 7], [1, 2, 3], [255, 0, 4], [5, 5, 5]], np.uint8)
    cases = {
        "RGB": (Image.fromarray(rgb), rgb),
        "RGBA": (Image.fromarray(np.dstack([rgb, alpha])), rgb),
        "L": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "LA": (Image.fromarray(np.dstack([grey, alpha])), np.dstack([grey] * 3)),
        "1": (Image.fromarray(grey > 99), np.dstack([np.where(grey > 99, 255, 0)] * 3)),
        "P": (palette, colours[grey % 4]),
        # PIL clips 16-bit grey; it does not scale it.
        "I;16": (Image.fromarray(deep), np.dstack([np.minimum(deep, 255)] * 3)),
    }
    for mode, (image, expected) in cases.items():
        assert image.mode == mode
        found = images.decode_tile(encode(image, form), mode)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected, err_msg=mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_decoded_as_pil_does(tiles, mode):
    data = encode(Image.fromarray(tiles.pixels[0]).convert(mode), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode
        expected = np.asarray(image.convert("RGB"))
    found = images.decode_tile(data, "tile")
    assert found.shape == (H, W, 3)
    np.testing.assert_array_equal(found, expected)


# PIL warns before it raises; here the warning would hide what it raises.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_damaged_bytes_are_an_image_or_an_input_error(tiles, form):
    data = tiles.encoded(0, form)
    refused = 0
    for at in range(0, len(data), 97):
        flipped = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        for damaged in (data[:at], flipped):
            try:
                images.decode_tile(damaged, "some tile")
            except InputError as error:
                refused += str(error).startswith("some tile: cannot be decoded")
    assert refused > len(data) // 97 // 2


@pytest.mark.parametrize("n_rows", [1, 3, 4, 5, 23, 24, 25])
@pytest.mark.parametrize("n_processes", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_plan_deals_consecutive_rows_to_processes(n_rows, n_processes, batch_size):
    plans = [
        images.plan_batches(
            n_rows, batch_size=batch_size, process_index=p, process_count=n_processes
        )
        for p in range(n_processes)
    ]
    step_rows = n_processes * batch_size
    rows = iter([*range(n_rows), *[NO_ROW] * step_rows])
    expected = [[] for _ in range(n_processes)]
    while sum(r != NO_ROW for plan in expected for step in plan for r in step) < n_rows:
        for process in expected:
            process.append([next(rows) for _ in range(batch_size)])
    assert [plan.tolist() for plan in plans] == expected


def test_padding_is_black_and_masked(tmp_path, tiles):
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles))
    batches = read_all(tileset, batch_size=8)
    assert [b.images.shape for b in batches] == [(8, H, W, 3)] * 2
    assert batches[0].mask.all()
    assert batches[1].mask.tolist() == [True] * 3 + [False] * 5
    assert batches[1].rows.tolist() == [8, 9, 10] + [NO_ROW] * 5
    assert not batches[1].images[3:].any()
    assert batches[1].images[:3].any()


def test_a_process_without_rows_has_masked_steps_of_the_same_shape(tmp_path, tiles):
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles))
    plan = images.plan_batches(N, batch_size=16, process_index=1, process_count=2)
    (batch,) = images.read_batches(tileset, plan)
    assert batch.images.shape == (16, H, W, 3)
    assert not batch.mask.any()
    assert not batch.images.any()


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_order_and_values_do_not_depend_on_threads(tmp_path, tiles, threads):
    tileset = images.open_tileset(write_parquet(tmp_path / "t", tiles, group_rows=3))
    # Back and forth over row groups, so that several threads want several groups at once.
    plan = np.random.default_rng(0).permutation(np.arange(60) % N).reshape(12, 5)
    batches = list(images.read_batches(tileset, plan, threads=threads))
    assert [b.rows.tolist() for b in batches] == plan.tolist()
    for batch, rows in zip(batches, plan, strict=True):
        np.testing.assert_array_equal(batch.images, tiles.pixels[rows])


@pytest.mark.multiprocess
def test_order_and_values_do_not_depend_on_workers(tmp_path, tiles):
    tileset = images.open_tileset(write_parquet(tmp_path / "t", tiles, group_rows=3))
    batches = read_all(tileset, batch_size=2, workers=2, threads=2)
    assert [b.rows.tolist() for b in batches][-1] == [10, NO_ROW]
    assert len(batches) == 6
    np.testing.assert_array_equal(pixels_of(batches), tiles.pixels)
    assert [b.mask.sum() for b in batches] == [2, 2, 2, 2, 2, 1]


def test_part_of_a_plan_gives_the_same_batches(tmp_path, tiles):
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles))
    plan = images.plan_batches(N, batch_size=2)
    whole = list(images.read_batches(tileset, plan))
    part = list(images.read_batches(tileset, plan[[1, 5]]))
    for found, expected in zip(part, [whole[1], whole[5]], strict=True):
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.mask, expected.mask)
    assert list(images.read_batches(tileset, plan[:0])) == []


BAD = 4
BAD_TILES = {
    "unreadable": (lambda data: b"no image" * 9, "cannot be decoded as an image"),
    "empty": (lambda data: b"", "cannot be decoded as an image"),
    "truncated": (lambda data: data[:-40], "image file is truncated"),
    "missing": (lambda data: None, "no such file"),
    "other size": (
        lambda data: encode(Image.new("RGB", (7, 9))),
        f"expected {W} x {H} pixels like the first tile of the tileset, found 7 x 9",
    ),
}


def with_bad_tile(tmp_path, tiles, kind, form):
    """A tileset whose tile BAD is bad, and the name that a message must give it."""
    spoil, part = BAD_TILES[kind]
    data = [tiles.encoded(i, "JPEG") for i in range(N)]
    data[BAD] = spoil(data[BAD])
    if form == "folder":
        path = write_folder(tmp_path / "t", tiles, data=[d or b"" for d in data])
        name = f"{path}/s{BAD // 2}/{BAD}.png"
        if data[BAD] is None:
            os.unlink(name)
    elif data[BAD] is None:
        data[BAD] = {"bytes": None, "path": "gone.png"}
        path = write_parquet(tmp_path / "t", tiles, data=data, borders=(0, 1, N))
        name = f"{path}/gone.png"
    else:
        path = write_parquet(tmp_path / "t", tiles, data=data, borders=(0, 1, N))
        name = f"{path}/part-1.parquet row {BAD - 1}"
    return images.open_tileset(path), name, part


@pytest.mark.parametrize("form", ["folder", "parquet"])
@pytest.mark.parametrize("kind", BAD_TILES)
def test_a_bad_tile_is_named(tmp_path, tiles, kind, form):
    tileset, name, part = with_bad_tile(tmp_path, tiles, kind, form)
    with pytest.raises(InputError) as caught:
        read_all(tileset, batch_size=2)
    assert str(caught.value).startswith(f"{name}: ")
    assert part in str(caught.value)


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["truncated", "missing", "other size"])
def test_a_bad_tile_is_named_by_workers_too(tmp_path, tiles, kind):
    tileset, name, part = with_bad_tile(tmp_path, tiles, kind, "parquet")
    with pytest.raises(InputError) as caught:
        read_all(tileset, batch_size=2, workers=1, threads=1)
    assert name in str(caught.value)
    assert part in str(caught.value)


def test_a_tile_of_another_size_is_named_where_a_resumed_plan_begins_with_it(tmp_path, tiles):
    tileset, name, part = with_bad_tile(tmp_path, tiles, "other size", "folder")
    plan = images.plan_batches(N, batch_size=2)[BAD // 2 :]
    with pytest.raises(InputError) as caught:
        list(images.read_batches(tileset, plan))
    assert str(caught.value).startswith(f"{name}: {part}")


def test_a_tile_without_bytes_and_path_is_named(tmp_path, tiles):
    for missing in (None, {"bytes": None, "path": ""}):
        data = [tiles.encoded(i) for i in range(N)]
        cells = [{"bytes": d, "path": None} for d in data]
        cells[BAD] = missing
        table = pa.table({"image": pa.array(cells, IMAGE_TYPE)} | tiles.columns)
        (tmp_path / "t").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "t" / "x.parquet")
        with pytest.raises(InputError, match=rf"x\.parquet row {BAD}: the 'image' column is empty"):
            read_all(images.open_tileset(str(tmp_path / "t")))


def test_what_is_no_tileset_is_refused(tmp_path, tiles):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        images.open_tileset(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"expected a tileset .* found neither"):
        images.open_tileset(str(tmp_path))
    (tmp_path / "manifest.csv").write_text(
        "slide_id,patch_id,biological_class,medical_center\ns,1,tumor,A\n"
    )
    with pytest.raises(InputError, match="expected a column 'path'"):
        images.open_tileset(str(tmp_path))


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (None, r"found \['slide_id'"),
        (pa.array([b"x"] * N), "found binary"),
        (pa.array([{"data": b"x"}] * N), "found struct<data"),
    ],
)
def test_an_image_column_of_another_kind_is_refused(tmp_path, tiles, image, found):
    columns = tiles.columns if image is None else tiles.columns | {"image": image}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=rf"x\.parquet: expected a column 'image' .*{found}"):
        images.open_tileset(str(tmp_path))


def test_parquet_files_of_different_columns_are_refused(tmp_path, tiles):
    path = write_parquet(tmp_path / "t", tiles, borders=(0, 5))
    numbers = tiles.columns | {"patch_id": list(range(N))}
    table = pa.table({"image": pa.array([{"bytes": b""}] * N, IMAGE_TYPE)} | numbers)
    pq.write_table(table, tmp_path / "t" / "z.parquet")
    with pytest.raises(InputError, match="expected the same columns in all Parquet files"):
        images.open_tileset(path)


def test_a_damaged_parquet_file_is_named(tmp_path, tiles):
    path = write_parquet(tmp_path / "t", tiles, borders=(0, 5, N), group_rows=100)
    file = tmp_path / "t" / "part-1.parquet"
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2] + b"\0" * 40 + b"PAR1"):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"part-1\.parquet.*: cannot be read as Parquet"):
            read_all(images.open_tileset(path))
    # The footer is whole, the pages of the images are not.
    file.write_bytes(whole)
    tileset = images.open_tileset(path)
    file.write_bytes(b"PAR1" + b"\xff" * 60 + whole[64:])
    with pytest.raises(InputError, match=r"part-1\.parquet row group 0: cannot be read as Parquet"):
        read_all(tileset)


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_the_fingerprint_tells_manifest_and_file_sizes(tmp_path, tiles, form):
    write = write_folder if form == "folder" else write_parquet
    base = images.open_tileset(write(tmp_path / "a", tiles)).fingerprint
    assert images.open_tileset(write(tmp_path / "b", tiles)).fingerprint == base
    data = [tiles.encoded(i) for i in range(N)]
    data[3] = encode(Image.new("RGB", (W, H)))
    other_image = images.open_tileset(write(tmp_path / "c", tiles, data=data)).fingerprint
    labels = tiles.columns | {"biological_class": ["tumor"] * N}
    other_label = images.open_tileset(write(tmp_path / "d", tiles._replace(columns=labels)))
    assert len({base, other_image, other_label.fingerprint}) == 3


@pytest.mark.multiprocess
def test_workers_do_not_outlive_a_killed_parent(tmp_path, tiles):
    path = write_parquet(tmp_path / "t", tiles)
    (tmp_path / "reader.py").write_text(READER)
    told = tmp_path / "pids"
    root = str(pathlib.Path(pathorob_jax.__file__).parents[1])
    # Output to a file: workers that live on would hold a pipe open.
    with (tmp_path / "log").open("w") as log:
        parent = subprocess.Popen(
            [sys.executable, str(tmp_path / "reader.py"), path, str(told)],
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": root},
        )
    try:
        _wait_for(lambda: told.exists() and told.read_text().endswith("\n"), seconds=60)
        pids = [int(pid) for pid in told.read_text().split()]
        assert len(pids) == 2
        assert all(map(_is_alive, pids))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _wait_for(lambda: not any(map(_is_alive, pids)), seconds=KILLED_WITHIN_S)


def _wait_for(condition, *, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def _is_alive(pid):
    """A process that ended but that nobody has waited for does not live."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
