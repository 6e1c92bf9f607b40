"""The status of a run in words."""

import types

import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.runs.request import Cell
from pathorob_jax.runs.status import find_status
from pathorob_jax.runs.steps import EVALUATE, EXTRACT, FETCH, REPORT, Key, Look


def status_of(folder, looks):
    steps = [
        types.SimpleNamespace(
            key=key, look=look if callable(look) else lambda look=look: look, needs=()
        )
        for key, look in looks.items()
    ]
    request = types.SimpleNamespace(output=str(folder), cells=[Cell("m", "d")])
    return find_status(request, steps)


def test_who_is_at_work_is_named(tmp_path):
    looks = {
        Key(FETCH, dataset="d"): Look(True),
        Key(EXTRACT, "m", "d"): Look(False, 0, 8, "tile", ("node1 (process 7), with 2 chunks",)),
        Key(EVALUATE, "m", "d"): Look(False, 0, 2, "metric"),
        Key(REPORT): Look(False, 0, 1, "report"),
    }
    status = status_of(tmp_path, looks)
    assert "m      extract 0 of 8" in str(status), "begun, though no chunk is there"
    assert str(status).endswith("at work:\nextract m on d: node1 (process 7), with 2 chunks")
    assert status.as_plain()[1]["at_work"] == ["node1 (process 7), with 2 chunks"]
    assert status.as_plain()[2]["at_work"] == []


def test_what_cannot_even_be_looked_at_has_failed_with_its_reason(tmp_path):
    def damaged():
        raise InputError("index.html: damaged.")

    looks = {
        Key(FETCH, dataset="d"): Look(True),
        Key(EXTRACT, "m", "d"): Look(True, 8, 8, "tile"),
        Key(EVALUATE, "m", "d"): Look(True, 2, 2, "metric"),
        Key(REPORT): damaged,
    }
    status = status_of(tmp_path, looks)
    assert [(step.key, step.why) for step in status.failed] == [
        (Key(REPORT), "index.html: damaged.")
    ]
    text = str(status)
    assert text.startswith(f"{tmp_path}: 1 of 1 done (encoder on dataset); the report failed\n")
    assert "1 report: index.html: damaged." in text


@pytest.mark.parametrize(("page", "said"), [(False, "no report yet"), (True, "of these results")])
def test_a_report_that_is_left_says_whether_there_is_an_older_one(tmp_path, page, said):
    if page:
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "index.html").touch()
    left = {key: Look(False) for key in (Key(FETCH, dataset="d"), Key(REPORT))}
    left |= {Key(kind, "m", "d"): Look(False) for kind in (EXTRACT, EVALUATE)}
    assert said in str(status_of(tmp_path, left)).splitlines()[0]
