"""Do the steps of a run, one after the other; one that fails costs only what needs it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import faults, hosts
from pathorob_jax.core.attempts import attempt, explain
from pathorob_jax.core.checks import InputError
from pathorob_jax.runs import failures
from pathorob_jax.runs.request import RunRequest
from pathorob_jax.runs.status import Status, find_status
from pathorob_jax.runs.steps import (
    EVALUATE,
    EXTRACT,
    KINDS,
    REPORT,
    Converter,
    Key,
    Step,
    list_steps,
)

# Steps that several processes share; process 0 does the others.
SHARED = (EXTRACT, EVALUATE)


@dataclass(frozen=True, eq=False)
class Ran:
    """What became of a run.

    Attributes:
        status: of all steps of this request, afterwards.
        done: steps that were done now; the others were there, failed or could not begin.
    """

    status: Status
    done: list[Key]

    def raise_failure(self) -> None:
        """Raise InputError if anything failed, with the first reason."""
        failed = self.status.failed
        if failed:
            raise InputError(
                f"{len(failed)} step{'s' if len(failed) > 1 else ''} failed, the first was "
                f"{failed[0].key}: {failed[0].why.rstrip('.')}. Mend that and give the same "
                "command again; it goes on with what is left."
            )


def run(
    request: RunRequest,
    converter: Converter | None = None,
    *,
    kinds: Sequence[str] = KINDS,
    mesh: Mesh | None = None,
) -> Ran:
    """Do what is left of a request: fetch, convert, extract, evaluate, report.

    Each step is skipped where its artefact is there and fits. A killed run is resumed by the same
    request, and ends with the same artefacts.

    Args:
        request: what is asked for.
        converter: makes weights of checkpoints; None: encoders whose weights are missing fail.
        kinds: kinds of steps to do; what the others make must be there.
        mesh: devices; None: all local devices. With devices of several processes, all must call at
            the same time; they share extraction and evaluation, process 0 does the rest.

    Returns:
        The status afterwards, with the reason of each failure.

    Raises:
        WriteError: the output cannot be written at all.
    """
    faults.check_writable(request.output)
    if hosts.leads(mesh):
        request.remember()
    steps = list_steps(request, converter, mesh=mesh)
    failed: dict[Key, str] = {}
    unready: set[Key] = set()
    done: list[Key] = []
    for number, step in enumerate(steps, 1):
        if step.key.kind not in kinds:
            continue
        where = f"{number} of {len(steps)}: {step.key}"
        if unready & set(step.needs):
            unready.add(step.key)
            logging.warning("%s: not started, what it needs has failed", where)
            continue
        if step.key.kind == REPORT and not _any_results(steps, unready):
            logging.warning("%s: not started, there are no results", where)
            continue
        is_done, error = attempt(functools.partial(_do, step, where, mesh))
        if error is None:
            done += [step.key] if is_done else []
            if hosts.leads(mesh):
                failures.drop(request.output, step.key)
            continue
        failed[step.key] = explain(error)
        unready.add(step.key)
        if hosts.leads(mesh):
            failures.keep(request.output, step.key, failed[step.key])
        logging.error("%s: failed: %s", where, failed[step.key])
    return Ran(find_status(request, steps, failed), done)


def _do(step: Step, where: str, mesh: Mesh | None) -> bool:
    """Do a step; False if its artefact is there. Process 0 of several decides which."""
    with hosts.together_on(mesh, str(step.key)):
        look = step.look()
    if hosts.tell_all(mesh, "there" if look.is_there else ""):
        logging.info("%s: there already", where)
        return False
    logging.info("%s", where)
    with hosts.together_on(mesh, str(step.key)):
        if step.key.kind in SHARED or hosts.leads(mesh):
            step.do()
    return True


def _any_results(steps: Sequence[Step], unready: set[Key]) -> bool:
    """Whether any cell has results: of this run or of an earlier one."""
    evaluated = [step for step in steps if step.key.kind == EVALUATE]
    return any(s.key not in unready or attempt(s.look)[0].done for s in evaluated)
