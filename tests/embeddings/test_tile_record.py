"""A store notices that tiles have changed since they were embedded; a copy has not."""

import json
import os
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stores
from extraction import files_of, mesh_of, projection
from PIL import Image
from tilesets import IMAGE_TYPE

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import tile_batches
from pathorob_jax.data.tileset import open_tileset
from pathorob_jax.embeddings import store_writer, tile_record
from pathorob_jax.embeddings.extraction import extract

N = 8
COLUMNS = {
    "slide_id": [f"s{i // 2}" for i in range(N)],
    "patch_id": [str(i) for i in range(N)],
    "biological_class": ["a", "b"] * (N // 2),
    "medical_center": ["A", "A", "B", "B"] * (N // 4),
}


def picture(root, row, seed=0, size=(64, 64)):
    """A bitmap: all of a size have as many bytes."""
    rng = np.random.default_rng([seed, row])
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(root / f"{row}.bmp")


@pytest.fixture(params=["folder", "links"])
def root(request, tmp_path):
    """A tileset of N image files, listed by a manifest.csv or linked by a Parquet file."""
    root = tmp_path / "tiles"
    root.mkdir()
    for row in range(N):
        picture(root, row)
    names = [f"{row}.bmp" for row in range(N)]
    if request.param == "folder":
        table = COLUMNS | {"path": names}
        lines = [",".join(table), *(",".join(row) for row in zip(*table.values(), strict=True))]
        (root / "manifest.csv").write_text("\n".join(lines))
    else:
        cells = pa.array([{"bytes": None, "path": name} for name in names], IMAGE_TYPE)
        pq.write_table(pa.table({"image": cells} | COLUMNS), root / "a.parquet")
    return root


def embed(root, output, **options):
    encoder = options.pop("encoder", projection())
    made = extract(
        open_tileset(str(root)),
        [encoder],
        root=str(output),
        dataset="d",
        batch_size=2,
        mesh=mesh_of(),
        **options,
    )
    return made.stores[0]


def cut(store, chunk):
    """Make a store unfinished: without a chunk."""
    path = pathlib.Path(store.path)
    stores.unfinish(path)
    shutil.rmtree(path / "embeddings" / "c" / str(chunk))


def test_a_changed_tile_of_a_complete_store_is_named(root, tmp_path):
    store = embed(root, tmp_path)
    before = files_of(store.path)
    assert files_of(embed(root, tmp_path).path) == before
    picture(root, 5, seed=1)
    message = rf"{store.path}: 1 or more tiles have changed.* {root}/5\.bmp \(row 5\).*--overwrite"
    with pytest.raises(InputError, match=message):
        embed(root, tmp_path)
    assert files_of(store.path) == before, "nothing is destroyed"
    renewed = embed(root, tmp_path, overwrite=True)
    fresh = embed(root, tmp_path / "fresh")
    np.testing.assert_array_equal(renewed.read(), fresh.read())
    assert embed(root, tmp_path).info["complete"] is True
    # The record is of the new store, not of the one that it replaced.
    assert {name for name in files_of(renewed.path) if name.startswith("tiles/")} == {
        name for name in files_of(fresh.path) if name.startswith("tiles/")
    }
    picture(root, 5, seed=2)
    with pytest.raises(InputError, match=message):
        embed(root, tmp_path)


def test_a_resumed_store_does_not_mix_old_and_new_tiles(root, tmp_path):
    store = embed(root, tmp_path)
    cut(store, 1)
    picture(root, 3, seed=1)  # not embedded yet
    resumed = embed(root, tmp_path)
    np.testing.assert_array_equal(resumed.read(), embed(root, tmp_path / "fresh").read())
    cut(resumed, 1)
    picture(root, 6, seed=1)
    with pytest.raises(InputError, match=r"6\.bmp \(row 6\)"):
        embed(root, tmp_path)
    renewed = embed(root, tmp_path, overwrite=True)
    np.testing.assert_array_equal(renewed.read(), embed(root, tmp_path / "anew").read())


def test_a_tile_that_is_gone_has_changed(root, tmp_path):
    store = embed(root, tmp_path)
    # An empty file has another size: folders notice by their fingerprint, links by the record.
    (root / "2.bmp").write_bytes(b"")
    with pytest.raises(InputError, match=r"another configuration|2\.bmp \(row 2\)"):
        embed(root, tmp_path)
    assert len(store) == N


def write_records(tileset, path, *, n_digests=4):
    """A store of chunks of four rows, with a record of each, and its writer."""
    options = {"manifest": tileset.manifest, "dim": 1, "chunk_rows": 4, "identity": {}}
    with store_writer.create_store(str(path), **options) as writer:
        for chunk in writer.missing_chunks:
            rows = range(N)[writer.chunk_slice(chunk)]
            found = [tile_batches.digest_tile(tileset.reader.read(row)[0]) for row in rows]
            tile_record.write_record(writer, chunk, np.array(found)[:n_digests])
            writer.write(chunk, np.ones((4, 1), np.float32)).result()
    return store_writer.create_store(str(path), **options)


def test_a_tile_that_can_no_longer_be_read_is_named(root, tmp_path):
    tileset = open_tileset(str(root))
    with write_records(tileset, tmp_path / "d") as writer:
        (root / "5.bmp").unlink()
        check = tile_record.TileCheck(tileset)
        assert check.find_changed(writer) == [5]
        said = check.describe(writer, [5])
        assert f"1 or more tiles have changed since they were embedded, the first is {root}" in said
        assert "5.bmp (row 5). Give --overwrite" in said


def test_a_record_of_another_chunk_is_refused(root, tmp_path):
    tileset = open_tileset(str(root))
    with write_records(tileset, tmp_path / "d", n_digests=3) as writer:
        message = (
            r"tiles/0\.json: expected 4 digests, found 3: the record of another chunk\. Remove"
        )
        with pytest.raises(InputError, match=message):
            tile_record.TileCheck(tileset).find_changed(writer)


def test_a_copy_of_the_tileset_is_the_same(root, tmp_path, monkeypatch):
    store = embed(root, tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, copy_function=shutil.copyfile)
    for file in copy.iterdir():
        os.utime(file, (1, 1))
    read = []
    digest = tile_batches.digest_tile
    monkeypatch.setattr(
        "pathorob_jax.embeddings.tile_record.digest_tile", lambda d: read.append(1) or digest(d)
    )
    embed(copy, tmp_path)
    assert len(read) == N, "read once and compared"
    embed(copy, tmp_path)
    assert len(read) == N, "the stamp is known now"
    kept = files_of(store.path)
    two = embed(root, tmp_path, encoder=projection(scale=2.0, name="other"))
    assert len(read) == N, "a new store has nothing to compare"
    assert len(files_of(two.path)) == len(kept)


def test_several_stores_share_the_reading(root, tmp_path, monkeypatch):
    encoders = [projection(), projection(scale=2.0, name="other")]
    options = {"root": str(tmp_path), "dataset": "d", "batch_size": 2, "mesh": mesh_of()}
    extract(open_tileset(str(root)), encoders, **options)
    for file in root.iterdir():
        os.utime(file, (1, 1))
    tileset = open_tileset(str(root))
    read, reader = [], tileset.reader

    class Counted:
        def read(self, row):
            read.append(row)
            return reader.read(row)

    object.__setattr__(tileset, "reader", Counted())
    extract(tileset, encoders, **options)
    assert sorted(read) == [0, *range(N)], "the first tile for its size, then each once"


def test_a_store_of_an_earlier_version_counts_as_unchanged(root, tmp_path):
    store = embed(root, tmp_path)
    rows = store.read()
    shutil.rmtree(pathlib.Path(store.path) / "tiles")
    before = files_of(store.path)
    again = embed(root, tmp_path)
    assert files_of(again.path) == before
    cut(again, 2)
    resumed = embed(root, tmp_path)
    np.testing.assert_array_equal(resumed.read(), rows)


def test_what_a_killed_run_was_about_to_rename_is_removed(root, tmp_path):
    store = embed(root, tmp_path)
    cut(store, 1)
    left = pathlib.Path(store.path) / "tiles" / ".1.json.x8z.partial"
    left.write_text("{")
    embed(root, tmp_path)
    assert not left.exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["[]", "{", "null", '{"schema_version": 1, "digests": ["0"]}'])
def test_a_damaged_record_is_named(root, tmp_path, damage):
    store = embed(root, tmp_path)
    record = pathlib.Path(store.path) / "tiles" / "1.json"
    whole = record.read_text()
    for file in root.iterdir():
        os.utime(file, (1, 1))
    record.write_text(damage)
    with pytest.raises(InputError, match=r"tiles/1\.json: .*[Rr]emove it, and"):
        embed(root, tmp_path)
    # One digit of one digest: neither silent nor taken for a tile that has changed.
    digest = json.loads(whole)["digests"][0]
    record.write_text(whole.replace(digest, ("1" if digest[0] == "0" else "0") + digest[1:]))
    with pytest.raises(InputError, match=r"tiles/1\.json: not as it was written"):
        embed(root, tmp_path)
    record.write_text(whole)
    assert embed(root, tmp_path).info["complete"]


@pytest.mark.slow
def test_the_range_of_images_is_part_of_the_identity(tmp_path):
    root = tmp_path / "tiles"
    root.mkdir()
    for row in range(N):
        grey = np.random.default_rng(row).integers(0, 4096, (64, 64)).astype(np.uint16)
        Image.fromarray(grey).save(root / f"{row}.png")
    table = COLUMNS | {"path": [f"{row}.png" for row in range(N)]}
    lines = [",".join(table), *(",".join(row) for row in zip(*table.values(), strict=True))]
    (root / "manifest.csv").write_text("\n".join(lines))

    def embed_with(image_range, **options):
        tileset = open_tileset(str(root), image_range=image_range)
        return extract(
            tileset, [projection()], root=str(tmp_path), dataset="d", mesh=mesh_of(), **options
        ).stores[0]

    with pytest.raises(InputError, match=r"--image_range=full or .*--on_bad_image=skip"):
        embed_with(None)
    store = embed_with((0, 4095))
    assert store.info["identity"]["source"]["image_range"] == [0.0, 4095.0]
    assert embed_with((0, 4095)).info["complete"] is True
    with pytest.raises(InputError, match="another configuration"):
        embed_with("full")
