"""Turn a folder of results into one HTML page, CSV tables and figures."""

from absl import flags, logging

from pathorob_jax.cli import start

_RESULTS = flags.DEFINE_string("results", None, "Root of all results.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the report.", required=True)

# How to go on after an interruption.
RESUME = "give the same command of experiments.report again"


def main() -> None:
    """Turn the flags into one ``write_report`` call."""
    from pathorob_jax.report import write

    logging.info("%s", write.write_report(_RESULTS.value, _OUTPUT.value))


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
