"""Check this machine: devices, disk, network, token, gated encoders, versions, access, /dev/shm."""

import json
import sys

from absl import flags

from pathorob_jax.cli import start
from pathorob_jax.core.checks import InputError

_OUTPUT = flags.DEFINE_list("output", ["."], "Folders that will be written, comma-separated.")
_MODEL = flags.DEFINE_list(
    "model", [], "Encoders whose repositories are asked, comma-separated; unset: none."
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Processes that will decode images, which share memory.", lower_bound=0
)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "Lines to read, or JSON.")

# How to go on after an interruption.
RESUME = "nothing was changed; give the same command again"


def main() -> None:
    """Turn the flags into one examination, print it, and fail if anything failed."""
    from pathorob_jax.cli.doctor import checkup, findings

    found = checkup.examine(_OUTPUT.value, models=_MODEL.value, workers=_WORKERS.value)
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
