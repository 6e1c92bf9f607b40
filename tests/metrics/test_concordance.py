"""Harrell's concordance against scikit-survival (``tests/data/survival``), and derived values."""

import json
import pathlib

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.kernels.mil.survival import comparable_pairs
from pathorob_jax.metrics.concordance import concordance_index

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "data/survival/sksurv.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_it_is_scikit_survival_s(case):
    found = concordance_index(case["time"], case["event"], case["risk"])
    np.testing.assert_allclose(found.value, case["concordance"], rtol=1e-12)
    assert [found.concordant, found.discordant, found.tied] == case["pairs"]
    pairs = comparable_pairs(np.array(case["time"]), np.array(case["event"]))
    assert pairs.sum() == sum(case["pairs"])


def test_ties():
    # The two events at time 2 are not comparable; each is with the one censored then.
    found = concordance_index([2, 2, 2, 1], [True, True, False, False], [3.0, 1.0, 1.0, 9.0])
    assert found == (0.75, 1, 0, 1)
    assert concordance_index([1, 2], [True, True], [2.0, 1.0]).value == 1
    assert concordance_index([1, 2], [True, True], [1.0, 2.0]).value == 0
    assert concordance_index([1, 2], [True, True], [1.0, 1.0 + 5e-9]).value == 0.5


def test_without_pairs_it_is_undefined():
    assert np.isnan(concordance_index([1, 2], [False, True], [0.0, 1.0]).value)
    assert np.isnan(concordance_index([], [], []).value)


@pytest.mark.slow
def test_bad_input_is_refused():
    with pytest.raises(InputError, match=r"risk: expected shape \(2\) to match time"):
        concordance_index([1, 2], [True, True], [1.0])
    with pytest.raises(InputError, match="risk: expected finite numbers"):
        concordance_index([1, 2], [True, True], [1.0, np.nan])
