"""Case retrieval under the schedule of the performance drop: what a biased database answers.

The databases are the training rows of each split, the queries the test rows in domain and the rows
of other centres. A repetition with all its splits is one task, whose result is counts as plain
JSON. All its databases are searched with one product of queries and rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.privacy import file_name
from pathorob_jax.data import row_views
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.bags import find_bags
from pathorob_jax.data.training_splits import Repetition
from pathorob_jax.evaluation.apd_tasks import fingerprint_tasks, run_repetitions
from pathorob_jax.evaluation.directional_errors import list_directional_errors
from pathorob_jax.evaluation.schedule_plan import Plan, make_plan
from pathorob_jax.evaluation.settings import ApdSettings
from pathorob_jax.kernels.neighbors import parts as kernel
from pathorob_jax.kernels.neighbors.exact_rows import Rows
from pathorob_jax.kernels.neighbors.parts import Parts
from pathorob_jax.kernels.neighbors.set_matches import list_members
from pathorob_jax.metrics import apd, retrieval
from pathorob_jax.metrics.retrieval import K_GRID
from pathorob_jax.results.retrieval import (
    RetrievalDrop,
    RetrievalResult,
    RetrievalSchedule,
)
from pathorob_jax.robustify.run import PARENT

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation

VERSION = 1
# Levels of the schedule, and the two sets of queries.
PATCH, SLIDE = "patch", "slide"
ID, OOD = "id", "ood"


@dataclass(frozen=True, eq=False)
class Data:
    """Rows of all repetitions: those in domain first, then those of other centres.

    Attributes:
        plan: rows and splits.
        rows: all rows.
        x: float32[N, D] the same.
        label_id: int64[N] classes, numbered in sorted order.
        center_id: int64[N] centres; those in domain come first.
        group_id: int64[N] rows of one group never find each other.
        bag_id: int64[N] class and slide of each row.
        n_inside: number of rows in domain.
        classes: names of the classes, sorted.
        centers: names of the centres in domain, sorted.
        ood_centers: names of the others.
        budget_bytes: memory for the scores of a tile.
    """

    plan: Plan
    rows: Rows
    x: np.ndarray
    label_id: np.ndarray
    center_id: np.ndarray
    group_id: np.ndarray
    bag_id: np.ndarray
    n_inside: int
    classes: list[str]
    centers: list[str]
    ood_centers: list[str]
    budget_bytes: int

    @property
    def schedule(self) -> AssociationSchedule:
        """The plan's, in the order of ``classes`` and ``centers``."""
        schedule = self.plan.schedule
        classes = [schedule.classes.index(name) for name in self.classes]
        centers = [schedule.centers.index(name) for name in self.centers]
        slides = np.array(schedule.slides)[:, classes][:, :, centers].tolist()
        return replace(
            schedule, classes=tuple(self.classes), centers=tuple(self.centers), slides=slides
        )

    @property
    def slides(self) -> np.ndarray:
        """int64[S, C, M] slides of each split, in the order of ``classes`` and ``centers``."""
        return np.array(self.schedule.slides)

    @property
    def outside(self) -> np.ndarray:
        """int64[n] rows of other centres."""
        return np.arange(self.n_inside, len(self.label_id))


class Scheduled(NamedTuple):
    """The schedule of a record.

    Attributes:
        record: None if no schedule can be made.
        warnings: why not, and what the reader must know.
        facts: settings and digests for the provenance.
    """

    record: RetrievalSchedule | None
    warnings: list[str]
    facts: dict[str, Any]


def make_schedule(evaluation: Evaluation) -> Scheduled:
    """Search the databases of all splits and repetitions.

    Raises:
        UsageError: a setting of the schedule is fixed by the dataset's protocol.
    """
    try:
        plan = make_plan(evaluation)
        drawn = plan.draw_repetitions()
        data = read(plan, evaluation)
    except UsageError:
        raise
    except (InputError, FileNotFoundError) as error:
        source, _, rest = str(error).partition(": ")
        return Scheduled(None, [f"retrieval: no schedule; {file_name(source)}: {rest}"], {})
    # Only what the counts depend on, so that settings of classifiers do not matter.
    bare = replace(plan, settings=ApdSettings(), c_grid=())
    fingerprint = fingerprint_tasks(
        bare,
        evaluation.mesh,
        retrieval=VERSION,
        k=list(K_GRID),
        groups=data.group_id.tolist(),
    )
    counts = run_repetitions(
        drawn,
        plan,
        fingerprint,
        folder=evaluation.task_folder(RetrievalResult.metric),
        mesh=evaluation.mesh,
        compute=lambda task: count_task(task, data),
        check=lambda found: check_counts(found, data),
    )
    record = _make_record(counts, drawn, data)
    warnings = []
    if data.plan.out_of_domain is None:
        warnings.append(
            "retrieval: no queries out of domain; the rows have no centre beside those of the "
            f"schedule ({', '.join(data.centers)})."
        )
    if PARENT in evaluation.store.info.get("settings", {}):
        warnings.append(
            "retrieval: the schedule searches the embeddings as they are stored. The robustifier "
            "was not fitted again on the rows of each database, and may have seen the queries."
        )
    return Scheduled(record, warnings, {"schedule": {"tasks_sha256": fingerprint}})


def read(plan: Plan, evaluation: Evaluation) -> Data:
    """All rows in one array, with their labels.

    Raises:
        InputError: the group column cannot be used, or an embedding has no direction.
    """
    inside, outside = plan.in_domain, plan.out_of_domain
    domains = [inside] if outside is None else [inside, outside]
    x = np.concatenate([d.x for d in domains])
    rows = Rows(x)
    rows.check_directions(np.ones(rows.n, bool))
    column = evaluation.settings.group_column
    groups = [row_views.read_groups(d.rows, column) for d in domains]
    names = np.concatenate([np.array(g.names, object)[g.ids].astype(str) for g in groups])
    bags = [find_bags(d.rows).bag_id for d in domains]
    classes = sorted(plan.schedule.classes)
    place = np.array([classes.index(name) for name in plan.schedule.classes])
    n_centers = len(inside.centers)
    return Data(
        plan=plan,
        rows=rows,
        x=x,
        label_id=np.concatenate([place[d.label_id] for d in domains]),
        center_id=np.concatenate([d.center_id + i * n_centers for i, d in enumerate(domains)]),
        group_id=np.unique(names, return_inverse=True)[1].reshape(-1),
        bag_id=np.concatenate([b + i * len(inside.x) for i, b in enumerate(bags)]),
        n_inside=len(inside.x),
        classes=classes,
        centers=list(inside.centers),
        ood_centers=[] if outside is None else list(outside.centers),
        budget_bytes=evaluation.settings.budget_bytes,
    )


def count_task(task: Repetition, data: Data) -> dict[str, Any]:
    """Counts of a repetition by level and domain, as plain JSON.

    ``calls`` are int[S][G][M][C][C] queries by split, k, centre, class and called class;
    ``nearest`` int[S][M][C][M'][C'] by split, centre and class, and those of the nearest neighbour.
    """
    n_splits, per_slide = task.schedule.n_splits, task.schedule.rows_per_slide
    runs = [task.training(split).reshape(-1, per_slide) for split in range(n_splits)]
    parts = np.unique(np.concatenate(runs), axis=0)
    members = np.stack([np.isin(parts[:, 0], run[:, 0]) for run in runs])
    queries = np.concatenate([task.test(), data.outside])
    patches = _answer(data.rows, queries, queries, Parts(parts, parts[:, 0], members), data)

    bags = [queries[rows] for rows in list_members(*_renumber(data.bag_id[queries]))]
    pooled = Rows(retrieval.pool_rows(data.x, [*parts, *bags]))
    # A slide whose mean is zero has no direction: it is neither searched for nor found.
    usable = pooled.norms2 >= checks.MIN_NORM2
    held, asked = np.flatnonzero(usable[: len(parts)]), np.flatnonzero(usable[len(parts) :])
    slides = _answer(
        pooled,
        len(parts) + asked,
        np.array([bags[i][0] for i in asked], np.int64),
        Parts(held[:, None], parts[held, 0], members[:, held]),
        data,
    )
    return {PATCH: patches, SLIDE: slides}


def _renumber(ids: np.ndarray) -> tuple[np.ndarray, int]:
    """Ids from 0, in order, and their number."""
    names, numbers = np.unique(ids, return_inverse=True)
    return numbers.reshape(-1), len(names)


def _answer(
    rows: Rows, query_idx: np.ndarray, query_of: np.ndarray, parts: Parts, data: Data
) -> dict[str, Any]:
    """Counts of the answers of all databases.

    Args:
        rows: what is searched.
        query_idx: int[Q] rows that are queries.
        query_of: int[Q] a row of ``data`` with the labels of each query.
        parts: parts of the databases; their ``group_id`` is a row of ``data`` with their labels.
        data: labels.
    """
    of_part = parts.group_id
    found = kernel.find_in_parts(
        rows,
        query_idx,
        data.group_id[query_of],
        parts._replace(group_id=data.group_id[of_part]),
        k=K_GRID[-1],
        budget_bytes=data.budget_bytes,
    )
    n_classes, n_centers = len(data.classes), len(data.centers)
    part_of = np.zeros(rows.n, np.int64)
    part_of[parts.rows] = np.arange(len(parts.rows))[:, None]
    labels = np.where(found >= 0, data.label_id[of_part][part_of[found]], -1)
    cells = data.center_id[of_part] * n_classes + data.label_id[of_part]
    nearest_cell = np.where(found[:, :, 0] >= 0, cells[part_of[found[:, :, 0]]], -1)
    label_id, center_id = data.label_id[query_of], data.center_id[query_of]
    called = np.stack(
        [
            retrieval.find_votes(part, label_id, K_GRID, n_classes=n_classes).called_id.T
            for part in labels
        ]
    )  # [S, G, Q]
    inside = query_of < data.n_inside
    out: dict[str, Any] = {ID: None, OOD: None}
    for domain, mask, centers in ((ID, inside, data.centers), (OOD, ~inside, data.ood_centers)):
        if not centers:
            continue
        first = 0 if domain == ID else n_centers
        out[domain] = {
            "calls": retrieval.count_answers(
                called[:, :, mask],
                label_id[mask],
                center_id[mask] - first,
                n_classes=n_classes,
                n_centers=len(centers),
            ).tolist()
        }
    size = n_centers * n_classes
    cell_id = center_id * n_classes + label_id
    nearest = retrieval.count_nearest(nearest_cell[:, inside], cell_id[inside], n_cells=size)
    shape = (-1, n_centers, n_classes, n_centers, n_classes)
    out[ID]["nearest"] = nearest.reshape(shape).tolist()
    return out


def check_counts(found: Any, data: Data) -> None:
    """Raise ValueError unless counts have the form of those of ``count_task``."""
    n_splits, n_classes = data.plan.schedule.n_splits, len(data.classes)
    cells = (len(data.centers), n_classes)
    for level in (PATCH, SLIDE):
        for domain, centers in ((ID, data.centers), (OOD, data.ood_centers)):
            counts = found[level][domain]
            if not centers:
                if counts is not None:
                    raise ValueError(domain)
                continue
            shape = (n_splits, len(K_GRID), len(centers), n_classes, n_classes)
            _check_array(counts["calls"], shape)
        _check_array(found[level][ID]["nearest"], (n_splits, *cells, *cells))
    if set(found) != {PATCH, SLIDE}:
        raise ValueError("levels")


def _check_array(value: Any, shape: tuple[int, ...]) -> None:
    leaves = np.asarray(value, object)
    if leaves.shape != shape or not all(type(leaf) is int for leaf in leaves.flat):
        raise ValueError("form")
    if not all(0 <= leaf < 2**63 for leaf in leaves.flat):
        raise ValueError("range")


def _make_record(
    counts: Sequence[dict[str, Any]], drawn: Sequence[Repetition], data: Data
) -> RetrievalSchedule:
    schedule, test = data.plan.schedule, drawn[0].test()
    n_training = int(np.sum(schedule.slides[0]))
    sizes = {
        PATCH: (schedule.n_training_rows, len(test)),
        SLIDE: (n_training, len(np.unique(data.bag_id[test]))),
    }
    drops = {
        level: _make_drop([found[level] for found in counts], data, *sizes[level])
        for level in (PATCH, SLIDE)
    }
    return RetrievalSchedule(
        cramers_v=list(schedule.cramers_v()),
        patch=drops[PATCH],
        slide=drops[SLIDE],
        chance=1 / len(data.classes),
        classes=data.classes,
        centers=data.centers,
        ood_centers=data.ood_centers,
        slides=data.slides.tolist(),
        rows_per_slide=schedule.rows_per_slide,
        repetitions=len(drawn),
        schedule_seed=data.plan.seed,
        n_training_rows=schedule.n_training_rows,
        n_id_test_rows=len(test),
        n_ood_test_rows=len(data.outside),
        n_training_slides=n_training,
        n_id_test_slides=sizes[SLIDE][1],
        n_ood_test_slides=len(np.unique(data.bag_id[data.outside])),
    )


def _make_drop(
    counts: Sequence[dict[str, Any]], data: Data, n_training: int, n_test: int
) -> RetrievalDrop:
    """Reduce the counts of a level over repetitions."""
    v, n_classes = np.array(data.plan.schedule.cramers_v()), len(data.classes)
    numbers: dict[str, Any] = {}
    for domain in (ID, OOD):
        found = [part[domain] for part in counts]
        accuracies = np.full((len(K_GRID), len(v), len(counts)), np.nan)
        if found[0] is not None:
            calls = np.array([part["calls"] for part in found])  # [R, S, G, M, C, C]
            accuracies = np.moveaxis(apd.balanced_accuracy(calls), (2, 1, 0), (0, 1, 2))
        numbers |= {
            f"{domain}_accuracies": accuracies.tolist(),
            f"{domain}_accuracy_means": [apd.accuracy_means(a).tolist() for a in accuracies],
            f"drop_{domain}": [apd.average_performance_drop(a) for a in accuracies],
            f"drop_{domain}_intervals": [
                apd.drop_interval(a, n_training=n_training, n_test=n_test, in_domain=domain == ID)
                for a in accuracies
            ],
            f"nipd_{domain}": [
                apd.normalized_integrated_drop(a, v, n_classes=n_classes)
                if apd.spans_all_associations(v)
                else float("nan")
                for a in accuracies
            ],
        }
    nearest = np.array([part[ID]["nearest"] for part in counts])
    wrong = retrieval.find_wrong_answers(nearest.sum(axis=0), data.slides)
    intervals = retrieval.own_center_intervals(
        nearest, data.slides, n_training=n_training, n_test=n_test
    )
    return RetrievalDrop(
        k=list(K_GRID),
        wrong_share=wrong.share.tolist(),
        own_center_share=wrong.from_own_center.tolist(),
        own_center_intervals=[
            None if np.isnan(ends).any() else ends.tolist() for ends in intervals
        ],
        own_center_expected=wrong.expected.tolist(),
        directional_errors=list_directional_errors(
            np.array([part[ID]["calls"] for part in counts])[:, :, 0].swapaxes(0, 1),
            centers=data.centers,
            schedule=data.schedule,
            n_training=n_training,
            n_test=n_test,
        ),
        **numbers,
    )
