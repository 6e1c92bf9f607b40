"""Tiles of several sizes: a program for each, and bytes that depend on nothing else."""

import dataclasses
import io
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stores
from extraction import N, files_of, mesh_of, run, shard_bytes
from machine import DEVICES
from PIL import Image

from pathorob_jax.core.checks import InputError
from pathorob_jax.data.decode import TileError, decode_tile
from pathorob_jax.data.tile_batches import NO_ROW, Batch, OddTile
from pathorob_jax.data.tileset import BadImage
from pathorob_jax.embeddings.chunk_plan import BLOCKS_IF_MIXED, chunk_rows
from pathorob_jax.embeddings.size_sorting import SizeSorter
from pathorob_jax.models import registry
from pathorob_jax.models.registry import Encoder

SIZES = ((64, 64), (48, 80), (64, 32))


class _Resized:
    """A reader whose tiles have sizes by turns, or as given."""

    def __init__(self, reader, size_of):
        self._reader, self._size_of = reader, size_of

    def read(self, row):
        data, name = self._reader.read(row)
        hmany, width = self._size_of(row)
        if (hmany, width) == SIZES[0]:
            return data, name
        sink = io.BytesIO()
        Image.open(io.BytesIO(data)).resize((width, hmany)).save(sink, "PNG")
        return sink.getvalue(), name


def mix(tileset, size_of):
    reader = _Resized(tileset.reader, size_of)
    return dataclasses.replace(tileset, reader=reader, sample=tuple(range(0, N, 5)))


def by_turns(row):
    return SIZES[row * 7 // 2 % 3]


def any_size(traced=None):
    """An encoder of tiles of any size, which notes the shapes that it is compiled for."""
    wmanys = jnp.asarray(np.random.default_rng(1).standard_normal((6, 16)), jnp.float32)

    def apply(params, tiles):
        if traced is not None:
            traced.append(tiles.shape)
        x = tiles.astype(jnp.float32) / 255
        stats = jnp.concatenate([x.mean((1, 2)), (x * x).mean((1, 2))], axis=1)
        return jnp.matmul(stats, params, precision=jax.lax.Precision.HIGHEST)

    return Encoder("any_size", wmanys, apply, {"model": "any_size"})


def embed_one_by_one(tileset, encoder):
    rows = []
    for row in range(N):
        tile = decode_tile(*tileset.reader.read(row))
        rows.append(np.asarray(encoder.apply(encoder.params, jnp.asarray(tile)[None]))[0])
    return np.stack(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["any_size", pytest.param("vit_random", marks=pytest.mark.campaign)]
)
def test_rows_are_those_of_the_manifest(name, tileset, tmp_path):
    encoder = any_size() if name == "any_size" else registry.load_encoder(name)
    mixed = mix(tileset, by_turns)
    found = run(mixed, tmp_path, encoder, batch_size=4, mesh=mesh_of(2))
    np.testing.assert_allclose(
        found.read(), embed_one_by_one(mixed, encoder), rtol=0, atol=2e-5
    )  # batches of 4 and of 1 sum in different order
    assert found.manifest.keys.tolist() == tileset.manifest.keys.tolist()


def test_each_size_is_compiled_once(tileset, tmp_path):
    traced = []
    run(mix(tileset, by_turns), tmp_path, any_size(traced), batch_size=4)
    assert sorted({shape[1:3] for shape in traced}) == sorted(SIZES)
    compiled = [shape for shape in traced if shape[0] == 4]
    assert len(compiled) == len(SIZES)


# Sizes by turns; one odd tile; sorted by size; the sample sees one size, the rest has another.
ORDERS = {
    "by turns": by_turns,
    "one odd": lambda row: SIZES[row == 21],
    "sorted": lambda row: SIZES[row // 11],
    "unseen": lambda row: SIZES[row in (7, 8, 9, 26)],
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_devices_and_interruptions_change_no_bit(order, tileset, tmp_path):
    mixed, encoder = mix(tileset, ORDERS[order]), any_size()
    one = run(mixed, tmp_path / "1", encoder, batch_size=2)
    many = run(mixed, tmp_path / "8", encoder, batch_size=2, mesh=mesh_of(DEVICES))
    assert shard_bytes(one.path) == shard_bytes(many.path)
    chunks = sorted((tmp_path / "1/any_size/d/embeddings/c").iterdir())
    # Where the sample shows several sizes, a chunk holds 16 blocks.
    assert len(chunks) == (1 if order in ("by turns", "sorted") else N // 2)
    stores.unfinish(tmp_path / "8/any_size/d")
    for chunk in chunks[3:9] or chunks:
        shutil.rmtree(tmp_path / "8/any_size/d/embeddings/c" / chunk.name)
    again = run(mixed, tmp_path / "8", encoder, batch_size=7, mesh=mesh_of(2))
    assert files_of(again.path) == files_of(many.path) | {
        "store.json": (tmp_path / "8/any_size/d/store.json").read_bytes()
    }
    assert shard_bytes(again.path) == shard_bytes(one.path)


@pytest.mark.slow
def test_a_size_that_the_encoder_cannot_take_is_a_bad_image(tileset, tmp_path):
    # vit_random crops 224 pixels after resizing; this one does not resize.
    encoder = registry.load_encoder("vit_random")

    def no_smaller(params, tiles):
        if tiles.shape[2] < 64:
            raise InputError("tiles: expected at least 64 pixels.")
        return encoder.forward(params, tiles)

    strict = dataclasses.replace(encoder, forward=no_smaller)
    mixed = mix(tileset, by_turns)
    message = r"row \d+: expected 64 x 64 pixels.*found 32 x 64, .*vit_random: tiles: expected at"
    with pytest.raises(InputError, match=message) as caught:
        run(mixed, tmp_path, strict)
    assert "--on_bad_image=skip" in str(caught.value)
    found = run(mixed, tmp_path, strict, on_bad_image="skip")
    skipped = [row for row in range(N) if by_turns(row) == SIZES[2]]
    assert [bad["row"] for bad in found.info.get("bad_rows", [])] == skipped


def _batches(size_of, *, n_rows, rows_of_batch, bad=()):
    """Batches of consecutive rows as the reader gives them; a tile is filled with its row."""
    for start in range(0, n_rows, rows_of_batch):
        rows = np.full(rows_of_batch, NO_ROW)
        images = np.zeros((rows_of_batch, *size_of(None), 3), np.uint8)
        odd, wrong = [], []
        for at, row in enumerate(range(start, min(start + rows_of_batch, n_rows))):
            rows[at] = row
            if row in bad:
                wrong.append(BadImage(row, f"{row}.png", "blue"))
            elif size_of(row) == size_of(None):
                images[at] = row + 1
            else:
                tile = np.full((*size_of(row), 3), row + 1, np.uint8)
                odd.append(OddTile(at, f"{row}.png", tile))
        digests = np.where(rows == NO_ROW, 0, rows + 1).astype(np.uint64)
        yield Batch(images, rows, rows != NO_ROW, tuple(wrong), tuple(odd), digests, 0.0)


def _blocks_by_hand(size_of, *, n_rows, of_chunk, batch_size, bad):
    """The blocks of each chunk by plain lists: (size, rows)."""
    blocks = []
    for start in range(0, n_rows, of_chunk):
        waiting = {}
        for row in range(start, min(start + of_chunk, n_rows)):
            size = size_of(None) if row in bad else size_of(row)
            waiting.setdefault(size, []).append(row)
        blocks += [
            (size, rows[i : i + batch_size])
            for size, rows in waiting.items()
            for i in range(0, len(rows), batch_size)
        ]
    return sorted(blocks, key=lambda block: block[1])


@pytest.mark.parametrize("n_devices", [1, 2, 5])
@pytest.mark.parametrize(("batch_size", "of_chunk"), [(1, 1), (3, 3), (3, 12), (4, 8)])
@pytest.mark.parametrize("n_sizes", [1, 2, 7])
def test_blocks_are_those_of_each_chunk(n_devices, batch_size, of_chunk, n_sizes):
    draw, n_rows, bad = np.random.default_rng(7), 50, (4, 5, 33)
    kinds = draw.integers(0, n_sizes, n_rows)

    def size_of(row):
        return (2, 2) if row is None else (2, 2 + int(kinds[row]))

    sorter = SizeSorter(
        shape=(2, 2, 3),
        chunk_rows=of_chunk,
        batch_size=batch_size,
        n_devices=n_devices,
        on_bad_image="skip",
        refuse=lambda shape: "",
    )
    batches = _batches(size_of, n_rows=n_rows, rows_of_batch=n_devices * batch_size, bad=bad)
    found = []
    for step in sorter.sort(batches):
        assert len(step.rows) == n_devices * batch_size
        for row, image, digest in zip(step.rows, step.images, step.digests, strict=True):
            filled = row != NO_ROW and row not in bad
            assert (image == (row + 1 if filled else 0)).all()
            assert digest == (0 if row == NO_ROW else row + 1)
        assert sorted(b.row for b in step.bad) == sorted(set(bad) & set(step.rows.tolist()))
        for block in step.rows.reshape(n_devices, batch_size):
            if (block != NO_ROW).any():
                found.append((step.images.shape[1:3], block[block != NO_ROW].tolist()))
    expected = _blocks_by_hand(
        size_of, n_rows=n_rows, of_chunk=of_chunk, batch_size=batch_size, bad=bad
    )
    assert sorted(found, key=lambda block: block[1]) == expected


def test_a_refused_size_is_an_error_or_a_bad_image():
    def size_of(row):
        return (2, 2) if row != 1 else (2, 5)

    def sort(on_bad_image):
        sorter = SizeSorter(
            shape=(2, 2, 3),
            chunk_rows=2,
            batch_size=2,
            n_devices=1,
            on_bad_image=on_bad_image,
            refuse=lambda shape: "too wide",
        )
        return list(sorter.sort(_batches(size_of, n_rows=3, rows_of_batch=2)))

    with pytest.raises(TileError, match=r"1\.png: expected 2 x 2 .*found 5 x 2, .*\(too wide\)"):
        sort("error")
    steps = sort("skip")
    assert [step.rows.tolist() for step in steps] == [[0, 1], [2, NO_ROW]]
    [bad] = steps[0].bad
    assert bad.row == 1


@pytest.mark.slow
def test_chunks_hold_more_blocks_where_sizes_differ():
    assert chunk_rows(10_000, 32) == 32
    assert chunk_rows(10_000, 32, mixed=True) == 32 * BLOCKS_IF_MIXED
    assert chunk_rows(100, 32, mixed=True) == 128
    assert chunk_rows(10_000_000, 32, mixed=True) == chunk_rows(10_000_000, 32)
