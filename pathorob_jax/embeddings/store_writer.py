"""Writes an embedding store, chunk by chunk, each chunk once.

``create_store`` begins a store, or goes on with an unfinished one of the same configuration: a
writer that was killed loses the chunks that were not yet on disk. Patches without an embedding
(``BadImage``) are NaN in the array, listed in ``store.json``, and left out of the manifest that
readers see.
"""

import contextlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq
import tensorstore as ts

from pathorob_jax.core import checks, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.provenance import software_versions
from pathorob_jax.data.manifest import Manifest, read_manifest
from pathorob_jax.data.tileset import BadImage
from pathorob_jax.embeddings import store_files, store_lock
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.embeddings.store_files import BAD_ROWS, INFO, MANIFEST, SCHEMA_VERSION, first_line


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
        self, chunk: int, embeddings: np.ndarray, *, bad: Sequence[BadImage] = ()
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
                files.write_json(
                    store_files.bad_rows_path(self.path, chunk), [b._asdict() for b in bad]
                )
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
        left = store_files.missing_chunks(self.path, self.info)
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


def _join(path: str, info: dict[str, Any]) -> StoreWriter:
    info_path = files.join(path, INFO)
    old = files.read_json(info_path) if files.exists(info_path) else None
    if old is None or _differences(old, info):
        raise InputError(
            f"{path}: process 0 has made this store, yet another process finds "
            f"{'none' if old is None else 'another'} there. All need one folder (shared disk, "
            "gs:// or s3://) and the same flags."
        )
    return StoreWriter(
        path, old, store_files.open_array(path), store_files.missing_chunks(path, old), None
    )


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
        missing = store_files.missing_chunks(path, old)
        with _writing(path):  # lists of chunks that were never written
            for chunk in missing:
                files.remove(store_files.bad_rows_path(path, chunk))
        return StoreWriter(path, old, store_files.open_array(path), missing, lock)
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
        array = ts.open(
            store_files.array_spec(path, info), create=True, delete_existing=True
        ).result()
        files.write_json(files.join(path, INFO), info)
    return StoreWriter(path, info, array, store_files.missing_chunks(path, info), lock)


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turn what a disk says into a message that names the store."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be written ({first_line(error)}). Make room or give another "
            "--output; the same command goes on where this one stopped."
        ) from error


def _lock_path(path: str) -> str:
    """Beside the store, so that replacing the store keeps the lock."""
    folder, _, name = path.rstrip("/").rpartition("/")
    return files.join(folder or ".", f".{name}.lock")


def _collect_bad_rows(path: str) -> list[dict[str, Any]]:
    """Contents of the chunks' lists, by row."""
    folder = files.join(path, BAD_ROWS)
    if not files.exists(folder):
        return []
    lists = [
        files.read_json(files.join(folder, name)) for name in files.list_files(folder, ".json")
    ]
    return sorted((bad for one in lists for bad in one), key=lambda bad: bad["row"])


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
