"""A run as jobs of a cluster: commands, what each needs, and in which order they run.

Every job is a list of commands of ``pathorob-jax``: one command, or an array with one for each
encoder and dataset. Each is resumed by the same command, so that a job may be killed and queued
again.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.runs.request import RunRequest
from pathorob_jax.runs.steps import CONVERT, EVALUATE, EXTRACT, FETCH, REPORT

FOLDER = "jobs"
LOCAL, SLURM = "local", "slurm"
PREPARE, PREFLIGHT = "prepare", "preflight"
# When a job begins: all of the one before went well; its own part of it did; it has ended.
AFTER_OK, AFTER_PART, AFTER_ANY = "afterok", "aftercorr", "afterany"
PROGRAM = ("-m", "pathorob_jax.cli.main")


@dataclass(frozen=True)
class Resources:
    """What a job asks for.

    Attributes:
        nodes: nodes, with one process each.
        gpus: GPUs of a node.
        cpus: cores of a node.
        memory_gb: memory of a node.
        minutes: time limit.
        max_parallel: jobs of an array that run at once.
        partition: SLURM's; None: its default.
        account: SLURM's; None: the user's.
        setup: shell commands before the work.
    """

    nodes: int = 1
    gpus: int = 0
    cpus: int = 8
    memory_gb: int = 32
    minutes: int = 240
    max_parallel: int = 8
    partition: str | None = None
    account: str | None = None
    setup: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One job, or an array of them.

    Attributes:
        name: what it does.
        commands: arguments of ``pathorob-jax``, of each part.
        resources: of each part.
        cluster: where it runs.
        after: name of the job before it; "": none.
        condition: what must have become of that one.
    """

    name: str
    commands: Sequence[tuple[str, ...]]
    resources: Resources
    cluster: str
    after: str = ""
    condition: str = AFTER_OK

    def command_line(self, number: int) -> list[str]:
        """The command of a part, as a process is started with it."""
        return [sys.executable, *PROGRAM, *self.commands[number]]


def plan_jobs(
    request: RunRequest,
    *,
    encoders: Sequence[str],
    options: Sequence[str],
    resources: Resources,
    cluster: str,
) -> list[Job]:
    """The jobs of a run in order.

    Args:
        request: what is asked for.
        encoders: ``--model=<name>`` or ``--spec=<file>`` of each part of the arrays.
        options: further flags of ``run``, for every job.
        resources: of an extraction; other jobs have one node, and metrics its GPUs.
        cluster: ``local`` or ``slurm``.

    Raises:
        UsageError: this machine is to be several nodes.
    """
    if cluster == LOCAL and resources.nodes > 1:
        raise UsageError(
            f"nodes: expected 1 on this machine, found {resources.nodes}; give --cluster=slurm."
        )
    options = tuple(options)
    whole = tuple(f"--{name}={value}" for name, value in _everything(encoders, request))
    parts = [(encoder, dataset) for encoder in encoders for dataset in request.datasets]
    one_node = replace(resources, nodes=1)
    small = replace(one_node, gpus=0)

    def step(kinds: str, *more: str) -> tuple[str, ...]:
        return ("run", f"--steps={kinds}", *more, *options)

    extracted = [
        _extract_on_nodes(request, encoder, dataset)
        if resources.nodes > 1
        else step(EXTRACT, encoder, f"--dataset={dataset}")
        for encoder, dataset in parts
    ]
    evaluated = [step(EVALUATE, encoder, f"--dataset={dataset}") for encoder, dataset in parts]
    checked = ("doctor", f"--output={request.output}", f"--run={request.output}")
    jobs = [
        Job(PREPARE, [step(f"{FETCH},{CONVERT}", *whole)], small, cluster),
        Job(PREFLIGHT, [checked], one_node, cluster),
        Job(EXTRACT, extracted, resources, cluster),
        Job(EVALUATE, evaluated, one_node, cluster, condition=AFTER_PART),
        Job(REPORT, [step(REPORT, *whole)], small, cluster, condition=AFTER_ANY),
    ]
    before = ["", *(job.name for job in jobs)]
    return [replace(job, after=name) for job, name in zip(jobs, before, strict=False)]


def _everything(encoders: Sequence[str], request: RunRequest) -> list[tuple[str, str]]:
    """Flags of all encoders and datasets together."""
    found = [
        (name, ",".join(e.partition("=")[2] for e in encoders if e.startswith(f"--{name}=")))
        for name in ("model", "spec")
    ]
    return [(name, text) for name, text in found if text] + [
        ("dataset", ",".join(request.datasets))
    ]


def _extract_on_nodes(request: RunRequest, encoder: str, dataset: str) -> tuple[str, ...]:
    """The command of all nodes, which share the chunks of one store."""
    command = [
        "extract",
        "--multihost",
        encoder,
        f"--dataset={dataset}",
        f"--tileset={request.tiles(dataset)}",
        f"--output={request.embeddings}",
        f"--weights={request.weights}",
        f"--preset={request.preset}",
        f"--workers={request.workers}",
        f"--on_bad_image={request.on_bad_image}",
    ]
    command += [f"--batch_size={request.batch_size}"] if request.batch_size else []
    return (*command, "--overwrite") if request.overwrite else tuple(command)


def describe(jobs: Sequence[Job]) -> str:
    """The jobs in words: order, parts, resources, and the first command of each."""
    lines = [f"{len(jobs)} jobs, {sum(len(job.commands) for job in jobs)} commands:"]
    for job in jobs:
        asked, n = job.resources, len(job.commands)
        words = [f"{n} parts, {min(n, asked.max_parallel)} at once" if n > 1 else "1 part"]
        if job.cluster == SLURM:
            words.append(f"{asked.nodes} nodes" if asked.nodes > 1 else "1 node")
            words += [f"{asked.gpus} GPUs"] if asked.gpus else []
            words.append(f"{asked.cpus} cores, {asked.memory_gb} GB, {asked.minutes} min")
        words += [f"{job.condition} {job.after}"] if job.after else []
        lines.append(f"  {job.name}: {', '.join(words)}")
        lines.append(f"    pathorob-jax {' '.join(job.commands[0])}")
    return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Submitted:
    """What became of jobs.

    Attributes:
        ids: identifier of each job, by its name.
        failed: what failed, in words; of a cluster nothing is known yet.
        folder: where scripts and logs are.
    """

    ids: dict[str, str]
    folder: str
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{name}: {number}" for name, number in self.ids.items()]
        return "\n".join([*lines, f"scripts and logs: {self.folder}"])

    def raise_failure(self) -> None:
        """Raise InputError if anything failed."""
        if self.failed:
            raise InputError(
                f"{len(self.failed)} jobs failed, the first was {self.failed[0].rstrip('.')}. Mend "
                "that and submit again; what is finished is kept."
            )
