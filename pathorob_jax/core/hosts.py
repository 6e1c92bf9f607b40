"""Runs of several processes, possibly on several hosts.

``share`` returns this process's part of a list. ``together`` is a block that all processes finish
or none does. Each process computes on its own devices and its own rows, never on devices of other
hosts; processes wait for each other only where an artefact is created or completed. JAX is imported
when it is first asked: scripts need this module before their work begins.
"""

import contextlib
import ctypes
import functools
import os
import pathlib
import platform
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from pathorob_jax.core.checks import InputError, UsageError

T = TypeVar("T")
JOIN_TIMEOUT_S = 300
GIVEN_BACK_BYTES = 5 * 2**20
# glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX.
MALLOC_OPTIONS = ((-3, GIVEN_BACK_BYTES), (-1, GIVEN_BACK_BYTES), (-8, 2))
# Limit, use and what of it can be freed (files read before) of a container's memory, in the second
# and the first version of control groups.
_GROUP = "/sys/fs/cgroup"
CONTROL_GROUPS = (
    (f"{_GROUP}/memory.max", f"{_GROUP}/memory.current", f"{_GROUP}/memory.stat"),
    (
        f"{_GROUP}/memory/memory.limit_in_bytes",
        f"{_GROUP}/memory/memory.usage_in_bytes",
        f"{_GROUP}/memory/memory.stat",
    ),
)


class LostProcessError(InputError):
    """Another process of the run has died, so the remaining ones cannot finish normally."""


def join(
    *,
    coordinator: str | None = None,
    n_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the other processes. No argument is needed on SLURM, Open MPI, GKE and TPU pods.

    Args:
        coordinator: ``host:port`` of process 0.
        n_processes: number of processes.
        process_id: number of this process, from 0.

    Raises:
        UsageError: the processes cannot reach each other.
    """
    import jax

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
    """Cores that this process may use. A scheduler may allow fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_bytes() -> int | None:
    """Memory that this process may still take; None where the system does not tell.

    It is what the machine has free or can free, or what the control group (a container, a job)
    leaves, if that is less.
    """
    found: list[int] = []
    with contextlib.suppress(OSError), open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    for paths in CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):
            limit, used, shares = (pathlib.Path(path).read_text() for path in paths)
            share = dict(line.split() for line in shares.splitlines())
            reclaimable = int(share.get("total_inactive_file", share.get("inactive_file", 0)))
            found.append(int(limit) - int(used) + reclaimable)  # ValueError: no limit ("max")
    return max(0, min(found)) if found else None


def give_back_memory() -> None:
    """Let freed arrays of ``GIVEN_BACK_BYTES`` or more go back to the system at once.

    By default glibc keeps them, in a pool for each thread: a process of arrays of some MiB in
    several threads grows to twice of what it uses. Other libraries of C stay as they are.
    """
    with contextlib.suppress(AttributeError, OSError):
        set_option = ctypes.CDLL(None).mallopt
        for option, value in MALLOC_OPTIONS:
            set_option(option, value)


@functools.cache
def processor_name() -> str:
    """Name of the processor, as the system gives it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def is_lead() -> bool:
    """Whether this is process 0, which creates and completes artefacts."""
    import jax

    return jax.process_index() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of ``items``: consecutive items; parts differ by at most one item."""
    import jax

    count, index = jax.process_count(), jax.process_index()
    borders = [len(items) * i // count for i in range(count + 1)]
    return items[borders[index] : borders[index + 1]]


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """A block at whose end all processes wait; if it fails in one, it fails in all.

    Args:
        what: name of the block for messages, such as "the run".

    Raises:
        InputError: another process failed; the log of that process has the reason.
        LostProcessError: another process has died.
    """
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        yield
        return
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - the other processes must be told of any failure
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
