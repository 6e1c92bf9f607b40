"""One neighbour search per scope, shared by every metric that asks neighbours.

Enters: a store, the rows of a view, a protocol. Leaves: ``Neighborhood``: scopes with their exact
neighbours and counts, the operating k, and what the result must say about all of that.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import checks, devices, digests
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import protocols, row_views
from pathorob_jax.data.manifest import SLIDE, SUBSET, Manifest, locate
from pathorob_jax.data.row_views import Scope
from pathorob_jax.embeddings.store import Store
from pathorob_jax.evaluation import neighbor_cache, neighbor_graph
from pathorob_jax.evaluation.neighbor_graph import NeighborGraph, SearchInput
from pathorob_jax.kernels.bootstrap import draws as bootstrap
from pathorob_jax.kernels.neighbors import search as kernel
from pathorob_jax.kernels.neighbors.search import Neighbors, TypedNeighbors
from pathorob_jax.metrics import robustness_index as ri
from pathorob_jax.results.result_files import make_provenance

SUPPORT_WARNING = 0.5
EQUAL_ROWS_WARNING = 0.01
DesignChoice = Literal["auto", "all", "paired"]


@dataclass(frozen=True)
class Settings:
    """What a user may choose; the defaults are the protocol's.

    Attributes:
        k: ``default`` (the published k; for a dataset of one's own the same as ``auto``), ``auto``
            (first maximum of the balanced accuracy over the k grid), or a number.
        design: ``auto`` (the protocol's), ``all`` or ``paired``.
        max_patches_per_combi: keep the first n patches of each (subset, class, centre), after the
            protocol's shuffle; None keeps all.
        columns: our column name -> the manifest's, for class and centre.
        confounders: manifest columns to take in the centre's place, each with results of its own
            (``<dataset>@<column>``); empty: the centre alone.
        group_column: rows that share its value are never neighbours.
        min_cell_size: patches in each cell of the 2 x 2 subsets that are derived from a manifest
            without subsets (design ``paired``).
        neighbors: file of neighbours found elsewhere; None: search.
        precision: of the search, ``float32`` or ``fast`` (bfloat16 candidates, checked).
        seed: of the bootstrap over groups.
        draws: of the bootstrap.
        budget_bytes: memory for a pair of tiles of scores.
    """

    k: int | str = "default"
    design: DesignChoice = "auto"
    max_patches_per_combi: int | None = None
    columns: dict[str, str] | None = None
    confounders: tuple[str, ...] = ()
    group_column: str = SLIDE
    min_cell_size: int = 30
    neighbors: str | None = None
    precision: kernel.Precision = "float32"
    seed: int = 0
    draws: int = 2000
    budget_bytes: int = kernel.DEFAULT_BUDGET_BYTES


class ScopeNeighbors(NamedTuple):
    """A scope and its exact neighbours; rows past the scope's own are padding.

    Attributes:
        scope: rows and labels.
        group_id: int32[n] of the scope's rows.
        any: nearest rows of other groups.
        typed: the nearest of the two decisive types; None unless asked for.
        tally: integer counts.
    """

    scope: Scope
    group_id: np.ndarray
    any: Neighbors
    typed: TypedNeighbors | None
    tally: ri.Tally


@dataclass(frozen=True, eq=False)
class Neighborhood:
    """What neighbour metrics compute from.

    Attributes:
        design: ``all`` or ``paired``.
        scopes: with their neighbours.
        searched: embeddings, groups and scopes that they were sought among.
        probe_group_id: int32[N] what a fold of a probe never splits: groups, or cases.
        probe_seed: of those folds.
        k: operating number of neighbours.
        k_rule: how it was chosen: ``published``, ``auto`` or ``given``.
        k_available: the largest k that every row has.
        grid: values of k at which curves are known, ascending.
        n_slides: slides of the view's rows.
        equal_rows: share of the embeddings that equal another one.
        seed: of draws and permutations.
        draws: of the bootstrap over groups.
        draws_key: names rows, groups and draws; models of equal keys may be compared by draw.
        provenance: of the result.
    """

    design: protocols.Design
    scopes: list[ScopeNeighbors]
    searched: SearchInput
    probe_group_id: np.ndarray
    probe_seed: int
    k: int
    k_rule: str
    k_available: int
    grid: tuple[int, ...]
    n_slides: int
    equal_rows: float
    seed: int
    draws: int
    draws_key: str
    provenance: dict[str, Any]

    @property
    def group_id(self) -> np.ndarray:
        """int32[N] of the view's rows."""
        return self.searched.group_id

    def embeddings(self, found: ScopeNeighbors) -> np.ndarray:
        """float32[P, D] of a scope's rows, padded as its neighbours are."""
        return self.searched.rows(found.scope)

    @property
    def eligible(self) -> np.ndarray:
        """int64[4] pairs by type over all eligible neighbours of all scopes."""
        return np.sum([s.tally.eligible.sum((0, 1)) for s in self.scopes], axis=0)

    @cached_property
    def group_weights(self) -> np.ndarray:
        """int32[draws, G]: how often each group is drawn; the same draws for every statistic."""
        return bootstrap.draw_group_weights(
            int(self.group_id.max()) + 1, draws=self.draws, seed=self.seed
        )

    @property
    def row_groups(self) -> np.ndarray:
        """int32: group of each sample, scope after scope."""
        return np.concatenate([s.group_id for s in self.scopes])

    def sum_groups(self, values: np.ndarray) -> np.ndarray:
        """Sum over the samples of each group, float64[G], of values given scope after scope."""
        return np.bincount(self.row_groups, weights=values, minlength=self.group_weights.shape[1])

    @property
    def tallies(self) -> list[ri.Tally]:
        """Counts of all scopes."""
        return [s.tally for s in self.scopes]

    def warn(self, support: float) -> list[str]:
        """What a reader must know; also logged."""
        out = []
        if support < SUPPORT_WARNING:
            out.append(
                f"support {support:.0%}: only that share of the samples has a neighbour that is SO "
                f"or OS among its {self.k} nearest; the index speaks for these alone."
            )
        if self.k > self.k_available:
            out.append(
                f"k = {self.k} exceeds {self.k_available}, the neighbours outside their own slide "
                "that rows of the largest slide have; such rows count with fewer."
            )
        if self.provenance["neighbors"]["source"] != "search":
            out.append(
                "the neighbours were imported: that they are the nearest was not checked; their "
                "distances and groups were."
            )
        if not ri.can_decide(self.eligible):
            out.append(
                "the index is undefined: no pair of patches of different slides is SO, or none is "
                "OS (a centre of one slide has no OS neighbour); add slides."
            )
        if self.equal_rows > EQUAL_ROWS_WARNING:
            out.append(
                f"{self.equal_rows:.0%} of the embeddings equal another one exactly; the order of "
                "such neighbours is that of their rows and says nothing."
            )
        centers = sorted({name for s in self.scopes for name in s.scope.centers})
        for one, other in row_views.find_aliases(centers):
            out.append(
                f"medical centres {one!r} and {other!r} may be one: they count as different; give "
                "them one name in the manifest if they are."
            )
        for text in out:
            logging.warning("%s", text)
        return out


def find_neighborhood(
    store: Store,
    view: Manifest,
    *,
    protocol: protocols.NeighborProtocol | None,
    settings: Settings,
    typed: int = 0,
    mesh: Mesh | None = None,
    keep_graph: bool = True,
) -> Neighborhood:
    """Search the neighbours of a view's rows, once for all metrics.

    Args:
        store: embeddings.
        view: rows, in the protocol's order.
        protocol: None for a dataset of one's own.
        settings: what a user may choose.
        typed: how many of the nearest of each decisive type to find; 0: none.
        mesh: devices; None: all local ones.
        keep_graph: neighbours kept beside the store are used, and new ones kept there.

    Raises:
        InputError: rows, labels or embeddings that neighbours cannot be sought among.
    """
    design = _choose_design(settings, protocol)
    if design == "paired" and protocol is None and SUBSET not in view:
        view = row_views.derive_pairs(view, settings.min_cell_size)
    if settings.max_patches_per_combi is not None:
        view = row_views.first_of_each_cell(view, settings.max_patches_per_combi)
    scopes = row_views.make_scopes(view, design)
    group_id = _read_groups(view, settings.group_column)
    available = min(ri.available_neighbors(group_id[s.rows]) for s in scopes)
    if available < 1:
        raise InputError(
            f"{view.source}: expected at least two values of {settings.group_column!r} among rows "
            "that are compared, found one; rows of the same slide are never neighbours, so none "
            "are left. Add slides, or name another column with --group_column."
        )
    rule = _k_rule(settings, protocol)
    positions = locate(view, store.manifest, relabelled=renamed_columns(settings))
    embeddings, row_of = _read_rows(store, positions)
    given = SearchInput(embeddings, row_of, group_id, scopes)
    k, grid = _choose_k(rule, settings, protocol, design, available, given.size)
    mesh = mesh or devices.make_mesh(jax.local_devices())
    search: dict[str, Any] = {
        "k": grid[-1],
        "m": typed,
        "precision": settings.precision,
        "budget_bytes": settings.budget_bytes,
        "mesh": mesh,
    }
    if settings.neighbors is not None:
        graph = neighbor_cache.import_graph(
            settings.neighbors, given, positions, k=grid[-1], m=typed
        )
    elif keep_graph:
        graph = neighbor_cache.reuse_or_find(store.path, given, **search)
    else:
        graph = neighbor_graph.find_graph(given, **search)
    found = tally_scopes(graph, given, grid)
    return Neighborhood(
        design=design,
        scopes=found,
        searched=given,
        probe_group_id=_probe_groups(view, group_id, protocol),
        probe_seed=protocol.probe_seed if protocol else protocols.PROBE_SEED,
        k=k or ri.best_k([s.tally for s in found], k_max=available),
        k_rule=rule,
        k_available=available,
        grid=grid,
        n_slides=len(view.factorize(SLIDE).names),
        equal_rows=_share_equal(embeddings),
        seed=settings.seed,
        draws=settings.draws,
        draws_key=_draws_key(view, settings),
        provenance=make_provenance(
            mesh=mesh,
            store={
                "identity": store.info["identity"],
                "manifest_sha256": store.info["manifest_sha256"],
                "rows_sha256": graph.info["rows_sha256"],
                "versions": store.info["versions"],
            },
            settings=asdict(settings) | {"view": view.source, "view_sha256": view.fingerprint()},
        )
        | {"neighbors": graph.info},
    )


def _draws_key(view: Manifest, settings: Settings) -> str:
    parts = (view.fingerprint(), settings.group_column, settings.seed, settings.draws)
    return digests.digest(*(str(part).encode() for part in parts))


def renamed_columns(settings: Settings) -> set[str]:
    """Our columns whose values come from another column of the manifest."""
    return {ours for ours, theirs in (settings.columns or {}).items() if ours != theirs}


def _choose_design(
    settings: Settings, protocol: protocols.NeighborProtocol | None
) -> protocols.Design:
    if settings.design != "auto":
        return settings.design
    return protocol.design if protocol else "all"


def _probe_groups(
    view: Manifest, group_id: np.ndarray, protocol: protocols.NeighborProtocol | None
) -> np.ndarray:
    """The groups, or cases where the protocol cuts them out of the slide id; by ascending name."""
    if protocol is None or protocol.probe_group_prefix is None:
        return group_id
    cases = [slide[: protocol.probe_group_prefix] for slide in view.column(SLIDE)]
    return np.unique(cases, return_inverse=True)[1].astype(np.int32)


def _read_groups(view: Manifest, column: str) -> np.ndarray:
    """int32[N] groups whose rows are never each other's neighbours.

    Raises:
        InputError: a cell is empty, or a slide lies in several groups: its rows would be each
            other's neighbours.
    """
    groups = view.factorize(column)
    if "" in groups.names:
        raise InputError(
            f"{view.source}: column {column!r} is empty in some rows; they would all be one group. "
            "Fill it, or name another with --group_column."
        )
    slides = view.factorize(SLIDE)
    _, first = np.unique(slides.ids, return_index=True)
    split = np.flatnonzero(groups.ids[first][slides.ids] != groups.ids)
    if split.size:
        raise InputError(
            f"{view.source}: slide {slides.names[slides.ids[split[0]]]!r} lies in several groups "
            f"of column {column!r}; rows of one slide would be each other's neighbours. A group "
            "holds whole slides (a case, a batch)."
        )
    return groups.ids


def _share_equal(embeddings: np.ndarray) -> float:
    """Share of rows that equal another row; by one random projection, which equal rows share."""
    axis = np.random.default_rng(0).standard_normal(embeddings.shape[1])
    projected = np.concatenate(
        [
            embeddings[i : i + 4096].astype(np.float64) @ axis
            for i in range(0, len(embeddings), 4096)
        ]
    )
    _, counts = np.unique(projected, return_counts=True)
    return float(counts[counts > 1].sum() / len(embeddings))


def _read_rows(store: Store, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings that a view needs, each once, and for each row of the view its position in them.

    Raises:
        InputError: a row has no direction.
    """
    unique, row_of = np.unique(positions, return_inverse=True)
    if len(unique) == len(positions):  # in the view's own order: no second copy is needed
        unique, row_of = positions, np.arange(len(positions))
    embeddings = store.read(unique)
    bad, word = checks.find_bad_rows(embeddings)
    if bad.size:
        key = store.manifest.keys[int(unique[bad[0]])]
        raise InputError(
            f"{store.path}: {bad.size} embeddings hold {word}, the first is patch {key}. Extract "
            "or import the store again."
        )
    return embeddings, row_of


def tally_scopes(
    graph: NeighborGraph, given: SearchInput, grid: Sequence[int]
) -> list[ScopeNeighbors]:
    """Counts of every scope, over one numbering of cells so that one trace serves."""
    n_bio = max(len(s.classes) for s in given.scopes)
    n_center = max(len(s.centers) for s in given.scopes)
    out = []
    for i, scope in enumerate(given.scopes):
        nearest, typed = graph.scope(i, k=grid[-1])
        group_id = given.group_id[scope.rows]
        tally = ri.tally_neighbors(
            nearest,
            scope.bio_id,
            scope.center_id,
            group_id,
            n_bio=n_bio,
            n_center=n_center,
            k_grid=grid,
        )
        out.append(ScopeNeighbors(scope, group_id, nearest, typed, tally))
    return out


def _choose_k(
    rule: str,
    settings: Settings,
    protocol: protocols.NeighborProtocol | None,
    design: protocols.Design,
    available: int,
    largest: int,
) -> tuple[int | None, tuple[int, ...]]:
    """The operating k (None: to be chosen on the grid), and the grid, which ends at the largest."""
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
