"""The whole benchmark of one encoder, part by part, by this checkout and by an earlier one.

Embeddings of PathoROB's rows are drawn so that classes overlap and the centre rules, as in weak
encoders, and their variances decay, so that k-means takes as many iterations as on real ones. Each
part is one call of ``experiments.evaluate`` with the default protocol, in a process of its own:
first with nothing compiled before, then with the programs that the first call kept. Time and memory
are those of the whole process: imports, reading and writing included.
"""

import compileall
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

import numpy as np
from absl import app, flags
from pyarrow import csv

from experiments.benchmarks import harness
from experiments.benchmarks.golden_stores import METADATA
from pathorob_jax.data import manifest as manifests

PARTS = {
    "neighbours": ("robustness_index", "margins", "probes"),
    "apd": ("apd",),
    "clustering": ("clustering_score",),
}
# All metrics in one process.
WHOLE = {"all": tuple(metric for metrics in PARTS.values() for metric in metrics)}
# Where a record's headline has another name than the record.
HEADLINES = {"apd": "apd_id"}
MODEL = "weak"
# Standard deviations of what a class, a centre and a slide add; that of a row is 1.
EFFECTS = {"biological_class": 0.4, "medical_center": 0.55, "slide_id": 0.6}
DECAY = 0.6

_CHECKOUTS = flags.DEFINE_list(
    "checkouts", [], "Other checkouts, such as a worktree of an earlier commit; run beside this."
)
_METADATA_DIR = flags.DEFINE_string(
    "metadata_dir", None, "Folder of PathoROB's metadata files.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Stores, results, programs.", required=True)
_DATASETS = flags.DEFINE_list("dataset", sorted(METADATA), "Datasets.")
_PARTS = flags.DEFINE_list("parts", list(PARTS), f"{', '.join(PARTS)}; or all, in one call.")
_PROGRAMS = flags.DEFINE_string(
    "programs", None, "Folder of programs that all calls keep; unset: the first call finds none."
)
_DIM = flags.DEFINE_integer("dim", 1_536, "Dimensions.", lower_bound=1)
_CALLS = flags.DEFINE_integer("calls", 2, "Calls of each part; the first compiles.", lower_bound=1)
_RESULTS = flags.DEFINE_string("results", None, "File that lines are appended to; unset: none.")


def draw_embeddings(rows: manifests.Manifest) -> np.ndarray:
    """float32[N, D] with effects of class, centre and slide."""
    rng = np.random.default_rng(len(rows))
    x = rng.standard_normal((len(rows), _DIM.value), np.float32)
    for column, effect in EFFECTS.items():
        _, ids = np.unique(np.asarray(rows.column(column)), return_inverse=True)
        x += effect * rng.standard_normal((int(ids.max()) + 1, _DIM.value), np.float32)[ids]
    offset = 3 * rng.standard_normal(_DIM.value, np.float32)
    return (x + offset) * (1 + np.arange(_DIM.value, dtype=np.float32)) ** -DECAY


def measure(checkout: str, module: str, arguments: list[str], kept: str) -> dict[str, Any]:
    """One script of a checkout: seconds, seconds of processors, and the most memory."""
    environment = harness.best_environment() | {
        # Before what lies there for all checkouts, such as packages.
        "PYTHONPATH": os.pathsep.join(filter(None, [checkout, os.environ.get("PYTHONPATH")])),
        "JAX_COMPILATION_CACHE_DIR": kept,
    }
    command = [sys.executable, "-m", f"experiments.{module}", *arguments]
    begun = time.perf_counter()
    with open(os.path.join(_OUTPUT.value, "log"), "w") as log:
        process = subprocess.Popen(command, cwd=checkout, env=environment, stderr=log, stdout=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        with open(log.name) as log:
            raise RuntimeError(f"{checkout}: {' '.join(command)}\n{log.read()[-2000:]}")
    return {
        "wall_s": time.perf_counter() - begun,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def headline(folder: str) -> dict[str, Any]:
    """The headline of each record that a call wrote, as both checkouts name it, and the device."""
    found: dict[str, Any] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name)) as file:
                value = json.load(file) if name.endswith(".json") else {}
            metric = name.removesuffix(".json")
            field = HEADLINES.get(metric, metric)
            if field in value:
                found[metric] = value[field]
                found["device"] = value["provenance"]["device"]["kind"]
                cost = value["provenance"].get("cost", {})
                found.setdefault("metric_s", {})[metric] = cost.get("seconds")
    return found


def main(argv: list[str]) -> None:
    """Each dataset and part by each checkout in turn."""
    del argv
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    checkouts = [*map(os.path.abspath, _CHECKOUTS.value), here]
    output = os.path.abspath(_OUTPUT.value)
    os.makedirs(output, exist_ok=True)
    for checkout in checkouts:  # as installed packages are
        for package in ("pathorob_jax", "experiments"):
            compileall.compile_dir(os.path.join(checkout, package), quiet=2)
    for dataset in _DATASETS.value:
        if not os.path.exists(os.path.join(output, "embeddings", MODEL, dataset)):
            _import_rows(dataset, checkouts[0], output)
        for part in _PARTS.value:
            for checkout in checkouts:
                _emit_calls(dataset, part, checkout, output)


def _import_rows(dataset: str, checkout: str, output: str) -> None:
    paths = [os.path.join(_METADATA_DIR.value, name) for name in METADATA[dataset]]
    rows = manifests.union([manifests.read_manifest(path) for path in paths])
    source, manifest = (os.path.join(output, f"{dataset}.{end}") for end in ("npy", "csv"))
    np.save(source, draw_embeddings(rows))
    csv.write_csv(rows.table.select(manifests.REQUIRED), manifest)
    given = {
        "format": "npy",
        "source": source,
        "manifest": manifest,
        "model": MODEL,
        "dataset": dataset,
        "output": os.path.join(output, "embeddings"),
    }
    arguments = [f"--{name}={value}" for name, value in given.items()]
    measure(checkout, "import_embeddings", arguments, os.path.join(output, "xla"))


def _emit_calls(dataset: str, part: str, checkout: str, output: str) -> None:
    kept, results = os.path.join(output, "xla"), os.path.join(output, "results")
    if _PROGRAMS.value:
        kept = os.path.abspath(_PROGRAMS.value)
    else:
        shutil.rmtree(kept, ignore_errors=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True
    ).stdout.strip()
    for call in range(_CALLS.value):
        shutil.rmtree(results, ignore_errors=True)
        graphs = os.path.join(output, "embeddings", MODEL, dataset, "neighbors")
        shutil.rmtree(graphs, ignore_errors=True)
        given = {
            "embeddings": os.path.join(output, "embeddings", MODEL),
            "dataset": dataset,
            "metadata_dir": os.path.abspath(_METADATA_DIR.value),
            "metrics": ",".join((PARTS | WHOLE)[part]),
            "output": results,
        }
        arguments = [f"--{name}={value}" for name, value in given.items()]
        line = {"task": "protocol", "part": part, "shape": dataset, "dim": _DIM.value}
        found = len(os.listdir(kept)) if os.path.isdir(kept) else 0
        line |= {"commit": commit, "programs_kept": call > 0 or found > 0}
        line |= measure(checkout, "evaluate", arguments, kept) | headline(results)
        harness.emit(line, path=_RESULTS.value)


if __name__ == "__main__":
    app.run(main)
