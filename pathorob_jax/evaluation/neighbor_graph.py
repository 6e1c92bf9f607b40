"""The neighbour graph: exact neighbours of all scopes, from one search per scope.

``neighbor_cache`` keeps a graph in the folder of its store; ``neighbor_imports`` reads neighbours
that other software found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from pathorob_jax.core import devices, digests, hosts
from pathorob_jax.core.progress import Progress
from pathorob_jax.core.typing import Float, Int
from pathorob_jax.data.row_views import Scope
from pathorob_jax.kernels.neighbors import batched, over_hosts, stream
from pathorob_jax.kernels.neighbors import search as kernel
from pathorob_jax.kernels.neighbors.row_source import RowSource
from pathorob_jax.kernels.neighbors.search import Neighbors
from pathorob_jax.version import __version__

SCHEMA_VERSION = 2
# Subsets per device in one batched call; the progress bar moves between calls.
CALL_SUBSETS = 8
# Blocks of rows outside memory that a search may hold.
BLOCKS = 2


class SearchInput(NamedTuple):
    """Input of a neighbour search.

    Attributes:
        embeddings: float32[U, D], each patch once; or a ``RowSource`` of them.
        row_of: int64[N] position in ``embeddings`` of each row of the view.
        group_id: int32[N] rows of one group are never neighbours.
        scopes: sets of rows of the view within which neighbours are searched.
    """

    embeddings: Float[np.ndarray, "U D"] | RowSource
    row_of: Int[np.ndarray, " N"]
    group_id: Int[np.ndarray, " N"]
    scopes: Sequence[Scope]

    @property
    def size(self) -> int:
        """Rows of the largest scope; smaller scopes are padded to it, so that all share a trace."""
        return max(len(scope.rows) for scope in self.scopes)

    @property
    def is_streamed(self) -> bool:
        """Whether the embeddings are not in memory."""
        return isinstance(self.embeddings, RowSource)

    def take(self, positions: Int[np.ndarray, " R"]) -> Float[np.ndarray, "R D"]:
        """float32[R, D] of some embeddings."""
        source = self.embeddings
        return source.take(positions) if isinstance(source, RowSource) else source[positions]

    def rows(self, scope: Scope) -> Float[np.ndarray, "P D"] | RowSource:
        """float32[size, D] embeddings of a scope, padded with zeros.

        They are a ``RowSource`` if the embeddings are one and the scope has all of them. A scope of
        some rows is in memory.
        """
        n = len(scope.rows)
        positions = self.row_of[scope.rows]
        # A scope of all rows is used without indexing, which would copy it.
        if n == len(self.embeddings) and np.array_equal(positions, np.arange(n)):
            if isinstance(self.embeddings, RowSource):
                return self.embeddings
            rows = self.embeddings
        else:
            rows = self.take(positions)
        return rows if n == self.size else np.pad(rows, ((0, self.size - n), (0, 0)))

    def labels(self, scope: Scope) -> Int[np.ndarray, "3 P"]:
        """int32[3, size] groups (``PADDING_GROUP`` beyond the scope's rows), class and centre."""
        n = len(scope.rows)
        out = np.zeros((3, self.size), np.int32)
        out[0] = kernel.PADDING_GROUP
        out[:, :n] = self.group_id[scope.rows], scope.bio_id, scope.center_id
        return out


@dataclass(frozen=True, eq=False)
class NeighborGraph:
    """Neighbours of the rows of S scopes, nearest first; indices are positions in the scope.

    Attributes:
        info: origin of the graph: digests, k, m, precision, and ``source``, which is ``search`` or
            the imported file.
        any: int32[S, P, K] and float32[S, P, K] of the nearest rows of other groups; rows beyond
            those of a scope are padding (-1, inf).
        same_other: the M nearest of type SO, in the same form; None if they were not searched.
        other_same: the M nearest of type OS, in the same form; None if they were not searched.
    """

    info: dict[str, Any]
    any: Neighbors
    same_other: Neighbors | None = None
    other_same: Neighbors | None = None


def find_graph(
    search_input: SearchInput,
    *,
    k: int,
    m: int,
    precision: kernel.Precision,
    budget_bytes: int,
    mesh: Mesh,
    layout: kernel.Layout = "auto",
) -> NeighborGraph:
    """Search the neighbours of every scope.

    Args:
        search_input: rows and scopes.
        k: neighbours of any type.
        m: neighbours of each of the types SO and OS; 0: none.
        precision: precision of the search.
        budget_bytes: memory for blocks of scores.
        mesh: devices; if several processes have them, all must call it at the same time. One scope
            then goes round all devices; of several scopes, each process searches its share.
        layout: where the rows of each search lie; one scope is streamed if its rows are a
            ``RowSource``.
    """
    ks = (k, m, m) if m else (k,)
    is_joint, is_one = hosts.is_joint(mesh), len(search_input.scopes) == 1
    scopes = hosts.share(search_input.scopes) if is_joint else search_input.scopes
    one_call = precision == "float32" and layout != "ring" and not search_input.is_streamed
    with Progress("neighbours", total=_count(scopes), unit="sample") as progress:
        if is_joint and is_one:
            lists = _search_over_hosts(search_input, ks, budget_bytes, mesh, progress.update)
        elif one_call and not is_one:
            own = devices.local_mesh(mesh)
            lists = _search_together(search_input, scopes, ks, budget_bytes, own, progress.update)
        else:
            own = devices.local_mesh(mesh)
            options: dict[str, Any] = {"precision": precision, "mesh": own, "layout": layout}
            lists = _search_one_by_one(
                search_input, scopes, ks, budget_bytes, options, progress.update
            )
    if is_joint and not is_one:
        lists = [Neighbors(*map(hosts.gather, part)) for part in lists]
    lists = [_without_padding(search_input, part) for part in lists]
    info = describe(search_input, k=k, m=m) | {"precision": precision, "source": "search"}
    return NeighborGraph(info, *lists)


def _without_padding(search_input: SearchInput, neighbors: Neighbors) -> Neighbors:
    """Lists [S, P, k] of all scopes, in which rows beyond those of a scope have no neighbours."""
    for i, scope in enumerate(search_input.scopes):
        neighbors.indices[i, len(scope.rows) :] = -1
        neighbors.distances[i, len(scope.rows) :] = np.inf
    return neighbors


def _count(scopes: Sequence[Scope]) -> int:
    return sum(len(scope.rows) for scope in scopes)


def _search_over_hosts(
    search_input: SearchInput,
    ks: tuple[int, ...],
    budget_bytes: int,
    mesh: Mesh,
    tell: Callable[[int], None],
) -> list[Neighbors]:
    """Search the only scope on the devices of all processes: lists [1, P, K]."""
    [scope] = search_input.scopes
    labels = search_input.labels(scope)[: len(ks)]
    found = over_hosts.find_neighbors_over_hosts(
        search_input.rows(scope),
        labels,
        ks,
        mesh=mesh,
        budget_bytes=budget_bytes,
        on_progress=tell,
    )
    return [Neighbors(*(a[None] for a in part)) for part in found]


def _search_one_by_one(
    search_input: SearchInput,
    scopes: Sequence[Scope],
    ks: tuple[int, ...],
    budget_bytes: int,
    options_in_memory: dict[str, Any],
    tell: Callable[[int], None],
) -> list[Neighbors]:
    """Search with one call per scope: lists [S, P, K]."""
    lists: list[list[Neighbors]] = [[] for _ in ks]
    for scope in scopes:
        groups, bio, center = search_input.labels(scope)
        options: dict[str, Any] = {
            "k": ks[0],
            "budget_bytes": budget_bytes,
            "on_progress": tell if len(search_input.scopes) == 1 else None,
        }
        rows = search_input.rows(scope)
        find: Callable[..., Neighbors] = kernel.find_neighbors
        find_typed: Callable[..., Sequence[Neighbors]] = kernel.find_typed_neighbors
        if isinstance(rows, RowSource):
            find = stream.find_neighbors_streamed
            find_typed = stream.find_typed_neighbors_streamed
            options["device"] = options_in_memory["mesh"].devices.flat[0]
            # The host, or the device, holds a few blocks, as other readers of the rows do.
            options["block_bytes"] = BLOCKS * rows.block_bytes
        else:
            options |= options_in_memory
        neighbors = (
            find_typed(rows, groups, bio, center, m=ks[1], **options)
            if len(ks) > 1
            else [find(rows, groups, **options)]
        )
        for by_scope, part in zip(lists, neighbors, strict=True):
            by_scope.append(part)
        if len(search_input.scopes) > 1:
            tell(len(scope.rows))
    if not scopes:
        return _no_lists(search_input, ks)
    if len(search_input.scopes) == 1:  # without a copy
        return [Neighbors(*(a[None] for a in part)) for [part] in lists]
    return [Neighbors(*map(np.stack, zip(*by_scope, strict=True))) for by_scope in lists]


def _no_lists(search_input: SearchInput, ks: tuple[int, ...]) -> list[Neighbors]:
    """Lists [0, P, K], of a process without a scope."""
    shapes = [(0, search_input.size, k) for k in ks]
    return [Neighbors(np.empty(s, np.int32), np.empty(s, np.float32)) for s in shapes]


def _search_together(
    search_input: SearchInput,
    scopes: Sequence[Scope],
    ks: tuple[int, ...],
    budget_bytes: int,
    mesh: Mesh,
    tell: Callable[[int], None],
) -> list[Neighbors]:
    """Search many scopes per call, with all calls of one shape: lists [S, P, K]."""
    if not scopes:
        return _no_lists(search_input, ks)
    per_call = min(CALL_SUBSETS * mesh.size, len(scopes))
    embeddings = devices.to_device(search_input.embeddings)
    parts: list[list[Neighbors]] = []
    for start in range(0, len(scopes), per_call):
        called = scopes[start : start + per_call]
        rows = np.zeros((per_call, search_input.size), np.int32)
        labels = np.full((3, per_call, search_input.size), kernel.PADDING_GROUP, np.int32)
        for i, scope in enumerate(called):
            rows[i, : len(scope.rows)] = search_input.row_of[scope.rows]
            labels[:, i] = search_input.labels(scope)
        neighbors = batched.search(
            embeddings,
            rows,
            labels[: len(ks)],
            ks,
            budget_bytes=budget_bytes,
            mesh=mesh,
        )
        parts.append([Neighbors(*(a[: len(called)] for a in lists)) for lists in neighbors])
        tell(_count(called))
    return [
        Neighbors(*map(np.concatenate, zip(*by_call, strict=True)))
        for by_call in zip(*parts, strict=True)
    ]


def describe(search_input: SearchInput, *, k: int, m: int) -> dict[str, Any]:
    """Everything that a graph depends on: digests of rows, scopes and labels, and k and m."""
    rows = np.concatenate([scope.rows for scope in search_input.scopes]).astype(np.int64)
    sizes = np.array([len(scope.rows) for scope in search_input.scopes], np.int64)
    labels = [ids for scope in search_input.scopes for ids in (scope.bio_id, scope.center_id)]
    return {
        "schema_version": SCHEMA_VERSION,
        "pathorob_jax": __version__,
        "distance": "cosine",
        "rule": "rows of the own group left out; order (exact distance, row)",
        "rows_sha256": _digest_rows(search_input.embeddings),
        "scopes_sha256": digests.digest(
            *(a.tobytes() for a in (search_input.row_of[rows], search_input.group_id[rows], sizes))
        ),
        "labels_sha256": digests.digest(*(a.astype(np.int32).tobytes() for a in labels)),
        "k": k,
        "m": m,
    }


def _digest_rows(rows: Float[np.ndarray, "U D"] | RowSource) -> str:
    if not isinstance(rows, RowSource):
        return digests.digest_array(rows)
    size = rows.block_rows
    blocks = (rows[start : start + size] for start in range(0, len(rows), size))
    return digests.digest_blocks(rows.shape, np.dtype(np.float32), blocks)
