"""What a computation costs: seconds, peak memory, and the machine that they are of.

``measured`` measures a block. What it computes and what it finds done by an earlier run are told
apart by ``note_reused``, which says that the time is not that of the whole work.
"""

import contextlib
import contextvars
import pathlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pathorob_jax.core.hosts import n_cores, processor_name

if TYPE_CHECKING:
    from jax.sharding import Mesh  # asking for the peak of memory needs no JAX

SECONDS, IS_WHOLE, SEARCH = "seconds", "is_whole", "search"
# What two machines of equal speed have in common.
MACHINE = ("processor", "cores", "device", "devices", "processes")

_measuring: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "measuring", default=None
)


@contextlib.contextmanager
def measured(mesh: "Mesh") -> Iterator[dict[str, Any]]:
    """Measure a block; what it cost stands in the mapping afterwards, as plain values.

    ``seconds`` are of the clock. ``is_whole`` is False where parts of the work were there already.
    ``peak_bytes`` is the most memory that this process has held so far, ``device_peak_bytes`` that
    of the fullest device (None where a device does not tell). ``search`` is where the rows of the
    neighbour search lay, if this was the first to search. ``processor``, ``cores``, ``device``,
    ``devices`` (of this process) and ``processes`` are the machine.

    Args:
        mesh: devices that compute.
    """
    found: dict[str, Any] = {SECONDS: 0.0, IS_WHOLE: True}
    token = _measuring.set(found)
    start_s = time.perf_counter()
    try:
        yield found
    finally:
        _measuring.reset(token)
        found[SECONDS] = round(time.perf_counter() - start_s, 3)
        found["peak_bytes"] = peak_bytes()
        found["device_peak_bytes"] = device_peak_bytes(mesh)
        found |= machine(mesh)


def note_reused() -> None:
    """Say that a part of what is being measured was there already. For the calling thread."""
    found = _measuring.get()
    if found is not None:
        found[IS_WHOLE] = False


def note_search(way: str) -> None:
    """Say where the rows of the neighbour search lay (``memory``, ``ring``, ``stream``)."""
    found = _measuring.get()
    if found is not None:
        found[SEARCH] = way


def machine(mesh: "Mesh") -> dict[str, Any]:
    """The processor and the devices, by the names of ``MACHINE``."""
    import jax

    local = mesh.local_devices
    values = (processor_name(), n_cores(), local[0].device_kind, len(local), jax.process_count())
    return dict(zip(MACHINE, values, strict=True))


def is_of(found: Mapping[str, Any], machine: Mapping[str, Any]) -> bool:
    """Whether a cost is of a machine."""
    return all(found.get(name) == machine[name] for name in MACHINE)


def peak_bytes() -> int:
    """Peak resident size of this process so far.

    On Linux the value is read from /proc, because getrusage starts with the peak of the parent
    process.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_peak_bytes(mesh: "Mesh") -> int | None:
    """Peak memory of the fullest local device so far; None where devices do not tell."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return max(map(int, peaks), default=None)


def describe_duration(seconds: float) -> str:
    """Seconds, minutes, hours or days in words."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
