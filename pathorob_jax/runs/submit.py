"""Submit jobs through submitit: to SLURM, or as processes of this machine.

SLURM gets all jobs at once, with their dependencies, and queues again what was preempted or ran
out of time. On this machine they run here, in order, and ``submit`` returns when all have ended.
"""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from absl import logging

from pathorob_jax.core import faults, hosts
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.runs.jobs import AFTER_ANY, AFTER_OK, LOCAL, Job, Submitted

# How often a job that ran out of time is queued again.
MAX_TIMEOUTS = 20
LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Command:
    """A command as a job: one that is stopped is queued again with itself."""

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Run it; its words are those of the job.

        Raises:
            InputError: it failed.
        """
        code = subprocess.run(self.arguments, check=False).returncode
        if code:
            raise InputError(f"exit code {code} of {' '.join(self.arguments)}")

    def checkpoint(self) -> Any:
        """What submitit queues when the time is over or the node is taken away."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(jobs: Sequence[Job], *, folder: str) -> Submitted:
    """Submit the jobs of one cluster in their order.

    Args:
        jobs: of ``jobs.plan_jobs``.
        folder: where scripts and logs are kept.

    Raises:
        UsageError: submitit is not installed, or the cluster cannot be reached from here.
        WriteError: the folder cannot be written.
    """
    faults.check_writable(folder)
    if jobs[0].cluster == LOCAL:
        return _run_here(jobs, folder)
    ids: dict[str, str] = {}
    for job in jobs:
        # A job that can never begin is not to wait for ever.
        more: dict[str, Any] = {"requeue": True, "kill-on-invalid-dep": "yes"}
        if job.after:
            more["dependency"] = f"{job.condition}:{ids[job.after]}"
        handles = _send(job, folder, range(len(job.commands)), more)
        ids[job.name] = str(handles[0].job_id).partition("_")[0]
    return Submitted(ids, folder)


def _executor(job: Job, folder: str, more: dict[str, Any] | None = None) -> Any:
    """An executor of submitit with the resources of a job."""
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            "cluster: jobs are submitted through submitit, which is not installed; "
            "pip install 'pathorob-jax[cluster]'."
        ) from error
    asked = job.resources
    place = os.path.join(folder, job.name)
    try:
        executor = submitit.AutoExecutor(
            folder=place, cluster=job.cluster, slurm_max_num_timeout=MAX_TIMEOUTS
        )
    except RuntimeError as error:
        raise UsageError(
            f"cluster: {job.cluster} is not on this machine ({error}). Submit where its commands "
            "are (srun, sbatch), or give --cluster=local."
        ) from error
    executor.update_parameters(
        name=f"pathorob_{job.name}", timeout_min=asked.minutes, nodes=asked.nodes, tasks_per_node=1
    )
    if job.cluster == LOCAL:
        executor.update_parameters(gpus_per_node=hosts.visible_gpus())
        return executor
    settings = {"partition": asked.partition, "account": asked.account}
    executor.update_parameters(
        cpus_per_task=asked.cpus,
        mem_gb=asked.memory_gb,
        slurm_array_parallelism=asked.max_parallel,
        slurm_setup=list(asked.setup),
        slurm_additional_parameters=more,
        **({"gpus_per_node": asked.gpus} if asked.gpus else {}),
        **{f"slurm_{name}": value for name, value in settings.items() if value is not None},
    )
    return executor


def _send(
    job: Job, folder: str, numbers: Sequence[int], more: dict[str, Any] | None = None
) -> list[Any]:
    """Submit parts of a job: an array if it is one."""
    executor = _executor(job, folder, more)
    commands = [Command(tuple(job.command_line(number))) for number in numbers]
    if len(job.commands) == 1:
        return [executor.submit(commands[0])]
    with executor.batch():
        return [executor.submit(command) for command in commands]


def _run_here(jobs: Sequence[Job], folder: str) -> Submitted:
    """Run jobs as processes of this machine, so many at once, each part after its own before."""
    done = Submitted({}, folder)
    well: dict[str, set[int]] = {"": {0}}
    for job in jobs:
        numbers = range(len(job.commands))
        before = next((other for other in jobs if other.name == job.after), None)
        n_before = 1 if before is None else len(before.commands)
        if job.condition == AFTER_OK and len(well[job.after]) < n_before:
            logging.warning("%s: not started, %s has failed", job.name, job.after)
            well[job.name] = set()
            continue
        able = [
            n for n in numbers if job.condition in (AFTER_OK, AFTER_ANY) or n in well[job.after]
        ]
        handles = _run_parts(job, folder, able)
        done.ids[job.name] = ",".join(str(handle.job_id) for handle in handles)
        well[job.name] = set()
        for number, handle in zip(able, handles, strict=True):
            error = handle.exception()
            if error is None:
                well[job.name].add(number)
                continue
            what = f"{job.name}: pathorob-jax {' '.join(job.commands[number])}"
            done.failed.append(f"{what}: its log is {handle.paths.stderr}")
            logging.error("%s", done.failed[-1])
    return done


def _run_parts(job: Job, folder: str, numbers: Sequence[int]) -> list[Any]:
    """Start parts of a job as places become free, and wait for all."""
    handles: list[Any] = []
    for number in numbers:
        while sum(not handle.done() for handle in handles) >= job.resources.max_parallel:
            time.sleep(LOOK_EVERY_S)
        logging.info("%s: %d of %d", job.name, len(handles) + 1, len(numbers))
        handles += _send(job, folder, [number])
    for handle in handles:
        handle.wait()
    return handles
