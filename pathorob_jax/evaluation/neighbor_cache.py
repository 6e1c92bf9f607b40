"""Neighbour graphs as files: kept beside their store, or found elsewhere.

Enters: a ``NeighborGraph``, or a file of neighbours of other software. Leaves:
``<store>/neighbors/<name>.npz``, a cache: everything works without it; or the graph that a file
holds. A graph is named by what it depends on, so that one of other rows, groups or labels is never
taken.
"""

import io
import json
from typing import Any

import numpy as np
from absl import logging

from pathorob_jax.core import digests, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Int
from pathorob_jax.evaluation.neighbor_graph import (
    SCHEMA_VERSION,
    NeighborGraph,
    SearchInput,
    describe,
    find_graph,
)
from pathorob_jax.kernels.neighbors.pair_distances import refine_distances
from pathorob_jax.kernels.neighbors.search import Neighbors

FOLDER = "neighbors"
# A cache that fills disks unasked is none.
LARGEST_FILE_BYTES = 2**30


def reuse_or_find(
    folder: str, given: SearchInput, *, k: int, m: int, **options: Any
) -> NeighborGraph:
    """A graph kept under ``<folder>/neighbors`` that fits, else a new one, which is kept there.

    A graph fits when rows, groups and scopes are the same, it goes at least as deep, and, where
    typed neighbours are asked for, the labels are the same too. Where it cannot be kept (no
    permission, no room, larger than ``LARGEST_FILE_BYTES``), that is logged and the work goes on.

    Args:
        folder: of the store.
        given: rows and scopes.
        k: as ``find_graph`` takes it.
        m: likewise.
        **options: likewise.
    """
    wanted = describe(given, k=k, m=m) | {"precision": options["precision"]}
    cache = files.join(folder, FOLDER)
    prefix = _prefix(wanted)
    names = files.list_files(cache, ".npz") if files.exists(cache) else []
    for name in names:
        if not name.startswith(prefix):
            continue
        path = files.join(cache, name)
        try:
            graph = load_graph(path)
        except InputError as error:
            logging.warning("%s It is left alone, and the neighbours are searched for.", error)
            continue
        if _serves(graph.info, wanted):
            logging.info("neighbours: %s", path)
            return graph
    graph = find_graph(given, k=k, m=m, **options)
    path = files.join(
        cache, f"{prefix}-{wanted['labels_sha256'][:8] if m else 'any'}-k{k}-m{m}.npz"
    )
    try:
        save_graph(path, graph)
    except (InputError, OSError) as error:
        logging.warning("neighbours are not kept: %s", error)
    return graph


def save_graph(path: str, graph: NeighborGraph) -> None:
    """Write a graph, atomically: ``.npz`` of indices, distances and ``info`` as JSON.

    Raises:
        InputError: it is larger than ``LARGEST_FILE_BYTES``.
    """
    arrays: dict[str, Any] = {"indices": graph.any.indices, "distances": graph.any.distances}
    for name, one in zip(("same_other", "other_same"), graph.typed or (), strict=False):
        arrays |= {f"{name}_indices": one.indices, f"{name}_distances": one.distances}
    size = sum(a.nbytes for a in arrays.values())
    if size > LARGEST_FILE_BYTES:
        raise InputError(f"{path}: would take {size} bytes, more than {LARGEST_FILE_BYTES}.")
    sink = io.BytesIO()
    np.savez(sink, info=np.array(json.dumps(graph.info, sort_keys=True)), **arrays)
    files.write_bytes(path, sink.getvalue())


def load_graph(path: str) -> NeighborGraph:
    """Read a graph back.

    Raises:
        FileNotFoundError: there is none.
        InputError: the file is not one, or of another schema.
    """
    arrays = _read_arrays(path)
    info = json.loads(str(arrays["info"])) if "info" in arrays else {}
    if info.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path}: expected a neighbour graph of schema {SCHEMA_VERSION}, found "
            f"{info.get('schema_version')}. Remove it; it is made again when needed."
        )
    typed = None
    if "same_other_indices" in arrays:
        same_other, other_same = (
            Neighbors(arrays[f"{name}_indices"], arrays[f"{name}_distances"])
            for name in ("same_other", "other_same")
        )
        typed = (same_other, other_same)
    return NeighborGraph(info, Neighbors(arrays["indices"], arrays["distances"]), typed)


def import_graph(
    path: str, given: SearchInput, positions: Int[np.ndarray, " N"], *, k: int, m: int
) -> NeighborGraph:
    """Neighbours that were found elsewhere (FAISS, cuML ...), checked as far as a list can be.

    The file is ``.npy`` of ``indices``, int[R, K] (-1 absent), or ``.npz`` of ``indices`` and,
    where margins are wanted, ``same_other`` and ``other_same``, int[R, M]: row i and all values
    count the R rows of the store. Distances are computed anew, and rows sorted by them.

    Args:
        path: the file.
        given: one scope, that of all rows of the store.
        positions: int64[N] row of the store that each row of the view is.
        k: neighbours wanted of any type; the file may hold more.
        m: neighbours wanted of each decisive type.

    Raises:
        FileNotFoundError: no such file.
        InputError: the view is not the whole store in one scope, a list is missing, too short or
            malformed, or holds rows of the own group or of another type.
    """
    n = len(given.row_of)
    if (
        len(given.scopes) != 1
        or len(np.unique(positions)) != len(given.embeddings)
        or (int(positions.max()) + 1 != n)
    ):
        raise InputError(
            f"{path}: neighbours from a file serve the design 'all' over all rows of a store, "
            f"found {len(given.scopes)} scopes and {n} rows of it. Leave --neighbors out."
        )
    arrays = _read_arrays(path)
    [scope] = given.scopes
    view_row = np.empty(n, np.int64)
    view_row[positions] = np.arange(n)
    rows = given.rows(scope)
    lists = []
    for name, depth in (("indices", k), ("same_other", m), ("other_same", m)):
        if not depth:
            continue
        if name not in arrays:
            raise InputError(f"{path}: lacks {name!r}; expected int[{n}, {depth} or more].")
        found = _check_list(path, name, arrays[name], n=n, depth=depth)
        at = np.where(found >= 0, view_row[found], -1)[positions].astype(np.int32)
        query = np.broadcast_to(np.arange(n)[:, None], at.shape)
        bad = given.group_id[at] == given.group_id[query]
        if name != "indices":
            first, second = (scope.bio_id, scope.center_id)[:: 1 if name == "same_other" else -1]
            bad |= (first[at] != first[query]) | (second[at] == second[query])
        bad &= at >= 0
        if bad.any():
            i, j = np.argwhere(bad)[0]
            raise InputError(
                f"{path}: {name}: row {positions[i]} lists row {positions[at[i, j]]}, which is of "
                "its own group or of another type. Leave such rows out of the lists."
            )
        nowhere = np.full(at.shape, np.inf, np.float32)
        lists.append(Neighbors(*(a[None] for a in refine_distances(rows, Neighbors(at, nowhere)))))
    info = describe(given, k=k, m=m) | {
        "precision": "unknown",
        "source": path,
        "file_sha256": digests.digest(files.read_bytes(path)),
    }
    return NeighborGraph(info, lists[0], (lists[1], lists[2]) if m else None)


def _check_list(path: str, name: str, found: np.ndarray, *, n: int, depth: int) -> np.ndarray:
    """int64[n, depth] of a file's list."""
    if found.ndim != 2 or found.shape[0] != n or found.shape[1] < depth:
        raise InputError(
            f"{path}: {name}: expected int[{n}, {depth} or more], found {found.dtype.name}"
            f"{list(found.shape)}."
        )
    if found.dtype.kind not in "iu" or found.min(initial=0) < -1 or found.max(initial=-1) >= n:
        raise InputError(
            f"{path}: {name}: expected rows of the store, 0 to {n - 1}, or -1; found "
            f"{found.dtype.name} from {found.min()} to {found.max()}."
        )
    kept = np.sort(found[:, :depth].astype(np.int64), axis=1)
    twice = ((kept[:, 1:] == kept[:, :-1]) & (kept[:, 1:] >= 0)).any(1)
    if twice.any():
        raise InputError(f"{path}: {name}: row {np.argmax(twice)} lists a row twice.")
    return found[:, :depth].astype(np.int64)


def _read_arrays(path: str) -> dict[str, np.ndarray]:
    """Members of ``.npz``; ``.npy`` as ``indices``."""
    data = files.read_bytes(path)
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        return {"indices": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:  # zipfile, zlib, NumPy: each has its own
        raise InputError(f"{path}: cannot be read as .npy or .npz ({error}).") from error


def _prefix(info: dict[str, Any]) -> str:
    return f"{info['rows_sha256'][:16]}-{info['scopes_sha256'][:8]}"


def _serves(there: dict[str, Any], wanted: dict[str, Any]) -> bool:
    same = ["pathorob_jax", "rows_sha256", "scopes_sha256", "precision"]
    same += ["labels_sha256", "m"] if wanted["m"] else []
    return there["k"] >= wanted["k"] and all(there[key] == wanted[key] for key in same)
