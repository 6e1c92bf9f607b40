"""Write the synthetic multi-centre tileset: H&E-like tiles whose ground truth is known."""

from absl import flags, logging

from pathorob_jax.cli import start
from pathorob_jax.data import synthetic_tiles

_OUTPUT = flags.DEFINE_string("output", None, "Folder of the tileset.", required=True)
_SLIDES = flags.DEFINE_integer("slides", 3, "Slides per class and centre.", lower_bound=1)
_TILES = flags.DEFINE_integer("tiles", 24, "Tiles per slide.", lower_bound=1)
_TILE_PX = flags.DEFINE_integer("tile_px", 256, "Side of a tile, pixels.", lower_bound=32)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of every random draw.", lower_bound=0)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the folder.")

# How to go on after an interruption.
RESUME = "nothing was written; give the same command of experiments.synthesize again"


def main() -> None:
    """Turn the flags into one ``write_tileset`` call."""
    config = synthetic_tiles.SyntheticConfig(
        n_slides=_SLIDES.value, n_tiles=_TILES.value, tile_px=_TILE_PX.value, seed=_SEED.value
    )
    n = synthetic_tiles.write_tileset(_OUTPUT.value, config, overwrite=_OVERWRITE.value)
    logging.info("%s: %d tiles", _OUTPUT.value, n)


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
