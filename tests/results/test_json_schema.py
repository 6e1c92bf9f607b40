"""The JSON Schema of results: it is the committed one, fits every record, and refuses others."""

import copy
import dataclasses
import json
import pathlib
from typing import Any, ClassVar, Literal

import jsonschema
import model_records
import numpy as np
import pytest
import report_records

import pathorob_jax as pr
from pathorob_jax.data import protocols
from pathorob_jax.results import analyse_models, json_schema, result_files, write_summaries
from pathorob_jax.results.record import Record

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def schema():
    return json_schema.make_schema()


@pytest.fixture(scope="module")
def validator(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_committed_schema_is_that_of_the_records(schema):
    """After a change: python -m pathorob_jax.results.json_schema > docs/results.schema.json."""
    assert json.loads((ROOT / "docs" / "results.schema.json").read_text()) == schema


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Paths of one file of every metric, over datasets and over models too."""
    root = tmp_path_factory.mktemp("results")
    model_records.write_all(root, datasets=sorted(protocols.PROTOCOLS))
    for make in (
        report_records.make_undefined,
        report_records.make_probes,
        report_records.make_retrieval,
        report_records.make_robustification,
        report_records.make_slides,
    ):
        result_files.write_result(str(root), make())
    cells = np.repeat(np.arange(4), 10)
    found = pr.feature_space(
        np.random.default_rng(0).normal(size=(40, 4)),
        biology=cells // 2,
        center=cells % 2,
        slide=np.arange(40) // 5,
    )
    result_files.write_result(str(root), found)
    for path in root.glob("one/*/*.json"):
        record = result_files.read_result(str(path))
        record.provenance.setdefault("store", {})["identity"] = {"encoder": "one"}
        result_files.write_result(str(root), record)
    write_summaries.write_summaries(str(root), "one")
    analyse_models.write_models(str(root))
    return sorted(root.rglob("*.json"))


@pytest.mark.slow
def test_every_file_fits(written, validator):
    seen = set()
    for path in written:
        value = json.loads(path.read_text())
        validator.validate(value)
        seen.add(value["metric"])
    assert seen == set(result_files.record_classes())


@pytest.mark.slow
def test_what_does_not_fit_is_refused(written, validator):
    """A key that is missing or foreign, text for a number, an interval of three ends."""
    path = next(p for p in written if p.match("one/tcga/margins.json"))
    right = json.loads(path.read_text())
    validator.validate(right)
    changes = (
        lambda v: v.pop("croma"),
        lambda v: v.update(croma="0.5"),
        lambda v: v.update(croma_ci95=[0.1, 0.2, 0.3]),
        lambda v: v.update(other=1),
        lambda v: v.update(schema_version=1),
        lambda v: v.update(metric="margin"),
        lambda v: v.pop("metric"),
    )
    for change in changes:
        wrong = copy.deepcopy(right)
        change(wrong)
        assert not validator.is_valid(wrong)


@dataclasses.dataclass(frozen=True, repr=False)
class OwnResult(Record):
    """A record of someone's own.

    With more to say of it.
    """

    metric: ClassVar[str] = "own"
    headline: ClassVar[str] = "share"
    shapes: ClassVar[dict[str, str]] = {"pairs": "splits 2"}

    share: float
    side: Literal["left", "right"]
    span: tuple[int, str]
    pairs: list[list[float]]
    either: int | str
    rest: Any


def test_a_record_of_ones_own_is_described_by_its_types():
    found = json_schema.describe_record(OwnResult, {})
    assert found["description"] == "A record of someone's own."
    assert found["properties"] == {
        "share": {"type": ["number", "null"]},
        "side": {"enum": ["left", "right"]},
        "span": {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "items": False,
            "minItems": 2,
        },
        "pairs": {
            "type": "array",
            "items": {
                "type": "array",
                "items": {"type": ["number", "null"]},
                "minItems": 2,
                "maxItems": 2,
            },
        },
        "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "rest": {},
    }
    validator = jsonschema.Draft202012Validator(found)
    right = {"share": None, "side": "left", "span": [1, "a"], "pairs": [[1, 2]], "either": "b"}
    assert validator.is_valid(right | {"rest": {}})
    for wrong in ({"side": "up"}, {"span": [1, "a", 2]}, {"span": [1]}, {"pairs": [[1]]}):
        assert not validator.is_valid(right | {"rest": {}} | wrong)


def test_a_type_without_a_form_in_json_is_refused():
    kind = dataclasses.make_dataclass("Odd", [("place", complex)])
    with pytest.raises(TypeError, match="complex.* has no form in JSON"):
        json_schema.describe_record(kind, {})
