"""What a store keeps of the bytes of its tiles, so that tiles that changed later are noticed.

``<store>/tiles/<chunk>.json`` holds 64 bits of the sha256 of each tile of a chunk, taken from the
bytes that were decoded; ``<store>/tiles/stamp.json`` holds the stamp of the tileset: names, sizes
and times of change of all its files. A later run compares stamps, which needs no reading. Only
where they differ (a copy of the tileset, for example) are the tiles of finished chunks read and
compared.

Stores of earlier versions have no such record: their tiles count as unchanged.
"""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import logging

from pathorob_jax.core import files, hosts, sealed_files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.decode import TileError
from pathorob_jax.data.manifest import Manifest
from pathorob_jax.data.tile_batches import digest_tile
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.embeddings.store_files import TILES
from pathorob_jax.embeddings.store_writer import StoreWriter
from pathorob_jax.embeddings.tile_transform import STAIN, count_left, count_outcomes

STAMP = "stamp.json"
SCHEMA_VERSION = 1
UNCHANGED, OUTCOMES = "n_unchanged", "outcomes"
# In a record: a tile that could not be decoded.
NO_OUTCOME = -1


def write_record(
    writer: StoreWriter, chunk: int, digests: np.ndarray, *, outcomes: np.ndarray | None = None
) -> None:
    """Keep the digests of the tiles of a chunk, uint64[n]. Comes before its rows are written.

    Args:
        writer: the store.
        chunk: number of the chunk.
        digests: of the tiles, as they are in the tileset.
        outcomes: int[n] what a stain method made of the tiles; None: there was none.
    """
    plain = {"schema_version": SCHEMA_VERSION, "digests": [f"{d:016x}" for d in digests.tolist()]}
    found = {} if outcomes is None else {OUTCOMES: outcomes.tolist()}
    sealed_files.write_json(_path_of(writer, chunk), plain | found)


def add_outcomes(writer: StoreWriter, rows: Manifest) -> dict[str, Any]:
    """Settings of a store whose chunks are complete: with what its stain method made of tiles.

    Args:
        writer: the store.
        rows: manifest of its tiles.
    """
    settings = dict(writer.info["settings"])
    if STAIN in settings:
        n_chunks = -(-int(writer.info["n_rows"]) // writer.chunk_rows)
        records = [
            sealed_files.read_json(_path_of(writer, chunk), schema_version=SCHEMA_VERSION)
            for chunk in range(n_chunks)
        ]
        outcomes = np.array([outcome for record in records for outcome in record[OUTCOMES]])
        counts = count_outcomes(outcomes, rows)
        settings[STAIN] = settings[STAIN] | {UNCHANGED: count_left(counts), OUTCOMES: counts}
    return settings


def make_stamp(tileset: Tileset) -> dict[str, Any]:
    """What a store keeps of the names, sizes and times of change of a tileset's files."""
    return {"schema_version": SCHEMA_VERSION, "stamp": tileset.stamp}


class TileCheck:
    """Compares a tileset with what stores remember of it. A tile is read once for all stores."""

    def __init__(self, tileset: Tileset):
        self._tileset = tileset
        self._digests: dict[int, int] = {}

    def find_changed(self, writer: StoreWriter) -> list[int]:
        """Rows of finished chunks whose tiles have changed since they were embedded, ascending.

        If there are none, the store takes the stamp of the tileset.
        """
        stamp_path = files.join(writer.place, TILES, STAMP)
        stamp = make_stamp(self._tileset)
        if files.exists(stamp_path) and files.read_json(stamp_path) == stamp:
            return []
        n_chunks = -(-int(writer.info["n_rows"]) // writer.chunk_rows)
        done = sorted({*range(n_chunks)} - {*writer.missing_chunks})
        recorded = [chunk for chunk in done if files.exists(_path_of(writer, chunk))]
        if len(recorded) < len(done):
            logging.info(
                "%s: made by a version that kept no record of the images; they count as unchanged",
                writer.path,
            )
        elif done:
            logging.info("%s: files of the tileset have new dates; comparing", writer.path)
        for chunk in recorded:
            changed = self._compare(writer, chunk)
            if changed:
                return changed
        # A complete store that may only be read is compared again next time.
        with contextlib.suppress(OSError, InputError) if done else contextlib.nullcontext():
            if recorded or not done:
                files.write_json(stamp_path, stamp)
        return []

    def _compare(self, writer: StoreWriter, chunk: int) -> list[int]:
        path = _path_of(writer, chunk)
        rows = range(*writer.chunk_slice(chunk).indices(int(writer.info["n_rows"])))
        try:
            record = sealed_files.read_json(path, schema_version=SCHEMA_VERSION)
        except InputError as error:
            raise InputError(
                f"{error} It is the record of {len(rows)} tiles; remove it, and they count as "
                "unchanged."
            ) from error
        kept = [int(text, 16) for text in record["digests"]]
        if len(kept) != len(rows):
            raise InputError(
                f"{path}: expected {len(rows)} digests, found {len(kept)}: the record of another "
                "chunk. Remove it, and these tiles count as unchanged."
            )
        found = self._digest(rows)
        return [row for row, old, new in zip(rows, kept, found, strict=True) if old != new]

    def _digest(self, rows: Sequence[int]) -> list[int]:
        missing = [row for row in rows if row not in self._digests]
        with ThreadPoolExecutor(hosts.n_cores()) as pool:
            self._digests |= zip(missing, pool.map(self._digest_row, missing), strict=True)
        return [self._digests[row] for row in rows]

    def _digest_row(self, row: int) -> int:
        try:
            return int(digest_tile(self._tileset.reader.read(row)[0]))
        except TileError:
            return 0

    def describe(self, writer: StoreWriter, changed: Sequence[int]) -> str:
        """The message about tiles that have changed."""
        try:
            name = self._tileset.reader.read(changed[0])[1]
        except TileError as error:
            name = error.name
        return (
            f"{writer.path}: {len(changed)} or more tiles have changed since they were embedded, "
            f"the first is {name} (row {changed[0]}). Give --overwrite to embed all anew, or "
            "another --output."
        )


def _path_of(writer: StoreWriter, chunk: int) -> str:
    return files.join(writer.place, TILES, f"{chunk}.json")
