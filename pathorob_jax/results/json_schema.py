"""The form of result files as JSON Schema (draft 2020-12), made from the records' own types.

``python -m pathorob_jax.results.json_schema`` prints it; ``docs/results.schema.json`` is that of
this version. Numbers that may be undefined may be null. What a schema can't say is checked by
``result_files``: digests, and that lists of one length have it.
"""

import dataclasses
import json
import sys
import types
import typing
from typing import Any, Literal, Union

from pathorob_jax.core.cost import MACHINE, SEARCH
from pathorob_jax.results import result_files
from pathorob_jax.results.costs import COST, EXTRACTION
from pathorob_jax.results.record import Record

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_COUNT = {"type": "integer", "minimum": 0}
# What ``core.cost.measured`` says.
_COST = {
    "description": "What it cost: time by the clock, peak memory, and where it was computed.",
    "type": "object",
    "properties": {
        "seconds": {"type": "number", "minimum": 0},
        "is_whole": {"type": "boolean"},
        "peak_bytes": _COUNT,
        "device_peak_bytes": {"anyOf": [_COUNT, {"type": "null"}]},
        "processor": {"type": "string"},
        "cores": _COUNT,
        "device": {"type": "string"},
        "devices": _COUNT,
        "processes": _COUNT,
        SEARCH: {"enum": ["memory", "ring", "stream"]},
        EXTRACTION: {
            "description": "Of the passes over tiles that made the store; encoders share a pass.",
            "type": "array",
            "items": {"$ref": f"#/$defs/{COST}"},
        },
        "tiles": _COUNT,
        "start_s": {"type": "number", "minimum": 0},
        "encoders": _COUNT,
    },
    "required": ["seconds", "is_whole", "peak_bytes", *MACHINE],
}
_SCALARS = {str: {"type": "string"}, bool: {"type": "boolean"}, int: {"type": "integer"}}


def make_schema() -> dict[str, Any]:
    """JSON Schema of every file that ``result_files.write_result`` writes."""
    parts: dict[str, Any] = {}
    known = result_files.record_classes()
    for metric, kind in known.items():
        schema = describe_record(kind, parts)
        fixed = {
            "schema_version": {"const": result_files.SCHEMA_VERSION},
            "metric": {"const": metric},
        }
        provenance = {
            "type": "object",
            "required": [result_files.DIGEST],
            "properties": {
                result_files.DIGEST: {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                COST: {"$ref": f"#/$defs/{COST}"},
            },
        }
        schema["properties"] = fixed | schema["properties"] | {result_files.PROVENANCE: provenance}
        schema["required"] = [
            *fixed,
            *dict.fromkeys([*schema["required"], result_files.PROVENANCE]),
        ]
        parts[metric] = schema
    parts[COST] = _COST
    return {
        "$schema": DIALECT,
        "title": "Results of pathorob_jax",
        "description": (
            "One file: a metric of a model on a dataset, over datasets, or over models. null is an "
            "undefined number. Two equal runs differ in provenance alone."
        ),
        "type": "object",
        "required": ["schema_version", "metric"],
        "properties": {"metric": {"enum": list(known)}},
        "allOf": [
            {
                "if": {"properties": {"metric": {"const": metric}}},
                "then": {"$ref": f"#/$defs/{metric}"},
            }
            for metric in known
        ],
        "$defs": dict(sorted(parts.items())),
    }


def describe_record(kind: type, parts: dict[str, Any]) -> dict[str, Any]:
    """A dataclass; those that it holds are added to ``parts``, by their names."""
    hints, shapes = typing.get_type_hints(kind), getattr(kind, "shapes", {})
    properties, required = {}, []
    for field in dataclasses.fields(kind):
        words = "2" if field.name.endswith("ci95") else shapes.get(field.name, "")
        properties[field.name] = _describe(hints[field.name], words.split(), parts)
        if not field.metadata.get("omit_empty"):
            required.append(field.name)
    text = (kind.__doc__ or "").strip().split("\n\n")[0]
    return {
        "description": " ".join(text.replace("``", "`").split()),
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _describe(kind: Any, words: list[str], parts: dict[str, Any]) -> dict[str, Any]:
    """A type; ``words`` are the lengths of its lists, a level each."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return {}
    if kind is float:
        return {"type": ["number", "null"]}
    if kind in _SCALARS:
        return dict(_SCALARS[kind])
    if origin in (Union, types.UnionType):
        kinds = [_describe(arg, words, parts) for arg in args if arg is not type(None)]
        return {"anyOf": [*kinds, {"type": "null"}]} if type(None) in args else {"anyOf": kinds}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is list:
        length, *inner = words or [""]
        size = {"minItems": int(length), "maxItems": int(length)} if length.isdigit() else {}
        return {"type": "array", "items": _describe(args[0], inner, parts), **size}
    if origin is tuple:
        items = [_describe(arg, [], parts) for arg in args]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _describe(args[1], words, parts)}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        name = kind.metric if issubclass(kind, Record) else kind.__name__
        if name not in parts:
            parts[name] = {}  # a record may hold records of its own class
            parts[name] = describe_record(kind, parts)
        return {"$ref": f"#/$defs/{name}"}
    raise TypeError(f"{kind} has no form in JSON")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(make_schema(), indent=1) + "\n")
