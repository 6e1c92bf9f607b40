"""Shared parts of the benchmarks: a separate process per measurement, one JSON line per result."""

import json
import math
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, Protocol

import numpy as np
from absl import flags

from pathorob_jax.core.hosts import n_cores
from pathorob_jax.core.provenance import software_versions

MAX_STEPS = 200  # batches that a timed call queues at most


def time_calls(call: Callable[[], Any], *, repeats: int) -> dict[str, Any]:
    """Time the first call (with compilation), and ``repeats`` more: their median, p10 and p90."""
    start = time.perf_counter()
    call()
    first_s = time.perf_counter() - start
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    median, p10, p90 = (float(np.percentile(times or [first_s], q)) for q in (50, 10, 90))
    return {
        "first_s": first_s,
        "median_s": median,
        "p10_s": p10,
        "p90_s": p90,
        "repeats": repeats,
    }


def time_batches(
    batch: Callable[[], Any], wait: Callable[[Any], object], *, min_s: float, repeats: int
) -> dict[str, Any]:
    """Seconds of one batch: of the first (with compilation), and percentiles of the others.

    Args:
        batch: function that starts the work and may return before it is done.
        wait: function that returns when the result of ``batch`` (or a list of results) is ready.
        min_s: a timed call queues as many batches as take this long, and waits once.
        repeats: number of timed calls.
    """
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        wait(batch())
        seconds.append(time.perf_counter() - start)
    steps = min(MAX_STEPS, max(1, math.ceil(min_s / seconds[1])))
    times = time_calls(lambda: wait([batch() for _ in range(steps)]), repeats=repeats)
    per_step = {name: times[name] / steps for name in ("median_s", "p10_s", "p90_s")}
    return {"first_s": seconds[0], **per_step, "steps": steps, "repeats": repeats}


def spread_over_batches(seconds: list[float], *, batches: float) -> dict[str, Any]:
    """Percentiles of the seconds per batch, from the seconds of whole runs."""
    median, p10, p90 = (float(np.percentile(seconds, q)) / batches for q in (50, 10, 90))
    return {"median_s": median, "p10_s": p10, "p90_s": p90, "repeats": len(seconds)}


def peak_bytes() -> int:
    """Peak resident size of this process so far.

    On Linux the value is read from /proc, because getrusage starts with the peak of the parent
    process.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def host() -> dict[str, Any]:
    """Name of the CPU, and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        name = names[0] if names else name
    return {"cpu": name, "cores": n_cores()}


def peer_versions() -> dict[str, str]:
    """Versions of the installed peers."""
    out = {}
    for name in ("torch", "timm"):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def emit(line: dict[str, Any], *, path: str | None = None) -> None:
    """Print one JSON line with versions; also append it to the file ``path`` if set."""
    text = json.dumps(line | {"versions": software_versions() | peer_versions()})
    print(text, flush=True)
    if path:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a") as file:
            file.write(text + "\n")


def run_peer(module: str, arguments: list[str]) -> dict[str, Any]:
    """Run ``python -m module arguments`` in a separate process; parse the last line it prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{module} {arguments} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


class Run(Protocol):
    """Measures one peer in a process of its own."""

    def __call__(self, peer: str, **options: Any) -> dict[str, Any]:
        """The line of a peer, which is also emitted; ``options`` are flags of the script."""


class Peers:
    """The peers of a script, which calls itself for each, so that none sees another's memory."""

    def __init__(self, module: str):
        """Define the flags of the inner calls.

        Args:
            module: dotted name of the script.
        """
        self._module = module
        self._peer = flags.DEFINE_string("peer", None, "Measure this one on --folder (internal).")
        self._folder = flags.DEFINE_string("folder", None, "Arrays (internal).")

    def main(
        self,
        *,
        make: Callable[[str], None],
        measure: Callable[[str, str], dict[str, Any]],
        run_all: Callable[[Run, str], None],
        path: str | None = None,
    ) -> None:
        """Measure the peer of an inner call, or all of them.

        Args:
            make: writes the arrays into a folder.
            measure: peer and folder -> its line.
            run_all: measures all peers, and compares them; gets the folder too.
            path: file that the lines of peers are appended to; None: none.
        """
        if self._peer.value and self._folder.value:
            emit(measure(self._peer.value, self._folder.value))
            return
        with tempfile.TemporaryDirectory() as folder:
            make(folder)

            def run(peer: str, **options: Any) -> dict[str, Any]:
                values = {"peer": peer, "folder": folder, **options}
                line = run_peer(self._module, [f"--{name}={v}" for name, v in values.items()])
                emit(line, path=path)
                return line

            run_all(run, folder)
