"""The verdict on a robustified model: when it helped, and when biology is lost."""

import dataclasses

import pytest
from report_records import NAN, make_robustification

from pathorob_jax.results import result_files
from pathorob_jax.results.robustification import (
    ACCURACY,
    AUC,
    INDEX,
    STORED,
    Paired,
    gained,
    helped,
    list_losses,
    write_verdict,
)


def numbers(**changes):
    return make_robustification().paired | changes


def verdict(**changes):
    return write_verdict("combat", numbers(**changes), {})


def test_a_gain_outside_its_interval_with_biology_kept_helped():
    assert gained(numbers())
    assert verdict() == (
        "combat helped: robustness index 0.250 → 0.750 (+0.500, 95 % interval +0.438 to +0.562), "
        "biology kept (AUC −0.002, accuracy of neighbours +0.013)."
    )


@pytest.mark.parametrize(
    ("ends", "rose"), [([0.001, 0.2], True), ([0.0, 0.2], False), ([-0.2, -0.1], False)]
)
def test_the_gain_must_leave_its_interval(ends, rose):
    change = Paired(0.5, 0.6, 0.1, ends)
    assert gained(numbers(**{INDEX: change})) == rose
    assert verdict(**{INDEX: change}).startswith("combat helped") == rose


@pytest.mark.parametrize(
    ("difference", "ends", "is_lost"),
    [
        (-0.05, [-0.08, -0.02], True),
        (-0.05, [-0.11, 0.01], False),  # not outside its interval
        (-0.009, [-0.01, -0.008], False),  # too little to matter
        (-0.05, None, True),
    ],
)
def test_biology_that_is_lost(difference, ends, is_lost):
    for name in (AUC, ACCURACY):
        paired = numbers(**{name: Paired(0.9, 0.9 + difference, difference, ends)})
        assert list_losses(paired) == ([name] if is_lost else [])
        text = write_verdict("combat", paired, {})
        assert text.startswith("combat did not help" if is_lost else "combat helped")
        assert ("biology lost" in text) == is_lost


@pytest.mark.parametrize("name", [AUC, ACCURACY])
def test_undefined_biology_is_not_called_kept(name):
    paired = numbers(**{name: Paired(NAN, 0.9, NAN, None)})
    assert not helped(paired)
    assert list_losses(paired) == []
    text = write_verdict("combat", paired, {})
    assert (
        text == f"combat cannot be judged: the difference of {name.replace('_', ' ')} is undefined."
    )


def test_the_verdict_says_of_which_rows_the_centre_is():
    record = make_robustification()
    text = write_verdict("macenko", record.paired, record.residual_center, residual_rows=STORED)
    assert "as it is, a probe reads the centre with AUC 0.550." in text
    assert "did not see" not in text
    assert "on slides that a fit did not see, a probe reads" in record.verdict


def test_what_cannot_be_judged():
    assert "undefined" in verdict(**{INDEX: Paired(NAN, 0.5, NAN, None)})
    unknown = Paired(0.25, 0.75, 0.5, None)
    assert "cannot be judged without an interval" in verdict(**{INDEX: unknown})


@pytest.mark.slow
def test_the_record_is_read_back(tmp_path):
    record = make_robustification()
    path = result_files.write_result(str(tmp_path), record)
    assert result_files.read_result(path) == record
    assert record.describe() == f"encoder+combat on tiles: {record.verdict}"
    assert "a probe reads the centre with AUC 0.550." in record.verdict
    labels = dataclasses.replace(record, used_labels=True)
    assert record.is_honest
    assert not labels.is_honest
    assert dataclasses.replace(labels, fit_on="cross_fit").is_honest
