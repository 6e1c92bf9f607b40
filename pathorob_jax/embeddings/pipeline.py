"""Keeps devices busy while the host reads the next tiles and takes earlier results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Steps that the devices work on while the host takes the result of the one before.
STEPS_IN_FLIGHT = 2


def run_ahead(items: Iterable[Item], dispatch: Callable[[Item], Result]) -> Iterator[Result]:
    """Dispatch items to the devices; yield their results in order, ``STEPS_IN_FLIGHT`` behind.

    Args:
        items: read one by one, while the devices work on those before.
        dispatch: item -> result. JAX computes asynchronously: it returns before the result is
            there, and the caller waits for the values when it takes a result.
    """
    pending: deque[Result] = deque()
    for item in items:
        pending.append(dispatch(item))
        if len(pending) > STEPS_IN_FLIGHT:
            yield pending.popleft()
    while pending:
        yield pending.popleft()
