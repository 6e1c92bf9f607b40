"""Class labels of the ``datasets`` library become names."""

import json

import pyarrow as pa
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.data.class_labels import decode_class_labels


def _table(features, **columns):
    table = pa.table(columns)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return table.replace_schema_metadata(metadata)


def _label(*names):
    return {"names": list(names), "_type": "ClassLabel"}


@pytest.mark.parametrize("kind", [pa.int64(), pa.int8(), pa.uint16()])
def test_integers_become_names(kind):
    table = _table(
        {"label": _label("normal", "tumor"), "n": {"dtype": "int64", "_type": "Value"}},
        label=pa.array([1, 0, None, 1], kind),
        n=[0, 1, 0, 1],
    )
    decoded = decode_class_labels(table)
    assert decoded.column("label").to_pylist() == ["tumor", "normal", None, "tumor"]
    assert decoded.column("n").to_pylist() == [0, 1, 0, 1]
    assert decode_class_labels(decoded).equals(decoded)


def test_minus_one_is_missing():
    table = _table({"label": _label("a", "b")}, label=[-1, 1])
    assert decode_class_labels(table).column("label").to_pylist() == [None, "b"]


@pytest.mark.parametrize("value", [2, -2])
def test_integers_without_a_name_are_refused(value):
    with pytest.raises(InputError, match=rf"'label'.*0 \.\.\. 1.*found {value}\."):
        decode_class_labels(_table({"label": _label("a", "b")}, label=[0, value]))


def test_columns_that_hold_names_already_stay():
    table = _table({"label": _label("a", "b"), "gone": _label("c")}, label=["x", "y"])
    assert decode_class_labels(table).column("label").to_pylist() == ["x", "y"]


@pytest.mark.parametrize(
    "metadata",
    [None, b"", b"{", b"[]", b'{"info": null}', b'{"info": {"features": []}}', b"\xff"],
)
def test_other_metadata_names_nothing(metadata):
    table = pa.table({"label": [0, 1]})
    table = table.replace_schema_metadata(metadata and {b"huggingface": metadata})
    assert decode_class_labels(table).column("label").to_pylist() == [0, 1]
