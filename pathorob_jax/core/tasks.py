"""Independent tasks, dealt to devices and processes, each kept on disk as soon as it is done.

Enters: how a task is computed, kept and read back. Leaves: the results of all tasks, in order. A
run that was killed goes on with the tasks that are missing; several processes each compute their
share and read the others' from the folder that all see. None begins before all have seen what is
missing, so that their shares fit together. What a task gives must not depend on the device, on the
process or on the other tasks.
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
        name: of the progress bar.
        n_tasks: how many.
        noun: what a task is, in the plural.
        compute: (number, tell) -> result; may tell steps as they are done.
        n_steps: steps of a task; those not told count as done when it is.
        unit: what a step is.
        read: number -> result kept on disk, or None.
        write: (number, result): keep it.
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
    """The results of all tasks; those on disk are not computed again.

    Args:
        tasks: what to do.
        work_dir: where results are kept, for messages; None: nowhere.
        mesh: devices; a task runs on one of this process's.

    Raises:
        UsageError: several processes without a folder.
        InputError: another process failed, or its results cannot be read.
    """
    n_processes = jax.process_count()
    if n_processes > 1 and work_dir is None:
        raise UsageError(
            f"work_dir: expected a folder that all {n_processes} processes see, found none."
        )
    with hosts.together(tasks.noun):
        found = [tasks.read(i) for i in range(tasks.n_tasks)]
        missing = [i for i, result in enumerate(found) if result is None]
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
            device, told = free.get(), [0]

            def tell(n_steps: int) -> None:
                with lock:
                    told[0] += n_steps
                    progress.update(n_steps)

            try:
                with default_modes(), jax.default_device(device):
                    result = tasks.compute(number, tell)
            finally:
                free.put(device)
            tasks.write(number, result)
            tell(tasks.n_steps - told[0])
            return result

        for number, result in zip(mine, _map(compute, mine, len(devices)), strict=True):
            found[number] = result
    if n_processes > 1:
        found = [tasks.read(i) for i in range(tasks.n_tasks)]
    absent = [i for i, result in enumerate(found) if result is None]
    if absent:
        raise InputError(
            f"{work_dir}: {tasks.noun} {absent} of other processes are missing; expected a folder "
            "that all processes see."
        )
    return [result for result in found if result is not None]


def _map(compute: Callable[[int], T], numbers: Sequence[int], n_threads: int) -> Iterator[T]:
    """Results in order; the first error ends what has not begun."""
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
