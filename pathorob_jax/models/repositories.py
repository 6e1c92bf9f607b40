"""Where encoders' checkpoints are on the Hugging Face hub, read without JAX.

The registry reads the same files into specs, which needs JAX.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from pathorob_jax.core import checks
from pathorob_jax.models.names import CONTROLS
from pathorob_jax.models.spec_files import read_mapping

SPECS = pathlib.Path(__file__).parent / "specs"
# A file whose place is asked for where a spec names none.
_ANY_FILE = "config.json"


class Repository(NamedTuple):
    """The repo of an encoder.

    Attributes:
        model: name of the encoder.
        repo: ``owner/name``.
        file: a file in it.
        revision: commit; None: the main branch.
        is_gated: whether terms must be accepted; None: unknown.
    """

    model: str
    repo: str
    file: str
    revision: str | None
    is_gated: bool | None


def find_repositories(models: Sequence[str]) -> list[Repository]:
    """The repos of encoders; those that need none are left out.

    Raises:
        UsageError: unknown name; the message lists the known names.
    """
    weights = {
        name: entry.get("weights") or {}
        for path in sorted(SPECS.glob("*.yaml"))
        for name, entry in read_mapping(str(path)).items()
    }
    found = []
    for model in models:
        checks.check_known(model, [*weights, *CONTROLS], what="model")
        place = weights.get(model, {})
        if place.get("repo"):
            files = place.get("files") or [_ANY_FILE]
            found.append(
                Repository(
                    model, place["repo"], files[0], place.get("revision"), place.get("gated")
                )
            )
    return found
