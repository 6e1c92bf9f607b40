"""What every benchmark shares: each measurement in a process of its own, one JSON line out."""

import json
import math
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from pathorob_jax.core.hosts import n_cores
from pathorob_jax.core.provenance import software_versions

MAX_STEPS = 200  # batches in a queue


def time_calls(call: Callable[[], Any], *, repeats: int) -> dict[str, Any]:
    """First call (with compilation) and the median, p10 and p90 of ``repeats`` further ones."""
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
        batch: starts the work and may return before it is done.
        wait: returns once what ``batch`` returned (or a list of it) is done.
        min_s: a timed call queues as many batches as take this long, and waits once.
        repeats: timed calls.
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
    """Percentiles of the seconds of a batch, from those of whole runs."""
    median, p10, p90 = (float(np.percentile(seconds, q)) / batches for q in (50, 10, 90))
    return {"median_s": median, "p10_s": p10, "p90_s": p90, "repeats": len(seconds)}


def peak_bytes() -> int:
    """Largest resident size of this process so far.

    On Linux from /proc: getrusage's begins with the peak of the process that started this one.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def host() -> dict[str, Any]:
    """The processor's name and the cores that this process may use."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        name = names[0] if names else name
    return {"cpu": name, "cores": n_cores()}


def peer_versions() -> dict[str, str]:
    """Versions of the peers that are installed."""
    out = {}
    for name in ("torch", "timm"):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def emit(line: dict[str, Any], *, path: str | None = None) -> None:
    """Print one JSON line with versions; append it to a file too if asked."""
    text = json.dumps(line | {"versions": software_versions() | peer_versions()})
    print(text, flush=True)
    if path:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a") as file:
            file.write(text + "\n")


def run_peer(module: str, arguments: list[str]) -> dict[str, Any]:
    """Run ``python -m module arguments`` in a process of its own; its last line is the answer."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{module} {arguments} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
