"""Parts of a long run whose failure must not cost the others."""

from collections.abc import Callable
from typing import Any

from absl import logging

from pathorob_jax.core import faults
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.hosts import LostProcessError


def attempt(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What a call returns and None, or None and the error with which it failed.

    Raises:
        LostProcessError: the other processes of the run are gone.
    """
    try:
        return call(), None
    except LostProcessError:
        raise
    except (InputError, OSError, MemoryError) as error:
        return None, error
    except Exception as error:  # noqa: BLE001 - a defect of one part must not cost the others
        if faults.explain(error) is None:
            logging.exception("unexpected; the other work goes on")
        return None, error


def explain(error: Exception) -> str:
    """Why a call failed, in one message."""
    known = isinstance(error, (InputError, OSError))
    return faults.explain(error) or (str(error) if known else f"{type(error).__name__}: {error}")
