"""Slide-level prediction of a store: bags, splits and classifiers, and the record of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pathorob_jax.core import checks, digests
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.privacy import file_name
from pathorob_jax.data.slide_table import SPLIT, SlideTable
from pathorob_jax.data.training_splits import Repetition
from pathorob_jax.evaluation.directional_errors import list_directional_errors
from pathorob_jax.evaluation.row_warnings import warn_of_names
from pathorob_jax.evaluation.schedule_plan import NoScheduleError, make_plan
from pathorob_jax.evaluation.slide_prediction_tasks import Bagged, gather, run_preset
from pathorob_jax.evaluation.slide_table import (
    join_table,
    list_settings,
    open_table,
    predict_table,
)
from pathorob_jax.metrics import apd, slide_heads
from pathorob_jax.metrics.slide_prediction import macro_auc, measure_drops, score_classes
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.slide_prediction import PresetResult, SlidePredictionResult
from pathorob_jax.robustify.run import PARENT

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation
    from pathorob_jax.evaluation.settings import SlideSettings


def make_slide_prediction(evaluation: Evaluation) -> Outcome:
    """Tell slides of different classes apart by their bags, along the schedule of the drop.

    Raises:
        UsageError: a preset is unknown or given twice, or a setting is fixed by the protocol.
        InputError: the rows are not those of the protocol, or all embeddings are equal.
    """
    settings = evaluation.settings.slide_prediction
    _check_settings(settings)
    table = open_table(evaluation)
    if settings.added_centers and (table is None or SPLIT not in table):
        raise UsageError(
            "added_centers: they are of a table of slides that names its splits; give one "
            "(slide_table), or leave them out."
        )
    if table is not None and SPLIT in table:
        found, fingerprint, warnings = predict_table(evaluation, table)
        reason = "the table of slides names its splits, so no schedule is drawn"
        record = _make_empty(evaluation, reason, table, fingerprint)
        return Outcome(replace(record, table=found, warnings=[*record.warnings, *warnings]))
    try:
        rows = None if table is None else join_table(evaluation, table)
        plan = make_plan(evaluation, of_bags=True, custom_rows=rows)
        bagged = gather(evaluation, plan)
        drawn = _draw(evaluation, bagged)
    except NoScheduleError as error:
        source, _, why = str(error).partition(": ")
        reason = f"no schedule can be made: {file_name(source)}: {why}"
        return Outcome(_make_empty(evaluation, reason, table))
    folder = evaluation.task_folder(SlidePredictionResult.metric)
    presets, fingerprints = {}, {}
    for name in settings.presets:
        head, facts = slide_heads.make_head(
            name,
            epochs=settings.epochs,
            seeds=settings.seeds,
            c_grid=plan.c_grid,
            stopping=plan.settings.stopping,
            budget_bytes=plan.settings.budget_bytes,
        )
        done, fingerprints[name] = run_preset(
            name, head, facts, bagged, drawn, folder=folder, mesh=evaluation.mesh
        )
        presets[name] = _make_preset(name, facts, done, bagged, drawn)
    return Outcome(_make_record(evaluation, presets, bagged, drawn, table, fingerprints))


def _check_settings(settings: SlideSettings) -> None:
    names = settings.presets
    for name in names:
        checks.check_known(name, slide_heads.PRESETS, what="presets")
    if not names or len(set(names)) < len(names):
        raise UsageError(
            f"presets: expected one or more, each once, found {list(names)}; known are "
            f"{', '.join(slide_heads.PRESETS)}."
        )
    if settings.epochs is not None and set(names) == {slide_heads.MEAN}:
        raise UsageError(f"epochs: {slide_heads.MEAN} has none; add a network, or leave them out.")


def _draw(evaluation: Evaluation, bagged: Bagged) -> list[Repetition]:
    try:
        return bagged.plan.draw_repetitions(bagged.inside.rows)
    except UsageError:
        raise
    except InputError as error:
        if evaluation.protocol is not None:
            raise
        raise NoScheduleError(str(error)) from error


def _make_preset(
    name: str,
    facts: dict[str, Any],
    done: Sequence[dict[str, Any]],
    bagged: Bagged,
    drawn: Sequence[Repetition],
) -> PresetResult:
    """The record of one preset from the logits of every repetition."""
    schedule, n_classes = bagged.plan.schedule, bagged.n_classes
    v, n_splits = np.array(schedule.cramers_v()), schedule.n_splits
    nothing = np.full((n_splits, len(drawn)), np.nan)
    auc: dict[str, np.ndarray] = {"id": nothing.copy(), "ood": nothing.copy()}
    accuracy = {side: values.copy() for side, values in auc.items()}
    outside = () if bagged.outside is None else bagged.outside.centers
    by_center = {center: nothing.copy() for center in outside}
    called_inside = []
    for r, (result, task) in enumerate(zip(done, drawn, strict=True)):
        tested = bagged.tested(task)
        for side, domain in bagged.domains:
            label, center = (a[tested[side]] for a in (domain.label_id, domain.center_id))
            scores = score_classes(result[side])  # [S, K, T, C]
            calls = apd.count_calls(
                scores.argmax(axis=-1),
                label,
                center,
                n_classes=n_classes,
                n_centers=len(domain.centers),
            )
            auc[side][:, r] = macro_auc(scores, label).mean(axis=1)
            accuracy[side][:, r] = apd.balanced_accuracy(calls).mean(axis=1)
            if side == "id":
                # The networks of a split share its bags and are counted together.
                called_inside.append(calls.sum(axis=1, keepdims=True))
                continue
            for m, name_of_center in enumerate(domain.centers):
                of_center = macro_auc(scores[:, :, center == m], label[center == m])
                by_center[name_of_center][:, r] = of_center.mean(axis=1)
    sizes = {"n_training": schedule.n_training_rows, "n_test": len(drawn[0].test())}
    drops = {
        f"{measure}drop_{side}": measure_drops(
            values[side], v, n_levels=levels, in_domain=side == "id", **sizes
        )
        for measure, values, levels in (("", accuracy, n_classes), ("auc_", auc, 2))
        for side in ("id", "ood")
    }
    chosen = np.array([result["chosen"] for result in done], np.float64).mean(axis=2).T
    return PresetResult(
        auc_id=auc["id"].tolist(),
        auc_ood=auc["ood"].tolist(),
        auc_ood_by_center={center: values.tolist() for center, values in by_center.items()},
        balanced_accuracy_id=accuracy["id"].tolist(),
        balanced_accuracy_ood=accuracy["ood"].tolist(),
        drop_id=drops["drop_id"].drop,
        drop_ood=drops["drop_ood"].drop,
        nipd_id=drops["drop_id"].nipd,
        nipd_ood=drops["drop_ood"].nipd,
        auc_drop_id=drops["auc_drop_id"].drop,
        auc_drop_ood=drops["auc_drop_ood"].drop,
        auc_nipd_id=drops["auc_drop_id"].nipd,
        auc_nipd_ood=drops["auc_drop_ood"].nipd,
        intervals={field: found.ci95 for field, found in drops.items()},
        directional_errors=list_directional_errors(
            np.concatenate(called_inside, axis=1),
            centers=bagged.inside.centers,
            schedule=schedule,
            **sizes,
        ),
        setting="C" if name == slide_heads.MEAN else "epoch",
        chosen=chosen.tolist(),
        settings=facts,
    )


def _make_record(
    evaluation: Evaluation,
    presets: dict[str, PresetResult],
    bagged: Bagged,
    drawn: Sequence[Repetition],
    table: SlideTable | None,
    fingerprints: dict[str, str],
) -> SlidePredictionResult:
    settings, plan = evaluation.settings.slide_prediction, bagged.plan
    inside, outside = bagged.inside, bagged.outside
    headline = choose_headline(settings.presets)
    first = presets[headline]
    return SlidePredictionResult(
        model=evaluation.request.model,
        dataset=evaluation.dataset,
        preset=headline,
        drop_id=first.drop_id,
        drop_ood=first.drop_ood,
        drop_id_ci95=first.intervals["drop_id"],
        drop_ood_ci95=first.intervals["drop_ood"],
        cramers_v=list(plan.schedule.cramers_v()),
        presets=presets,
        classes=sorted(plan.schedule.classes),
        centers=list(inside.centers),
        ood_centers=list(outside.centers) if outside else [],
        repetitions=len(drawn),
        seeds=settings.seeds,
        seed=plan.seed,
        n_bags=sum(len(domain.rows) for _, domain in bagged.domains),
        n_training_bags=plan.schedule.n_training_rows,
        n_id_test_bags=len(drawn[0].test()),
        n_ood_test_bags=len(outside.rows) if outside else 0,
        warnings=_warn(evaluation, presets, bagged),
        provenance=evaluation.task_provenance(
            {**list_settings(settings, table), "apd": asdict(plan.settings)},
            plan.in_domain.rows,
            digests.digest_json(fingerprints),
        ),
    )


def choose_headline(presets: Sequence[str]) -> str:
    """The preset whose drop is the headline: ``gated``, or the first."""
    return slide_heads.GATED if slide_heads.GATED in presets else presets[0]


def _make_empty(
    evaluation: Evaluation, reason: str, table: SlideTable | None, fingerprint: str = ""
) -> SlidePredictionResult:
    """The record where there is no schedule."""
    settings, rows = evaluation.settings.slide_prediction, evaluation.custom_rows
    return SlidePredictionResult(
        model=evaluation.request.model,
        dataset=evaluation.dataset,
        preset=choose_headline(settings.presets),
        drop_id=float("nan"),
        drop_ood=float("nan"),
        drop_id_ci95=None,
        drop_ood_ci95=None,
        cramers_v=None,
        presets=None,
        classes=[],
        centers=[],
        ood_centers=[],
        repetitions=0,
        seeds=settings.seeds,
        seed=0,
        n_bags=0,
        n_training_bags=0,
        n_id_test_bags=0,
        n_ood_test_bags=0,
        warnings=[f"slide_prediction: {reason}"],
        provenance=evaluation.task_provenance(list_settings(settings, table), rows, fingerprint),
    )


def _warn(evaluation: Evaluation, presets: dict[str, PresetResult], bagged: Bagged) -> list[str]:
    schedule, outside = bagged.plan.schedule, bagged.outside
    texts = []
    if outside is None:
        texts.append(
            "slide_prediction: nothing is known out of domain; the rows have no centre beside "
            f"those of the schedule ({', '.join(schedule.centers)})."
        )
    else:
        lacking = {
            center: [
                name
                for i, name in enumerate(schedule.classes)
                if not ((outside.label_id == i) & (outside.center_id == m)).any()
            ]
            for m, center in enumerate(outside.centers)
        }
        texts += [
            f"slide_prediction: the AUC at {center} is undefined; it has no slide of "
            f"{', '.join(names)}."
            for center, names in lacking.items()
            if names
        ]
        missing = [n for i, n in enumerate(schedule.classes) if i not in outside.label_id]
        if missing:
            texts.append(
                "slide_prediction: the AUC out of domain is undefined; no centre has a slide of "
                f"{', '.join(missing)}."
            )
    if not apd.spans_all_associations(schedule.cramers_v()):
        texts.append(
            "slide_prediction: nIPD is undefined; it is an integral over Cramer's V from 0 to 1, "
            "and the schedule does not rise from 0 to 1."
        )
    chance = 1 / bagged.n_classes
    for name, preset in presets.items():
        start = preset.mean("balanced_accuracy_id")[0]
        if start <= chance:
            texts.append(
                f"{name}: without association the balanced accuracy is {start:.3f}, not above "
                f"chance ({chance:.3f}); the drop says nothing."
            )
    if PARENT in evaluation.store.info.get("settings", {}):
        method = evaluation.store.info["settings"]["method"]
        texts.append(
            f"slide_prediction: {method} was fitted once and is not fitted again in the splits; "
            "where its rows are test rows too, it saw them."
        )
    return texts + warn_of_names(bagged.plan.in_domain.rows)
