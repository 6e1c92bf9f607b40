"""Drops before and after robustification are compared over the splits that both have."""

import dataclasses
import pathlib

import numpy as np
import pytest
from report_records import make_apd, make_margins
from scipy import stats

from pathorob_jax.core.checks import InputError
from pathorob_jax.results.apd import pair_drops
from pathorob_jax.results.paired_records import pair_records
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import result_path, write_outcome, write_result

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


@pytest.fixture
def written(tmp_path, rng):
    """Writes the margins of a model, with its identity and draws; returns the path."""
    draws = rng.normal(size=200)

    def write(model, shift, *, key="shared", identity=None, **changes):
        identity = {"weights": model} if identity is None else identity
        record = make_margins(model, provenance={"store": {"identity": identity}}, **changes)
        record = dataclasses.replace(record, mari=record.mari + shift)
        write_outcome(str(tmp_path), Outcome(record, key, {"mari": draws + shift}))
        return pathlib.Path(result_path(str(tmp_path), record))

    return write


def pair_them(tmp_path):
    sides = [(name, {"weights": name}) for name in ("parent", "child")]
    return pair_records(str(tmp_path), "tiles", *sides)


def test_records_of_two_models_are_paired_over_shared_draws(tmp_path, written):
    written("parent", 0.0)
    assert pair_them(tmp_path) == ({}, [])  # one of them alone
    written("child", 0.25)
    paired, warnings = pair_them(tmp_path)
    assert not warnings
    assert paired["margins.mari"].before == pytest.approx(1 / 3)
    assert paired["margins.mari"].difference == pytest.approx(0.25)
    # All draws moved alike, so that nothing is left to chance.
    np.testing.assert_allclose(paired["margins.mari"].ci95, 0.25, atol=1e-12)
    written("child", 0.25, key="of other slides")
    assert pair_them(tmp_path)[0]["margins.mari"].ci95 is None


def test_drops_of_two_models_are_paired_by_their_splits(tmp_path):
    """Not by draws: over the splits and repetitions that both have."""
    values = {
        "parent": [[0.8, 0.9], [0.6, 0.72], [0.2, 0.3]],
        "child": [[0.8, 0.8], [0.76, 0.72], [NAN, NAN]],
    }
    records = {
        name: with_accuracies(
            accuracies,
            model=name,
            provenance={"store": {"identity": {"weights": name}}},
        )
        for name, accuracies in values.items()
    }
    for record in records.values():
        write_result(str(tmp_path), record)
    paired, warnings = pair_them(tmp_path)
    assert (sorted(paired), warnings) == (["apd.apd_id", "apd.apd_ood"], [])
    drop = paired["apd.apd_id"]
    np.testing.assert_allclose([drop.before, drop.after, drop.difference], [-0.225, -0.075, 0.15])
    assert drop.ci95 == pair_drops(records["parent"], records["child"])["apd_id"][2]
    write_result(str(tmp_path), dataclasses.replace(records["child"], seed=7))
    paired, [warning] = pair_them(tmp_path)
    assert paired == {}
    assert warning == (
        "performance drop before and after: scored with different seed; evaluate both models again "
        "with the same settings."
    )


def test_records_that_do_not_compare_are_named(tmp_path, written):
    written("parent", 0.0)
    written("child", 0.0, k=21)
    paired, [warning] = pair_them(tmp_path)
    assert not paired
    assert "scored with different k, 11 and 21; evaluate both models again" in warning
    written("child", 0.0, identity={"weights": "another"})
    [warning] = pair_them(tmp_path)[1]
    assert "the record of child is of other embeddings" in warning
    written("child", 0.0).write_text("{")
    [warning] = pair_them(tmp_path)[1]
    assert "before and after:" in warning
    assert "child" in warning
