"""Rows and training splits that the metrics of a performance drop share.

A protocol names them for its dataset; for any other, a schedule is made from the rows or given.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import association_schedule
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.bags import find_bags
from pathorob_jax.data.manifest import CENTER, CLASS, SUBSET, Manifest
from pathorob_jax.data.names import canonical
from pathorob_jax.data.protocols import OOD, ApdProtocol
from pathorob_jax.data.training_splits import HeldOut, Repetition, draw_repetitions
from pathorob_jax.evaluation.settings import ApdSettings

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation

OWN_SCHEDULE = ("classes", "centers", "slides_per_cell", "rows_per_slide", "test_slides")


class NoScheduleError(InputError):
    """The rows of a custom dataset allow no schedule."""


@dataclass(frozen=True, eq=False)
class Domain:
    """Rows of one domain.

    Attributes:
        rows: rows from which the schedule draws, or all out-of-domain rows.
        x: float32[N, D] embeddings.
        label_id: int64[N] classes, numbered as in the schedule.
        center_id: int64[N] centres.
        centers: names of the centres.
    """

    rows: Manifest
    x: np.ndarray
    label_id: np.ndarray
    center_id: np.ndarray
    centers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """The rows and splits that all repetitions of a dataset share.

    Attributes:
        schedule: training slides of each split.
        held_out: lists of test slides to draw from; None: see ``draw_repetitions``.
        in_domain: rows that the schedule draws from.
        out_of_domain: rows of other centres; None: there are none.
        seed: seed of the repetitions.
        c_grid: settings of the linear probe.
        settings: choices of the user.
        repetitions: number of repetitions.
    """

    schedule: AssociationSchedule
    held_out: HeldOut | None
    in_domain: Domain
    out_of_domain: Domain | None
    seed: int
    c_grid: tuple[float, ...]
    settings: ApdSettings
    repetitions: int = ApdProtocol.repetitions

    def draw_repetitions(self, rows: Manifest | None = None) -> list[Repetition]:
        """The rows of all repetitions; see ``data.training_splits.draw_repetitions``.

        Args:
            rows: what is drawn from, such as bags; None: the rows in domain.
        """
        return list(
            draw_repetitions(
                self.in_domain.rows if rows is None else rows,
                self.schedule,
                seed=self.seed,
                repetitions=self.repetitions,
                held_out=self.held_out,
            )
        )


def make_plan(
    evaluation: Evaluation, *, of_bags: bool = False, custom_rows: Manifest | None = None
) -> Plan:
    """The rows and splits of a store, with ``evaluation.settings.apd`` as the choices.

    Args:
        evaluation: the store and the request.
        of_bags: whether the schedule is one of bags (``data.bags``): it draws from
            ``find_bags(plan.in_domain.rows).rows``, and its slides have one row.
        custom_rows: rows of a custom dataset with labels other than the store's; None:
            ``evaluation.custom_rows``.

    Raises:
        UsageError: a setting is fixed by the protocol, or given twice.
        NoScheduleError: no schedule can be made from the rows of a custom dataset.
        InputError: the rows are not those of the protocol, or all embeddings are equal.
    """
    settings = evaluation.settings.apd
    protocol = evaluation.protocol.apd if evaluation.protocol else None
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
    if protocol is not None:
        plan = _plan_protocol(evaluation, protocol)
    else:
        rows = evaluation.custom_rows if custom_rows is None else custom_rows
        relabelled = evaluation.settings.renamed_columns
        if custom_rows is not None:
            relabelled = {CLASS, CENTER}
        plan = _plan_custom(
            evaluation, rows.unique_patches(), of_bags=of_bags, relabelled=relabelled
        )
    if not of_bags:
        return plan
    return replace(plan, schedule=replace(plan.schedule, rows_per_slide=1, held_rows=0))


def _plan_protocol(evaluation: Evaluation, protocol: ApdProtocol) -> Plan:
    settings = evaluation.settings.apd
    metadata_dir = evaluation.request.metadata_dir
    relabelled = evaluation.settings.renamed_columns
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
        in_domain=_read_domain(evaluation, inside, protocol.schedule.classes, relabelled),
        out_of_domain=_read_domain(evaluation, outside, protocol.schedule.classes, relabelled),
        seed=protocol.seed if settings.seed is None else settings.seed,
        c_grid=protocol.c_grid,
        settings=settings,
        repetitions=settings.repetitions or protocol.repetitions,
    )


def _plan_custom(
    evaluation: Evaluation, rows: Manifest, *, of_bags: bool, relabelled: Collection[str]
) -> Plan:
    settings = evaluation.settings.apd
    schedule = settings.schedule or _make_schedule(
        find_bags(rows).rows if of_bags else rows,
        settings,
        rows_per_slide=1 if of_bags else settings.rows_per_slide,
    )
    known = np.isin(rows.column(CLASS).astype(str), schedule.classes)
    inside = np.isin(rows.column(CENTER).astype(str), schedule.centers)
    outside = np.flatnonzero(known & ~inside)

    def read(part: Manifest) -> Domain:
        return _read_domain(evaluation, part, schedule.classes, relabelled)

    return Plan(
        schedule=schedule,
        held_out=None,
        in_domain=read(rows.take(np.flatnonzero(known & inside))),
        out_of_domain=read(rows.take(outside)) if outside.size else None,
        seed=ApdProtocol.seed if settings.seed is None else settings.seed,
        c_grid=ApdProtocol.c_grid,
        settings=settings,
        repetitions=settings.repetitions or ApdProtocol.repetitions,
    )


def _make_schedule(
    rows: Manifest, settings: ApdSettings, *, rows_per_slide: int | None
) -> AssociationSchedule:
    try:
        return association_schedule.schedule_from_manifest(
            rows,
            classes=settings.classes,
            centers=settings.centers,
            slides_per_cell=settings.slides_per_cell,
            rows_per_slide=rows_per_slide,
            test_slides=settings.test_slides,
        )
    except UsageError:
        raise
    except InputError as error:
        raise NoScheduleError(str(error)) from error


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


def _read_domain(
    evaluation: Evaluation, rows: Manifest, classes: Sequence[str], relabelled: Collection[str]
) -> Domain:
    name = rows.column(CLASS).astype(str)
    unknown = sorted(set(name.tolist()) - set(classes))
    if unknown:
        raise InputError(
            f"{rows.source}: expected the classes {list(classes)}, found {unknown} as well."
        )
    store = evaluation.store
    x = store.read_patches(rows, relabelled=relabelled, need_direction=False)
    if (x == x[:1]).all():
        raise InputError(
            f"{store.path}: all {len(x)} embeddings of {rows.source} are equal; no classifier can "
            "tell their classes apart. Look at the encoder and at its input."
        )
    center = rows.factorize(CENTER)
    label_id = np.searchsorted(sorted(classes), name)
    return Domain(rows, x, np.argsort(classes)[label_id], center.ids, center.names)
