"""Records become plain values and come back; what does not fit is refused by its place."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.plain import as_plain, from_plain


@dataclass(frozen=True)
class Inner:
    share: float
    counts: list[int]


@dataclass(frozen=True)
class Outer:
    kind: ClassVar[str] = "outer"
    name: str
    value: float
    interval: list[float] | None
    table: list[list[float]]
    parts: list[Inner]
    by_name: dict[str, Inner]
    maybe: list[float | None]
    size: tuple[int, int] = (1, 2)
    names: tuple[str, ...] = ()
    mode: Literal["a", "b"] = "a"
    inner: Inner | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


OUTER = Outer(
    name="x",
    value=math.nan,
    interval=[0.5, math.nan],
    table=[[1.0, math.nan], []],
    parts=[Inner(0.25, [1, 2])],
    by_name={"y": Inner(math.nan, [])},
    maybe=[None, 0.5],
    inner=Inner(1.0, [3]),
    extra={"k": [1, None]},
)


def test_records_are_plain_json_and_come_back():
    plain = as_plain(OUTER)
    assert plain == json.loads(json.dumps(plain, allow_nan=False))
    assert plain["value"] is None
    assert plain["table"] == [[1.0, None], []]
    back = from_plain(Outer, plain, where="file", stored=True)
    assert type(back.parts[0]) is Inner
    assert back.size == (1, 2)
    assert math.isnan(back.by_name["y"].share)
    np.testing.assert_equal(dataclasses.asdict(back), dataclasses.asdict(OUTER))


def test_numbers_of_arrays_become_pythons_own():
    value = {1: np.float32(0.5), "a": (np.int64(3), np.array([[1.0, np.inf]])), "b": np.True_}
    plain = as_plain(value)
    assert plain == {"1": 0.5, "a": [3, [[1.0, None]]], "b": True}
    assert [type(v) for v in (plain["1"], plain["a"][0], plain["b"])] == [float, int, bool]


def test_stored_values_are_kept_as_they_are():
    plain = as_plain(OUTER) | {"value": 1, "added_later": 3}
    back = from_plain(Outer, plain, where="file", stored=True)
    assert type(back.value) is int
    assert from_plain(Outer, plain | {"interval": None}, where="f", stored=True).interval is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": None}, r"^file\.value: expected float, found None"),
        ({"valeu": 1.0}, r"^file: field: unknown name 'valeu'. Did you mean 'value'"),
        ({"parts": [{"share": 1.0}]}, r"^file\.parts\[0\]: lacks the keys \['counts'\]\. Add it"),
        ({"parts": 3}, r"^file\.parts: expected list, found 3"),
        ({"by_name": {"y": 3}}, r"^file\.by_name\.y: expected Inner, found 3"),
        ({"size": [1]}, r"^file\.size: expected 2 values, found 1"),
        ({"size": [1, "b"]}, r"^file\.size\[1\]: expected int, found 'b'"),
        ({"mode": "c"}, r"^file\.mode: unknown name 'c'"),
        ({"name": True}, r"^file\.name: expected str, found True"),
    ],
)
def test_what_a_person_wrote_must_fit(changes, message):
    plain = as_plain(dataclasses.replace(OUTER, value=1.0, interval=None, table=[], by_name={}))
    assert from_plain(Outer, plain | {"value": "1e-6"}, where="file").value == 1e-6
    with pytest.raises(InputError, match=message):
        from_plain(Outer, plain | changes, where="file", mend="Add it.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": "1.5"}, r"^file\.value: expected a number, found '1\.5'"),
        ({"value": True}, r"^file\.value: expected int, found True"),
        ({"value": [1.0]}, r"^file\.value: expected int, found \[1\.0\]"),
        ({"value": 2**63}, r"^file\.value: expected 64 bits"),
        ({"name": 3}, r"^file\.name: expected str, found 3"),
        ({"name": None}, r"^file\.name: expected str, found None"),
        ({"interval": {}}, r"^file\.interval: expected list, found {}"),
        ({"interval": ["a"]}, r"^file\.interval\[0\]: expected a number, found 'a'"),
        ({"table": [0.5]}, r"^file\.table\[0\]: expected list, found 0\.5"),
        ({"parts": [None]}, r"^file\.parts\[0\]: expected Inner, found None"),
        ({"parts": [{"share": 1.0, "counts": [1.5]}]}, r"counts\[0\]: expected int, found 1\.5"),
        ({"by_name": []}, r"^file\.by_name: expected dict, found \[\]"),
        ({"mode": 3}, r"^file\.mode: unknown name '3'"),
        ({"inner": "x" * 999}, r"^file\.inner: expected Inner, found 'x{79}\.$"),
        ({"extra": 1}, r"^file\.extra: expected Mapping, found 1"),
    ],
)
def test_stored_values_must_be_of_their_types(changes, message):
    with pytest.raises(InputError, match=message):
        from_plain(Outer, as_plain(OUTER) | changes, where="file", stored=True)


@pytest.mark.slow
def test_defaults_stand_in_unless_stored():
    plain = {k: v for k, v in as_plain(OUTER).items() if k not in ("names", "mode")}
    plain |= {"value": 0.0, "interval": None, "table": [], "by_name": {}}
    assert from_plain(Outer, plain, where="file").mode == "a"
    with pytest.raises(InputError, match=r"file: lacks the keys \['names', 'mode'\]\.$"):
        from_plain(Outer, plain, where="file", stored=True)
