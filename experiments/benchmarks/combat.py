"""ComBat in memory: ours (fit and transform) and neuroCombat on the same rows.

The rows have two classes and five centres, each centre with a shift and a scale of its own. Each
peer runs in a separate process. ``cpu_s`` is the processor time of a call over all threads, for
comparisons on a machine that others use at the same time. ``largest_change`` compares what both
return, in units of the pooled standard deviation of a dimension; neuroCombat ends its iteration at
a relative change of 1e-4.
"""

import contextlib
import importlib
import io
import os
import time
import warnings

import jax
import numpy as np
from absl import app, flags

from experiments.benchmarks import harness
from pathorob_jax.core import cost
from pathorob_jax.robustify.robustifier import fit_robustifier

_SAMPLES = flags.DEFINE_integer("samples", 20_400, "Rows N.", lower_bound=100)
_DIM = flags.DEFINE_integer("dim", 3_072, "Dimensions D.", lower_bound=2)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Calls of ours after the first.", lower_bound=0)
_PEERS = flags.DEFINE_list("peers", ["ours", "neurocombat"], "Rows to measure.")
PEERS = harness.Peers("experiments.benchmarks.combat")
CENTERS, CLASSES = 5, 2


def make_arrays(n: int, dim: int, folder: str) -> None:
    """Write rows of 2 classes x 5 centres, with shift and scale of every centre."""
    rng = np.random.default_rng(0)
    center, bio = np.arange(n) % CENTERS, np.arange(n) // CENTERS % CLASSES
    x = rng.standard_normal((n, dim), np.float32)
    x *= rng.uniform(0.7, 1.4, (CENTERS, dim)).astype(np.float32)[center]
    x += rng.standard_normal((CENTERS, dim), np.float32)[center]
    x += rng.standard_normal((CLASSES, dim), np.float32)[bio]
    for name, array in (("embeddings", x), ("center", center), ("class", bio)):
        np.save(os.path.join(folder, f"{name}.npy"), array)


def measure(peer: str, folder: str) -> dict[str, object]:
    """Time one peer on the arrays of a folder."""
    x, center, bio = (
        np.load(os.path.join(folder, f"{name}.npy")) for name in ("embeddings", "center", "class")
    )
    loaded = cost.peak_bytes()
    results: dict[str, np.ndarray] = {}

    def ours() -> None:
        rows = {
            "slide_id": np.arange(len(x)) // CENTERS // CLASSES // 20 * CENTERS + center,
            "patch_id": np.arange(len(x)),
            "biological_class": np.array(["normal", "tumor"])[bio],
            "medical_center": center.astype(str),
        }
        robustifier = fit_robustifier(x, rows, method="combat")
        results["x"] = robustifier.transform(x, center=rows["medical_center"])

    def theirs() -> None:
        neurocombat = importlib.import_module("neuroCombat")
        pandas = importlib.import_module("pandas")

        covariates = pandas.DataFrame({"center": center})
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            answer = neurocombat.neuroCombat(x.astype(np.float64).T, covariates, "center")
        results["x"] = answer["data"].T

    repeats = _REPEATS.value if peer == "ours" else 0
    start = time.process_time()
    times = harness.time_calls({"ours": ours, "neurocombat": theirs}[peer], repeats=repeats)
    cpu_s = (time.process_time() - start) / (1 + repeats)
    np.save(os.path.join(folder, f"{peer}.npy"), results["x"].astype(np.float32))
    return {
        "task": "combat",
        "peer": peer,
        "n": len(x),
        "dim": x.shape[1],
        "centers": CENTERS,
        **times,
        "cpu_s": cpu_s,
        "embeddings_bytes": x.nbytes,
        "loaded_bytes": loaded,
        "peak_bytes": cost.peak_bytes(),
        "device": jax.devices()[0].device_kind,
    }


def compare(ours: dict[str, object], theirs: dict[str, object], folder: str) -> dict[str, object]:
    """Speedup, and the largest difference between what both return."""
    x, y = (np.load(os.path.join(folder, f"{name}.npy")) for name in ("ours", "neurocombat"))
    return {
        "task": "combat",
        "compare": "neurocombat / ours",
        "speedup_first_call": float(str(theirs["first_s"])) / float(str(ours["first_s"])),
        "speedup": float(str(theirs["median_s"])) / float(str(ours["median_s"])),
        "speedup_cpu": float(str(theirs["cpu_s"])) / float(str(ours["cpu_s"])),
        "largest_change": float((np.abs(x - y) / y.std(0)[None]).max()),
    }


def run_all(run: harness.Run, folder: str) -> None:
    """Measure all peers and compare them."""
    rows = {peer: run(peer, repeats=_REPEATS.value) for peer in _PEERS.value}
    if {"ours", "neurocombat"} <= set(rows):
        harness.emit(compare(rows["ours"], rows["neurocombat"], folder))


def main(argv: list[str]) -> None:
    """Measure one peer, or all peers in separate processes."""
    del argv
    PEERS.main(
        make=lambda folder: make_arrays(_SAMPLES.value, _DIM.value, folder),
        measure=measure,
        run_all=run_all,
    )


if __name__ == "__main__":
    app.run(main)
