"""Run independent tasks on devices and processes, and save each result as soon as it is computed.

The caller says how a task is computed, written and read back; ``run_tasks`` returns all results in
order. A run that was killed continues with the missing tasks. With several processes, each computes
its share and reads the results of the others from a shared folder. No process starts before all
have listed the missing tasks, so that the shares fit together. The result of a task must not depend
on the device, the process or the other tasks.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import jax
from jax.sharding import Mesh

from pathorob_jax.core import hosts
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.devices import default_modes
from pathorob_jax.core.progress import Progress

T = TypeVar("T")
Tell = Callable[[int], None]


@dataclass(frozen=True)
class Tasks(Generic[T]):
    """Tasks of one kind, numbered from 0.

    Attributes:
        name: label of the progress bar.
        n_tasks: number of tasks.
        noun: what the tasks are, in the plural, for messages.
        compute: (number, tell) -> result; may tell the number of steps just finished.
        n_steps: steps of a task; those not told count when the task is finished.
        unit: what a step is.
        read: number -> result saved on disk, or None.
        write: (number, result): save the result.
    """

    name: str
    n_tasks: int
    noun: str
    compute: Callable[[int, Tell], T]
    n_steps: int
    unit: str
    read: Callable[[int], T | None]
    write: Callable[[int, T], Any]


def run_tasks(tasks: Tasks[T], *, work_dir: str | None, mesh: Mesh) -> list[T]:
    """The results of all tasks. Those on disk are not computed again.

    Args:
        tasks: the tasks.
        work_dir: folder in which results are saved, for messages; None: they are not saved.
        mesh: devices; each task runs on one device of this process.

    Returns:
        One result per task, in order.

    Raises:
        UsageError: several processes without a shared folder.
        InputError: another process failed, or its results cannot be read.
    """
    n_processes = jax.process_count()
    if n_processes > 1 and work_dir is None:
        raise UsageError(
            f"work_dir: expected a folder that all {n_processes} processes see, found none."
        )
    with hosts.together(tasks.noun):
        results = [tasks.read(i) for i in range(tasks.n_tasks)]
        missing = [i for i, result in enumerate(results) if result is None]
    mine = hosts.share(missing)
    devices = list(mesh.local_devices)[: max(1, len(mine))]
    free: SimpleQueue[jax.Device] = SimpleQueue()
    for device in devices:
        free.put(device)
    lock = threading.Lock()
    done = (tasks.n_tasks - len(missing)) * tasks.n_steps
    total = done + len(mine) * tasks.n_steps
    with (
        hosts.together(tasks.noun),
        Progress(tasks.name, total=total, unit=tasks.unit, done=done) as progress,
    ):

        def compute(number: int) -> T:
            device, n_told = free.get(), [0]

            def tell(n_steps: int) -> None:
                with lock:
                    n_told[0] += n_steps
                    progress.update(n_steps)

            try:
                with default_modes(), jax.default_device(device):
                    result = tasks.compute(number, tell)
            finally:
                free.put(device)
            tasks.write(number, result)
            tell(tasks.n_steps - n_told[0])
            return result

        for number, result in zip(mine, _map(compute, mine, len(devices)), strict=True):
            results[number] = result
    if n_processes > 1:
        results = [tasks.read(i) for i in range(tasks.n_tasks)]
    absent = [i for i, result in enumerate(results) if result is None]
    if absent:
        raise InputError(
            f"{work_dir}: {tasks.noun} {absent} of other processes are missing; expected a folder "
            "that all processes see."
        )
    return [result for result in results if result is not None]


def _map(compute: Callable[[int], T], numbers: Sequence[int], n_threads: int) -> Iterator[T]:
    """Results in order. At the first error, tasks that have not started are cancelled."""
    if n_threads == 1:
        yield from map(compute, numbers)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        running = [pool.submit(compute, number) for number in numbers]
        try:
            for future in running:
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
