"""A part of the campaign of manifests; ``make fuzz`` runs all of it."""

import pathlib
import runpy

import pytest

CAMPAIGN = runpy.run_path(str(pathlib.Path(__file__).with_name("fuzz_manifests.py")))


def check(n, seed):
    outcomes = CAMPAIGN["fuzz_manifests"](n, seed)
    wrong = [text for text in outcomes if text not in (CAMPAIGN["CLEAN"], CAMPAIGN["EQUAL"])]
    assert wrong == []
    assert outcomes.total() == n
    assert min(outcomes.values()) > n // 6  # it both refuses and reads


@pytest.mark.slow
def test_damaged_manifests_are_refused_or_read_right():
    check(60, seed=1)


@pytest.mark.campaign
def test_the_whole_campaign():
    check(1_500, seed=2)
