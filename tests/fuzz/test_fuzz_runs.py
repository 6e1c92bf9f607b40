"""A little of the campaigns over flags and kills; ``make fuzz`` runs more."""

import pytest

from tests.fuzz import fuzz_flags, fuzz_kills


def check(counts, n):
    assert counts["traceback"] == counts["silent"] == 0, counts
    assert counts["clean error"] + counts["equal to the oracle"] == n


@pytest.mark.campaign
@pytest.mark.slow
def test_odd_flags_are_refused_by_name_or_right():
    counts = fuzz_flags.fuzz_flags(30, seed=1)
    check(counts, 30)
    assert counts["clean error"] >= 10


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.campaign
def test_killed_processes_go_on_and_end_with_the_same_bytes():
    check(fuzz_kills.fuzz_kills(2, seed=1), 2)


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
def test_campaigns():
    check(fuzz_flags.fuzz_flags(120, seed=2), 120)
    check(fuzz_kills.fuzz_kills(60, seed=2), 60)
