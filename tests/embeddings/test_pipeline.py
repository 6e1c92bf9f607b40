"""Results come in order, a fixed number of steps behind what was dispatched."""

import pytest

from pathorob_jax.embeddings.pipeline import STEPS_IN_FLIGHT, run_ahead


@pytest.mark.slow
@pytest.mark.parametrize("n", [0, 1, STEPS_IN_FLIGHT, STEPS_IN_FLIGHT + 1, 9])
def test_results_come_in_order_behind_what_was_dispatched(n):
    events = []

    def items():
        for i in range(n):
            events.append(f"read {i}")
            yield i

    def dispatch(i):
        events.append(f"begin {i}")
        return i

    for result in run_ahead(items(), dispatch):
        events.append(f"take {result}")
    expected = []
    for i in range(n + STEPS_IN_FLIGHT):
        expected += [f"read {i}", f"begin {i}"] if i < n else []
        expected += [f"take {i - STEPS_IN_FLIGHT}"] if i >= STEPS_IN_FLIGHT else []
    assert events == expected
