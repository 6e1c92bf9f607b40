"""What neighbours say, as records: robustness index, margins and probes, with their intervals.

Enters: a ``Neighborhood``. Leaves: one ``Outcome`` per metric: the record that is written, and the
bootstrap draws of its headline numbers, by which models are compared later. All intervals come from
the same draws of whole groups; neighbours and classifiers are not computed again for a draw.
"""

from collections.abc import Mapping

import numpy as np

from pathorob_jax.core.devices import to_device
from pathorob_jax.evaluation.neighborhood import Neighborhood, ScopeNeighbors
from pathorob_jax.kernels.bootstrap import draws as bootstrap
from pathorob_jax.kernels.neighbors.pair_distances import list_distances
from pathorob_jax.metrics import margins, probes
from pathorob_jax.metrics import robustness_index as ri
from pathorob_jax.results.records import (
    Curve,
    Group,
    MarginsCurve,
    MarginsResult,
    NeighborTypes,
    ProbesResult,
    RobustnessIndexResult,
)
from pathorob_jax.results.result_files import Outcome, percentile_interval

CROMA_M = 5
# MaRI's curve ends here: each of its points needs the distances of all neighbours before it.
MARI_CURVE_K = 100
PERMUTATIONS = 20
PROBE_FOLDS = 5


def make_robustness_index(around: Neighborhood, model: str, dataset: str) -> Outcome:
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
    types = [ri.count_types(s.any, s.scope.bio_id, s.scope.center_id, k=k) for s in around.scopes]
    draws = _draw_companions(around, types)
    draws["balanced_accuracy"] = _draw_accuracy(around, "bio_id")
    ends = {name: percentile_interval(drawn) for name, drawn in draws.items()}
    if not decidable:
        ends["robustness_index"] = None
    index_ci = ends.pop("robustness_index")
    record = RobustnessIndexResult(
        model=model,
        dataset=dataset,
        design=around.design,
        k=k,
        k_rule=around.k_rule,
        k_available=around.k_available,
        support=at_k.support,
        ci95=index_ci,
        companions_ci95=ends,
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
        per_class=_groups(
            ri.measure_classes(tallies, classes, k), _draw_labels(around, types, "bio_id")
        ),
        per_center=_groups(
            ri.measure_centers(tallies, centers, k), _draw_labels(around, types, "center_id")
        ),
        per_subset=(
            _groups(subsets, _draw_subsets(around, types)) if around.design == "paired" else {}
        ),
        warnings=around.warn(at_k.support),
        provenance=around.provenance,
        **{name: float(value) for name, value in at_k.companions._asdict().items()},
    )
    kept = ("robustness_index", "balanced_accuracy")
    return Outcome(record, around.draws_key, {name: draws[name] for name in kept})


def make_margins(around: Neighborhood, model: str, dataset: str) -> Outcome:
    """MaRI and CRoMa (arXiv:2607.25497), from the same neighbours."""
    points = [k for k in around.grid if k <= MARI_CURVE_K] + [around.k]
    grid = sorted({k for k in points if k <= around.grid[-1]})
    measured = [_measure_margins(around, s, grid[-1]) for s in around.scopes]
    typed, values = (list(part) for part in zip(*measured, strict=True))
    tau = margins.choose_tau(typed, around.k)
    mari = margins.margin_robustness_index(typed, around.k, tau=tau)
    tail = margins.summarise_margins(values)
    weights, rows = around.group_weights, (np.concatenate(values), around.row_groups)
    scope_id = np.repeat(np.arange(len(values)), [len(v) for v in values])
    so_weight, os_weight = around.sum_groups(mari.so_weight), around.sum_groups(mari.os_weight)
    decidable = ri.can_decide(around.eligible)
    curve = [margins.margin_robustness_index(typed, k, tau=tau).value for k in grid]
    draws = {
        "mari": bootstrap.bootstrap_ratio(weights, so_weight, so_weight + os_weight),
        "croma": bootstrap.bootstrap_median_of_medians(weights, *rows, scope_id),
    }
    record = MarginsResult(
        model=model,
        dataset=dataset,
        design=around.design,
        k=around.k,
        k_rule=around.k_rule,
        k_available=around.k_available,
        mari=mari.value if decidable else np.nan,
        mari_tau=tau,
        mari_support=mari.support,
        mari_ci95=percentile_interval(draws["mari"]) if decidable else None,
        croma=tail.median,
        croma_m=CROMA_M,
        croma_f0=tail.f0,
        croma_q10=tail.q,
        croma_ltm10=tail.ltm,
        croma_support=tail.support,
        croma_ci95=percentile_interval(draws["croma"]),
        croma_f0_ci95=percentile_interval(bootstrap.bootstrap_share_at_most(weights, *rows, 0.0)),
        croma_q10_ci95=percentile_interval(
            bootstrap.bootstrap_quantile(weights, *rows, margins.TAIL)
        ),
        croma_ltm10_ci95=percentile_interval(
            bootstrap.bootstrap_tail_mean(weights, *rows, margins.TAIL)
        ),
        n_samples=len(scope_id),
        n_slides=around.n_slides,
        curve=MarginsCurve(k=grid, mari=curve if decidable else [np.nan] * len(grid)),
        warnings=around.warn(mari.support),
        provenance=around.provenance,
    )
    return Outcome(record, around.draws_key, draws)


def make_probes(around: Neighborhood, model: str, dataset: str) -> Outcome:
    """The reference's three logistic probes, and the centre by a vote of neighbours."""
    found: dict[str, list[probes.ProbeResult]] = {"biology": [], "center": [], "ood_biology": []}
    for scope in around.scopes:
        labels = scope.scope
        groups = around.probe_group_id[labels.rows]
        asked = [
            probes.Probe(labels.bio_id, groups, PROBE_FOLDS),
            probes.Probe(labels.center_id, groups, PROBE_FOLDS),
            probes.Probe(labels.bio_id, labels.center_id, len(labels.centers)),
        ]
        rows = around.embeddings(scope)[: len(labels.rows)]
        answers = probes.probe_aucs(
            rows,
            asked,
            seed=around.probe_seed,
            resampling=probes.Resampling(around.group_weights, scope.group_id),
        )
        for answer, into in zip(answers, found.values(), strict=True):
            into.append(answer)
    everyone = np.ones((1, around.group_weights.shape[1]), np.int32)
    auc = {name: float(ri.mean_defined([r.auc for r in of])) for name, of in found.items()}
    draws = {f"{name}_auc": ri.mean_defined([r.draws for r in of]) for name, of in found.items()}
    draws["center_knn_balanced_accuracy"] = _draw_accuracy(around, "center_id")
    record = ProbesResult(
        model=model,
        dataset=dataset,
        design=around.design,
        k=around.k,
        biology_auc=auc["biology"],
        center_auc=auc["center"],
        ood_biology_auc=auc["ood_biology"],
        center_knn_balanced_accuracy=float(_draw_accuracy(around, "center_id", everyone)[0]),
        ci95={name: percentile_interval(drawn) for name, drawn in draws.items()},
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
    return Outcome(record, around.draws_key, draws)


def _draw_companions(around: Neighborhood, types: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Draws of the index, its companions and the support; counts pooled over scopes."""
    pooled = np.concatenate(types, axis=1)
    sums = np.stack([around.sum_groups(kind) for kind in pooled])
    drawn = sums @ around.group_weights.T.astype(np.float64)
    decisive = around.sum_groups(pooled[1] + pooled[2] > 0)
    samples = around.sum_groups(np.ones(pooled.shape[1]))
    support = bootstrap.bootstrap_ratio(around.group_weights, decisive, samples)
    return ri.companions(drawn)._asdict() | {"support": support}


def _draw_accuracy(
    around: Neighborhood, label: str, weights: np.ndarray | None = None
) -> np.ndarray:
    """Draws of the balanced accuracy of the vote: mean recall over labels, then over scopes."""
    weights = around.group_weights if weights is None else weights
    out = []
    for found in around.scopes:
        ids = getattr(found.scope, label)
        n_labels = int(ids.max()) + 1
        hit, voted = ri.count_hits(found.any, ids, k=around.k, n_labels=n_labels)
        cell = ids.astype(np.int64) * weights.shape[1] + found.group_id
        hits, votes = (
            np.bincount(cell, weights=which, minlength=n_labels * weights.shape[1])
            for which in (hit, voted)
        )
        shape = (n_labels, weights.shape[1])
        recalls = bootstrap.bootstrap_ratio(weights, hits.reshape(shape), votes.reshape(shape))
        out.append(ri.mean_defined(recalls))
    return ri.mean_defined(out)


def _draw_labels(
    around: Neighborhood, types: list[np.ndarray], label: str
) -> dict[str, np.ndarray]:
    """Draws of the index of each class or centre, averaged over scopes as its value is."""
    n_groups = around.group_weights.shape[1]
    parts: dict[str, list[np.ndarray]] = {}
    for found, kinds in zip(around.scopes, types, strict=True):
        scope = found.scope
        for i, name in enumerate(scope.classes if label == "bio_id" else scope.centers):
            rows = getattr(scope, label) == i
            sums = np.stack(
                [np.bincount(found.group_id[rows], kind[rows], n_groups) for kind in kinds]
            )
            counts = np.bincount(found.group_id[rows], minlength=n_groups)
            drawn = bootstrap.bootstrap_ratio(around.group_weights, sums, counts)
            parts.setdefault(name, []).append(drawn)
    return {
        name: ri.companions(ri.mean_defined(drawn)).robustness_index
        for name, drawn in parts.items()
    }


def _draw_subsets(around: Neighborhood, types: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Draws of the index of each subset."""
    out = {}
    for found, (_, so, os_, _) in zip(around.scopes, types, strict=True):
        above, below = (
            np.bincount(found.group_id, kind, around.group_weights.shape[1])
            for kind in (so, so + os_)
        )
        out[found.scope.name] = bootstrap.bootstrap_ratio(around.group_weights, above, below)
    return out


def _permuted_center_index(around: Neighborhood) -> float:
    """Mean index of the same neighbours over centres dealt anew to slides."""
    rng = np.random.default_rng(around.seed)
    values = []
    for _ in range(PERMUTATIONS):
        types = sum(
            ri.count_types(
                s.any,
                s.scope.bio_id,
                ri.permute_centers(s.scope.center_id, s.group_id, rng),
                k=around.k,
            ).sum(1)
            for s in around.scopes
        )
        values.append(float(ri.companions(types).robustness_index))
    return float(ri.mean_defined(values))


def _measure_margins(
    around: Neighborhood, found: ScopeNeighbors, k: int
) -> tuple[margins.TypedDistances, np.ndarray]:
    """Distances of decisive neighbours up to rank k, and each sample's margin, of a scope."""
    if found.typed is None:
        raise ValueError("typed neighbours were not sought")
    rows = to_device(around.embeddings(found))  # once, for all lists
    nearest = type(found.any)(*(a[:, :k] for a in found.any))
    labels = (found.scope.bio_id, found.scope.center_id)
    n = len(found.scope.rows)
    same_other, other_same = (list_distances(rows, typed.indices[:n]) for typed in found.typed[1:])
    typed = margins.typed_distances(rows, nearest, *labels)
    return typed, margins.sample_margins(same_other, other_same)


def _groups(
    measured: Mapping[str, ri.Measure], draws: Mapping[str, np.ndarray]
) -> dict[str, Group]:
    out = {}
    for name, m in measured.items():
        index = float(m.companions.robustness_index)
        ends = percentile_interval(draws[name]) if np.isfinite(index) else None
        out[name] = Group(m.n_samples, index, ends, m.support, m.recall, *m.fractions)
    return out
