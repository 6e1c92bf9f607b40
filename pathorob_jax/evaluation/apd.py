"""Average performance drop of a store: selects rows and splits, and builds the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pathorob_jax.core import checks, files
from pathorob_jax.core.checks import UsageError
from pathorob_jax.data.training_splits import Repetition
from pathorob_jax.evaluation import apd_refit
from pathorob_jax.evaluation.apd_tasks import Done, fingerprint_tasks, run_repetitions
from pathorob_jax.evaluation.directional_errors import list_directional_errors
from pathorob_jax.evaluation.row_warnings import warn_of_names
from pathorob_jax.evaluation.schedule_plan import Plan, make_plan
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
    _check_settings(settings)
    refit = apd_refit.find_refit(evaluation.store)
    plan = make_plan(evaluation)
    fingerprint = fingerprint_tasks(plan, evaluation.mesh)
    tasks = plan.draw_repetitions()
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


def _check_settings(settings: ApdSettings) -> None:
    for name in settings.heads:
        checks.check_known(name, apd.OTHER_HEADS, what="heads")
    checks.check_known(settings.stopping, heads.LIMITS, what="stopping")
    if settings.budget_bytes < 1:
        raise UsageError(
            f"budget_bytes: expected a positive number, found {settings.budget_bytes}."
        )


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
        directional_errors=linear.directional_errors,
    )


def _make_heads(done: Done, tasks: Sequence[Repetition], plan: Plan) -> dict[str, HeadResult]:
    """The results of all heads by name, the linear probe's among them."""
    sizes = {"n_training": plan.schedule.n_training_rows, "n_test": len(tasks[0].test())}
    return {name: _make_head(name, done, plan, sizes) for name in done.counts[0]}


def _make_head(name: str, done: Done, plan: Plan, sizes: Mapping[str, int]) -> HeadResult:
    """Reduce the counts of one head over repetitions."""
    v, n_classes = list(plan.schedule.cramers_v()), len(plan.schedule.classes)
    nothing = np.full((len(v), len(done.counts)), np.nan)
    accuracies = {}
    calls = {domain: done.spread(name, domain, fill=0) for domain in ("id", "ood")}
    for domain, counts in calls.items():
        accuracies[domain] = nothing if counts is None else apd.balanced_accuracy(counts).T
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
        directional_errors=list_directional_errors(
            None if calls["id"] is None else calls["id"].swapaxes(0, 1),
            centers=plan.in_domain.centers,
            schedule=plan.schedule,
            **sizes,
        ),
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
