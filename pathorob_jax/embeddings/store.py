"""The embedding store: one encoder's embeddings of one dataset, with their manifest.

Enters: rows of float32 embeddings, chunk by chunk, each written once. Leaves: a folder
``<root>/<model>/<dataset>/`` of ``embeddings/`` (zarr3, sharded, checksummed), ``manifest.parquet``
(row order = array order) and ``store.json``, whose ``complete: true`` is written last. Readers
refuse anything else; a writer that was killed goes on with the chunks that are missing. Patches
without an embedding (``BadRow``) are NaN in the array, listed in ``store.json``, and no part of the
manifest that readers see.
"""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow.parquet as pq
import tensorstore as ts

from pathorob_jax.core import checks, devices, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.provenance import software_versions
from pathorob_jax.data.manifest import Manifest, read_manifest
from pathorob_jax.embeddings import store_lock

SCHEMA_VERSION = 1
INFO, MANIFEST, ARRAY = "store.json", "manifest.parquet", "embeddings"
BAD_ROWS = "bad_rows"
MAX_INNER_ROWS = 64


class BadRow(NamedTuple):
    """A patch that has no embedding.

    Attributes:
        row: of the array.
        name: its image.
        reason: why.
    """

    row: int
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Store:
    """A complete store, open for reading.

    Attributes:
        path: its folder.
        info: contents of ``store.json``.
        manifest: patches that have an embedding.
        array: float32[N, D] on disk.
        rows: int64[n] row of the array of each row of the manifest; None: they are the same.
    """

    path: str
    info: dict[str, Any]
    manifest: Manifest
    array: ts.TensorStore
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def dim(self) -> int:
        """Length D of an embedding."""
        return int(self.info["dim"])

    def caching(self, limit_bytes: int) -> "Store":
        """The same store, which keeps what it has read in memory, up to a limit."""
        context = ts.Context({"cache_pool": {"total_bytes_limit": limit_bytes}})
        kept = {"recheck_cached_data": False, "recheck_cached_metadata": False}
        array = ts.open(self.array.spec().to_json() | kept, context=context).result()
        return replace(self, array=array)

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        """float32[n, D] of the given rows of the manifest (all when None), in that order.

        Laid out so that CPU devices take it as it is (``sharding.empty_aligned``).
        """
        if self.rows is not None:
            rows = self.rows if rows is None else self.rows[np.asarray(rows)]
        wanted = self.array if rows is None else self.array[np.asarray(rows)]
        out = devices.empty_aligned(wanted.shape)
        try:
            ts.array(out).write(wanted).result()
            return out
        except ValueError as error:
            raise InputError(
                f"{self.path}: the embeddings cannot be read back ({_first_line(error)}). The "
                "store is damaged; remove the folder and extract or import it again."
            ) from error


class StoreWriter:
    """Writes the chunks of one store, alone. Made by ``create_store``; a context that ends it."""

    def __init__(
        self,
        path: str,
        info: dict[str, Any],
        array: ts.TensorStore,
        missing: list[int],
        lock: store_lock.Lock | None,
    ):
        self.path, self.info, self._array, self._lock = path, info, array, lock
        self.missing_chunks = missing
        """Chunks not yet on disk, ascending."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others write the store; further calls do nothing."""
        if self._lock is not None:
            self._lock.release()

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk; the last one may be shorter."""
        return int(self.info["chunk_rows"])

    def chunk_slice(self, chunk: int) -> slice:
        """Rows of the array that a chunk holds."""
        start = chunk * self.chunk_rows
        return slice(start, min(start + self.chunk_rows, int(self.info["n_rows"])))

    def write(
        self, chunk: int, embeddings: np.ndarray, *, bad: Sequence[BadRow] = ()
    ) -> ts.WriteFutures:
        """Begin to write a chunk; ``.result()`` returns once it is durable.

        Args:
            chunk: which.
            embeddings: float[n, D].
            bad: rows of the chunk that have no embedding, whatever ``embeddings`` holds there.

        Raises:
            InputError: shape differs, or another row is NaN, infinite or all zero.
        """
        rows = self.chunk_slice(chunk)
        expected = (rows.stop - rows.start, int(self.info["dim"]))
        checks.check_shape(embeddings.shape, expected, name="embeddings", why="of the chunk")
        # Cast before the check: a float64 beyond float32's range becomes infinite or zero.
        with np.errstate(over="ignore"):
            embeddings = np.asarray(embeddings, np.float32)
        absent = np.asarray([b.row - rows.start for b in bad], np.int64)
        unusable, word = checks.find_bad_rows(np.delete(embeddings, absent, axis=0))
        if unusable.size:
            present = np.delete(np.arange(rows.start, rows.stop), absent)
            row = int(present[unusable[0]])
            key = read_manifest(files.join(self.path, MANIFEST)).keys[row]
            raise InputError(
                f"{self.path}: the embedding of patch {key} (row {row}) holds {word}; such a row "
                "has no direction. Mend its source, or leave the patch out of the manifest."
            )
        if bad:
            embeddings = embeddings.copy()
            embeddings[absent] = np.nan
            # Before the rows: a chunk that is there has its list.
            with _writing(self.path):
                files.write_json(_bad_rows_path(self.path, chunk), [b._asdict() for b in bad])
        return self._array[rows.start : rows.stop].write(embeddings)

    def wait(self, writing: ts.WriteFutures) -> None:
        """Return once a write is durable.

        Raises:
            InputError: it failed (disk full, no permission); what was complete stays readable.
        """
        with _writing(self.path):
            writing.result()

    def commit(self) -> Store:
        """Mark the store complete, after every chunk is durable.

        Raises:
            InputError: a chunk is missing, or no patch at all has an embedding.
        """
        left = _missing_chunks(self.path, self.info)
        if left:
            raise InputError(f"{self.path}: chunks {left[:5]} are missing; it cannot be committed.")
        found: dict[str, Any] = {"complete": True}
        bad = _collect_bad_rows(self.path)
        if len(bad) == int(self.info["n_rows"]):
            raise InputError(f"{self.path}: not one patch has an embedding ({bad[0]['reason']}).")
        if bad:
            found[BAD_ROWS] = bad
        with _writing(self.path):
            files.write_json(files.join(self.path, INFO), self.info | found)
        self.close()
        return open_store(self.path)


def create_store(
    path: str,
    *,
    manifest: Manifest,
    dim: int,
    chunk_rows: int,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    lead: bool = True,
) -> StoreWriter:
    """Create a store, or go on with one of the same identity.

    The store is locked until the writer is closed or commits, or its process ends.

    Args:
        path: ``<root>/<model>/<dataset>``, local, ``gs://`` or ``s3://``.
        manifest: N rows, each patch once.
        dim: D.
        chunk_rows: rows written together. A resumed store keeps the size that it began with.
        identity: what the embeddings depend on (encoder, weights, preprocessing, pooling, types,
            source); JSON.
        settings: how they are computed, where that changes last bits only; recorded, and kept by a
            resumed store.
        overwrite: replace a store that is complete or of another identity. An unfinished one of
            the same identity is gone on with all the same.
        lead: False for further processes of the run, after the one that leads has created the
            store: they join it, and leave the lock to that one.

    Raises:
        InputError: a store of another identity is there and ``overwrite`` is not set; somebody
            else is writing it; nothing can be written there.
    """
    info: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "complete": False,
        "n_rows": len(manifest),
        "dim": dim,
        "chunk_rows": chunk_rows,
        "manifest_sha256": manifest.fingerprint(),
        # As it comes back from the file (lists, no tuples): the two are compared on resuming.
        "identity": json.loads(json.dumps(identity)),
        "settings": dict(settings or {}),
        "versions": software_versions(),
    }
    if not lead:
        return _join(path, info)
    with _writing(path):
        lock = store_lock.acquire(_lock_path(path))
    try:
        writer = _resume(path, info, lock, overwrite=overwrite)
        return writer or _begin(path, info, manifest, lock)
    except BaseException:
        lock.release()
        raise


def recorded_settings(path: str) -> dict[str, Any] | None:
    """Settings of a store, complete or not; None where there is none."""
    info_path = files.join(path, INFO)
    return files.read_json(info_path).get("settings", {}) if files.exists(info_path) else None


def _join(path: str, info: dict[str, Any]) -> StoreWriter:
    info_path = files.join(path, INFO)
    old = files.read_json(info_path) if files.exists(info_path) else None
    if old is None or _differences(old, info):
        raise InputError(
            f"{path}: process 0 has made this store, yet another process finds "
            f"{'none' if old is None else 'another'} there. All need one folder (shared disk, "
            "gs:// or s3://) and the same flags."
        )
    return StoreWriter(path, old, _open_array(path), _missing_chunks(path, old), None)


def _resume(
    path: str, info: dict[str, Any], lock: store_lock.Lock, *, overwrite: bool
) -> StoreWriter | None:
    """The writer of what is there already; None where nothing is left of it."""
    info_path = files.join(path, INFO)
    if not files.exists(info_path):
        return None
    old = files.read_json(info_path)
    differing = _differences(old, info)
    if not differing and not (overwrite and old["complete"]):
        missing = _missing_chunks(path, old)
        with _writing(path):  # lists of chunks that were never written
            for chunk in missing:
                files.remove(_bad_rows_path(path, chunk))
        return StoreWriter(path, old, _open_array(path), missing, lock)
    if differing and not overwrite:
        raise InputError(
            f"{path}: holds embeddings of another configuration ({'; '.join(differing)}). Give "
            "another --output, or --overwrite to replace them."
        )
    with _writing(path):
        _remove(path)
    return None


def _begin(
    path: str, info: dict[str, Any], manifest: Manifest, lock: store_lock.Lock
) -> StoreWriter:
    sink = io.BytesIO()
    pq.write_table(manifest.table, sink)
    with _writing(path):
        files.write_bytes(files.join(path, MANIFEST), sink.getvalue())
        array = ts.open(_array_spec(path, info), create=True, delete_existing=True).result()
        files.write_json(files.join(path, INFO), info)
    return StoreWriter(path, info, array, _missing_chunks(path, info), lock)


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turn what a disk says into a message that names the store."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be written ({_first_line(error)}). Make room or give another "
            "--output; the same command goes on where this one stopped."
        ) from error


def _lock_path(path: str) -> str:
    """Beside the store, so that replacing the store keeps the lock."""
    folder, _, name = path.rstrip("/").rpartition("/")
    return files.join(folder or ".", f".{name}.lock")


def _bad_rows_path(path: str, chunk: int) -> str:
    return files.join(path, BAD_ROWS, f"{chunk}.json")


def _collect_bad_rows(path: str) -> list[dict[str, Any]]:
    """Contents of the chunks' lists, by row."""
    folder = files.join(path, BAD_ROWS)
    if not files.exists(folder):
        return []
    lists = [
        files.read_json(files.join(folder, name)) for name in files.list_files(folder, ".json")
    ]
    return sorted((bad for one in lists for bad in one), key=lambda bad: bad["row"])


def open_store(path: str) -> Store:
    """Open a complete store.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is unfinished, of another schema, or its parts do not fit each other.
    """
    info_path = files.join(path, INFO)
    if not files.exists(info_path):
        raise FileNotFoundError(
            f"{path}: no embedding store (no {INFO}); make one with experiments.extract or "
            "experiments.import_embeddings."
        )
    info = files.read_json(info_path)
    if info.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path}: expected store schema {SCHEMA_VERSION}, found {info.get('schema_version')}."
        )
    if info.get("complete") is not True:
        left = len(_missing_chunks(path, info))
        raise InputError(
            f"{path}: the store is unfinished ({left} chunks missing); run experiments.extract or "
            "experiments.import_embeddings again with the same flags to complete it."
        )
    manifest = read_manifest(files.join(path, MANIFEST))
    if manifest.fingerprint() != info["manifest_sha256"]:
        raise InputError(f"{path}: {MANIFEST} is not the one that the embeddings were made with.")
    array = _open_array(path)
    checks.check_shape(
        array.shape, (info["n_rows"], info["dim"]), name=f"{path}/{ARRAY}", why=f"as {INFO} says"
    )
    bad = [int(b["row"]) for b in info.get(BAD_ROWS, ())]
    if not bad:
        return Store(path, info, manifest, array)
    rows = np.delete(np.arange(len(manifest)), bad)
    return Store(path, info, manifest.take(rows), array, rows)


def find_stores(path: str) -> list[str]:
    """Datasets that have a store under ``<root>/<model>``, sorted."""
    return [n for n in files.list_folders(path) if files.exists(files.join(path, n, INFO))]


def _array_spec(path: str, info: Mapping[str, Any]) -> dict[str, Any]:
    rows, dim = int(info["chunk_rows"]), int(info["dim"])
    inner = max(r for r in range(1, min(rows, MAX_INNER_ROWS) + 1) if rows % r == 0)
    crc: dict[str, Any] = {"name": "crc32c"}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    shard = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [inner, dim],
            "codecs": [little, crc],
            "index_codecs": [little, crc],
        },
    }
    return _base_spec(path) | {
        "metadata": {
            "shape": [int(info["n_rows"]), dim],
            "data_type": "float32",
            "fill_value": "NaN",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows, dim]}},
            "codecs": [shard],
        }
    }


def _base_spec(path: str) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": _kvstore(files.join(path, ARRAY)),
        # Else rows without an embedding would look like rows that were never written.
        "store_data_equal_to_fill_value": True,
    }


def _kvstore(path: str) -> str | dict[str, str]:
    if files.is_remote(path):
        return path + "/"
    return {"driver": "file", "path": os.path.abspath(os.path.expanduser(path)) + "/"}


def _open_array(path: str) -> ts.TensorStore:
    spec = _base_spec(path) | {"fill_missing_data_reads": False}
    try:
        return ts.open(spec).result()
    except ValueError as error:
        raise InputError(
            f"{path}: the array cannot be opened ({_first_line(error)}). Remove the "
            "folder and extract or import it again."
        ) from error


def _missing_chunks(path: str, info: Mapping[str, Any]) -> list[int]:
    """Chunks without a shard on disk; a shard is there whole or not at all."""
    keys = ts.KvStore.open(_kvstore(files.join(path, ARRAY))).result().list().result()
    names = [key.decode().split("/") for key in keys]
    written = {int(n[1]) for n in names if n[0] == "c" and len(n) == 3 and n[2] == "0"}
    n_chunks = -(-int(info["n_rows"]) // int(info["chunk_rows"]))
    return sorted(set(range(n_chunks)) - written)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What sets two configurations apart, in words; chunk size and versions may differ."""
    pairs = [(key, old.get(key), new[key]) for key in ("schema_version", "n_rows", "dim")]
    pairs.append(("manifest", old.get("manifest_sha256"), new["manifest_sha256"]))
    before, after = old.get("identity", {}), new["identity"]
    pairs += [(key, before.get(key), after.get(key)) for key in sorted({*before, *after})]
    return [f"{key}: there {a!r}, here {b!r}" for key, a, b in pairs if a != b]


def _remove(path: str) -> None:
    fs, inner = files.filesystem(path)
    if files.is_remote(path):
        fs.delete_dir_contents(inner)
    else:
        shutil.rmtree(inner)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200]
