"""Write an embedding store, chunk by chunk, each chunk once.

``create_store`` creates a store, or resumes an unfinished one of the same configuration: a writer
that was killed only loses the chunks that were not yet on disk. Processes may share the chunks of a
store (``shared``): each chunk is taken by one of them, and whoever finds all on disk completes the
store. Patches without an embedding
(``BadImage``) are NaN in the array, listed in ``store.json``, and left out of the manifest that
readers see. A store that replaces another is written beside it, and takes its place when it is
complete (``store_swap``).
"""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pyarrow.parquet as pq
import tensorstore as ts

from pathorob_jax.core import checks, faults, files, leases, locks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.provenance import software_versions
from pathorob_jax.data.manifest import Manifest, read_manifest
from pathorob_jax.data.tileset import BadImage
from pathorob_jax.embeddings import store_files, store_swap
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.embeddings.store_files import BAD_ROWS, LEASES, MANIFEST, SCHEMA_VERSION

# How long one of several processes waits for another one that begins or completes the store.
PATIENCE_S = 60.0


class StoreWriter:
    """A writer of a store, made by ``create_store``. As a context it closes itself.

    It is the only one and holds the store's lock, or it is one of several and a member of those
    that share the chunks; for a store that is complete it may be neither.
    """

    def __init__(
        self,
        path: str,
        place: str,
        info: dict[str, Any],
        array: ts.TensorStore | None = None,
    ):
        self.path, self.place, self.info = path, place, info
        self._lock: locks.Lock | None = None
        self._member: leases.Member | None = None
        self._array = array or store_files.open_array(place, info)
        self.missing_chunks = store_files.missing_chunks(place, info)
        """Chunks that were not on disk when the writer was made, ascending."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the store, or of the chunks that are not written. More calls do nothing."""
        if self._lock is not None:
            self._lock.release()
        if self._member is not None:
            self._member.leave()

    def keep(self, lock: locks.Lock) -> None:
        """Be the only writer, until closed."""
        self._lock = lock

    def share(self) -> None:
        """Be one of several writers, until closed."""
        if not self.info["complete"]:
            with _writing(self.path):
                self._member = leases.Member(files.join(self.place, LEASES))

    def find_missing(self) -> list[int]:
        """Chunks not on disk now, ascending; none if another process has completed the store.

        Raises:
            InputError: the store was removed.
        """
        if self.is_completed():
            return []
        self._check_lock()
        return store_files.missing_chunks(self.place, self.info)

    def is_completed(self) -> bool:
        """Whether the store is in its place and complete, by whomever."""
        if self.place != self.path and store_files.has_info(self.place):
            return False
        return _is_same(self.path, self.info) and store_files.read_info(self.path)["complete"]

    def is_superseded(self) -> bool:
        """Whether another process has completed the store while this one was held up."""
        return self._is_lost() and self.is_completed()

    def find_leases(self, chunks: Iterable[int]) -> dict[int, leases.Lease]:
        """Who has taken these chunks; those that nobody has are left out."""
        if self._member is None:
            return {}
        found = self._member.find_leases(map(str, chunks))
        return {int(piece): lease for piece, lease in found.items()}

    def take(self, chunk: int, *, number: int = 0) -> bool:
        """Take a chunk before it is embedded; False if another process has it.

        Args:
            chunk: number of the chunk.
            number: one more than that of its lease, if it has one whose holder is gone.
        """
        with _writing(self.path):
            return self._member is None or self._member.take(str(chunk), number=number)

    def take_missing(self) -> Iterator[int]:
        """Take one missing chunk after another, until all are on disk, by whomever.

        A chunk that was taken must be on disk when the next one is asked for.
        """
        if self._member is None:
            yield from self.find_missing()
            return
        pieces = leases.take_missing(self._member, lambda: map(str, self.find_missing()))
        yield from map(int, pieces)

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
            InputError: the shape differs, another row is NaN, infinite or all zero, or the lock was
                removed.
        """
        self._check_lock()
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
            key = read_manifest(files.join(self.place, MANIFEST)).keys[row]
            raise InputError(
                f"{self.path}: the embedding of patch {key} (row {row}) holds {word}; such a row "
                "has no direction. Mend its source, or leave the patch out of the manifest."
            )
        # Before the rows, so that a chunk on disk always has its list.
        with _writing(self.path):
            if bad:
                embeddings = embeddings.copy()
                embeddings[absent] = np.nan
                # The name of the file alone: a store may be given to others.
                listed = [b._asdict() | {"name": b.name.rpartition("/")[2]} for b in bad]
                store_files.write_bad_rows(self.place, chunk, listed)
            else:  # a killed run may have found bad rows
                files.remove(store_files.bad_rows_path(self.place, chunk))
        return self._array[rows.start : rows.stop].write(embeddings)

    def wait(self, writing: ts.WriteFutures) -> None:
        """Return once a write is durable.

        Raises:
            InputError: the write failed (disk full, no permission).
        """
        with _writing(self.path):
            writing.result()

    def commit(self, *, settings: Mapping[str, Any] | None = None) -> Store:
        """Mark the store as complete, once every chunk is durable.

        Args:
            settings: settings that are known only now, in place of those at the beginning; None:
                these stay.

        Raises:
            InputError: a chunk is missing, no patch has an embedding, or the lock was removed.
        """
        self._check_lock()
        left = store_files.missing_chunks(self.place, self.info)
        if left:
            raise InputError(f"{self.path}: chunks {left[:5]} are missing; it cannot be committed.")
        outcome: dict[str, Any] = {"complete": True}
        if settings is not None:
            outcome["settings"] = dict(settings)
        bad = store_files.read_bad_rows(self.place)
        if len(bad) == int(self.info["n_rows"]):
            raise InputError(f"{self.path}: not one patch has an embedding ({bad[0]['reason']}).")
        if bad:
            outcome[BAD_ROWS] = bad
        with _writing(self.path):
            store_files.write_info(self.place, self.info | outcome)
            if self.place != self.path:
                store_swap.swap(self.path)
            store_swap.remove(files.join(self.path, LEASES))
        self.close()
        return open_store(self.path)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A block that no other process is in: what all of them might do, one does.

        Raises:
            HeldError: another process has been in such a block for ten minutes.
        """
        if self._lock is not None:
            yield
            return
        with _writing(self.path):
            lock = locks.acquire(store_swap.beside(self.path, "lock"), patience_s=10 * PATIENCE_S)
        try:
            yield
        finally:
            lock.release()

    def add_cost(self, cost: Mapping[str, Any]) -> None:
        """Keep what a pass over tiles cost beside the embeddings."""
        with self.alone(), _writing(self.path):
            place = self.path if self.is_completed() else self.place
            store_files.add_cost(place, cost)

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()
        if self._is_lost() and not self.is_completed():
            raise locks.loss(files.join(self.place, LEASES))

    def _is_lost(self) -> bool:
        return self._member is not None and self._member.is_lost()


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
    shared: bool = False,
    lead: bool = True,
) -> StoreWriter:
    """Create a store, or resume one of the same identity.

    The store is locked until the writer is closed or commits, or its process ends. With ``shared``
    it is locked while it is opened only, and others of the same identity may write it meanwhile.

    Args:
        path: ``<root>/<model>/<dataset>``, local, ``gs://`` or ``s3://``.
        manifest: N rows, each patch once.
        dim: D.
        chunk_rows: rows of a chunk. A resumed store keeps its chunk size.
        identity: what the embeddings depend on (encoder, weights, preprocessing, pooling, types,
            source); JSON.
        settings: settings of the computation that change only the last bits. They are recorded, and
            a resumed store keeps them.
        overwrite: replace a store that is complete or has another identity; it stays as it is until
            the new one is complete. An unfinished store of the same identity is resumed.
        resume: False, with ``overwrite``: replace that one, too.
        shared: processes share the chunks: a chunk is written by whoever could ``take`` it.
        lead: False, with ``shared``: process 0 of the run has created the store, which must be
            there.

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
        patience_s = PATIENCE_S if shared else 0.0
        lock_path = store_swap.beside(path, "lock")
        lock = locks.acquire(lock_path, patience_s=patience_s)
    try:
        with _writing(path):
            store_swap.recover(path)
        place = _choose_place(path, info, overwrite=overwrite, resume=resume)
        now_ns = files.changed_ns(lock_path)
        there = {
            one: leases.find_members(files.join(one, LEASES), now_ns=now_ns)
            for one in (path, store_swap.aside(path))
        }
        joins = shared and resume and bool(there[place]) and _is_same(place, info)
        for one, members in there.items():
            if members and not (joins and one == place):
                mend = "Wait for it, or stop it."
                raise locks.refusal(path, members[0].who, locks.WRITING, mend)
        if not joins:
            _clear(path, place, resume=resume)
        writer = _resume(path, place, info, joins=joins) or _begin(path, place, info, manifest)
        if not shared:
            writer.keep(lock)
            return writer
        writer.share()
    except BaseException:
        lock.release()
        raise
    lock.release()
    return writer


def _clear(path: str, place: str, *, resume: bool) -> None:
    """Remove what killed writers have left; the caller is the only one."""
    with _writing(path):
        if place == path or not resume:
            store_swap.remove(store_swap.aside(path))
        for folder in (place, *(files.join(place, name) for name in store_files.FOLDERS)):
            files.sweep(folder)
        store_swap.remove(files.join(place, LEASES))


def _join(path: str, info: dict[str, Any]) -> StoreWriter:
    places = [p for p in (store_swap.aside(path), path) if store_files.has_info(p)]
    for place in places:
        old = store_files.read_info(place)
        if not _differences(old, info):
            writer = StoreWriter(path, place, old)
            writer.share()
            return writer
    raise InputError(
        f"{path}: process 0 has made this store, yet another process finds "
        f"{'another' if places else 'none'} there. All need one folder (shared disk, "
        "gs:// or s3://) and the same flags."
    )


def _choose_place(path: str, info: dict[str, Any], *, overwrite: bool, resume: bool) -> str:
    """Where to write: ``path``, or beside a store that must stay until it can be replaced."""
    aside = store_swap.aside(path)
    if not store_files.has_info(path):
        # An object store's swap that was killed has left a complete store beside.
        return aside if resume and _is_same(aside, info) else path
    try:
        old = store_files.read_info(path)
    except InputError as error:
        if overwrite:
            return aside
        raise InputError(f"{error} Give --overwrite to replace this store.") from error
    differing = _differences(old, info)
    if not differing and not (overwrite and (old["complete"] or not resume)):
        return path
    if differing and not overwrite:
        raise InputError(
            f"{path}: holds embeddings of another configuration ({'; '.join(differing)}). Give "
            "another --output, or --overwrite to replace them."
        )
    return aside


def _is_same(place: str, info: dict[str, Any]) -> bool:
    """Whether there is a store of the same configuration."""
    try:
        return store_files.has_info(place) and not _differences(store_files.read_info(place), info)
    except InputError:
        return False


def _resume(path: str, place: str, info: dict[str, Any], *, joins: bool) -> StoreWriter | None:
    """A writer of the store that lies at the place; None if none of this configuration does."""
    if not _is_same(place, info):
        return None
    old = store_files.read_info(place)
    if old["complete"] and place != path and not joins:  # only the swap was missing
        with _writing(path):
            store_swap.swap(path)
        place = path
    return StoreWriter(path, place, old)


def _begin(path: str, place: str, info: dict[str, Any], manifest: Manifest) -> StoreWriter:
    sink = io.BytesIO()
    pq.write_table(manifest.table, sink)
    with _writing(path):
        if place != path:
            store_swap.remove(place)
        files.write_bytes(files.join(place, MANIFEST), sink.getvalue())
        array = ts.open(
            store_files.array_spec(place, info), create=True, delete_existing=True
        ).result()
        store_files.write_info(place, info)
    return StoreWriter(path, place, info, array)


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turn errors of the disk into an InputError that names the store."""
    with faults.writing(path):
        yield


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences of two configurations, as text. Schema, chunk size and versions may differ."""
    pairs = [(key, old.get(key), new[key]) for key in ("n_rows", "dim")]
    pairs.append(("manifest", old.get("manifest_sha256"), new["manifest_sha256"]))
    before, after = old.get("identity", {}), new["identity"]
    pairs += [(key, before.get(key), after.get(key)) for key in sorted({*before, *after})]
    return [f"{key}: there {a!r}, here {b!r}" for key, a, b in pairs if a != b]
