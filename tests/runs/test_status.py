"""The status of a run in words."""

import types

from pathorob_jax.runs.request import Cell
from pathorob_jax.runs.status import find_status
from pathorob_jax.runs.steps import EVALUATE, EXTRACT, FETCH, REPORT, Key, Look


def test_who_is_at_work_is_named(tmp_path):
    looks = {
        Key(FETCH, dataset="d"): Look(True),
        Key(EXTRACT, "m", "d"): Look(False, 0, 8, "tile", ("node1 (process 7), with 2 chunks",)),
        Key(EVALUATE, "m", "d"): Look(False, 0, 2, "metric"),
        Key(REPORT): Look(False, 0, 1, "report"),
    }
    steps = [
        types.SimpleNamespace(key=key, look=lambda look=look: look, needs=())
        for key, look in looks.items()
    ]
    request = types.SimpleNamespace(output=str(tmp_path), cells=[Cell("m", "d")])
    status = find_status(request, steps)
    assert "m      extract 0 of 8" in str(status), "begun, though no chunk is there"
    assert str(status).endswith("at work:\nextract m on d: node1 (process 7), with 2 chunks")
    assert status.as_plain()[1]["at_work"] == ["node1 (process 7), with 2 chunks"]
    assert status.as_plain()[2]["at_work"] == []
