"""The repetitions of slide-level prediction as tasks: logits of the test bags of every split.

What is kept on disk are logits, so that numbers of them can change without training again. Each
preset has a folder of its own: one more does not cost the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from pathorob_jax.core import files
from pathorob_jax.data.bags import find_bags
from pathorob_jax.data.manifest import Manifest
from pathorob_jax.data.training_splits import Repetition
from pathorob_jax.evaluation.apd_tasks import fingerprint_tasks, run_repetitions
from pathorob_jax.evaluation.attention_maps import SlideMaps, find_places, plan_maps
from pathorob_jax.evaluation.schedule_plan import Domain, Plan
from pathorob_jax.kernels.mil.bags import BagRows, sort_into_bags
from pathorob_jax.metrics.slide_heads import BagCalls, BagHead, BagSplits

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation

SIDES = ("id", "ood")


@dataclass(frozen=True, eq=False)
class BagDomain:
    """Bags of one domain.

    Attributes:
        rows: one row per bag.
        bags: their embeddings.
        label_id: int64[B] classes, numbered as in the schedule.
        center_id: int64[B] centres.
        centers: names of the centres.
        patches: rows of ``bags.x``.
        places: float64[N, 2] places of these patches on their slides; None: not known.
    """

    rows: Manifest
    bags: BagRows
    label_id: np.ndarray
    center_id: np.ndarray
    centers: tuple[str, ...]
    patches: Manifest
    places: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Bagged:
    """The bags of a plan.

    Attributes:
        plan: rows and schedule, one of bags.
        inside: bags that the schedule draws from.
        outside: bags of other centres; None: there are none.
        maps: where maps of slides go; None: nowhere.
    """

    plan: Plan
    inside: BagDomain
    outside: BagDomain | None
    maps: SlideMaps | None

    @property
    def n_classes(self) -> int:
        """C."""
        return len(self.plan.schedule.classes)

    @property
    def domains(self) -> list[tuple[str, BagDomain]]:
        """(``id`` or ``ood``, bags) of every domain."""
        pairs = zip(SIDES, (self.inside, self.outside), strict=True)
        return [(side, domain) for side, domain in pairs if domain is not None]

    def tested(self, task: Repetition) -> dict[str, np.ndarray]:
        """Test bags of a repetition, by domain: int64[T] numbers of bags."""
        known = {"id": task.test()}
        if self.outside is not None:
            known["ood"] = np.arange(len(self.outside.rows))
        return known


def gather_bags(evaluation: Evaluation, domain: Domain) -> BagDomain:
    """The bags of a domain; see ``data.bags``."""
    found = find_bags(domain.rows)
    bags, row_idx = sort_into_bags(domain.x, found.bag_id)
    first = row_idx[bags.starts[:-1]]
    patches = domain.rows.take(row_idx)
    return BagDomain(
        rows=found.rows,
        bags=bags,
        label_id=domain.label_id[first],
        center_id=domain.center_id[first].astype(np.int64),
        centers=domain.centers,
        patches=patches,
        places=find_places(evaluation, patches),
    )


def gather(evaluation: Evaluation, plan: Plan) -> Bagged:
    """The bags of both domains of a plan."""
    inside = gather_bags(evaluation, plan.in_domain)
    outside = None
    if plan.out_of_domain is not None:
        outside = gather_bags(evaluation, plan.out_of_domain)
    maps = plan_maps(evaluation, plan.schedule.classes) if inside.places is not None else None
    return Bagged(plan, inside, outside, maps)


def run_preset(
    name: str,
    head: BagHead,
    facts: Any,
    bagged: Bagged,
    drawn: Sequence[Repetition],
    *,
    folder: str | None,
    mesh: Mesh,
) -> tuple[list[dict[str, Any]], str]:
    """Logits of every repetition by one preset, and the fingerprint of its tasks.

    Args:
        name: the preset.
        head: trains and tests it.
        facts: all that its logits depend on beside the plan, as plain values.
        bagged: bags and schedule.
        drawn: repetitions, drawn from the bags.
        folder: where results are kept; None: nowhere.
        mesh: devices; each repetition runs on one.

    Returns:
        For each repetition ``id`` and ``ood`` ([split][network][bag][logit]; ``ood`` is None
        without such bags), and ``chosen`` ([split][network]).
    """
    # Whoever has no maps yet trains again for them.
    more = {} if bagged.maps is None else {"maps": True}
    fingerprint = fingerprint_tasks(
        bagged.plan, mesh, preset=name, settings=facts, unit="bag", **more
    )
    done = run_repetitions(
        drawn,
        bagged.plan,
        fingerprint,
        folder=None if folder is None else files.join(folder, name),
        mesh=mesh,
        compute=lambda task: _compute(task, name, head, bagged),
        check=lambda result: _check(result, bagged),
    )
    return done, fingerprint


def make_splits(task: Repetition, bagged: Bagged) -> BagSplits:
    """The bags of a repetition."""
    n_splits, inside = bagged.plan.schedule.n_splits, bagged.inside
    validation = np.zeros((n_splits, len(inside.rows)), bool)
    for split in range(n_splits):
        validation[split, task.validation(split)] = True
    tested = bagged.tested(task)
    return BagSplits(
        bags=inside.bags,
        target=inside.label_id,
        training=np.stack([task.training(split) for split in range(n_splits)]),
        validation=validation,
        tests=[(domain.bags, tested[side]) for side, domain in bagged.domains],
        n_classes=bagged.n_classes,
        seed=task.seed,
    )


def _compute(task: Repetition, name: str, head: BagHead, bagged: Bagged) -> dict[str, Any]:
    calls = head(make_splits(task, bagged))
    if bagged.maps is not None and task.number == 0:
        _write_maps(bagged.maps, task, name, calls, bagged)
    out: dict[str, Any] = {"chosen": calls.chosen.tolist(), "ood": None}
    for (side, _), logits in zip(bagged.domains, calls.logits, strict=True):
        out[side] = np.asarray(logits, np.float64).tolist()
    return out


def _write_maps(
    maps: SlideMaps, task: Repetition, name: str, calls: BagCalls, bagged: Bagged
) -> None:
    """What the classifiers of the first and of the last split see in the test bags."""
    tested = bagged.tested(task)
    for split in (0, bagged.plan.schedule.n_splits - 1):
        for side, domain in bagged.domains:
            if domain.places is not None:
                maps.write(
                    calls,
                    split,
                    preset=name,
                    trained=f"split_{split}_{side}",
                    bags=domain.bags,
                    patches=domain.patches,
                    places=domain.places,
                    subset=tested[side],
                )


def _check(result: Any, bagged: Bagged) -> None:
    """Raise ValueError unless the result of a task has the form that ``_compute`` gives it."""
    n_splits = bagged.plan.schedule.n_splits
    chosen = np.asarray(result["chosen"], np.float64)
    if chosen.ndim != 2 or len(chosen) != n_splits:
        raise ValueError("chosen")
    if (result["ood"] is None) != (bagged.outside is None):
        raise ValueError("ood")
    for side, domain in bagged.domains:
        logits = np.asarray(result[side], np.float64)
        wanted = chosen.shape
        if logits.ndim != 4 or logits.shape[:2] != wanted or not np.isfinite(logits).all():
            raise ValueError(side)
        if logits.shape[3] not in ({1, 2} if bagged.n_classes == 2 else {bagged.n_classes}):
            raise ValueError(side)
        if side == "ood" and logits.shape[2] != len(domain.rows):
            raise ValueError(side)
