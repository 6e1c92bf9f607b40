"""Tiles come decoded in the plan's order, whatever the form, the threads and the workers."""

import hashlib
import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tilesets import H, N, W, encode, make_tiles, write_folder, write_parquet

import pathorob_jax
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import tile_batches
from pathorob_jax.data import tileset as images
from pathorob_jax.data.tile_batches import NO_ROW, read_batches, tile_shape
from pathorob_jax.data.tileset import BadImage

KILLED_WITHIN_S = 10
# Reads with two workers, tells their process ids, and waits to be killed.
READER = """
import multiprocessing, sys, time
from pathorob_jax.data import tile_batches, tileset

if __name__ == "__main__":
    opened = tileset.open_tileset(sys.argv[1])
    plan = tile_batches.plan_batches(len(opened), batch_size=2)
    tiles = tile_batches.read_batches(opened, plan, workers=2, threads=1)
    next(tiles)
    pids = [str(child.pid) for child in multiprocessing.active_children()]
    with open(sys.argv[2], "w") as stream:
        stream.write(" ".join(pids) + "\\n")
    time.sleep(60)
"""


@pytest.fixture
def tiles(rng):
    return make_tiles(rng)


def read_all(tileset, *, batch_size=4, **options):
    plan = tile_batches.plan_batches(len(tileset), batch_size=batch_size)
    return list(read_batches(tileset, plan, **options))


def pixels_of(found):
    return np.concatenate([b.images[b.mask] for b in found])


@pytest.mark.parametrize("n_rows", [0, 1, 3, 4, 5, 23, 24, 25])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_plan_takes_rows_in_order_and_fills_up_its_last_step(n_rows, batch_size):
    rows, expected = iter(range(n_rows)), []
    while step := list(itertools.islice(rows, batch_size)):
        expected.append(step + [NO_ROW] * (batch_size - len(step)))
    plan = tile_batches.plan_batches(n_rows, batch_size=batch_size)
    assert plan.shape == (len(expected), batch_size)
    assert plan.dtype == np.int64
    assert plan.tolist() == expected


def test_padding_is_black_and_masked(tmp_path, tiles):
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles))
    found = read_all(tileset, batch_size=8)
    assert [b.images.shape for b in found] == [(8, H, W, 3)] * 2
    assert [b.images.dtype for b in found] == [np.uint8] * 2
    assert [b.rows.dtype for b in found] == [np.int64] * 2
    assert found[0].mask.all()
    assert found[1].mask.tolist() == [True] * 3 + [False] * 5
    assert found[1].rows.tolist() == [8, 9, 10] + [NO_ROW] * 5
    assert not found[1].images[3:].any()
    assert found[1].images[:3].any()
    assert [b.bad for b in found] == [(), ()]


def test_a_step_of_padding_alone_is_black_and_takes_no_time(tmp_path, tiles):
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles))
    (batch,) = read_batches(tileset, np.full((1, 16), NO_ROW))
    assert batch.images.shape == (16, H, W, 3)
    assert not batch.mask.any()
    assert not batch.images.any()
    assert batch.read_s == 0


@pytest.mark.parametrize("threads", [1, 2, 8, None])
def test_order_and_values_do_not_depend_on_threads(tmp_path, tiles, threads):
    tileset = images.open_tileset(write_parquet(tmp_path / "t", tiles, group_rows=3))
    # Back and forth over row groups, so that several threads want several groups at once.
    plan = np.random.default_rng(0).permutation(np.arange(60) % N).reshape(12, 5)
    plan[3, 1] = plan[7, 4] = NO_ROW
    found = list(read_batches(tileset, plan, threads=threads))
    assert [b.rows.tolist() for b in found] == plan.tolist()
    for batch, rows in zip(found, plan, strict=True):
        assert batch.mask.tolist() == (rows != NO_ROW).tolist()
        np.testing.assert_array_equal(batch.images[batch.mask], tiles.pixels[rows[batch.mask]])
        assert not batch.images[~batch.mask].any()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_order_and_values_do_not_depend_on_workers(tmp_path, tiles):
    tileset = images.open_tileset(write_parquet(tmp_path / "t", tiles, group_rows=3))
    found = read_all(tileset, batch_size=2, workers=2, threads=2)
    assert [b.rows.tolist() for b in found][-1] == [10, NO_ROW]
    assert len(found) == 6
    np.testing.assert_array_equal(pixels_of(found), tiles.pixels)
    assert [b.mask.sum() for b in found] == [2, 2, 2, 2, 2, 1]
    assert all(b.read_s > 0 for b in found)


def test_part_of_a_plan_gives_the_same_batches(tmp_path, tiles):
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles))
    plan = tile_batches.plan_batches(N, batch_size=2)
    whole = list(read_batches(tileset, plan))
    part = list(read_batches(tileset, plan[[1, 5]]))
    for found, expected in zip(part, [whole[1], whole[5]], strict=True):
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.mask, expected.mask)
    assert list(read_batches(tileset, plan[:0])) == []


def test_row_groups_are_not_read_again_however_many_threads_decode(tmp_path, tiles, monkeypatch):
    tileset = images.open_tileset(write_parquet(tmp_path / "t", tiles, borders=(0, N)))
    read, groups = pq.ParquetFile.iter_batches, []

    def counted(self, batch_size, *, row_groups, columns):
        groups.extend(row_groups)
        return read(self, batch_size, row_groups=row_groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    # 80 tiles to a row group. Threads in steps of their own would be in several groups at once,
    # and read them by turns.
    plan = np.repeat(np.arange(10), 40).reshape(5, 80)
    for batch, rows in zip(read_batches(tileset, plan, threads=4), plan, strict=True):
        np.testing.assert_array_equal(batch.images, tiles.pixels[rows])
    assert sorted(set(groups)) == [0, 1, 2, 3, 4]
    assert len(groups) <= 10


def test_the_time_of_reading_is_summed_over_tiles(tmp_path, tiles, monkeypatch):
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles))
    decode = tile_batches.decode_tile

    def slow(data, name, **options):
        time.sleep(0.02)
        return decode(data, name, **options)

    monkeypatch.setattr(tile_batches, "decode_tile", slow)
    found = read_all(tileset, batch_size=8, threads=8, shape=(H, W, 3))
    # Eight threads sleep at once, and each counts; three tiles are in the last batch.
    assert found[0].read_s >= 8 * 0.02
    assert 3 * 0.02 <= found[1].read_s < found[0].read_s


def test_few_steps_are_decoded_ahead_of_the_consumer(tmp_path, tiles, monkeypatch):
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles))
    decode, decoded = tile_batches.decode_tile, []

    def counted(data, name, **options):
        decoded.append(name)
        return decode(data, name, **options)

    monkeypatch.setattr(tile_batches, "decode_tile", counted)
    plan = np.arange(300).reshape(100, 3) % N
    found = read_batches(tileset, plan, threads=2, shape=(H, W, 3))
    next(found)
    held = 3 * (1 + tile_batches.STEPS_AHEAD)
    deadline = time.monotonic() + 10
    while len(decoded) < held and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(decoded) == held


BAD = 4
# What is done to the tile's bytes, the reason given, and its rest.
BAD_TILES = {
    "unreadable": (lambda data: b"no image" * 9, "cannot be decoded as an image (no known format)"),
    "empty": (lambda data: b"", "cannot be decoded as an image (no bytes)"),
    "truncated": (
        lambda data: data[:-40],
        "cannot be decoded as an image (image file is truncated (",
    ),
    "corrupt": (
        lambda data: data[:4] + bytes(200) + data[204:],
        "cannot be decoded as an image (",
    ),
    "missing": (lambda data: None, "no such file, though the tileset lists it"),
    "other size": (
        lambda data: encode(Image.new("RGB", (7, 9))),
        f"expected {W} x {H} pixels like the first tile of the tileset, found 7 x 9",
    ),
}


def with_bad_tile(tmp_path, tiles, kind, form, *, bad=BAD):
    """A tileset with a bad tile, the name that a message must give it, and the reason."""
    spoil, reason = BAD_TILES[kind]
    data = [tiles.encoded(i, "JPEG") for i in range(N)]
    data[bad] = spoil(data[bad])
    if form == "folder":
        path = write_folder(tmp_path / "t", tiles, data=[d or b"" for d in data])
        name = f"{path}/s{bad // 2}/{bad}.png"
        if data[bad] is None:
            os.unlink(name)
    elif data[bad] is None:
        data[bad] = {"bytes": None, "path": "gone.png"}
        path = write_parquet(tmp_path / "t", tiles, data=data, borders=(0, 1, N))
        name = f"{path}/gone.png"
    else:
        path = write_parquet(tmp_path / "t", tiles, data=data, borders=(0, 1, N))
        name = f"{path}/part-1.parquet row {bad - 1}"
    return images.open_tileset(path), name, reason


@pytest.mark.parametrize("form", ["folder", "parquet"])
@pytest.mark.parametrize("kind", BAD_TILES)
def test_a_bad_tile_is_named(tmp_path, tiles, kind, form):
    tileset, name, reason = with_bad_tile(tmp_path, tiles, kind, form)
    with pytest.raises(InputError) as caught:
        read_all(tileset, batch_size=2)
    assert str(caught.value).startswith(f"{name}: {reason}")


@pytest.mark.parametrize("form", ["folder", "parquet"])
@pytest.mark.parametrize("kind", BAD_TILES)
def test_a_bad_tile_is_skipped_and_listed(tmp_path, tiles, kind, form):
    tileset, name, reason = with_bad_tile(tmp_path, tiles, kind, form)
    found = read_all(tileset, batch_size=3, on_bad_image="skip")
    check_skipped(found, tiles, [BAD])
    (bad,) = found[1].bad
    assert bad[:2] == (BAD, name)
    assert bad.reason.startswith(reason)


def check_skipped(found, tiles, rows):
    """Batches of 3 whose bad ``rows`` are masked, black, and listed once; all others are there."""
    assert [b.rows.tolist() for b in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, NO_ROW]]
    assert [bad.row for b in found for bad in b.bad] == rows
    for batch in found:
        assert all(type(bad) is BadImage for bad in batch.bad)
        for image, row, is_there in zip(batch.images, batch.rows, batch.mask, strict=True):
            assert is_there == (row != NO_ROW and row not in rows)
            if is_there:
                expected = tile_batches.decode_tile(tiles.encoded(row, "JPEG"), "")
                np.testing.assert_array_equal(image, expected)
            else:
                assert not image.any()


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("truncated", marks=pytest.mark.campaign),
        "missing",
        pytest.param("other size", marks=pytest.mark.campaign),
    ],
)
def test_a_bad_tile_is_named_by_workers_too(tmp_path, tiles, kind):
    tileset, name, reason = with_bad_tile(tmp_path, tiles, kind, "parquet")
    with pytest.raises(InputError) as caught:
        read_all(tileset, batch_size=2, workers=1, threads=1)
    assert name in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.campaign
@pytest.mark.multiprocess
def test_a_bad_tile_is_skipped_by_workers_too(tmp_path, tiles):
    tileset, name, reason = with_bad_tile(tmp_path, tiles, "truncated", "parquet")
    found = read_all(tileset, batch_size=3, workers=2, threads=2, on_bad_image="skip")
    check_skipped(found, tiles, [BAD])
    assert found[1].bad[0].name == name
    assert found[1].bad[0].reason.startswith(reason)


def test_several_bad_tiles_of_a_step_are_listed_in_its_order(tmp_path, tiles):
    data = [tiles.encoded(i, "JPEG") for i in range(N)]
    data[0] = data[3] = data[5] = b"no image"
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles, data=data))
    found = read_all(tileset, batch_size=3, threads=8, on_bad_image="skip")
    check_skipped(found, tiles, [0, 3, 5])
    # A row that is asked for twice is bad twice.
    (again,) = read_batches(tileset, np.array([[5, 1, 5]]), on_bad_image="skip")
    assert [bad.row for bad in again.bad] == [5, 5]
    assert again.mask.tolist() == [False, True, False]


def test_a_tile_without_bytes_and_path_is_skipped(tmp_path, tiles):
    data = [tiles.encoded(i, "JPEG") for i in range(N)]
    data[BAD] = {"bytes": None, "path": None}
    tileset = images.open_tileset(write_parquet(tmp_path / "t", tiles, data=data, borders=(0, N)))
    found = read_all(tileset, batch_size=3, on_bad_image="skip")
    check_skipped(found, tiles, [BAD])
    name = f"{tileset.path}/part-0.parquet row {BAD}"
    assert found[1].bad == (BadImage(BAD, name, "the 'image' column is empty"),)


@pytest.mark.parametrize("kind", ["empty", "missing"])
def test_the_first_tile_that_can_be_decoded_gives_the_size(tmp_path, tiles, kind):
    tileset, name, reason = with_bad_tile(tmp_path, tiles, kind, "folder", bad=0)
    assert tile_shape(tileset, on_bad_image="skip") == (H, W, 3)
    check_skipped(read_all(tileset, batch_size=3, on_bad_image="skip"), tiles, [0])
    # Without it nothing is known, though the plan does not ask for it.
    for ask in (lambda: tile_shape(tileset), lambda: read_batches(tileset, np.array([[1]]))):
        with pytest.raises(InputError) as caught:
            ask()
        assert str(caught.value).startswith(f"{name}: {reason}")
    (batch,) = read_batches(tileset, np.array([[1]]), shape=(H, W, 3))
    assert batch.mask.tolist() == [True]


def test_a_tileset_without_any_image_is_refused(tmp_path, tiles):
    path = write_folder(tmp_path / "t", tiles, data=[b"", *[b"no image"] * (N - 1)])
    tileset = images.open_tileset(path)
    with pytest.raises(InputError) as caught:
        read_all(tileset, on_bad_image="skip")
    assert str(caught.value).startswith(
        f"{path}: expected images, found none that can be used among 11; the first: "
        f"{path}/s0/0.png: cannot be decoded as an image (no bytes)."
    )


def test_a_damaged_parquet_file_is_an_error_also_where_images_are_skipped(tmp_path, tiles):
    tileset = images.open_tileset(
        write_parquet(tmp_path / "t", tiles, borders=(0, 5, N), group_rows=100)
    )
    file = tmp_path / "t" / "part-1.parquet"
    whole = file.read_bytes()
    for damaged in (b"PAR1" + b"\xff" * 60 + whole[64:], whole[: len(whole) // 2], b"", None):
        if damaged is None:
            file.unlink()
        else:
            file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"part-1\.parquet row group 0: cannot be read as Par"):
            read_all(tileset, on_bad_image="skip")


def test_an_unknown_way_with_bad_images_is_refused(tmp_path, tiles):
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles))
    with pytest.raises(UsageError, match="on_bad_image: unknown name 'skp'. Did you mean 'skip'"):
        read_all(tileset, on_bad_image="skp")


def test_a_tile_of_another_size_is_named_where_a_resumed_plan_begins_with_it(tmp_path, tiles):
    tileset, name, reason = with_bad_tile(tmp_path, tiles, "other size", "folder")
    plan = tile_batches.plan_batches(N, batch_size=2)[BAD // 2 :]
    with pytest.raises(InputError) as caught:
        list(read_batches(tileset, plan))
    assert str(caught.value).startswith(f"{name}: {reason}")


@pytest.mark.campaign
@pytest.mark.slow
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


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_killed_worker_is_one_message_and_ctrl_c_is_left_to_the_parent(tmp_path, tiles):
    tileset = images.open_tileset(write_parquet(tmp_path / "t", tiles))
    plan = np.arange(3 * 400).reshape(400, 3) % N
    others = set(multiprocessing.active_children())
    found = read_batches(tileset, plan, workers=2, threads=1)
    next(found)
    workers = sorted(set(multiprocessing.active_children()) - others, key=lambda w: w.pid)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
    for _ in range(20):
        next(found)
    os.kill(workers[0].pid, signal.SIGKILL)
    with pytest.raises(InputError, match=r"workers: a process .* was killed .*lower --workers"):
        list(found)
    _wait_for(lambda: not any(_is_alive(w.pid) for w in workers), seconds=KILLED_WITHIN_S)


def test_tiles_of_other_sizes_are_set_apart_where_they_may_be(tmp_path, tiles):
    data = [tiles.encoded(i) for i in range(N)]
    other = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    data[4] = encode(Image.fromarray(other))
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles, data=data))
    found = read_all(tileset, batch_size=3, mixed=True)
    [odd] = [odd for batch in found for odd in batch.odd]
    assert found[1].odd == (odd,)
    assert odd.at == 1
    assert odd.name.endswith("/s2/4.png")
    np.testing.assert_array_equal(odd.image, other)
    assert found[1].mask.tolist() == [True, False, True]
    assert not found[1].images[1].any()
    assert [b.bad for b in found] == [()] * 4
    np.testing.assert_array_equal(pixels_of(found), np.delete(tiles.pixels, 4, axis=0))


@pytest.mark.campaign
@pytest.mark.multiprocess
def test_tiles_of_other_sizes_come_from_workers_too(tmp_path, tiles):
    data = [tiles.encoded(i) for i in range(N)]
    data[4] = encode(Image.new("RGB", (7, 9), (1, 2, 3)))
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles, data=data))
    found = read_all(tileset, batch_size=3, mixed=True, workers=2, threads=1)
    [odd] = found[1].odd
    np.testing.assert_array_equal(odd.image, np.full((9, 7, 3), [1, 2, 3]))


def test_digests_are_those_of_the_bytes(tmp_path, tiles):
    data = [tiles.encoded(i) for i in range(N)]
    data[2] = b"no image"
    tileset = images.open_tileset(write_folder(tmp_path / "t", tiles, data=data))
    found = read_all(tileset, batch_size=3, on_bad_image="skip")
    digests = np.concatenate([b.digests for b in found])
    expected = [hashlib.sha256(d).digest()[:8] for d in data]
    assert [int(d).to_bytes(8, "little") for d in digests] == [*expected, bytes(8)]


@pytest.mark.slow
def test_a_range_of_the_tileset_is_used(tmp_path, tiles):
    grey = np.linspace(0, 65535, H * W).reshape(H, W).astype(np.uint16)
    data = [encode(Image.fromarray(grey))] * N
    path = write_folder(tmp_path / "t", tiles, data=data)
    with pytest.raises(InputError, match=r"0\.png: its pixels are 16-bit grey values"):
        read_all(images.open_tileset(path))
    for image_range, white in (("full", 65535), ((0, 4095), 4095)):
        found = pixels_of(read_all(images.open_tileset(path, image_range=image_range)))
        expected = np.rint(255 * np.minimum(grey / white, 1))
        np.testing.assert_array_equal(found, np.broadcast_to(expected[..., None], (N, H, W, 3)))


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
