"""Check this machine: devices, disk, network, token, gated encoders, versions, access, /dev/shm.

With ``--run`` also what a run needs, before it costs anything: data, revisions, weights, licences,
and one tile through every encoder.
"""

import json
import os
import sys

from absl import flags

from pathorob_jax.cli import start
from pathorob_jax.core.checks import InputError, UsageError

_OUTPUT = flags.DEFINE_list("output", ["."], "Folders that will be written, comma-separated.")
_MODEL = flags.DEFINE_list(
    "model", [], "Encoders whose repositories are asked, comma-separated; unset: none."
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Processes that will decode images, which share memory.", lower_bound=0
)
_RUN = flags.DEFINE_string(
    "run",
    None,
    "--output of a run: its data, weights and encoders are checked too, and no server is asked "
    "unless --model is given; unset: none.",
)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "Lines to read, or JSON.")

# How to go on after an interruption.
RESUME = "nothing was changed; give the same command again"


def main() -> None:
    """Turn the flags into one examination, print it, and fail if anything failed."""
    if _RUN.value is not None and not os.path.isfile(os.path.join(_RUN.value, "run.json")):
        raise UsageError(
            f"run: {_RUN.value}: nothing was run into this folder (no run.json); give the --output "
            "of experiments.run."
        )
    from pathorob_jax.cli.doctor import checkup, findings

    found = checkup.examine(
        _OUTPUT.value,
        models=_MODEL.value,
        workers=_WORKERS.value,
        ask_network=_RUN.value is None or bool(_MODEL.value),
    )
    if _RUN.value is not None and not findings.failed(found):
        from pathorob_jax.cli.doctor import preflight

        found += preflight.check_run(_RUN.value)
    if _FORMAT.value == "json":
        sys.stdout.write(json.dumps(findings.as_json(found), indent=1) + "\n")
    else:
        sys.stdout.write(findings.as_text(found))
    sys.stdout.flush()
    failed = findings.failed(found)
    if failed:
        raise InputError(f"{', '.join(failed)}: see the lines that begin with fail.")


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
