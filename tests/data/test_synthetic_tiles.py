"""The synthetic tileset: frozen pixels, independent factors, readable files, refusals."""

import dataclasses
import hashlib
import inspect
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import synthetic_tiles, synthetic_tissue

SMALL = synthetic_tiles.SyntheticConfig(n_slides=2, n_tiles=3, tile_px=48)
# (class, centre, slide, tile, tile_px) of seed 7: first half of the pixels' sha256.
PINNED = {
    (0, 0, 0, 0, 256): "0b5c54a1e539922d",
    (1, 1, 3, 2, 96): "d23438c9f8065a43",
    (2, 2, 7, 23, 128): "8d668fab4c95b132",
    (3, 3, 1, 5, 64): "91314c4cda0a7550",
    (1, 3, 0, 1, 256): "05cd85cc23517b0d",
    (2, 1, 11, 0, 200): "c3b8dbc01d804456",
}


def _render(config, bio, center, slide=0, tile=0):
    return synthetic_tiles.render_tile(
        config, class_idx=bio, center_idx=center, slide_idx=slide, tile_idx=tile
    )


def _draw(config, *, class_idx, slide_idx, tile_idx):
    return synthetic_tissue.draw_tissue(
        config.classes[class_idx],
        px=config.tile_px,
        seed=config.seed,
        class_idx=class_idx,
        slide_idx=slide_idx,
        tile_idx=tile_idx,
        slide_strength=config.slide_strength,
    )


@pytest.mark.parametrize(("bio", "center", "slide", "tile", "px"), PINNED)
def test_pixels_are_frozen(bio, center, slide, tile, px):
    # No update without a line in the changelog: demo numbers and other tests rest on these pixels.
    config = synthetic_tiles.SyntheticConfig(tile_px=px, seed=7)
    pixels = _render(config, bio, center, slide, tile)
    assert pixels.shape == (px, px, 3)
    assert pixels.dtype == np.uint8
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == PINNED[bio, center, slide, tile, px]
    np.testing.assert_array_equal(pixels, _render(config, bio, center, slide, tile))


def test_everything_that_should_change_a_tile_does():
    base = _render(SMALL, 0, 0)
    others = [
        _render(SMALL, 1, 0),
        _render(SMALL, 0, 1),
        _render(SMALL, 0, 0, slide=1),
        _render(SMALL, 0, 0, tile=1),
        _render(dataclasses.replace(SMALL, seed=1), 0, 0),
        _render(dataclasses.replace(SMALL, slide_strength=0.0), 0, 0),
    ]
    assert all((base != other).any() for other in others)


def test_biology_takes_no_center():
    assert not [
        p for p in inspect.signature(synthetic_tissue.draw_tissue).parameters if "center" in p
    ]
    # Centres that stain alike give the same pixels: nothing else of a centre reaches a tile.
    same = tuple(dataclasses.replace(synthetic_tiles.CENTERS[2], name=f"c{i}") for i in range(3))
    config = dataclasses.replace(SMALL, centers=same, slide_strength=0.0)
    for bio in range(4):
        np.testing.assert_array_equal(_render(config, bio, 0), _render(config, bio, 2))


@pytest.mark.parametrize("bio", range(4))
def test_geometry_is_the_same_at_every_center(bio):
    config = dataclasses.replace(SMALL, tile_px=128)
    inside = _draw(config, class_idx=bio, slide_idx=0, tile_idx=0).nucleus_mask
    assert inside.any()
    red = [_render(config, bio, center)[:, :, 0].astype(float) for center in range(4)]
    other = _render(config, bio, 0, tile=1)[:, :, 0].astype(float)
    for seen in red:
        assert seen[inside].mean() < 0.85 * seen[~inside].mean()  # haematoxylin takes red light
        assert np.corrcoef(seen.ravel(), red[0].ravel())[0, 1] > 0.75
        assert abs(np.corrcoef(seen.ravel(), other.ravel())[0, 1]) < 0.4


def test_classes_differ_in_nuclei():
    config = dataclasses.replace(SMALL, tile_px=256)
    share = [
        np.mean(
            [_draw(config, class_idx=bio, slide_idx=s, tile_idx=0).nucleus_mask for s in range(4)]
        )
        for bio in range(4)
    ]
    assert 0.02 < share[0] < 0.15 < share[1] < 0.4 < share[2] < share[3] < 0.85


def test_centers_differ_in_colour_on_the_same_tissue():
    means = np.stack([_render(SMALL, 1, center).mean((0, 1)) for center in range(4)])
    distance = np.abs(means[:, None] - means[None, :]).max(-1)
    assert distance[~np.eye(4, dtype=bool)].min() > 10


def test_slides_have_shifts_of_their_own():
    one = [
        np.mean([_render(SMALL, 2, 0, slide, tile).mean() for tile in range(6)])
        for slide in range(4)
    ]
    assert np.ptp(one) > 3
    stains = {
        json.dumps(synthetic_tiles._stain(SMALL, class_idx=0, center_idx=0, slide_idx=slide))
        for slide in range(5)
    }
    assert len(stains) == 5


def test_blur_is_integer_and_keeps_flat_areas():
    flat = np.full((9, 9, 3), 201, np.uint8)
    np.testing.assert_array_equal(synthetic_tiles._blur(flat), flat)
    point = np.zeros((5, 5, 3), np.uint8)
    point[2, 2] = 160
    want = np.array([[10, 20, 10], [20, 40, 20], [10, 20, 10]])
    np.testing.assert_array_equal(synthetic_tiles._blur(point)[1:4, 1:4, 0], want)


@pytest.fixture(scope="module")
def tileset(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "deep" / "tiles"
    config = dataclasses.replace(SMALL, tile_px=32)
    with pytest.MonkeyPatch.context() as patch:  # so that few tiles make two files
        patch.setattr(synthetic_tiles, "_ROWS_PER_FILE", 64)
        patch.setattr(synthetic_tiles, "_ROWS_PER_GROUP", 40)
        assert synthetic_tiles.write_tileset(str(path), config) == 96
    return path, config


def test_files_and_schema(tileset):
    path, config = tileset
    names = sorted(p.name for p in path.iterdir())
    assert names == [
        "_synthetic.json", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet",
    ]  # fmt: skip
    assert sorted(p.name for p in path.parent.iterdir()) == ["tiles"]  # no temporary is left
    file = pq.ParquetFile(path / names[1])
    assert [file.metadata.row_group(i).num_rows for i in range(2)] == [40, 24]
    schema = file.schema_arrow
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.names[1:] == ["slide_id", "patch_id", "biological_class", "medical_center"]
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["slide_id"] == {"dtype": "string", "_type": "Value"}
    about = json.loads((path / "_synthetic.json").read_text())
    assert about["n_tiles"] == 96
    assert about["config"]["centers"][0]["name"] == config.centers[0].name


def test_rows(tileset):
    path, config = tileset
    rows = pq.read_table(str(path)).to_pylist()  # readers of a folder skip the sidecar
    assert len({(row["slide_id"], row["patch_id"]) for row in rows}) == len(rows) == 96
    cells = {}
    for row in rows:
        cell = (row["biological_class"], row["medical_center"])
        assert cells.setdefault(row["slide_id"], cell) == cell
        assert " " not in row["slide_id"] + row["patch_id"]
    assert len(cells) == 4 * 4 * 2
    centers = [row["medical_center"] for row in rows]
    assert centers == [c.name for c in config.centers for _ in range(24)]
    assert rows[0]["slide_id"] == "north_hospital-stroma-01"
    assert rows[0]["image"]["path"] == "north_hospital-stroma-01-0000.jpg"


def test_image_bytes_are_the_rendered_tile(tileset):
    path, config = tileset
    table = pq.read_table(str(path))
    for i, (bio, center, slide, tile) in ((0, (0, 0, 0, 0)), (95, (3, 3, 7, 2))):
        with Image.open(io.BytesIO(table["image"][i]["bytes"].as_py())) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (32, 32), "RGB")
            decoded = np.asarray(image).astype(int)
        assert np.abs(decoded - _render(config, bio, center, slide, tile)).mean() < 8


def test_existing_content_is_refused_and_kept(tmp_path):
    config = synthetic_tiles.SyntheticConfig(
        classes=synthetic_tiles.CLASSES[:1],
        centers=synthetic_tiles.CENTERS[:1],
        n_slides=1,
        n_tiles=2,
        tile_px=16,
    )
    path = tmp_path / "tiles"
    path.mkdir()
    assert synthetic_tiles.write_tileset(str(path), config) == 2  # empty so far
    with pytest.raises(InputError, match="expected no folder or an empty one, found 2 entries"):
        synthetic_tiles.write_tileset(str(path), config)
    more = dataclasses.replace(config, n_tiles=3)
    assert synthetic_tiles.write_tileset(str(path), more, overwrite=True) == 3
    assert pq.read_table(str(path)).num_rows == 3

    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("years of work")
    with pytest.raises(InputError, match="nothing was removed"):
        synthetic_tiles.write_tileset(str(foreign), config, overwrite=True)
    assert (foreign / "chapter1.tex").exists()
    with pytest.raises(InputError, match="found a file"):
        synthetic_tiles.write_tileset(str(foreign / "chapter1.tex"), config, overwrite=True)
    with pytest.raises(InputError, match="local folder"):
        synthetic_tiles.write_tileset("gs://bucket/tiles", config)


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(synthetic_tiles, "_row", fail)
    with pytest.raises(OSError, match="disk full"):
        synthetic_tiles.write_tileset(str(tmp_path / "tiles"), SMALL)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed(tmp_path):
    left = tmp_path / ".tiles.partial" / "new"
    left.mkdir(parents=True)
    (left / "train-00099-of-00100.parquet").write_bytes(b"half")
    config = dataclasses.replace(SMALL, n_slides=1, n_tiles=1)
    for name in ("tiles", "other"):
        synthetic_tiles.write_tileset(str(tmp_path / name), config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "tiles"]
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("tiles", "other")
    )
    assert one == two


def test_same_config_same_pixels_twice(tmp_path):
    config = dataclasses.replace(SMALL, n_slides=1, n_tiles=1)
    tables = []
    for name in ("a", "b"):
        synthetic_tiles.write_tileset(str(tmp_path / name), config)
        tables.append(pq.read_table(str(tmp_path / name)))
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ()}, "at least one of each"),
        ({"classes": synthetic_tiles.CLASSES[:1] * 2}, "more than once or empty: stroma"),
        (
            {"centers": (dataclasses.replace(synthetic_tiles.CENTERS[0], name="Tumor"),)},
            "more than once or empty: tumor",
        ),
        (
            {"centers": (dataclasses.replace(synthetic_tiles.CENTERS[0], name="-"),)},
            "more than once or empty",
        ),
        ({"n_slides": 0}, r"n_slides: expected >= 1, found 0"),
        ({"n_tiles": 0}, r"n_tiles: expected >= 1, found 0"),
        ({"tile_px": 8}, r"tile_px: expected >= 16, found 8"),
        ({"seed": -1}, r"seed: expected >= 0, found -1"),
        ({"slide_strength": -1.0}, r"slide_strength: expected 0..5, found -1.0"),
    ],
)
def test_config_is_checked(change, message):
    with pytest.raises(InputError, match=message):
        synthetic_tiles.SyntheticConfig(**change)


@pytest.mark.slow
def test_parts_are_checked():
    with pytest.raises(InputError, match=r"unknown name 'gland'. Did you mean 'glands'"):
        synthetic_tiles.Morphology("x", "gland", spacing_px=20, radius_px=5)
    with pytest.raises(InputError, match="class 'x': expected radius_px >= 1"):
        synthetic_tiles.Morphology("x", "sheet", spacing_px=20, radius_px=0)
    with pytest.raises(InputError, match="centre 'y': expected blur_passes >= 0"):
        dataclasses.replace(synthetic_tiles.CENTERS[0], name="y", jpeg_quality=0)
