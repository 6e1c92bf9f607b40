"""Show how far a run is: which encoders on which datasets are done, failed and why, or left."""

import json
import sys

from absl import flags

from pathorob_jax.cli import start
from pathorob_jax.core import files

_OUTPUT = flags.DEFINE_string("output", "runs", "The --output of the run.")
_FORMAT = flags.DEFINE_enum("format", "table", ["table", "json"], "A table, or one JSON list.")

# How to go on after an interruption.
RESUME = "give the same command of experiments.status again"


def main() -> None:
    """Print the status."""
    files.check_there(_OUTPUT.value, "folder of a run")
    from pathorob_jax.runs.status import read_status

    status = read_status(_OUTPUT.value)
    text = json.dumps(status.as_plain(), indent=1) if _FORMAT.value == "json" else str(status)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
