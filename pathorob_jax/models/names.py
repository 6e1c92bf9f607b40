"""Names of encoders, and whether they need weights, without their networks.

Scripts refuse wrong names by these, before JAX is imported.
"""

import functools
import pathlib
import re
from typing import Any

from pathorob_jax.core import checks
from pathorob_jax.core.checks import UsageError
from pathorob_jax.models.spec_files import read_mapping

SPECS = pathlib.Path(__file__).parent / "specs"
# Controls, which need no weights: they mark the scale and are no candidates, so that no table of
# encoders ranks them.
CONTROLS = ("color_stats", "nuclear_texture", "vit_random")
# What names of stores add to that of their encoder.
ADDED = re.compile(r"_(cls|mean|clsmean|head|pathorob)$")


@functools.cache
def _entries() -> dict[str, Any]:
    paths = sorted(SPECS.glob("*.yaml"))
    return {name: entry for path in paths for name, entry in read_mapping(str(path)).items()}


def is_control(model: str) -> bool:
    """Whether a name in results is that of a control, of any pooling, robustified or not."""
    return ADDED.sub("", model.partition("+")[0]) in CONTROLS


def check_name(name: str) -> None:
    """Raise UsageError unless there is an encoder of that name."""
    checks.check_known(name, (*CONTROLS, *_entries()), what="model")


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
