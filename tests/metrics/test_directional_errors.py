"""Errors towards the class that a centre stood for, beside loops over single rows."""

import numpy as np
import pytest
from scipy import stats

from pathorob_jax.core.checks import InputError
from pathorob_jax.data.protocols import PROTOCOLS
from pathorob_jax.metrics.apd import count_calls
from pathorob_jax.metrics.directional_errors import (
    directional_errors,
    pull_intervals,
    stood_for,
)


def test_the_class_of_a_centre_is_the_most_frequent_one_of_the_last_split():
    slides = [[[2, 2, 3], [2, 2, 1]], [[4, 0, 2], [0, 4, 2]]]
    assert stood_for(slides).tolist() == [[True, False], [False, True], [False, False]]


def test_a_centre_stands_for_all_classes_that_equally_many_slides_have():
    schedule = PROTOCOLS["tolkach_esca"].apd.schedule
    assert schedule.slides[-1] == ((0, 6),) * 3 + ((6, 0),) * 3
    assert stood_for(schedule.slides).tolist() == [
        [False] * 3 + [True] * 3,
        [True] * 3 + [False] * 3,
    ]
    calls = np.zeros((1, 1, 2, 6, 6), int)
    calls[0, 0, 0, 1] = [1, 5, 1, 2, 1, 0]  # 3 of 10 rows are called class 3, 4 or 5
    share = directional_errors(calls, stood_for(schedule.slides)).share
    assert share[0, 0, 1] == 0.3
    assert np.isnan(share[0, 0, 3:]).all()


def test_pathorobs_centres_stand_for_the_classes_of_the_article():
    # "Normal patches of RUMC are called tumour": Camelyon's RUMC stands for tumour.
    schedule = PROTOCOLS["camelyon"].apd.schedule
    found = dict(zip(schedule.centers, stood_for(schedule.slides), strict=True))
    names = {c: [schedule.classes[i] for i in np.flatnonzero(own)] for c, own in found.items()}
    assert names == {"RUMC": ["tumor"], "UMCU": ["normal"]}


def test_shares_and_pull_equal_counting_row_by_row():
    rng = np.random.default_rng(0)
    n, n_splits, n_reps = 400, 3, 2
    towards = np.array([[False, True, True], [True, False, False], [False] * 3])
    label, center = rng.integers(0, 3, n), rng.integers(0, 3, n)
    label[(center == 1) & (label == 2)] = 0  # centre 1 has no row of class 2
    called = rng.integers(0, 3, (n_splits, n_reps, n))
    calls = count_calls(called, label, center, n_classes=3, n_centers=3)
    found = directional_errors(calls, towards)
    for m in range(3):
        for c in range(3):
            rows = (label == c) & (center == m)
            if towards[m, c] or not towards[m].any() or not rows.any():
                assert np.isnan(found.share[:, m, c]).all()
                assert np.isnan(found.pull[:, m, c]).all()
                continue
            expected = [towards[m][called[s][:, rows]].mean() for s in range(n_splits)]
            np.testing.assert_allclose(found.share[:, m, c], expected, rtol=0, atol=1e-15)
            pull = np.array(expected) - expected[0]
            np.testing.assert_allclose(found.pull[:, m, c], pull, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("calls", "towards", "text"),
    [
        (np.zeros((2, 1, 2, 3)), np.eye(2, dtype=bool), "expected shape"),
        (np.zeros((2, 1, 2, 2, 2)), np.eye(3, dtype=bool), "stood_for"),
    ],
)
def test_what_does_not_fit_is_refused(calls, towards, text):
    with pytest.raises(InputError, match=text):
        directional_errors(calls, towards)


@pytest.mark.slow
def test_intervals_of_the_pull_by_hand():
    """Nadeau and Bengio's t about the pooled pull: s^2 (1 / R + f / (1 - f))."""
    calls = np.zeros((2, 3, 1, 2, 2), int)
    shares = np.array([[1, 2, 1], [8, 9, 10]])  # called class 1, of 10 rows of class 0
    calls[:, :, 0, 0, 1], calls[:, :, 0, 0, 0] = shares, 10 - shares
    calls[1, 2, 0, 0, 0] = 10  # twice the rows in one repetition: pooled is not the mean
    found = pull_intervals(calls, [[False, True]], n_training=40, n_test=80)
    pulls = np.array([8, 9, 5]) / 10 - shares[0] / 10
    half = stats.t.ppf(0.975, 2) * pulls.std(ddof=1) * np.sqrt(1 / 3 + 0.5)
    pooled = 27 / 40 - 4 / 30
    expected = np.clip([pooled - half, pooled + half], -1, 1)
    np.testing.assert_allclose(found[1, 0, 0], expected, rtol=1e-12)
    np.testing.assert_array_equal(found[0, 0, 0], [0, 0])
    assert np.isnan(found[:, 0, 1]).all()
    assert np.isnan(pull_intervals(calls[:, :1], [[False, True]], n_training=40, n_test=80)).all()
