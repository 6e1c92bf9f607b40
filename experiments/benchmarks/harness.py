"""Shared parts of the benchmarks: a separate process per measurement, one JSON line per result.

Peers have their best settings: nothing in the environment narrows the instructions of their linear
algebra, and they have a thread for each core. Every line names the processor and the rate of
float32 products of the machine, measured when the peer has ended, so that lines of other machines
and of busy hours can be compared (``regression``).
"""

import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, Protocol

import numpy as np
from absl import flags

from pathorob_jax.cli.start import MIN_COMPILE_S, with_gpu_products
from pathorob_jax.core.hosts import n_cores, processor_name, visible_gpus
from pathorob_jax.core.provenance import software_versions

MAX_STEPS = 200  # batches that a timed call queues at most
# What narrows the instructions that a peer's linear algebra may use.
NARROWING = (
    "OPENBLAS_CORETYPE",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "BLIS_ARCH_TYPE",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "NPY_DISABLE_CPU_FEATURES",
    "FAISS_OPT_LEVEL",
)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
RATE = "product_gflop_per_s"
KNOWN_RATE = "ACCELERATOR_GFLOP_PER_S"
# Ours in a second process, which finds the programs that the first has compiled.
AGAIN = "ours_again"


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


def peer_versions() -> dict[str, str]:
    """Versions of the installed peers."""
    out = {}
    for name in ("torch", "timm"):
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def best_environment() -> dict[str, str]:
    """The environment of a peer: nothing narrows it, and it has a thread for each core."""
    kept = {name: value for name, value in os.environ.items() if name not in NARROWING}
    return kept | dict.fromkeys(THREADS, str(n_cores()))


def product_rate(device: str) -> float:
    """GFLOP/s of float32 products of this machine, in a process of its own.

    Args:
        device: kind of the device; ``cpu``: NumPy's products on all cores, else JAX's on the first
            accelerator.
    """
    command = [sys.executable, "-m", "experiments.benchmarks.product_rate", f"--device={device}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=best_environment()
    )
    if done.returncode:
        raise RuntimeError(f"product_rate of {device} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


@functools.cache
def steady_rate(device: str) -> float:
    """The rate of an accelerator, which nobody else uses: measured once by each script.

    ``KNOWN_RATE`` of the environment holds that of a script which calls others.
    """
    known = os.environ.get(KNOWN_RATE)
    return float(known) if known else product_rate(device)


def host(device: str) -> dict[str, Any]:
    """The processor, the cores that this process may use, and the rate of products there."""
    rate = product_rate(device) if device == "cpu" else steady_rate(device)
    return {"cpu": processor_name(), "cores": n_cores(), RATE: rate}


def answer(line: dict[str, Any]) -> None:
    """Print a line for the process that called this one."""
    print(json.dumps(line), flush=True)


def emit(line: dict[str, Any], *, path: str | None = None) -> None:
    """Print one JSON line with the machine and versions; append it to the file ``path`` if set."""
    versions = {"versions": software_versions() | peer_versions()}
    text = json.dumps(line | host(str(line.get("device", "cpu"))) | versions)
    print(text, flush=True)
    if path:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a") as file:
            file.write(text + "\n")


def run_peer(module: str, arguments: list[str]) -> dict[str, Any]:
    """Run ``python -m module arguments`` in a separate process; parse the last line it prints."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=best_environment()
    )
    if done.returncode:
        raise RuntimeError(f"{module} {arguments} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def keep_programs(folder: str) -> None:
    """As in all scripts, programs are compiled for GPUs alike, and processes share them.

    The first process finds none.
    """
    if visible_gpus():
        os.environ["XLA_FLAGS"] = with_gpu_products(os.environ.get("XLA_FLAGS", ""))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(folder, "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(MIN_COMPILE_S)
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def compare_first_calls(rows: dict[str, dict[str, Any]], peer: str) -> dict[str, Any]:
    """The peer's time over ours: in our first call, and in a first call with programs kept."""
    theirs, out = rows[peer]["first_s"], {"speedup_first_call": "ours", "speedup_kept": AGAIN}
    return {name: theirs / rows[row]["first_s"] for name, row in out.items() if row in rows}


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
            answer(measure(self._peer.value, self._folder.value))
            return
        with tempfile.TemporaryDirectory() as folder:
            keep_programs(folder)
            make(folder)

            def run(peer: str, **options: Any) -> dict[str, Any]:
                values = {"peer": peer, "folder": folder, **options}
                line = run_peer(self._module, [f"--{name}={v}" for name, v in values.items()])
                emit(line, path=path)
                return line

            run_all(run, folder)
