"""Turn a folder of results of many models into a leaderboard: pages, one table, JSON."""

from absl import flags, logging

from pathorob_jax.cli import start
from pathorob_jax.core import files
from pathorob_jax.results import folders

from . import common

_RESULTS = flags.DEFINE_string("results", None, "Root of all results.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the site; numbers of a board in it are the old ones.", required=True
)
_FACTS = common.define_facts(what="slides, parameters, licence, exposure")

# How to go on after an interruption.
RESUME = "give the same command of experiments.leaderboard again"


def main() -> None:
    """Turn the flags into one ``write_leaderboard`` call."""
    folders.check_any(_RESULTS.value)
    if _FACTS.value is not None:
        files.check_there(_FACTS.value)
    from pathorob_jax.report.leaderboard import write

    logging.info("%s", write.write_leaderboard(_RESULTS.value, _OUTPUT.value, facts=_FACTS.value))


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
