"""The JSON Schema of the leaderboard: the committed one, which fits boards and refuses others."""

import copy
import dataclasses
import json
import pathlib

import jsonschema
import pytest
from report_records import NAN, make_apd, make_margins, make_record, make_undefined

import pathorob_jax as pr
from pathorob_jax.report.leaderboard import json_schema
from pathorob_jax.results.result_files import write_result

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_committed_schema_is_that_of_the_board():
    """After a change: see CONTRIBUTING.md."""
    committed = json.loads((ROOT / "docs" / "leaderboard.schema.json").read_text())
    assert committed == json_schema.make_schema()


@pytest.fixture(scope="module")
def validator():
    schema = json_schema.make_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A board with undefined numbers, facts, published numbers, and a number that changed."""
    root = tmp_path_factory.mktemp("board")
    results, output = str(root / "results"), root / "board"
    right = make_record("virchow2", "camelyon", 0.5)
    records = [right, make_margins("virchow2", "camelyon"), make_undefined("lost", "camelyon")]
    for record in (*records, make_apd("partly", "camelyon", apd_ood=NAN)):
        write_result(results, record)
    pr.write_leaderboard(results, str(output))
    write_result(results, dataclasses.replace(right, robustness_index=0.6))
    pr.write_leaderboard(results, str(output))
    return json.loads((output / "leaderboard.json").read_text("utf-8"))


def test_a_board_fits(board, validator):
    validator.validate(board)
    entry = next(entry for entry in board["models"] if entry["model"] == "virchow2")
    assert entry["facts"]
    assert entry["published"]
    assert board["changes"]


def entry_of(board):
    return next(entry for entry in board["models"] if entry["model"] == "virchow2")


def test_what_does_not_fit_is_refused(board, validator):
    """A key that is missing or foreign, text for a number, an interval of three ends."""
    changes = (
        lambda v: v.pop("ranked_by"),
        lambda v: v.update(other=1),
        lambda v: v.update(schema_version=1),
        lambda v: entry_of(v).pop("is_control"),
        lambda v: entry_of(v)["facts"]["params"].pop("source"),
        lambda v: entry_of(v)["exposure"].update(tcga="no"),
        lambda v: entry_of(v)["published"][0].update(value="0.8"),
        lambda v: entry_of(v)["published"][0].update(use="mine"),
        lambda v: entry_of(v)["values"]["robustness_index"]["camelyon"].update(ci95=[0, 1, 2]),
        lambda v: entry_of(v)["values"]["robustness_index"]["camelyon"].update(rank=1),
        lambda v: v["changes"][0].update(date="yesterday"),
        lambda v: v["changes"][0].pop("old"),
    )
    for change in changes:
        wrong = copy.deepcopy(board)
        change(wrong)
        assert not validator.is_valid(wrong)
