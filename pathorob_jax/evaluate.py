"""Embedding stores -> results: which metric reads which rows, in one pass. Also the Python API.

Enters: a store, a dataset's protocol (or a manifest of one's own), metadata files. Leaves: one
result record per metric, written to ``<root>/<model>/<dataset>/<metric>.json``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from absl import logging
from jax.sharding import Mesh

from pathorob_jax import checks, datasets, files, views
from pathorob_jax.checks import InputError, UsageError
from pathorob_jax.kernels import neighbors as neighbor_kernel
from pathorob_jax.manifest import SLIDE, Manifest, locate, read_manifest
from pathorob_jax.metrics import robustness_index as ri
from pathorob_jax.progress import Progress
from pathorob_jax.results import (
    Curve,
    Group,
    NeighborTypes,
    RobustnessIndexResult,
    make_provenance,
    write_result,
)
from pathorob_jax.store import Store, find_stores

METRICS = ("robustness_index",)
SUPPORT_WARNING = 0.5
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
        group_column: rows that share its value are never neighbours.
        budget_bytes: memory for blocks of scores.
    """

    k: int | str = "default"
    design: DesignChoice = "auto"
    max_patches_per_combi: int | None = None
    columns: Mapping[str, str] | None = None
    group_column: str = SLIDE
    budget_bytes: int = neighbor_kernel.DEFAULT_BUDGET_BYTES


def find_datasets(embeddings: str, names: Sequence[str]) -> list[tuple[str, str, str]]:
    """Stores that ``--embeddings`` and ``--dataset`` mean.

    Args:
        embeddings: ``<root>/<model>/<dataset>`` or ``<root>/<model>``.
        names: datasets; empty: all that are there.

    Returns:
        (path of the store, model, dataset) each.

    Raises:
        FileNotFoundError: there is no store.
        UsageError: several datasets asked of one store.
    """
    embeddings = embeddings.rstrip("/")
    parts = embeddings.split("/")
    if files.exists(files.join(embeddings, "store.json")):
        if len(names) > 1:
            raise UsageError(
                f"dataset: {embeddings} is the store of one dataset, found {list(names)}; give "
                "<root>/<model> to evaluate several."
            )
        return [(embeddings, parts[-2], names[0] if names else parts[-1])]
    found = find_stores(embeddings)
    if not found:
        raise FileNotFoundError(
            f"{embeddings}: no embedding store; expected <root>/<model>/<dataset> or "
            "<root>/<model>, as experiments.extract or experiments.import_embeddings write them."
        )
    for name in names:
        checks.check_known(name, found, what=f"dataset (stores under {embeddings})")
    return [(files.join(embeddings, n), parts[-1], n) for n in names or found]


def evaluate(
    store: Store,
    *,
    model: str,
    dataset: str,
    root: str,
    metrics: Sequence[str] = METRICS,
    metadata_dir: str | None = None,
    manifest: str | None = None,
    settings: Settings | None = None,
    mesh: Mesh | None = None,
) -> list[str]:
    """Compute metrics of one store and write them.

    Args:
        store: embeddings.
        model: name that the results carry.
        dataset: a protocol's name, or any other for a dataset of one's own.
        root: folder of all results.
        metrics: names of ``METRICS``.
        metadata_dir: folder of the protocol's metadata files.
        manifest: rows and labels for a dataset of one's own; None: the store's.
        settings: what a user may choose.
        mesh: devices; None: all local ones.

    Returns:
        Paths of the files written.

    Raises:
        UsageError: unknown metric, or a protocol without its metadata folder.
        InputError: rows, labels or embeddings that the metric cannot work with.
    """
    for name in metrics:
        checks.check_known(name, METRICS, what="metrics")
    settings = settings or Settings()
    protocol = datasets.PROTOCOLS.get(dataset) if manifest is None else None
    if protocol is None:
        view = (
            store.manifest
            if manifest is None
            else read_manifest(manifest, columns=settings.columns)
        )
        chosen = None
    else:
        chosen = protocol.robustness_index
        view = views.read_view(
            chosen.view, metadata_dir=metadata_dir, dataset=dataset, columns=settings.columns
        )
        view = views.shuffle(view, chosen.shuffle_seed)
    result = evaluate_robustness_index(
        store, view, model=model, dataset=dataset, protocol=chosen, settings=settings, mesh=mesh
    )
    return [write_result(root, result)]


def evaluate_robustness_index(
    store: Store,
    view: Manifest,
    *,
    model: str,
    dataset: str,
    protocol: datasets.NeighborProtocol | None,
    settings: Settings,
    mesh: Mesh | None = None,
) -> RobustnessIndexResult:
    """The robustness index of a store on the rows of a view; see ``evaluate`` for the arguments."""
    design = settings.design
    if design == "auto":
        design = protocol.design if protocol else "all"
    if settings.max_patches_per_combi is not None:
        view = views.first_of_each_cell(view, settings.max_patches_per_combi)
    scopes = views.make_scopes(view, design)
    group_id = view.factorize(settings.group_column).ids
    available = min(ri.available_neighbors(group_id[s.rows]) for s in scopes)
    if available < 1:
        raise InputError(
            f"{view.source}: expected at least two values of {settings.group_column!r} among rows "
            "that are compared, found one; rows of the same slide are never neighbours, so none "
            "are left. Add slides, or name another column with --group_column."
        )
    k, grid = _choose_k(settings, protocol, design, available)
    embeddings, row_of = _read_rows(store, view)
    tallies = _tally_scopes(embeddings, row_of, group_id, scopes, grid, settings.budget_bytes, mesh)
    k = k or ri.best_k(tallies, k_max=available)
    names = [(s.classes, s.centers) for s in scopes]
    at_k = ri.measure(tallies, k)
    curve = [ri.measure(tallies, point) for point in grid]
    eligible = ri.companions(np.sum([t.eligible for t in tallies], axis=0))
    normalized = ri.ratio(
        at_k.companions.confounder_insensitivity, eligible.confounder_insensitivity
    )
    return RobustnessIndexResult(
        model=model,
        dataset=dataset,
        design=design,
        k=k,
        k_rule=_k_rule(settings, protocol),
        k_available=available,
        support=at_k.support,
        ci95=None,
        balanced_accuracy=at_k.recall,
        normalized_confounder_insensitivity=float(normalized),
        n_samples=len(view),
        n_slides=len(np.unique(group_id)),
        neighbor_types=NeighborTypes(*at_k.fractions),
        curve=Curve(
            k=list(grid),
            robustness_index=[float(m.companions.robustness_index) for m in curve],
            balanced_accuracy=[m.recall for m in curve],
            support=[m.support for m in curve],
            **{t: [m.fractions[i] for m in curve] for i, t in enumerate(("ss", "so", "os", "oo"))},
        ),
        per_class=_groups(ri.measure_classes(tallies, [c for c, _ in names], k)),
        per_center=_groups(ri.measure_centers(tallies, [m for _, m in names], k)),
        per_subset=_groups(
            {s.name: ri.measure([t], k) for s, t in zip(scopes, tallies, strict=True)}
            if design == "paired"
            else {}
        ),
        warnings=_warnings(at_k.support, k, available),
        provenance=make_provenance(
            store={
                "identity": store.info["identity"],
                "manifest_sha256": store.info["manifest_sha256"],
                "rows_sha256": files.digest_array(embeddings),
                "versions": store.info["versions"],
            },
            settings=asdict(settings) | {"view": view.source, "view_sha256": view.fingerprint()},
        ),
        **{name: float(value) for name, value in at_k.companions._asdict().items()},
    )


def _read_rows(store: Store, view: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings that a view needs, each once, and for each row of the view its position in them.

    Raises:
        InputError: a row has no direction.
    """
    positions = locate(view, store.manifest)
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


def _tally_scopes(
    embeddings: np.ndarray,
    row_of: np.ndarray,
    group_id: np.ndarray,
    scopes: Sequence[views.Scope],
    grid: Sequence[int],
    budget_bytes: int,
    mesh: Mesh | None,
) -> list[ri.Tally]:
    """Neighbours and counts of every scope; smaller scopes are padded, so that one trace serves."""
    size = max(len(s.rows) for s in scopes)
    n_bio, n_center = (max(len(s[i]) for s in scopes) for i in (4, 5))
    tallies = []
    total = sum(len(s.rows) for s in scopes)
    with Progress("neighbours", total=total, unit="sample") as progress:
        for scope in scopes:
            n = len(scope.rows)
            # A scope of all rows is taken as it is: indexing would copy it.
            rows = embeddings if n == len(embeddings) else embeddings[row_of[scope.rows]]
            groups = np.full(size, neighbor_kernel.PADDING_GROUP, np.int32)
            groups[:n] = group_id[scope.rows]
            found = neighbor_kernel.find_neighbors(
                rows if n == size else np.pad(rows, ((0, size - n), (0, 0))),
                groups,
                k=grid[-1],
                budget_bytes=budget_bytes,
                mesh=mesh,
                on_progress=progress.update if len(scopes) == 1 else None,
            )
            tallies.append(
                ri.tally_neighbors(
                    found,
                    scope.bio_id,
                    scope.center_id,
                    group_id[scope.rows],
                    n_bio=n_bio,
                    n_center=n_center,
                    k_grid=grid,
                )
            )
            if len(scopes) > 1:
                progress.update(n)
    return tallies


def _choose_k(
    settings: Settings,
    protocol: datasets.NeighborProtocol | None,
    design: str,
    available: int,
) -> tuple[int | None, tuple[int, ...]]:
    """The operating k (None: to be chosen on the grid), and the grid, which ends at the largest."""
    rule = _k_rule(settings, protocol)
    if rule == "auto":
        same = protocol is not None and protocol.design == design
        limit = protocol.k_limit if protocol is not None and same else datasets.CUSTOM_K_LIMIT
        return None, datasets.k_grid(min(limit, available + 1))
    k = protocol.k if rule == "published" and protocol else int(settings.k)
    return k, (*datasets.k_grid(min(k, available + 1)), k)


def _k_rule(settings: Settings, protocol: datasets.NeighborProtocol | None) -> str:
    if settings.k == "default":
        return "published" if protocol else "auto"
    return "auto" if settings.k == "auto" else "given"


def _groups(measured: Mapping[str, ri.Measure]) -> dict[str, Group]:
    return {
        name: Group(
            m.n_samples, float(m.companions.robustness_index), m.support, m.recall, *m.fractions
        )
        for name, m in measured.items()
    }


def _warnings(support: float, k: int, available: int) -> list[str]:
    out = []
    if support < SUPPORT_WARNING:
        out.append(
            f"support {support:.0%}: only that share of the samples has a neighbour that is SO or "
            f"OS among its {k} nearest; the index speaks for these alone."
        )
    if k > available:
        out.append(
            f"k = {k} exceeds {available}, the neighbours outside their own slide that rows of the "
            "largest slide have; such rows count with fewer."
        )
    for text in out:
        logging.warning("%s", text)
    return out
