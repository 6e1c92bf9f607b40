"""Names of encoders, and whether they need weights, without their networks.

Scripts refuse wrong names by these, before JAX is imported.
"""

import functools
import pathlib
from typing import Any

from pathorob_jax.core import checks
from pathorob_jax.core.checks import UsageError
from pathorob_jax.models.spec_files import read_mapping

SPECS = pathlib.Path(__file__).parent / "specs"
# Encoders without a file of facts, which need no weights.
DEMO = ("color_stats", "nuclear_texture", "vit_random")


@functools.cache
def _entries() -> dict[str, Any]:
    paths = sorted(SPECS.glob("*.yaml"))
    return {name: entry for path in paths for name, entry in read_mapping(str(path)).items()}


def check_name(name: str) -> None:
    """Raise UsageError unless there is an encoder of that name."""
    checks.check_known(name, (*DEMO, *_entries()), what="model")


def check_weights_given(name: str, weights_dir: str | None) -> None:
    """Raise UsageError if a known encoder needs a folder of weights and none is given."""
    entry = _entries().get(name)
    if weights_dir is None and entry is not None and "unavailable" not in entry:
        raise lacks_weights(name, f"--model={name}")


def lacks_weights(name: str, which: str) -> UsageError:
    """What to raise for an encoder without a folder of weights; ``which`` is its flag."""
    return UsageError(
        f"weights: {name} needs converted weights; make them with {convert_command(which)} and "
        "give --weights=<folder>."
    )


def convert_command(which: str) -> str:
    """The command that converts an encoder's weights."""
    return f"python -m converters.convert {which} --output=<folder>"
