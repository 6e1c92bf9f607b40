"""The form of ``leaderboard.json`` as JSON Schema (draft 2020-12), made from the board's own types.

``python -m pathorob_jax.report.leaderboard.json_schema`` prints it;
``docs/leaderboard.schema.json`` is that of this version.
"""

import json
import sys
from typing import Any

from pathorob_jax.report.leaderboard.entries import EXPOSURE, SCHEMA_VERSION, Board, Entry
from pathorob_jax.results.json_schema import DIALECT, describe_record

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_VALUE = {"type": ["number", "null"]}
_DAY = {"type": "string", "pattern": r"^[0-9]{4}(-[0-9]{2}){0,2}$"}
# Mappings that the board keeps as plain data.
_PLAIN: dict[str, dict[str, Any]] = {
    "Fact": {"value": {"type": ["string", "integer", "boolean"]}, "source": _TEXT},
    "Published": {
        **dict.fromkeys(("model", "number", "dataset"), _TEXT),
        "value": _NUMBER,
        "ci95": {
            "anyOf": [
                {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2},
                {"type": "null"},
            ]
        },
        **dict.fromkeys(("board", "source"), _TEXT),
        "date": _DAY,
        "protocol": _TEXT,
        "k": {"type": ["integer", "null"]},
        "use": {"enum": ["pathorob", "authors", "stated", "unknown"]},
        **dict.fromkeys(("pooling", "precision"), _TEXT),
    },
    "Change": {
        "date": _DAY,
        **dict.fromkeys(("model", "number", "dataset"), _TEXT),
        **dict.fromkeys(("old", "new"), _VALUE),
    },
}


def make_schema() -> dict[str, Any]:
    """JSON Schema of the file that ``write_leaderboard`` writes."""
    parts: dict[str, Any] = {name: _whole(parts) for name, parts in _PLAIN.items()}
    board = describe_record(Board, parts)
    board["properties"] |= {
        "schema_version": {"const": SCHEMA_VERSION},
        "changes": {"type": "array", "items": {"$ref": "#/$defs/Change"}},
    }
    parts[Entry.__name__]["properties"] |= {
        "facts": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Fact"}},
        "exposure": _whole(dict.fromkeys(EXPOSURE, {"type": ["boolean", "null"]})),
        "published": {"type": "array", "items": {"$ref": "#/$defs/Published"}},
    }
    return {
        "$schema": DIALECT,
        "title": "Leaderboard of pathorob_jax",
        **board,
        "$defs": dict(sorted(parts.items())),
    }


def _whole(properties: dict[str, Any]) -> dict[str, Any]:
    """An object that has just these keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(make_schema(), indent=1) + "\n")
