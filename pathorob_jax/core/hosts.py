"""Several processes on several hosts: who is who, and how all of them fail or go on together.

Enters: how to find each other, where no cluster says so. Leaves: this process's share of a list,
and blocks that every process leaves in the same way. Devices of other hosts are never computed on:
each process works on its own devices and rows, and they meet only where an artefact begins or ends.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from pathorob_jax.core.checks import InputError, UsageError

T = TypeVar("T")
JOIN_TIMEOUT_S = 300


class LostProcessError(InputError):
    """A process of the run is gone; those that are left cannot end in the usual way."""


def join(
    *,
    coordinator: str | None = None,
    n_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the other processes; SLURM, Open MPI, GKE and TPU pods need no argument.

    Args:
        coordinator: ``host:port`` of process 0.
        n_processes: how many there are.
        process_id: which one this is, from 0.

    Raises:
        UsageError: the processes do not find each other.
    """
    try:
        jax.distributed.initialize(
            coordinator, n_processes, process_id, initialization_timeout=JOIN_TIMEOUT_S
        )
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"multihost: the processes do not find each other ({str(error).splitlines()[0]}). "
            "Outside SLURM, Open MPI, GKE and TPU pods give --coordinator=<host:port>, "
            "--num_processes and --process_id, the same port to all."
        ) from error


def n_cores() -> int:
    """Cores that this process may use, which schedulers make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_lead() -> bool:
    """Whether this is the process that makes and completes artefacts."""
    return jax.process_index() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of ``items``: consecutive, shares differ by one at most."""
    count, index = jax.process_count(), jax.process_index()
    borders = [len(items) * i // count for i in range(count + 1)]
    return items[borders[index] : borders[index + 1]]


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """A block that all processes leave, or none: waits for all at its end.

    Args:
        what: for messages, as in "the run".

    Raises:
        InputError: another process failed; its own log has the reason.
        LostProcessError: another process is gone.
    """
    if jax.process_count() == 1:
        yield
        return
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - the others must hear of it, whatever it is
        failure = error
    try:
        went_well = multihost_utils.process_allgather(np.asarray([failure is None])).reshape(-1)
    except (RuntimeError, ValueError) as error:
        if failure is not None:
            raise failure from None
        raise LostProcessError(
            f"{what}: another process was lost ({str(error).splitlines()[0][:200]}). Start all of "
            "them again with the same command; it goes on where this one stopped."
        ) from error
    if failure is not None:
        raise failure
    if not went_well.all():
        failed = np.flatnonzero(~went_well).tolist()
        raise InputError(
            f"{what}: process {', '.join(map(str, failed))} failed; its own log says why. Mend "
            "that and start all again with the same command; it goes on where this one stopped."
        )
