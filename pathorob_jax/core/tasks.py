"""Run independent tasks on devices and processes, and save each result as soon as it is computed.

The caller says how a task is computed, written and read back; ``run_tasks`` returns all results in
order. A run that was killed continues with the missing tasks. Processes over the same folder, on
any hosts, share the tasks as they go: each takes one that nobody holds, and reads the results of
the others. No process waits for another one before the end. The result of a task must not depend on
the device, the process or the other tasks.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import jax
from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import cost, hosts
from pathorob_jax.core.devices import default_modes
from pathorob_jax.core.locks import HeldError, Lock
from pathorob_jax.core.progress import Progress

T = TypeVar("T")
Tell = Callable[[int], None]
# How often a run looks for the results of tasks that another one holds.
LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Tasks(Generic[T]):
    """Tasks of one kind, numbered from 0.

    Attributes:
        name: label of the progress bar.
        n_tasks: number of tasks.
        compute: (number, tell) -> result; may tell the number of steps just finished.
        n_steps: steps of a task; those not told count when the task is finished.
        unit: what a step is.
        read: number -> result saved on disk, or None.
        write: (number, result): save the result.
        hold: number -> lock to hold while a task is computed, or None for none; raises HeldError
            while another run holds it.
        drop_abandoned: number of a finished task: remove the lock of a killed run.
        per_cpu: tasks that run at once on one CPU device, if there are as many cores: more than
            one where a task leaves cores idle.
    """

    name: str
    n_tasks: int
    compute: Callable[[int, Tell], T]
    n_steps: int
    unit: str
    read: Callable[[int], T | None]
    write: Callable[[int, T], Any]
    hold: Callable[[int], Lock | None] = lambda number: None
    drop_abandoned: Callable[[int], None] = lambda number: None
    per_cpu: int = 1


def run_tasks(tasks: Tasks[T], *, mesh: Mesh) -> list[T]:
    """The results of all tasks. Those on disk are not computed again.

    Args:
        tasks: the tasks.
        mesh: devices; each task runs on one device of this process, and a device runs one task
            at a time, except for ``per_cpu``.

    Returns:
        One result per task, in order.
    """
    results = [tasks.read(i) for i in range(tasks.n_tasks)]
    missing = [i for i, result in enumerate(results) if result is None]
    for number in set(range(tasks.n_tasks)) - set(missing):
        tasks.drop_abandoned(number)
    # Processes of one run begin at different tasks, so that they seldom ask for the same one, and
    # share them even where the file system has no locks.
    begin = len(missing) * jax.process_index() // jax.process_count()
    left = [*missing[begin:], *missing[:begin]]
    devices = _list_places(mesh, tasks.per_cpu)[: max(1, len(left))]
    free: SimpleQueue[jax.Device] = SimpleQueue()
    for device in devices:
        free.put(device)
    lock = threading.Lock()
    done, total = ((tasks.n_tasks - n) * tasks.n_steps for n in (len(missing), 0))
    with Progress(tasks.name, total=total, unit=tasks.unit, done=done) as progress:

        def take(number: int) -> T | None:
            """The result of a task; None while another run holds it."""
            try:
                held = tasks.hold(number)
            except HeldError as error:
                if number not in elsewhere:
                    logging.info("%s", error)
                return None
            try:
                # Another run may have finished it since this one looked.
                result = tasks.read(number)
                if result is None:
                    return compute(number)
            finally:
                if held is not None:
                    held.release()
            with lock:
                progress.update(tasks.n_steps)
            return result

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
            computed.append(number)
            return result

        computed: list[int] = []
        elsewhere: set[int] = set()
        while left:
            for number, result in zip(left, _map(take, left, len(devices)), strict=True):
                results[number] = result
            left = [number for number in left if results[number] is None]
            if left and elsewhere == set(left):
                time.sleep(LOOK_EVERY_S)
            elsewhere = set(left)
    if len(computed) < tasks.n_tasks:
        cost.note_reused()
    return [result for result in results if result is not None]


def _list_places(mesh: Mesh, per_cpu: int) -> list[jax.Device]:
    """Devices of this process, each as often as it runs tasks at once."""
    devices = list(mesh.local_devices)
    if devices[0].platform != "cpu":
        return devices
    return devices * max(1, min(per_cpu, hosts.n_cores() // len(devices)))


def _map(compute: Callable[[int], T], numbers: Sequence[int], n_threads: int) -> Iterator[T]:
    """Results in order. At the first error, tasks that have not started are cancelled.

    A running task is waited for, unless the user interrupts.
    """
    if n_threads == 1:
        yield from map(compute, numbers)
        return
    pool = ThreadPoolExecutor(n_threads)
    waits = False
    try:
        for future in [pool.submit(compute, number) for number in numbers]:
            yield future.result()
        waits = True
    except Exception:
        waits = True
        raise
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)
