"""From names of encoders and datasets to a report: fetch, convert, extract, evaluate, report.

What is there and fits is skipped, so that the same command goes on where a killed one stopped. A
step that fails costs only what needs it; the run then ends with a table that says which and why,
and with exit code 1. Without flags: synthetic tiles and three demo encoders, which need no network.
"""

import importlib
from typing import TYPE_CHECKING, cast

from absl import flags, logging

from pathorob_jax.cli import names, start
from pathorob_jax.core import checks

from . import choices, common, run_flags

if TYPE_CHECKING:
    from pathorob_jax.runs.steps import Converter

_HOLDERS = run_flags.define()
_PLAN = flags.DEFINE_bool(
    "plan", False, "Say what is there, what would be downloaded and how long it takes, and end."
)
_STEPS = flags.DEFINE_list(
    "steps",
    list(choices.RUN_STEPS),
    "Kinds of steps to do, comma-separated; what the others make must be there.",
)
_HOSTS = common.define_hosts()
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(common)

# How to go on after an interruption.
RESUME = "what is finished is kept; give the same command of experiments.run again"


def main() -> None:
    """Turn the flags into one ``run`` or ``make_plan`` call."""
    for kind in _STEPS.value:
        checks.check_known(kind, choices.RUN_STEPS, what="steps")
    request = run_flags.make_request(_HOLDERS)
    mesh = common.join_hosts(_HOSTS)
    from pathorob_jax.runs.execute import run
    from pathorob_jax.runs.plan import make_plan

    engine = cast("Converter", importlib.import_module(names.find_module("convert", "engine")))
    if _PLAN.value:
        logging.info("%s", make_plan(request, engine))
        return
    ran = run(request, engine, kinds=_STEPS.value, mesh=mesh)
    logging.info("%s", ran.status)
    ran.raise_failure()


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
