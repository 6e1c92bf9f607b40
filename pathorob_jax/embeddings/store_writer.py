"""Write an embedding store, chunk by chunk, each chunk once.

``create_store`` creates a store, or resumes an unfinished one of the same configuration: a writer
that was killed only loses the chunks that were not yet on disk. Patches without an embedding
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

from pathorob_jax.core import checks, faults, files, locks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.provenance import software_versions
from pathorob_jax.data.manifest import Manifest, read_manifest
from pathorob_jax.data.tileset import BadImage
from pathorob_jax.embeddings import store_files
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.embeddings.store_files import BAD_ROWS, INFO, MANIFEST, SCHEMA_VERSION


class StoreWriter:
    """The only writer of a store, made by ``create_store``. As a context it closes itself."""

    def __init__(
        self,
        path: str,
        info: dict[str, Any],
        array: ts.TensorStore,
        missing: list[int],
        lock: locks.Lock | None,
    ):
        self.path, self.info, self._array, self._lock = path, info, array, lock
        self.missing_chunks = missing
        """Chunks not yet on disk, ascending."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the store to other writers. Further calls do nothing."""
        if self._lock is not None:
            self._lock.release()

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk. The last chunk may be shorter."""
        return int(self.info["chunk_rows"])

    def chunk_slice(self, chunk: int) -> slice:
        """Rows of the array in a chunk."""
        start = chunk * self.chunk_rows
        return slice(start, min(start + self.chunk_rows, int(self.info["n_rows"])))

    def write(
        self, chunk: int, embeddings: np.ndarray, *, bad: Sequence[BadImage] = ()
    ) -> ts.WriteFutures:
        """Start writing a chunk. ``.result()`` returns once the write is durable.

        Args:
            chunk: number of the chunk.
            embeddings: float[n, D].
            bad: rows of the chunk without an embedding; their values are ignored.

        Raises:
            InputError: the shape differs, or another row is NaN, infinite or all zero.
        """
        rows = self.chunk_slice(chunk)
        expected = (rows.stop - rows.start, int(self.info["dim"]))
        checks.check_shape(embeddings.shape, expected, name="embeddings", why="of the chunk")
        # Cast before the check: float64 values out of float32's range become infinite or zero.
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
            # Written before the rows, so that a chunk on disk always has its list.
            with _writing(self.path):
                files.write_json(
                    store_files.bad_rows_path(self.path, chunk), [b._asdict() for b in bad]
                )
        return self._array[rows.start : rows.stop].write(embeddings)

    def wait(self, writing: ts.WriteFutures) -> None:
        """Return once a write is durable.

        Raises:
            InputError: the write failed (disk full, no permission).
        """
        with _writing(self.path):
            writing.result()

    def commit(self) -> Store:
        """Mark the store as complete, once every chunk is durable.

        Raises:
            InputError: a chunk is missing, or no patch has an embedding.
        """
        left = store_files.missing_chunks(self.path, self.info)
        if left:
            raise InputError(f"{self.path}: chunks {left[:5]} are missing; it cannot be committed.")
        outcome: dict[str, Any] = {"complete": True}
        bad = _collect_bad_rows(self.path)
        if len(bad) == int(self.info["n_rows"]):
            raise InputError(f"{self.path}: not one patch has an embedding ({bad[0]['reason']}).")
        if bad:
            outcome[BAD_ROWS] = bad
        with _writing(self.path):
            files.write_json(files.join(self.path, INFO), self.info | outcome)
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
    resume: bool = True,
    lead: bool = True,
) -> StoreWriter:
    """Create a store, or resume one of the same identity.

    The store is locked until the writer is closed or commits, or its process ends.

    Args:
        path: ``<root>/<model>/<dataset>``, local, ``gs://`` or ``s3://``.
        manifest: N rows, each patch once.
        dim: D.
        chunk_rows: rows of a chunk. A resumed store keeps its chunk size.
        identity: what the embeddings depend on (encoder, weights, preprocessing, pooling, types,
            source); JSON.
        settings: settings of the computation that change only the last bits. They are recorded, and
            a resumed store keeps them.
        overwrite: replace a store that is complete or has another identity. An unfinished store of
            the same identity is resumed nevertheless.
        resume: False, with ``overwrite``: replace that one, too.
        lead: False for the other processes of the run, after process 0 has created the store. They
            join the store without locking it.

    Raises:
        InputError: a store of another identity exists and ``overwrite`` is not set; another process
            is writing the store; the path cannot be written.
    """
    info: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "complete": False,
        "n_rows": len(manifest),
        "dim": dim,
        "chunk_rows": chunk_rows,
        "manifest_sha256": manifest.fingerprint(),
        # As read back from the file (lists, not tuples), because resuming compares the two.
        "identity": json.loads(json.dumps(identity)),
        "settings": dict(settings or {}),
        "versions": software_versions(),
    }
    if not lead:
        return _join(path, info)
    with _writing(path):
        lock = locks.acquire(_lock_path(path))
    try:
        writer = _resume(path, info, lock, overwrite=overwrite, resume=resume)
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
    path: str, info: dict[str, Any], lock: locks.Lock, *, overwrite: bool, resume: bool
) -> StoreWriter | None:
    """A writer of the existing store; None if there is none or it was removed."""
    info_path = files.join(path, INFO)
    if not files.exists(info_path):
        return None
    old = files.read_json(info_path)
    differing = _differences(old, info)
    if not differing and not (overwrite and (old["complete"] or not resume)):
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


def _begin(path: str, info: dict[str, Any], manifest: Manifest, lock: locks.Lock) -> StoreWriter:
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
    """Turn errors of the disk into an InputError that names the store."""
    with faults.writing(path):
        yield


def _lock_path(path: str) -> str:
    """Path of the lock, next to the store, so that replacing the store keeps the lock."""
    folder, _, name = path.rstrip("/").rpartition("/")
    return files.join(folder or ".", f".{name}.lock")


def _collect_bad_rows(path: str) -> list[dict[str, Any]]:
    """Bad rows of all chunks, sorted by row."""
    folder = files.join(path, BAD_ROWS)
    if not files.exists(folder):
        return []
    lists = [
        files.read_json(files.join(folder, name)) for name in files.list_files(folder, ".json")
    ]
    return sorted((bad for of_chunk in lists for bad in of_chunk), key=lambda bad: bad["row"])


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences of two configurations, as text. Chunk size and versions may differ."""
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
