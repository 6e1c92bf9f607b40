"""Lengths of the lists in a record that was read from a file.

A class of records names the lengths of its lists in ``shapes``: one word for each level of a list.
A number is that length; any other word is the same length everywhere in the record, and that of an
integer field of the same name. Mappings are looked through. Intervals (``...ci95``) have two ends.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pathorob_jax.core.checks import InputError

SCALARS = {float, int, bool, str, type(None)}


def check_shapes(record: Any, where: str, sizes: Mapping[str, int] | None = None) -> None:
    """Raise InputError unless all lists of a record have the lengths that they must have.

    Args:
        record: the record, or a part of one.
        where: its place for messages.
        sizes: lengths that are known already, by word.
    """
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    known = dict(sizes or {}) | {n: v for n, v in values.items() if isinstance(v, int)}
    shapes = getattr(record, "shapes", {})
    for name, value in values.items():
        words = "2" if name.endswith("ci95") else shapes.get(name, "")
        _check_lists(value, words.split(), known, f"{where}.{name}")
        for place, part in _parts(value, f"{where}.{name}"):
            check_shapes(part, place, known)


def _check_lists(value: Any, words: list[str], known: dict[str, int], where: str) -> None:
    if not words or value is None:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_lists(item, words, known, f"{where}.{key}")
        return
    length, *inner = words
    expected = int(length) if length.isdigit() else known.setdefault(length, len(value))
    if len(value) != expected:
        raise InputError(f"{where}: expected {expected} values, found {len(value)}.")
    for i, item in enumerate(value if inner else ()):
        _check_lists(item, inner, known, f"{where}[{i}]")


def _parts(value: Any, where: str) -> list[tuple[str, Any]]:
    """Records inside a value, at any depth, with their places."""
    if dataclasses.is_dataclass(value):
        return [(where, value)]
    items: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        items = [(f"{where}.{key}", item) for key, item in value.items()]
    elif isinstance(value, list) and not set(map(type, value)) <= SCALARS:
        items = [(f"{where}[{i}]", item) for i, item in enumerate(value)]
    return [part for place, item in items for part in _parts(item, place)]
