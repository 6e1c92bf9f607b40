"""The embedding store, open for reading: one encoder's embeddings of one dataset.

``open_store`` returns a ``Store`` of a complete folder and refuses anything else. ``store_writer``
writes stores, ``store_search`` finds them, and ``store_files`` describes their files.
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

import numpy as np
import tensorstore as ts

from pathorob_jax.core import aligned, checks, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import Manifest, fingerprint_file, locate, read_manifest
from pathorob_jax.embeddings import store_files, store_swap
from pathorob_jax.embeddings.store_files import BAD_ROWS, INFO, MANIFEST

# Bytes of chunks that are read at a time.
READ_BYTES = 2**27


class UniquePatches(NamedTuple):
    """Embeddings that a view needs, each patch once.

    Attributes:
        embeddings: float32[U, D]; in the order of the view if no patch repeats, otherwise in the
            order of the store.
        row_of: int64[n] row of ``embeddings`` for each row of the view.
        store_rows: int64[n] row of the store's manifest for each row of the view.
    """

    embeddings: np.ndarray
    row_of: np.ndarray
    store_rows: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Store:
    """A complete store, open for reading.

    Attributes:
        path: folder of the store.
        info: contents of ``store.json``.
        manifest: patches that have an embedding.
        array: float32[N, D] on disk.
        rows: int64[n] row of the array for each row of the manifest; None: they are the same.
    """

    path: str
    info: dict[str, Any]
    manifest: Manifest
    array: ts.TensorStore
    rows: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"Store({self.path}: {len(self)} embeddings)"

    def __len__(self) -> int:
        return len(self.manifest)

    @property
    def dim(self) -> int:
        """Length D of an embedding."""
        return int(self.array.shape[1])

    @property
    def is_on_disk(self) -> bool:
        """Whether the array lies in files, and not in memory."""
        return bool(self.array.spec().to_json()["driver"] != "array")

    def caching(self, limit_bytes: int) -> "Store":
        """The same store, with an in-memory cache of what it has read, up to a limit."""
        context = ts.Context({"cache_pool": {"total_bytes_limit": limit_bytes}})
        kept = {"recheck_cached_data": False, "recheck_cached_metadata": False}
        array = ts.open(self.array.spec().to_json() | kept, context=context).result()
        return replace(self, array=array)

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Embeddings of the given rows of the manifest (None: all), float32[n, D], in that order.

        CPU devices can use the array without a copy (``aligned.empty_aligned``).
        """
        if self.rows is not None:
            rows = self.rows if rows is None else self.rows[np.asarray(rows)]
        n = int(self.array.shape[0]) if rows is None else len(rows)
        out = aligned.empty_aligned((n, int(self.array.shape[1])))
        try:
            for wanted, where in self._split(None if rows is None else np.asarray(rows), n):
                ts.array(out)[where].write(self.array[wanted]).result()
            return out
        except ValueError as error:
            raise InputError(
                f"{self.path}: the embeddings cannot be read back ({files.describe(error)}). The "
                "store is damaged; remove the folder and extract or import it again."
            ) from error

    def _split(self, rows: np.ndarray | None, n: int) -> Iterator[tuple[Any, Any]]:
        """Rows of the array, and where they go, of at most ``READ_BYTES`` of chunks at a time.

        TensorStore would start all reads at once, and hold all chunks that any row lies in.
        """
        if n == 0 or "chunk_rows" not in self.info:  # of embeddings in memory
            yield slice(None) if rows is None else rows, slice(None)
            return
        chunk_rows = int(self.info["chunk_rows"])
        at_once = max(1, READ_BYTES // (4 * self.dim * chunk_rows))
        if rows is None:
            for start in range(0, n, at_once * chunk_rows):
                part = slice(start, min(start + at_once * chunk_rows, n))
                yield part, part
            return
        chunks, place = np.unique(rows // chunk_rows, return_inverse=True)
        if len(chunks) <= at_once:
            yield rows, slice(None)
            return
        order = np.argsort(place, kind="stable")
        borders = np.searchsorted(place[order], np.arange(0, len(chunks), at_once)[1:])
        for where in np.split(order, borders):
            yield rows[where], where

    def read_patches(
        self, view: Manifest, *, relabelled: Collection[str] = (), need_direction: bool = True
    ) -> np.ndarray:
        """Embeddings of the patches of a view, found by patch key.

        Args:
            view: n rows; a patch may repeat.
            relabelled: columns with another meaning in ``view`` (a scanner in place of the centre),
                whose values may differ from those of the store.
            need_direction: refuse rows that are all zero or whose norm is out of range, too. If
                False, only values that are NaN or infinite are refused.

        Returns:
            float32[n, D], in the order of the view.

        Raises:
            InputError: the store lacks a patch or its slide, class or centre differs; an embedding
                cannot be used.
        """
        store_rows = locate(view, self.manifest, relabelled=relabelled)
        return self._read_usable(store_rows, need_direction=need_direction)

    def read_unique_patches(
        self,
        view: Manifest,
        *,
        relabelled: Collection[str] = (),
        read: Callable[[np.ndarray], Any] | None = None,
    ) -> UniquePatches:
        """Like ``read_patches``, but a patch that repeats in the view is read and kept once.

        Args:
            view: n rows; a patch may repeat.
            relabelled: see ``read_patches``.
            read: reads rows of the manifest otherwise than into an array; None: an array.

        Raises:
            InputError: the store lacks a patch or its slide, class or centre differs; an embedding
                has no direction.
        """
        read = read or functools.partial(self._read_usable, need_direction=True)
        store_rows = locate(view, self.manifest, relabelled=relabelled)
        unique, row_of = np.unique(store_rows, return_inverse=True)
        if len(unique) == len(store_rows):  # in the view's order: no second copy is needed
            unique, row_of = store_rows, np.arange(len(store_rows))
        return UniquePatches(read(unique), row_of, store_rows)

    def _read_usable(self, rows: np.ndarray, *, need_direction: bool) -> np.ndarray:
        embeddings = self.read(rows)
        bad, word = checks.find_bad_rows(embeddings, need_direction=need_direction)
        if bad.size:
            self.refuse_bad(rows, bad, word)
        return embeddings

    def refuse_bad(self, rows: np.ndarray, bad: np.ndarray, word: str) -> NoReturn:
        """Raise InputError about the embeddings of ``rows[bad]``; ``word`` is of the first."""
        key = self.manifest.keys[int(rows[bad[0]])]
        raise InputError(
            f"{self.path}: {len(bad)} embeddings hold {word}, the first is patch {key}. "
            "Extract or import the store again."
        )

    def provenance(self, rows_sha256: str | None = None) -> dict[str, Any]:
        """What results record about the store.

        Args:
            rows_sha256: digest of the embeddings that the result is computed from; None: leave it
                out.
        """
        rows = {} if rows_sha256 is None else {"rows_sha256": rows_sha256}
        return {
            "identity": self.info["identity"],
            "manifest_sha256": self.info["manifest_sha256"],
            **rows,
            "versions": self.info["versions"],
        }


def open_store(path: str) -> Store:
    """Open a complete store.

    Raises:
        FileNotFoundError: there is no store.
        InputError: the store is unfinished, has another schema, or its parts do not match.

    >>> import numpy as np, pathorob_jax as pr
    >>> rows = {"slide_id": np.arange(48) // 4, "patch_id": np.arange(48)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 24}
    >>> rows |= {"medical_center": ["A"] * 24 + ["B"] * 24}
    >>> np.save("x.npy", np.random.default_rng(0).normal(size=(48, 8)))
    >>> _ = pr.import_embeddings("x.npy", rows, root="embeddings", model="mine", dataset="ours")
    >>> store = pr.open_store("embeddings/mine/ours")
    >>> store.read(np.array([3, 0])).shape
    (2, 8)
    """
    if not store_files.has_info(path):
        raise FileNotFoundError(
            f"{path}: no embedding store (no {INFO}); make one with experiments.extract or "
            "experiments.import_embeddings."
        )
    with _naming_the_mend():
        info = store_files.read_info(path)
    if not info["complete"]:
        left = len(store_files.missing_chunks(path, info))
        raise InputError(
            f"{path}: the store is unfinished ({left} chunks missing); run experiments.extract or "
            "experiments.import_embeddings again with the same flags to complete it."
        )
    manifest = _read_own_manifest(path, info)
    array = store_files.open_array(path, info)
    bad = [b["row"] for b in info.get(BAD_ROWS, ())]
    if not bad:
        return Store(path, info, manifest, array)
    rows = np.delete(np.arange(len(manifest)), bad)
    return Store(path, info, manifest.take(rows), array, rows)


@contextlib.contextmanager
def _naming_the_mend() -> Iterator[None]:
    """Say what to do about a store that is damaged."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} Remove the folder and extract or import it again.") from error


def _read_own_manifest(path: str, info: dict[str, Any]) -> Manifest:
    """The manifest of a store, which must be the one that its embeddings were made with."""
    where = files.join(path, MANIFEST)
    try:
        manifest, written = read_manifest(where), fingerprint_file(where)
    except FileNotFoundError:
        raise
    except files.UNREADABLE as error:
        raise InputError(
            f"{where}: cannot be read as a manifest ({files.describe(error)}). Remove the folder "
            "of the store and extract or import it again."
        ) from error
    # Of the file as it stands: earlier versions wrote names as they found them.
    if written != info["manifest_sha256"] or len(manifest) != info["n_rows"]:
        raise InputError(
            f"{path}: {MANIFEST} is not the one that the embeddings were made with. Remove the "
            "folder and extract or import it again."
        )
    return manifest


def recorded_settings(path: str) -> dict[str, Any] | None:
    """Settings of a store, complete or not; None if there is no store that can be read.

    A store that is to replace another comes first: its writer goes on with its settings.
    """
    for place in (store_swap.aside(path), path):
        if store_files.has_info(place):
            try:
                settings: dict[str, Any] = store_files.read_info(place)["settings"]
                return settings
            except InputError:
                continue
    return None
