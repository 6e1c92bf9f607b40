"""Prediction of the slides of a table that names its splits: labels or survival.

Networks are trained on the table's training slides, tuned on its validation slides and tested on
its test slides; where centres are called added, without their slides as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pathorob_jax.core import digests, files, tasks
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.privacy import file_name
from pathorob_jax.core.task_files import TaskFiles, make_fingerprint
from pathorob_jax.data import row_views
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE, Manifest
from pathorob_jax.data.protocols import ApdProtocol
from pathorob_jax.data.slide_table import (
    LABEL,
    SPLIT,
    TEST,
    TRAIN,
    VALIDATION,
    SlideTable,
    check_training,
    join_patches,
    read_slide_table,
)
from pathorob_jax.evaluation.attention_maps import find_places, plan_maps
from pathorob_jax.kernels.bootstrap.draws import Jackknife, plan_jackknife
from pathorob_jax.kernels.mil.bags import BagRows, sort_into_bags
from pathorob_jax.kernels.mil.survival import (
    N_BINS,
    SurvivalTarget,
    assign_bins,
    find_bin_edges,
)
from pathorob_jax.metrics import slide_heads, slide_scores
from pathorob_jax.metrics.slide_heads import BagSplits
from pathorob_jax.metrics.slide_scores import Score
from pathorob_jax.results.slide_prediction import TablePreset, TableResult, TableScore

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation
    from pathorob_jax.evaluation.settings import SlideSettings

TASK_VERSION = 4
# C of the mean of a bag where no validation slide chooses it: that of scikit-learn.
DEFAULT_C = 1.0


@dataclass(frozen=True, eq=False)
class TableBags:
    """The slides of a table as bags, in its order.

    Attributes:
        table: slides.
        bags: embeddings of their patches.
        patches: rows of ``bags.x``.
        centers: object[B] centre of each slide.
    """

    table: SlideTable
    bags: BagRows
    patches: Manifest
    centers: np.ndarray


def open_table(evaluation: Evaluation) -> SlideTable | None:
    """The table of slides of a request, checked; None: there is none.

    Raises:
        UsageError: the dataset has a protocol that names its rows.
        InputError: see ``read_slide_table``.
    """
    given = evaluation.settings.slide_prediction.table
    if given is None:
        return None
    if evaluation.protocol is not None:
        raise UsageError(
            f"slide_table: dataset {evaluation.dataset} has a protocol that names its rows and "
            "labels; evaluate your own slides under another --dataset."
        )
    return read_slide_table(given) if isinstance(given, str) else given


def join_table(evaluation: Evaluation, table: SlideTable) -> Manifest:
    """The patches of the table's slides, with its labels; see ``data.slide_table``."""
    columns = evaluation.settings.columns or {}
    rows = evaluation.custom_rows.unique_patches()
    return join_patches(rows, table, center_column=columns.get(CENTER, CENTER))


def list_settings(settings: SlideSettings, table: SlideTable | None) -> dict[str, Any]:
    """Settings as plain values; a table is its file and digest."""
    facts = asdict(replace(settings, table=None))
    if table is not None:
        facts |= {"table": file_name(table.source), "table_sha256": table.fingerprint()}
    return facts


def predict_table(evaluation: Evaluation, table: SlideTable) -> tuple[TableResult, str, list[str]]:
    """Measures of the test slides by every preset, the fingerprint of the tasks, and warnings.

    Raises:
        UsageError: a preset cannot learn what the table asks, or a centre is unknown.
        InputError: a slide has no patch, or the slides that are left cannot be learned from.
    """
    settings = evaluation.settings.slide_prediction
    held = _gather(evaluation, table)
    group_of = _find_groups(evaluation, table)
    variants = _list_variants(held, settings.added_centers)
    _check_presets(settings.presets, table)
    work = [(name, variant) for name in settings.presets for variant in variants]
    done, fingerprint = _run(evaluation, held, work, variants)
    test = np.flatnonzero(table.in_split(TEST))
    target, n_classes = _find_target(held, variants)
    groups, group_id = np.unique(group_of[test], return_inverse=True)
    jackknife = plan_jackknife(
        len(groups), draws=evaluation.settings.draws, seed=evaluation.settings.seed
    )
    scores = {}
    for key, result in zip(work, done, strict=True):
        measure = _measure(target, n_classes, test, result["logits"])
        scores[key] = slide_scores.score(measure, jackknife, group_id)
    sizes = {name: int((kept & table.in_split(TRAIN)).sum()) for name, kept in variants.items()}
    presets = {name: _make_preset(name, scores, sizes, jackknife) for name in settings.presets}
    classes = [] if table.is_survival else sorted(set(table.columns[LABEL]))
    found = TableResult(
        source=file_name(table.source),
        measure=slide_scores.CONCORDANCE if table.is_survival else slide_scores.AUC,
        classes=classes,
        centers=sorted(set(held.centers)),
        added_centers=list(settings.added_centers),
        n_training=sizes[_ALL],
        n_validation=int(table.in_split(VALIDATION).sum()),
        n_test=len(test),
        presets=presets,
    )
    return found, fingerprint, _warn(found, table, evaluation)


_ALL, _WITHOUT = "all", "without_added"


def _gather(evaluation: Evaluation, table: SlideTable) -> TableBags:
    rows = join_table(evaluation, table)
    x = evaluation.store.read_patches(rows, relabelled={CLASS, CENTER}, need_direction=False)
    place = {slide: i for i, slide in enumerate(table.slides)}
    bag_id = np.array([place[slide] for slide in rows.column(SLIDE)], np.int64)
    bags, row_idx = sort_into_bags(x, bag_id)
    patches = rows.take(row_idx)
    return TableBags(table, bags, patches, patches.column(CENTER)[bags.starts[:-1]])


def _find_groups(evaluation: Evaluation, table: SlideTable) -> np.ndarray:
    """str[B] group of each slide (``Settings.group_column``), which lies in one split.

    Raises:
        InputError: there is no such column, or a group lies in two splits.
    """
    name = evaluation.settings.group_column
    groups = table.slides.astype(str)
    if name == SLIDE:
        return groups
    if name in table:
        groups = table.columns[name].astype(str)
    else:
        rows = evaluation.custom_rows
        found = row_views.read_groups(rows, name)
        names = np.array(found.names)[found.ids]
        of_slide = dict(zip(rows.column(SLIDE), names, strict=True))
        groups = np.array([of_slide[slide] for slide in table.slides])
    first: dict[str, str] = {}
    for group, split in zip(groups.tolist(), table.columns[SPLIT], strict=True):
        if first.setdefault(group, split) != split:
            raise InputError(
                f"{table.source}: slides of {name} {group!r} lie in two splits, {first[group]} and "
                f"{split}; what is learned from some would be tested on others. Keep them in one."
            )
    return groups


def _list_variants(held: TableBags, added: Sequence[str]) -> dict[str, np.ndarray]:
    """bool[B] slides that train or validate, if they do, by variant."""
    table = held.table
    training = table.in_split(TRAIN)
    everything = np.ones(len(table), bool)
    if not added:
        return {_ALL: everything}
    known = sorted(set(held.centers[training]))
    unknown = sorted(set(added) - set(known))
    if unknown:
        raise UsageError(
            f"added_centers: expected centres of training slides, out of {known}, found {unknown}."
        )
    left = ~np.isin(held.centers.astype(str), list(added))
    for name in (TRAIN, VALIDATION):
        part = table.in_split(name)
        if part.any() and not (part & left).any():
            raise InputError(
                f"{table.source}: without the added centres {list(added)} no {name} slide is left; "
                "name fewer."
            )
    check_training(table, training & left, what=f"training slides outside {', '.join(added)}")
    return {_ALL: everything, _WITHOUT: left}


def _check_presets(presets: Sequence[str], table: SlideTable) -> None:
    if table.is_survival and slide_heads.MEAN in presets:
        raise UsageError(
            f"presets: {slide_heads.MEAN} predicts classes alone; for survival give networks, as "
            f"in --presets={slide_heads.GATED}."
        )
    if slide_heads.XMIL in presets and not table.in_split(VALIDATION).any():
        raise InputError(
            f"{table.source}: {slide_heads.XMIL} chooses its epoch on validation slides, and the "
            f"table has none; mark some {VALIDATION!r}, or leave the preset out."
        )


def _run(
    evaluation: Evaluation,
    held: TableBags,
    work: Sequence[tuple[str, str]],
    variants: dict[str, np.ndarray],
) -> tuple[list[dict[str, Any]], str]:
    """Logits of the test slides for every preset and variant; finished ones are kept."""
    settings, table = evaluation.settings.slide_prediction, held.table
    chosen = evaluation.settings.apd
    seed = ApdProtocol.seed if chosen.seed is None else chosen.seed
    has_validation = table.in_split(VALIDATION).any()
    target, n_classes = _find_target(held, variants)
    places = find_places(evaluation, held.patches)
    maps = None if places is None else plan_maps(evaluation, _name_scores(table))
    heads = {
        name: slide_heads.make_head(
            name,
            epochs=settings.epochs,
            seeds=settings.seeds,
            c_grid=ApdProtocol.c_grid if has_validation else (DEFAULT_C,),
            stopping=chosen.stopping,
            budget_bytes=chosen.budget_bytes,
        )
        for name in settings.presets
    }
    fingerprint = make_fingerprint(
        {
            "version": TASK_VERSION,
            "table": table.fingerprint(),
            "rows": held.patches.fingerprint(),
            "embeddings": digests.digest_in_threads(np.asarray(held.bags.x)),
            "heads": {name: facts for name, (_, facts) in heads.items()},
            "added": list(settings.added_centers),
            "seed": seed,
            "maps": maps is not None,
        },
        evaluation.mesh,
    )
    folder = evaluation.task_folder("slide_prediction")
    kept = TaskFiles(
        None if folder is None else files.join(folder, "table"), "training", fingerprint
    )

    def compute(number: int) -> dict[str, Any]:
        name, variant = work[number]
        kept = variants[variant]
        splits = BagSplits(
            bags=held.bags,
            target=target,
            training=np.flatnonzero(table.in_split(TRAIN) & kept)[None],
            validation=(table.in_split(VALIDATION) & kept)[None],
            tests=[(held.bags, np.flatnonzero(table.in_split(TEST)))],
            n_classes=n_classes,
            seed=seed,
        )
        calls = heads[name][0](splits)
        if maps is not None and places is not None:
            maps.write(
                calls,
                0,
                preset=name,
                trained=f"table_{variant}",
                bags=held.bags,
                patches=held.patches,
                places=places,
                subset=splits.tests[0][1],
            )
        return {
            "chosen": calls.chosen[0].tolist(),
            "logits": np.asarray(calls.logits[0][0], np.float64).tolist(),
        }

    n_test = int(table.in_split(TEST).sum())
    done = tasks.run_tasks(
        tasks.Tasks(
            name="trainings",
            n_tasks=len(work),
            compute=lambda i, tell: compute(i),
            n_steps=1,
            unit="training",
            read=lambda i: kept.read_json(
                i, key="result", check=lambda result: _check(result, n_test), work=list(work[i])
            ),
            write=lambda i, result: kept.write_json(i, result, key="result", work=list(work[i])),
            hold=kept.hold,
            drop_abandoned=kept.drop_abandoned,
        ),
        mesh=evaluation.mesh,
    )
    return done, fingerprint


def _name_scores(table: SlideTable) -> list[str]:
    """Classes in the order of their numbers, or bins of time."""
    if table.is_survival:
        return [f"hazard_{i}" for i in range(N_BINS)]
    return sorted(set(table.columns[LABEL].astype(str)))


def _check(result: Any, n_test: int) -> None:
    """Raise ValueError unless the result of a task has the form that ``_run`` gives it."""
    logits = np.asarray(result["logits"], np.float64)
    if logits.ndim != 3 or logits.shape[1] != n_test or not np.isfinite(logits).all():
        raise ValueError("logits")


def _find_target(held: TableBags, variants: dict[str, np.ndarray]) -> tuple[Any, int]:
    """What is learned of every slide, and the number of classes, or of bins of time.

    Times are cut by the training slides that all variants share, so that likelihoods compare.
    """
    table = held.table
    if not table.is_survival:
        classes, label_id = np.unique(table.columns[LABEL].astype(str), return_inverse=True)
        return label_id.astype(np.int64), len(classes)
    shared = np.logical_and.reduce([table.in_split(TRAIN), *variants.values()])
    edges = find_bin_edges(table.time[shared], table.event[shared])
    bins = assign_bins(table.time, edges)
    return SurvivalTarget(bins, table.event, table.time), N_BINS


def _measure(target: Any, n_classes: int, test: np.ndarray, logits: Any) -> slide_scores.Measure:
    values = np.asarray(logits, np.float64)
    if isinstance(target, SurvivalTarget):
        return slide_scores.measure_survival(
            values, target.time[test], target.event[test], target.bin_id[test]
        )
    return slide_scores.measure_classes(values, target[test], n_classes)


def _make_preset(
    name: str,
    scores: dict[tuple[str, str], Score],
    sizes: dict[str, int],
    jackknife: Jackknife,
) -> TablePreset:
    def make(variant: str) -> TableScore:
        found = scores[name, variant]
        ends = slide_scores.find_intervals(found, jackknife)
        return TableScore(found.values, ends, sizes[variant])

    if _WITHOUT not in sizes:
        return TablePreset(make(_ALL), None, None)
    values, ends = slide_scores.compare(scores[name, _ALL], scores[name, _WITHOUT], jackknife)
    added = TableScore(values, ends, sizes[_ALL] - sizes[_WITHOUT])
    return TablePreset(make(_ALL), make(_WITHOUT), added)


def _warn(found: TableResult, table: SlideTable, evaluation: Evaluation) -> list[str]:
    texts = []
    if not found.n_validation:
        texts.append(
            f"slide_prediction: {found.source} has no validation slides; networks are those of "
            f"their last epoch, and mean pooling has C = {DEFAULT_C:g}."
        )
    undefined = [
        name
        for name, preset in found.presets.items()
        if not np.isfinite(preset.all.values[found.measure])
    ]
    if undefined:
        what = "comparable pairs" if table.is_survival else "every class"
        texts.append(
            f"slide_prediction: the {found.measure} is undefined; the test slides lack {what}."
        )
    others = len(set(evaluation.custom_rows.column(SLIDE)) - set(table.slides))
    if others:
        texts.append(
            f"slide_prediction: {others} slides of the store are not in {found.source} and are "
            "left out."
        )
    return texts
