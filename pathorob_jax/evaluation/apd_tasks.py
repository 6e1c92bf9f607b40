"""The repetitions of a performance drop as tasks: counted on any device, kept on disk.

Enters: a plan (rows, embeddings, schedule, settings) and its repetitions. Leaves: for each the
counts and choices of every head, as plain JSON. A repetition with all its splits is one task; all
that its counts depend on is in the fingerprint.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import digests, files, tasks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.provenance import software_versions
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.manifest import Manifest
from pathorob_jax.data.training_splits import HeldOut, Repetition
from pathorob_jax.kernels.logistic.fit import Stopping
from pathorob_jax.metrics import apd, heads

TASK_VERSION = 1


@dataclass(frozen=True)
class ApdSettings:
    """What a user may choose; the defaults are the protocol's.

    Attributes:
        repetitions: how often the splits are drawn; None: the protocol's 20.
        seed: of the draws; None: the protocol's.
        stopping: of the linear probe, ``reference`` (scikit-learn's, which the published numbers
            come from) or ``converged``.
        heads: other classifiers on the same splits, names of ``HEADS``.
        classes: of a dataset of one's own; None: all.
        centers: in domain, of a dataset of one's own; None: chosen, see ``schedule_from_manifest``.
        slides_per_cell: training slides of every cell of the first split; None: as many as fit.
        rows_per_slide: patches of each slide; None: the most training rows.
        budget_bytes: memory on each device for the fits of a batch. Beside it a device holds the
            rows of one repetition, the host the dataset's embeddings; neither grows with the
            repetitions.
    """

    repetitions: int | None = None
    seed: int | None = None
    stopping: Stopping = "reference"
    heads: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    centers: tuple[str, ...] | None = None
    slides_per_cell: int | None = None
    rows_per_slide: int | None = None
    budget_bytes: int = 1 << 30


@dataclass(frozen=True, eq=False)
class Domain:
    """Rows of one domain.

    Attributes:
        rows: what the schedule draws from, or all out-of-domain rows.
        x: float32[N, D].
        label_id: int64[N] numbered as the schedule's classes.
        center_id: int64[N].
        centers: their names.
    """

    rows: Manifest
    x: np.ndarray
    label_id: np.ndarray
    center_id: np.ndarray
    centers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """All that the tasks of a dataset share."""

    schedule: AssociationSchedule
    held_out: HeldOut | None
    in_domain: Domain
    out_of_domain: Domain | None
    seed: int
    c_grid: tuple[float, ...]
    settings: ApdSettings


def fingerprint_tasks(plan: Plan, mesh: Mesh) -> str:
    """Hex sha256 of all that a task's counts depend on, but for its number."""
    chosen = asdict(plan.settings)
    domains = [d for d in (plan.in_domain, plan.out_of_domain) if d is not None]
    facts = {
        "version": TASK_VERSION,
        "rows": [d.rows.fingerprint() for d in domains],
        "embeddings": [digests.digest_array(d.x) for d in domains],
        "schedule": asdict(plan.schedule),
        "held_out": plan.held_out,
        "seed": plan.seed,
        "c_grid": plan.c_grid,
        "limits": heads.LIMITS,
        "heads": heads.head_settings(chosen["heads"]),
        "stopping": chosen["stopping"],
        # Both decide last bits, which a stopping rule may turn into an iteration more.
        "budget_bytes": chosen["budget_bytes"],
        "jax": [software_versions()["jax"], mesh.devices.flat[0].device_kind],
    }
    return digests.digest(json.dumps(facts, sort_keys=True).encode())


def run_tasks(
    drawn: Sequence[Repetition],
    plan: Plan,
    fingerprint: str,
    *,
    name: str,
    work_dir: str | None,
    mesh: Mesh,
) -> list[dict[str, Any]]:
    """The counts of every task, in order; those on disk are not computed again."""
    repetitions = tasks.Tasks(
        name=f"apd {name}",
        n_tasks=len(drawn),
        noun="repetitions",
        compute=lambda i, tell: _compute(drawn[i], plan),
        n_steps=1,
        unit="repetition",
        read=lambda i: _read_task(work_dir, drawn[i], fingerprint),
        write=lambda i, counts: _write_task(work_dir, drawn[i], fingerprint, counts),
    )
    return tasks.run_tasks(repetitions, work_dir=work_dir, mesh=mesh)


def _compute(task: Repetition, plan: Plan) -> dict[str, Any]:
    """Counts and choices of every head, as plain JSON."""
    schedule, inside, outside = plan.schedule, plan.in_domain, plan.out_of_domain
    n_classes = len(schedule.classes)
    splits = range(schedule.n_splits)
    training, masks = _union([task.training(s) for s in splits])
    validation, validation_masks = _union([task.validation(s) for s in splits])
    test = task.test()
    put = jnp.asarray
    rows = heads.SplitRows(
        x=put(inside.x[training]),
        label_id=inside.label_id[training],
        training=masks,
        x_validation=put(inside.x[validation]),
        validation_label_id=inside.label_id[validation],
        validation=validation_masks,
        x_tests=[put(inside.x[test])] + ([] if outside is None else [put(outside.x)]),
        n_classes=n_classes,
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
        said = call(rows, task.seed)
        counts = [
            apd.count_calls(
                called,
                domain.label_id[of],
                domain.center_id[of],
                n_classes=n_classes,
                n_centers=len(domain.centers),
            ).tolist()
            for called, (domain, of) in zip(said.called_id, tested, strict=True)
        ]
        out[name] = {
            "chosen": said.chosen.tolist(),
            "validation": said.validation_accuracy.tolist(),
            "converged": said.converged.tolist(),
            "id": counts[0],
            "ood": counts[1] if len(counts) > 1 else None,
        }
    return out


def _union(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of any part, ascending, and bool[parts, rows] which of them each part has."""
    rows = np.unique(np.concatenate(parts))
    return rows, np.stack([np.isin(rows, part) for part in parts])


def _task_path(work_dir: str, task: Repetition) -> str:
    return files.join(work_dir, f"repetition_{task.number:04d}.json")


def _write_task(
    work_dir: str | None, task: Repetition, fingerprint: str, counts: dict[str, Any]
) -> None:
    if work_dir is None:
        return
    record = {"fingerprint": fingerprint, "seed": task.seed, "digest": _digest(counts)}
    files.write_json(_task_path(work_dir, task), record | {"heads": counts})


def _read_task(work_dir: str | None, task: Repetition, fingerprint: str) -> dict[str, Any] | None:
    """A finished task; None, with a word where there is one of other data, or a damaged one."""
    if work_dir is None or not files.exists(_task_path(work_dir, task)):
        return None
    path = _task_path(work_dir, task)
    try:
        record = files.read_json(path)
    except InputError:
        record = None
    if not isinstance(record, dict) or record.get("digest") != _digest(record.get("heads")):
        logging.warning("%s: damaged; the repetition is computed again.", path)
        return None
    if (record.get("fingerprint"), record.get("seed")) != (fingerprint, task.seed):
        logging.warning("%s: of other data or settings; the repetition is computed again.", path)
        return None
    return record["heads"]


def _digest(counts: Any) -> str:
    return digests.digest(json.dumps(counts, sort_keys=True).encode())
