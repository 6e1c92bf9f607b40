"""Pictures of tiles in the report: of a map with their nearest, of stains before and after."""

import base64
import io
import re

import numpy as np
import pyarrow as pa
import pytest
import tilesets
from PIL import Image

from pathorob_jax.data import tileset
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE
from pathorob_jax.report import map_figures, map_tiles, tile_figures
from pathorob_jax.results.map_files import COORDINATES, NEAREST
from pathorob_jax.robustify.tile_examples import Example


@pytest.fixture
def tiles(rng):
    return tilesets.make_tiles(rng)


def make_map(tiles, **changes):
    """A map of all tiles: the nearest two of each are the next two; row 3 has none of SO."""
    n = tilesets.N
    nearest = np.full((n, len(NEAREST)), -1, np.int32)
    nearest[:, 0], nearest[:, 3] = (np.arange(n) + 1) % n, (np.arange(n) + 2) % n
    nearest[3, 0] = -1
    columns = {name: tiles.columns[name] for name in (SLIDE, PATCH, CLASS, CENTER)}
    columns |= dict(zip(NEAREST, map(pa.array, nearest.T), strict=True))
    return pa.table(columns | changes)


def test_patches_stand_beside_their_nearest_of_both_kinds(tiles, tmp_path):
    opened = tileset.open_tileset(tilesets.write_folder(tmp_path / "tiles", tiles))
    page = str(map_tiles.draw_tiles(make_map(tiles), opened, np.arange(tilesets.N)))
    # The middles of four equal parts of eleven patches.
    assert re.findall('data-point="([0-9]+)"', page) == ["1", "4", "6", "9"]
    first = page.split('data-point="1"')[1].split('data-point="4"')[0]
    labels = re.findall('alt="Patch of slide ([^"]*)"', first)
    expected = [f"{s}: {c}, {m}" for s, c, m in zip(*(
        [tiles.columns[name][i] for i in (1, 2, 3)] for name in (SLIDE, CLASS, CENTER)
    ), strict=True)]  # fmt: skip
    assert labels == expected
    so, os_ = first.split('class="so-tile"')[1].split('class="os-tile"')
    assert so.count("<img") == os_.count("<img") == 1
    picture = re.search('base64,([^"]*)"', so).group(1)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))), float)
    wanted = Image.fromarray(tiles.pixels[2]).resize((map_tiles.SIDE, map_tiles.SIDE))
    # Noise is the hardest to keep in a JPEG of quality 70.
    assert np.abs(shown - np.asarray(wanted, float)).mean() < 20


def test_a_map_has_its_patches_below_its_points(tiles, tmp_path):
    opened = tileset.open_tileset(tilesets.write_folder(tmp_path / "tiles", tiles))
    table = make_map(tiles, **{name: np.arange(float(tilesets.N)) for name in COORDINATES})
    page = str(map_figures.draw_map("m: ours", table, opened))
    points, patches = page.split('<p class="said"')
    assert "data:image" not in points
    assert patches.count('<div class="patches">') == 1
    assert len(re.findall('data-point="[0-9]+"', patches)) == map_tiles.N_SHOWN
    assert "patches" not in str(map_figures.draw_map("m: ours", table))


def test_names_are_text_and_patches_that_are_missing_are_left_out(tiles, tmp_path, caplog):
    opened = tileset.open_tileset(tilesets.write_folder(tmp_path / "tiles", tiles))
    order = np.arange(tilesets.N)
    tagged = [f"<b>{name}" for name in tiles.columns[CLASS]]
    page = map_tiles.draw_tiles(make_map(tiles, **{CLASS: tagged}), opened, order)
    assert "<b>" not in page
    assert "&lt;b&gt;tumor" in page
    others = make_map(tiles, **{SLIDE: ["elsewhere"] * tilesets.N})
    assert "the tileset has not the patches" in map_tiles.draw_tiles(others, opened, order)
    older = make_map(tiles).drop_columns(list(NEAREST))
    assert "older version" in map_tiles.draw_tiles(older, opened, order)


def make_example(center="A", n=2):
    counts = {"normalized": 6, "by_slide": 2, "blank": 0, "plain": 2}
    before, after = [0.25, 0.75][:n], [0.5, 1.0][:n]
    return Example(center, counts, before, after, np.full((20, 10 * n, 3), 200, np.uint8))


def test_the_figure_says_the_tissue_of_every_tile():
    figure = tile_figures.draw_examples("mean colours", [make_example(), make_example("B", 1)])
    words = [text.get_text() for text in figure.texts]
    assert [word for word in words if "tissue" in word] == [
        "tissue 25 % → 50 %", "tissue 75 % → 100 %", "tissue 25 % → 50 %"
    ]  # fmt: skip
    assert {"A", "B", "before", "after", "mean colours"} <= set(words)
    assert len(figure.axes) == 2


def test_the_table_says_what_became_of_all_tiles():
    table = tile_figures.build_outcomes([make_example()])
    [row] = table.rows
    assert table.columns[0] == "tiles"
    assert len(table.columns) == len(row.cells)
    assert [(cell.text, cell.note) for cell in row.cells] == [
        ("10", ""), ("6", "60 %"), ("2", "20 %"), ("0", ""), ("2", "20 %"), ("50 % → 75 %", "")
    ]  # fmt: skip
    nothing = make_example()._replace(tissue_before=[], tissue_after=[])
    assert "→" in tile_figures.build_outcomes([nothing]).rows[0].cells[-1].text
