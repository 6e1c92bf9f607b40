"""Embedding stores -> results: which metric reads which rows, in one pass. Also the Python API.

Enters: a store, a dataset's protocol (or a manifest of one's own), metadata files. Leaves: one
result record per metric, written to ``<root>/<model>/<dataset>/<metric>.json``.
"""

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from pathorob_jax import checks, datasets, files, views
from pathorob_jax.checks import UsageError
from pathorob_jax.kernels import bootstrap
from pathorob_jax.kernels.pair_distances import refine_distances
from pathorob_jax.manifest import read_manifest
from pathorob_jax.metrics import margins, probes
from pathorob_jax.metrics import robustness_index as ri
from pathorob_jax.neighborhoods import Neighborhood, ScopeNeighbors, Settings, find_neighborhood
from pathorob_jax.results import (
    Curve,
    Group,
    MarginsCurve,
    MarginsResult,
    NeighborTypes,
    ProbesResult,
    RobustnessIndexResult,
    write_result,
)
from pathorob_jax.store import Store, find_stores

CROMA_M = 5
# MaRI's curve ends here: each of its points needs the distances of all neighbours before it.
MARI_CURVE_K = 100
PERMUTATIONS = 20
PROBE_FOLDS = 5


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
    embeddings = embeddings if files.is_remote(embeddings) else os.path.abspath(embeddings)
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
    metrics: Sequence[str] = ("robustness_index",),
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
        metrics: names of ``METRICS``; neighbours are sought once for all of them.
        metadata_dir: folder of the protocol's metadata files.
        manifest: rows and labels for a dataset of one's own; None: the store's.
        settings: what a user may choose.
        mesh: devices; None: one.

    Returns:
        Paths of the files written.

    Raises:
        UsageError: unknown metric, or a protocol without its metadata folder.
        InputError: rows, labels or embeddings that the metric cannot work with.
    """
    for name in metrics:
        checks.check_known(name, METRICS, what="metrics")
    settings = settings or Settings()
    protocol = datasets.PROTOCOLS.get(dataset)
    _check_rows_are_meant(dataset, protocol, metadata_dir, manifest, settings)
    if protocol is not None:
        chosen: datasets.NeighborProtocol | None = protocol.robustness_index
        view = views.read_view(
            protocol.robustness_index.view,
            metadata_dir=metadata_dir,
            dataset=dataset,
            columns=settings.columns,
        )
        view = views.shuffle(view, protocol.robustness_index.shuffle_seed)
    else:
        chosen = None
        view = (
            store.manifest
            if manifest is None
            else read_manifest(manifest, columns=settings.columns)
        )
        view = views.shuffle(view, datasets.SHUFFLE_SEED)
    around = find_neighborhood(
        store,
        view,
        protocol=chosen,
        settings=settings,
        typed=CROMA_M if "margins" in metrics else 0,
        mesh=mesh,
    )
    return [write_result(root, METRICS[name](around, model, dataset)) for name in metrics]


def _check_rows_are_meant(
    dataset: str,
    protocol: datasets.Protocol | None,
    metadata_dir: str | None,
    manifest: str | None,
    settings: Settings,
) -> None:
    """Refuse arguments that would be ignored: a number of other rows would come out."""
    if protocol is not None and manifest is not None:
        raise UsageError(
            f"manifest: dataset {dataset} has a protocol that names its rows; evaluate rows of "
            "your own under another --dataset."
        )
    if protocol is None and metadata_dir is not None:
        near = difflib.get_close_matches(dataset, datasets.PROTOCOLS, n=1)
        hint = f" Did you mean --dataset={near[0]}?" if near else ""
        raise UsageError(
            f"metadata_dir: dataset {dataset!r} is none of {', '.join(datasets.PROTOCOLS)}, whose "
            f"metadata it would hold.{hint} For a dataset of your own give --manifest."
        )
    renamed = {ours for ours, theirs in (settings.columns or {}).items() if ours != theirs}
    if renamed and protocol is None and manifest is None:
        raise UsageError(
            "label_column, center_column: they name columns of --manifest; the store's own rows "
            "keep the labels that it was made with. Give --manifest."
        )


def make_robustness_index(around: Neighborhood, model: str, dataset: str) -> RobustnessIndexResult:
    """The robustness index and its companions (arXiv:2507.17845)."""
    tallies, k = around.tallies, around.k
    at_k = ri.measure(tallies, k)
    curve = [ri.measure(tallies, point) for point in around.grid]
    eligible = ri.companions(around.eligible)
    decidable = ri.can_decide(around.eligible)
    normalized = ri.ratio(
        at_k.companions.confounder_insensitivity, eligible.confounder_insensitivity
    )
    classes = [s.scope.classes for s in around.scopes]
    centers = [s.scope.centers for s in around.scopes]
    subsets = {s.scope.name: ri.measure([s.tally], k) for s in around.scopes}
    decisive = [_count_decisive(s, s.scope.center_id, k) for s in around.scopes]
    so, os_ = (around.sum_groups(np.concatenate(counts)) for counts in zip(*decisive, strict=True))
    draws = bootstrap.bootstrap_ratio(around.group_weights, so, so + os_)
    return RobustnessIndexResult(
        model=model,
        dataset=dataset,
        design=around.design,
        k=k,
        k_rule=around.k_rule,
        k_available=around.k_available,
        support=at_k.support,
        ci95=_interval(draws) if decidable else None,
        null_permuted_center=_permuted_center_index(around) if decidable else np.nan,
        null_random_features=float(eligible.robustness_index) if decidable else np.nan,
        balanced_accuracy=at_k.recall,
        normalized_confounder_insensitivity=float(normalized),
        n_samples=len(around.group_id),
        n_slides=around.n_slides,
        n_groups=len(np.unique(around.group_id)),
        neighbor_types=NeighborTypes(*at_k.fractions),
        curve=Curve(
            k=list(around.grid),
            robustness_index=[float(m.companions.robustness_index) for m in curve],
            balanced_accuracy=[m.recall for m in curve],
            support=[m.support for m in curve],
            **{t: [m.fractions[i] for m in curve] for i, t in enumerate(("ss", "so", "os", "oo"))},
        ),
        per_class=_groups(ri.measure_classes(tallies, classes, k)),
        per_center=_groups(ri.measure_centers(tallies, centers, k)),
        per_subset=_groups(subsets if around.design == "paired" else {}),
        warnings=around.warn(at_k.support),
        provenance=around.provenance,
        **{name: float(value) for name, value in at_k.companions._asdict().items()},
    )


def make_margins(around: Neighborhood, model: str, dataset: str) -> MarginsResult:
    """MaRI and CRoMa (arXiv:2607.25497), from the same neighbours."""
    points = [k for k in around.grid if k <= MARI_CURVE_K] + [around.k]
    grid = sorted({k for k in points if k <= around.grid[-1]})
    typed = [_refine_any(s, grid[-1]) for s in around.scopes]
    tau = margins.choose_tau(typed, around.k)
    mari = margins.margin_robustness_index(typed, around.k, tau=tau)
    values = [_sample_margins(s) for s in around.scopes]
    tail = margins.summarise_margins(values)
    weights, rows = around.group_weights, (np.concatenate(values), around.row_groups)
    scope_id = np.repeat(np.arange(len(values)), [len(v) for v in values])
    so_weight, os_weight = around.sum_groups(mari.so_weight), around.sum_groups(mari.os_weight)
    decidable = ri.can_decide(around.eligible)
    curve = [margins.margin_robustness_index(typed, k, tau=tau).value for k in grid]
    return MarginsResult(
        model=model,
        dataset=dataset,
        design=around.design,
        k=around.k,
        k_rule=around.k_rule,
        k_available=around.k_available,
        mari=mari.value if decidable else np.nan,
        mari_tau=tau,
        mari_support=mari.support,
        mari_ci95=(
            _interval(bootstrap.bootstrap_ratio(weights, so_weight, so_weight + os_weight))
            if decidable
            else None
        ),
        croma=tail.median,
        croma_m=CROMA_M,
        croma_f0=tail.f0,
        croma_q10=tail.q,
        croma_ltm10=tail.ltm,
        croma_support=tail.support,
        croma_ci95=_interval(bootstrap.bootstrap_median_of_medians(weights, *rows, scope_id)),
        croma_f0_ci95=_interval(bootstrap.bootstrap_share_at_most(weights, *rows, 0.0)),
        croma_q10_ci95=_interval(bootstrap.bootstrap_quantile(weights, *rows, margins.TAIL)),
        croma_ltm10_ci95=_interval(bootstrap.bootstrap_tail_mean(weights, *rows, margins.TAIL)),
        n_samples=len(scope_id),
        n_slides=around.n_slides,
        curve=MarginsCurve(k=grid, mari=curve if decidable else [np.nan] * len(grid)),
        warnings=around.warn(mari.support),
        provenance=around.provenance,
    )


def make_probes(around: Neighborhood, model: str, dataset: str) -> ProbesResult:
    """The reference's three logistic probes, and the centre by a vote of neighbours."""
    found: dict[str, list[probes.ProbeResult]] = {"biology": [], "center": [], "ood_biology": []}
    accuracy = []
    for scope in around.scopes:
        labels = scope.scope
        groups = around.probe_group_id[labels.rows]
        asked = [
            probes.Probe(labels.bio_id, groups, PROBE_FOLDS),
            probes.Probe(labels.center_id, groups, PROBE_FOLDS),
            probes.Probe(labels.bio_id, labels.center_id, len(labels.centers)),
        ]
        rows = scope.embeddings[: len(labels.rows)]
        answers = probes.probe_aucs(rows, asked, seed=around.probe_seed)
        for answer, into in zip(answers, found.values(), strict=True):
            into.append(answer)
        accuracy.append(
            ri.vote_accuracy(scope.any, labels.center_id, k=around.k, n_labels=len(labels.centers))
        )
    auc = {name: float(ri.mean_defined([r.auc for r in of])) for name, of in found.items()}
    return ProbesResult(
        model=model,
        dataset=dataset,
        design=around.design,
        k=around.k,
        biology_auc=auc["biology"],
        center_auc=auc["center"],
        ood_biology_auc=auc["ood_biology"],
        center_knn_balanced_accuracy=float(ri.mean_defined(accuracy)),
        n_folds={name: sum(r.n_folds for r in of) for name, of in found.items()},
        n_skipped_folds={name: sum(r.n_skipped for r in of) for name, of in found.items()},
        n_samples=sum(len(s.scope.rows) for s in around.scopes),
        n_slides=around.n_slides,
        warnings=[
            f"probe {name}: no fold has all labels on both sides; its area is undefined."
            for name, value in auc.items()
            if np.isnan(value)
        ],
        provenance=around.provenance,
    )


def _count_decisive(found: ScopeNeighbors, center_id: np.ndarray, k: int) -> ri.Decisive:
    return ri.count_decisive(found.any, found.scope.bio_id, center_id, k=k)


def _permuted_center_index(around: Neighborhood) -> float:
    """Mean index of the same neighbours over centres dealt anew to slides."""
    rng = np.random.default_rng(around.seed)
    values = []
    for _ in range(PERMUTATIONS):
        counts = [
            _count_decisive(s, ri.permute_centers(s.scope.center_id, s.group_id, rng), around.k)
            for s in around.scopes
        ]
        so, os_ = (sum(int(c.sum()) for c in side) for side in zip(*counts, strict=True))
        values.append(float(ri.ratio(so, so + os_)))
    return float(ri.mean_defined(values))


def _interval(draws: np.ndarray) -> list[float] | None:
    """95 % percentile interval; None where too few draws are defined."""
    ends = [float(end) for end in bootstrap.interval(draws)]
    return ends if np.isfinite(ends).all() else None


def _refine_any(found: ScopeNeighbors, k: int) -> margins.TypedDistances:
    nearest = refine_distances(found.embeddings, type(found.any)(*(a[:, :k] for a in found.any)))
    return margins.typed_distances(nearest, found.scope.bio_id, found.scope.center_id)


def _sample_margins(found: ScopeNeighbors) -> np.ndarray:
    if found.typed is None:
        raise ValueError("typed neighbours were not sought")
    n = len(found.scope.rows)
    same_other, other_same = (
        refine_distances(found.embeddings, typed).distances[:n] for typed in found.typed[1:]
    )
    return margins.sample_margins(same_other, other_same)


def _groups(measured: Mapping[str, ri.Measure]) -> dict[str, Group]:
    return {
        name: Group(
            m.n_samples, float(m.companions.robustness_index), m.support, m.recall, *m.fractions
        )
        for name, m in measured.items()
    }


METRICS: dict[str, Callable[[Neighborhood, str, str], Any]] = {
    RobustnessIndexResult.metric: make_robustness_index,
    MarginsResult.metric: make_margins,
    ProbesResult.metric: make_probes,
}
