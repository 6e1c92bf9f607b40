"""Runs of several processes, possibly on several hosts.

``together`` is a block that all processes finish or none does. ``share`` returns this process's
part of a list, ``gather`` puts the parts of an array together. Processes wait for each other only
where an artefact is created or completed, and where rows travel between devices. JAX is imported
when it is first asked: scripts need this module before their work begins.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import pathlib
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pathorob_jax.core.checks import InputError, UsageError

if TYPE_CHECKING:
    from jax.sharding import Mesh

T = TypeVar("T")
JOIN_TIMEOUT_S = 300
GIVEN_BACK_BYTES = 5 * 2**20
# glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX.
MALLOC_OPTIONS = ((-3, GIVEN_BACK_BYTES), (-1, GIVEN_BACK_BYTES), (-8, 2))
# M_MMAP_MAX, M_TRIM_THRESHOLD: nothing goes back.
KEEPING_OPTIONS = ((-4, 0), (-1, 2**31 - 1))
# M_MMAP_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD: where glibc ends by itself after large arrays.
USUAL_OPTIONS = ((-4, 2**16), (-3, 2**25), (-1, 2**26))
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
    _set_malloc(MALLOC_OPTIONS)


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Context of a script in which glibc keeps freed memory, and gives it back at its end.

    An encoder on a CPU frees the arrays of each batch; the system would clear their pages again for
    the next, which takes up to a seventh of its time. Where JAX's default is another device, and
    where a user has settings of his own (``MALLOC_*``, ``GLIBC_TUNABLES``), nothing changes. Not
    for libraries: it changes how the whole process takes memory, also afterwards.
    """
    import jax

    own = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if own or jax.default_backend() != "cpu":
        yield
        return
    _set_malloc(KEEPING_OPTIONS)
    try:
        yield
    finally:
        _set_malloc(USUAL_OPTIONS)
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def _set_malloc(options: Sequence[tuple[int, int]]) -> None:
    """Set options of glibc; other libraries of C have none."""
    with contextlib.suppress(AttributeError, OSError):
        set_option = ctypes.CDLL(None).mallopt
        for option, value in options:
            set_option(option, value)


def visible_gpus() -> int:
    """NVIDIA GPUs of this machine, without JAX."""
    if not os.path.isdir("/dev"):
        return 0
    return sum(name.startswith("nvidia") and name[6:].isdigit() for name in os.listdir("/dev"))


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


def is_joint(mesh: "Mesh | None") -> bool:
    """Whether a mesh has devices of several processes, which then do the same steps at a time."""
    return mesh is not None and len({device.process_index for device in mesh.devices.flat}) > 1


def leads(mesh: "Mesh | None") -> bool:
    """Whether this process writes what is computed on a mesh: alone, or as process 0 of several."""
    return not is_joint(mesh) or is_lead()


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of ``items``: consecutive items; parts differ by at most one item."""
    import jax

    count, index = jax.process_count(), jax.process_index()
    borders = [len(items) * i // count for i in range(count + 1)]
    return items[borders[index] : borders[index + 1]]


def gather(part: np.ndarray) -> np.ndarray:
    """The parts of all processes, one after the other along the first axis, by process number.

    Every process must call it at the same time. The other axes and the dtype are the same for all.
    Bytes are exchanged, since JAX would make 32 bits of 64.
    """
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return part
    data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray([len(part)], np.int32)).reshape(-1)
    row_bytes = part.dtype.itemsize * int(np.prod(part.shape[1:]))
    padded = np.zeros(int(sizes.max()) * row_bytes, np.uint8)
    padded[: len(data)] = data
    parts = np.asarray(multihost_utils.process_allgather(padded))
    own = [one[: size * row_bytes] for one, size in zip(parts, sizes, strict=True)]
    return np.concatenate(own).view(part.dtype).reshape(-1, *part.shape[1:])


def tell_all(mesh: "Mesh | None", text: str) -> str:
    """The text of process 0, whatever the others give; what is given if a mesh is of one process.

    Every process must call it at the same time.
    """
    if not is_joint(mesh):
        return text
    mine = np.frombuffer(text.encode() if is_lead() else b"", np.uint8)
    return gather(mine).tobytes().decode()


def together_on(mesh: "Mesh | None", what: str) -> contextlib.AbstractContextManager[None]:
    """``together`` where a mesh has devices of several processes; else a plain block."""
    return together(what) if is_joint(mesh) else contextlib.nullcontext()


def apart(mesh: "Mesh | None", function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a function; if a mesh is of several processes, in a process that has not joined them.

    For what would wait for the others, such as Orbax when it writes. It computes on the CPU, since
    a device may serve one process alone. Function, arguments and result must be picklable.
    """
    if not is_joint(mesh):
        return function(*arguments, **options)
    before = os.environ.get("JAX_PLATFORMS")
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(function, *arguments, **options).result()
    finally:
        del os.environ["JAX_PLATFORMS"]
        if before is not None:
            os.environ["JAX_PLATFORMS"] = before


def lead_first(what: str, mesh: "Mesh | None", begin: Callable[[bool], T]) -> T:
    """Begin an artefact: process 0 does (``begin(True)``), then the others join it (``False``)."""
    with together_on(mesh, what):
        if leads(mesh):
            found = begin(True)
    with together_on(mesh, what):
        if not leads(mesh):
            found = begin(False)
    return found


class _Blocks:
    """Blocks that this process is in, and the block that all processes leave now, if any."""

    depth = 0
    leaving: int | None = None


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """A block at whose end all processes wait; if it fails in one, it fails in all.

    Blocks may lie in one another. A process that fails in the outer block does not reach the end of
    the inner one: the others learn there that it has left the outer one, and leave that too.

    Args:
        what: name of the block for messages, such as "the run".

    Raises:
        InputError: another process failed; the log of that process has the reason.
        LostProcessError: another process has died.
    """
    import jax

    if jax.process_count() == 1:
        yield
        return
    failure: BaseException | None = None
    _Blocks.depth += 1
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - the other processes must be told of any failure
        failure = error
    finally:
        _Blocks.depth -= 1
    if failure is not None and _Blocks.leaving is not None:
        # All know already: nobody waits at this end.
        if _Blocks.leaving >= _Blocks.depth:
            _Blocks.leaving = None
        raise failure
    try:
        depths = _say(_Blocks.depth if failure is not None else None)
    except (RuntimeError, ValueError) as error:
        if failure is not None:
            raise failure from None
        raise LostProcessError(
            f"{what}: another process was lost ({str(error).splitlines()[0][:200]}). Start all of "
            "them again with the same command; it goes on where this one stopped."
        ) from error
    failed = np.flatnonzero(depths >= 0).tolist()
    if failed and depths[failed].min() < _Blocks.depth:
        _Blocks.leaving = int(depths[failed].min())
    if failure is not None:
        raise failure
    if failed:
        raise InputError(
            f"{what}: process {', '.join(map(str, failed))} failed; its own log says why. Mend "
            "that and start all again with the same command; it goes on where this one stopped."
        )


def _say(failed_at: int | None) -> np.ndarray:
    """Tell all processes at which depth this one failed (None: it did not); int[P], -1 for none."""
    from jax.experimental import multihost_utils

    mine = np.asarray([-1 if failed_at is None else failed_at], np.int32)
    return np.asarray(multihost_utils.process_allgather(mine)).reshape(-1)
