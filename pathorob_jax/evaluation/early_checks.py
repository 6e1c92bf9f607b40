"""Checks of settings that need no JAX, so that scripts refuse before it is imported."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pathorob_jax.core.checks import UsageError

WORDS_OF_K = ("default", "auto")


def check_k(k: Any) -> None:
    """Raise UsageError unless k is a word of ``WORDS_OF_K`` or a positive number."""
    is_word = isinstance(k, str) and k in WORDS_OF_K
    if not is_word and (not isinstance(k, (int, np.integer)) or k < 1):
        raise UsageError(f"k: expected {', '.join(WORDS_OF_K)} or a positive number, found {k!r}.")


def check_draws(draws: int | None, least: int) -> None:
    """Raise UsageError unless there are enough draws for an interval, or none at all."""
    if draws is not None and (draws < 0 or 0 < draws < least):
        raise UsageError(
            f"draws: expected {least} or more, or 0 for no intervals, found {draws}; "
            "the ends of an interval from fewer draws are chance."
        )


def check_confounders(columns: Sequence[str]) -> None:
    """Raise UsageError if a column is named twice."""
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise UsageError(f"center_column: expected each column once, found {twice} twice.")
