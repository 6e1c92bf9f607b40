"""Embedding maps on disk: Parquet tables of coordinates and labels."""

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE, Manifest

COORDINATES = ("pca_1", "pca_2", "tsne_1", "tsne_2")


def write_map(path: str, title: str, rows: Manifest, coordinates: np.ndarray) -> None:
    """Write the map of some rows, float64[N, 4] in the order of ``COORDINATES``, atomically."""
    columns = {name: rows.table.column(name) for name in (SLIDE, PATCH, CLASS, CENTER)}
    columns |= {name: pa.array(coordinates[:, i]) for i, name in enumerate(COORDINATES)}
    table = pa.table(columns).replace_schema_metadata({"title": title})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    files.write_bytes(path, sink.getvalue())


def read_map(path: str) -> tuple[str, pa.Table]:
    """Title and table of a map.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is not a map.
    """
    data = files.read_bytes(path)
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: cannot be read as a map ({error}); make it again.") from error
    _check_columns(path, table.column_names)
    metadata = table.schema.metadata or {}
    return metadata.get(b"title", b"").decode(), table


def _check_columns(path: str, columns: Sequence[str]) -> None:
    missing = [c for c in (SLIDE, PATCH, CLASS, CENTER, *COORDINATES) if c not in columns]
    if missing:
        raise InputError(f"{path}: expected a map, lacks the columns {missing}; make it again.")
