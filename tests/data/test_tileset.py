"""A tileset's rows and bytes, whatever its form; what is no tileset is refused."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tilesets import IMAGE_TYPE, H, N, W, encode, make_tiles, write_folder, write_parquet

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import tileset as images
from pathorob_jax.data.decode import TileError, decode_tile
from pathorob_jax.data.manifest import REQUIRED


@pytest.fixture
def tiles(rng):
    return make_tiles(rng)


def pixels_of(tileset):
    return np.stack([decode_tile(*tileset.reader.read(row)) for row in range(len(tileset))])


def test_both_forms_give_the_same_rows_and_tiles(tmp_path, tiles):
    folder = images.open_tileset(write_folder(tmp_path / "folder", tiles))
    parquet = images.open_tileset(write_parquet(tmp_path / "parquet", tiles))
    encoded = images.open_tileset(write_parquet(tmp_path / "ids", tiles, encode_ids=True))
    for tileset in (folder, parquet, encoded):
        assert len(tileset) == N
        for name in REQUIRED:
            expected = folder.manifest.column(name).tolist()
            assert tileset.manifest.column(name).tolist() == expected
        np.testing.assert_array_equal(pixels_of(tileset), tiles.pixels)
    assert folder.manifest.column("patch_id").tolist() == tiles.columns["patch_id"]
    assert "image" not in parquet.manifest


def test_a_tileset_is_shown_by_its_folder_and_size(tmp_path, tiles):
    path = write_folder(tmp_path / "t", tiles)
    assert repr(images.open_tileset(path)) == f"Tileset({path}/manifest.csv: {N} tiles)"


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
    np.testing.assert_array_equal(pixels_of(tileset), tiles.pixels[: N - 2])


@pytest.mark.parametrize("borders", [(0, 0, N), (0, N, N), (0, 1, 1, 1, N)])
@pytest.mark.parametrize("group_rows", [1, 3, 100])
def test_files_and_row_groups_do_not_matter(tmp_path, tiles, borders, group_rows):
    path = write_parquet(tmp_path / "t", tiles, borders=borders, group_rows=group_rows)
    np.testing.assert_array_equal(pixels_of(images.open_tileset(path)), tiles.pixels)


def test_a_file_without_rows_may_have_untyped_columns(tmp_path, tiles):
    path = write_parquet(tmp_path / "t", tiles, borders=(0, N))
    empty = {k: pa.array([], pa.null()) for k in tiles.columns}
    table = pa.table({"image": pa.array([], IMAGE_TYPE)} | empty)
    pq.write_table(table, tmp_path / "t" / "a-empty.parquet")
    np.testing.assert_array_equal(pixels_of(images.open_tileset(path)), tiles.pixels)


@pytest.mark.parametrize(
    ("of_bytes", "of_path"),
    [(pa.large_binary(), pa.large_string()), (pa.binary_view(), None), (pa.binary(), pa.null())],
)
def test_other_types_of_bytes_and_paths_are_read(tmp_path, tiles, of_bytes, of_path):
    fields = [("bytes", of_bytes)] + ([("path", of_path)] if of_path else [])
    cells = [{"bytes": tiles.encoded(i)} for i in range(N)]
    table = pa.table({"image": pa.array(cells, pa.struct(fields))} | tiles.columns)
    pq.write_table(table, tmp_path / "x.parquet")
    np.testing.assert_array_equal(pixels_of(images.open_tileset(str(tmp_path))), tiles.pixels)


@pytest.mark.parametrize("absolute", [False, True])
def test_bytes_may_be_null_where_a_path_is_given(tmp_path, tiles, absolute):
    (tmp_path / "t" / "files").mkdir(parents=True)
    data = [tiles.encoded(i) for i in range(N)]
    for i in (2, 7):
        (tmp_path / "t" / "files" / f"{i}.png").write_bytes(data[i])
        prefix = f"{tmp_path}/t/" if absolute else ""
        data[i] = {"bytes": None, "path": f"{prefix}files/{i}.png"}
    allow = "local" if absolute else "inside"
    path = write_parquet(tmp_path / "t", tiles, data=data)
    tileset = images.open_tileset(path, allow_paths=allow)
    np.testing.assert_array_equal(pixels_of(tileset), tiles.pixels)


def test_a_tile_without_bytes_and_path_is_named(tmp_path, tiles):
    for missing in (None, {"bytes": None, "path": ""}):
        data = [tiles.encoded(i) for i in range(N)]
        cells = [{"bytes": d, "path": None} for d in data]
        cells[4] = missing
        table = pa.table({"image": pa.array(cells, IMAGE_TYPE)} | tiles.columns)
        (tmp_path / "t").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "t" / "x.parquet")
        tileset = images.open_tileset(str(tmp_path / "t"))
        with pytest.raises(TileError, match=r"x\.parquet row 4: the 'image' column is empty"):
            tileset.reader.read(4)
        assert tileset.reader.read(5)[0] == data[5]


def test_a_missing_file_is_a_bad_tile_and_a_failing_network_is_not(tmp_path, tiles, monkeypatch):
    path = write_folder(tmp_path / "t", tiles)
    tileset = images.open_tileset(path)
    os.unlink(f"{path}/s1/3.png")
    with pytest.raises(TileError, match=r"s1/3\.png: no such file, though the tileset lists it"):
        tileset.reader.read(3)

    def fail(name):
        raise TimeoutError("no answer")

    monkeypatch.setattr(files, "read_bytes", fail)
    with pytest.raises(InputError, match=r"s2/4\.png: cannot be read \(no answer\)") as caught:
        tileset.reader.read(4)
    assert not isinstance(caught.value, TileError)


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
        (pa.array([{"bytes": "x", "path": "y"}] * N), "found struct<bytes: string"),
        (pa.array([{"bytes": b"x", "path": b"y"}] * N), "found struct<bytes: binary, path: bin"),
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
            pixels_of(images.open_tileset(path))
    # The footer is whole, the pages of the images are not.
    file.write_bytes(whole)
    tileset = images.open_tileset(path)
    file.write_bytes(b"PAR1" + b"\xff" * 60 + whole[64:])
    with pytest.raises(InputError, match=r"part-1\.parquet row group 0: cannot be read as Parquet"):
        pixels_of(tileset)
    # Another file in its place, with fewer rows; labels and paths that are no text.
    write_parquet(tmp_path / "fewer", tiles, borders=(0, 2), group_rows=100)
    file.write_bytes((tmp_path / "fewer" / "part-0.parquet").read_bytes())
    with pytest.raises(InputError, match=r"part-1\.parquet row group 0: cannot be read as Parquet"):
        pixels_of(tileset)
    file.write_bytes(whole.replace(b"tumor", b"tum\xffr"))
    with pytest.raises(InputError, match=r"part-1\.parquet: cannot be read as Parquet"):
        images.open_tileset(path)


def test_a_path_that_is_no_text_is_named(tmp_path, tiles):
    data = [tiles.encoded(i) for i in range(N)]
    data[4] = {"bytes": None, "path": "image.png"}
    path = write_parquet(tmp_path / "t", tiles, data=data, borders=(0, N), group_rows=100)
    file = tmp_path / "t" / "part-0.parquet"
    file.write_bytes(file.read_bytes().replace(b"image.png", b"imag\xff.png"))
    with pytest.raises(InputError, match=r"part-0\.parquet: cannot be read as Parquet"):
        images.open_tileset(path)


@pytest.mark.slow
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
