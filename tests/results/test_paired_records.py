"""Drops before and after robustification are compared over the splits that both have."""

import dataclasses

import numpy as np
import pytest
from report_records import make_apd
from scipy import stats

from pathorob_jax.core.checks import InputError
from pathorob_jax.results.apd import pair_drops

NAN = float("nan")


def with_accuracies(values, **changes):
    values = np.asarray(values, float)
    record = make_apd(repetitions=values.shape[1])
    return dataclasses.replace(
        record,
        id_accuracies=values.tolist(),
        ood_accuracies=(values / 2).tolist(),
        cramers_v=[0.0, 0.5, 1.0],
        n_training_rows=60,
        n_id_test_rows=30,
        **changes,
    )


def test_a_split_that_one_of_them_lacks_counts_for_neither():
    before = with_accuracies([[0.8, 0.9], [0.6, 0.72], [0.2, 0.3]])
    after = with_accuracies([[0.8, 0.8], [0.76, 0.72], [NAN, NAN]])
    was, now, ends = pair_drops(before, after)["apd_id"]
    np.testing.assert_allclose((was, now), (-0.225, -0.075), atol=1e-12)
    # Two repetitions: drops rise by .20 and .10; f / (1 - f) is 30 / 60 in domain, 60 / 30 outside.
    for name, shared in (("apd_id", 0.5), ("apd_ood", 2.0)):
        ends = pair_drops(before, after)[name][2]
        error = np.std([0.2, 0.1], ddof=1) * np.sqrt(1 / 2 + shared)
        width = stats.t.ppf(0.975, 1) * error
        np.testing.assert_allclose(ends, [0.15 - width, 0.15 + width], rtol=1e-9)


def test_equal_records_differ_by_nothing():
    record = with_accuracies([[0.8, 0.9], [0.6, 0.72], [0.2, 0.3]])
    was, now, ends = pair_drops(record, record)["apd_ood"]
    assert was == now
    assert ends == [0.0, 0.0]


@pytest.mark.slow
def test_other_rows_are_not_compared():
    record = with_accuracies([[0.8], [0.6], [0.2]])
    for change in ({"seed": record.seed + 1}, {"cramers_v": [0.0, 0.6, 1.0]}):
        with pytest.raises(InputError, match=f"different {next(iter(change))}$"):
            pair_drops(record, dataclasses.replace(record, **change))
