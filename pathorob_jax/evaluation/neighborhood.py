"""The neighbours of a view's rows, searched once and shared by all metrics that use them.

``find_neighborhood`` chooses the design and the number of neighbours, searches each scope, and
counts types and votes. A ``Neighborhood`` also has the draws of all these metrics.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import cost, devices, digests, hosts, scratch
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.provenance import make_provenance
from pathorob_jax.data import protocols, row_views
from pathorob_jax.data.manifest import SLIDE, SUBSET, Manifest
from pathorob_jax.data.row_views import Scope
from pathorob_jax.embeddings import row_file
from pathorob_jax.embeddings.store import Store
from pathorob_jax.evaluation import (
    neighbor_cache,
    neighbor_graph,
    neighbor_imports,
    row_warnings,
    search_way,
)
from pathorob_jax.evaluation.neighbor_graph import NeighborGraph, SearchInput
from pathorob_jax.evaluation.settings import MIN_CELL_SIZE, Settings
from pathorob_jax.kernels.bootstrap.draws import DRAWS_KIND, Jackknife, plan_jackknife
from pathorob_jax.kernels.neighbors import equal_rows, label_counts
from pathorob_jax.kernels.neighbors.search import Neighbors
from pathorob_jax.metrics import neighbor_tally
from pathorob_jax.metrics import robustness_index as ri
from pathorob_jax.metrics.left_out_slides import NeighborBlocks
from pathorob_jax.metrics.neighbor_tally import Tally

SUPPORT_WARNING = 0.5
EQUAL_ROWS_WARNING = 0.01


class ScopeNeighbors(NamedTuple):
    """A scope of n rows and their exact neighbours.

    Attributes:
        scope: rows and labels.
        group_id: int32[n] groups of the scope's rows.
        any: nearest rows of other groups, int32[n, K] and float32[n, K].
        same_other: the nearest of type SO; None unless requested.
        other_same: the nearest of type OS; None unless requested.
        tally: integer counts.
    """

    scope: Scope
    group_id: np.ndarray
    any: Neighbors
    same_other: Neighbors | None
    other_same: Neighbors | None
    tally: Tally

    def types(self, k: int) -> np.ndarray:
        """int8[n, k] types of the k nearest of each row."""
        return label_counts.neighbor_types(
            self.any.indices[:, :k], self.scope.bio_id, self.scope.center_id
        )

    def recall(self, label_id: np.ndarray, k: int) -> float:
        """Mean recall over labels of the vote of the k nearest."""
        n_labels = int(label_id.max()) + 1
        right, voted = label_counts.majority_votes(
            self.any.indices, label_id, np.array([k]), n_labels=n_labels
        )
        counts = (np.bincount(label_id, part[:, 0], n_labels) for part in (right, voted))
        return float(ri.mean_defined(ri.ratio(*counts)))


@dataclass(frozen=True, eq=False)
class Neighborhood:
    """Data from which neighbour metrics are computed.

    Attributes:
        design: ``all`` or ``paired``.
        scopes: scopes with their neighbours.
        searched: embeddings, groups and scopes of the search.
        store_rows: int64[N] row of the store's manifest for each of the view's rows.
        probe_group_id: int32[N] groups, or cases, that a fold of a probe never splits.
        probe_seed: seed of those folds.
        k: operating number of neighbours.
        k_rule: how k was chosen: ``published``, ``auto`` or ``given``.
        k_available: largest k for which every row has k neighbours.
        grid: values of k of the curves, ascending.
        n_slides: number of slides of the view's rows.
        equal_rows: share of the embeddings that equal another embedding in direction.
        collapsed: whether all embeddings have one direction, so that no row has neighbours.
        seed: seed of draws and permutations.
        draws: number of draws over groups.
        draws_key: identifies rows, groups and draws; models with equal keys may be compared draw by
            draw.
        row_warnings: what the reader must know about the rows, whatever the metric.
        provenance: provenance of the result.
    """

    design: protocols.Design
    scopes: list[ScopeNeighbors]
    searched: SearchInput
    store_rows: np.ndarray
    probe_group_id: np.ndarray
    probe_seed: int
    k: int
    k_rule: str
    k_available: int
    grid: tuple[int, ...]
    n_slides: int
    equal_rows: float
    collapsed: bool
    seed: int
    draws: int
    draws_key: str
    row_warnings: list[str]
    provenance: dict[str, Any]

    @property
    def group_id(self) -> np.ndarray:
        """int32[N] groups of the view's rows."""
        return self.searched.group_id

    def embeddings(self, scope: Scope) -> np.ndarray:
        """float32[P, D] of a scope's rows, padded to the size of the largest scope; in memory."""
        return self.searched.rows(scope)[:]

    @property
    def eligible(self) -> np.ndarray:
        """int64[4] number of pairs by type over all eligible neighbours of all scopes."""
        return np.sum([s.tally.eligible.sum((0, 1)) for s in self.scopes], axis=0)

    @cached_property
    def jackknife(self) -> Jackknife:
        """Slides to leave out, and the draws; the same ones for every statistic."""
        n_groups = int(self.group_id.max()) + 1
        return plan_jackknife(n_groups, draws=self.draws, seed=self.seed)

    @property
    def scope_blocks(self) -> list[np.ndarray]:
        """int32[n] blocks of the samples of each scope."""
        return [self.jackknife.block_of[s.group_id] for s in self.scopes]

    @property
    def neighbor_blocks(self) -> list[NeighborBlocks]:
        """The k nearest of each scope, by block."""
        return [
            NeighborBlocks(s.any.indices[:, : self.k], s.types(self.k), block_id)
            for s, block_id in zip(self.scopes, self.scope_blocks, strict=True)
        ]

    @property
    def scope_groups(self) -> list[np.ndarray]:
        """int32[n] groups of the samples of each scope."""
        return [s.group_id for s in self.scopes]

    @property
    def tallies(self) -> list[Tally]:
        """Counts of all scopes."""
        return [s.tally for s in self.scopes]

    def warn(self, support: float) -> list[str]:
        """Warnings for the reader; they are also logged."""
        texts = []
        if support < SUPPORT_WARNING:
            texts.append(
                f"support {support:.0%}: only that share of the samples has a neighbour that is SO "
                f"or OS among its {self.k} nearest; the index speaks for these alone."
            )
        if self.k > self.k_available:
            texts.append(
                f"k = {self.k} exceeds {self.k_available}, the neighbours outside their own slide "
                "that rows of the largest slide have; such rows count with fewer."
            )
        if self.provenance["neighbors"]["source"] != "search":
            texts.append(
                "the neighbours come from a file. Their distances and slides were checked; that no "
                "nearer neighbour exists was not."
            )
        if not ri.can_decide(self.eligible):
            texts.append(
                "the index is undefined: no pair of patches of different slides is SO, or none is "
                "OS (a centre of one slide has no OS neighbour); add slides."
            )
        texts += self.embedding_warnings
        for text in texts:
            logging.warning("%s", text)
        return texts

    @property
    def embedding_warnings(self) -> list[str]:
        """What the reader must know about embeddings and rows, whatever the metric."""
        texts = []
        if self.collapsed:
            texts.append(
                "all embeddings have one direction within float32's rounding: no neighbour is "
                "nearer than another, and nothing can be measured. The model has collapsed, or "
                "the embeddings are not those of the tiles."
            )
        elif self.equal_rows > EQUAL_ROWS_WARNING:
            texts.append(
                f"{self.equal_rows:.0%} of the embeddings equal another one in direction; the "
                "order of such neighbours is that of their rows and says nothing."
            )
        return texts + self.row_warnings


def find_neighborhood(
    store: Store,
    view: Manifest,
    *,
    protocol: protocols.NeighborProtocol | None,
    settings: Settings,
    n_typed: int = 0,
    mesh: Mesh | None = None,
    keep_graph: bool = True,
) -> Neighborhood:
    """Search the neighbours of a view's rows, once for all metrics.

    Args:
        store: embeddings.
        view: rows, in the protocol's order.
        protocol: protocol of the dataset; None for a custom dataset.
        settings: choices of the user.
        n_typed: neighbours of each of the types SO and OS to find; 0: none.
        mesh: devices; None: all local devices; see ``run.Request``.
        keep_graph: whether to use neighbours cached in the store's folder, and to keep new ones.

    Raises:
        UsageError: a setting would be ignored.
        InputError: neighbours cannot be searched among the rows, labels or embeddings.
    """
    design, view = choose_rows(view, protocol=protocol, settings=settings)
    group_id = row_views.read_groups(view, settings.group_column).ids
    scopes = row_views.make_scopes(view, design)
    available = min(neighbor_tally.available_neighbors(group_id[s.rows]) for s in scopes)
    if available < 1:
        raise InputError(
            f"{view.source}: expected at least two values of {settings.group_column!r} among rows "
            "that are compared, found one; rows of the same slide are never neighbours, so none "
            "are left. Add slides, or name another column with --group_column."
        )
    mesh = mesh or devices.local_mesh()
    way = search_way.choose_way(settings, n=len(view), dim=store.dim, mesh=mesh)
    read = None
    if way == "stream":
        hosts.give_back_memory()
        read = functools.partial(row_file.copy_rows, store)
    patches = store.read_unique_patches(view, relabelled=settings.renamed_columns, read=read)
    logging.info("neighbours: %d rows, searched by %s", len(patches.embeddings), way)
    cost.note_search("ring" if hosts.is_joint(mesh) else way)
    searched = SearchInput(patches.embeddings, patches.row_of, group_id, scopes)
    rule = _k_rule(settings, protocol)
    k, grid = _choose_k(rule, settings, protocol, design, available, searched.size)
    if settings.neighbors is not None:
        graph = neighbor_imports.import_graph(
            settings.neighbors, searched, patches.store_rows, k=grid[-1], m=n_typed
        )
    else:
        options: dict[str, Any] = {
            "k": grid[-1],
            "m": n_typed,
            "precision": settings.precision,
            "budget_bytes": settings.budget_bytes,
            "mesh": mesh,
            "layout": search_way.LAYOUTS[way],
        }
        if keep_graph:
            graph = neighbor_cache.reuse_or_find(store.path, searched, **options)
        else:
            graph = neighbor_graph.find_graph(searched, **options)
    equal = equal_rows.find_equal(patches.embeddings)
    collapsed = bool(equal.all()) and equal_rows.have_one_direction(patches.embeddings)
    if collapsed:
        graph = _without_neighbors(graph)
    tallied = tally_scopes(graph, searched, grid)
    chosen = settings.of_neighbors() | {"view_sha256": view.fingerprint()}
    return Neighborhood(
        design=design,
        scopes=tallied,
        searched=searched,
        store_rows=patches.store_rows,
        probe_group_id=_probe_groups(view, group_id, settings, protocol),
        probe_seed=protocol.probe_seed if protocol else protocols.PROBE_SEED,
        k=k or ri.best_k([s.tally for s in tallied], k_max=available),
        k_rule=rule,
        k_available=available,
        grid=grid,
        n_slides=len(view.factorize(SLIDE).names),
        equal_rows=float(equal.mean()),
        collapsed=collapsed,
        seed=settings.seed,
        draws=settings.draws,
        draws_key=make_draws_key(view, settings),
        row_warnings=[
            *row_warnings.warn_of_names(view),
            *row_warnings.warn_of_design(tallied),
            *row_warnings.warn_of_chance(
                tallied, n_patches=len(patches.embeddings), seed=settings.seed
            ),
        ],
        provenance=make_provenance(
            mesh=mesh,
            store=store.provenance(graph.info["rows_sha256"]),
            settings=chosen,
            view=view.source,
        )
        # In one order, whether they were found or read.
        | {"neighbors": dict(sorted(graph.info.items()))},
    )


def choose_rows(
    view: Manifest, *, protocol: protocols.NeighborProtocol | None, settings: Settings
) -> tuple[protocols.Design, Manifest]:
    """The design, and the rows of a view that are used: derived subsets, patches of each cell.

    Raises:
        UsageError: a setting would be ignored.
        InputError: no subsets can be derived.
    """
    design = choose_design(settings, protocol)
    return design, _choose_rows(view, design, settings, protocol)


def tally_scopes(
    graph: NeighborGraph, searched: SearchInput, grid: Sequence[int]
) -> list[ScopeNeighbors]:
    """Neighbours and counts of every scope, without the padding of the graph."""
    out = []
    for i, scope in enumerate(searched.scopes):
        n, group_id = len(scope.rows), searched.group_id[scope.rows]
        nearest = Neighbors(*(a[i, :n, : grid[-1]] for a in graph.any))
        same_other, other_same = (
            None if lists is None else Neighbors(*(a[i, :n] for a in lists))
            for lists in (graph.same_other, graph.other_same)
        )
        tally = neighbor_tally.tally_neighbors(
            nearest.indices,
            scope.bio_id,
            scope.center_id,
            group_id,
            n_bio=len(scope.classes),
            n_center=len(scope.centers),
            k_grid=grid,
        )
        out.append(ScopeNeighbors(scope, group_id, nearest, same_other, other_same, tally))
    return out


def _choose_rows(
    view: Manifest,
    design: protocols.Design,
    settings: Settings,
    protocol: protocols.NeighborProtocol | None,
) -> Manifest:
    """Rows of the view that are used: derived subsets, the first patches of each cell."""
    derived = design == "paired" and protocol is None and SUBSET not in view
    if derived:
        view = row_views.derive_pairs(view, settings.min_cell_size or MIN_CELL_SIZE)
    elif settings.min_cell_size is not None:
        raise UsageError(
            f"min_cell_size: no subsets are derived from {view.source} (design {design}"
            f"{', which names subsets' if SUBSET in view else ''}); give it with --design=paired "
            "and a manifest without subsets, or leave it out."
        )
    if settings.max_patches_per_combi is not None:
        view = row_views.first_of_each_cell(view, settings.max_patches_per_combi)
    return view


def make_draws_key(view: Manifest, settings: Settings) -> str:
    """Key of rows, groups and draws; see ``Neighborhood.draws_key``."""
    parts = (view.fingerprint(), settings.group_column, settings.seed, settings.draws, DRAWS_KIND)
    return digests.digest(*(str(part).encode() for part in parts))


def choose_design(
    settings: Settings, protocol: protocols.NeighborProtocol | None
) -> protocols.Design:
    """The design that was given, or that of the protocol."""
    if settings.design != "auto":
        return settings.design
    return protocol.design if protocol else "all"


def _probe_groups(
    view: Manifest,
    group_id: np.ndarray,
    settings: Settings,
    protocol: protocols.NeighborProtocol | None,
) -> np.ndarray:
    """Groups that a fold never splits, numbered by ascending name.

    They are the cases if the protocol derives cases from the slide id; otherwise, and always with a
    custom group column, they are the groups of the search.
    """
    prefix = protocol.probe_group_prefix if protocol else None
    if prefix is None or settings.group_column != SLIDE:
        return group_id
    cases = [slide[:prefix] for slide in view.column(SLIDE)]
    return np.unique(cases, return_inverse=True)[1].astype(np.int32)


def _without_neighbors(graph: NeighborGraph) -> NeighborGraph:
    """The graph with empty lists."""

    def empty(lists: Neighbors) -> Neighbors:
        return Neighbors(*map(scratch.full_like, lists, (-1, np.inf)))

    typed = [
        None if lists is None else empty(lists) for lists in (graph.same_other, graph.other_same)
    ]
    return NeighborGraph(graph.info, empty(graph.any), *typed)


def _choose_k(
    rule: str,
    settings: Settings,
    protocol: protocols.NeighborProtocol | None,
    design: protocols.Design,
    available: int,
    largest: int,
) -> tuple[int | None, tuple[int, ...]]:
    """The operating k (None: choose it on the grid), and the grid, whose last k is the largest."""
    if rule == "auto":
        same = protocol is not None and protocol.design == design
        limit = protocol.k_limit if protocol is not None and same else protocols.CUSTOM_K_LIMIT
        return None, protocols.k_grid(min(limit, available + 1))
    k = protocol.k if rule == "published" and protocol else int(settings.k)
    if k >= largest:
        raise UsageError(f"k: expected less than the {largest} rows that are compared, found {k}.")
    return k, (*protocols.k_grid(min(k, available + 1)), k)


def _k_rule(settings: Settings, protocol: protocols.NeighborProtocol | None) -> str:
    if settings.k == "default":
        return "published" if protocol else "auto"
    return "auto" if settings.k == "auto" else "given"
