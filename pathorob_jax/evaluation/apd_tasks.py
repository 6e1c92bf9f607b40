"""The repetitions of a performance drop as tasks: they run on any device and are kept on disk.

A repetition with all its splits is one task. Its result is the counts and the chosen settings of
every head, as plain JSON. The fingerprint covers everything that they depend on.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from pathorob_jax.core import digests, tasks
from pathorob_jax.core.devices import to_device
from pathorob_jax.core.task_files import TaskFiles, make_fingerprint
from pathorob_jax.data.training_splits import Repetition
from pathorob_jax.evaluation.schedule_plan import Plan
from pathorob_jax.metrics import apd, heads

TASK_VERSION = 4
RESULT_KEY = "heads"


@dataclass(frozen=True, eq=False)
class Done:
    """Results of all repetitions.

    Attributes:
        counts: for each repetition, counts and chosen settings of every head on the splits that are
            not refused.
        refused: for each repetition, why a split (its number as text) has no result.
        n_splits: number of all splits.
        fingerprint: of all that the results depend on.
    """

    counts: list[dict[str, Any]]
    refused: list[dict[str, str]]
    n_splits: int
    fingerprint: str

    def left(self, repetition: int) -> list[int]:
        """Numbers of the splits that have results."""
        return [s for s in range(self.n_splits) if str(s) not in self.refused[repetition]]

    def spread(self, head: str, key: str, *, fill: float) -> np.ndarray | None:
        """[R, S, ...] values of all splits, ``fill`` for those refused; None: there are no values.

        Args:
            head: name of the head.
            key: ``chosen``, ``validation``, ``id`` or ``ood``.
            fill: an integer for counts.
        """
        some = next((counts[head][key] for counts in self.counts if counts[head][key]), None)
        if some is None:
            return None
        out = np.full((len(self.counts), self.n_splits, *np.shape(some)[1:]), fill)
        for repetition, counts in enumerate(self.counts):
            if left := self.left(repetition):
                out[repetition, left] = counts[head][key]
        return out


def fingerprint_tasks(plan: Plan, mesh: Mesh, **more: Any) -> str:
    """Hex sha256 of everything that the counts of a task depend on, except its number.

    Args:
        plan: rows, schedule and settings.
        mesh: devices that compute.
        **more: other facts, as plain values.
    """
    chosen, schedule = asdict(plan.settings), asdict(plan.schedule)
    if not schedule["held_rows"]:
        del schedule["held_rows"]
    domains = [d for d in (plan.in_domain, plan.out_of_domain) if d is not None]
    facts = {
        "version": TASK_VERSION,
        "rows": [d.rows.fingerprint() for d in domains],
        "embeddings": [digests.digest_in_threads(d.x) for d in domains],
        "schedule": schedule,
        "held_out": plan.held_out,
        "seed": plan.seed,
        "c_grid": plan.c_grid,
        "limits": heads.LIMITS,
        "heads": heads.head_settings(chosen["heads"]),
        "stopping": chosen["stopping"],
        # It changes last bits, which may cost the stopping rule one more iteration.
        "budget_bytes": chosen["budget_bytes"],
        **more,
    }
    return make_fingerprint(facts, mesh)


def run_repetitions(
    drawn: Sequence[Repetition],
    plan: Plan,
    fingerprint: str,
    *,
    folder: str | None,
    mesh: Mesh,
    compute: Callable[[Repetition], dict[str, Any]] | None = None,
    check: Callable[[Any], None] | None = None,
) -> list[dict[str, Any]]:
    """Results of every repetition, in order; results on disk are not computed again.

    Args:
        drawn: the repetitions.
        plan: the data that they share.
        fingerprint: of all that their results depend on.
        folder: where results are kept; None: nowhere.
        mesh: devices; each repetition runs on one.
        compute: result of a repetition, as plain values; None: counts of every head.
        check: raises ValueError unless a result from disk has the right form.
    """
    kept = TaskFiles(folder, "repetition", fingerprint)
    repetitions = tasks.Tasks(
        name="repetitions",
        n_tasks=len(drawn),
        compute=lambda i, tell: compute(drawn[i]) if compute else _compute(drawn[i], plan),
        n_steps=1,
        unit="repetition",
        read=lambda i: kept.read_json(
            drawn[i].number,
            key=RESULT_KEY,
            check=check or (lambda counts: check_counts(counts, plan)),
            seed=drawn[i].seed,
        ),
        write=lambda i, counts: kept.write_json(
            drawn[i].number, counts, key=RESULT_KEY, seed=drawn[i].seed
        ),
        hold=lambda i: kept.hold(drawn[i].number),
        drop_abandoned=lambda i: kept.drop_abandoned(drawn[i].number),
    )
    return tasks.run_tasks(repetitions, mesh=mesh)


def check_counts(counts: Any, plan: Plan, n_splits: int | None = None) -> None:
    """Raise ValueError unless counts have the form that ``count_calls`` gives those of all splits.

    Args:
        counts: counts and chosen settings of every head.
        plan: the data that they are of.
        n_splits: number of their splits; None: that of the schedule.
    """
    n_classes = len(plan.schedule.classes)
    n_splits = plan.schedule.n_splits if n_splits is None else n_splits
    if set(counts) != {*heads.result_names(plan.settings.heads)}:
        raise ValueError("heads")
    if not set(counts[apd.LINEAR]["chosen"]) <= set(plan.c_grid):
        raise ValueError("chosen")
    for name, head in counts.items():
        if not n_splits:
            if any(head[key] for key in ("validation", "converged", "chosen", "id", "ood")):
                raise ValueError("form")
            continue
        n_settings = len(plan.c_grid if name == apd.LINEAR else head["validation"][0])
        _check_array(head["validation"], (n_splits, n_settings), int, float)
        _check_array(head["converged"], (n_splits, n_settings), bool)
        _check_array(head["chosen"], (n_splits,), int, float)
        for side, domain in (("id", plan.in_domain), ("ood", plan.out_of_domain)):
            if domain is not None:
                shape = (n_splits, len(domain.centers), n_classes, n_classes)
                _check_array(head[side], shape, int)
            elif head[side] is not None:
                raise ValueError(side)


def _check_array(value: Any, shape: tuple[int, ...], *types: type) -> None:
    """Raise ValueError unless nested lists have a shape, and values of types, none below 0."""
    leaves = np.asarray(value, object)
    if leaves.shape != shape or not {type(leaf) for leaf in leaves.flat} <= {*types}:
        raise ValueError("form")
    if not all(0 <= leaf < 2**63 for leaf in leaves.flat):
        raise ValueError("range")


def _compute(task: Repetition, plan: Plan) -> dict[str, Any]:
    return count_calls(task, plan, range(plan.schedule.n_splits))


def count_calls(task: Repetition, plan: Plan, splits: range) -> dict[str, Any]:
    """Counts and chosen settings of every head on the given splits, as plain JSON."""
    schedule, inside, outside = plan.schedule, plan.in_domain, plan.out_of_domain
    n_classes = len(schedule.classes)
    training, masks = _union([task.training(s) for s in splits])
    # Of all splits, so that shapes do not depend on which are counted.
    validation, validation_masks = _union([task.validation(s) for s in range(schedule.n_splits)])
    test = task.test()
    rows = heads.SplitRows(
        x=to_device(inside.x[training]),
        label_id=inside.label_id[training],
        training=masks,
        x_validation=to_device(inside.x[validation]),
        validation_label_id=inside.label_id[validation],
        validation=validation_masks[splits.start : splits.stop],
        x_tests=[to_device(inside.x[test])] + ([] if outside is None else [to_device(outside.x)]),
        n_classes=n_classes,
        center_id=inside.center_id[training],
        n_centers=len(inside.centers),
        first=splits.start,
    )
    tested = [(inside, test)]
    if outside is not None:
        tested.append((outside, np.arange(len(outside.x))))
    calls = heads.make_heads(
        plan.settings.heads,
        c_grid=plan.c_grid,
        stopping=plan.settings.stopping,
        budget_bytes=plan.settings.budget_bytes,
    )
    out: dict[str, Any] = {}
    for name, call in calls.items():
        answer = call(rows, task.seed)
        counts = [
            apd.count_calls(
                called,
                domain.label_id[tested_rows],
                domain.center_id[tested_rows],
                n_classes=n_classes,
                n_centers=len(domain.centers),
            ).tolist()
            for called, (domain, tested_rows) in zip(answer.called_id, tested, strict=True)
        ]
        out[name] = {
            "chosen": answer.chosen.tolist(),
            "validation": answer.validation_accuracy.tolist(),
            "converged": answer.converged.tolist(),
            "id": counts[0],
            "ood": counts[1] if len(counts) > 1 else None,
        }
    return out


def _union(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Union of the rows of all parts, ascending, and bool[parts, rows] membership in each part."""
    rows = np.unique(np.concatenate(parts))
    return rows, np.stack([np.isin(rows, part) for part in parts])
