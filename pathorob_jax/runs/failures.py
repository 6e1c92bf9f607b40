"""Why steps of a run failed, kept for its status until they succeed."""

import contextlib

from absl import logging

from pathorob_jax.core import files, sealed_files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.privacy import redact
from pathorob_jax.runs.request import FAILURES

SCHEMA_VERSION = 1


def keep(output: str, parts: tuple[str, ...], why: str) -> None:
    """Keep why a step failed; where even that cannot be written, the log says so."""
    try:
        value = {"schema_version": SCHEMA_VERSION, "why": redact(why)}
        sealed_files.write_json(_path(output, parts), value)
    except (InputError, OSError) as error:
        logging.warning("the failure is not kept for the status: %s", error)


def read(output: str, parts: tuple[str, ...]) -> str:
    """Why a step failed; "" if it did not, or the file is damaged."""
    path = _path(output, parts)
    if files.exists(path):
        with contextlib.suppress(InputError, KeyError):
            return str(sealed_files.read_json(path, schema_version=SCHEMA_VERSION)["why"])
    return ""


def drop(output: str, parts: tuple[str, ...]) -> None:
    """Forget that a step failed."""
    with contextlib.suppress(OSError):
        files.remove(_path(output, parts))


def _path(output: str, parts: tuple[str, ...]) -> str:
    return files.join(output, FAILURES, *filter(None, parts)) + ".json"
