"""What fails costs itself alone, and is said in one message; lost processes end the run."""

import pytest
from absl import logging

from pathorob_jax.core.attempts import attempt, explain
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.hosts import LostProcessError

OutOfMemory = type("JaxRuntimeError", (RuntimeError,), {})


def failing(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "is_defect", "said"),
    [
        (InputError("a.csv: bad."), False, "a.csv: bad."),
        (FileNotFoundError("a.csv: no such file."), False, "a.csv: no such file."),
        (OutOfMemory("RESOURCE_EXHAUSTED: Out of memory"), False, "Take a machine with more"),
        (MemoryError(), False, "out of memory (this machine has no more)"),
        (KeyError("name"), True, "KeyError: 'name'"),
    ],
)
def test_an_error_is_handed_on_and_only_a_defect_shows_its_traceback(
    monkeypatch, error, is_defect, said
):
    shown = []
    monkeypatch.setattr(logging, "exception", shown.append)
    assert attempt(failing(error)) == (None, error)
    assert bool(shown) == is_defect
    assert said in explain(error)


def test_a_lost_process_ends_the_run():
    assert attempt(lambda: 3) == (3, None)
    with pytest.raises(LostProcessError, match="gone"):
        attempt(failing(LostProcessError("gone")))
