"""Class labels of the Hugging Face ``datasets`` library: integers in the file, names in its schema.

The library writes a ``ClassLabel`` column as integers and keeps the names in the metadata of the
schema, key ``huggingface``: ``{"info": {"features": {column: {"_type": "ClassLabel", "names":
[...]}}}}``. The integer -1 stands for a missing label.
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pathorob_jax.core.checks import InputError

MISSING_LABEL = -1


def class_label_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the integers of each ``ClassLabel`` column, by column; empty if there are none."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    # Metadata of another writer or version names nothing.
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def decode_class_labels(table: pa.Table) -> pa.Table:
    """The table with names in place of the integers of its ``ClassLabel`` columns.

    Args:
        table: any table. Columns that are no ``ClassLabel``, or that hold no integers, stay.

    Returns:
        The table without its metadata for ``datasets``; -1 becomes null.

    Raises:
        InputError: an integer has no name.
    """
    names_of = class_label_names(table.schema)
    for column, names in names_of.items():
        at = table.schema.get_field_index(column)
        if at < 0 or not pa.types.is_integer(table.schema.field(at).type):
            continue
        ids = table.column(at).cast(pa.int64())
        ids = pc.if_else(pc.equal(ids, MISSING_LABEL), pa.scalar(None, pa.int64()), ids)
        unknown = pc.filter(ids, pc.or_(pc.less(ids, 0), pc.greater_equal(ids, len(names))))
        if len(unknown):
            raise InputError(
                f"column {column!r}: expected labels 0 ... {len(names) - 1} (its ClassLabel has "
                f"the names {names}) or -1 for none, found {unknown[0].as_py()}. Write the column "
                "as text."
            )
        table = table.set_column(at, column, pc.take(pa.array(names, pa.string()), ids))
    return table.replace_schema_metadata(None) if names_of else table
