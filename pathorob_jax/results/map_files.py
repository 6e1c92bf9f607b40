"""Embedding maps on disk: Parquet tables of coordinates and labels, with a digest."""

import io
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathorob_jax.core import digests, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE, Manifest

SCHEMA_VERSION = 2
COORDINATES = ("pca_1", "pca_2", "tsne_1", "tsne_2")
LABELS = (SLIDE, PATCH, CLASS, CENTER)
# Rows of the map that are nearest to each row in the embedding, outside its slide, the nearest
# first: of its class at other centres (SO), and of other classes at its centre (OS). -1: no more.
N_NEAREST = 3
NEAREST = tuple(f"{kind}_{i + 1}" for kind in ("so", "os") for i in range(N_NEAREST))
# Name of the map of all rows.
WHOLE = "dataset"


class Map(NamedTuple):
    """A map as read.

    Attributes:
        title: of which rows it is.
        table: text columns ``LABELS``, float64 ``COORDINATES`` and, in maps of this
            version, int32 ``NEAREST``.
        is_checked: False if the file has no digest, as those of schema 1.
    """

    title: str
    table: pa.Table
    is_checked: bool


def write_map(
    path: str,
    title: str,
    rows: Manifest,
    coordinates: np.ndarray,
    nearest: np.ndarray | None = None,
) -> None:
    """Write the map of some rows atomically.

    Args:
        path: file to write.
        title: of which rows it is.
        rows: slide, patch, class and centre of each.
        coordinates: float64[N, 4] in the order of ``COORDINATES``.
        nearest: int32[N, 6] in the order of ``NEAREST``; None: unknown.
    """
    columns = {name: rows.table.column(name) for name in LABELS}
    columns |= {name: pa.array(coordinates[:, i]) for i, name in enumerate(COORDINATES)}
    if nearest is not None:
        columns |= {n: pa.array(nearest[:, i], pa.int32()) for i, n in enumerate(NEAREST)}
    table = pa.table(columns)
    facts = {"title": title, "schema_version": str(SCHEMA_VERSION)}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(facts | {"digest": _digest(title, table)}), sink)
    files.write_bytes(path, sink.getvalue())


def _digest(title: str, table: pa.Table) -> str:
    known = [name for name in NEAREST if name in table.column_names]
    columns = {name: table.column(name).to_pylist() for name in (*LABELS, *COORDINATES, *known)}
    return digests.digest_json({"title": title, "columns": columns})


def read_map(path: str) -> Map:
    """Read a map back.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is not a map, or not as it was written.
    """
    data = files.read_bytes(path)
    try:
        table = pq.read_table(io.BytesIO(data))
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    except files.UNREADABLE as error:
        raise InputError(
            f"{path}: cannot be read as a map ({files.describe(error)}); make it again."
        ) from error
    _check_columns(path, table)
    title, digest = metadata.get("title", ""), metadata.get("digest")
    is_checked = "schema_version" in metadata
    if is_checked and (
        metadata["schema_version"] != str(SCHEMA_VERSION) or digest != _digest(title, table)
    ):
        raise InputError(f"{path}: not as it was written; make it again.")
    return Map(title, table.replace_schema_metadata(None), is_checked)


def _check_columns(path: str, table: pa.Table) -> None:
    types = dict.fromkeys(LABELS, pa.string()) | dict.fromkeys(COORDINATES, pa.float64())
    if set(NEAREST) & set(table.column_names):
        types |= dict.fromkeys(NEAREST, pa.int32())
    found = {name: table.schema.field(name).type for name in table.column_names}
    wrong = [name for name, kind in types.items() if found.get(name) != kind]
    if wrong or any(table.column(name).null_count for name in types):
        raise InputError(
            f"{path}: expected a map, lacks the columns {wrong or list(types)} or values of them; "
            "make it again."
        )
    if not all(np.isfinite(table.column(name).to_numpy()).all() for name in COORDINATES):
        raise InputError(f"{path}: expected a map, found coordinates that are not finite.")
    for name in NEAREST if NEAREST[0] in types else ():
        rows = table.column(name).to_numpy()
        if ((rows < -1) | (rows >= len(table))).any():
            raise InputError(f"{path}: expected a map, found nearest rows that it does not have.")
