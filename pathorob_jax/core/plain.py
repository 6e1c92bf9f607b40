"""Dataclasses <-> plain values, as JSON and YAML hold them.

``as_plain`` turns a record into mappings, lists, text and Python's own numbers; ``from_plain``
builds the record again, led by the types of its fields.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union

import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError

# Metadata of a field that is left out of the plain value while it is empty.
OMIT_EMPTY = {"omit_empty": True}
# Metadata of a nested record whose numbers are not those of the record that holds it.
APART = {"apart": True}


def as_plain(value: Any) -> Any:
    """A value as JSON holds it.

    Args:
        value: dataclasses, mappings, lists, tuples, arrays and scalars, nested in any way.

    Returns:
        Mappings with text as keys, lists, and Python's own scalars; NaN and infinities are None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {f: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {
            f.name: as_plain(item)
            for f, item in items.items()
            if item or not f.metadata.get("omit_empty")
        }
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        if _are_floats(value):
            return [item if math.isfinite(item) else None for item in value]
        return [as_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def find_part(value: Any, *names: str) -> Mapping[str, Any]:
    """The mapping inside nested mappings; empty where another value or nothing is."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def from_plain(kind: Any, value: Any, *, where: str, stored: bool = False, mend: str = "") -> Any:
    """A plain value as an instance of ``kind``.

    Args:
        kind: a dataclass, or any type that its fields may have: ``list[...]``, ``dict[str, ...]``,
            ``tuple[...]``, ``Literal``, ``... | None``, ``Any``, or a class.
        value: plain. A dataclass inside that is made already stays as it is.
        where: the value's place for messages; places inside it are appended, as in
            ``where.field[0]``.
        stored: the value was written by ``as_plain``, perhaps by an older version. Then None is NaN
            where a float is expected, integers serve as floats and stay integers, every field must
            be there, and keys that are no field are passed over. Otherwise a person wrote it:
            fields may take their defaults, unknown keys are refused, and integers and text such as
            1e-6 (which YAML 1.1 takes for text) become floats.
        mend: what to do about missing keys, for the message.

    Raises:
        InputError: a key is missing or unknown, or a value does not fit its type.
    """
    if kind is Any or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return value
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    is_record = dataclasses.is_dataclass(kind)

    def inner(kind: Any, value: Any, place: str) -> Any:
        return from_plain(kind, value, where=f"{where}{place}", stored=stored, mend=mend)

    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return inner(next(arg for arg in args if arg is not type(None)), value, "")
    if origin is Literal:
        checks.check_known(str(value), map(str, args), what=where)
        return value
    if is_record and isinstance(value, Mapping):
        hints = _field_types(kind, value, where, stored=stored, mend=mend)
        return kind(**{name: inner(hint, value[name], f".{name}") for name, hint in hints.items()})
    if origin is dict and isinstance(value, Mapping):
        return {key: inner(args[1], item, f".{key}") for key, item in value.items()}
    if origin is list and isinstance(value, list):
        if args[0] is float and _are_floats(value):
            return [*value]
        return [inner(args[0], item, f"[{i}]") for i, item in enumerate(value)]
    if origin is tuple and isinstance(value, list | tuple):
        kinds = _item_types(args, value, where)
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(inner(kind, item, f"[{i}]") for i, (kind, item) in pairs)
    if stored and kind is float and not isinstance(value, float):
        if value is None:
            return math.nan
        if isinstance(value, str):
            raise InputError(f"{where}: expected a number, found {value!r:.80}.")
        kind = int
    return _as_scalar(kind, origin, value, where)


def _are_floats(values: Any) -> bool:
    """Whether all are Python's floats, as in most long lists: these need no look at each."""
    return set(map(type, values)) == {float}


def _field_types(
    kind: Any, value: Mapping[str, Any], where: str, *, stored: bool, mend: str
) -> dict[str, Any]:
    """Types of the fields to build from ``value``, by name."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if not stored:
        for name in value:
            checks.check_known(name, fields, what=f"{where}: field")
    nothing = dataclasses.MISSING
    missing = [
        name
        for name, field in fields.items()
        if name not in value
        and not field.metadata.get("omit_empty")
        and (stored or (field.default is nothing and field.default_factory is nothing))
    ]
    if missing:
        raise InputError(f"{where}: lacks the keys {missing}.{mend and ' ' + mend}")
    hints = _find_hints(kind)
    return {name: hints[name] for name in fields if name in value}


@functools.cache
def _find_hints(kind: Any) -> dict[str, Any]:
    """Types of the fields of a dataclass, which are many times the same."""
    return typing.get_type_hints(kind)


def _item_types(args: tuple[Any, ...], value: Sequence[Any], where: str) -> Sequence[Any]:
    if args[-1] is Ellipsis:
        return args[:1] * len(value)
    if len(args) != len(value):
        raise InputError(f"{where}: expected {len(args)} values, found {len(value)}.")
    return args


def _as_scalar(kind: Any, origin: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, origin or kind) and (kind is bool or not isinstance(value, bool)):
        if kind is int and abs(value) >= 2**63:
            raise InputError(f"{where}: expected 64 bits, found an integer beyond them.")
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise InputError(f"{where}: expected {expected}, found {value!r:.80}.")
