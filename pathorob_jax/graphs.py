"""The neighbour graph: exact neighbours of all scopes, as an artefact of its own.

Enters: embeddings, groups and scopes; or a file of neighbours found elsewhere. Leaves: a
``NeighborGraph``, searched for once and kept beside the store, ``<store>/neighbors/<name>.npz``, as
a cache: everything works without it. A graph is named by what it depends on, so that one of other
rows, groups or labels is never taken.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from pathorob_jax import __version__, files
from pathorob_jax.checks import InputError
from pathorob_jax.kernels import neighbors as kernel
from pathorob_jax.kernels import neighbors_batched
from pathorob_jax.kernels.near_ties import MARGIN, settle_near_ties
from pathorob_jax.kernels.neighbors import Neighbors, TypedNeighbors
from pathorob_jax.kernels.pair_distances import refine_distances
from pathorob_jax.progress import Progress
from pathorob_jax.typing import Float, Int
from pathorob_jax.views import Scope

SCHEMA_VERSION = 1
FOLDER = "neighbors"
# A cache that fills disks unasked is none.
LARGEST_FILE_BYTES = 2**30
# Subsets of one batched call on each device; the bar moves between calls.
CALL_SUBSETS = 8


class SearchInput(NamedTuple):
    """What a search depends on.

    Attributes:
        embeddings: float32[U, D], each patch once.
        row_of: int64[N] position in ``embeddings`` of each row of the view.
        group_id: int32[N] rows of one group are never neighbours.
        scopes: rows of the view among which neighbours are sought.
    """

    embeddings: Float[np.ndarray, "U D"]
    row_of: Int[np.ndarray, " N"]
    group_id: Int[np.ndarray, " N"]
    scopes: Sequence[Scope]

    @property
    def size(self) -> int:
        """Rows of the largest scope; smaller ones are padded to it, so that one trace serves."""
        return max(len(scope.rows) for scope in self.scopes)

    def rows(self, scope: Scope) -> Float[np.ndarray, "P D"]:
        """float32[size, D] embeddings of a scope, padded with zeros."""
        n = len(scope.rows)
        positions = self.row_of[scope.rows]
        whole = n == len(self.embeddings) and np.array_equal(positions, np.arange(n))
        # A scope of all rows is taken as it is: indexing would copy it.
        rows = self.embeddings if whole else self.embeddings[positions]
        return rows if n == self.size else np.pad(rows, ((0, self.size - n), (0, 0)))

    def labels(self, scope: Scope) -> Int[np.ndarray, "3 P"]:
        """int32[3, size] groups (``PADDING_GROUP`` past the scope's own rows), class and centre."""
        n = len(scope.rows)
        out = np.zeros((3, self.size), np.int32)
        out[0] = kernel.PADDING_GROUP
        out[:, :n] = self.group_id[scope.rows], scope.bio_id, scope.center_id
        return out


@dataclass(frozen=True, eq=False)
class NeighborGraph:
    """Neighbours of the rows of S scopes; indices count within their scope, nearest first.

    Attributes:
        info: what it was made from: digests, k, m, precision, and ``source``: ``search`` or the
            file that it was imported from.
        any: int32[S, P, K] and float32[S, P, K] of the nearest rows of other groups; rows past a
            scope's own are padding (-1, inf).
        typed: the same for the M nearest of the two decisive types, SO and OS; None where they
            were not sought.
    """

    info: dict[str, Any]
    any: Neighbors
    typed: tuple[Neighbors, Neighbors] | None

    @property
    def k(self) -> int:
        """Neighbours of any type that a row has at most."""
        return self.any.indices.shape[2]

    def scope(self, i: int, *, k: int) -> tuple[Neighbors, TypedNeighbors | None]:
        """The k nearest of a scope, of any type, and with the two types where they are there."""
        nearest = Neighbors(*(a[i, :, :k] for a in self.any))
        if self.typed is None:
            return nearest, None
        same_other, other_same = (Neighbors(*(a[i] for a in one)) for one in self.typed)
        return nearest, TypedNeighbors(nearest, same_other, other_same)


def find_graph(
    given: SearchInput,
    *,
    k: int,
    m: int,
    precision: kernel.Precision,
    budget_bytes: int,
    mesh: Mesh,
) -> NeighborGraph:
    """Search the neighbours of every scope.

    Args:
        given: rows and scopes.
        k: neighbours of any type.
        m: neighbours of each decisive type; 0: none.
        precision: of the search.
        budget_bytes: memory for blocks of scores.
        mesh: devices.
    """
    ks = (k, m, m) if m else (k,)
    many = len(given.scopes) > 1 and precision == "float32"
    search = _search_together if many else _search_one_by_one
    total = sum(len(scope.rows) for scope in given.scopes)
    with Progress("neighbours", total=total, unit="sample") as progress:
        deeper = tuple(depth + MARGIN for depth in ks)
        found = search(given, deeper, precision, budget_bytes, mesh, progress.update)
    found = [_settle(given, one, depth) for one, depth in zip(found, ks, strict=True)]
    info = _describe(given, k=k, m=m) | {"precision": precision, "source": "search"}
    return NeighborGraph(info, found[0], (found[1], found[2]) if m else None)


def _settle(given: SearchInput, found: Neighbors, k: int) -> Neighbors:
    """Lists [S, P, k] of all scopes in the exact order; rows past a scope's own have none."""
    shape = (len(given.scopes), given.size, k)
    out = Neighbors(np.full(shape, -1, np.int32), np.full(shape, np.inf, np.float32))
    for i, scope in enumerate(given.scopes):
        n = len(scope.rows)
        own = settle_near_ties(given.rows(scope), Neighbors(*(a[i, :n] for a in found)), k=k)
        for whole, part in zip(out, own, strict=True):
            whole[i, :n] = part
    return out


def _search_one_by_one(
    given: SearchInput,
    ks: tuple[int, ...],
    precision: kernel.Precision,
    budget_bytes: int,
    mesh: Mesh,
    tell: Callable[[int], None],
) -> list[Neighbors]:
    """A call for each scope: lists [S, P, K]."""
    lists: list[list[Neighbors]] = [[] for _ in ks]
    for scope in given.scopes:
        groups, bio, center = given.labels(scope)
        options: dict[str, Any] = {
            "k": ks[0],
            "precision": precision,
            "budget_bytes": budget_bytes,
            "mesh": mesh,
            "on_progress": tell if len(given.scopes) == 1 else None,
        }
        rows = given.rows(scope)
        found = (
            kernel.find_typed_neighbors(rows, groups, bio, center, m=ks[1], **options)
            if len(ks) > 1
            else [kernel.find_neighbors(rows, groups, **options)]
        )
        for into, one in zip(lists, found, strict=True):
            into.append(one)
        if len(given.scopes) > 1:
            tell(len(scope.rows))
    return [Neighbors(*map(np.stack, zip(*one, strict=True))) for one in lists]


def _search_together(
    given: SearchInput,
    ks: tuple[int, ...],
    precision: kernel.Precision,
    budget_bytes: int,
    mesh: Mesh,
    tell: Callable[[int], None],
) -> list[Neighbors]:
    """Many scopes in each call, all calls of one shape: lists [S, P, K]."""
    del precision  # float32
    per_call = min(CALL_SUBSETS * mesh.size, len(given.scopes))
    embeddings = jnp.asarray(given.embeddings)
    parts: list[list[Neighbors]] = []
    for start in range(0, len(given.scopes), per_call):
        scopes = given.scopes[start : start + per_call]
        rows = np.zeros((per_call, given.size), np.int32)
        labels = np.full((3, per_call, given.size), kernel.PADDING_GROUP, np.int32)
        for i, scope in enumerate(scopes):
            rows[i, : len(scope.rows)] = given.row_of[scope.rows]
            labels[:, i] = given.labels(scope)
        found = neighbors_batched.search(
            embeddings,
            rows,
            labels[: len(ks)],
            ks,
            budget_bytes=budget_bytes,
            mesh=mesh,
        )
        parts.append([Neighbors(*(a[: len(scopes)] for a in one)) for one in found])
        tell(sum(len(scope.rows) for scope in scopes))
    return [
        Neighbors(*map(np.concatenate, zip(*one, strict=True))) for one in zip(*parts, strict=True)
    ]


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
    wanted = _describe(given, k=k, m=m) | {"precision": options["precision"]}
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
    info = _describe(given, k=k, m=m) | {
        "precision": "unknown",
        "source": path,
        "file_sha256": files.digest(files.read_bytes(path)),
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


def _describe(given: SearchInput, *, k: int, m: int) -> dict[str, Any]:
    """What the graph depends on."""
    rows = np.concatenate([scope.rows for scope in given.scopes]).astype(np.int64)
    sizes = np.array([len(scope.rows) for scope in given.scopes], np.int64)
    labels = [ids for scope in given.scopes for ids in (scope.bio_id, scope.center_id)]
    return {
        "schema_version": SCHEMA_VERSION,
        "pathorob_jax": __version__,
        "distance": "cosine",
        "rule": "rows of the own group left out; order (distance, row)",
        "rows_sha256": files.digest_array(given.embeddings),
        "scopes_sha256": files.digest(
            *(a.tobytes() for a in (given.row_of[rows], given.group_id[rows], sizes))
        ),
        "labels_sha256": files.digest(*(a.astype(np.int32).tobytes() for a in labels)),
        "k": k,
        "m": m,
    }


def _prefix(info: dict[str, Any]) -> str:
    return f"{info['rows_sha256'][:16]}-{info['scopes_sha256'][:8]}"


def _serves(there: dict[str, Any], wanted: dict[str, Any]) -> bool:
    same = ["pathorob_jax", "rows_sha256", "scopes_sha256", "precision"]
    same += ["labels_sha256", "m"] if wanted["m"] else []
    return there["k"] >= wanted["k"] and all(there[key] == wanted[key] for key in same)
