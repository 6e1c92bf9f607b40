"""Average performance drop of a store: selects rows and splits, and builds the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pathorob_jax.core import checks, files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import association_schedule, training_splits
from pathorob_jax.data.manifest import CENTER, CLASS, SUBSET, Manifest
from pathorob_jax.data.names import canonical
from pathorob_jax.data.protocols import OOD, ApdProtocol
from pathorob_jax.data.training_splits import HeldOut, Repetition
from pathorob_jax.evaluation import apd_refit
from pathorob_jax.evaluation.apd_tasks import Domain, Done, Plan, fingerprint_tasks, run_repetitions
from pathorob_jax.evaluation.row_warnings import warn_of_names
from pathorob_jax.evaluation.settings import ApdSettings
from pathorob_jax.kernels.logistic.fit import Stopping
from pathorob_jax.metrics import apd, heads
from pathorob_jax.metrics.apd import LINEAR
from pathorob_jax.results.apd import ApdResult, FitAll, HeadResult
from pathorob_jax.results.record import Outcome

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation

# The setting of each classifier that is chosen on the validation rows.
SETTING_OF = {apd.LINEAR: "C", apd.KNN: "k"} | dict.fromkeys(
    (apd.MLP, apd.DANN, apd.DANN_TWIN), "epoch"
)
OWN_SCHEDULE = ("classes", "centers", "slides_per_cell", "rows_per_slide", "test_slides")


def make_apd(evaluation: Evaluation) -> Outcome:
    """Compute the average performance drop of a store (arXiv:2507.17845).

    The robustifier of a robustified store is fitted again on the training rows of each split; the
    numbers of the store as it is are beside these, in ``fit_all``.

    Raises:
        UsageError: a head is unknown, a setting is fixed by the protocol, or there are several
            processes without a folder for results.
        InputError: the schedule cannot be drawn from the rows, all embeddings are equal, or the
            parent of a robustified store is missing or another one.
    """
    settings = evaluation.settings.apd
    protocol = evaluation.protocol.apd if evaluation.protocol else None
    _check_settings(settings, protocol)
    refit = apd_refit.find_refit(evaluation.store)
    if protocol is None:
        plan = _plan_custom(evaluation, settings)
    else:
        plan = _plan_protocol(evaluation, protocol, settings)
    repetitions = settings.repetitions or (
        protocol.repetitions if protocol else ApdProtocol.repetitions
    )
    fingerprint = fingerprint_tasks(plan, evaluation.mesh)
    tasks = list(
        training_splits.draw_repetitions(
            plan.in_domain.rows,
            plan.schedule,
            seed=plan.seed,
            repetitions=repetitions,
            held_out=plan.held_out,
        )
    )
    folder = evaluation.task_folder(ApdResult.metric)
    as_it_is = run_repetitions(tasks, plan, fingerprint, folder=folder, mesh=evaluation.mesh)
    done = whole = Done(as_it_is, [{} for _ in tasks], plan.schedule.n_splits, fingerprint)
    if refit.changes:
        done = apd_refit.run_refitted(
            tasks,
            plan,
            refit,
            relabelled=evaluation.settings.renamed_columns,
            folder=None if folder is None else files.join(folder, "refit"),
            mesh=evaluation.mesh,
        )
    facts = {"refit": refit.facts()} if refit.steps else {}
    record = _make_result(
        done,
        tasks,
        plan,
        model=evaluation.request.model,
        dataset=evaluation.dataset,
        provenance=evaluation.task_provenance(
            {**asdict(settings), **facts}, plan.in_domain.rows, done.fingerprint
        ),
    )
    if refit.steps:
        others = _make_heads(whole, tasks, plan)
        record = replace(record, fit_all=FitAll(**vars(others.pop(LINEAR)), heads=others))
    return Outcome(replace(record, warnings=[*record.warnings, *refit.warnings]))


def _check_settings(settings: ApdSettings, protocol: ApdProtocol | None) -> None:
    for name in settings.heads:
        checks.check_known(name, apd.OTHER_HEADS, what="heads")
    checks.check_known(settings.stopping, heads.LIMITS, what="stopping")
    if settings.budget_bytes < 1:
        raise UsageError(
            f"budget_bytes: expected a positive number, found {settings.budget_bytes}."
        )
    fixed = [name for name in (*OWN_SCHEDULE, "schedule") if getattr(settings, name) is not None]
    if protocol is not None and fixed:
        raise UsageError(
            f"{', '.join(fixed)}: the dataset's protocol fixes its splits; give them with a "
            "dataset of your own."
        )
    if settings.schedule is not None and len(fixed) > 1:
        raise UsageError(
            f"{', '.join(fixed[:-1])}: they make a schedule, and one was given as well."
        )


def _plan_protocol(evaluation: Evaluation, protocol: ApdProtocol, settings: ApdSettings) -> Plan:
    metadata_dir = evaluation.request.metadata_dir
    inside = evaluation.read_view(protocol.in_domain)
    outside = evaluation.read_view(protocol.out_of_domain)
    if SUBSET not in inside or not len(outside):
        raise InputError(
            f"{inside.source}: expected a column {SUBSET!r} that marks rows {OOD!r}, found none; "
            "give PathoROB's own metadata file."
        )
    held_out: HeldOut | None = None
    if protocol.case_splits is not None:
        held_out = _read_held_out(files.join(metadata_dir or "", protocol.case_splits), protocol)
    return Plan(
        schedule=protocol.schedule,
        held_out=held_out,
        in_domain=_read_domain(evaluation, inside, protocol.schedule.classes),
        out_of_domain=_read_domain(evaluation, outside, protocol.schedule.classes),
        seed=protocol.seed if settings.seed is None else settings.seed,
        c_grid=protocol.c_grid,
        settings=settings,
    )


def _plan_custom(evaluation: Evaluation, settings: ApdSettings) -> Plan:
    rows = evaluation.custom_rows.unique_patches()
    schedule = settings.schedule or association_schedule.schedule_from_manifest(
        rows,
        classes=settings.classes,
        centers=settings.centers,
        slides_per_cell=settings.slides_per_cell,
        rows_per_slide=settings.rows_per_slide,
        test_slides=settings.test_slides,
    )
    known = np.isin(rows.column(CLASS).astype(str), schedule.classes)
    inside = np.isin(rows.column(CENTER).astype(str), schedule.centers)
    outside = np.flatnonzero(known & ~inside)
    return Plan(
        schedule=schedule,
        held_out=None,
        in_domain=_read_domain(
            evaluation, rows.take(np.flatnonzero(known & inside)), schedule.classes
        ),
        out_of_domain=(
            _read_domain(evaluation, rows.take(outside), schedule.classes) if outside.size else None
        ),
        seed=ApdProtocol.seed if settings.seed is None else settings.seed,
        c_grid=ApdProtocol.c_grid,
        settings=settings,
    )


def _read_held_out(path: str, protocol: ApdProtocol) -> HeldOut:
    """Test slides of each centre, from PathoROB's file of feasible splits."""
    if not files.exists(path):
        raise FileNotFoundError(
            f"{path}: no such file; the splits need it (pathorob/resources of "
            "github.com/bifold-pathomics/PathoROB)."
        )
    value = files.read_json(path)
    lists = value.get("test") if isinstance(value, dict) else None
    if isinstance(lists, dict):
        lists = {canonical(center): cases for center, cases in lists.items()}
    centers = protocol.schedule.centers
    if not isinstance(lists, dict) or not all(lists.get(center) for center in centers):
        raise InputError(
            f"{path}: expected lists of test cases under 'test' for {list(centers)}; fetch the "
            "file again from github.com/bifold-pathomics/PathoROB."
        )
    return {center: [list(map(canonical, cases)) for cases in lists[center]] for center in centers}


def _read_domain(evaluation: Evaluation, rows: Manifest, classes: Sequence[str]) -> Domain:
    name = rows.column(CLASS).astype(str)
    unknown = sorted(set(name) - set(classes))
    if unknown:
        raise InputError(
            f"{rows.source}: expected the classes {list(classes)}, found {unknown} as well."
        )
    store, relabelled = evaluation.store, evaluation.settings.renamed_columns
    x = store.read_patches(rows, relabelled=relabelled, need_direction=False)
    if (x == x[:1]).all():
        raise InputError(
            f"{store.path}: all {len(x)} embeddings of {rows.source} are equal; no classifier can "
            "tell their classes apart. Look at the encoder and at its input."
        )
    center = rows.factorize(CENTER)
    label_id = np.searchsorted(sorted(classes), name)
    return Domain(rows, x, np.argsort(classes)[label_id], center.ids, center.names)


def _make_result(
    done: Done,
    tasks: Sequence[Repetition],
    plan: Plan,
    *,
    model: str,
    dataset: str,
    provenance: dict[str, Any],
) -> ApdResult:
    schedule, inside, outside = plan.schedule, plan.in_domain, plan.out_of_domain
    n_classes, v = len(schedule.classes), list(schedule.cramers_v())
    results = _make_heads(done, tasks, plan)
    linear = results.pop(LINEAR)
    fits = [fit for counts in done.counts for fit in counts[LINEAR]["converged"]]
    converged = np.array(fits, bool).reshape(-1, len(plan.c_grid))  # [fits, G]
    warnings = _warn_unconverged(converged, plan.settings.stopping)
    warnings += apd_refit.warn_of_refused(done.refused, v)
    if outside is None:
        warnings.append(
            "apd_ood: undefined; the rows have no centre beside those of the schedule "
            f"({', '.join(schedule.centers)})."
        )
    warnings += warn_of_names(inside.rows)
    if schedule.held_rows:
        warnings.append(
            "apd: too few slides for one that only validates. The setting of each classifier was "
            f"chosen on {schedule.held_rows} other patches of each training slide; test slides "
            "are still slides of their own."
        )
    if any(done.refused) and apd.spans_all_associations(v) and np.isnan(linear.nipd_id):
        warnings.append(
            "nIPD: undefined; V does not rise from 0 to 1 over the splits that are left."
        )
    for name, head in {LINEAR: linear, **results}.items():
        warnings += _warn_undefined(name, head, v, 1 / n_classes)
    return ApdResult(
        model=model,
        dataset=dataset,
        apd_id=linear.apd_id,
        apd_ood=linear.apd_ood,
        nipd_id=linear.nipd_id,
        nipd_ood=linear.nipd_ood,
        chance=1 / n_classes,
        cramers_v=v,
        id_accuracies=linear.id_accuracies,
        ood_accuracies=linear.ood_accuracies,
        id_accuracy_means=linear.id_accuracy_means,
        ood_accuracy_means=linear.ood_accuracy_means,
        validation_accuracies=linear.validation_accuracies,
        chosen_c=linear.chosen,
        converged=_chosen_converged(done, plan.c_grid),
        converged_share=float(converged.mean()) if converged.size else float("nan"),
        stopping=plan.settings.stopping,
        direction_id=_directions(done, "id", schedule.classes, inside.centers),
        direction_ood=_directions(
            done, "ood", schedule.classes, outside.centers if outside else ()
        ),
        heads=results,
        repetitions=len(tasks),
        seed=plan.seed,
        classes=list(schedule.classes),
        centers=list(schedule.centers),
        ood_centers=list(outside.centers) if outside else [],
        slides=[[list(row) for row in table] for table in schedule.slides],
        rows_per_slide=schedule.rows_per_slide,
        n_training_rows=schedule.n_training_rows,
        n_id_test_rows=len(tasks[0].test()),
        n_ood_test_rows=len(outside.x) if outside else 0,
        warnings=warnings,
        provenance=provenance,
        apd_id_ci95=linear.apd_id_ci95,
        apd_ood_ci95=linear.apd_ood_ci95,
    )


def _make_heads(done: Done, tasks: Sequence[Repetition], plan: Plan) -> dict[str, HeadResult]:
    """The results of all heads by name, the linear probe's among them."""
    v = list(plan.schedule.cramers_v())
    sizes = {"n_training": plan.schedule.n_training_rows, "n_test": len(tasks[0].test())}
    n_classes = len(plan.schedule.classes)
    return {name: _make_head(name, done, v, sizes, n_classes=n_classes) for name in done.counts[0]}


def _make_head(
    name: str,
    done: Done,
    v: Sequence[float],
    sizes: Mapping[str, int],
    *,
    n_classes: int,
) -> HeadResult:
    """Reduce the counts of one head over repetitions."""
    nothing = np.full((len(v), len(done.counts)), np.nan)
    accuracies = {}
    for domain in ("id", "ood"):
        calls = done.spread(name, domain, fill=0)
        accuracies[domain] = nothing if calls is None else apd.balanced_accuracy(calls).T
    validation = done.spread(name, "validation", fill=np.nan)
    best = nothing if validation is None else validation.max(axis=2).T
    chosen = done.spread(name, "chosen", fill=np.nan)
    return HeadResult(
        setting=SETTING_OF[name],
        apd_id=apd.average_performance_drop(accuracies["id"]),
        apd_ood=apd.average_performance_drop(accuracies["ood"]),
        nipd_id=_nipd(accuracies["id"], v, n_classes),
        nipd_ood=_nipd(accuracies["ood"], v, n_classes),
        id_accuracies=accuracies["id"].tolist(),
        ood_accuracies=accuracies["ood"].tolist(),
        id_accuracy_means=apd.accuracy_means(accuracies["id"]).tolist(),
        ood_accuracy_means=apd.accuracy_means(accuracies["ood"]).tolist(),
        chosen=(nothing if chosen is None else chosen.T).tolist(),
        validation_accuracies=best.tolist(),
        apd_id_ci95=apd.drop_interval(accuracies["id"], in_domain=True, **sizes),
        apd_ood_ci95=apd.drop_interval(accuracies["ood"], in_domain=False, **sizes),
    )


def _nipd(accuracies: np.ndarray, v: Sequence[float], n_classes: int) -> float:
    """The nIPD; NaN also where V does not increase from 0 to 1 over the splits that are left."""
    left = ~np.isnan(accuracies).all(axis=1)
    known = np.asarray(v)[left]
    if len(known) < 2 or not apd.spans_all_associations(known):
        return float("nan")
    # A copy would be laid out otherwise, and sums would differ in their last bits.
    values = accuracies if left.all() else accuracies[left]
    return apd.normalized_integrated_drop(values, known, n_classes=n_classes)


def _warn_undefined(name: str, head: HeadResult, v: Sequence[float], chance: float) -> list[str]:
    texts = []
    if not apd.spans_all_associations(v):
        texts.append(
            f"{name}: nIPD is undefined; it is an integral over Cramer's V from 0 to 1, and the "
            f"schedule has {[round(value, 3) for value in v]}. Give splits that rise from 0 to 1."
        )
    for domain, means in (("id", head.id_accuracy_means), ("ood", head.ood_accuracy_means)):
        if means[0] <= chance:
            texts.append(
                f"{name}, {domain}: without association the accuracy is {means[0]:.3f}, not above "
                f"chance ({chance:.3f}); nIPD is undefined and the drop says nothing."
            )
    return texts


def _warn_unconverged(converged: np.ndarray, stopping: Stopping) -> list[str]:
    """A warning that counts the fits of the linear probe that were cut short."""
    if converged.all():
        return []
    limit = heads.LIMITS[stopping][0]
    mend = (
        "with --stopping=converged they run on"
        if stopping == "reference"
        else "scale the embeddings, or leave out what does not vary"
    )
    return [
        f"{apd.LINEAR}: {(~converged).mean():.0%} of the fits ended at max_iter = {limit} before "
        "they met their stopping rule; their accuracies depend on where they were cut, and may "
        f"differ from scikit-learn's, which are cut there too; {mend}."
    ]


def _chosen_converged(done: Done, c_grid: Sequence[float]) -> list[list[bool | None]]:
    """Whether the chosen fit of each split and repetition met its rule; None without a fit."""
    out: list[list[bool | None]] = [[None] * len(done.counts) for _ in range(done.n_splits)]
    for repetition, counts in enumerate(done.counts):
        chosen, converged = counts[LINEAR]["chosen"], counts[LINEAR]["converged"]
        for split, c, met in zip(done.left(repetition), chosen, converged, strict=True):
            out[split][repetition] = met[c_grid.index(c)]
    return out


def _directions(
    done: Done,
    domain: str,
    classes: Sequence[str],
    centers: Sequence[str],
) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """Shares of (centre, true class) by predicted class along the splits; null without rows."""
    calls = done.spread(LINEAR, domain, fill=0)
    if calls is None:
        return {}
    shares = apd.direction_shares(calls.swapaxes(0, 1))
    return {
        center: {
            true: {
                called: [None if np.isnan(s) else float(s) for s in shares[m, i, j]]
                for j, called in enumerate(classes)
            }
            for i, true in enumerate(classes)
        }
        for m, center in enumerate(centers)
    }
