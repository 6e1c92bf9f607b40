"""Tiles in memory: what a tileset that is open takes no more."""

import pytest
import tilesets

from pathorob_jax.core.checks import UsageError
from pathorob_jax.data.tileset import open_tileset
from pathorob_jax.embeddings.embed_in_memory import load_tiles


@pytest.mark.parametrize(
    ("name", "value"),
    [("columns", {"slide_id": "slide"}), ("image_range", "full"), ("allow_paths", "local")],
)
def test_options_are_for_a_tileset_that_is_not_open(tmp_path, rng, name, value):
    opened = open_tileset(tilesets.write_folder(tmp_path / "tiles", tilesets.make_tiles(rng)))
    message = f"{name}: the tileset is open; give {name} to open_tileset"
    with pytest.raises(UsageError, match=message):
        load_tiles(opened, **{name: value})
