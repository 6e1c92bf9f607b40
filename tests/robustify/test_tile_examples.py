"""Tiles before and after: which centres have a picture, and what is copied."""

import numpy as np
import pytest
from PIL import Image

import pathorob_jax as pr
from pathorob_jax.core.checks import InputError
from pathorob_jax.robustify import tile_examples


def write_tiles(folder, bad):
    """Two tiles of each of two centres; those of the centres ``bad`` are no images."""
    folder.mkdir()
    lines = ["slide_id,patch_id,biological_class,medical_center,path"]
    for i, center in enumerate("AABB"):
        if center in bad:
            (folder / f"{i}.png").write_bytes(b"no image")
        else:
            Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
        lines.append(f"s{i},{i},{'ab'[i % 2]},{center},{i}.png")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return pr.open_tileset(str(folder))


@pytest.mark.parametrize(("bad", "shown"), [("", ["A", "B"]), ("B", ["A"]), ("AB", [])])
def test_a_centre_whose_tiles_cannot_be_decoded_has_no_picture(tmp_path, monkeypatch, bad, shown):
    monkeypatch.setattr(tile_examples, "_tissue_share", lambda tile: tile.mean() / 255)
    counts = {center: {"normalized": 2} for center in "AB"}
    tileset, store = write_tiles(tmp_path / "tiles", bad), str(tmp_path / "store")
    tile_examples.write_examples(store, tileset, lambda tiles, rows: (255 - tiles, None), counts)
    found = tile_examples.read_examples(store)
    assert [one.center for one in found] == shown
    for one in found:
        assert one.image.shape == (2 * 96, 2 * 96, 3)
        np.testing.assert_array_equal(one.image[96:], 255 - one.image[:96])
        np.testing.assert_allclose(np.add(one.tissue_before, one.tissue_after), 1)
        assert one.counts == {"normalized": 2}
    assert tile_examples.copy_examples(store, str(tmp_path / "result")) == bool(shown)
    copied = tile_examples.read_examples(str(tmp_path / "result"))
    assert [one.center for one in copied] == shown


def test_a_picture_that_is_gone_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tile_examples, "_tissue_share", lambda tile: 0.5)
    tileset, store = write_tiles(tmp_path / "tiles", ""), str(tmp_path / "store")
    counts = {center: {"normalized": 2} for center in "AB"}
    tile_examples.write_examples(store, tileset, lambda tiles, rows: (tiles, None), counts)
    (tmp_path / "store" / "examples" / "1.png").unlink()
    with pytest.raises(InputError, match=r"examples/1\.png: not as it was written"):
        tile_examples.copy_examples(store, str(tmp_path / "result"))
    assert not (tmp_path / "result").exists()
