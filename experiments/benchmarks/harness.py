"""What every benchmark shares: each measurement in a process of its own, one JSON line out."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pathorob_jax.provenance import software_versions


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


def peak_bytes() -> int:
    """Largest resident size of this process so far (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def emit(line: dict[str, Any]) -> None:
    """Print one JSON line with versions."""
    print(json.dumps(line | {"versions": software_versions()}), flush=True)


def run_peer(module: str, arguments: list[str]) -> dict[str, Any]:
    """Run ``python -m module arguments`` in a process of its own; its last line is the answer."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{module} {arguments} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
