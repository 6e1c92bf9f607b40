"""Import neighbours that other software found (FAISS, cuML ...) as a neighbour graph."""

import numpy as np

from pathorob_jax.core import digests, files, sealed_files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.privacy import file_name
from pathorob_jax.core.typing import Int
from pathorob_jax.evaluation.neighbor_graph import NeighborGraph, SearchInput, describe
from pathorob_jax.kernels.neighbors.pair_distances import refine_distances
from pathorob_jax.kernels.neighbors.search import Neighbors


def import_graph(
    path: str, search_input: SearchInput, positions: Int[np.ndarray, " N"], *, k: int, m: int
) -> NeighborGraph:
    """Read neighbours that other software found (FAISS, cuML ...), and check them.

    The file is an ``.npy`` of ``indices``, int[R, K] (-1 absent), or an ``.npz`` of ``indices``
    and, if margins are wanted, ``same_other`` and ``other_same``, int[R, M]. Row i and all values
    refer to the R rows of the store. Distances are computed again, and neighbours are sorted by
    them. Whether nearer neighbours exist is not checked.

    Args:
        path: path of the file.
        search_input: one scope with all rows of the store.
        positions: int64[N] row of the store for each row of the view.
        k: neighbours wanted of any type; the file may have more.
        m: neighbours wanted of each of the types SO and OS.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the view is not the whole store in one scope; a list is missing, too short or
            malformed; or a list has rows of the query's group or of another type.
    """
    n = len(search_input.row_of)
    if (
        len(search_input.scopes) != 1
        or len(np.unique(positions)) != len(search_input.embeddings)
        or (int(positions.max()) + 1 != n)
    ):
        raise InputError(
            f"{path}: neighbours from a file serve the design 'all' over all rows of a store, "
            f"found {len(search_input.scopes)} scopes and {n} rows of it. Leave --neighbors out."
        )
    data = files.read_bytes(path)
    loaded = sealed_files.parse_numpy(path, data)
    arrays = {"indices": loaded} if isinstance(loaded, np.ndarray) else loaded
    [scope] = search_input.scopes
    view_row = np.empty(n, np.int64)
    view_row[positions] = np.arange(n)
    rows = search_input.rows(scope)[:]
    lists: list[Neighbors] = []
    for name, depth in (("indices", k), ("same_other", m), ("other_same", m)):
        if not depth:
            continue
        if name not in arrays:
            raise InputError(f"{path}: lacks {name!r}; expected int[{n}, {depth} or more].")
        listed = _check_list(path, name, arrays[name], n=n, depth=depth)
        idx = np.where(listed >= 0, view_row[listed], -1)[positions].astype(np.int32)
        query = np.broadcast_to(np.arange(n)[:, None], idx.shape)
        bad = search_input.group_id[idx] == search_input.group_id[query]
        if name != "indices":
            first, second = (scope.bio_id, scope.center_id)[:: 1 if name == "same_other" else -1]
            bad |= (first[idx] != first[query]) | (second[idx] == second[query])
        bad &= idx >= 0
        if bad.any():
            i, j = np.argwhere(bad)[0]
            raise InputError(
                f"{path}: {name}: row {positions[i]} lists row {positions[idx[i, j]]}, which is of "
                "its own group or of another type. Leave such rows out of the lists."
            )
        nowhere = np.full(idx.shape, np.inf, np.float32)
        lists.append(Neighbors(*(a[None] for a in refine_distances(rows, Neighbors(idx, nowhere)))))
    info = describe(search_input, k=k, m=m) | {
        "precision": "unknown",
        "source": file_name(path),
        "file_sha256": digests.digest(data),
    }
    return NeighborGraph(info, *lists)


def _check_list(path: str, name: str, array: np.ndarray, *, n: int, depth: int) -> np.ndarray:
    """Check a list of the file and return int64[n, depth] of it."""
    if array.ndim != 2 or array.shape[0] != n or array.shape[1] < depth:
        raise InputError(
            f"{path}: {name}: expected int[{n}, {depth} or more], found {array.dtype.name}"
            f"{list(array.shape)}."
        )
    is_integer = array.dtype.kind in "iu"
    # Python's own integers: NumPy's unsigned ones cannot be compared with -1.
    low, high = (int(array.min()), int(array.max())) if is_integer and array.size else (0, -1)
    if not is_integer or low < -1 or high >= n:
        found = f" from {low} to {high}" if is_integer else ""
        raise InputError(
            f"{path}: {name}: expected rows of the store, 0 to {n - 1}, or -1; found "
            f"{array.dtype.name}{found}."
        )
    kept = np.sort(array[:, :depth].astype(np.int64), axis=1)
    twice = ((kept[:, 1:] == kept[:, :-1]) & (kept[:, 1:] >= 0)).any(1)
    if twice.any():
        raise InputError(f"{path}: {name}: row {np.argmax(twice)} lists a row twice.")
    return array[:, :depth].astype(np.int64)
