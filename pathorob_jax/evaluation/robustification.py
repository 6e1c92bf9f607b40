"""A robustified store beside its parent: computes the record of what was bought and lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import logging

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.privacy import without_folders
from pathorob_jax.core.typing import Float
from pathorob_jax.data.row_views import Scope
from pathorob_jax.embeddings.store import Store
from pathorob_jax.evaluation import neighbor_cache, neighbor_graph
from pathorob_jax.evaluation.neighbor_graph import SearchInput
from pathorob_jax.evaluation.neighborhood import Neighborhood
from pathorob_jax.evaluation.patch_rows import PatchRows, list_patches
from pathorob_jax.evaluation.residual_center import find_residual
from pathorob_jax.kernels.bootstrap.intervals import SHARE
from pathorob_jax.metrics import held_out_probes, left_out_slides, residual_center
from pathorob_jax.metrics import robustification as metric
from pathorob_jax.metrics import robustness_index as ri
from pathorob_jax.results.paired_records import pair, pair_records
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.robustification import (
    ACCURACY,
    AFTER,
    AUC,
    BEFORE,
    INDEX,
    Biology,
    CenterChange,
    Paired,
    RobustificationResult,
    write_verdict,
)
from pathorob_jax.robustify import tile_examples
from pathorob_jax.robustify.moments import Moments, measure_moments
from pathorob_jax.robustify.parent import Fit, name_parent, open_parent, read_fit
from pathorob_jax.robustify.robustifier import split_slides
from pathorob_jax.robustify.run import PARENT

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation


def make_robustification(evaluation: Evaluation) -> Outcome:
    """Compare a robustified store with its parent on the same rows, k and draws."""
    parent = open_parent(evaluation.store, what="robustification")
    request, model = evaluation.request, name_parent(parent)
    before = replace(evaluation, store=parent, request=replace(request, model=model)).neighborhood
    after = evaluation.neighborhood
    if after.k != before.k:  # chosen on each: the parent's is used for both
        fixed = replace(request, settings=replace(request.settings, k=before.k))
        after = replace(evaluation, request=fixed).neighborhood
    rows = list_patches(before)
    x = {BEFORE: rows.embeddings(before), AFTER: rows.embeddings(after)}
    hoods = {BEFORE: before, AFTER: after}
    seed = request.settings.seed

    halves = split_slides(rows.split_id, rows.center_id, rows.class_id, seed=seed)
    half_rows = held_out_probes.spread_rows(
        halves, rows.split_id, n_parts=2, limit=metric.HALF_ROWS
    )
    block_id = before.jackknife.block_of[rows.group_id]
    areas = {
        when: metric.probe_biology(
            x[when],
            rows.class_id,
            rows.center_id,
            half_rows,
            block_id=block_id,
            weights=before.jackknife.left_out,
        )
        for when in x
    }
    votes = {when: _measure_votes(hood) for when, hood in hoods.items()}
    paired = {
        name: _pair(
            before,
            {when: found.values[name] for when, found in votes.items()},
            {when: found.replicates[name] for when, found in votes.items()},
        )
        for name in (INDEX, ACCURACY)
    }
    paired[AUC] = _pair(
        before,
        {when: found.auc for when, found in areas.items()},
        {when: found.replicates for when, found in areas.items()},
    )
    identities = [without_folders(dict(s.info["identity"])) for s in (parent, evaluation.store)]
    other: dict[str, Paired] = {}
    left_out: list[str] = []
    if request.output is not None:
        other, left_out = pair_records(
            request.output,
            evaluation.dataset,
            (model, identities[0]),
            (request.model, identities[1]),
        )
    moments = {when: _measure_moments(x[when], rows) for when in x}
    residual = find_residual(evaluation.store, parent, rows, x, seed=seed)
    fit = read_fit(evaluation.store)
    saw_classes = _saw_classes(fit, parent)
    gain = paired[INDEX]
    warnings = [
        *_warn_of_fit(fit, saw_classes),
        *residual.warnings,
        *_warn_of_intervals(paired, before.draws),
        *_keep_examples(evaluation),
        *left_out,
    ]
    for text in warnings:
        logging.warning("%s", text)
    record = RobustificationResult(
        model=request.model,
        dataset=evaluation.dataset,
        parent=model,
        method=fit.method,
        fit_on=fit.fit_on,
        covariates=fit.covariates,
        used_labels=fit.used_labels,
        cramers_v_fit=_as_float(fit.cramers_v),
        k=before.k,
        gain=gain.difference,
        ci95=gain.ci95,
        verdict=write_verdict(
            fit.method,
            paired,
            residual.probes,
            residual_rows=residual.rows,
            saw_classes=saw_classes,
        ),
        residual_rows=residual.rows,
        residual_center=residual.probes,
        biology=_describe_biology(
            areas, votes, moments, rows, _share_kept(evaluation, parent, before, rows, x)
        ),
        paired=paired | other,
        per_center=_describe_centers(moments, votes, rows),
        n_samples=sum(len(s.scope.rows) for s in before.scopes),
        n_slides=before.n_slides,
        warnings=warnings + before.row_warnings,
        provenance=after.provenance
        | {"parent": before.provenance["store"], "probes": _probe_settings(seed)},
    )
    return Outcome(record)


def _keep_examples(evaluation: Evaluation) -> list[str]:
    """Copy tiles before and after from a store of normalised tiles; a warning if it has none."""
    request, store = evaluation.request, evaluation.store
    settings = store.info["settings"]
    if request.output is None or PARENT in settings:
        return []
    folder = files.join(request.output, request.model, evaluation.dataset)
    why = "the store keeps none"
    try:
        if tile_examples.copy_examples(store.path, folder):
            return []
    except InputError as error:
        why = str(error).rpartition("/")[2].rstrip(".")
    # Those of an older run would be taken for this one's.
    files.remove(files.join(folder, tile_examples.FOLDER, tile_examples.INFO))
    return [f"no tiles before and after: {why}; extract again with --stain and --overwrite."]


class _Votes(NamedTuple):
    """Numbers from the k neighbours, by name; and of each class and centre."""

    values: dict[str, float]
    replicates: dict[str, Float[np.ndarray, " B"]]
    recalls: dict[str, float]
    accuracies: dict[str, float]
    indices: dict[str, float]


def _measure_votes(hood: Neighborhood) -> _Votes:
    blocks, n_blocks, k = hood.neighbor_blocks, hood.jackknife.n_blocks, hood.k
    at_k = ri.measure(hood.tallies, k)
    bio_id = [s.scope.bio_id for s in hood.scopes]
    classes = ri.measure_classes(hood.tallies, [s.scope.classes for s in hood.scopes], k)
    centers = ri.measure_centers(hood.tallies, [s.scope.centers for s in hood.scopes], k)
    return _Votes(
        {INDEX: float(at_k.companions.robustness_index), ACCURACY: at_k.recall},
        {
            INDEX: left_out_slides.find_companions(blocks, n_blocks)["robustness_index"],
            ACCURACY: left_out_slides.find_accuracy(blocks, bio_id, n_blocks),
        },
        {name: measured.recall for name, measured in classes.items()},
        {name: measured.recall for name, measured in centers.items()},
        {n: float(m.companions.robustness_index) for n, m in centers.items()},
    )


def _pair(
    hood: Neighborhood,
    values: Mapping[str, float],
    replicates: Mapping[str, Float[np.ndarray, " B"]],
) -> Paired:
    """A number from all rows, and without each block of slides, before and after."""
    before, after = (hood.jackknife.spread(values[w], replicates[w]) for w in (BEFORE, AFTER))
    return pair((values[BEFORE], values[AFTER]), (before, after), SHARE)


def _measure_moments(x: Float[np.ndarray, "U D"], rows: PatchRows) -> Moments:
    return measure_moments(
        lambda numbers: x[numbers],
        np.zeros(len(x), np.int64),
        rows.center_id,
        n_classes=1,
        n_centers=len(rows.centers),
        scatter="total",
    )


def _share_kept(
    evaluation: Evaluation,
    parent: Store,
    hood: Neighborhood,
    rows: PatchRows,
    x: Mapping[str, Float[np.ndarray, "U D"]],
) -> float:
    """Mean share of the nearest rows of the own centre, on other slides, that stay."""
    scopes = []
    for m, name in enumerate(rows.centers):
        mine = np.flatnonzero(rows.center_id == m)
        zeros = np.zeros(len(mine), np.int32)
        scopes.append(Scope(name, mine, zeros, zeros, ("",), (name,)))
    settings = evaluation.settings
    options: dict[str, Any] = {
        "k": metric.K,
        "m": 0,
        "precision": settings.precision,
        "budget_bytes": settings.budget_bytes,
        "mesh": evaluation.mesh,
    }
    found = {}
    for when, store in ((BEFORE, parent), (AFTER, evaluation.store)):
        searched = SearchInput(x[when], np.arange(len(x[when])), rows.group_id, scopes)
        graph = (
            neighbor_cache.reuse_or_find(store.path, searched, **options)
            if evaluation.request.keep_graph
            else neighbor_graph.find_graph(searched, **options)
        )
        found[when] = graph.any.indices[:, :, : metric.K]
    shares = [
        metric.share_kept(found[BEFORE][i, : len(s.rows)], found[AFTER][i, : len(s.rows)])
        for i, s in enumerate(scopes)
    ]
    return float(ri.mean_defined(np.concatenate(shares)))


def _saw_classes(fit: Fit, parent: Store) -> bool:
    """Whether the fit used the classes of the store's own rows, each of its own map."""
    is_own = fit.rows_sha256 == parent.manifest.fingerprint()
    return fit.used_labels and is_own and fit.fit_on != "cross_fit"


def _warn_of_fit(fit: Fit, saw_classes: bool) -> list[str]:
    """What the fit's own table warns of (V above .5), and classes that it should not have seen."""
    texts = list(fit.warnings)
    if saw_classes:
        texts.append(
            "the fit used the classes of the rows that are evaluated: the robustness index is not "
            "honest; robustify with --fit_on=cross_fit."
        )
    return texts


def _warn_of_intervals(paired: Mapping[str, Paired], draws: int) -> list[str]:
    missing = [n for n, p in paired.items() if p.ci95 is None and np.isfinite(p.difference)]
    if not draws or not missing:
        return []
    return [
        f"no interval for the difference of {', '.join(missing)}: without one of the slides it "
        "does not exist. Intervals need two slides of each class at each medical centre."
    ]


def _describe_biology(
    areas: Mapping[str, metric.BiologyAreas],
    votes: Mapping[str, _Votes],
    moments: Mapping[str, Moments],
    rows: PatchRows,
    neighbors_kept: float,
) -> Biology:
    spread = {when: metric.measure_spread(found) for when, found in moments.items()}
    removed = 1 - ri.ratio(spread[AFTER].total, spread[BEFORE].total)
    return Biology(
        auc={when: found.auc for when, found in areas.items()},
        auc_per_class=_by_name(rows.classes, {w: a.per_class for w, a in areas.items()}),
        auc_per_center=_by_name(rows.centers, {w: a.per_center for w, a in areas.items()}),
        knn_balanced_accuracy={when: found.values[ACCURACY] for when, found in votes.items()},
        knn_recall_per_class=_both({w: v.recalls for w, v in votes.items()}),
        knn_balanced_accuracy_per_center=_both({w: v.accuracies for w, v in votes.items()}),
        effective_rank={when: found.effective_rank for when, found in spread.items()},
        variance_removed=float(removed),
        neighbors_kept=neighbors_kept,
    )


def _describe_centers(
    moments: Mapping[str, Moments], votes: Mapping[str, _Votes], rows: PatchRows
) -> dict[str, CenterChange]:
    moved = metric.measure_shifts(moments[BEFORE], moments[AFTER])
    indices = _both({when: found.indices for when, found in votes.items()})
    return {
        name: CenterChange(float(moved.shift[m]), float(moved.scale[m]), indices[name])
        for m, name in enumerate(rows.centers)
    }


def _by_name(
    names: Sequence[str], values: Mapping[str, Float[np.ndarray, " L"]]
) -> dict[str, dict[str, float]]:
    return {n: {w: float(v[i]) for w, v in values.items()} for i, n in enumerate(names)}


def _both(values: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {name: {w: v[name] for w, v in values.items()} for name in values[BEFORE]}


def _probe_settings(seed: int) -> dict[str, Any]:
    return {
        "c": held_out_probes.C,
        "k": held_out_probes.K,
        "quarter_rows": residual_center.QUARTER_ROWS,
        "half_rows": metric.HALF_ROWS,
        "permutations": residual_center.PERMUTATIONS,
        "seed": seed,
    }


def _as_float(value: float | None) -> float:
    return np.nan if value is None else float(value)
