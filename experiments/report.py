"""Turn a folder of results into one HTML page, CSV tables and figures."""

from absl import flags, logging

from pathorob_jax.cli import start
from pathorob_jax.core import files
from pathorob_jax.results import folders

from . import common

_RESULTS = flags.DEFINE_string("results", None, "Root of all results.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the report.", required=True)
_FACTS = common.define_facts(what="slides, parameters, kind; for the analyses over models")
_MAPS = common.define_maps_at()
_TILES = common.define_tiles()

# How to go on after an interruption.
RESUME = "give the same command of experiments.report again"


def main() -> None:
    """Turn the flags into one ``write_report`` call."""
    folders.check_any(_RESULTS.value)
    if _FACTS.value is not None:
        files.check_there(_FACTS.value)
    if _TILES.value is not None:
        files.check_there(_TILES.value)
    from pathorob_jax.report import write

    path = write.write_report(
        _RESULTS.value,
        _OUTPUT.value,
        facts=_FACTS.value,
        maps=_MAPS.value,
        tiles=_TILES.value,
    )
    logging.info("%s", path)


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
