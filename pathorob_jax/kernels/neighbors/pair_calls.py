"""Calls of a program that measures pairs of rows, a fixed number of pairs each, on all cores."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import DTypeLike

from pathorob_jax.core.devices import default_modes
from pathorob_jax.core.hosts import n_cores
from pathorob_jax.core.typing import ArrayLike, Float, Int


def measure_in_calls(
    measure: Callable[[Int[np.ndarray, "2 C"]], ArrayLike],
    first: Int[np.ndarray, " P"],
    second: Int[np.ndarray, " P"],
    *,
    size: int,
    dtype: DTypeLike,
) -> Float[np.ndarray, " P"]:
    """Measures of pairs; XLA on CPU runs a call on one core, so that several run together.

    Args:
        measure: from int32[2, C] pairs, of which the last may be padding, to [C] measures. It runs
            in threads, with JAX's default settings.
        first: int[P] rows, at least one.
        second: int[P] rows.
        size: C, pairs of a call.
        dtype: of the measures.
    """
    out = np.empty(len(first), dtype)

    def call(start: int) -> None:
        part = slice(start, start + size)
        pairs = np.zeros((2, size), np.int32)
        n_own = len(first[part])
        pairs[0, :n_own], pairs[1, :n_own] = first[part], second[part]
        with default_modes():
            out[part] = np.asarray(measure(pairs))[:n_own]

    first_call, *others = range(0, len(first), size)
    call(first_call)  # compiles once, before the threads start
    with ThreadPoolExecutor(n_cores()) as pool:
        for _ in pool.map(call, others):
            pass
    return out
